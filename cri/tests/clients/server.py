"""A conward-cri of its own for tests, and an independent gRPC stack that talks to it: Python's grpcio, with types that
protoc makes of the CRI's own definition.
"""

import contextlib
import importlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid

import grpc


def types(proto, scratch):
    """Compiles the definition of the CRI and imports what comes out."""
    from grpc_tools import protoc

    out = pathlib.Path(scratch)
    words = ["protoc", f"-I{pathlib.Path(proto).parent}", f"--python_out={out}", f"--grpc_python_out={out}", str(proto)]
    if protoc.main(words) != 0:
        raise SystemExit(f"protoc failed on {proto}")
    sys.path.insert(0, str(out))
    return importlib.import_module("v1_pb2"), importlib.import_module("v1_pb2_grpc")


class Server:
    """One conward-cri with directories of its own. It can be killed and started again; what it holds stays."""

    def __init__(self, program, scratch, api, more=""):
        self.program, self.dir = program, pathlib.Path(scratch)
        self.types, self.stubs = api
        self.socket = self.dir / "cri.sock"
        self.config = self.dir / "cri.toml"
        self.log = self.dir / "server.log"
        self.logs = self.dir / "logs"
        self.process = None
        self.config.write_text(
            f"socket = '{self.socket}'\nroot = '{self.dir}/root'\nrun = '{self.dir}/run'\nlog_level = 'conward_cri=debug'\n{more}"
        )

    def words(self, *words):
        return [self.program, *words, "--config", str(self.config)]

    def start(self):
        log = open(self.log, "ab")
        self.process = subprocess.Popen(self.words("serve"), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        # Where the last server's socket refuses, grpc would not ask again for seconds.
        until(self.listens, "the server listens", 30)
        channel = grpc.insecure_channel(
            f"unix://{self.socket}",
            options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0),
                     # Nothing that an older channel has found out about this socket.
                     ("grpc.use_local_subchannel_pool", 1),
                     # As the kubelet and crictl have it from 1.31 on; the case `authority` has what others say.
                     ("grpc.default_authority", "localhost")],
        )
        self.runtime = self.stubs.RuntimeServiceStub(channel)
        self.images = self.stubs.ImageServiceStub(channel)
        self.channel = channel
        until(lambda: self.answers(), "the server answers", 30)
        return self

    def listens(self):
        self.alive()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self.socket))
            return True

    def answers(self):
        self.alive()
        with contextlib.suppress(grpc.RpcError):
            return self.runtime.Version(self.types.VersionRequest(), timeout=1)

    def alive(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}: {self.log.read_text()[-3000:]}")

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.channel.close()
        status = self.process.wait(30)
        self.process = None
        return status

    def again(self, number=signal.SIGKILL):
        self.stop(number)
        return self.start()

    def import_busybox(self, name="localhost/busybox:latest"):
        subprocess.run(self.words("import", name, "busybox"), check=True, stdout=subprocess.DEVNULL)
        return name

    # ------------------------------------------------------------ short ways

    def pod_config(self, name, **fields):
        t = self.types
        (self.logs / name).mkdir(parents=True, exist_ok=True)
        return t.PodSandboxConfig(
            metadata=t.PodSandboxMetadata(name=name, namespace="default", uid=str(uuid.uuid4()), attempt=1),
            hostname=fields.pop("hostname", name),
            log_directory=str(self.logs / name),
            linux=fields.pop("linux", t.LinuxPodSandboxConfig()),
            **fields,
        )

    def pod(self, name, handler="", **fields):
        config = self.pod_config(name, **fields)
        request = self.types.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return self.runtime.RunPodSandbox(request, timeout=60).pod_sandbox_id, config

    def host_pod(self, name, handler="", **modes):
        """A pod on the host's network: for cases that are not about networks."""
        t = self.types
        modes.setdefault("network", t.NODE)
        modes.setdefault("pid", t.CONTAINER)
        options = t.NamespaceOption(**modes)
        context = t.LinuxSandboxSecurityContext(namespace_options=options)
        # No name: as the kubelet has it.
        return self.pod(name, handler, hostname="", linux=t.LinuxPodSandboxConfig(security_context=context))

    def create(self, pod, script, name="main", image="localhost/busybox:latest", **fields):
        """`pod` is what `pod()` gave back; `script` is for a shell, or a list of words."""
        t, (pod_id, pod_config) = self.types, pod
        modes = pod_config.linux.security_context.namespace_options
        linux = fields.pop("linux", None) or t.LinuxContainerConfig()
        linux.security_context.namespace_options.CopyFrom(modes)
        config = t.ContainerConfig(
            metadata=t.ContainerMetadata(name=name, attempt=fields.pop("attempt", 0)),
            image=t.ImageSpec(image=image),
            command=script if isinstance(script, list) else ["sh", "-c", script],
            log_path=fields.pop("log_path", f"{name}.log"),
            linux=linux,
            **fields,
        )
        request = t.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod_config)
        return self.runtime.CreateContainer(request, timeout=60).container_id

    def begin(self, container):
        self.runtime.StartContainer(self.types.StartContainerRequest(container_id=container), timeout=60)

    def run(self, pod, script, **fields):
        container = self.create(pod, script, **fields)
        self.begin(container)
        return container

    def status(self, container, verbose=False):
        request = self.types.ContainerStatusRequest(container_id=container, verbose=verbose)
        return self.runtime.ContainerStatus(request, timeout=10).status

    def ended(self, container, patience=30):
        until(lambda: self.status(container).state == self.types.CONTAINER_EXITED, f"{container[:12]} ends", patience)
        return self.status(container)

    def exec(self, container, *words, timeout=0):
        request = self.types.ExecSyncRequest(container_id=container, cmd=words, timeout=timeout)
        return self.runtime.ExecSync(request, timeout=60)

    def end(self, container, timeout=0):
        request = self.types.StopContainerRequest(container_id=container, timeout=timeout)
        self.runtime.StopContainer(request, timeout=60 + timeout)

    def remove(self, container):
        self.runtime.RemoveContainer(self.types.RemoveContainerRequest(container_id=container), timeout=60)

    def remove_pod(self, pod):
        pod = pod[0] if isinstance(pod, tuple) else pod
        self.runtime.StopPodSandbox(self.types.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=60)
        self.runtime.RemovePodSandbox(self.types.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=60)

    def said(self, container, stream=None):
        """What the log has of a container, records put together."""
        path = pathlib.Path(self.status(container).log_path)
        text = b""
        for line in path.read_bytes().splitlines():
            _, name, tag, content = line.split(b" ", 3)
            if stream is None or name == stream.encode():
                text += content + (b"\n" if tag == b"F" else b"")
        return text

    def pods(self):
        return self.runtime.ListPodSandbox(self.types.ListPodSandboxRequest(), timeout=10).items

    def containers(self):
        return self.runtime.ListContainers(self.types.ListContainersRequest(), timeout=10).containers

    def clear(self):
        for pod in self.pods():
            self.remove_pod(pod.id)


def until(probe, what, patience=10):
    end = time.monotonic() + patience
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {patience} s: {what}")
        time.sleep(0.02)


def same(what, seen, expected):
    if seen != expected:
        raise AssertionError(f"{what}: expected {expected!r}, saw {seen!r}")


def check(condition, what):
    if not condition:
        raise AssertionError(what)


@contextlib.contextmanager
def refused(code, *words):
    """The call within is refused with this code, and the text has these words."""
    try:
        yield
    except grpc.RpcError as error:
        same("code", error.code(), code)
        for word in words:
            check(word in error.details(), f"{word!r} is not in {error.details()!r}")
        return
    raise AssertionError(f"was not refused, but {code} was expected")


class Skip(Exception):
    """The machine lacks something."""


@contextlib.contextmanager
def serving(scratch, more="", busybox=False):
    """A server, with one image or none, which is cleared and stopped at the end."""
    server = Server(os.environ["CONWARD_CRI"], scratch, types(os.environ["CRI_PROTO"], scratch), more)
    if busybox:
        server.import_busybox()
    server.start()
    try:
        yield server
        server.clear()
        server.stop()
    finally:
        if server.process:
            server.process.kill()


def main(cases, setup):
    """Runs the cases whose name has one of the words on the command line; `setup` makes what they get."""
    words = sys.argv[1:]
    if words == ["--list"]:
        print("\n".join(case.__name__ for case in cases))
        return 0
    wanted = [case for case in cases if not words or any(word in case.__name__ for word in words)]
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    scratch = tempfile.mkdtemp(prefix="conward-cri-")
    # As /run is: the roots of user namespaces find their way.
    os.chmod(scratch, 0o711)
    with setup(scratch) as given:
        for case in wanted:
            began = time.monotonic()
            try:
                case(given)
                verdict, why = "passed", ""
            except Skip as skip:
                verdict, why = "skipped", str(skip)
            except grpc.RpcError as error:
                verdict, why = "failed", f"{error.code()}: {error.details()}"
                import traceback

                why += "\n" + "".join(traceback.format_exc().splitlines(True)[-12:])
            except Exception as error:  # noqa: BLE001 A case fails in whatever way it likes.
                import traceback

                verdict, why = "failed", "".join(traceback.format_exception(error)[-6:])
            counts[verdict] += 1
            doc = (case.__doc__ or "").strip().splitlines()[0]
            print(f"{verdict:8} {case.__name__:28} {time.monotonic() - began:6.1f} s  {doc}", flush=True)
            if why:
                print("         " + why.replace("\n", "\n         "), flush=True)
            if verdict == "failed":
                failures.append(case.__name__)
    if failures and os.environ.get("KEEP"):
        print(f"kept: {scratch}")
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"\n{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if failures or not counts["passed"] else 0
