"""Images, as far as no registry is needed."""

import pathlib
import signal
import subprocess
import time

from server import check, refused, same, until

from . import Code, case


@case
def images(s):
    """ListImages, ImageStatus by every kind of reference, ImageFsInfo"""
    t = s.types
    all_images = s.images.ListImages(t.ListImagesRequest()).images
    (image,) = [image for image in all_images if "localhost/busybox:latest" in image.repo_tags]
    check(image.size > 100_000, f"size {image.size}")
    for reference in [image.id, "localhost/busybox", "localhost/busybox:latest", image.id.removeprefix("sha256:")]:
        found = s.images.ImageStatus(t.ImageStatusRequest(image=t.ImageSpec(image=reference))).image
        same(f"id by {reference}", found.id, image.id)
    nothing = s.images.ImageStatus(t.ImageStatusRequest(image=t.ImageSpec(image="localhost/none")))
    check(not nothing.HasField("image"), "an unknown image has no status")
    wanted = t.ImageFilter(image=t.ImageSpec(image="localhost/busybox"))
    same("filtered", [i.id for i in s.images.ListImages(t.ListImagesRequest(filter=wanted)).images], [image.id])
    usage = s.images.ImageFsInfo(t.ImageFsInfoRequest()).image_filesystems[0]
    check(pathlib.Path(usage.fs_id.mountpoint).exists() and usage.used_bytes.value > 100_000, f"{usage}")


@case
def image_removal(s):
    """RemoveImage, twice; a container goes on without its image"""
    t = s.types
    name = s.import_busybox("localhost/other:1")
    pod = s.host_pod("image-removal")
    container = s.run(pod, "while :; do sleep 0.1; done", image=name)
    for _ in range(2):
        s.images.RemoveImage(t.RemoveImageRequest(image=t.ImageSpec(image=name)))
    same("exec", s.exec(container, "cat", "/etc/passwd").exit_code, 0)
    s.import_busybox()
    s.remove_pod(pod)


@case
def pull_failures(s):
    """PullImage: nobody there, no such name, a deadline of 1 ms"""
    t = s.types
    with refused(Code.UNKNOWN, "RegistryUnavailable", "127.0.0.1:1"):
        s.images.PullImage(t.PullImageRequest(image=t.ImageSpec(image="127.0.0.1:1/x:y")), timeout=60)
    with refused(Code.INVALID_ARGUMENT):
        s.images.PullImage(t.PullImageRequest(image=t.ImageSpec(image="Not A Name")), timeout=60)
    with refused(Code.DEADLINE_EXCEEDED):
        s.images.PullImage(t.PullImageRequest(image=t.ImageSpec(image="127.0.0.1:1/x:z")), timeout=0.001)


@case
def image_volumes(s):
    """Mounts of images: read-only, nothing in them runs, what the status says; unmounted with the container, and after kill -9"""
    t = s.types
    tree = s.dir / "volume"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "model").write_text("weights")
    (tree / "run").write_text("#!/bin/sh\necho ran\n")
    (tree / "run").chmod(0o755)
    name = "localhost/volume:1"
    subprocess.run(s.words("import", name, str(tree)), check=True)
    image = s.images.ImageStatus(t.ImageStatusRequest(image=t.ImageSpec(image=name))).image

    def mounts():
        return [line for line in pathlib.Path("/proc/self/mounts").read_text().splitlines() if f"{s.dir}/run/containers" in line]

    def volume(reference, path="/vol", **fields):
        return t.Mount(container_path=path, image=t.ImageSpec(image=reference), **fields)

    before = mounts()
    pod = s.host_pod("volumes")
    asked = [volume(image.id), volume(name, "/vol2", readonly=True)]
    for handler in {handler.name for handler in s.runtime.Status(t.StatusRequest()).runtime_handlers}:
        other = s.host_pod(f"volumes-{handler}", handler)
        ended = s.run(other, "cat /vol/sub/model; /vol/run || touch /vol/new || echo refused", mounts=asked)
        s.ended(ended)
        same(f"with {handler}", s.said(ended, "stdout"), b"weightsrefused\n")
        s.remove_pod(other)
    container = s.run(pod, "exec sleep 1000", mounts=asked)
    for path in ["/vol", "/vol2"]:
        same("content", s.exec(container, "cat", f"{path}/sub/model").stdout, b"weights")
        for words in [["touch", f"{path}/new"], ["rm", f"{path}/run"], ["sh", "-c", f"{path}/run"], ["mount", "-o", "remount,rw", path]]:
            check(s.exec(container, *words).exit_code != 0, f"{words} is refused")
    same("status", list(s.status(container).mounts), asked)
    with refused(Code.INVALID_ARGUMENT, "host_path", "/vol"):
        s.create(pod, "true", name="both", mounts=[volume(name, host_path="/tmp")])
    with refused(Code.NOT_FOUND, "localhost/none"):
        s.create(pod, "true", name="none", mounts=[volume(name), volume("localhost/none", "/x")])
    same("mounts of one container", len(mounts()) - len(before), 3)
    s.images.RemoveImage(t.RemoveImageRequest(image=t.ImageSpec(image=name)))
    s.again(signal.SIGKILL)
    same("after its image was removed", s.exec(container, "cat", "/vol/sub/model").stdout, b"weights")
    s.end(container)
    until(lambda: mounts() == before, "all is unmounted when it has ended")
    s.remove(container)
    subprocess.run(s.words("import", name, str(tree)), check=True)
    # The next server finds what was made, or had begun to be made.
    for number in range(4):
        config = t.ContainerConfig(metadata=t.ContainerMetadata(name=f"k{number}"), image=t.ImageSpec(image="localhost/busybox"),
                                   command=["true"], mounts=[volume(name)])
        request = t.CreateContainerRequest(pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1])
        call = s.runtime.CreateContainer.future(request)
        time.sleep(0.02 * number)
        s.again(signal.SIGKILL)
        del call
    s.remove_pod(pod)
    same("mounts left", mounts(), before)
