"""ExecSync, and the URLs of streams."""

import re
import time

from server import check, refused, same

from . import Code, case


@case
def exec_sync(s):
    """ExecSync: exit code, both streams, user and environment of the container; not running"""
    t = s.types
    pod = s.host_pod("exec")
    container = s.run(pod, "exec sleep 1000", envs=[t.KeyValue(key="A", value="b")])
    answer = s.exec(container, "sh", "-c", "echo $A; echo err >&2; exit 42")
    same("answer", (answer.exit_code, answer.stdout, answer.stderr), (42, b"b\n", b"err\n"))
    with refused(Code.UNKNOWN, "/no/such"):
        s.exec(container, "/no/such")
    with refused(Code.INVALID_ARGUMENT):
        s.exec(container)
    s.end(container)
    with refused(Code.FAILED_PRECONDITION, "not running"):
        s.exec(container, "true")
    s.remove_pod(pod)


@case
def exec_sync_limits(s):
    """ExecSync: a timeout kills the whole tree; output is capped; a background child delays nothing"""
    pod = s.host_pod("exec-limits")
    container = s.run(pod, "exec sleep 1000")
    began = time.monotonic()
    with refused(Code.DEADLINE_EXCEEDED, "timed out"):
        s.exec(container, "sh", "-c", "sleep 7777 & setsid sleep 8888 & sleep 9999", timeout=1)
    check(time.monotonic() - began < 8, "in time")
    left = s.exec(container, "ps", "-o", "args").stdout
    check(b"7777" not in left and b"8888" not in left and b"9999" not in left, f"left: {left!r}")
    answer = s.exec(container, "sh", "-c", "yes | head -c 40000000")
    check(answer.exit_code == 0 and 1 << 20 < len(answer.stdout) <= 16 << 20, f"{len(answer.stdout)} bytes")
    began = time.monotonic()
    same("background", s.exec(container, "sh", "-c", "sleep 5 & echo done").stdout, b"done\n")
    check(time.monotonic() - began < 4, "not waited for")
    s.remove_pod(pod)


@case
def urls(s):
    """Exec, Attach and PortForward answer with URLs on loopback that are good for once"""
    t = s.types
    pod = s.host_pod("urls")
    container = s.run(pod, "exec sleep 1000")
    answers = [s.runtime.Exec(t.ExecRequest(container_id=container, cmd=["true"], stdout=True)).url,
               s.runtime.Attach(t.AttachRequest(container_id=container, stdout=True)).url,
               s.runtime.PortForward(t.PortForwardRequest(pod_sandbox_id=pod[0], port=[80])).url]
    for url, kind in zip(answers, ["exec", "attach", "portforward"]):
        check(re.fullmatch(rf"http://127\.0\.0\.1:\d+/{kind}/[\w-]{{8,}}", url), url)
    same("different", len(set(answers)), 3)
    with refused(Code.INVALID_ARGUMENT):
        s.runtime.Exec(t.ExecRequest(container_id=container, cmd=["true"]))
    s.remove_pod(pod)
