"""The server is killed with SIGKILL at random moments of pods' lives: nothing is leaked and nothing is lost (C1, C2).

    killed.py [WORD...]     LIVES=200 pod lives (default 20), SEED=n for the same moments again
"""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import grpc

from server import check, main, refused, same, serving, until

CASES = []
LIVES = int(os.environ.get("LIVES", "20"))


def case(run):
    CASES.append(run)
    return run


@contextlib.contextmanager
def setup(scratch):
    with serving(scratch, unwilling(scratch), busybox=True) as server:
        server.ids = set()
        handlers = server.runtime.Status(server.types.StatusRequest()).runtime_handlers
        server.users = all(handler.features.user_namespaces for handler in handlers)
        yield server


def unwilling(scratch):
    """The configuration of runc, and of a runtime that starts nothing."""
    script = pathlib.Path(scratch) / "unwilling"
    script.write_text('#!/bin/sh\nfor word; do [ "$word" != start ] || { echo "it is too late" >&2; exit 1; }; done\nexec runc "$@"\n')
    script.chmod(0o755)
    return f"default_runtime = 'runc'\n[runtimes.runc]\npath = 'runc'\n[runtimes.unwilling]\npath = '{script}'\n"


def kill(s):
    """Kills the server, takes note of what it was working on, and starts another."""
    s.stop(signal.SIGKILL)
    note(s)
    s.start()


def note(s):
    """Pods, by which cgroups are known as ours."""
    with contextlib.suppress(OSError):
        s.ids |= {path.name for path in (s.dir / "root/pods").iterdir()}


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
    rw = s.dir / "root/containers-rw"
    found += [f"writable layer {path}" for path in (rw.iterdir() if rw.exists() else [])]
    cgroups = pathlib.Path("/sys/fs/cgroup")
    found += [f"cgroup {path}" for path in [*cgroups.glob("*/conward/*"), *cgroups.glob("conward/*")] if path.name in s.ids]
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    found += [f"interface {line.split()[1]}" for line in links.splitlines() if "veth" in line]
    for lease in pathlib.Path("/var/lib/cni/networks").glob("*/[0-9]*"):
        found.append(f"address {lease}")
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True).stdout
    found += [f"rule {line}" for line in rules.splitlines() if "CNI-DN" in line or "-s 10." in line and "CNI-" in line]
    return found


def nothing_left(s):
    end = time.monotonic() + 10
    while found := leaks(s):
        check(time.monotonic() < end, f"left: {found[:8]}")
        time.sleep(0.1)


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
        config = s.pod_config(name, linux=self.linux())
        self.steps.append("run")
        pod = self.again(lambda: s.runtime.RunPodSandbox(t.RunPodSandboxRequest(config=config), timeout=60)).pod_sandbox_id
        s.ids.add(pod)
        code = 3 + self.number % 100
        script = f"n=0; while [ $n -lt 200 ]; do n=$((n+1)); echo line $n; done; exit {code}"
        self.steps.append("create")
        container = self.again(lambda: s.create((pod, config), script, name="ends"))
        counts = "trap 'exit 77' TERM; n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done"
        stays = self.again(lambda: s.create((pod, config), counts, name="stays"))
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
        numbers = [int(number) for number in self.again(lambda: s.said(stays)).split()]
        same(f"{name}: what was counted", numbers, list(range(1, len(numbers) + 1)))
        self.steps.append("remove")
        self.again(lambda: s.remove(container))
        self.again(lambda: s.remove_pod(pod))

    def linux(self):
        """Some pods have a user namespace, and some of those a pid namespace that is held, where there are such things."""
        t = self.s.types
        if self.number % 3 == 0 or not self.s.users:
            return t.LinuxPodSandboxConfig()
        ids = [t.IDMapping(host_id=65536 * (1 + self.number % 100), container_id=0, length=65536)]
        modes = t.NamespaceOption(pid=t.POD if self.number % 3 == 1 else t.CONTAINER,
                                  userns_options=t.UserNamespace(mode=t.POD, uids=ids, gids=ids))
        return t.LinuxPodSandboxConfig(security_context=t.LinuxSandboxSecurityContext(namespace_options=modes))

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
        time.sleep(chance.uniform(0.02, 0.8))
        kill(s)
        kills += 1
        for life in [life for life in running if not life.is_alive()]:
            running.remove(life)
            if life.error:
                raise AssertionError(f"seed {seed}, life {life.number}, at {life.steps[-1:]}: {life.error}") from life.error
        check(time.monotonic() - began < 60 + LIVES * 10, f"seed {seed}: {[life.steps for life in running]}")
    print(f"         seed {seed}: {LIVES} lives, {kills} kills, {time.monotonic() - began:.0f} s")
    same(f"seed {seed}: pods left", [pod.metadata.name for pod in s.pods()], [])
    nothing_left(s)


@case
def unfinished(s):
    """Kills while pods are being made, without anybody who asks again: the next start unmakes them"""
    chance = random.Random(5)
    for number in range(max(5, LIVES // 4)):
        config = s.pod_config(f"unfinished-{number}")
        # Kept, since a call that nobody holds is cancelled.
        under_way = s.runtime.RunPodSandbox.future(s.types.RunPodSandboxRequest(config=config))
        time.sleep(chance.uniform(0, 0.25))
        kill(s)
        under_way.cancel()
    s.clear()
    nothing_left(s)


@case
def impatient(s):
    """A client goes away while a pod is stopped or removed: the plugins finish what they have begun"""
    t, chance = s.types, random.Random(6)
    for number in range(max(10, LIVES // 4)):
        pod = s.pod(f"impatient-{number}")[0]
        s.ids.add(pod)
        for call, request in [(s.runtime.StopPodSandbox, t.StopPodSandboxRequest(pod_sandbox_id=pod)),
                              (s.runtime.RemovePodSandbox, t.RemovePodSandboxRequest(pod_sandbox_id=pod))]:
            under_way = call.future(request)
            time.sleep(chance.uniform(0, 0.15))
            under_way.cancel()
        s.remove_pod(pod)
    nothing_left(s)


@case
def start_error(s):
    """A runtime that does not start: the call says so, and the status; the pod goes as any other"""
    t = s.types
    pod = s.host_pod("start-error", "unwilling")
    container = s.create(pod, "exit 0")
    with refused(grpc.StatusCode.UNKNOWN, "it is too late"):
        s.begin(container)
    status = s.status(container)
    same("end", (status.state, status.reason, status.exit_code), (t.CONTAINER_EXITED, "StartError", 128))
    check("it is too late" in status.message, f"message: {status.message}")
    check(status.finished_at >= status.created_at, "the time of its end")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container):
        s.begin(container)
    s.remove(container)
    with refused(grpc.StatusCode.UNKNOWN, "/no/such/program"):
        s.run(pod, ["/no/such/program"], name="missing")
    s.remove_pod(pod)
    s.ids.add(pod[0])
    nothing_left(s)


@case
def start_unfinished(s):
    """Kills while a start is under way, and after it, before the server takes note: it runs, and was started once"""
    t = s.types
    pod = s.host_pod("start-unfinished")
    s.ids.add(pod[0])
    for meanwhile in [False, True]:
        container = s.create(pod, "echo once; exec sleep 1000", name=f"meanwhile-{meanwhile}")
        pid = int((s.dir / "run/containers" / container / "container.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        s.runtime.StartContainer.future(t.StartContainerRequest(container_id=container))
        until(lambda: starting(container), "somebody waits for the container's process")
        s.stop(signal.SIGKILL)
        if meanwhile:
            # The next server waits for what this one has begun.
            threading.Timer(1, os.kill, (pid, signal.SIGCONT)).start()
        else:
            os.kill(pid, signal.SIGCONT)
            until(lambda: not starting(container), "the start is done")
        s.start()
        status = s.status(container)
        same("state", status.state, t.CONTAINER_RUNNING)
        check(status.started_at >= status.created_at, f"started at {status.started_at}")
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "Running"):
            s.begin(container)
        until(lambda: s.said(container) == b"once\n", "it says what it says, once")
        kill(s)
        same("state", s.status(container).state, t.CONTAINER_RUNNING)
        s.end(container, 0)
        same("exit code", s.status(container).exit_code, 137)
    for number in range(5):
        container = s.run(pod, "exec sleep 1000", name=f"answered-{number}")
        kill(s)
        status = s.status(container)
        same("state after the answer", status.state, t.CONTAINER_RUNNING)
        check(status.started_at >= status.created_at, f"started at {status.started_at}")
    s.remove_pod(pod)
    nothing_left(s)


def starting(container):
    """Processes that start a container."""
    lines = [text(process / "cmdline").split("\0") for process in pathlib.Path("/proc").iterdir() if process.name.isdigit()]
    return [words for words in lines if "start" in words and container in words]


@case
def no_monitor(s):
    """A monitor is killed: its container can be stopped and removed, and nobody claims to know its end"""
    t = s.types
    pod = s.host_pod("no-monitor")
    s.ids.add(pod[0])
    container = s.run(pod, "while :; do sleep 0.1; done")
    os.kill(int((s.dir / "run/containers" / container / "monitor.pid").read_text()), signal.SIGKILL)
    for _ in range(2):
        time.sleep(0.3)
        same("state", s.status(container).state, t.CONTAINER_UNKNOWN)
        kill(s)
    s.end(container, 1)
    status = s.status(container)
    same("end", (status.state, status.reason), (t.CONTAINER_EXITED, "Unknown"))
    s.remove_pod(pod)
    nothing_left(s)


@case
def made_in_a_pod_that_goes(s):
    """A pod is removed while containers are made in it"""
    for number in range(5):
        pod = s.host_pod(f"goes-{number}")
        s.ids.add(pod[0])
        config = s.types.ContainerConfig(metadata=s.types.ContainerMetadata(name="late"), command=["sleep", "1000"],
                                         image=s.types.ImageSpec(image="localhost/busybox:latest"), log_path="late.log")
        s.runtime.CreateContainer.future(
            s.types.CreateContainerRequest(pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1]))
        time.sleep(0.03 * number)
        s.remove_pod(pod)
    same("containers left", [c.id for c in s.containers()], [])
    nothing_left(s)


@case
def reboot(s):
    """The run directory is gone with all processes: pods are not ready, ends are unknown, and all can be removed"""
    t = s.types
    pods = [s.pod("boot-net"), s.host_pod("boot-host"), s.host_pod("boot-pids", pid=t.POD)]
    s.ids |= {pod[0] for pod in pods}
    runs = [s.run(pod, "while :; do sleep 0.1; done", name="runs") for pod in pods]
    made = s.create(pods[0], "exit 0", name="made")
    over = s.run(pods[0], "exit 6", name="over")
    s.ended(over)
    s.stop(signal.SIGKILL)
    boot(s, [*runs, made])
    s.start()
    states = {pod.id: pod.state for pod in s.pods()}
    same("pods", [states[pod[0]] for pod in pods], [t.SANDBOX_NOTREADY] * 3)
    for container in [*runs, made]:
        status = s.ended(container)
        same("end", (status.reason, status.exit_code), ("Unknown", 255))
    same("known before", s.status(over).exit_code, 6)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "not ready"):
        s.create(pods[1], "exit 0", name="later")
    for pod in pods:
        s.remove_pod(pod)
    nothing_left(s)


@case
def full(s):
    """The disk is full: ends are known, pods can be stopped and removed, and new ones are refused in these words"""
    t = s.types
    s.stop()
    places = [s.dir / "root" / kind for kind in ["pods", "containers"]]
    for place in places:
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    try:
        s.start()
        pod = s.pod("full")
        s.ids.add(pod[0])
        ends = s.run(pod, "sleep 0.3; exit 8", name="ends")
        stays = s.run(pod, "while :; do sleep 0.1; done", name="stays")
        for place in places:
            with contextlib.suppress(OSError), open(place / "filler", "wb", buffering=0) as filler:
                while filler.write(bytes(4096)):
                    pass
        same("exit code", s.ended(ends).exit_code, 8)
        with refused(grpc.StatusCode.UNKNOWN, "No space left"):
            s.host_pod("full-too")
        s.end(stays, 0)
        same("exit code", s.status(stays).exit_code, 137)
        s.remove_pod(pod)
        same("pods", [p.id for p in s.pods()], [])
    finally:
        s.stop()
        for place in places:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        s.start()
    nothing_left(s)


def boot(s, containers):
    """What a reboot does to a server that is not there."""
    own = str(s.dir / "run")
    pids = [(s.dir / "run/containers" / c / name).read_text() for c in containers for name in ["monitor.pid", "container.pid"]]
    pids += [path.read_text().split()[0] for path in (s.dir / "run/pods").glob("*/holder")]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    mounts = [line.split()[1] for line in text("/proc/self/mounts").splitlines() if line.split()[1].startswith(own)]
    for mount in sorted(mounts, reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=True)
    shutil.rmtree(own)
    for table in ["filter", "nat"]:
        subprocess.run(["iptables", "--table", table, "--flush"], check=True)
    until(lambda: not any(remove_cgroups(pod) for pod in s.ids), "no cgroup is left")


def remove_cgroups(pod):
    left = sorted(pathlib.Path("/sys/fs/cgroup").glob(f"*/conward/{pod}/**/"), reverse=True)
    for path in left:
        with contextlib.suppress(OSError):
            path.rmdir()
    return left


if __name__ == "__main__":
    sys.exit(main(CASES, setup))
