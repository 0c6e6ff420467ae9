"""Exec, attach and port-forward by the official Python client of Kubernetes, which speaks WebSocket.

    kubernetes_ws.py [WORD...]     cases whose name contains one of the words; --list shows them, KEEP=1 keeps a
                                   failure's files

The CRI gives a URL, and the client gets it where otherwise it has the one of an API server. The environment is that of
every_rpc.py.
"""

import contextlib
import hashlib
import json
import random
import threading
import time

from kubernetes.client import Configuration
from kubernetes.client.rest import ApiException
from kubernetes.stream import ws_client
from websocket import ABNF

from server import check, main, same, serving, until

CASES = []
MB = 1 << 20
V5, V4 = ws_client.V5_CHANNEL_PROTOCOL, ws_client.V4_CHANNEL_PROTOCOL
# Its own terms would end a case that hangs after minutes.
PATIENCE = 60


def case(run):
    CASES.append(run)
    return run


def setup(scratch):
    return serving(scratch, busybox=True)


# ------------------------------------------------------------ the client


def configuration():
    own = Configuration()
    own.proxy = own.proxy_headers = None
    return own


def offering(protocols):
    """Headers that offer these; without any the client offers what it knows, newest first."""
    return {"sec-websocket-protocol": ",".join(protocols)} if protocols else {}


def stream(url, *protocols, binary=True):
    """A client on a URL for exec or attach."""
    client = ws_client.websocket_call(configuration(), "GET", url, headers=offering(protocols), _preload_content=False,
                                      capture_all=False, binary=binary)
    client.sock.settimeout(PATIENCE)
    return client


def exec_url(s, container, *words, **fields):
    fields.setdefault("stdout", True)
    return s.runtime.Exec(s.types.ExecRequest(container_id=container, cmd=words, **fields)).url


def attach_url(s, container, **fields):
    fields.setdefault("stdout", True)
    return s.runtime.Attach(s.types.AttachRequest(container_id=container, **fields)).url


def forward(s, pod, ports, *protocols):
    """A forwarder of ports of a pod."""
    url = s.runtime.PortForward(s.types.PortForwardRequest(pod_sandbox_id=pod[0], port=ports)).url
    query = [("ports", ",".join(map(str, ports)))]
    forwarder = ws_client.portforward_call(configuration(), "GET", url, headers=offering(protocols), query_params=query)
    for port in ports:
        forwarder.socket(port).settimeout(PATIENCE)
    return forwarder


def finish(client):
    """Reads to the end: stdout, stderr, and the exit code."""
    client.run_forever(timeout=PATIENCE)
    check(not client.is_open(), f"not over within {PATIENCE} s")
    return client.read_stdout(), client.read_stderr(), client.returncode


def hear(client, text, seen=None):
    """Reads stdout until it has this."""
    seen, end = seen or type(text)(), time.monotonic() + PATIENCE
    while text not in seen:
        check(client.is_open() and time.monotonic() < end, f"{text!r} did not come, but {seen[-200:]!r}")
        seen += client.read_channel(ws_client.STDOUT_CHANNEL, timeout=1)
    return seen


def collect(client, length):
    """Reads so much of stdout."""
    seen, end = bytearray(), time.monotonic() + PATIENCE
    while len(seen) < length and client.is_open():
        check(time.monotonic() < end, f"{len(seen)} of {length} bytes came")
        seen += client.read_channel(ws_client.STDOUT_CHANNEL, timeout=1)
    return bytes(seen)


@contextlib.contextmanager
def aside(work, *words):
    """Does something in a thread for as long as what is within lasts, and fails if it does."""
    failures = []

    def run():
        try:
            work(*words)
        except BaseException as failure:  # noqa: BLE001 It is raised again below.
            failures.append(failure)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE)
    check(not thread.is_alive(), f"{work.__name__} is not done within {PATIENCE} s")
    if failures:
        raise failures[0]


def noise(length, seed=0):
    return random.Random(seed).randbytes(length)


def equal(what, seen, sent):
    """As `same`, without megabytes in the text."""
    digest = [hashlib.sha256(data).hexdigest()[:16] for data in (seen, sent)]
    check(seen == sent, f"{what}: {len(seen)} bytes {digest[0]} came of {len(sent)} bytes {digest[1]}")


@contextlib.contextmanager
def turned_away(status):
    """The upgrade within is answered with this HTTP status."""
    try:
        yield
    except ApiException as error:
        check(f"Handshake status {status}" in error.reason, f"{status} is not in {error.reason!r}")
        return
    raise AssertionError(f"was not refused, but {status} was expected")


@contextlib.contextmanager
def idle_container(s, name, **fields):
    pod = s.host_pod(name)
    yield s.run(pod, ["sleep", "infinity"], **fields)
    s.remove_pod(pod)


# ------------------------------------------------------------ exec


def both_outputs(s, protocol, *offers):
    with idle_container(s, f"outputs-{protocol[:2]}") as container:
        for code in [0, 3]:
            script = f"echo to stdout; echo to stderr >&2; exit {code}"
            client = stream(exec_url(s, container, "sh", "-c", script, stderr=True), *offers)
            same("protocol", client.subprotocol, protocol)
            same("outputs and code", finish(client), (b"to stdout\n", b"to stderr\n", code))


@case
def exec_v5(s):
    """Exec by v5, the client's first choice: both outputs apart, exit codes 0 and 3"""
    both_outputs(s, V5)


@case
def exec_v4(s):
    """Exec for a client that knows v4 only: both outputs apart, exit codes 0 and 3"""
    both_outputs(s, V4, V4)


@case
def exec_chooses(s):
    """The first protocol of the client's that is known; none is 403, with the names of those there are"""
    with idle_container(s, "choices") as container:
        for offers, chosen in [([V5, V4], V5), ([V4, V5], V4), (["v9.channel.k8s.io", V4], V4)]:
            client = stream(exec_url(s, container, "true"), *offers)
            same(f"of {offers}", client.subprotocol, chosen)
            same("code", finish(client)[2], 0)
        with turned_away(403):
            stream(exec_url(s, container, "true"), "v9.channel.k8s.io")


@case
def exec_cannot(s):
    """A program that is not there: the error channel names it, and the container goes on"""
    with idle_container(s, "no-program") as container:
        client = stream(exec_url(s, container, "/no/such/program"))
        client.run_forever(timeout=PATIENCE)
        status = json.loads(client.read_channel(ws_client.ERROR_CHANNEL))
        same("status", status["status"], "Failure")
        check("/no/such/program" in status["message"], f"{status}")
        same("afterwards", finish(stream(exec_url(s, container, "echo", "on"))), (b"on\n", b"", 0))


@case
def exec_output(s):
    """20 MB of output, all of it before the exit code"""
    with idle_container(s, "much-output") as container:
        script = f"head -c {20 * MB} /dev/urandom | tee /dev/shm/all; sha256sum </dev/shm/all >&2; exit 5"
        seen, digest, code = finish(stream(exec_url(s, container, "sh", "-c", script, stderr=True)))
        same("length and code", (len(seen), code), (20 * MB, 5))
        same("digest", hashlib.sha256(seen).hexdigest(), digest.split()[0].decode())


@case
def exec_left(s):
    """A client that goes: its command is killed; one with an input some seconds later, though it does not read it"""
    with idle_container(s, "left") as container:
        def runs(seconds):
            # Its own words have a bracket.
            script = f"grep -l 'sleep.{seconds[:-1]}[{seconds[-1]}]' /proc/[0-9]*/cmdline"
            return s.exec(container, "sh", "-c", script).exit_code == 0

        for seconds, fields, soonest, latest in [("4243", {}, 0, 4), ("4244", {"stdin": True}, 3, 9)]:
            client = stream(exec_url(s, container, "sleep", seconds, **fields))
            until(lambda: runs(seconds), "the command runs")
            client.close()
            began = time.monotonic()
            until(lambda: not runs(seconds), "the command has ended", latest)
            took = time.monotonic() - began
            check(took >= soonest, f"it was killed after {took:.1f} s")


# ------------------------------------------------------------ input


def write(client, data, size=MB):
    for at in range(0, len(data), size):
        client.write_stdin(data[at:at + size])


@case
def stdin_closed(s):
    """v5: 20 MB there and back through cat, which goes on until the close signal, and ends with it"""
    sent = noise(20 * MB)
    with idle_container(s, "stdin") as container:
        client = stream(exec_url(s, container, "sh", "-c", "cat; echo ended >&2; exit 4", stdin=True, stderr=True), V5)
        with aside(write, client, sent):
            equal("what came back", collect(client, len(sent)), sent)
        client.update(timeout=0.5)
        check(client.is_open() and not client.peek_stderr(), "cat has not ended yet")
        client.close_channel(ws_client.STDIN_CHANNEL)
        same("after the signal", finish(client), (b"", b"ended\n", 4))


@case
def stdin_at_once(s):
    """v5: a whole file of 20 MB in one message, as copying scripts send it, and the signal right behind"""
    sent = noise(20 * MB, 1)
    with idle_container(s, "stdin-once") as container:
        client = stream(exec_url(s, container, "sha256sum", stdin=True), V5)
        client.write_stdin(sent)
        client.close_channel(ws_client.STDIN_CHANNEL)
        seen, _, code = finish(client)
        same("digest and code", (seen.split()[:1], code), ([hashlib.sha256(sent).hexdigest().encode()], 0))


@case
def stdin_v4(s):
    """v4: 20 MB there and back; what is a close signal in v5 closes nothing"""
    sent = noise(20 * MB, 2)
    with idle_container(s, "stdin-v4") as container:
        client = stream(exec_url(s, container, "head", "-c", str(len(sent)), stdin=True), V4)
        client.sock.send(bytes([ws_client.CLOSE_CHANNEL, ws_client.STDIN_CHANNEL]), opcode=ABNF.OPCODE_BINARY)
        with aside(write, client, sent):
            equal("what came back", collect(client, len(sent)), sent)
        same("at the end", finish(client), (b"", b"", 0))


@case
def stdin_left(s):
    """A client that sends 20 MB and goes: the command gets all of it and then the end, in v4 and v5"""
    sent = noise(20 * MB, 5)
    with idle_container(s, "stdin-left") as container:
        for protocol, size in [(V4, MB), (V5, len(sent))]:
            script = f"sha256sum >/dev/shm/new; mv /dev/shm/new /dev/shm/{protocol}"
            client = stream(exec_url(s, container, "sh", "-c", script, stdin=True), protocol)
            write(client, sent, size)
            client.close()
            until(lambda: s.exec(container, "test", "-e", f"/dev/shm/{protocol}").exit_code == 0, "the command is done")
            seen = s.exec(container, "cat", f"/dev/shm/{protocol}").stdout.split()[0].decode()
            same(f"digest by {protocol}", seen, hashlib.sha256(sent).hexdigest())


@case
def stdin_text(s):
    """Lines as text messages, which is the client's default"""
    with idle_container(s, "text") as container:
        client = stream(exec_url(s, container, "cat", stdin=True), binary=False)
        for line in ["first", "Grüße, 世界", "x" * 100_000]:
            client.write_stdin(f"{line}\n")
            same("line", client.readline_stdout(timeout=PATIENCE), line)
        client.close_channel(ws_client.STDIN_CHANNEL)
        same("at the end", finish(client), ("", "", 0))


@case
def pings(s):
    """A ping is answered while a command says nothing"""
    with idle_container(s, "pings") as container:
        client = stream(exec_url(s, container, "cat", stdin=True))
        client.update(timeout=0.2)
        client.sock.ping(b"there?")
        frame = until(lambda: pong(client), "the pong", PATIENCE)
        same("pong", frame.data, b"there?")
        client.close_channel(ws_client.STDIN_CHANNEL)
        same("code", finish(client)[2], 0)


def pong(client):
    code, frame = client.sock.recv_data_frame(True)
    return frame if code == ABNF.OPCODE_PONG else None


# ------------------------------------------------------------ terminals


def resize(client, width, height):
    client.write_channel(ws_client.RESIZE_CHANNEL, json.dumps({"Width": width, "Height": height}))


def sized(client, width, height):
    """Asks the shell for the terminal's size until it is this one."""
    resize(client, width, height)
    expected, seen, end = f"size={height} {width}", "", time.monotonic() + 10
    while expected not in seen:
        check(time.monotonic() < end, f"{expected!r} is not in {seen[-200:]!r}")
        # What is typed comes back, and must not be taken for the answer.
        client.write_stdin("echo size=$(stty size)\n")
        client.update(timeout=0.2)
        seen += client.read_stdout(timeout=0)


def ends_of_shell(client, code):
    client.write_stdin(f"exit {code}\n")
    client.run_forever(timeout=PATIENCE)
    check(not client.is_open(), "the shell ends")


@case
def tty_resize(s):
    """Exec on a terminal: its size follows twice, in v5 and v4; the exit code comes"""
    with idle_container(s, "tty") as container:
        for protocol in [V5, V4]:
            client = stream(exec_url(s, container, "sh", stdin=True, tty=True), protocol, binary=False)
            sized(client, 101, 33)
            sized(client, 64, 7)
            ends_of_shell(client, 6)
            same("code", client.returncode, 6)


@case
def tty_attach(s):
    """Attach to a container on a terminal: its size follows, and the shell's end ends the stream"""
    pod = s.host_pod("tty-attach")
    container = s.run(pod, ["sh"], stdin=True, tty=True)
    client = stream(attach_url(s, container, stdin=True, tty=True), binary=False)
    sized(client, 99, 22)
    ends_of_shell(client, 0)
    same("exit code", s.ended(container).exit_code, 0)
    s.remove_pod(pod)


# ------------------------------------------------------------ attach


@case
def attach_again(s):
    """Attach with stdin, by v5 and v4, one after the other and two at a time: the container goes on in between"""
    pod = s.host_pod("attach")
    container = s.run(pod, "while read line; do echo \"got $line\"; done", stdin=True)
    for protocol in [V5, V4]:
        client = stream(attach_url(s, container, stdin=True), protocol)
        same("protocol", client.subprotocol, protocol)
        client.write_stdin(f"by {protocol}\n".encode())
        hear(client, f"got by {protocol}\n".encode())
        client.close()
    pair = [stream(attach_url(s, container, stdin=True)) for _ in range(2)]
    for name, client in zip([b"one", b"two"], pair):
        # Who gets its answer is attached, which the upgrade alone does not say.
        client.write_stdin(name + b"\n")
        hear(client, b"got " + name + b"\n")
    pair[0].write_stdin(b"for both\n")
    for client in pair:
        hear(client, b"got for both\n")
        client.close()
    same("state", s.status(container).state, s.types.CONTAINER_RUNNING)
    same("log", s.said(container), f"got by {V5}\ngot by {V4}\ngot one\ngot two\ngot for both\n".encode())
    s.remove_pod(pod)


@case
def attach_once(s):
    """stdin_once: 20 MB, the close signal ends the container's input, and with it the container and the stream"""
    sent = noise(20 * MB, 3)
    pod = s.host_pod("attach-once")
    script = "sha256sum; echo over >&2; exit 9"
    container = s.run(pod, script, stdin=True, stdin_once=True)
    client = stream(attach_url(s, container, stdin=True, stderr=True), V5)
    write(client, sent)
    client.update(timeout=0.5)
    check(client.is_open() and not client.peek_stdout(), "the container waits for more")
    client.close_channel(ws_client.STDIN_CHANNEL)
    seen, errors, _ = finish(client)
    same("outputs", (seen.split()[:1], errors), ([hashlib.sha256(sent).hexdigest().encode()], b"over\n"))
    same("exit code", s.ended(container).exit_code, 9)
    s.remove_pod(pod)


@case
def attach_left(s):
    """stdin_once, and a client that sends 20 MB and goes: the container gets all of it and then the end"""
    sent = noise(20 * MB, 7)
    pod = s.host_pod("attach-left")
    container = s.run(pod, "sha256sum", stdin=True, stdin_once=True)
    client = stream(attach_url(s, container, stdin=True), V4)
    write(client, sent)
    client.close()
    same("exit code", s.ended(container).exit_code, 0)
    same("digest", s.said(container).split()[0].decode(), hashlib.sha256(sent).hexdigest())
    s.remove_pod(pod)


# ------------------------------------------------------------ tokens


@case
def token_twice(s):
    """A URL is good for one stream, during it and after it, and for what it was made for"""
    with idle_container(s, "token") as container:
        url = exec_url(s, container, "cat", stdin=True)
        client = stream(url)
        with turned_away(404):
            stream(url)
        client.write_stdin(b"not disturbed")
        equal("what came back", collect(client, 13), b"not disturbed")
        client.close_channel(ws_client.STDIN_CHANNEL)
        same("code", finish(client)[2], 0)
        with turned_away(404):
            stream(url)
        with turned_away(404):
            stream(exec_url(s, container, "true").replace("/exec/", "/attach/"))


# ------------------------------------------------------------ port-forward


@contextlib.contextmanager
def servers(s, name, **programs):
    """A pod whose ports (p8080=...) are served by programs, one for each connection."""
    pod = s.pod(name)
    for port, program in programs.items():
        s.run(pod, f"exec nc -ll -p {port[1:]} -e {program}", name=port)
    for port in programs:
        until(lambda: listens(s, pod, int(port[1:])), f"{port} listens")
    yield pod
    s.remove_pod(pod)


def containers(s, pod):
    t = s.types
    request = t.ListContainersRequest(filter=t.ContainerFilter(pod_sandbox_id=pod[0]))
    return [container.id for container in s.runtime.ListContainers(request).containers]


def listens(s, pod, port):
    seen = s.exec(containers(s, pod)[0], "cat", "/proc/net/tcp", "/proc/net/tcp6").stdout
    return f":{port:04X} ".encode() in seen


def echo(socket, sent):
    """Sends all, and gets as much back, at the same time."""
    seen = bytearray()
    with aside(socket.sendall, sent):
        while len(seen) < len(sent):
            data = socket.recv(MB)
            check(data, f"the end came after {len(seen)} of {len(sent)} bytes")
            seen += data
    equal("what came back", bytes(seen), sent)


def rest(socket):
    seen = bytearray()
    while data := socket.recv(MB):
        seen += data
    return bytes(seen)


@case
def forward_one(s):
    """One port, by v4 alone and among others: 5 MB there and back"""
    with servers(s, "forward-one", p8080="cat") as pod:
        for offers in [[V4], []]:
            forwarder = forward(s, pod, [8080], *offers)
            same("protocol", forwarder.websocket.getheaders()["sec-websocket-protocol"], V4)
            echo(forwarder.socket(8080), noise(5 * MB, 4))
            same("error", forwarder.error(8080), None)
            forwarder.socket(8080).close()
            until(lambda: not forwarder.connected, "it is closed")


@case
def forward_several(s):
    """Three ports at once, 5 MB of its own there and back on each; one that ends leaves the others"""
    with servers(s, "forward-several", p8080="cat", p8081="cat", p9999="cat") as pod:
        ports = [9999, 8080, 8081]
        forwarder = forward(s, pod, ports)
        with contextlib.ExitStack() as stack:
            for port in ports:
                stack.enter_context(aside(echo, forwarder.socket(port), noise(5 * MB, port)))
        forwarder.socket(8080).close()
        for port in [9999, 8081]:
            echo(forwarder.socket(port), f"still there, {port}".encode())
        same("errors", [forwarder.error(port) for port in ports], [None] * 3)


@case
def forward_closed(s):
    """A port where nobody listens: its error channel says so, and another port is none the worse"""
    with servers(s, "forward-closed", p8080="cat") as pod:
        forwarder = forward(s, pod, [8081, 8080])
        text = until(lambda: forwarder.error(8081), "the error")
        check("port 8081" in text and pod[0] in text and "refused" in text, text)
        same("data", rest(forwarder.socket(8081)), b"")
        echo(forwarder.socket(8080), noise(MB))
        same("error of the other", forwarder.error(8080), None)


@case
def forward_ended(s):
    """A port that sends 5 MB and ends: all of it comes, then the end"""
    with servers(s, "forward-ended", p8080=f"head -c {5 * MB} /dev/zero") as pod:
        forwarder = forward(s, pod, [8080])
        equal("what came", rest(forwarder.socket(8080)), bytes(5 * MB))
        same("error", forwarder.error(8080), None)


@case
def forward_left(s):
    """A client that sends 5 MB and goes: the port gets all of it, and then the end"""
    sent = noise(5 * MB, 6)
    with servers(s, "forward-left", p8080="sh -c 'sha256sum >/dev/shm/new; mv /dev/shm/new /dev/shm/sum'") as pod:
        forwarder = forward(s, pod, [8080])
        forwarder.socket(8080).sendall(sent)
        forwarder.socket(8080).close()
        container = containers(s, pod)[0]
        until(lambda: s.exec(container, "test", "-e", "/dev/shm/sum").exit_code == 0, "the program is done")
        seen = s.exec(container, "cat", "/dev/shm/sum").stdout.split()[0].decode()
        same("digest", seen, hashlib.sha256(sent).hexdigest())


@case
def forward_gone(s):
    """A token of a pod that has ended in the meantime: the error channel says so"""
    pod = s.host_pod("forward-gone")
    url = s.runtime.PortForward(s.types.PortForwardRequest(pod_sandbox_id=pod[0], port=[80])).url
    s.remove_pod(pod)
    forwarder = ws_client.portforward_call(configuration(), "GET", url, query_params=[("ports", "80")])
    text = until(lambda: forwarder.error(80), "the error")
    check("port 80" in text and pod[0] in text, text)


if __name__ == "__main__":
    raise SystemExit(main(CASES, setup))
