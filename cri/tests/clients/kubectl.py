"""kubectl itself with a real pod: exec, attach, cp, port-forward, over SPDY and, where it knows that, over WebSocket.

    kubectl.py [WORD...]     cases whose name contains one of the words; --list shows them, KEEP=1 keeps a failure's files

CONWARD_KUBECTL names the programs, separated by colons; without it, that in PATH.
"""

import concurrent.futures
import contextlib
import filecmp
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
import typing
import urllib.request

from server import check, main, same, serving, until
from shim import Shim

CASES = []
# Make kubectl use WebSocket, or not; those before 1.29 do not know the first, those before 1.30 not the second.
WEB, WEB_PORTS = "KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "KUBECTL_PORT_FORWARD_WEBSOCKETS"
# Both ways, in bytes.
MUCH = 500 << 20


def case(run):
    """Runs it with every kubectl."""
    def each(cluster):
        for program in cluster.programs:
            cluster.kubectl = program
            cluster.shim.upgrades.clear()
            run(cluster)
            check(cluster.shim.upgrades, f"{program} has asked for nothing")
            for subresource, head in cluster.shim.upgrades:
                check(program.speaks(subresource).lower() in head.lower(), f"{program}, {subresource}: {head}")

    each.__name__, each.__doc__ = run.__name__, run.__doc__
    CASES.append(each)
    return each


class Kubectl(typing.NamedTuple):
    """A program, and what it is to speak."""

    name: str
    web: bool
    web_ports: bool

    def environment(self):
        return {WEB: str(self.web).lower(), WEB_PORTS: str(self.web_ports).lower()}

    def speaks(self, subresource):
        """What the server agrees on with it."""
        if subresource == "portforward":
            return "sec-websocket-protocol: SPDY/3.1+portforward.k8s.io" if self.web_ports else "upgrade: SPDY/3.1"
        return "sec-websocket-protocol: v5.channel.k8s.io" if self.web else "upgrade: SPDY/3.1"


def programs():
    for name in os.environ.get("CONWARD_KUBECTL", "kubectl").split(":"):
        path = shutil.which(name)
        if path is None:
            print(f"skipped: no kubectl: {name} is not there", file=sys.stderr)
            sys.exit(77)
        yield Kubectl(name, False, False)
        text = pathlib.Path(path).read_bytes()
        if WEB.encode() in text:
            yield Kubectl(name, True, WEB_PORTS.encode() in text)


class Cluster:
    """One pod of a real server, its newest container, and kubectl."""

    def __init__(self, server, scratch):
        self.server, self.dir = server, pathlib.Path(scratch) / "kubectl"
        self.dir.mkdir()
        self.programs = list(programs())
        self.kubectl = self.programs[0]
        self.pod, self.container = None, None
        self.shim = Shim(self.url)

    def url(self, subresource, query):
        s, t = self.server, self.server.types
        true = lambda name: query.get(name, ["false"])[0] in ("true", "1")  # noqa: E731
        if subresource == "portforward":
            return s.runtime.PortForward(t.PortForwardRequest(pod_sandbox_id=self.pod[0])).url
        streams = {"tty": true("tty"), "stdin": true("stdin"), "stdout": true("stdout"),
                   "stderr": true("stderr") and not true("tty")}
        if subresource == "attach":
            return s.runtime.Attach(t.AttachRequest(container_id=self.container, **streams)).url
        return s.runtime.Exec(t.ExecRequest(container_id=self.container, cmd=query["command"], **streams)).url

    @contextlib.contextmanager
    def running(self, script, **fields):
        """A pod with a container, until the end of the block."""
        self.pod = self.server.pod(f"kubectl-{time.monotonic_ns()}")
        try:
            self.container = self.server.run(self.pod, script, **fields)
            yield self.container
        finally:
            self.server.remove_pod(self.pod)

    def words(self, *words):
        return [self.kubectl.name, f"--server={self.shim.address}", *words]

    def environment(self):
        return {**os.environ, "HOME": str(self.dir), "KUBECONFIG": "/dev/null", **self.kubectl.environment()}

    def start(self, *words, **streams):
        return subprocess.Popen(self.words(*words), env=self.environment(), **streams)

    def run(self, *words, given=b""):
        return subprocess.run(self.words(*words), env=self.environment(), input=given, capture_output=True, timeout=120)

    def on_terminal(self, words, typed):
        """What a person sees on a terminal of 33 lines and 101 columns."""
        line = f"stty rows 33 cols 101; {shlex.join(self.words(*words))}"
        done = subprocess.run(["script", "-qec", line, "/dev/null"], env=self.environment(), input=typed.encode(),
                              capture_output=True, timeout=60)
        return done.stdout.decode(errors="replace")


@contextlib.contextmanager
def setup(scratch):
    with serving(scratch, busybox=True) as server:
        cluster = Cluster(server, scratch)
        yield cluster
        cluster.shim.stop()


@case
def exec_bytes_and_codes(c):
    """exec: input to its end, both outputs apart, exit codes; a command that is not there says so"""
    with c.running("exec sleep 1000"):
        out = c.run("exec", "-i", "pod", "--", "sh", "-c", "cat; echo end", given=b"line\n")
        same("echo", (out.stdout, out.stderr, out.returncode), (b"line\nend\n", b"", 0))
        out = c.run("exec", "pod", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
        same("exit", (out.stdout, out.returncode), (b"out\n", 7))
        check(out.stderr.startswith(b"err\n") and b"exit code 7" in out.stderr, f"stderr {out.stderr}")
        out = c.run("exec", "pod", "--", "/no/such/program")
        check(out.returncode != 0 and b"/no/such/program" in out.stderr, f"{out}")


@case
def exec_much(c):
    """exec: 500 MiB through `cat`, there and back, byte for byte"""
    sent, back = c.dir / "sent", c.dir / "back"
    with open(sent, "wb") as file:
        for _ in range(MUCH >> 20):
            file.write(os.urandom(1 << 20))
    with c.running("exec sleep 1000"), open(sent, "rb") as source, open(back, "wb") as sink:
        cat = c.start("exec", "-i", "pod", "--", "cat", stdin=source, stdout=sink)
        same("exit", cat.wait(300), 0)
    check(filecmp.cmp(sent, back, shallow=False), f"{back.stat().st_size} of {MUCH} bytes came back, or others")
    sent.unlink()
    back.unlink()


@case
def exec_terminal(c):
    """exec -it: the terminal has the size of ours, and a shell on it answers"""
    with c.running("exec sleep 1000"):
        seen = c.on_terminal(["exec", "-it", "pod", "--", "sh", "-c", "sleep 0.5; stty size"], "")
        check("33 101" in seen, seen)
        seen = c.on_terminal(["exec", "-it", "pod", "--", "sh"], "echo $((6*7))x; exit\n")
        check("42x" in seen, seen)


@case
def exec_stalled(c):
    """exec: a client that never reads holds nobody up; what it ran is gone when it is"""
    with c.running("n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done") as container:
        stalled = c.start("exec", "pod", "--", "yes", "flood", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL)
        here = lambda: b"yes flood" in c.server.exec(container, "ps", "-o", "args").stdout  # noqa: E731
        until(here, "the flood")
        time.sleep(1)
        before = len(c.server.said(container))
        began = time.monotonic()
        same("another exec", c.run("exec", "pod", "--", "echo", "prompt").stdout, b"prompt\n")
        same("ExecSync", c.server.exec(container, "true").exit_code, 0)
        check(time.monotonic() - began < 10, "others wait for it")
        until(lambda: len(c.server.said(container)) > before, "the log to go on")
        stalled.kill()
        stalled.wait()
        stalled.stdout.close()
        until(lambda: not here(), "the end of the flood", 30)


@case
def attach(c):
    """attach: what is typed arrives, what is said comes; with stdinOnce the end of it is the container's end of input"""
    echo = "while read x; do echo got $x; done; echo end of input; exit 5"
    with c.running(echo, stdin=True, stdin_once=True) as container:
        out = c.run("attach", "-i", "pod", given=b"one\ntwo\n")
        check(out.stdout.endswith(b"got one\ngot two\nend of input\n"), f"{out}")
        same("exit code", c.server.ended(container).exit_code, 5)
    with c.running(echo, stdin=True) as container:
        for word in (b"one", b"two"):
            joined = c.start("attach", "-i", "pod", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL)
            joined.stdin.write(word + b"\n")
            joined.stdin.flush()
            same("answer", joined.stdout.readline(), b"got " + word + b"\n")
            joined.kill()
            joined.communicate()
        same("log", c.server.said(container), b"got one\ngot two\n")
        same("state", c.server.status(container).state, c.server.types.CONTAINER_RUNNING)


@case
def cp(c):
    """cp: a file of 12 MB there and back"""
    sent, back = c.dir / "a", c.dir / "c"
    sent.write_bytes(os.urandom(12_000_000))
    with c.running("exec sleep 1000"):
        for source, target in [(sent, "default/pod:/b"), ("default/pod:/b", back)]:
            out = c.run("cp", str(source), str(target))
            same("exit", out.returncode, 0)
    check(filecmp.cmp(sent, back, shallow=False), "the same bytes")
    back.unlink()


@case
def port_forward(c):
    """port-forward: thirty requests at a time into the pod's network; a port where nobody listens is said to be so"""
    with c.running("mkdir /www; head -c 300000 /dev/zero >/www/page; exec httpd -f -p 80 -h /www"):
        with forwarding(c, 80) as (port, _):
            page = lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=20).read()  # noqa: E731
            with concurrent.futures.ThreadPoolExecutor(30) as pool:
                pages = [pool.submit(page) for _ in range(30)]
                same("pages", [len(each.result()) for each in pages], [300_000] * 30)
        # kubectl gives up all of its ports when one connection fails, so this is another one.
        with forwarding(c, 81) as (port, kubectl):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20)
            said = b""
            while b"refused" not in said:
                line = kubectl.stderr.readline()
                check(line, f"kubectl has ended: {said}")
                said += line


@contextlib.contextmanager
def forwarding(c, remote):
    """The local port for one of the pod, and the kubectl that forwards it."""
    kubectl = c.start("port-forward", "pod", f":{remote}", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = kubectl.stdout.readline().decode()
        check(line.startswith("Forwarding from 127.0.0.1:") and line.endswith(f" -> {remote}\n"), f"kubectl says {line!r}")
        yield int(line.split(" -> ")[0].rpartition(":")[2]), kubectl
    finally:
        kubectl.kill()
        kubectl.communicate()


if __name__ == "__main__":
    list(programs())
    sys.exit(main(CASES, setup))
