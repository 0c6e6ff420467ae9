"""The server is killed with SIGKILL at random moments of pods' lives: nothing is leaked and nothing is lost (C1, C2).

    killed.py [WORD...]     LIVES=200 pod lives (default 40), SEED=n for the same moments again
"""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import grpc

from server import Server, check, main, same, types, until

CASES = []
LIVES = int(os.environ.get("LIVES", "40"))


def case(run):
    CASES.append(run)
    return run


@contextlib.contextmanager
def setup(scratch):
    api = types(os.environ["CRI_PROTO"], scratch)
    server = Server(os.environ["CONWARD_CRI"], scratch, api)
    server.import_busybox()
    server.start()
    try:
        yield server
    finally:
        if server.process:
            server.process.kill()


def text(path):
    try:
        return pathlib.Path(path).read_text(errors="replace")
    except OSError:
        return ""


def leaks(s):
    """Everything of this server that is still there, as words."""
    found = []
    own = str(s.dir)
    found += [f"mount {line.split()[1]}" for line in text("/proc/self/mounts").splitlines() if own in line.split()[1]]
    for process in pathlib.Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) not in (os.getpid(), s.process.pid):
            line = text(process / "cmdline")
            if own in line and "conward-cri\0serve" not in line:
                found.append(f"process {process.name} {line[:100]!r}")
    for kind in ["pods", "containers"]:
        for parent in [s.dir / "root" / kind, s.dir / "run" / kind]:
            found += [f"directory {path}" for path in (parent.iterdir() if parent.exists() else [])]
    for path in pathlib.Path("/sys/fs/cgroup").glob("*/conward/*"):
        found.append(f"cgroup {path}") if path.is_dir() else None
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    found += [f"interface {line.split()[1]}" for line in links.splitlines() if "veth" in line]
    for lease in pathlib.Path("/var/lib/cni/networks").glob("*/[0-9]*"):
        found.append(f"address {lease}")
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True).stdout
    found += [f"rule {line}" for line in rules.splitlines() if "CNI-DN" in line or "-s 10." in line and "CNI-" in line]
    return found


class Life(threading.Thread):
    """One pod with two containers, from beginning to end, however often the server goes away meanwhile."""

    def __init__(self, s, number):
        super().__init__(daemon=True)
        self.s, self.number, self.error, self.steps = s, number, None, []

    def run(self):
        try:
            self.live()
        except Exception as error:  # noqa: BLE001 Told by whoever waits for the thread.
            self.error = error

    def again(self, call):
        """Calls until there is an answer, as the kubelet would."""
        end = time.monotonic() + 120
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                gone = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED,
                                        grpc.StatusCode.DEADLINE_EXCEEDED) or "Socket closed" in (error.details() or "")
                if not gone or time.monotonic() > end:
                    raise
            except ValueError:
                # The channel was closed under the call.
                if time.monotonic() > end:
                    raise
            time.sleep(0.02)

    def live(self):
        s, t, name = self.s, self.s.types, f"life-{self.number}"
        config = s.pod_config(name)
        self.steps.append("run")
        pod = self.again(lambda: s.runtime.RunPodSandbox(t.RunPodSandboxRequest(config=config), timeout=60)).pod_sandbox_id
        code = 3 + self.number % 100
        script = f"n=0; while [ $n -lt 200 ]; do n=$((n+1)); echo line $n; done; exit {code}"
        self.steps.append("create")
        container = self.again(lambda: s.create((pod, config), script, name="ends"))
        stays = self.again(lambda: s.create((pod, config), "trap 'exit 77' TERM; while :; do sleep 0.02; done", name="stays"))
        self.steps.append("start")
        for one in [container, stays]:
            self.again(lambda one=one: self.begin(one))
        self.steps.append("end")
        end = time.monotonic() + 60
        while self.again(lambda: s.status(container)).state != t.CONTAINER_EXITED:
            check(time.monotonic() < end, f"{name} does not end")
            time.sleep(0.02)
        status = self.again(lambda: s.status(container))
        same(f"exit code of {name}", (status.exit_code, status.reason), (code, "Error"))
        same(f"log of {name}", self.again(lambda: s.said(container)), b"".join(b"line %d\n" % n for n in range(1, 201)))
        same("exec", self.again(lambda: s.exec(stays, "echo", "x")).stdout, b"x\n")
        self.steps.append("stop")
        self.again(lambda: s.end(stays, 20))
        status = self.again(lambda: s.status(stays))
        check(status.exit_code in (77, 143), f"{name}: its signal came: {status.exit_code}")
        self.steps.append("remove")
        self.again(lambda: s.remove(container))
        self.again(lambda: s.remove_pod(pod))

    def begin(self, container):
        """A start that was done while the server died is not done twice."""
        if self.s.status(container).state == self.s.types.CONTAINER_CREATED:
            try:
                self.s.begin(container)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                    raise


@case
def lives(s):
    """Pod lives with the server killed at random moments"""
    seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
    chance = random.Random(seed)
    kills, running, number = 0, [], 0
    began = time.monotonic()
    while number < LIVES or running:
        while number < LIVES and len(running) < 4:
            running.append(Life(s, number))
            running[-1].start()
            number += 1
        time.sleep(chance.uniform(0.05, 1.2))
        s.again(signal.SIGKILL)
        kills += 1
        for life in [life for life in running if not life.is_alive()]:
            running.remove(life)
            if life.error:
                raise AssertionError(f"seed {seed}, life {life.number}, at {life.steps[-1:]}: {life.error}") from life.error
        check(time.monotonic() - began < 60 + LIVES * 10, f"seed {seed}: {[life.steps for life in running]}")
    print(f"         seed {seed}: {LIVES} lives, {kills} kills, {time.monotonic() - began:.0f} s")
    same(f"seed {seed}: pods left", [pod.metadata.name for pod in s.pods()], [])
    until(lambda: not leaks(s), f"seed {seed}: nothing is left: {leaks(s)[:5]}", 10)


@case
def unfinished(s):
    """Kills while pods are being made, without anybody who asks again: the next start unmakes them"""
    chance = random.Random(5)
    for number in range(max(5, LIVES // 4)):
        config = s.pod_config(f"unfinished-{number}")
        s.runtime.RunPodSandbox.future(s.types.RunPodSandboxRequest(config=config))
        time.sleep(chance.uniform(0, 0.25))
        s.again(signal.SIGKILL)
    s.clear()
    until(lambda: not leaks(s), f"nothing is left: {leaks(s)[:5]}", 10)


if __name__ == "__main__":
    sys.exit(main(CASES, setup))
