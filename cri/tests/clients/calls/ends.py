"""A server that ends, and what there is besides it."""

import pathlib
import signal
import time

from server import same, until

from . import case


@case
def restart(s):
    """kill -9 and SIGTERM: containers go on, logs are whole, ends that happened meanwhile are known (C2)"""
    t = s.types
    pod = s.pod("restart")
    runs = s.run(pod, "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done", name="runs")
    ends = s.run(pod, "sleep 1; exit 21", name="ends")
    made = s.create(pod, "exit 4", name="made")
    address = s.runtime.PodSandboxStatus(t.PodSandboxStatusRequest(pod_sandbox_id=pod[0])).status.network.ip
    s.stop(signal.SIGKILL)
    time.sleep(1.5)
    s.start()
    same("ended meanwhile", (s.ended(ends).exit_code, s.status(runs).state), (21, t.CONTAINER_RUNNING))
    status = s.runtime.PodSandboxStatus(t.PodSandboxStatusRequest(pod_sandbox_id=pod[0])).status
    same("pod", (status.state, status.network.ip), (t.SANDBOX_READY, address))
    s.begin(made)
    same("started by the next", s.ended(made).exit_code, 4)
    same("SIGTERM", s.stop(), 0)
    s.start()
    same("exec", s.exec(runs, "echo", "x").stdout, b"x\n")
    s.end(runs, 0)
    numbers = [int(line) for line in s.said(runs).split()]
    same("log", numbers, list(range(1, len(numbers) + 1)))
    s.remove_pod(pod)


@case
def monitors(s):
    """One single-threaded monitor per container and no pause process; a shared pid namespace has a holder"""
    for mode, holders in [(s.types.CONTAINER, []), (s.types.POD, ["conward-hold"])]:
        pod = s.host_pod("tree", pid=mode)
        for name in ["one", "two"]:
            s.run(pod, "exec sleep 1000", name=name)
        wanted = ["conward", "conward", *holders]
        # Whoever has made a monitor may be about to end.
        until(lambda: len(processes(s)) == len(wanted), "nobody else has the pod's directories")
        of_pod = processes(s)
        programs = sorted((process / "comm").read_text().strip() for process in of_pod)
        same("processes with the pod's directories", programs, wanted)
        for process in of_pod:
            same("threads", len(list((process / "task").iterdir())), 1)
        s.remove_pod(pod)
        until(lambda: not processes(s), "they go with the pod")


def processes(s):
    own = str(s.dir / "run").encode()
    return [p for p in pathlib.Path("/proc").iterdir() if p.name.isdigit() and own in read(p / "cmdline")]


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""
