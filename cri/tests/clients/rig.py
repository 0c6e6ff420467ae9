"""What tests of images need beside a server: a registry on loopback, a proxy that can be slow, and the programs of the
containers family on a storage of their own.
"""

import contextlib
import http.client
import http.server
import os
import pathlib
import shutil
import socket
import subprocess
import threading
import time

from server import Skip, until

BUSYBOX = "/usr/bin/busybox"


def yaml_message(path, message):
    """A message out of a file as crictl takes it; the names of its fields are those of the definition."""
    import yaml
    from google.protobuf import json_format

    return json_format.ParseDict(yaml.safe_load(pathlib.Path(path).read_text()), message)


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            raise Skip(f"there is no {program}")


class Storage:
    """A containers/storage of its own, and programs that use it."""

    def __init__(self, scratch, name="cs"):
        self.dir = pathlib.Path(scratch) / name
        self.root = self.dir / "storage"
        self.contexts = 0
        self.dir.mkdir(exist_ok=True)
        # What the machine has configured is not to change what is tested.
        for file, text in [("policy.json", '{"default": [{"type": "insecureAcceptAnything"}]}'), ("auth.json", "{}"),
                           ("storage.conf", f'[storage]\ndriver = "overlay"\nrunroot = "{self.dir}/run"\ngraphroot = "{self.root}"\n'),
                           ("registries.conf", "")]:
            (self.dir / file).write_text(text)
        self.env = dict(os.environ, CONTAINERS_STORAGE_CONF=str(self.dir / "storage.conf"), TMPDIR=str(self.dir),
                        CONTAINERS_REGISTRIES_CONF=str(self.dir / "registries.conf"))

    def words(self, program, *words):
        if program == "skopeo":
            return ["skopeo", "--policy", str(self.dir / "policy.json"), *words]
        more = ["--root", str(self.root), "--runroot", str(self.dir / "run"), "--storage-driver", "overlay"]
        return [program, *more, *words]

    def run(self, program, *words, check=True):
        need(program)
        done = subprocess.run(self.words(program, *words), env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(f"{program} {' '.join(words)}: {done.stderr}")
        return done.stdout

    def build(self, name, lines, files=()):
        """`buildah bud` of busybox and these lines; files are of the context."""
        self.contexts += 1
        context = self.dir / f"context-{self.contexts}"
        context.mkdir()
        shutil.copy(BUSYBOX, context / "busybox")
        for file, data in dict(files).items():
            (context / file).write_bytes(data)
        text = "\n".join(["FROM scratch", "COPY busybox /bin/busybox", 'RUN ["/bin/busybox", "--install", "-s", "/bin"]', *lines])
        (context / "Containerfile").write_text(text + "\n")
        policy = ["--signature-policy", str(self.dir / "policy.json")]
        self.run("buildah", "bud", "-q", "--isolation", "chroot", "--layers", *policy, "-t", name, str(context))
        return name

    def push(self, name, to, *more):
        policy = ["--signature-policy", str(self.dir / "policy.json")]
        self.run("buildah", "push", "-q", "--tls-verify=false", *policy, *more, name, f"docker://{to}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Registry:
    """docker-registry on a port of its own."""

    def __init__(self, scratch, more=""):
        need("docker-registry")
        self.host = f"127.0.0.1:{free_port()}"
        self.dir = pathlib.Path(scratch) / f"registry-{self.host.rpartition(':')[2]}"
        self.dir.mkdir()
        self.log = self.dir / "log"
        (self.dir / "config.yml").write_text(
            f"version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {self.dir}/data}}\n"
            f"http: {{addr: {self.host}}}\n{more}")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(["docker-registry", "serve", str(self.dir / "config.yml")],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self.answers, "the registry answers")

    def answers(self):
        if self.process.poll() is not None:
            raise AssertionError(f"docker-registry ended: {self.log.read_text()[-2000:]}")
        with contextlib.suppress(OSError):
            socket.create_connection(tuple(self.address()), 1).close()
            return True

    def address(self):
        host, port = self.host.split(":")
        return host, int(port)

    def put(self, path, kind, body):
        link = http.client.HTTPConnection(self.host, timeout=10)
        link.request("PUT", path, body, {"Content-Type": kind})
        answer = link.getresponse()
        if answer.status != 201:
            raise AssertionError(f"PUT {path}: {answer.status} {answer.read()}")

    def get(self, path, kind):
        link = http.client.HTTPConnection(self.host, timeout=10)
        link.request("GET", path, headers={"Accept": kind})
        answer = link.getresponse()
        return answer.read(), answer.getheader("Docker-Content-Digest")

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


class Front:
    """A proxy before a registry that takes note of requests and can be slow with what is large."""

    def __init__(self, registry, pause=0.0):
        self.registry, self.pause, self.seen, self.busy = registry, pause, [], 0
        self.count = threading.Lock()
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                front.at_work(1)
                try:
                    front.pass_on(self)
                finally:
                    front.at_work(-1)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Clients that are killed are what this is for.
        self.server.handle_error = lambda *_: None
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def at_work(self, change):
        with self.count:
            self.busy += change

    def idle(self):
        """Whether nobody is being answered: who hangs up in the middle is noticed by the next write."""
        return self.busy == 0

    def pass_on(self, request):
        self.seen.append((request.path, request.headers.get("Range")))
        link = http.client.HTTPConnection(self.registry.host, timeout=30)
        headers = {key: value for key, value in request.headers.items() if key.lower() != "host"}
        link.request(request.command, request.path, headers=headers)
        answer = link.getresponse()
        request.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("connection", "transfer-encoding"):
                request.send_header(key, value)
        request.end_headers()
        with contextlib.suppress(OSError):
            while data := answer.read(32 << 10):
                request.wfile.write(data)
                if self.pause and len(data) == 32 << 10:
                    time.sleep(self.pause)
        link.close()

    def blobs(self):
        return [path for path, _ in self.seen if "/blobs/" in path]

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
