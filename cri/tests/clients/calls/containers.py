"""Containers: their life, log and lists."""

import concurrent.futures
import os
import pathlib
import re
import signal
import time

from server import Skip, check, refused, same, until

from . import Code, case, each_handler


@case
def container_life(s):
    """Created, running, exited, gone; times, exit code, reasons"""
    t = s.types
    pod = s.host_pod("life")
    container = s.create(pod, "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done", labels={"k": "v"})
    status = s.status(container)
    same("state", (status.state, status.started_at, status.finished_at), (t.CONTAINER_CREATED, 0, 0))
    same("labels", dict(status.labels), {"k": "v"})
    s.begin(container)
    status = s.status(container)
    same("state", status.state, t.CONTAINER_RUNNING)
    check(status.started_at >= status.created_at, "started after created")
    until(lambda: s.said(container) == b"up\n", "it says something")
    s.end(container, 10)
    status = s.status(container)
    same("end", (status.state, status.exit_code, status.reason), (t.CONTAINER_EXITED, 9, "Error"))
    check(status.finished_at >= status.started_at > 0, "finished after started")
    for _ in range(2):
        s.remove(container)
    with refused(Code.NOT_FOUND, container):
        s.status(container)
    well = s.ended(s.run(pod, "exit 0", name="well"))
    same("end", (well.exit_code, well.reason), (0, "Completed"))
    s.remove_pod(pod)


@case
def container_start(s):
    """StartContainer: once, and what was asked for runs when it answers; without a runtime's process where that is runc"""
    t = s.types
    for handler in each_handler(s):
        pod = s.host_pod(f"start-{handler}", handler)
        container = s.create(pod, ["sleep", "1000"])
        pid = int((s.dir / "run/containers" / container / "container.pid").read_text())
        fifo = s.dir / "run/runtimes" / handler / container / "exec.fifo"
        same("waits", fifo.exists(), True)
        s.begin(container)
        # The kernel changes the program before it closes the FIFO, the name that ps shows after that.
        program = pathlib.Path(os.readlink(f"/proc/{pid}/exe")).name
        same("runs", (program, fifo.exists()), ("busybox", False))
        same("asked the runtime itself", asked(s, container), False)
        with refused(Code.FAILED_PRECONDITION, "cannot be started, it is Running"):
            s.begin(container)
        same("state", s.status(container).state, t.CONTAINER_RUNNING)
        s.remove_pod(pod)


@case
def container_start_of_dead(s):
    """StartContainer when the process is dead and nobody knows yet, or waits for nothing: the runtime's own words"""
    t = s.types
    if "runc" not in each_handler(s):
        raise Skip("no runc")
    pod = s.host_pod("start-dead", "runc")
    dead = s.create(pod, "exit 0", name="dead")
    run = s.dir / "run/containers" / dead
    pid, monitor = (int((run / name).read_text()) for name in ["container.pid", "monitor.pid"])
    os.kill(monitor, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        call = s.runtime.StartContainer.future(t.StartContainerRequest(container_id=dead), timeout=60)
        until(lambda: asked(s, dead), "the starter gives up")
    finally:
        os.kill(monitor, signal.SIGCONT)
    with refused(Code.UNKNOWN, "stopped"):
        call.result()
    gone = s.create(pod, "exit 0", name="gone")
    (s.dir / "run/runtimes/runc" / gone / "exec.fifo").unlink()
    with refused(Code.UNKNOWN, "runc"):
        s.begin(gone)
    for container in [dead, gone]:
        status = s.status(container)
        same("end", (status.state, status.reason, status.exit_code), (t.CONTAINER_EXITED, "StartError", 128))
    s.remove_pod(pod)


def asked(s, container):
    """The server's own way to start a container did not do."""
    return any("Asking the runtime itself" in line and container in line for line in s.log.read_text().splitlines())


@case
def container_kill(s):
    """Stop with timeout 0, and of one that ignores the signal"""
    pod = s.host_pod("kill")
    container = s.run(pod, "exec sleep 1000", name="at-once")
    s.end(container, 0)
    same("exit code", s.status(container).exit_code, 137)
    stubborn = s.run(pod, "trap '' TERM; echo up; while :; do sleep 0.05; done", name="stubborn")
    until(lambda: s.said(stubborn), "it runs")
    began = time.monotonic()
    s.end(stubborn, 1)
    check(0.9 < time.monotonic() - began < 10, "killed after the timeout")
    same("exit code", s.status(stubborn).exit_code, 137)
    s.end(stubborn, 1)
    s.remove_pod(pod)


@case
def container_stop_is_shortened(s):
    """A second stop shortens the first; status, logs, exec and reopening go on meanwhile"""
    t = s.types
    pod = s.host_pod("shorten")
    container = s.run(pod, "trap '' TERM; echo up; while :; do sleep 0.05; done")
    until(lambda: s.said(container), "it runs")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        long = pool.submit(s.end, container, 50)
        time.sleep(0.3)
        began = time.monotonic()
        same("state", s.status(container).state, t.CONTAINER_RUNNING)
        same("exec", s.exec(container, "true").exit_code, 0)
        s.runtime.ReopenContainerLog(t.ReopenContainerLogRequest(container_id=container), timeout=5)
        s.end(container, 0)
        long.result(10)
        check(time.monotonic() - began < 8, "all at once")
    s.remove_pod(pod)


@case
def container_unknown(s):
    """Unknown ids: stop and remove succeed, everything else says not found"""
    t = s.types
    s.end("nobody")
    s.remove("nobody")
    s.remove_pod("nobody")
    for call in [lambda: s.begin("nobody"), lambda: s.status("nobody"), lambda: s.exec("nobody", "true"),
                 lambda: s.runtime.ReopenContainerLog(t.ReopenContainerLogRequest(container_id="nobody")),
                 lambda: s.runtime.ContainerStats(t.ContainerStatsRequest(container_id="nobody")),
                 lambda: s.runtime.PodSandboxStats(t.PodSandboxStatsRequest(pod_sandbox_id="nobody")),
                 lambda: s.runtime.Exec(t.ExecRequest(container_id="nobody", cmd=["true"], stdout=True)),
                 lambda: s.runtime.Attach(t.AttachRequest(container_id="nobody", stdout=True)),
                 lambda: s.runtime.PortForward(t.PortForwardRequest(pod_sandbox_id="nobody"))]:
        with refused(Code.NOT_FOUND, "nobody"):
            call()


@case
def container_again(s):
    """The same name at the same time: one container"""
    pod = s.host_pod("same")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        ids = {future.result() for future in [pool.submit(s.create, pod, "exit 0") for _ in range(3)]}
    same("containers made", len(ids), 1)
    with refused(Code.ALREADY_EXISTS, "main"):
        s.create(pod, "exit 0")
    s.remove_pod(pod)


@case
def container_failures(s):
    """No such image, no such command: the runtime's own words, nothing left"""
    pod = s.host_pod("failures")
    with refused(Code.NOT_FOUND, "localhost/nothing"):
        s.create(pod, "exit 0", image="localhost/nothing")
    with refused(Code.UNKNOWN, "/no/such/program"):
        s.run(pod, ["/no/such/program"], name="missing")
    left = [c.metadata.name for c in s.containers() if c.pod_sandbox_id == pod[0]]
    check(left in ([], ["missing"]), f"left: {left}")
    s.remove_pod(pod)


@case
def container_log(s):
    """The CRI's log format: both streams, partial lines, a terminal; reopening"""
    t = s.types
    pod = s.host_pod("log")
    container = s.run(pod, "echo out; echo err >&2; printf partial; read -r x; echo after", stdin=True)
    until(lambda: s.said(container).count(b"partial"), "all is said")
    path = pathlib.Path(s.status(container).log_path)
    stamp = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) "
    lines = sorted(re.sub(stamp, b"", line) for line in path.read_bytes().splitlines())
    same("records", lines, [b"stderr F err", b"stdout F out", b"stdout P partial"])
    path.rename(path.with_suffix(".old"))
    s.runtime.ReopenContainerLog(t.ReopenContainerLogRequest(container_id=container))
    check(path.exists(), "a new file")
    s.end(container, 0)
    with refused(Code.FAILED_PRECONDITION, "not running"):
        s.runtime.ReopenContainerLog(t.ReopenContainerLogRequest(container_id=container))
    tty = s.run(pod, "tty; stty size", name="tty", tty=True)
    s.ended(tty)
    check(b"/dev/" in s.said(tty), "a terminal")
    s.remove_pod(pod)


@case
def container_lists(s):
    """ListContainers by id, beginning of an id, pod, state, label; oldest first"""
    t = s.types
    pod = s.host_pod("lists")
    made = s.create(pod, "exit 0", name="made", labels={"is": "made"})
    runs = s.run(pod, "exec sleep 1000", name="runs", labels={"is": "running"})
    over = s.run(pod, "exit 3", name="over")
    s.ended(over)

    def ids(**fields):
        request = t.ListContainersRequest(filter=t.ContainerFilter(**fields))
        return [c.id for c in s.runtime.ListContainers(request).containers]

    same("by pod", ids(pod_sandbox_id=pod[0]), [made, runs, over])
    same("by id", ids(id=runs), [runs])
    same("by a beginning", ids(id=runs[:13]), [runs])
    same("by state", ids(pod_sandbox_id=pod[0], state=t.ContainerStateValue(state=t.CONTAINER_EXITED)), [over])
    same("by label", ids(label_selector={"is": "made"}), [made])
    same("by a label that is not there", ids(label_selector={"is": "x"}), [])
    same("status by a beginning", s.status(runs[:13]).id, runs)
    s.remove_pod(pod)
