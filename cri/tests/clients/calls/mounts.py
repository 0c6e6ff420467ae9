"""Devices and mounts."""

import json
import os
import pathlib
import subprocess

from server import check, refused, same, until

from . import Code, case, each_handler, secure


@case
def container_devices(s):
    """Devices by node, link and directory, with their permissions; no others"""
    t = s.types
    nodes = s.dir / "nodes"
    (nodes / "below").mkdir(parents=True, exist_ok=True)
    for name, minor in [("below/zero", 5), ("random", 8)]:
        if not (nodes / name).exists():
            os.mknod(nodes / name, 0o640 | 0o020000, os.makedev(1, minor))
            os.chown(nodes / name, 0, 77)
    (nodes / "file").write_text("no device")
    (nodes / "link").exists() or (nodes / "link").symlink_to("random")
    kmsg = t.Device(host_path="/dev/kmsg", container_path="/dev/log-of-kernel", permissions="r")
    for handler in each_handler(s):
        pod = s.host_pod(f"devices-{handler}", handler)
        devices = [kmsg, t.Device(host_path=str(nodes), container_path="/dev/many/", permissions="rw"),
                   t.Device(host_path=str(nodes / "link"), container_path="/dev/linked")]
        container = s.run(
            pod, "stat -c '%n %a %g %t,%T' /dev/log-of-kernel /dev/many/below/zero /dev/many/random /dev/linked;"
            "head -c 3 /dev/many/below/zero | wc -c; (: >/dev/log-of-kernel) 2>&1; mknod /disk b 253 0 && (: </disk) 2>&1;"
            "ls /dev/many", devices=devices)
        s.ended(container)
        kernel = pathlib.Path("/dev/kmsg").stat()
        lines = s.said(container).decode().splitlines()
        same("nodes", lines[:4], [f"/dev/log-of-kernel {kernel.st_mode & 0o777:o} {kernel.st_gid} 1,b",
                                  "/dev/many/below/zero 640 77 1,5", "/dev/many/random 640 77 1,8", "/dev/linked 640 77 1,8"])
        same("read", lines[4], "3")
        same("refused", ["not permitted" in line for line in lines[5:7]], [True, True])
        same("no files", lines[7:], ["below", "random"])
        for path, permissions, word in [("/no/such", "rw", "/no/such"), (str(nodes / "file"), "rw", "no device"), ("/dev/null", "rx", "rx")]:
            with refused(Code.INVALID_ARGUMENT, word):
                s.create(pod, "exit 0", name="bad", devices=[t.Device(host_path=path, container_path="/dev/x", permissions=permissions)])
        s.remove_pod(pod)


@case
def container_cdi(s):
    """Devices by the Container Device Interface: field and annotation; unknown ones are refused"""
    t = s.types
    place = pathlib.Path("/run/cdi")
    made = not place.exists()
    place.mkdir(exist_ok=True)
    # Seen in here only.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        node = {"path": "/dev/vendor/one", "hostPath": "/dev/kmsg", "permissions": "r"}
        mount = {"hostPath": "/usr/share", "containerPath": "/vendor", "options": ["ro", "bind"]}
        (place / "vendor.json").write_text(json.dumps({
            "cdiVersion": "0.6.0", "kind": "example.com/thing", "containerEdits": {"env": ["VENDOR=here"]},
            "devices": [{"name": "one", "containerEdits": {"deviceNodes": [node]}},
                        {"name": "two", "containerEdits": {"mounts": [mount]}}]}))
        (place / "other.yaml").write_text("kind: example.com/other\n")
        for handler in each_handler(s):
            pod = s.host_pod(f"cdi-{handler}", handler)
            container = s.run(pod, "echo $VENDOR; stat -c %t,%T /dev/vendor/one; ls -d /vendor/doc; touch /vendor/x 2>&1",
                              CDI_devices=[t.CDIDevice(name="example.com/thing=one")],
                              annotations={"cdi.k8s.io/plugin": "example.com/thing=two"})
            s.ended(container)
            text = s.said(container, "stdout")
            check(text.startswith(b"here\n1,b\n/vendor/doc\n") and b"Read-only" in text, f"{text}")
            for name, word in [("example.com/other=x", "other.yaml"), ("thing", "vendor.com/class=name")]:
                with refused(Code.INVALID_ARGUMENT, word):
                    s.create(pod, "exit 0", name="bad", CDI_devices=[t.CDIDevice(name=name)])
            s.remove_pod(pod)
    finally:
        subprocess.run(["umount", place], check=True)
        if made:
            place.rmdir()


@case
def container_mounts(s):
    """Host paths, read-only, made when missing, links, depth, instead of ours; told in the status"""
    t = s.types
    there = s.dir / "there"
    (there / "deep").mkdir(parents=True, exist_ok=True)
    (there / "file").write_text("data")
    link = s.dir / "link"
    link.is_symlink() or link.symlink_to("there")
    hosts = s.dir / "hosts"
    hosts.write_text("mine\n")
    for handler in each_handler(s):
        made = s.dir / f"made/for/{handler}"
        pod = s.host_pod(f"mounts-{handler}", handler)
        mounts = [t.Mount(container_path="/rw/deep/er", host_path=str(there)),
                  t.Mount(container_path="/rw", host_path=str(link)),
                  t.Mount(container_path="/ro/", host_path=str(there), readonly=True),
                  t.Mount(container_path="/made", host_path=str(made)),
                  t.Mount(container_path="/etc/hosts", host_path=str(hosts)),
                  t.Mount(container_path="/dev/shm/", host_path=str(there), readonly=True)]
        container = s.run(pod, "cat /ro/file; touch /ro/x 2>/dev/null || echo no; echo new >/rw/out; ls -d /made;"
                               "ls /rw/deep/er; cat /etc/hosts /dev/shm/out; grep -c ' /dev/shm ' /proc/self/mountinfo", mounts=mounts)
        s.ended(container)
        same("what it sees", s.said(container, "stdout"), b"datano\n/made\ndeep\nfile\nout\nmine\nnew\n1\n")
        same("on the host", (there / "out").read_text(), "new\n")
        check(made.is_dir(), "the missing source was made")
        same("mounts in the status", [m.container_path for m in s.status(container).mounts], [m.container_path for m in mounts])
        for fields, code, word in [
            (dict(container_path="", host_path="/tmp"), Code.INVALID_ARGUMENT, "container_path"),
            (dict(container_path="/x", host_path=""), Code.INVALID_ARGUMENT, "host_path"),
            (dict(container_path="/x", host_path=str(there / "file" / "x")), Code.UNKNOWN, "file/x"),
            (dict(container_path="/x", host_path="/tmp", recursive_read_only=True), Code.INVALID_ARGUMENT, "readonly"),
            (dict(container_path="/x", host_path="/tmp", recursive_read_only=True, readonly=True, propagation=1), Code.INVALID_ARGUMENT, "propagation"),
        ]:
            with refused(code, word):
                s.create(pod, "exit 0", name="bad", mounts=[t.Mount(**fields)])
        s.remove_pod(pod)


@case
def container_recursive_read_only(s):
    """Read-only with all below where the runtime can; refused where it cannot, as the Status says"""
    t = s.types
    top = s.dir / "recursive"
    (top / "sub").mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", top / "sub"], check=True)
    try:
        for handler in s.runtime.Status(t.StatusRequest()).runtime_handlers:
            if not handler.name:
                continue
            pod = s.host_pod(f"rro-{handler.name}", handler.name)
            mounts = [t.Mount(container_path="/x", host_path=str(top), readonly=True, recursive_read_only=True)]
            if not handler.features.recursive_read_only_mounts:
                with refused(Code.UNIMPLEMENTED, "recursive_read_only"):
                    s.create(pod, "exit 0", mounts=mounts)
            else:
                container = s.run(pod, "touch /x/a; touch /x/sub/a", mounts=mounts)
                s.ended(container)
                same("refusals", s.said(container).count(b"Read-only file system"), 2)
            plain = s.run(pod, "touch /x/a; touch /x/sub/a", name="plain", mounts=[
                t.Mount(container_path="/x", host_path=str(top), readonly=True)])
            s.ended(plain)
            same("refusals", s.said(plain).count(b"Read-only file system"), 1)
            s.remove_pod(pod)
    finally:
        subprocess.run(["umount", top / "sub"], check=True)


@case
def container_propagation(s):
    """Mounts travel as asked for, and only from sources that let them"""
    t = s.types
    place = s.dir / "propagation"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    (place / "in").mkdir()
    (place / "out").mkdir()

    def mount(kind, path=place):
        return [t.Mount(container_path="/x", host_path=str(path), propagation=kind)]

    try:
        options = t.NamespaceOption(network=t.NODE, pid=t.CONTAINER)
        linux = t.LinuxPodSandboxConfig(
            security_context=t.LinuxSandboxSecurityContext(namespace_options=options, privileged=True))
        for handler in each_handler(s):
            subprocess.run(["mount", "--make-private", place], check=True)
            pod = s.pod(f"propagation-{handler}", handler, linux=linux)
            for kind, word in [(t.PROPAGATION_HOST_TO_CONTAINER, "HostToContainer"), (t.PROPAGATION_BIDIRECTIONAL, "Bidirectional")]:
                with refused(Code.INVALID_ARGUMENT, word, str(place)):
                    s.create(pod, "exit 0", name="private", mounts=mount(kind))
            subprocess.run(["mount", "--make-shared", place], check=True)
            for name, kind, heard, told in [("private", t.PROPAGATION_PRIVATE, False, False),
                                            ("slave", t.PROPAGATION_HOST_TO_CONTAINER, True, False),
                                            ("shared", t.PROPAGATION_BIDIRECTIONAL, True, True)]:
                container = s.run(pod, "mount -t tmpfs mine /x/out; echo ready; exec sleep 1000", name=name, mounts=mount(kind, place / "..//propagation"),
                                  linux=secure(s, privileged=True))
                until(lambda: b"ready" in s.said(container), "the container mounts")
                subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place / "in"], check=True)
                (place / "in/file").touch()
                same(f"{handler} {name} hears", s.exec(container, "ls", "/x/in").stdout, b"file\n" if heard else b"")
                same(f"{handler} {name} tells", os.path.ismount(place / "out"), told)
                subprocess.run(["umount", place / "in"], check=True)
                s.end(container)
                if told:
                    subprocess.run(["umount", place / "out"], check=True)
            s.remove_pod(pod)
    finally:
        subprocess.run(["umount", "--recursive", place], check=True)
