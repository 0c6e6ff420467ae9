"""A client of the service in another language: it has the schema and a socket, and nothing of ours.

    client.py CASE BUNDLE       runs one case against the monitor of the bundle; the last word is what went wrong
"""

import asyncio
import os
import pathlib
import sys
import time

import capnp

# The compiler's own schemas lie in the package; ours imports one of them by implication (streaming calls).
PACKAGE = pathlib.Path(capnp.__file__).parent
SCHEMA = pathlib.Path(__file__).parents[2] / "schema" / "conward.capnp"
api = capnp.load(str(SCHEMA), imports=[str(PACKAGE.parent)])

PATIENCE = 40
SILENCE = 10
CASES = {}


def case(run):
    CASES[run.__name__] = run
    return run


def same(what, seen, expected):
    if seen != expected:
        raise AssertionError(f"{what}: expected {expected!r}, saw {seen!r}")


class Output(api.Output.Server):
    """Keeps what comes, and checks that every byte comes once and in its place."""

    def __init__(self):
        self.data = {"stdout": b"", "stderr": b""}
        self.first = {}
        self.gaps = []
        self.changed = asyncio.Event()
        self.ended = asyncio.get_running_loop().create_future()

    async def write(self, stream, offset, data, **_):
        stream = str(stream)
        expected = self.first.setdefault(stream, offset) + len(self.data[stream])
        same(f"offset in {stream}", offset, expected)
        self.data[stream] += bytes(data)
        self.changed.set()

    async def gap(self, stream, offset, lost, **_):
        self.gaps.append((str(stream), offset, lost))

    async def end(self, end, **_):
        # What is passed lives no longer than the call.
        exit = end.exit.status if end._has("exit") else None
        self.ended.set_result((str(end.reason), exit, end.stdout, end.stderr, end.lost))

    async def has(self, text, stream="stdout"):
        try:
            while text not in self.data[stream]:
                self.changed.clear()
                await asyncio.wait_for(self.changed.wait(), SILENCE)
        except asyncio.TimeoutError:
            raise AssertionError(f"{text!r} does not come in {stream}: {self.data[stream][-200:]!r}") from None


def granted(reply):
    """A reply, unless it is a refusal."""
    if reply._has("refusal"):
        raise AssertionError(f"refused: {reply.refusal.code}: {reply.refusal.text}")
    return reply


def refused(what, reply, code):
    if not reply._has("refusal"):
        raise AssertionError(f"{what} was not refused")
    same(f"{what}: code", str(reply.refusal.code), code)
    if not reply.refusal.text:
        raise AssertionError(f"{what}: a refusal without a reason")


async def logged(bundle, text):
    """Waits until the log has it."""
    log = bundle.parent / "log"
    while text not in (log.read_bytes() if log.exists() else b""):
        await asyncio.sleep(0.01)


# ---------------------------------------------------------------- looking


@case
async def version(monitor, bundle):
    version = (await monitor.version()).version
    pid = int((bundle.parent / "cpid").read_text())
    same("pid", version.pid, pid)
    same("protocol", version.protocol, 1)
    for name in ("conward", "conmon"):
        if getattr(version, name).count(".") != 2:
            raise AssertionError(f"{name} is {getattr(version, name)!r}")
    if version.startedAt <= 1_600_000_000_000_000_000:
        raise AssertionError(f"startedAt is {version.startedAt}")


@case
async def inspect(monitor, bundle):
    await logged(bundle, b"ready")
    state = (await monitor.inspect()).state
    same("pid", state.pid, int((bundle.parent / "pid").read_text()))
    same("phase", str(state.phase), "running")
    same("bundle", state.bundle, str(bundle))
    same("terminal and stdin", (state.terminal, state.stdin), (False, True))
    same("bytes", [(str(one.stream), one.bytes, one.lost, one.open) for one in state.streams],
         [("stdout", 6, 0, True), ("stderr", 4, 0, True)])
    log = bundle.parent / "log"
    same("sinks", [(one.driver, one.path, one.inode, one.size, one.error) for one in state.sinks],
         [("k8s-file", str(log), log.stat().st_ino, log.stat().st_size, "")])
    same("connections", state.connections, 1)
    same("policy", state.streams[0].policy.which(), "pass")
    if not 0 < state.memory.private <= state.memory.resident:
        raise AssertionError(f"memory: {state.memory}")


# ---------------------------------------------------------------- the end


@case
async def wait(monitor, bundle):
    waiting = monitor.wait()
    granted(await monitor.signal(number=15))
    reply = granted(await waiting)
    end = reply.exit
    same("end", (str(end.reason), end.exitCode, end.status, reply.durable), ("exited", 9, 9, True))
    same("bytes", (end.stdout.bytes, end.stderr.bytes, end.stdout.lost), (6, 4, 0))
    if not 0 < end.startedAt < end.finishedAt:
        raise AssertionError(f"it ran from {end.startedAt} to {end.finishedAt}")
    same("exit file", next((bundle.parent / "x").iterdir()).read_text(), "9")


@case
async def signal(monitor, bundle):
    refused("signal 0", await monitor.signal(number=0), "invalid")
    refused("signal 65", await monitor.signal(number=65), "invalid")
    waiting = monitor.wait()
    granted(await monitor.signal(number=9))
    end = granted(await waiting).exit
    same("end", (str(end.reason), end.signal, end.status), ("signalled", 9, 137))


# ---------------------------------------------------------------- attach


@case
async def attach(monitor, bundle):
    output = Output()
    reply = granted(await monitor.attach(request={"stdin": True}, output=output))
    await reply.attachment.write(data=b"hello\n")
    await output.has(b"got hello\n")
    same("nothing of before", output.first["stdout"], 6)
    # The loop reads an end of file and leaves.
    granted(await reply.attachment.closeStdin())
    same("end", (await output.ended)[:2], ("ended", 3))
    same("stderr", output.data["stderr"], b"")


@case
async def history(monitor, bundle):
    await logged(bundle, b"err")
    await logged(bundle, b"ready")
    whole = Output()
    first = granted(await monitor.attach(request={"stdin": True, "history": {"all": None}}, output=whole))
    await whole.has(b"ready\n")
    await whole.has(b"err\n", "stderr")
    await first.attachment.write(data=b"one\ntwo\n")
    await whole.has(b"got two\n")
    lines, rest = Output(), Output()
    second = granted(await monitor.attach(request={"stderr": False, "history": {"lines": 2}}, output=lines))
    await lines.has(b"got two\n")
    same("two lines", lines.data, {"stdout": b"got one\ngot two\n", "stderr": b""})
    third = granted(await monitor.attach(request={"history": {"from": {"stdout": 14, "stderr": 4}}}, output=rest))
    await rest.has(b"got two\n")
    same("from an offset", (rest.first, rest.data), ({"stdout": 14}, {"stdout": b"got two\n", "stderr": b""}))
    # The container goes on when one of them leaves, and the others hear how it ends.
    del third
    same("end of one that left", (await rest.ended)[0], "detached")
    granted(await monitor.closeStdin())
    text = b"ready\ngot one\ngot two\nbye\n"
    same("end", await whole.ended, ("ended", 3, len(text), 4, 0))
    same("everything", (whole.data, whole.gaps), ({"stdout": text, "stderr": b"err\n"}, []))
    same("end of another", (await lines.ended)[:2], ("ended", 3))
    del first, second


@case
async def slow(monitor, bundle):
    """A client that takes its time loses nothing: a megabyte through a window of a few chunks."""
    output = Output()
    write = output.write

    async def late(**call):
        await asyncio.sleep(0.002)
        await write(**call)

    output.write = late
    reply = granted(await monitor.attach(request={"stdin": True, "history": {"all": None}}, output=output))
    await reply.attachment.write(data=b"bulk\n")
    await output.has(b"got bulk\n")
    expected = b"ready\n" + (b"0123456789abcde\n" * 65536) + b"got bulk\n"
    same("digest", hash(output.data["stdout"]), hash(expected))
    granted(await reply.attachment.closeStdin())
    same("end", (await output.ended)[:3], ("ended", 3, len(expected) + 4))


@case
async def terminal(monitor, bundle):
    output = Output()
    request = {"stdin": True, "rows": 33, "columns": 44, "history": {"all": None}}
    reply = granted(await monitor.attach(request=request, output=output))
    await output.has(b"ready\r\n")
    await reply.attachment.write(data=b"size\n")
    await output.has(b"33 44\r\n")
    granted(await reply.attachment.resize(rows=20, columns=50))
    await reply.attachment.write(data=b"size\n")
    await output.has(b"20 50\r\n")
    granted(await monitor.resize(rows=21, columns=51))
    await reply.attachment.write(data=b"size\n")
    await output.has(b"21 51\r\n")
    refused("an end of a terminal's input", await monitor.closeStdin(), "noStdin")
    same("size", ((state := (await monitor.inspect()).state).rows, state.columns, state.terminal), (21, 51, True))


# ---------------------------------------------------------------- exec


def command(script, **more):
    return {"args": ["/bin/sh", "-c", script], **more}


async def run(monitor, spec):
    reply = granted(await monitor.exec(spec=spec))
    return (await reply.exec.wait()).result


@case
async def captured(monitor, bundle):
    result = await run(monitor, command("echo $WORD; pwd; echo bad >&2; exit 7", env=["WORD=yes"], cwd="/tmp"))
    same("output", (result.stdout, result.stderr), (b"yes\n/tmp\n", b"bad\n"))
    same("end", (str(result.exit.reason), result.exit.exitCode, result.truncated, result.held, result.error),
         ("exited", 7, False, False, ""))
    same("id", result.id, 1)
    again = granted(await monitor.execResult(id=1)).result
    same("the result later, output handed over", (again.exit.exitCode, again.stdout), (7, b""))
    refused("a result of nothing", await monitor.execResult(id=99), "notFound")
    cut = await run(monitor, command("head -c 100000 /dev/zero", outputMax=1000))
    same("cut", (len(cut.stdout), cut.truncated, cut.exit.stdout.bytes), (1000, True, 100000))


@case
async def ten(monitor, bundle):
    """Ten at once over one connection, each with its own output."""
    results = await asyncio.gather(*(run(monitor, command(f"echo {number}; exit {number}")) for number in range(10)))
    same("output", [result.stdout for result in results], [b"%d\n" % number for number in range(10)])
    same("codes", [result.exit.exitCode for result in results], list(range(10)))


@case
async def streaming(monitor, bundle):
    output = Output()
    spec = command("echo begin; cat; echo end >&2; exit 4", stdin=True)
    reply = granted(await monitor.exec(spec=spec, output=output))
    await output.has(b"begin\n")
    refused("a result before the end", await monitor.execResult(id=reply.id), "busy")
    sent = bytes(range(256)) * 4096
    for at in range(0, len(sent), 50_000):
        await reply.exec.write(data=sent[at:at + 50_000])
    granted(await reply.exec.closeStdin())
    result = (await reply.exec.wait()).result
    same("code", (str(result.exit.reason), result.exit.exitCode), ("exited", 4))
    same("end", await output.ended, ("ended", 4, len(sent) + 6, 4, 0))
    same("output", hash(output.data["stdout"]), hash(b"begin\n" + sent))
    same("stderr", output.data["stderr"], b"end\n")


@case
async def timeout(monitor, bundle):
    # The time is that of the call: it has begun when the process is there.
    began = time.monotonic()
    result = await run(monitor, command("echo before; sleep 60 & sleep 60", timeout=1000))
    took = time.monotonic() - began
    same("end", (str(result.exit.reason), result.stdout), ("timedOut", b"before\n"))
    if not 1 <= took < 10:
        raise AssertionError(f"it took {took} s")


@case
async def exec_terminal(monitor, bundle):
    output = Output()
    # The runtime hands the terminal over and goes on: who looks at once may see it without a size yet.
    wait = 'while :; do case $(stty size 2>/dev/null) in [1-9]*) break ;; esac; sleep 0.01; done'
    spec = command(f"{wait}; stty size; read x; stty size; exit 6", stdin=True, terminal=True, rows=12, columns=34)
    reply = granted(await monitor.exec(spec=spec, output=output))
    await output.has(b"12 34\r\n")
    granted(await reply.exec.resize(rows=56, columns=78))
    await reply.exec.write(data=b"\n")
    await output.has(b"56 78\r\n")
    same("code", (await reply.exec.wait()).result.exit.exitCode, 6)


@case
async def exec_signal(monitor, bundle):
    reply = granted(await monitor.exec(spec=command("trap 'exit 5' USR1; echo on; while :; do sleep 0.1; done"),
                                       output=(output := Output())))
    await output.has(b"on\n")
    granted(await reply.exec.signal(number=10))
    same("code", (await reply.exec.wait()).result.exit.exitCode, 5)


@case
async def abandoned(monitor, bundle):
    """An exec ends with the last reference to it, unless it was told to go on."""
    kept = granted(await monitor.exec(spec=command("sleep 0.5; exit 8", onDisconnect="detach")))
    lost = granted(await monitor.exec(spec=command("sleep 60")))
    ids = (kept.id, lost.id)
    while not all(exec.pid for exec in (await monitor.inspect()).state.execs):
        await asyncio.sleep(0.01)
    del kept, lost
    for id, end in zip(ids, (("exited", 8), ("signalled", 0))):
        while (reply := await monitor.execResult(id=id))._has("refusal"):
            same("code", str(reply.refusal.code), "busy")
            await asyncio.sleep(0.02)
        same("end", (str(reply.result.exit.reason), reply.result.exit.exitCode), end)


@case
async def missing_command(monitor, bundle):
    result = await run(monitor, {"args": ["/not/there"]})
    same("reason", str(result.exit.reason), "neverStarted")
    if "no such file" not in result.error:
        raise AssertionError(f"error: {result.error!r}")


# ---------------------------------------------------------------- log, refusals, and what the protocol forbids


@case
async def reopen_log(monitor, bundle):
    await logged(bundle, b"ready")
    log = bundle.parent / "log"
    old = log.rename(log.with_name("log.1"))
    for _ in range(2):
        files = granted(await monitor.reopenLog()).files
        same("files", [(file.driver, file.path, file.inode, file.stdout, file.stderr) for file in files],
             [("k8s-file", str(log), log.stat().st_ino, 6, 4)])
    output = Output()
    reply = granted(await monitor.attach(request={"stdin": True, "history": {"all": None}}, output=output))
    await reply.attachment.write(data=b"new\n")
    await output.has(b"got new\n")
    same("over both files", output.data["stdout"], b"ready\ngot new\n")
    if b"got new" in old.read_bytes() or b"got new" not in log.read_bytes():
        raise AssertionError("the line is in the wrong file")


@case
async def refusals(monitor, bundle):
    refused("resize", await monitor.resize(rows=1, columns=1), "noTerminal")
    refused("neither command nor object", await monitor.exec(spec={}), "invalid")
    refused("command and object", await monitor.exec(spec=command("true", process=b"{}")), "invalid")
    refused("too much output", await monitor.exec(spec=command("true", outputMax=1 << 40)), "invalid")
    refused("limit of nothing", await monitor.setLogPolicy(stream="stdout", policy={"limit": {}}), "invalid")
    refused("program", await monitor.upgrade(program="/not/there", checkOnly=True), "failed")
    granted(await monitor.upgrade(checkOnly=True))
    reply = granted(await monitor.attach(request={}, output=Output()))
    refused("stdin of one who does not type", await reply.attachment.closeStdin(), "invalid")
    granted(await monitor.closeStdin())
    refused("stdin that is closed", await monitor.closeStdin(), "noStdin")


@case
async def mistakes(monitor, bundle):
    """What the protocol forbids ends in an exception at the client, and the monitor goes on."""
    try:
        await monitor.attach(request={})
        raise AssertionError("an attach without an output was taken")
    except capnp.KjException:
        pass
    same("it answers", str((await monitor.inspect()).state.phase), "running")


# ---------------------------------------------------------------- one case


async def main(name, bundle):
    stream = await capnp.AsyncIoStream.create_unix_connection(str(bundle / "conward.sock"))
    monitor = capnp.TwoPartyClient(stream).bootstrap().cast_as(api.Monitor)
    await asyncio.wait_for(CASES[name](monitor, bundle), PATIENCE)


def end(code):
    # Without the interpreter's own end: it would wait for calls whose answers nobody wants any more.
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        asyncio.run(capnp.run(main(sys.argv[1], pathlib.Path(sys.argv[2]))))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what went wrong
        import traceback
        traceback.print_exc(file=sys.stdout)
        end(1)
    end(0)
