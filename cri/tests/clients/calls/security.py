"""Who a container's process is and what it may do."""

import json
import os
import pathlib
import socket

from server import Server, Skip, check, refused, same

from . import Code, case, each_handler, secure


@case
def container_process(s):
    """Environment, directory, arguments, users, read-only root, no new privileges, masked paths"""
    t = s.types
    for handler in each_handler(s):
        pod = s.host_pod(f"process-{handler}", handler)
        fields = dict(
            run_as_user=t.Int64Value(value=1234), run_as_group=t.Int64Value(value=4321), supplemental_groups=[55],
            readonly_rootfs=True, no_new_privs=True, capabilities=t.Capability(drop_capabilities=["ALL"]),
            seccomp=t.SecurityProfile(profile_type=t.SecurityProfile.RuntimeDefault))
        container = s.run(
            pod, ["sh", "-c", "echo $KEY $(pwd) $(id -u):$(id -g) $(id -G) $HOME $HOSTNAME", "--"], working_dir="/tmp/",
            envs=[t.KeyValue(key="KEY", value="a b")], linux=secure(s, **fields), name="user")
        s.ended(container)
        expected = f"a b /tmp 1234:4321 4321 55 / {socket.gethostname()}\n"
        same("what it sees", s.said(container).decode(), expected)
        user = s.status(container).user.linux
        same("user", (user.uid, user.gid, list(user.supplemental_groups)), (1234, 4321, [55, 4321]))
        quiet = s.run(pod, "touch /x; echo $?; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status", name="locked",
                      linux=secure(s, **fields))
        s.ended(quiet)
        text = s.said(quiet, "stdout").decode()
        for line in ["1\n", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]:
            check(line in text, f"{line!r} in {text!r}")
        s.remove_pod(pod)


@case
def container_paths(s):
    """Of /proc and /sys a container sees the usual, or what the request says"""
    t = s.types
    look = "wc -c </proc/keys; echo 1 >/proc/sys/kernel/printk; ls /sys/firmware | wc -l;" \
        "d=/sys/fs/cgroup; [ ! -d $d/pids ] || d=$d/pids; mkdir $d/x"
    for handler in each_handler(s):
        pod = s.host_pod(f"paths-{handler}", handler)
        for name, linux in [("none", None), ("said-nothing", secure(s))]:
            container = s.run(pod, look, linux=linux, name=name)
            s.ended(container)
            same("masked", s.said(container, "stdout"), b"0\n0\n")
            text = s.said(container, "stderr").decode()
            same(f"read-only: {text}", text.count("Read-only file system"), 2)
        own = s.run(pod, "cat /etc/passwd | wc -c; touch /home", name="own",
                    linux=secure(s, masked_paths=["/etc/passwd", "/no/such"], readonly_paths=["/home"]))
        s.ended(own)
        same("masked", s.said(own, "stdout"), b"0\n")
        check(b"Read-only" in s.said(own, "stderr"), "its own read-only path")
        s.remove_pod(pod)


# Calls by number on x86-64, and what they come to: 0 or an errno.


def host_tools(s):
    """Mounts by which a container of busybox has the host's Python, for calls that no shell makes."""
    return [s.types.Mount(container_path=path, host_path=path, readonly=True) for path in ["/usr", "/lib", "/lib64"]]


CALLS = """
import ctypes, os, subprocess, threading
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
subprocess.run(["/usr/bin/true"], check=True)
libc = ctypes.CDLL(None, use_errno=True)
def call(*words):
    ctypes.set_errno(0)
    value = libc.syscall(*words)
    if words[0] == 56 and value == 0:
        os._exit(0)
    return ctypes.get_errno()
print("keyctl", call(250, 0, -3, 0), "uring", call(425, 0, 0), "vsock", call(41, 40, 1, 0), "clone3", call(435, 0, 0),
      "mount", call(165, b"x", b"/tmp", b"tmpfs", 0, 0), "clone", call(56, 0x10000011, 0, 0, 0, 0),
      "unshare", call(272, 0x10000000), "sockets", call(41, 1, 1, 0), "unknown", call(9999))
"""


def calls(s, pod, name, **fields):
    container = s.run(pod, ["/usr/bin/python3", "-c", CALLS], mounts=host_tools(s), name=name, linux=secure(s, **fields))
    same(f"{name}: {s.said(container) if s.ended(container).exit_code else ''}", s.ended(container).exit_code, 0)
    words = s.said(container).split()
    return {name.decode(): int(value) for name, value in zip(words[::2], words[1::2])}


@case
def container_seccomp(s):
    """RuntimeDefault filters, with capabilities in mind; Unconfined and nothing do not; profiles by path"""
    t = s.types
    if os.uname().machine != "x86_64":
        raise Skip("the calls are those of x86_64")
    profile = t.SecurityProfile
    default = profile(profile_type=profile.RuntimeDefault)
    permitted = {"sockets": 0, "unknown": 38}
    for handler in each_handler(s):
        pod = s.host_pod(f"seccomp-{handler}", handler)
        seen = calls(s, pod, "default", seccomp=default)
        refusals = {"keyctl": 1, "uring": 1, "vsock": 1, "clone3": 38, "mount": 1, "clone": 1, "unshare": 1}
        same("by default", seen, refusals | permitted)
        admin = t.Capability(add_capabilities=["SYS_ADMIN"])
        seen = calls(s, pod, "admin", seccomp=default, capabilities=admin)
        expected = {"keyctl": 1, "uring": 1, "vsock": 1, "clone3": 22, "mount": 0, "clone": 0, "unshare": 0}
        same("with SYS_ADMIN", seen, expected | permitted)
        free = dict(seccomp=profile(profile_type=profile.Unconfined))
        for name, fields in [("free", free), ("silent", {})]:
            seen = calls(s, pod, name, **fields)
            same(name, {word: seen[word] for word in ["clone", "unshare", "clone3"]},
                 {"clone": 0, "unshare": 0, "clone3": 22})
            check(seen["vsock"] != 1, f"{name}: {seen}")
        old = s.run(pod, "grep Seccomp: /proc/self/status", name="old", linux=secure(s, seccomp_profile_path="runtime/default"))
        s.ended(old)
        same("by the deprecated field", s.said(old), b"Seccomp:\t2\n")
        plain, conditional = s.dir / "plain.json", s.dir / "conditional.json"
        rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}
        plain.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
        conditional.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "archMap": [], "syscalls": [
            rule | {"includes": {"caps": ["CAP_KILL"]}}, rule | {"names": ["chmod", "fchmodat"], "excludes": {"caps": ["CAP_KILL"]}}]}))
        for number, reference in enumerate([str(plain), f"localhost/{plain}", str(conditional)]):
            named = profile(profile_type=profile.Localhost, localhost_ref=reference)
            container = s.run(pod, "mkdir /x; chmod 755 /tmp", name=f"named{number}", linux=secure(s, seccomp=named))
            s.ended(container)
            said = s.said(container)
            check(b"mkdir" in said and b"uota exceeded" in said and b"chmod" not in said, f"{reference}: {said}")
        for reference, word in [("/no/such.json", "/no/such.json"), ("plain.json", "absolute"), ("", "no profile")]:
            named = profile(profile_type=profile.Localhost, localhost_ref=reference)
            with refused(Code.INVALID_ARGUMENT, word):
                s.create(pod, "exit 0", name="bad", linux=secure(s, seccomp=named))
        bad = s.dir / "bad.json"
        bad.write_text("{")
        with refused(Code.INVALID_ARGUMENT, str(bad)):
            s.create(pod, "exit 0", name="bad", linux=secure(
                s, seccomp=profile(profile_type=profile.Localhost, localhost_ref=str(bad))))
        s.remove_pod(pod)


@case
def container_default_seccomp(s):
    """A configured profile is what RuntimeDefault means"""
    t = s.types
    other = s.dir / "configured"
    other.mkdir()
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13, "excludes": {"arches": ["s390x"]}}
    (other / "profile.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    server = Server(s.program, other, (s.types, s.stubs), f"seccomp_profile = '{other}/profile.json'\n")
    server.import_busybox()
    server.start()
    try:
        pod = server.host_pod("configured")
        default = t.SecurityProfile(profile_type=t.SecurityProfile.RuntimeDefault)
        container = server.run(pod, "mkdir /x", linux=secure(s, seccomp=default))
        same("exit code", server.ended(container).exit_code, 1)
        check(b"Permission denied" in server.said(container), server.said(container))
        (other / "profile.json").unlink()
        with refused(Code.INVALID_ARGUMENT, "profile.json"):
            server.create(pod, "exit 0", name="gone", linux=secure(s, seccomp=default))
        server.clear()
    finally:
        server.stop()


@case
def container_users(s):
    """Users and groups by number and by name, of the request and the image; what cannot be is refused"""
    t = s.types
    number = lambda value: t.Int64Value(value=value)  # noqa: E731
    strict = t.SupplementalGroupsPolicy.Strict
    for handler in each_handler(s):
        pod = s.host_pod(f"users-{handler}", handler)
        for name, fields, expected in [
            ("root", {}, "0:0 0 /root"),
            ("number", dict(run_as_user=number(4242)), "4242:0 0 /"),
            ("group", dict(run_as_user=number(4242), run_as_group=number(7)), "4242:7 7 /"),
            ("name", dict(run_as_username="root", supplemental_groups=[9, 8]), "0:0 0 8 9 /root"),
            ("strict", dict(run_as_user=number(0), supplemental_groups=[9], supplemental_groups_policy=strict), "0:0 0 9 /root"),
        ]:
            container = s.run(pod, "echo $(id -u):$(id -g) $(id -G | tr ' ' '\\n' | sort -n) $HOME", name=name, linux=secure(s, **fields))
            s.ended(container)
            same(name, s.said(container).decode(), expected + "\n")
        for fields, word in [
            (dict(run_as_group=number(1)), "run_as_group"),
            (dict(run_as_user=number(-1)), "run_as_user is -1"),
            (dict(run_as_user=number(1 << 32)), "run_as_user is 4294967296"),
            (dict(run_as_user=number(1), run_as_group=number(-5)), "run_as_group is -5"),
            (dict(supplemental_groups=[1 << 40]), "supplemental_groups"),
            (dict(run_as_username="nobody-knows"), "nobody-knows"),
        ]:
            with refused(Code.INVALID_ARGUMENT, word):
                s.create(pod, "exit 0", name="refused", linux=secure(s, **fields))
        s.remove_pod(pod)


CAPS = "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status"


def masks(text):
    return {line.split()[0].decode().strip(":"): int(line.split()[1], 16) for line in text.splitlines()}


@case
def container_capabilities(s):
    """Added, dropped, ambient and unknown capabilities; never more than the server has"""
    t = s.types
    own = masks(b"\n".join(line for line in pathlib.Path("/proc/self/status").read_bytes().splitlines() if line.startswith(b"Cap")))
    kill, net_admin = 1 << 5, 1 << 12
    usual = sum(1 << bit for bit in [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31]) & own["CapBnd"]
    for handler in each_handler(s):
        pod = s.host_pod(f"caps-{handler}", handler)
        for name, lists, expected in [
            ("usual", {}, usual),
            ("added", dict(add_capabilities=["NET_ADMIN", "cap_kill"], drop_capabilities=["CAP_CHOWN"]), usual & ~1 | net_admin),
            ("only", dict(add_capabilities=["KILL"], drop_capabilities=["ALL"]), kill),
            ("all", dict(add_capabilities=["ALL"]), own["CapBnd"]),
            ("nothing", dict(drop_capabilities=["all"]), 0),
        ]:
            container = s.run(pod, CAPS, name=name, linux=secure(s, capabilities=t.Capability(**lists)))
            s.ended(container)
            seen = masks(s.said(container))
            same(name, {key: seen[key] for key in ["CapEff", "CapPrm", "CapBnd"]}, dict.fromkeys(["CapEff", "CapPrm", "CapBnd"], expected))
            same(f"{name}, inherited", (seen["CapInh"], seen["CapAmb"]), (0, 0))
        ambient = t.Capability(drop_capabilities=["ALL"], add_ambient_capabilities=["NET_ADMIN"])
        container = s.run(pod, CAPS, name="ambient", linux=secure(s, capabilities=ambient, run_as_user=t.Int64Value(value=7)))
        s.ended(container)
        same("ambient", set(masks(s.said(container)).values()), {net_admin})
        for field in ["add_capabilities", "drop_capabilities", "add_ambient_capabilities"]:
            with refused(Code.INVALID_ARGUMENT, "FLY"):
                s.create(pod, "exit 0", name="fly", linux=secure(s, capabilities=t.Capability(**{field: ["FLY"]})))
        s.remove_pod(pod)


@case
def container_privileged(s):
    """A privileged container has all capabilities, devices and no filter; only in a privileged pod"""
    t = s.types
    options = t.NamespaceOption(network=t.NODE, pid=t.CONTAINER)
    linux = t.LinuxPodSandboxConfig(
        security_context=t.LinuxSandboxSecurityContext(namespace_options=options, privileged=True))
    own = masks(b"\n".join(line for line in pathlib.Path("/proc/self/status").read_bytes().splitlines() if line.startswith(b"CapBnd")))
    default = t.SecurityProfile(profile_type=t.SecurityProfile.RuntimeDefault)
    for handler in each_handler(s):
        pod = s.pod(f"privileged-{handler}", handler, linux=linux)
        container = s.run(
            pod, "grep -E 'CapEff|Seccomp:' /proc/self/status; mount -t tmpfs x /tmp && echo may;"
            "mkdir /sys/fs/cgroup/pids/conward-x 2>/dev/null && rmdir /sys/fs/cgroup/pids/conward-x && echo cgroups;"
            "find /dev -type c -o -type b", linux=secure(s, privileged=True, seccomp=default,
                                                         masked_paths=["/proc/keys"], capabilities=t.Capability(drop_capabilities=["ALL"])))
        s.ended(container)
        text = s.said(container, "stdout").decode()
        check("Seccomp:\t0" in text and "may" in text, text)
        check(f"CapEff:\t{own['CapBnd']:016x}" in text, text)
        nodes = {str(path) for path in pathlib.Path("/dev").rglob("*") if not path.is_symlink()
                 and (path.is_char_device() or path.is_block_device()) and not str(path).startswith("/dev/pts/")}
        nodes -= {"/dev/console", "/dev/ptmx"}
        check("/dev/null" in nodes and nodes <= set(text.split()), f"missing: {sorted(nodes - set(text.split()))}")
        s.remove_pod(pod)
        plain = s.host_pod(f"unprivileged-{handler}", handler)
        with refused(Code.INVALID_ARGUMENT, "privileged"):
            s.create(plain, "exit 0", linux=secure(s, privileged=True))
        same("containers", [c for c in s.containers() if c.pod_sandbox_id == plain[0]], [])
        s.remove_pod(plain)
