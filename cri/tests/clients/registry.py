"""Images from a registry on loopback: Debian's docker-registry, filled by buildah.

    registry.py [WORD...]     cases whose name contains one of the words; --list shows them, KEEP=1 keeps a failure's files
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time

import grpc

from rig import Front, Registry, Storage, yaml_message
from server import Skip, check, main, refused, same, serving, until

CASES = []
Code = grpc.StatusCode
PODS = pathlib.Path(__file__).resolve().parent.parent / "pods"
NOISE = os.urandom(3 << 20)


def case(run):
    CASES.append(run)
    return run


class Rig:
    """A server, a registry, and images in it."""

    def __init__(self, server, scratch):
        self.server, self.types, self.images = server, server.types, server.images
        self.scratch = pathlib.Path(scratch)
        self.storage = Storage(scratch)
        self.registry = Registry(scratch)
        self.store = server.dir / "root" / "images"

    def made(self, name, lines=(), files=()):
        """An image in the registry; the same again is pushed under the other name."""
        local = self.storage.build(f"localhost/{name}", lines, files)
        self.storage.push(local, f"{self.registry.host}/{name}")
        return f"{self.registry.host}/{name}"

    def pull(self, name, timeout=60, **fields):
        t = self.types
        request = t.PullImageRequest(image=t.ImageSpec(image=name), **fields)
        return self.server.images.PullImage(request, timeout=timeout).image_ref

    def status(self, name):
        answer = self.server.images.ImageStatus(self.types.ImageStatusRequest(image=self.types.ImageSpec(image=name)))
        return answer.image if answer.HasField("image") else None

    def remove(self, name):
        self.server.images.RemoveImage(self.types.RemoveImageRequest(image=self.types.ImageSpec(image=name)))

    def files(self, *parts):
        return {part: sorted(os.listdir(self.store / part)) for part in parts}


@contextlib.contextmanager
def setup(scratch):
    # Nobody knows the registry's port yet; as localhost it has another name.
    more = "[images]\ncontainers_storage = ''\npinned = ['127.0.0.1*']\nprogress_timeout = 10\n"
    with serving(scratch, more) as server:
        rig = Rig(server, scratch)
        try:
            yield rig
        finally:
            rig.registry.stop()


@case
def pod_from_yaml(r):
    """A pod from YAML as crictl takes it runs `sleep infinity` from the registry"""
    s, t = r.server, r.types
    r.made("team/httpd:1", ["RUN mkdir /www"])
    pod = yaml_message(PODS / "httpd-pod.yaml", t.PodSandboxConfig())
    container = yaml_message(PODS / "httpd-container.yaml", t.ContainerConfig())
    same("pod", (pod.metadata.name, pod.metadata.namespace, pod.metadata.attempt), ("httpd", "default", 1))
    pod.log_directory = str(s.logs / "httpd")
    container.image.image = f"{r.registry.host}/{container.image.image}"
    with refused(Code.NOT_FOUND, container.image.image):
        made = s.runtime.RunPodSandbox(t.RunPodSandboxRequest(config=pod)).pod_sandbox_id
        s.runtime.CreateContainer(t.CreateContainerRequest(pod_sandbox_id=made, config=container, sandbox_config=pod))
    ref = r.pull(container.image.image)
    request = t.CreateContainerRequest(pod_sandbox_id=made, config=container, sandbox_config=pod)
    running = s.runtime.CreateContainer(request, timeout=60).container_id
    s.begin(running)
    status = s.status(running)
    same("state", status.state, t.CONTAINER_RUNNING)
    same("image", (status.image_ref, status.image_id), (ref, r.status(container.image.image).id))
    # The pod's processes see each other: that is what crictl's YAML says when it says nothing. A moment after the start
    # the process may still be the runtime's own.
    until(lambda: b"sleep infinity" in s.exec(running, "ps", "-o", "args").stdout.splitlines(), "its process")
    check(s.exec(running, "test", "-d", "/www").exit_code == 0, "the image's own layer is there")
    same("log", status.log_path, str(s.logs / "httpd" / "httpd.log"))
    s.remove_pod(made)


@case
def references(r):
    """By tag and by digest; every kind of reference gives the same status"""
    t = r.types
    name = r.made("team/refs:v1", ['LABEL a="b"', "USER 1234:5"])
    ref = r.pull(name)
    check(ref.startswith(f"{r.registry.host}/team/refs@sha256:"), f"image_ref is the digest: {ref}")
    image = r.status(name)
    same("tags and digests", (list(image.repo_tags), list(image.repo_digests)), ([name], [ref]))
    same("user", (image.uid.value, image.username), (1234, ""))
    bare = image.id.removeprefix("sha256:")
    for reference in [ref, image.id, bare, bare[:12], f"sha256:{bare[:12]}", f"{name}@{ref.partition('@')[2]}"]:
        same(f"status by {reference}", r.status(reference), image)
        wanted = t.ImageFilter(image=t.ImageSpec(image=reference))
        same(f"list by {reference}", list(r.images.ListImages(t.ListImagesRequest(filter=wanted)).images), [image])
    r.remove(image.id)
    same("removed", r.status(name), None)
    same("pulled by digest", r.pull(ref), ref)
    again = r.status(ref)
    same("without a tag", (again.id, list(again.repo_tags), list(again.repo_digests)), (image.id, [], [ref]))
    same("by tag", r.status(name), None)
    r.pull(name)
    same("with both", r.status(ref), image)


@case
def authorization(r):
    """htpasswd: nothing and a wrong password are refused, user and password and the auth field are taken"""
    import base64
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import crypt
        except ImportError:
            raise Skip("this Python has no crypt for htpasswd") from None
    file = r.scratch / "htpasswd"
    file.write_text("user:" + crypt.crypt("secret", crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)) + "\n")
    registry = Registry(r.scratch, f"auth: {{htpasswd: {{realm: x, path: {file}}}}}\n")
    try:
        name = f"{registry.host}/private:1"
        r.storage.push(r.storage.build("localhost/private:1", ["RUN touch /private"]), name, "--creds", "user:secret")
        t = r.types
        for auth in [None, t.AuthConfig(username="user", password="wrong"), t.AuthConfig(username="other", password="secret")]:
            with refused(Code.UNKNOWN, name):
                r.pull(name, auth=auth)
        same("nothing came", r.status(name), None)
        encoded = base64.b64encode(b"user:secret").decode()
        for auth in [t.AuthConfig(username="user", password="secret"), t.AuthConfig(auth=encoded)]:
            ref = r.pull(name, auth=auth)
            same("pulled", r.status(ref).repo_digests[0], ref)
            r.remove(name)
        text = r.server.log.read_text()
        check("secret" not in text and encoded not in text, "no password in the log")
    finally:
        registry.stop()


@case
def together(r):
    """Pulls of one image at the same time are one; images that share layers fetch them once"""
    name = r.made("team/one:1", ["COPY noise /noise"], {"noise": NOISE})
    other = r.made("team/two:1", ["COPY noise /noise", "RUN touch /two"], {"noise": NOISE})
    front = Front(r.registry, pause=0.005)
    tail = len(r.registry.host)  # The names are the same behind it.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        one = [pool.submit(r.pull, front.host + name[tail:]) for _ in range(6)]
        two = [pool.submit(r.pull, front.host + other[tail:]) for _ in range(2)]
        same("answers", len({future.result() for future in one}), 1)
        same("answers of the other", len({future.result() for future in two}), 1)
    blobs = front.blobs()
    digests = [path.rpartition("/")[2] for path in blobs]
    same("fetched more than once", sorted({d for d in digests if digests.count(d) > 1}), [])
    front.stop()


@case
def manifest_list(r):
    """Of a list the image for this machine is taken; one without it is refused with the reason"""
    here = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = r.made("multi:own", ["RUN echo own >/which"])
    other = r.made("multi:other", ["RUN echo other >/which"])
    kind = "application/vnd.oci.image.manifest.v1+json"
    index = "application/vnd.oci.image.index.v1+json"

    def entry(tag, architecture):
        body, digest = r.registry.get(f"/v2/multi/manifests/{tag}", kind)
        return {"mediaType": kind, "size": len(body), "digest": digest,
                "platform": {"architecture": architecture, "os": "linux"}}

    own, foreign = entry("own", here), entry("other", "s390x")
    body = json.dumps({"schemaVersion": 2, "mediaType": index, "manifests": [foreign, own]})
    r.registry.put("/v2/multi/manifests/list", index, body)
    r.registry.put("/v2/multi/manifests/nothing", index,
                   json.dumps({"schemaVersion": 2, "mediaType": index, "manifests": [foreign]}))
    listed = f"{r.registry.host}/multi:list"
    ref = r.pull(listed)
    same("reference", ref, f"{r.registry.host}/multi@sha256:{hashlib.sha256(body.encode()).hexdigest()}")
    image = r.status(listed)
    same("digests", sorted(image.repo_digests), sorted([ref, f"{r.registry.host}/multi@{own['digest']}"]))
    pod = r.server.host_pod("multi")
    container = r.server.run(pod, ["cat", "/which"], image=ref)
    r.server.ended(container)
    same("which", r.server.said(container), b"own\n")
    r.server.remove_pod(pod)
    with refused(Code.UNKNOWN, f"linux/{here}"):
        r.pull(f"{r.registry.host}/multi:nothing")
    check(name != other, "two images")


@case
def failures(r):
    """A name or tag that is not there, a registry that is away: codes and beginnings that the kubelet looks for"""
    with refused(Code.NOT_FOUND, "none/there"):
        r.pull(f"{r.registry.host}/none/there:1")
    r.made("team/tag:1")
    with refused(Code.NOT_FOUND, "team/tag:2"):
        r.pull(f"{r.registry.host}/team/tag:2")
    try:
        r.pull("127.0.0.1:1/x:y")
        raise AssertionError("was pulled")
    except grpc.RpcError as error:
        # The kubelet sees the text's beginning for this code only.
        same("code", error.code(), Code.UNKNOWN)
        check(error.details().startswith("RegistryUnavailable"), f"beginning of {error.details()!r}")


@case
def deadline(r):
    """A deadline of 1 ms: DeadlineExceeded and no garbage; one in the middle of a layer: the next pull goes on"""
    name = r.made("team/late:1", ["COPY noise /noise"], {"noise": NOISE[1:]})
    before = r.files("records", "blobs", "layers", "partial", "tmp")
    with refused(Code.DEADLINE_EXCEEDED):
        r.pull(name, timeout=0.001)
    time.sleep(0.5)
    same("files", r.files("records", "blobs", "layers", "partial", "tmp"), before)
    front = Front(r.registry, pause=0.02)
    name = front.host + name[len(r.registry.host):]
    with refused(Code.DEADLINE_EXCEEDED):
        r.pull(name, timeout=1.0)
    until(front.idle, "the server hangs up: only then is the next pull another one")
    until(lambda: not r.files("tmp")["tmp"], "nothing temporary")
    (part,) = r.files("partial")["partial"]
    length = (r.store / "partial" / part).stat().st_size
    check(0 < length < len(NOISE), f"a part of {length}")
    same("no image", r.status(name), None)
    front.pause = 0
    r.pull(name)
    ranges = [asked for path, asked in front.seen if part in path and asked and asked != "bytes=0-"]
    check(ranges and int(ranges[-1].removeprefix("bytes=").split("-")[0]) >= length, f"asked for the rest of {length}: {ranges}")
    same("parts left", r.files("partial", "tmp"), {"partial": [], "tmp": []})
    front.stop()


@case
def killed(r):
    """kill -9 in the middle of pulls, again and again: temporary files go, what came is used, the image is whole"""
    name = r.made("team/killed:1", ["COPY noise /noise"], {"noise": NOISE[2:]})
    front = Front(r.registry, pause=0.03)
    name = front.host + name[len(r.registry.host):]
    request = r.types.PullImageRequest(image=r.types.ImageSpec(image=name))

    def part():
        sizes = [0]
        for file in r.files("partial")["partial"]:
            # One that is complete goes at any time.
            with contextlib.suppress(FileNotFoundError):
                sizes.append((r.store / "partial" / file).stat().st_size)
        return max(sizes)

    for wanted in [0, 1, 1 << 20, 2 << 20]:
        call = r.server.images.PullImage.future(request)
        until(lambda: part() >= wanted and front.seen, f"{wanted} bytes are there")
        r.server.again(signal.SIGKILL)
        # Kept until here: grpc cancels a call that nobody holds.
        del call
        same("temporary files", r.files("tmp")["tmp"], [])
        check(part() >= wanted, f"the {wanted} bytes are still there")
    front.pause = 0
    r.pull(name)
    same("left", r.files("partial", "tmp"), {"partial": [], "tmp": []})
    check(any(asked and asked != "bytes=0-" for _, asked in front.seen), "went on where it was")
    pod = r.server.host_pod("killed")
    container = r.server.run(pod, ["sha256sum", "/noise"], image=name)
    r.server.ended(container)
    same("noise", r.server.said(container).split()[0].decode(), hashlib.sha256(NOISE[2:]).hexdigest())
    r.server.remove_pod(pod)
    front.stop()


@case
def processes(r):
    """Imports beside a server that pulls and removes, some of them killed: what was made is whole, and nothing else is left"""
    import random
    import shutil

    name = r.made("team/beside:1", ["COPY noise /noise"], {"noise": NOISE[4:]})
    chance, imports = random.Random(7), []
    for number in range(12):
        tree = r.scratch / f"tree-{number}"
        (tree / "bin").mkdir(parents=True)
        shutil.copy("/usr/bin/busybox", tree / "bin" / "cat")
        (tree / "which").write_text(f"{number}\n")
        imports.append(subprocess.Popen(r.server.words("import", f"localhost/beside:{number}", str(tree))))
        if number % 3 == 2:
            time.sleep(chance.uniform(0, 0.2))
            imports[-1].send_signal(signal.SIGKILL)
        r.pull(name)
        r.remove(name)
    codes = [process.wait(60) for process in imports]
    same("imports that were let be", [code for number, code in enumerate(codes) if number % 3 != 2], [0] * 8)
    pod = r.server.host_pod("beside")
    for number, code in enumerate(codes):
        if r.status(f"localhost/beside:{number}") is None:
            check(code != 0, f"localhost/beside:{number} was imported, and is not there")
            continue
        container = r.server.run(pod, ["cat", "/which"], name=f"c{number}", image=f"localhost/beside:{number}")
        r.server.ended(container)
        same("file", r.server.said(container), b"%d\n" % number)
    r.server.remove_pod(pod)
    for number in range(len(codes)):
        r.remove(f"localhost/beside:{number}")
    same("the pulled one", r.status(name), None)
    r.server.again(signal.SIGKILL)
    same("temporary files", r.files("tmp", "partial"), {"tmp": [], "partial": []})
    named = {layer for record in (r.store / "records").iterdir() for layer in json.loads(record.read_text())["layers"]}
    same("layers", r.files("layers")["layers"], sorted(layer.removeprefix("sha256:") for layer in named))


@case
def removal(r):
    """RemoveImage takes all tags; layers stay below a container, and go with the last who uses them"""
    local = r.storage.build("localhost/gone:1", ["RUN echo x >/only-here"])
    names = [f"{r.registry.host}/gone:{tag}" for tag in ["1", "2"]]
    for name in names:
        r.storage.push(local, name)
        r.pull(name)
    image = r.status(names[0])
    same("tags", sorted(image.repo_tags), names)
    layers = r.files("layers")["layers"]
    pod = r.server.host_pod("gone")
    container = r.server.run(pod, ["sleep", "infinity"], image=names[0])
    for _ in range(2):
        r.remove(names[1])
    for reference in [*names, image.id, *image.repo_digests]:
        same(f"status by {reference}", r.status(reference), None)
    same("layers below the container", r.files("layers")["layers"], layers)
    r.server.again(signal.SIGKILL)
    same("never read before", r.server.exec(container, "cat", "/only-here").stdout, b"x\n")
    with refused(Code.NOT_FOUND, "gone"):
        r.server.create(pod, ["true"], name="late", image=names[0])
    r.server.remove_pod(pod)
    check(len(r.files("layers")["layers"]) < len(layers), "its layers are removed")
    r.remove("localhost/never/there:1")


@case
def filesystem(r):
    """ImageFsInfo: paths that are there on the real file system, figures that follow pulls and removals"""
    def info():
        return r.server.images.ImageFsInfo(r.types.ImageFsInfoRequest())

    name = r.made("team/space:1", ["COPY noise /noise"], {"noise": NOISE[3:]})
    before = info()
    for usage in [*before.image_filesystems, *before.container_filesystems]:
        path = usage.fs_id.mountpoint
        check(os.path.isdir(path), f"{path} is there")
        same("device", os.stat(path).st_dev, os.stat(r.server.dir / "root").st_dev)
        check(usage.timestamp > 0, "timestamp")
    same("lists", (len(before.image_filesystems), len(before.container_filesystems)), (1, 1))
    r.pull(name)
    grown = info().image_filesystems[0].used_bytes.value - before.image_filesystems[0].used_bytes.value
    check(len(NOISE) - 3 <= grown < len(NOISE) + (4 << 20), f"grown by {grown}")
    check(info().image_filesystems[0].inodes_used.value > before.image_filesystems[0].inodes_used.value, "inodes")
    real = int(subprocess.run(["du", "-s", "-B1", str(r.store / "layers")], capture_output=True, text=True).stdout.split()[0])
    said = info().image_filesystems[0].used_bytes.value
    check(abs(said - real) < max(1 << 20, real // 20), f"said {said}, du of the layers {real}")
    r.remove(name)
    same("after removal", info().image_filesystems[0].used_bytes.value, before.image_filesystems[0].used_bytes.value)


@case
def pinned(r):
    """Pinned by a prefix in the configuration, and by import; others are not"""
    name = r.made("team/pinned:1")
    front = Front(r.registry)
    r.pull(name)
    same("by a prefix", r.status(name).pinned, True)
    by_host = f"localhost:{front.host.rpartition(':')[2]}/team/pinned:1"
    r.remove(name)
    r.pull(by_host)
    same("not pinned", r.status(by_host).pinned, False)
    imported = r.server.import_busybox("localhost/imported:1")
    same("imported", r.status(imported).pinned, True)
    r.remove(imported)
    same("pinned is for the kubelet's clean-up; who asks removes", r.status(imported), None)
    front.stop()


if __name__ == "__main__":
    sys.exit(main(CASES, setup))
