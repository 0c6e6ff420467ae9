"""crictl itself, every command of it; skipped where it is not in PATH.

    crictl.py [WORD...]     cases whose name contains one of the words; --list shows them, KEEP=1 keeps a failure's files
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

from rig import Registry, Storage, free_port
from server import check, main, same, serving, until

CASES = []
IMAGE = "localhost/busybox:latest"
PATIENCE = 60


def case(run):
    CASES.append(run)
    return run


class Crictl:
    """The program, told where the server is; and what its commands take."""

    def __init__(self, server):
        self.server, self.dir = server, server.dir / "crictl"
        self.dir.mkdir()
        self.environment = {
            **os.environ,
            "CONTAINER_RUNTIME_ENDPOINT": f"unix://{server.socket}",
            "IMAGE_SERVICE_ENDPOINT": f"unix://{server.socket}",
            "CRI_CONFIG_FILE": str(self.dir / "crictl.yaml"),
        }
        (self.dir / "crictl.yaml").write_text("timeout: 20\n")

    def start(self, *words, **streams):
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        return subprocess.Popen(["crictl", *words], env=self.environment, **streams)

    def call(self, *words, given=None, status=0):
        """What it prints; `status` is the exit status that is right, or several are."""
        done = subprocess.run(["crictl", *words], env=self.environment, capture_output=True, timeout=PATIENCE,
                              **({"stdin": subprocess.DEVNULL} if given is None else {"input": given}))
        said = f"crictl {' '.join(words)}: {done.returncode}: {done.stdout[-2000:]!r} {done.stderr[-2000:]!r}"
        check(done.returncode in (status if isinstance(status, tuple) else (status,)), said)
        return done.stdout

    def text(self, *words):
        return self.call(*words).decode().strip()

    def json(self, *words):
        return json.loads(self.call(*words))

    def write(self, name, document):
        path = self.dir / name
        path.write_text(json.dumps(document))
        return str(path)

    def pod_file(self, name):
        return self.write(f"{name}-pod.json", {
            "metadata": {"name": name, "namespace": "default", "attempt": 1, "uid": f"uid-{name}"},
            "log_directory": str(self.server.logs / name), "linux": {}})

    def container_file(self, name, script, image=IMAGE, **fields):
        return self.write(f"{name}.json", {
            "metadata": {"name": name}, "image": {"image": image}, "command": ["sh", "-c", script],
            "log_path": f"{name}.log", "linux": {}, **fields})

    def pod(self, name):
        return self.text("runp", self.pod_file(name))

    def container(self, pod, of, name, script, **fields):
        made = self.text("create", pod, self.container_file(name, script, **fields), self.pod_file(of))
        same("start", self.text("start", made), made)
        return made

    def exited(self, container):
        until(lambda: self.json("inspect", container)["status"]["state"] == "CONTAINER_EXITED", f"{container} to end")


@contextlib.contextmanager
def setup(scratch):
    with serving(scratch, "[images]\ncontainers_storage = ''\n", busybox=True) as server:
        yield Crictl(server)


@case
def about(c):
    """version, info, config, runtime-config, completion"""
    check("RuntimeName:  conward" in c.text("version"), "version names us")
    conditions = c.json("info")["status"]["conditions"]
    same("conditions", {each["type"]: each["status"] for each in conditions}, {"RuntimeReady": True, "NetworkReady": True})
    c.call("config", "--set", "timeout=30")
    check(c.text("config", "--get", "timeout").startswith("30"), "config")
    check("cgroup" in c.text("runtime-config").lower(), "the cgroup driver")
    check("crictl" in c.text("completion", "bash"), "completion")


@case
def images(c):
    """pull, images, inspecti, imagefsinfo, rmi"""
    registry, storage = Registry(c.dir), Storage(c.dir)
    try:
        name = f"{registry.host}/team/app:1"
        storage.push(storage.build("localhost/app:1", ["RUN echo app >/app"]), name)
        check("Image is up to date" in c.text("pull", name), "pull")
        (image,) = [image for image in c.json("images", "-o", "json")["images"] if name in image["repoTags"]]
        same("inspecti", c.json("inspecti", name)["status"]["id"], image["id"])
        (files,) = c.json("imagefsinfo", "-o", "json")["status"]["imageFilesystems"]
        check(pathlib.Path(files["fsId"]["mountpoint"]).exists(), "the mountpoint exists")
        c.call("rmi", name)
        check(name not in c.text("images"), "it is removed")
    finally:
        registry.stop()


@case
def pods(c):
    """runp, pods, inspectp, stopp, rmp"""
    pod = c.pod("pods")
    same("pods", c.text("pods", "-q", "--name", "pods", "--state", "ready"), pod)
    same("inspectp", c.json("inspectp", pod)["status"]["state"], "SANDBOX_READY")
    c.call("stopp", pod)
    same("stopped", c.json("inspectp", pod)["status"]["state"], "SANDBOX_NOTREADY")
    c.call("rmp", pod)
    same("none is left", c.text("pods", "-q"), "")


@case
def containers(c):
    """create, start, ps, inspect, update, stats, statsp, metricsp, stop, rm"""
    pod = c.pod("containers")
    container = c.container(pod, "containers", "main", "sleep 1000")
    same("ps", c.text("ps", "-q"), container)
    same("inspect", c.json("inspect", container)["status"]["state"], "CONTAINER_RUNNING")
    c.call("update", "--cpu-share", "512", "--memory", str(64 << 20), container)
    limits = c.json("inspect", container)["status"]["resources"]["linux"]
    same("limits", (str(limits["cpuShares"]), str(limits["memoryLimitInBytes"])), ("512", str(64 << 20)))
    (own,) = c.json("stats", "-o", "json", container)["stats"]
    same("stats", own["attributes"]["id"], container)
    (own,) = c.json("statsp", "-o", "json", "--id", pod)["stats"]
    same("statsp", own["attributes"]["id"], pod)
    check("container_cpu_usage_seconds_total" in c.text("metricsp"), "metricsp")
    c.call("stop", "--timeout", "0", container)
    same("ps -a", c.text("ps", "-a", "-q", "--state", "exited"), container)
    c.call("rm", container)
    c.call("rmp", "-f", pod)


@case
def run(c):
    """run: a pod and its container at once; rmp -f takes both"""
    container = c.text("run", c.container_file("run", "echo ran; exit 3"), c.pod_file("run"))
    c.exited(container)
    status = c.json("inspect", container)["status"]
    same("end", (status["exitCode"], status["reason"]), (3, "Error"))
    same("logs", c.text("logs", container), "ran")
    c.call("rmp", "-f", status["labels"].get("io.kubernetes.pod.uid") or c.text("pods", "-q", "--name", "run"))


@case
def logs(c):
    """logs: all, --tail, --timestamps, -f to the end of the container"""
    pod = c.pod("logs")
    os.mkfifo(c.dir / "go")
    container = c.container(pod, "logs", "main", "for n in 1 2 3; do echo $n; done; read x </tmp/go; echo last",
                            mounts=[{"host_path": str(c.dir), "container_path": "/tmp"}])
    until(lambda: c.text("logs", container) == "1\n2\n3", "three lines")
    same("tail", c.text("logs", "--tail", "1", container), "3")
    check(c.text("logs", "--timestamps", container).startswith(time.strftime("%Y-")), "timestamps")
    follows = c.start("logs", "-f", container)
    (c.dir / "go").write_text("go\n")
    c.exited(container)
    same("follow", follows.communicate(timeout=PATIENCE)[0], b"1\n2\n3\nlast\n")
    c.call("rmp", "-f", pod)


@case
def execs(c):
    """exec: sync, with input, on a terminal; by SPDY and by WebSocket"""
    pod = c.pod("execs")
    container = c.container(pod, "execs", "main", "sleep 1000")
    same("sync", c.text("exec", "--sync", container, "echo", "hello"), "hello")
    for transport in ("spdy", "websocket"):
        words = ["exec", "--transport", transport]
        same(transport, c.call(*words, "-i", container, "cat", given=b"typed\n" * 10_000), b"typed\n" * 10_000)
        c.call(*words, container, "sh", "-c", "exit 7", status=(1, 7))  # Older versions have one status for all.
        check("a terminal" in on_terminal(c, [*words, "-it", container, "sh", "-c", "test -t 0 && echo a terminal"], ""),
              f"a terminal by {transport}")
    c.call("rmp", "-f", pod)


@case
def attach(c):
    """attach: what is typed arrives, what is said comes; by SPDY and by WebSocket"""
    pod = c.pod("attach")
    for transport in ("spdy", "websocket"):
        container = c.container(pod, "attach", transport, "while read x; do echo got $x; done", stdin=True)
        joined = c.start("attach", "--transport", transport, "-i", container, stdin=subprocess.PIPE)
        joined.stdin.write(b"one\n")
        joined.stdin.flush()
        same(transport, joined.stdout.readline(), b"got one\n")
        joined.terminate()
        joined.wait(PATIENCE)
    c.call("rmp", "-f", pod)


@case
def port_forward(c):
    """port-forward: thirty requests at a time; by SPDY and by WebSocket"""
    pod = c.pod("ports")
    serve = "mkdir /www; echo page >/www/index.html; exec busybox httpd -f -p 80 -h /www"
    c.container(pod, "ports", "main", serve)
    for transport in ("spdy", "websocket"):
        port = free_port()
        forwards = c.start("port-forward", "--transport", transport, pod, f"{port}:80")
        try:
            page = lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read()  # noqa: E731
            until(lambda: works(page), f"a page by {transport}")
            with concurrent.futures.ThreadPoolExecutor(30) as pool:
                same(transport, {each.result() for each in [pool.submit(page) for _ in range(30)]}, {b"page\n"})
        finally:
            forwards.terminate()
            forwards.wait(PATIENCE)
    c.call("rmp", "-f", pod)


@case
def events(c):
    """events: the life of a container as it happens"""
    listens = c.start("events")
    time.sleep(1)
    container = c.text("run", c.container_file("events", "exit 0"), c.pod_file("events"))
    c.exited(container)
    c.call("rmp", "-f", c.text("pods", "-q", "--name", "events"))
    time.sleep(1)
    listens.send_signal(signal.SIGINT)
    said = listens.communicate(timeout=PATIENCE)[0].decode()
    for kind in ("CREATED", "STARTED", "STOPPED", "DELETED"):
        check(f"CONTAINER_{kind}_EVENT" in said, f"{kind} in {said[-2000:]}")


def works(ask):
    with contextlib.suppress(OSError):
        return ask()


def on_terminal(c, words, typed):
    """What a person sees."""
    ours, theirs = pty.openpty()
    process = c.start(*words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    os.write(ours, typed.encode())
    seen, end = b"", time.monotonic() + PATIENCE
    while time.monotonic() < end and select.select([ours], [], [], 1)[0]:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        seen += piece
    process.wait(PATIENCE)
    os.close(ours)
    return seen.decode(errors="replace")


if __name__ == "__main__":
    if shutil.which("crictl") is None:
        print("skipped: no crictl in PATH", file=sys.stderr)
        sys.exit(77)
    sys.exit(main(CASES, setup))
