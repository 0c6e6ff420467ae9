"""Images that buildah and skopeo put into the containers/storage of this host run without any registry, whatever podman
does to them afterwards.

    adoption.py [WORD...]     cases whose name contains one of the words; --list shows them, KEEP=1 keeps a failure's files
"""

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import sys
import time

import grpc

from rig import Storage
from server import check, main, refused, same, serving

CASES = []
Code = grpc.StatusCode
NOISE = os.urandom(1 << 20)


def case(run):
    CASES.append(run)
    return run


@contextlib.contextmanager
def setup(scratch):
    storage = Storage(scratch)
    # On the file system of the server's root: files become the server's by links.
    with serving(scratch, f"[images]\ncontainers_storage = '{storage.root}'\n") as server:
        server.storage = storage
        yield server


def find(s, name):
    answer = s.images.ImageStatus(s.types.ImageStatusRequest(image=s.types.ImageSpec(image=name)))
    return answer.image if answer.HasField("image") else None


def remove(s, name):
    s.images.RemoveImage(s.types.RemoveImageRequest(image=s.types.ImageSpec(image=name)))


def tags(s):
    return {tag for image in s.images.ListImages(s.types.ListImagesRequest()).images for tag in image.repo_tags}


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def healthy(storage, name):
    """podman lists, and buildah builds."""
    storage.run("podman", "images", "--format", "{{.ID}}")
    storage.build(name, ["RUN echo again >/again"])
    check(name in storage.run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}"), f"{name} was built")


def copied(s, name, tag):
    """An image that skopeo copies: out of a directory in the OCI's layout, made by buildah."""
    storage, source = s.storage, s.dir / f"layout-{tag}"
    policy = str(storage.dir / "policy.json")
    other = Storage(s.dir, f"other-{tag}")
    other.build("localhost/source:1", [f"RUN echo {tag} >/{tag}"])
    other.run("buildah", "push", "-q", "--signature-policy", policy, "localhost/source:1", f"oci:{source}:{tag}")
    storage.run("skopeo", "copy", "-q", f"oci:{source}:{tag}",
                f"containers-storage:[overlay@{storage.root}+{storage.dir}/run]{name}")


@case
def built(s):
    """`buildah bud`: listed at once, runs; `podman rmi -f` while it runs hurts nothing, also over a restart"""
    name = s.storage.build("localhost/app:1", ["COPY noise /noise", "RUN echo late >/never-touched"], {"noise": NOISE})
    check(name in tags(s), "it is listed")
    image = find(s, name)
    (theirs,) = json.loads(s.storage.run("podman", "image", "inspect", name))
    same("id", image.id, f"sha256:{theirs['Id']}")
    same("short name", find(s, "app:1"), image)
    pod = s.host_pod("built")
    container = s.run(pod, ["sleep", "infinity"], image=name)
    s.storage.run("podman", "rmi", "-f", name)
    check(theirs["Id"] not in s.storage.run("podman", "images", "-q", "--no-trunc"), "podman has it no more")
    drop_caches()
    same("a file never touched before", s.exec(container, "cat", "/never-touched").stdout, b"late\n")
    seen = s.exec(container, "sha256sum", "/noise").stdout.split()[0].decode()
    same("a large file", seen, hashlib.sha256(NOISE).hexdigest())
    same("a program", s.exec(container, "busybox", "true").exit_code, 0)
    healthy(s.storage, "localhost/after:1")
    s.again(signal.SIGKILL)
    drop_caches()
    same("after a restart", s.exec(container, "cat", "/never-touched").stdout, b"late\n")
    check(name in tags(s), "the image is ours")
    second = s.run(pod, ["cat", "/never-touched"], name="second", image=name)
    s.ended(second)
    same("a new container of our copy", s.said(second), b"late\n")
    s.remove_pod(pod)
    remove(s, name)
    same("removed", find(s, name), None)


@case
def skopeo_copied(s):
    """`skopeo copy ... containers-storage:`: listed, runs, outlives podman's removal of everything"""
    name = "localhost/copied:1"
    copied(s, name, "mark")
    check(name in tags(s), "it is listed")
    pod = s.host_pod("copied")
    container = s.run(pod, ["sleep", "infinity"], image=name)
    s.storage.run("podman", "rmi", "-f", "-a")
    drop_caches()
    same("a file never touched before", s.exec(container, "cat", "/mark").stdout, b"mark\n")
    healthy(s.storage, "localhost/after:2")
    s.remove_pod(pod)
    remove(s, name)


@case
def many_layers(s):
    """A deep image, with files replaced and removed between layers, hard links, owners and set-uid bits"""
    lines = [f"RUN echo {n} >/step && echo {n} >/step-{n}" for n in range(12)]
    lines += ["RUN rm /step-3 && mkdir /d && echo a >/d/a && ln /d/a /d/b && chown 7:8 /d/a && chmod 4755 /d/a",
              "RUN rm -rf /d/b && mkdir -p /d/e && echo e >/d/e/f"]
    name = s.storage.build("localhost/deep:1", lines)
    pod = s.host_pod("deep")
    container = s.run(pod, ["sleep", "infinity"], image=name)
    s.storage.run("podman", "rmi", "-f", name)
    drop_caches()
    same("top", s.exec(container, "cat", "/step", "/step-0", "/d/e/f").stdout, b"11\n0\ne\n")
    check(s.exec(container, "test", "-e", "/step-3").exit_code == 1, "removed")
    same("owner and mode", s.exec(container, "stat", "-c", "%u %g %a %h", "/d/a").stdout.split()[:3], [b"7", b"8", b"4755"])
    s.remove_pod(pod)
    remove(s, name)


@case
def removal(s):
    """RemoveImage: podman's image is podman's, and said so; ours goes, and podman's stays and can be adopted again"""
    name = s.storage.build("localhost/kept:1", ["RUN echo kept >/kept"])
    layers = s.dir / "root/images/layers"
    check(find(s, name).pinned, "the kubelet does not try to make room with it")
    with refused(Code.FAILED_PRECONDITION, str(s.storage.root), "podman"):
        remove(s, name)
    before = set(os.listdir(layers))
    pod = s.host_pod("kept")
    container = s.run(pod, ["cat", "/kept"], image=name)
    s.ended(container)
    ours = set(os.listdir(layers)) - before
    check(ours, "layers were adopted")
    remove(s, name)
    check(find(s, name), "podman's is still there, and listed")
    check(ours <= set(os.listdir(layers)), "a container is on them")
    s.remove(container)
    same("our links are gone", set(os.listdir(layers)) & ours, set())
    theirs = s.storage.run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}").split()
    check(name in theirs, "podman has it")
    again = s.run(pod, ["cat", "/kept"], name="again", image=name)
    s.ended(again)
    same("adopted again", s.said(again), b"kept\n")
    s.remove_pod(pod)
    s.storage.run("podman", "rmi", "-f", name)
    remove(s, name)
    same("gone everywhere", find(s, name), None)


@case
def rebuilt(s):
    """A name that is built anew means the new image; the old container goes on with the old"""
    name = s.storage.build("localhost/moving:1", ["RUN echo old >/which"])
    pod = s.host_pod("moving")
    old = s.run(pod, ["sleep", "infinity"], name="old", image=name)
    s.storage.build(name, ["RUN echo new >/which"])
    new = s.run(pod, ["sleep", "infinity"], name="new", image=name)
    same("old and new", [s.exec(c, "cat", "/which").stdout for c in [old, new]], [b"old\n", b"new\n"])
    check(s.status(old).image_id != s.status(new).image_id, "two images")
    s.remove_pod(pod)


@case
def killed(s):
    """kill -9 during adoptions: nothing half adopted, and the next container runs"""
    for number in range(5):
        name = s.storage.build(f"localhost/killed:{number}", [
            f"RUN mkdir /many-{number} && for n in $(seq 400); do echo $n >/many-{number}/$n; done", "RUN echo end >/end"])
        pod = s.host_pod(f"killed-{number}")
        config = s.types.ContainerConfig(metadata=s.types.ContainerMetadata(name="x"), image=s.types.ImageSpec(image=name),
                                         command=["true"])
        call = s.runtime.CreateContainer.future(
            s.types.CreateContainerRequest(pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1]))
        time.sleep(0.015 * number)
        s.again(signal.SIGKILL)
        # Kept until here: grpc cancels a call that nobody holds.
        del call
        same("temporary files", os.listdir(s.dir / "root/images/tmp"), [])
        container = s.run(pod, ["sh", "-c", f"ls /many-{number} | wc -l; cat /end"], image=name)
        s.ended(container)
        same("files", s.said(container).split(), [b"400", b"end"])
        s.remove_pod(pod)
    healthy(s.storage, "localhost/after:3")


if __name__ == "__main__":
    sys.exit(main(CASES, setup))
