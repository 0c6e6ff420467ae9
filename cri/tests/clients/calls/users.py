"""User namespaces of pods, and what other users of the host get to see."""

import os
import pathlib
import subprocess

from server import Skip, check, refused, same, until

from . import Code, case, each_handler, secure

FIRST, MANY = 200_000, 65_536


def user(s, host=FIRST, length=MANY, container=0):
    one = s.types.IDMapping(host_id=host, container_id=container, length=length)
    return s.types.UserNamespace(mode=s.types.POD, uids=[one], gids=[one])


def needed(s):
    handlers = s.runtime.Status(s.types.StatusRequest()).runtime_handlers
    if not all(handler.features.user_namespaces for handler in handlers):
        raise Skip("this kernel or file system has no id-mapped layers")


def pod_of(s, name, handler="", pid=None, privileged=False, **fields):
    t = s.types
    modes = t.NamespaceOption(pid=t.CONTAINER if pid is None else pid, userns_options=user(s))
    context = t.LinuxSandboxSecurityContext(namespace_options=modes, privileged=privileged)
    return s.pod(name, handler, linux=t.LinuxPodSandboxConfig(security_context=context, **fields))


def process(s, container):
    """The host's pid of a container's first process."""
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if words == b"sleep\x004711\x00":
                return entry
    raise AssertionError(f"{container[:12]} has no process")


@case
def users_ids(s):
    """Root of a pod with a user namespace is nobody on the host; its image's files are root's to it"""
    needed(s)
    for handler in each_handler(s):
        pod = pod_of(s, f"users-{handler}", handler)
        container = s.run(pod, ["sleep", "4711"])
        sh = lambda script: s.exec(container, "sh", "-c", script).stdout.decode()  # noqa: E731
        for name in ["uid_map", "gid_map"]:
            same(name, sh(f"cat /proc/self/{name}").split(), ["0", str(FIRST), str(MANY)])
        host = process(s, container)
        same("owner on the host", (host.stat().st_uid, host.stat().st_gid), (FIRST, FIRST))
        same("files", sh("stat -c %u:%g / /bin/busybox /etc/hosts /dev/shm"), "0:0\n" * 4)
        same("writing", sh("echo x >/new; chown 12:34 /new; stat -c %u:%g /new; echo '127.0.0.9 y' >>/etc/hosts; tail -n 1 /etc/hosts;"
                           "cat /etc/resolv.conf >/dev/null; touch /dev/shm/a; mkdir /etc/below; stat -c %u /etc"),
             "12:34\n127.0.0.9 y\n0\n")
        rw = s.dir / "root/containers-rw" / container / "upper"
        same("on the disk", (os.stat(rw / "new").st_uid, os.stat(rw / "new").st_gid), (FIRST + 12, FIRST + 34))
        same("layers are as they were", os.stat(next((s.dir / "root/images/layers").glob("*/fs/bin/busybox"))).st_uid, 0)
        # It is root of its own things and of nothing else.
        same("network", sh("ping -c 1 -w 5 127.0.0.1 >/dev/null && echo up"), "up\n")
        said = sh("(echo 1 >/proc/sys/vm/drop_caches) 2>&1; true")
        check("denied" in said or "Read-only" in said, f"the host's settings: {said!r}")
        # A second container has the same ids, and exits as ever.
        other = s.run(pod, "id -u; exit 7", name="other")
        same("exit code", s.ended(other).exit_code, 7)
        same("log", s.said(other), b"0\n")
        ids = s.runtime.PodSandboxStatus(s.types.PodSandboxStatusRequest(pod_sandbox_id=pod[0])).status.linux.namespaces.options
        same("told", ids.userns_options, user(s))
        s.remove_pod(pod)


@case
def users_namespaces(s):
    """The pod's namespaces belong to its user namespace; a shared pid namespace, and another server after a kill"""
    needed(s)
    t = s.types
    for handler in each_handler(s):
        pod = pod_of(s, f"owned-{handler}", handler, pid=t.POD)
        container = s.run(pod, ["sleep", "4711"])
        host = process(s, container)
        own = {kind: os.readlink(host / "ns" / kind) for kind in ["user", "net", "ipc", "uts", "pid"]}
        for kind, name in own.items():
            check(name != os.readlink(f"/proc/self/ns/{kind}"), f"{kind} is the host's")
        holder = [entry for entry in pathlib.Path("/proc").glob("[0-9]*")
                  if (entry / "comm").exists() and (entry / "comm").read_text() == "conward-hold\n"
                  and pod[0].encode() in (entry / "cmdline").read_bytes()]
        same("holders", len(holder), 1)
        same("holder's owner", holder[0].stat().st_uid, FIRST)
        s.again()
        second = s.run(pod, "readlink /proc/self/ns/user; readlink /proc/self/ns/pid", name="second")
        s.ended(second)
        same("after a kill of the server", s.said(second).decode().split(), [own["user"], own["pid"]])
        s.remove_pod(pod)
        until(lambda: not holder[0].exists(), "the holder ends")
    same("left", [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if str(s.dir) in line and "trial" in line], [])


@case
def users_privileged(s):
    """A privileged container has all rights over its namespaces and none over the host; sysctls; a terminal"""
    needed(s)
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1"}
    for handler in each_handler(s):
        pod = pod_of(s, f"privileged-{handler}", handler, privileged=True, sysctls=sysctls)
        script = ("sysctl -n kernel.shm_rmid_forced net.ipv4.ip_unprivileged_port_start; mkdir /m; mount -t tmpfs x /m && echo mounted;"
                  "mknod /z c 1 5 2>/dev/null || cat /dev/kmsg 2>/dev/null || echo limited")
        container = s.run(pod, script, linux=secure(s, privileged=True))
        same("exit code", s.ended(container).exit_code, 0)
        same("what it can", s.said(container).decode().split(), ["1", "77", "mounted", "limited"])
        terminal = s.run(pod, "stat -c %u $(tty); echo hi >/dev/tty", name="terminal", tty=True, stdin=True)
        s.ended(terminal)
        same("terminal", s.said(terminal).split(), [b"0", b"hi"])
        s.remove_pod(pod)


@case
def users_volumes(s):
    """Directories of the host and images, seen with the pod's ids; nothing of them is left"""
    needed(s)
    t = s.types
    place = s.dir / "volume-of-users"
    place.mkdir()
    (place / "old").write_text("old")
    (place / "single").write_text("file")
    one = [t.IDMapping(host_id=FIRST, container_id=0, length=MANY)]
    for handler in each_handler(s):
        pod = pod_of(s, f"mapped-{handler}", handler)
        mounts = [t.Mount(host_path=str(place), container_path="/data", uidMappings=one, gidMappings=one),
                  t.Mount(host_path=str(place / "single"), container_path="/one", readonly=True, uidMappings=one, gidMappings=one),
                  t.Mount(host_path=str(place), container_path="/plain"),
                  t.Mount(image=t.ImageSpec(image="localhost/busybox:latest"), container_path="/image")]
        container = s.run(
            pod, "stat -c %u /data /data/old /one /image/bin/busybox /plain/old; echo new >/data/new-$0; cat /one; echo; (: >/one) 2>&1;"
            "(: >/plain/no) 2>&1; (: >/image/no) 2>&1", mounts=mounts)
        same("exit", s.ended(container).exit_code, 1)
        lines = s.said(container).decode().splitlines()
        same("owners", lines[:6], ["0", "0", "0", "0", "65534", "file"])
        same("refusals", [line.rsplit(": ", 1)[-1] for line in lines[6:]],
             ["Read-only file system", "Permission denied", "Read-only file system"])
        same("root's on the disk", {file.stat().st_uid for file in place.iterdir()}, {0})
        s.remove_pod(pod)
        for file in place.glob("new-*"):
            file.unlink()
    mounted = pathlib.Path("/proc/self/mountinfo").read_text()
    check("/mapped/" not in mounted, f"left: {mounted}")
    pod = s.host_pod("unmapped")
    with refused(Code.INVALID_ARGUMENT, "/data", pod[0]):
        s.create(pod, "exit 0", mounts=[t.Mount(host_path=str(place), container_path="/data", uidMappings=one, gidMappings=one)])
    s.remove_pod(pod)


@case
def users_volumes_stay(s):
    """What lies in a volume, and is mounted in it, survives the container, also when nobody knows what was mounted for it"""
    needed(s)
    t = s.types
    place = s.dir / "shared-volume"
    place.mkdir()
    (place / "precious").write_text("yes")
    one = [t.IDMapping(host_id=FIRST, container_id=0, length=MANY)]
    mount = lambda *words: subprocess.run(["mount", *words], check=True)  # noqa: E731
    mount("--bind", place, place)
    mount("--make-shared", place)
    (place / "sub").mkdir()
    mount("-t", "tmpfs", "tmpfs", place / "sub")
    (place / "sub/kept").write_text("too")
    try:
        for forgotten in [False, True]:
            pod = pod_of(s, f"stays-{forgotten}")
            volume = dict(host_path=str(place), container_path="/data", uidMappings=one, gidMappings=one)
            container = s.create(pod, "exec sleep 1000", mounts=[
                t.Mount(**volume, propagation=t.PROPAGATION_HOST_TO_CONTAINER)])
            s.begin(container)
            same("read", s.exec(container, "cat", "/data/precious", "/data/sub/kept").stdout, b"yestoo")
            with refused(Code.INVALID_ARGUMENT, "Bidirectional"):
                s.create(pod, "exit 0", name="other", mounts=[t.Mount(**volume, propagation=t.PROPAGATION_BIDIRECTIONAL)])
            if forgotten:
                (s.dir / "root/containers-rw" / container / "mounts.json").unlink()
            s.remove_pod(pod)
            same("in the volume", (place / "precious").read_text() + (place / "sub/kept").read_text(), "yestoo")
            mounted = pathlib.Path("/proc/self/mountinfo").read_text()
            check("/mapped/" not in mounted and "/rootfs " not in mounted, f"left: {mounted}")
    finally:
        subprocess.run(["umount", "-R", place], check=False)


@case
def users_refusals(s):
    """Two mappings, none, namespaces of the host, containers with other ids than their pod's; nothing is left behind"""
    needed(s)
    t = s.types
    before = {pod.id for pod in s.pods()}
    two = t.UserNamespace(mode=t.POD, uids=[t.IDMapping(host_id=1000 * n, container_id=n, length=1) for n in range(2)])
    bad = [(two, "uids"), (t.UserNamespace(mode=t.POD), "uids"), (user(s, length=0), "uids"), (user(s, container=1), "uids"),
           (t.UserNamespace(mode=t.CONTAINER), "mode"), (user(s, host=2**32 - 1), "uids")]
    for options, word in bad:
        with refused(Code.INVALID_ARGUMENT, word):
            s.host_pod("users-bad", userns_options=options, network=t.POD)
    for kind in ["network", "pid", "ipc"]:
        modes = {"network": t.POD, "pid": t.CONTAINER, kind: t.NODE}
        with refused(Code.INVALID_ARGUMENT, kind):
            s.host_pod("users-bad", userns_options=user(s), **modes)
    same("pods", {pod.id for pod in s.pods()}, before)
    pod = s.host_pod("users-node", userns_options=t.UserNamespace(mode=t.NODE))
    same("exit code", s.ended(s.run(pod, "exit 3")).exit_code, 3)
    s.remove_pod(pod)
    pod = pod_of(s, "users-other")
    other = t.PodSandboxConfig()
    other.CopyFrom(pod[1])
    other.linux.security_context.namespace_options.userns_options.CopyFrom(user(s, 300_000))
    with refused(Code.INVALID_ARGUMENT, pod[0]):
        s.create((pod[0], other), "exit 0")
    s.remove_pod(pod)


@case
def users_of_the_host(s):
    """Other users of the host find neither programs of images nor secrets of containers"""
    pod = s.host_pod("closed")
    container = s.run(pod, "exec sleep 1000", envs=[s.types.KeyValue(key="SECRET", value="hush-hush")])
    run, root = s.dir / "run/containers" / container, s.dir / "root"
    places = [run / "rootfs/bin/busybox", run / "config.json", root / "containers" / container / "container.json",
              root / "pods" / pod[0] / "pod.json", root / "images/records"]
    for place in places:
        check(place.exists(), f"{place} is there")
        for script in ["cat $0", "ls $0", "exec $0 id"]:
            nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script, place]
            tried = subprocess.run(nobody, capture_output=True)
            check(tried.returncode, f"{script} succeeds for nobody with {place}: {tried.stdout[:100]!r}")
    seen = subprocess.run(["grep", "-rl", "--exclude-dir=rootfs", "hush-hush", s.dir / "run", root], capture_output=True).stdout.decode().split()
    check(seen, "the secret is somewhere")
    same("modes of what has it", {oct(os.stat(path).st_mode & 0o077) for path in seen}, {"0o0"})
    s.remove_pod(pod)

