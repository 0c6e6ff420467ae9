"""Every RPC of the CRI, called by an independent gRPC stack.

    every_rpc.py [WORD...]     cases whose name contains one of the words; --list shows them, KEEP=1 keeps a failure's files

Environment: CONWARD_CRI (program), CRI_PROTO (the CRI's definition). cri/tests/run starts it in namespaces of its own.
"""

import concurrent.futures
import contextlib
import ipaddress
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import grpc

from server import Server, Skip, check, main, refused, same, serving, until

CASES = []
Code = grpc.StatusCode
# The suite has a network of its own.
METRICS_ADDRESS = "127.0.0.1:9464"


def case(run):
    CASES.append(run)
    return run


def setup(scratch):
    return serving(scratch, f"metrics_address = '{METRICS_ADDRESS}'\n", busybox=True)


# ------------------------------------------------------------ the server itself


@case
def version(s):
    """Version: the kubelet's API version, and our name"""
    answer = s.runtime.Version(s.types.VersionRequest())
    same("answer", (answer.version, answer.runtime_name, answer.runtime_api_version), ("0.1.0", "conward", "v1"))


@case
def status(s):
    """Status: both conditions, handlers, features; verbose"""
    answer = s.runtime.Status(s.types.StatusRequest(verbose=True))
    same("conditions", {c.type: c.status for c in answer.status.conditions}, {"RuntimeReady": True, "NetworkReady": True})
    names = [handler.name for handler in answer.runtime_handlers]
    check(names[0] == "" and len(names) >= 2, f"handlers: {names}")
    check(answer.features.supplemental_groups_policy, "supplemental groups policy")
    check(json.loads(answer.info["config"])["config"]["root"], "verbose info")


@case
def runtime_config(s):
    """RuntimeConfig names the cgroup driver; UpdateRuntimeConfig gives pods another subnet, also after a restart"""
    t = s.types
    driver = s.runtime.RuntimeConfig(t.RuntimeConfigRequest()).linux.cgroup_driver
    same("driver", driver, t.CGROUPFS)

    def give(cidr):
        config = t.RuntimeConfig(network_config=t.NetworkConfig(pod_cidr=cidr))
        s.runtime.UpdateRuntimeConfig(t.UpdateRuntimeConfigRequest(runtime_config=config))

    def address(name):
        pod = s.pod(name)
        status = s.runtime.PodSandboxStatus(t.PodSandboxStatusRequest(pod_sandbox_id=pod[0])).status
        s.remove_pod(pod)
        return ipaddress.ip_address(status.network.ip)

    with refused(Code.INVALID_ARGUMENT, "10.99.0.0/33"):
        give("10.99.0.0/33")
    before = address("subnet-before")
    check(before not in ipaddress.ip_network("10.99.0.0/24"), f"{before} is of the subnet from before")
    give("10.99.0.0/24")
    check(address("subnet-given") in ipaddress.ip_network("10.99.0.0/24"), "the address is of the given subnet")
    s.stop(signal.SIGKILL)
    s.start()
    check(address("subnet-again") in ipaddress.ip_network("10.99.0.0/24"), "it is remembered")
    give("10.88.0.0/16")


@case
def checkpoint(s):
    """CheckpointContainer says clearly that it is not there"""
    with refused(Code.UNIMPLEMENTED, "heckpoint"):
        s.runtime.CheckpointContainer(s.types.CheckpointContainerRequest(container_id="x", location="/x"))


# ------------------------------------------------------------ images


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


# ------------------------------------------------------------ pods


@case
def pod_life(s):
    """Run, status, list, stop, remove; each of the last two again"""
    t = s.types
    config = s.pod_config("life", labels={"a": "b", "io.kubernetes.x": "ÿ"}, annotations={"n": "1\n2"})
    pod = s.runtime.RunPodSandbox(t.RunPodSandboxRequest(config=config)).pod_sandbox_id
    answer = s.runtime.PodSandboxStatus(t.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
    same("state", answer.status.state, t.SANDBOX_READY)
    same("labels", dict(answer.status.labels), dict(config.labels))
    same("annotations", dict(answer.status.annotations), dict(config.annotations))
    check(re.fullmatch(r"10\.\d+\.\d+\.\d+", answer.status.network.ip), f"address {answer.status.network.ip!r}")
    check(json.loads(answer.info["info"])["config"], "verbose info")
    selector = t.PodSandboxFilter(label_selector={"a": "b"})
    found = s.runtime.ListPodSandbox(t.ListPodSandboxRequest(filter=selector)).items
    same("by label", [item.id for item in found], [pod])
    for _ in range(2):
        s.runtime.StopPodSandbox(t.StopPodSandboxRequest(pod_sandbox_id=pod))
    state = s.runtime.PodSandboxStatus(t.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.state
    same("state", state, t.SANDBOX_NOTREADY)
    for _ in range(2):
        s.runtime.RemovePodSandbox(t.RemovePodSandboxRequest(pod_sandbox_id=pod))
    with refused(Code.NOT_FOUND, pod):
        s.runtime.PodSandboxStatus(t.PodSandboxStatusRequest(pod_sandbox_id=pod))


@case
def pod_again(s):
    """The same name: a retry joins, a second one is refused"""
    t = s.types
    config = s.pod_config("again")
    request = t.RunPodSandboxRequest(config=config)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        ids = {future.result().pod_sandbox_id for future in [pool.submit(s.runtime.RunPodSandbox, request) for _ in range(4)]}
    same("pods made", len(ids), 1)
    with refused(Code.ALREADY_EXISTS, "again"):
        s.runtime.RunPodSandbox(request)
    s.remove_pod(ids.pop())
    s.remove_pod(s.runtime.RunPodSandbox(request).pod_sandbox_id)


@case
def pod_namespaces(s):
    """POD, CONTAINER and NODE for network, pid and ipc; hostname; no pause process"""
    t = s.types
    pod = s.pod("spaces", hostname="some-host")
    first = s.run(pod, "exec sleep 1000", name="first")
    second = s.run(pod, "exec sleep 1000", name="second")
    links = {name: {kind: s.exec(c, "readlink", f"/proc/self/ns/{kind}").stdout for kind in ["net", "ipc", "uts", "mnt"]}
             for name, c in [("first", first), ("second", second)]}
    for kind in ["net", "ipc", "uts"]:
        same(f"{kind} shared", links["first"][kind], links["second"][kind])
        check(links["first"][kind].decode().strip() != os.readlink(f"/proc/self/ns/{kind}"), f"{kind} of its own")
    check(links["first"]["mnt"] != links["second"]["mnt"], "mounts of their own")
    same("hostname", s.exec(first, "hostname").stdout, b"some-host\n")
    host = s.host_pod("spaces-host", pid=t.NODE, ipc=t.NODE)
    on_host = s.run(host, "exec sleep 1000")
    for kind in ["net", "ipc", "pid"]:
        seen = s.exec(on_host, "readlink", f"/proc/self/ns/{kind}").stdout.decode().strip()
        same(f"{kind} of the host", seen, os.readlink(f"/proc/self/ns/{kind}"))
    s.remove_pod(pod)
    s.remove_pod(host)


@case
def pod_pid_namespace(s):
    """A pid namespace for the whole pod, and TARGET"""
    t = s.types
    pod = s.host_pod("pids", pid=t.POD)
    first = s.run(pod, "exec sleep 1111", name="first")
    second = s.run(pod, "exec sleep 2222", name="second")
    seen = s.exec(second, "ps", "-o", "args").stdout
    check(b"sleep 1111" in seen and b"sleep 2222" in seen, f"both see each other: {seen!r}")
    s.remove_pod(pod)
    pod = s.host_pod("target")
    first = s.run(pod, "exec sleep 3333", name="first")
    context = t.LinuxContainerSecurityContext()
    config = t.ContainerConfig(
        metadata=t.ContainerMetadata(name="debug"), image=t.ImageSpec(image="localhost/busybox"),
        command=["sleep", "4444"], log_path="debug.log", linux=t.LinuxContainerConfig(security_context=context))
    config.linux.security_context.namespace_options.CopyFrom(
        t.NamespaceOption(network=t.NODE, pid=t.TARGET, target_id=first))
    second = s.runtime.CreateContainer(t.CreateContainerRequest(pod_sandbox_id=pod[0], config=config, sandbox_config=pod[1])).container_id
    s.begin(second)
    check(b"sleep 3333" in s.exec(second, "ps", "-o", "args").stdout, "the target's processes are seen")
    s.remove_pod(pod)


@case
def pod_dns_and_sysctls(s):
    """resolv.conf from the request; sysctls of the pod"""
    t = s.types
    dns = t.DNSConfig(servers=["10.1.2.3"], searches=["a.b", "c"], options=["ndots:5"])
    linux = t.LinuxPodSandboxConfig(sysctls={"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1"})
    pod = s.pod("dns", dns_config=dns, linux=linux)
    container = s.run(pod, "exec sleep 1000")
    text = s.exec(container, "cat", "/etc/resolv.conf").stdout.decode()
    for line in ["nameserver 10.1.2.3", "search a.b c", "options ndots:5"]:
        check(line in text, f"{line!r} in {text!r}")
    same("net sysctl", s.exec(container, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start").stdout, b"77\n")
    same("ipc sysctl", s.exec(container, "cat", "/proc/sys/kernel/shm_rmid_forced").stdout, b"1\n")
    s.remove_pod(pod)


@case
def pod_ports(s):
    """A host port leads to the container"""
    t = s.types
    pod = s.pod("ports", port_mappings=[t.PortMapping(container_port=80, host_port=18080)])
    s.run(pod, ["sh", "-c", "mkdir /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www"])
    address = s.runtime.PodSandboxStatus(t.PodSandboxStatusRequest(pod_sandbox_id=pod[0])).status.network.ip
    for host, port in [(address, 80), ("127.0.0.1", 18080)]:
        until(lambda: get(host, port), f"{host}:{port} answers")
        check(b"hello" in get(host, port), f"{host}:{port}")
    s.remove_pod(pod)
    check(not get("127.0.0.1", 18080), "the port is free again")


def get(host, port):
    with contextlib.suppress(OSError):
        with socket.create_connection((host, port), 2) as link:
            link.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
            data = b""
            while chunk := link.recv(4096):
                data += chunk
            return data


@case
def pod_refusals(s):
    """Unknown handler, missing names"""
    t = s.types
    with refused(Code.INVALID_ARGUMENT, "nonsense"):
        s.pod("handler", "nonsense")
    with refused(Code.INVALID_ARGUMENT, "metadata"):
        s.runtime.RunPodSandbox(t.RunPodSandboxRequest(config=t.PodSandboxConfig()))
    same("left behind", [pod.metadata.name for pod in s.pods() if pod.metadata.name == "handler"], [])


@case
def handlers(s):
    """runc and crun as handlers, each with a container; a removed pod leaves no cgroup; others are refused"""
    known = {handler.name for handler in s.runtime.Status(s.types.StatusRequest()).runtime_handlers} - {""}
    with refused(Code.INVALID_ARGUMENT, "nonsense", *known):
        s.host_pod("handler-nonsense", "nonsense")
    for name in ["runc", "crun"]:
        if name not in known:
            raise Skip(f"{name} is not installed")
        pod = s.host_pod(f"handler-{name}", name)
        same("handler", [p.runtime_handler for p in s.pods() if p.id == pod[0]], [name])
        same("exit code", s.ended(s.run(pod, "exit 7")).exit_code, 7)
        # Its processes are all over the cgroup when it is removed.
        s.run(pod, "n=0; while [ $n -lt 20 ]; do sleep 1000 & n=$((n+1)); done; wait", name="many")
        check(cgroups(pod[0]), "the pod has a cgroup")
        s.remove_pod(pod)
        same("cgroups left", cgroups(pod[0]), [])


def cgroups(pod):
    root = pathlib.Path("/sys/fs/cgroup")
    return [str(path) for path in [root / "conward" / pod, *root.glob(f"*/conward/{pod}")] if path.exists()]


# ------------------------------------------------------------ containers


@case
def container_life(s):
    """Created, running, exited, gone; times, exit code, reasons"""
    t = s.types
    pod = s.host_pod("life")
    container = s.create(pod, "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done", labels={"k": "v"})
    status = s.status(container)
    same("state", (status.state, status.started_at, status.finished_at), (t.CONTAINER_CREATED, 0, 0))
    same("labels", dict(status.labels), {"k": "v"})
    s.begin(container)
    status = s.status(container)
    same("state", status.state, t.CONTAINER_RUNNING)
    check(status.started_at >= status.created_at, "started after created")
    until(lambda: s.said(container) == b"up\n", "it says something")
    s.end(container, 10)
    status = s.status(container)
    same("end", (status.state, status.exit_code, status.reason), (t.CONTAINER_EXITED, 9, "Error"))
    check(status.finished_at >= status.started_at > 0, "finished after started")
    for _ in range(2):
        s.remove(container)
    with refused(Code.NOT_FOUND, container):
        s.status(container)
    well = s.ended(s.run(pod, "exit 0", name="well"))
    same("end", (well.exit_code, well.reason), (0, "Completed"))
    s.remove_pod(pod)


@case
def container_kill(s):
    """Stop with timeout 0, and of one that ignores the signal"""
    pod = s.host_pod("kill")
    container = s.run(pod, "exec sleep 1000", name="at-once")
    s.end(container, 0)
    same("exit code", s.status(container).exit_code, 137)
    stubborn = s.run(pod, "trap '' TERM; echo up; while :; do sleep 0.05; done", name="stubborn")
    until(lambda: s.said(stubborn), "it runs")
    began = time.monotonic()
    s.end(stubborn, 1)
    check(0.9 < time.monotonic() - began < 10, "killed after the timeout")
    same("exit code", s.status(stubborn).exit_code, 137)
    s.end(stubborn, 1)
    s.remove_pod(pod)


@case
def container_stop_is_shortened(s):
    """A second stop shortens the first; status, logs, exec and reopening go on meanwhile"""
    t = s.types
    pod = s.host_pod("shorten")
    container = s.run(pod, "trap '' TERM; echo up; while :; do sleep 0.05; done")
    until(lambda: s.said(container), "it runs")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        long = pool.submit(s.end, container, 50)
        time.sleep(0.3)
        began = time.monotonic()
        same("state", s.status(container).state, t.CONTAINER_RUNNING)
        same("exec", s.exec(container, "true").exit_code, 0)
        s.runtime.ReopenContainerLog(t.ReopenContainerLogRequest(container_id=container), timeout=5)
        s.end(container, 0)
        long.result(10)
        check(time.monotonic() - began < 8, "all at once")
    s.remove_pod(pod)


@case
def container_unknown(s):
    """Unknown ids: stop and remove succeed, everything else says not found"""
    t = s.types
    s.end("nobody")
    s.remove("nobody")
    s.remove_pod("nobody")
    for call in [lambda: s.begin("nobody"), lambda: s.status("nobody"), lambda: s.exec("nobody", "true"),
                 lambda: s.runtime.ReopenContainerLog(t.ReopenContainerLogRequest(container_id="nobody")),
                 lambda: s.runtime.ContainerStats(t.ContainerStatsRequest(container_id="nobody")),
                 lambda: s.runtime.PodSandboxStats(t.PodSandboxStatsRequest(pod_sandbox_id="nobody")),
                 lambda: s.runtime.Exec(t.ExecRequest(container_id="nobody", cmd=["true"], stdout=True)),
                 lambda: s.runtime.Attach(t.AttachRequest(container_id="nobody", stdout=True)),
                 lambda: s.runtime.PortForward(t.PortForwardRequest(pod_sandbox_id="nobody"))]:
        with refused(Code.NOT_FOUND, "nobody"):
            call()


@case
def container_again(s):
    """The same name at the same time: one container"""
    pod = s.host_pod("same")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        ids = {future.result() for future in [pool.submit(s.create, pod, "exit 0") for _ in range(3)]}
    same("containers made", len(ids), 1)
    with refused(Code.ALREADY_EXISTS, "main"):
        s.create(pod, "exit 0")
    s.remove_pod(pod)


@case
def container_failures(s):
    """No such image, no such command: the runtime's own words, nothing left"""
    pod = s.host_pod("failures")
    with refused(Code.NOT_FOUND, "localhost/nothing"):
        s.create(pod, "exit 0", image="localhost/nothing")
    with refused(Code.UNKNOWN, "/no/such/program"):
        s.run(pod, ["/no/such/program"], name="missing")
    left = [c.metadata.name for c in s.containers() if c.pod_sandbox_id == pod[0]]
    check(left in ([], ["missing"]), f"left: {left}")
    s.remove_pod(pod)


def each_handler(s):
    """Names of the runtimes that are there: what a container may do must not depend on which it is."""
    names = [handler.name for handler in s.runtime.Status(s.types.StatusRequest()).runtime_handlers]
    return [name for name in names if name]


def secure(s, **fields):
    return s.types.LinuxContainerConfig(security_context=s.types.LinuxContainerSecurityContext(**fields))


def host_tools(s):
    """Mounts by which a container of busybox has the host's Python, for calls that no shell makes."""
    return [s.types.Mount(container_path=path, host_path=path, readonly=True) for path in ["/usr", "/lib", "/lib64"]]


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


@case
def container_memory(s):
    """Out of memory: 137 and OOMKilled"""
    t = s.types
    pod = s.host_pod("memory")
    linux = t.LinuxContainerConfig(resources=t.LinuxContainerResources(memory_limit_in_bytes=16 << 20))
    container = s.run(pod, ["sh", "-c", "x=a; while :; do x=$x$x; done"], linux=linux)
    status = s.ended(container)
    same("end", (status.exit_code, status.reason), (137, "OOMKilled"))
    s.remove_pod(pod)


@case
def container_update(s):
    """UpdateContainerResources: in the cgroup, and in the status"""
    t = s.types
    pod = s.host_pod("update")
    linux = t.LinuxContainerConfig(resources=t.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=100))
    container = s.run(pod, "exec sleep 1000", linux=linux)
    new = t.LinuxContainerResources(memory_limit_in_bytes=128 << 20)
    s.runtime.UpdateContainerResources(t.UpdateContainerResourcesRequest(container_id=container, linux=new))
    resources = s.status(container).resources.linux
    same("status", (resources.memory_limit_in_bytes, resources.cpu_shares), (128 << 20, 100))
    stats = s.runtime.ContainerStats(t.ContainerStatsRequest(container_id=container)).stats
    check(100 << 20 < stats.memory.available_bytes.value <= 128 << 20, f"available: {stats.memory}")
    s.remove_pod(pod)


@case
def container_resources(s):
    """Limits in the cgroup: no swap beside memory; oom_score_adj as far as may be; sizes of pages that nobody counts"""
    t = s.types
    capable = int(re.search(r"CapEff:\s*(\w+)", pathlib.Path("/proc/self/status").read_text())[1], 16) >> 24 & 1
    least = -1000 if capable else int(pathlib.Path("/proc/self/oom_score_adj").read_text())
    for handler in each_handler(s):
        pod = s.host_pod(f"resources-{handler}", handler)
        for name, wanted in [("high", 500), ("low", -900)]:
            linux = t.LinuxContainerConfig(resources=t.LinuxContainerResources(
                memory_limit_in_bytes=64 << 20, cpu_shares=300, cpu_quota=-1, cpuset_cpus="0", oom_score_adj=wanted,
                hugepage_limits=[t.HugepageLimit(page_size="2MB", limit=0)]))
            container = s.run(pod, "cat /proc/self/oom_score_adj; exec sleep 1000", name=name, linux=linux)
            until(lambda: s.said(container), "it says its score")
            same("score", int(s.said(container)), max(wanted, least))
            same("memory", cgroup(s, container, "memory", "memory.limit_in_bytes", "memory.max"), str(64 << 20))
            swap = cgroup(s, container, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
            check(swap in (str(64 << 20), "0"), f"memory and swap: {swap}")
            same("cpus", cgroup(s, container, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0")
            s.end(container)
        s.remove_pod(pod)


@case
def container_update_refusals(s):
    """UpdateContainerResources takes what a creation takes, changes the cgroup, and nothing else when it refuses"""
    t = s.types
    for handler in each_handler(s):
        pod = s.host_pod(f"update-{handler}", handler)
        linux = t.LinuxContainerConfig(resources=t.LinuxContainerResources(
            memory_limit_in_bytes=64 << 20, cpu_shares=100, cpu_quota=20000, cpu_period=100000,
            hugepage_limits=[t.HugepageLimit(page_size="2MB", limit=0)]))
        container = s.create(pod, "exec sleep 1000", linux=linux)

        def update(**fields):
            resources = t.LinuxContainerResources(**fields)
            s.runtime.UpdateContainerResources(t.UpdateContainerResourcesRequest(container_id=container, linux=resources))

        update(cpu_shares=200)
        s.begin(container)
        update(memory_limit_in_bytes=128 << 20, cpu_quota=30000)
        for fields, word in [(dict(cpu_period=5), "cpu_period"), (dict(memory_limit_in_bytes=-7), "memory_limit"),
                             (dict(memory_limit_in_bytes=8 << 20, memory_swap_limit_in_bytes=4 << 20), "swap"),
                             (dict(cpuset_cpus="x"), "cpuset_cpus")]:
            with refused(Code.INVALID_ARGUMENT, word):
                update(**fields)
        resources = s.status(container).resources.linux
        same("status", (resources.memory_limit_in_bytes, resources.cpu_shares, resources.cpu_quota), (128 << 20, 200, 30000))
        same("cgroup", [cgroup(s, container, *names) for names in [
            ("memory", "memory.limit_in_bytes", "memory.max"), ("cpu", "cpu.shares", None), ("cpu", "cpu.cfs_quota_us", None)]],
             [str(128 << 20), "200", "30000"])
        with refused(Code.INVALID_ARGUMENT, "oom_score_adj"):
            s.create(pod, "exit 0", name="bad", linux=t.LinuxContainerConfig(resources=t.LinuxContainerResources(oom_score_adj=2000)))
        s.remove_pod(pod)


def cgroup(s, container, controller, file, unified):
    """A value of a container's cgroup, of either version."""
    pid = json.loads(s.runtime.ContainerStatus(s.types.ContainerStatusRequest(container_id=container, verbose=True)).info["info"])["pid"]
    for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, names, path = line.split(":", 2)
        if controller in names.split(","):
            return pathlib.Path(f"/sys/fs/cgroup/{controller}{path}/{file}").read_text().strip()
        if number == "0" and unified and pathlib.Path(f"/sys/fs/cgroup{path}/{unified}").exists():
            return pathlib.Path(f"/sys/fs/cgroup{path}/{unified}").read_text().strip()
    raise Skip(f"no {controller} of cgroup v1")


@case
def container_log(s):
    """The CRI's log format: both streams, partial lines, a terminal; reopening"""
    t = s.types
    pod = s.host_pod("log")
    container = s.run(pod, "echo out; echo err >&2; printf partial; read -r x; echo after", stdin=True)
    until(lambda: s.said(container).count(b"partial"), "all is said")
    path = pathlib.Path(s.status(container).log_path)
    stamp = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) "
    lines = sorted(re.sub(stamp, b"", line) for line in path.read_bytes().splitlines())
    same("records", lines, [b"stderr F err", b"stdout F out", b"stdout P partial"])
    path.rename(path.with_suffix(".old"))
    s.runtime.ReopenContainerLog(t.ReopenContainerLogRequest(container_id=container))
    check(path.exists(), "a new file")
    s.end(container, 0)
    with refused(Code.FAILED_PRECONDITION, "not running"):
        s.runtime.ReopenContainerLog(t.ReopenContainerLogRequest(container_id=container))
    tty = s.run(pod, "tty; stty size", name="tty", tty=True)
    s.ended(tty)
    check(b"/dev/" in s.said(tty), "a terminal")
    s.remove_pod(pod)


@case
def container_lists(s):
    """ListContainers by id, beginning of an id, pod, state, label; oldest first"""
    t = s.types
    pod = s.host_pod("lists")
    made = s.create(pod, "exit 0", name="made", labels={"is": "made"})
    runs = s.run(pod, "exec sleep 1000", name="runs", labels={"is": "running"})
    over = s.run(pod, "exit 3", name="over")
    s.ended(over)

    def ids(**fields):
        request = t.ListContainersRequest(filter=t.ContainerFilter(**fields))
        return [c.id for c in s.runtime.ListContainers(request).containers]

    same("by pod", ids(pod_sandbox_id=pod[0]), [made, runs, over])
    same("by id", ids(id=runs), [runs])
    same("by a beginning", ids(id=runs[:13]), [runs])
    same("by state", ids(pod_sandbox_id=pod[0], state=t.ContainerStateValue(state=t.CONTAINER_EXITED)), [over])
    same("by label", ids(label_selector={"is": "made"}), [made])
    same("by a label that is not there", ids(label_selector={"is": "x"}), [])
    same("status by a beginning", s.status(runs[:13]).id, runs)
    s.remove_pod(pod)


# ------------------------------------------------------------ exec and streams


@case
def exec_sync(s):
    """ExecSync: exit code, both streams, user and environment of the container; not running"""
    t = s.types
    pod = s.host_pod("exec")
    container = s.run(pod, "exec sleep 1000", envs=[t.KeyValue(key="A", value="b")])
    answer = s.exec(container, "sh", "-c", "echo $A; echo err >&2; exit 42")
    same("answer", (answer.exit_code, answer.stdout, answer.stderr), (42, b"b\n", b"err\n"))
    with refused(Code.UNKNOWN, "/no/such"):
        s.exec(container, "/no/such")
    with refused(Code.INVALID_ARGUMENT):
        s.exec(container)
    s.end(container)
    with refused(Code.FAILED_PRECONDITION, "not running"):
        s.exec(container, "true")
    s.remove_pod(pod)


@case
def exec_sync_limits(s):
    """ExecSync: a timeout kills the whole tree; output is capped; a background child delays nothing"""
    pod = s.host_pod("exec-limits")
    container = s.run(pod, "exec sleep 1000")
    began = time.monotonic()
    with refused(Code.DEADLINE_EXCEEDED, "timed out"):
        s.exec(container, "sh", "-c", "sleep 7777 & setsid sleep 8888 & sleep 9999", timeout=1)
    check(time.monotonic() - began < 8, "in time")
    left = s.exec(container, "ps", "-o", "args").stdout
    check(b"7777" not in left and b"8888" not in left and b"9999" not in left, f"left: {left!r}")
    answer = s.exec(container, "sh", "-c", "yes | head -c 40000000")
    check(answer.exit_code == 0 and 1 << 20 < len(answer.stdout) <= 16 << 20, f"{len(answer.stdout)} bytes")
    began = time.monotonic()
    same("background", s.exec(container, "sh", "-c", "sleep 5 & echo done").stdout, b"done\n")
    check(time.monotonic() - began < 4, "not waited for")
    s.remove_pod(pod)


@case
def urls(s):
    """Exec, Attach and PortForward answer with URLs on loopback that are good for once"""
    t = s.types
    pod = s.host_pod("urls")
    container = s.run(pod, "exec sleep 1000")
    answers = [s.runtime.Exec(t.ExecRequest(container_id=container, cmd=["true"], stdout=True)).url,
               s.runtime.Attach(t.AttachRequest(container_id=container, stdout=True)).url,
               s.runtime.PortForward(t.PortForwardRequest(pod_sandbox_id=pod[0], port=[80])).url]
    for url, kind in zip(answers, ["exec", "attach", "portforward"]):
        check(re.fullmatch(rf"http://127\.0\.0\.1:\d+/{kind}/[\w-]{{8,}}", url), url)
    same("different", len(set(answers)), 3)
    with refused(Code.INVALID_ARGUMENT):
        s.runtime.Exec(t.ExecRequest(container_id=container, cmd=["true"]))
    s.remove_pod(pod)


@case
def pod_user_namespaces(s):
    """User namespaces are refused, and not advertised, as long as there are none; nothing is left behind"""
    t = s.types
    handlers = s.runtime.Status(t.StatusRequest()).runtime_handlers
    same("advertised", [handler.name for handler in handlers if handler.features.user_namespaces], [])
    before = {pod.id for pod in s.pods()}
    one = t.IDMapping(host_id=100000, container_id=0, length=65536)
    user = t.UserNamespace(mode=t.POD, uids=[one], gids=[one])
    with refused(Code.UNIMPLEMENTED, "ser namespaces"):
        s.host_pod("userns", userns_options=user, network=t.POD)
    with refused(Code.INVALID_ARGUMENT, "uids"):
        s.host_pod("userns", userns_options=t.UserNamespace(mode=t.POD, gids=[one]), network=t.POD)
    same("pods", {pod.id for pod in s.pods()}, before)
    pod = s.host_pod("userns", userns_options=t.UserNamespace(mode=t.NODE))
    s.remove_pod(pod)


# ------------------------------------------------------------ figures and events


def own_stats(s, container):
    return s.runtime.ContainerStats(s.types.ContainerStatsRequest(container_id=container)).stats


def waits(path):
    """Shell: until there is a file."""
    return f"until [ -e {path} ]; do sleep 0.05; done"


def found(value, condition):
    return value if condition(value) else None


@case
def stats(s):
    """ContainerStats: a busy loop, 32 MiB of memory and faults are seen; limits; timestamps"""
    t = s.types
    pod = s.pod("stats")
    limits = t.LinuxContainerConfig(resources=t.LinuxContainerResources(memory_limit_in_bytes=256 << 20))
    idle = s.run(pod, f"{waits('/memory')}; x=$(head -c 33554432 /dev/zero | tr '\\0' a); touch /held; {waits('/burn')}; "
                      "while :; do :; done", labels={"x": "y"}, linux=limits, annotations={"a": "b"})
    calm = own_stats(s, idle)
    same("attributes", (calm.attributes.id, calm.attributes.metadata.name, dict(calm.attributes.labels),
                        dict(calm.attributes.annotations)), (idle, "main", {"x": "y"}, {"a": "b"}))
    now = time.time() * 1e9
    for part in [calm.cpu, calm.memory, calm.writable_layer]:
        check(abs(now - part.timestamp) < 60e9, f"timestamp {part.timestamp} at {now}")
    s.exec(idle, "touch", "/memory")
    until(lambda: s.exec(idle, "ls", "/held").exit_code == 0, "the memory is held")
    held = own_stats(s, idle)
    for field in ["usage_bytes", "working_set_bytes", "rss_bytes"]:
        grown = getattr(held.memory, field).value - getattr(calm.memory, field).value
        check(31 << 20 <= grown < 160 << 20, f"{field} grew by {grown}")
    check(held.memory.page_faults.value - calm.memory.page_faults.value >= 1000, f"faults {held.memory}")
    check(held.memory.HasField("major_page_faults"), "major faults")
    same("available", held.memory.available_bytes.value, (256 << 20) - held.memory.working_set_bytes.value)
    # Whatever the memory has cost is over.
    for _ in range(2):
        time.sleep(1)
        before = own_stats(s, idle)
    check(before.cpu.usage_nano_cores.value < 300_000_000, f"idle: {before.cpu}")
    s.exec(idle, "touch", "/burn")
    time.sleep(0.2)
    before = own_stats(s, idle)
    time.sleep(2)
    after = own_stats(s, idle)
    used = after.cpu.usage_core_nano_seconds.value - before.cpu.usage_core_nano_seconds.value
    passed = after.cpu.timestamp - before.cpu.timestamp
    # Two CPUs may have to be shared with others.
    check(0.2 * passed < used < 1.3 * passed, f"cpu: {used} ns in {passed} ns")
    check(200_000_000 < after.cpu.usage_nano_cores.value < 1_300_000_000, f"nano cores: {after.cpu}")
    free = s.run(pod, "exec sleep 1000", name="free")
    check(not own_stats(s, free).memory.HasField("available_bytes"), "nothing is available of no limit")
    s.remove_pod(pod)


@case
def stats_files(s):
    """ContainerStats: a file of 10 MiB in the writable layer, and its removal; measured only now and then"""
    t = s.types
    pod = s.host_pod("stats-files")
    container = s.run(pod, "exec sleep 1000")
    empty = own_stats(s, container).writable_layer
    check(empty.used_bytes.value < 1 << 20, f"empty: {empty}")
    usage = s.images.ImageFsInfo(t.ImageFsInfoRequest())
    same("file system", empty.fs_id.mountpoint, usage.container_filesystems[0].fs_id.mountpoint)
    check(usage.container_filesystems[0].timestamp > 0, "timestamp")
    s.exec(container, "sh", "-c", "dd if=/dev/zero of=/file bs=1M count=10; for n in 1 2 3 4 5; do echo >/small$n; done; sync")
    full = until(lambda: found(own_stats(s, container).writable_layer, lambda l: l.used_bytes.value >= 10 << 20),
                 "the file is seen", 30)
    check(full.used_bytes.value < 13 << 20, f"full: {full}")
    same("more inodes", full.inodes_used.value - empty.inodes_used.value, 6)
    same("measured once", own_stats(s, container).writable_layer.timestamp, full.timestamp)
    s.exec(container, "sh", "-c", "rm /file; sync")
    until(lambda: own_stats(s, container).writable_layer.used_bytes.value < 1 << 20, "the removal is seen", 30)
    s.remove_pod(pod)


@case
def stats_lists(s):
    """ListContainerStats by id, pod, label and nothing; created ones too, ended ones not; one that is unknown"""
    t = s.types
    pod, other = s.host_pod("stats-lists"), s.host_pod("stats-lists-2")
    made = s.create(pod, "exit 0", name="made", labels={"is": "made"})
    runs = s.run(pod, "exec sleep 1000", name="runs", labels={"is": "running", "all": "x"})
    over = s.run(pod, "dd if=/dev/zero of=/file bs=1M count=2; exit 3", name="over")
    apart = s.run(other, "exec sleep 1000", name="apart")
    s.ended(over)

    def ids(**fields):
        request = t.ListContainerStatsRequest(filter=t.ContainerStatsFilter(**fields))
        return [one.attributes.id for one in s.runtime.ListContainerStats(request).stats]

    same("by pod", ids(pod_sandbox_id=pod[0]), [made, runs])
    same("by id", ids(id=runs), [runs])
    same("by a beginning", ids(id=runs[:13]), [runs])
    same("by label", ids(label_selector={"is": "made"}), [made])
    same("by two labels", ids(label_selector={"is": "running", "all": "y"}), [])
    same("by another pod's id", ids(id=runs, pod_sandbox_id=other[0]), [])
    same("ended", ids(id=over), [])
    everything = [one.attributes.id for one in s.runtime.ListContainerStats(t.ListContainerStatsRequest()).stats]
    check({made, runs, apart} <= set(everything) and over not in everything, "without a filter")
    ended = own_stats(s, over)
    same("of an ended one", (ended.cpu.usage_core_nano_seconds.value, ended.memory.usage_bytes.value), (0, 0))
    check(ended.cpu.timestamp > 0 and ended.writable_layer.used_bytes.value >= 2 << 20, f"{ended}")
    with refused(Code.NOT_FOUND, "nobody"):
        own_stats(s, "nobody")
    with refused(Code.NOT_FOUND, "nobody"):
        s.runtime.PodSandboxStats(t.PodSandboxStatsRequest(pod_sandbox_id="nobody"))
    s.remove_pod(pod)
    s.remove_pod(other)


@case
def stats_vanishing(s):
    """Lists of stats and metrics go on while containers come and go"""
    t = s.types
    pod = s.host_pod("stats-vanishing")
    stays = s.run(pod, "exec sleep 1000", name="stays")
    over = threading.Event()
    lists, failures = [], []

    def look():
        while not over.is_set():
            try:
                seen = s.runtime.ListContainerStats(t.ListContainerStatsRequest(), timeout=10).stats
                lists.append(stays in [one.attributes.id for one in seen])
                pods = s.runtime.ListPodSandboxStats(t.ListPodSandboxStatsRequest(), timeout=10).stats
                lists.append(pod[0] in [one.attributes.id for one in pods])
                s.runtime.ListPodSandboxMetrics(t.ListPodSandboxMetricsRequest(), timeout=10)
            except grpc.RpcError as error:
                failures.append(error.details())

    looks = threading.Thread(target=look)
    looks.start()
    for number in range(8):
        container = s.run(pod, "exec sleep 1000", name=f"goes{number}")
        s.end(container)
        s.remove(container)
        short = s.host_pod(f"stats-short-{number}")
        s.remove_pod(short)
    over.set()
    looks.join()
    same("failures", failures, [])
    check(len(lists) > 8 and all(lists), f"{lists}")
    s.remove_pod(pod)


@case
def stats_pods(s):
    """PodSandboxStats: CPU and processes of all containers, those of ended ones too; filters; without a network"""
    t = s.types

    def of(pod):
        return s.runtime.PodSandboxStats(t.PodSandboxStatsRequest(pod_sandbox_id=pod[0])).stats

    def listed(**fields):
        request = t.ListPodSandboxStatsRequest(filter=t.PodSandboxStatsFilter(**fields))
        return [one.attributes.id for one in s.runtime.ListPodSandboxStats(request).stats]

    pod = s.pod("stats-pods", labels={"pods": "x"}, annotations={"a": "b"})
    empty = of(pod)
    same("interface of a pod without a process", empty.linux.network.default_interface.name, "eth0")
    same("processes", empty.linux.process.process_count.value, 0)
    one = s.run(pod, "sleep 1000 & sleep 1001 & exec sleep 1002", name="one")
    two = s.run(pod, "exec sleep 1000", name="two")
    until(lambda: of(pod).linux.process.process_count.value == 4, "four processes")
    burns = s.run(pod, "n=0; while [ $n -lt 300000 ]; do n=$((n+1)); done", name="burns")
    s.ended(burns, 60)
    before = of(pod)
    same("containers", [c.attributes.id for c in before.linux.containers], [one, two])
    of_those = sum(c.cpu.usage_core_nano_seconds.value for c in before.linux.containers)
    check(before.linux.cpu.usage_core_nano_seconds.value > of_those + 50_000_000, f"{before.linux.cpu} and {of_those}")
    check(before.linux.memory.usage_bytes.value >= sum(c.memory.rss_bytes.value for c in before.linux.containers), "memory")
    for part in [before.linux.cpu, before.linux.memory, before.linux.network, before.linux.process]:
        check(part.timestamp > 0, "a timestamp")
    same("attributes", (before.attributes.metadata.name, dict(before.attributes.labels), dict(before.attributes.annotations)),
         ("stats-pods", {"pods": "x"}, {"a": "b"}))
    same("by label", listed(label_selector={"pods": "x"}), [pod[0]])
    same("by id", listed(id=pod[0]), [pod[0]])
    same("by both", listed(id=pod[0], label_selector={"pods": "y"}), [])
    host = s.host_pod("stats-host")
    check(not of(host).linux.HasField("network"), "what goes through the host's network is not the pod's")
    check({pod[0], host[0]} <= {p.attributes.id for p in s.runtime.ListPodSandboxStats(t.ListPodSandboxStatsRequest()).stats},
          "without a filter")
    s.runtime.StopPodSandbox(t.StopPodSandboxRequest(pod_sandbox_id=pod[0]), timeout=60)
    stopped = of(pod)
    same("stopped", (stopped.attributes.id, stopped.linux.HasField("network"), list(stopped.linux.containers)), (pod[0], False, []))
    same("stopped is not listed", listed(id=pod[0]), [])
    s.remove_pod(pod)
    s.remove_pod(host)


@case
def stats_network(s):
    """Bytes that go from pod to pod are counted at both ends, in stats and metrics"""
    t = s.types
    receives, sends = s.pod("receives"), s.pod("sends")
    address = s.runtime.PodSandboxStatus(t.PodSandboxStatusRequest(pod_sandbox_id=receives[0])).status.network.ip

    def link(pod):
        usage = s.runtime.PodSandboxStats(t.PodSandboxStatsRequest(pod_sandbox_id=pod[0])).stats.linux.network
        same("the others", [i.name for i in usage.interfaces if i.name in ("lo", "eth0")], [])
        return usage.default_interface

    before = link(receives), link(sends)
    # An end of its input would be an end of the connection.
    sink = s.run(receives, "mkfifo /open; exec 3<>/open; nc -l -p 9000 <&3 | wc -c")
    script = f"n=0; until head -c 3000000 /dev/zero | nc {address} 9000; do n=$((n+1)); [ $n -lt 50 ] || exit 1; sleep 0.1; done"
    source = s.run(sends, script)
    same("the sender's end", s.ended(source).exit_code, 0)
    s.ended(sink)
    same("what came", s.said(sink), b"3000000\n")
    after = link(receives), link(sends)
    for what, old, new in [("received", before[0].rx_bytes, after[0].rx_bytes), ("sent", before[1].tx_bytes, after[1].tx_bytes)]:
        check(3_000_000 <= new.value - old.value < 3_600_000, f"{what}: {old.value} {new.value}")
    check(after[1].rx_bytes.value < 1_000_000 and after[0].tx_bytes.value < 1_000_000, f"the other way: {after}")
    same("errors", (after[0].rx_errors.value, after[1].tx_errors.value, after[0].HasField("tx_errors")), (0, 0, True))
    all_pods = {p.pod_sandbox_id: p for p in s.runtime.ListPodSandboxMetrics(t.ListPodSandboxMetricsRequest()).pod_metrics}
    for pod, name in [(receives, "container_network_receive_bytes_total"), (sends, "container_network_transmit_bytes_total")]:
        values = [m.value.value for m in all_pods[pod[0]].metrics if m.name == name]
        check(len(values) == 1 and values[0] > 3_000_000, f"{name}: {values}")
    s.remove_pod(receives)
    s.remove_pod(sends)


# What Kubernetes has from cAdvisor: every node must have these.
METRICS = """
cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total cpu_system_seconds_total
cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes
fs_usage_bytes last_seen memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file
memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes memory_working_set_bytes network_receive_bytes_total
network_receive_errors_total network_receive_packets_dropped_total network_receive_packets_total
network_transmit_bytes_total network_transmit_errors_total network_transmit_packets_dropped_total
network_transmit_packets_total oom_events_total processes sockets spec_cpu_period spec_cpu_quota spec_cpu_shares
spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads
threads_max ulimits_soft
""".split()

# What depends on devices and the kernel.
METRICS_SOMETIMES = """
blkio_device_usage_total fs_reads_bytes_total fs_reads_total fs_writes_bytes_total fs_writes_total
hugetlb_max_usage_bytes hugetlb_usage_bytes pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total
pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total
pressure_memory_waiting_seconds_total
""".split()


@case
def stats_handlers(s):
    """Every runtime's cgroups are found"""
    names = [handler.name for handler in s.runtime.Status(s.types.StatusRequest()).runtime_handlers if handler.name]
    check(names, "handlers")
    for name in names:
        pod = s.host_pod(f"stats-{name}", handler=name)
        container = s.run(pod, "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; exec sleep 1000")
        until(lambda: own_stats(s, container).cpu.usage_core_nano_seconds.value > 1_000_000, f"CPU with {name}")
        check(own_stats(s, container).memory.usage_bytes.value > 0, f"memory with {name}")
        of_pod = s.runtime.PodSandboxStats(s.types.PodSandboxStatsRequest(pod_sandbox_id=pod[0])).stats.linux
        same(f"processes with {name}", of_pod.process.process_count.value, 1)
        s.remove_pod(pod)


@case
def stats_many(s):
    """Lists of many containers with large writable layers do not wait for these, and other calls do not wait for lists"""
    t = s.types
    pod = s.host_pod("stats-many")
    script = "mkdir /d; cd /d; n=0; while [ $n -lt 2000 ]; do n=$((n+1)); : >$n; done; echo ready; exec sleep 1000"
    containers = [s.run(pod, script, name=f"one{number}") for number in range(10)]
    until(lambda: all(b"ready" in s.said(container) for container in containers), "all files", 60)
    ask = t.ListContainerStatsRequest(filter=t.ContainerStatsFilter(pod_sandbox_id=pod[0]))
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        began = time.monotonic()
        lists = [pool.submit(s.runtime.ListContainerStats, ask, timeout=20) for _ in range(20)]
        versions = []
        while not all(one.done() for one in lists):
            start = time.monotonic()
            s.runtime.Version(t.VersionRequest(), timeout=5)
            versions.append(time.monotonic() - start)
        took = time.monotonic() - began
    check(all(len(one.result().stats) == 10 for one in lists), "all are in every list")
    check(took < 5, f"20 lists took {took:.2f} s")
    check(max(versions) < 1, f"a call waited for {max(versions):.2f} s")
    # The runtime adds what it mounts on.
    until(lambda: all(2001 <= one.writable_layer.inodes_used.value < 2100 for one in s.runtime.ListContainerStats(ask).stats),
          "all layers are measured", 30)
    s.remove_pod(pod)


@case
def metrics(s):
    """ListMetricDescriptors and ListPodSandboxMetrics agree; every value is that of the container"""
    t = s.types
    pod = s.pod("metrics")
    resources = t.LinuxContainerResources(cpu_period=100000, cpu_quota=50000, cpu_shares=512,
                                          memory_limit_in_bytes=64 << 20, memory_swap_limit_in_bytes=64 << 20)
    began = time.time()
    container = s.run(pod, "dd if=/dev/zero of=/file bs=1M count=10; sleep 1000 & while :; do :; done",
                      linux=t.LinuxContainerConfig(resources=resources))
    known = s.runtime.ListMetricDescriptors(t.ListMetricDescriptorsRequest()).descriptors
    same("names", sorted(d.name for d in known), sorted("container_" + n for n in METRICS + METRICS_SOMETIMES))
    check(all(d.help for d in known), "help")
    keys = {d.name: list(d.label_keys) for d in known}

    def seen():
        """Metrics of the container and of the pod, by name and labels."""
        all_pods = s.runtime.ListPodSandboxMetrics(t.ListPodSandboxMetricsRequest()).pod_metrics
        (own,) = [p for p in all_pods if p.pod_sandbox_id == pod[0]]
        same("containers", [c.container_id for c in own.container_metrics], [container])
        parts = []
        for rows in [own.container_metrics[0].metrics, own.metrics]:
            part = {}
            for metric in rows:
                same(f"labels of {metric.name}", len(metric.label_values), len(keys[metric.name]))
                labels = dict(zip(keys[metric.name], metric.label_values))
                same(f"{metric.name} of this pod", (labels["namespace"], labels["pod"]), ("default", "metrics"))
                part.setdefault(metric.name.removeprefix("container_"), []).append((labels, metric.value.value, metric.metric_type))
            parts.append(part)
        return parts

    def value(part, name):
        return part[name][0][1]

    # The kubelet refuses everything when one metric comes twice: here are two pods in one cgroup.
    shared = [s.pod("metrics-shared", linux=t.LinuxPodSandboxConfig(cgroup_parent="/conward-shared-cgroup")) for _ in range(2)]
    for twin in shared:
        s.run(twin, "exec sleep 1000")
    all_pods = s.runtime.ListPodSandboxMetrics(t.ListPodSandboxMetricsRequest()).pod_metrics
    rows = [(m.name, *m.label_values) for p in all_pods for part in [p, *p.container_metrics] for m in part.metrics]
    same("metrics that come twice", [row for row in rows if rows.count(row) > 1] if len(set(rows)) < len(rows) else [], [])
    twins = [p for p in all_pods if p.pod_sandbox_id in {twin[0] for twin in shared}]
    wholes = [m for p in twins for m in p.metrics if m.name == "container_memory_usage_bytes"]
    same("figures of the cgroup of both", [dict(zip(keys[m.name], m.label_values))["id"] for m in wholes], ["/conward-shared-cgroup"])
    for twin in shared:
        s.remove_pod(twin)
    for hierarchy in pathlib.Path("/sys/fs/cgroup").iterdir():
        with contextlib.suppress(OSError):
            (hierarchy / "conward-shared-cgroup").rmdir()
    until(lambda: value(seen()[0], "cpu_usage_seconds_total") >= 1, "a second of CPU", 60)
    until(lambda: value(seen()[0], "fs_usage_bytes") >= 10 << 20, "the file", 30)
    of_container, of_pod = seen()
    same("missing", [n for n in METRICS if n not in of_container and n not in of_pod], [])
    labels = of_container["memory_rss"][0][0]
    same("labels", (labels["container"], labels["name"], labels["image"]), ("main", container, "localhost/busybox:latest"))
    check(labels["id"].endswith("/" + container), f"id {labels['id']}")
    for name, expected in [("spec_cpu_period", 100000), ("spec_cpu_quota", 50000), ("spec_memory_limit_bytes", 64 << 20),
                           ("processes", 2), ("threads", 2), ("oom_events_total", 0)]:
        same(name, value(of_container, name), expected)
    check(abs(value(of_container, "spec_cpu_shares") - 512) <= 13, f"shares {of_container['spec_cpu_shares']}")
    check(began - 2 <= value(of_container, "start_time_seconds") <= time.time() + 1, "start time")
    check(abs(value(of_container, "last_seen") - time.time()) < 10, "last seen")
    check(value(of_container, "cpu_cfs_periods_total") >= value(of_container, "cpu_cfs_throttled_periods_total") > 0, "throttled")
    check(value(of_container, "file_descriptors") >= 6, f"{of_container['file_descriptors']}")
    check(value(of_container, "fs_limit_bytes") > 100 << 20 and value(of_container, "fs_inodes_total") > 0, "file system")
    check(of_container["fs_usage_bytes"][0][0]["device"], "device")
    same("kinds", (of_container["cpu_usage_seconds_total"][0][2], of_container["memory_rss"][0][2]), (t.COUNTER, t.GAUGE))
    same("kinds of faults", {(l["failure_type"], l["scope"]) for l, _, _ in of_container["memory_failures_total"]},
         {(kind, scope) for kind in ("pgfault", "pgmajfault") for scope in ("container", "hierarchy")})
    # Sums over containers must not count a pod twice.
    for name in ["cpu_usage_seconds_total", "memory_working_set_bytes"]:
        same(f"container of a pod's {name}", {l["container"] for l, _, _ in of_pod[name]}, {""})
    same("interfaces", [(l["interface"], l["container"]) for l, _, _ in of_pod["network_receive_bytes_total"]], [("eth0", "POD")])
    s.remove_pod(pod)


@case
def metrics_oom(s):
    """A process that is killed for its memory is counted, while its container goes on"""
    t = s.types
    pod = s.host_pod("metrics-oom")
    linux = t.LinuxContainerConfig(resources=t.LinuxContainerResources(memory_limit_in_bytes=32 << 20))
    container = s.run(pod, "sh -c 'x=a; while :; do x=$x$x; done'; echo survived; exec sleep 1000", linux=linux)
    until(lambda: b"survived" in s.said(container), "the first is killed", 30)
    (own,) = [p for p in s.runtime.ListPodSandboxMetrics(t.ListPodSandboxMetricsRequest()).pod_metrics if p.pod_sandbox_id == pod[0]]
    kills = [m.value.value for m in own.container_metrics[0].metrics if m.name == "container_oom_events_total"]
    check(len(kills) == 1 and kills[0] >= 1, f"{kills}")
    s.remove_pod(pod)


@case
def metrics_of_server(s):
    """The server's own metrics: calls by method and code, how long they took, pods, containers, memory"""
    t = s.types

    def read():
        with urllib.request.urlopen(f"http://{METRICS_ADDRESS}/metrics", timeout=10) as answer:
            same("type", answer.headers["Content-Type"].split(";")[0], "application/openmetrics-text")
            text = answer.read().decode()
        check(text.endswith("# EOF\n"), text[-100:])
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def calls(figures, method, code):
        return figures.get(f'conward_rpc_calls_total{{service="RuntimeService",method="{method}",code="{code}"}}', 0)

    before = read()
    pod = s.host_pod("own-metrics")
    container = s.run(pod, "exec sleep 1000")
    for _ in range(3):
        with refused(Code.NOT_FOUND):
            s.status("nobody")
    after = read()
    for method, code, more in [("CreateContainer", "OK", 1), ("ContainerStatus", "NOT_FOUND", 3), ("RunPodSandbox", "OK", 1)]:
        same(f"{method} {code}", calls(after, method, code) - calls(before, method, code), more)
    for name, more in [("pods_ready", 1), ("containers_running", 1), ("monitors", 1)]:
        same(name, after[f"conward_{name}"] - before[f"conward_{name}"], more)
    took = 'conward_rpc_seconds_%s{service="RuntimeService",method="CreateContainer"}'
    check(after[took % "sum"] > before.get(took % "sum", 0), "time of CreateContainer")
    same("count", after[took % "count"] - before.get(took % "count", 0), 1)
    status = (pathlib.Path("/proc") / str(s.process.pid) / "status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024
    check(0.5 * resident < after["process_resident_memory_bytes"] < 2 * resident, f"{resident}")
    check(0 < after["conward_private_memory_bytes"] <= after["process_resident_memory_bytes"], "private memory")
    with contextlib.suppress(grpc.RpcError):
        s.images.PullImage(t.PullImageRequest(image=t.ImageSpec(image="localhost:1/none:1")), timeout=20)
    failed = {name: n for name, n in read().items() if name.startswith("conward_image_pulls_total") and "OK" not in name}
    same("failed pulls", sum(failed.values()) - sum(before.get(name, 0) for name in failed), 1)
    s.remove(container)
    s.remove_pod(pod)
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://{METRICS_ADDRESS}/other", timeout=10)
        raise AssertionError("only /metrics is there")


class Listener:
    """A client of GetContainerEvents. It reads all the time, or only when told to."""

    def __init__(self, s, reads=True):
        self.stream = s.runtime.GetContainerEvents(s.types.GetEventsRequest())
        self.seen, self.go = [], threading.Event()
        if reads:
            self.go.set()
        threading.Thread(target=self.listen, daemon=True).start()
        time.sleep(0.3)

    def listen(self):
        self.go.wait()
        with contextlib.suppress(grpc.RpcError):
            for event in self.stream:
                self.seen.append(event)

    def of(self, container):
        return [event for event in self.seen if event.container_id == container]


@case
def events(s):
    """GetContainerEvents: a life as it happens, with the state of the whole pod, for several clients"""
    t = s.types
    listeners = [Listener(s) for _ in range(3)]
    pod = s.host_pod("events")
    other = s.run(pod, "exec sleep 1000", name="other")
    container = s.run(pod, "exit 5")
    s.ended(container)
    s.remove(container)
    s.remove_pod(pod)
    kinds = [t.CONTAINER_CREATED_EVENT, t.CONTAINER_STARTED_EVENT, t.CONTAINER_STOPPED_EVENT, t.CONTAINER_DELETED_EVENT]
    for listener in listeners:
        for one in [container, other, pod[0]]:
            until(lambda: [e.container_event_type for e in listener.of(one)] == kinds, f"all four events of {one}")
        times = [event.created_at for event in listener.of(container)]
        check(times == sorted(times) and times[0] > 0, f"{times}")
        for event in listener.of(container) + listener.of(other) + listener.of(pod[0]):
            same("pod in the event", (event.pod_sandbox_status.id, event.pod_sandbox_status.metadata.name), (pod[0], "events"))
        _, started, stopped, deleted = listener.of(container)
        same("containers at the end", {c.id: (c.state, c.exit_code, c.reason) for c in stopped.containers_statuses},
             {other: (t.CONTAINER_RUNNING, 0, ""), container: (t.CONTAINER_EXITED, 5, "Error")})
        check(all(c.started_at > 0 and c.image_ref and c.log_path for c in started.containers_statuses), "whole statuses")
        same("after the removal", [c.id for c in deleted.containers_statuses], [other])
        same("a pod that is gone", listener.of(pod[0])[-1].pod_sandbox_status.state, t.SANDBOX_NOTREADY)
        listener.stream.cancel()


@case
def events_slow(s):
    """GetContainerEvents: one who does not read holds nobody up, and still learns how everything ended"""
    t = s.types
    slow, quick = Listener(s, reads=False), Listener(s)
    pod = s.host_pod("events-slow")
    big = {"text": "x" * 200_000}
    containers = []
    for number in range(12):
        containers.append(s.run(pod, f"exit {number}", name=f"one{number}", annotations=big))
        s.ended(containers[-1])
    for container in containers[::2]:
        s.remove(container)
    until(lambda: all(quick.of(c) and quick.of(c)[-1].container_event_type >= t.CONTAINER_STOPPED_EVENT for c in containers), "the quick one has all", 30)
    same("the slow one has nothing", slow.seen, [])
    slow.go.set()
    until(lambda: len(slow.seen) >= len(quick.seen), "the slow one has caught up", 30)
    for number, container in enumerate(containers):
        last = slow.of(container)[-1]
        wanted = t.CONTAINER_STOPPED_EVENT if number % 2 else t.CONTAINER_DELETED_EVENT
        same("the last of each", last.container_event_type, wanted)
        (stopped,) = [e for e in slow.of(container) if e.container_event_type == t.CONTAINER_STOPPED_EVENT]
        same("exit code", [c.exit_code for c in stopped.containers_statuses if c.id == container], [number])
    slow.stream.cancel()
    quick.stream.cancel()
    s.remove_pod(pod)


# ------------------------------------------------------------ a server that ends


@case
def restart(s):
    """kill -9 and SIGTERM: containers go on, logs are whole, ends that happened meanwhile are known (C2)"""
    t = s.types
    pod = s.pod("restart")
    runs = s.run(pod, "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done", name="runs")
    ends = s.run(pod, "sleep 1; exit 21", name="ends")
    made = s.create(pod, "exit 4", name="made")
    address = s.runtime.PodSandboxStatus(t.PodSandboxStatusRequest(pod_sandbox_id=pod[0])).status.network.ip
    s.stop(signal.SIGKILL)
    time.sleep(1.5)
    s.start()
    same("ended meanwhile", (s.ended(ends).exit_code, s.status(runs).state), (21, t.CONTAINER_RUNNING))
    status = s.runtime.PodSandboxStatus(t.PodSandboxStatusRequest(pod_sandbox_id=pod[0])).status
    same("pod", (status.state, status.network.ip), (t.SANDBOX_READY, address))
    s.begin(made)
    same("started by the next", s.ended(made).exit_code, 4)
    same("SIGTERM", s.stop(), 0)
    s.start()
    same("exec", s.exec(runs, "echo", "x").stdout, b"x\n")
    s.end(runs, 0)
    numbers = [int(line) for line in s.said(runs).split()]
    same("log", numbers, list(range(1, len(numbers) + 1)))
    s.remove_pod(pod)


@case
def monitors(s):
    """One single-threaded monitor per container and no pause process; a shared pid namespace has a holder"""
    for mode, holders in [(s.types.CONTAINER, []), (s.types.POD, ["conward-hold"])]:
        pod = s.host_pod("tree", pid=mode)
        for name in ["one", "two"]:
            s.run(pod, "exec sleep 1000", name=name)
        of_pod = processes(s)
        programs = sorted(pathlib.Path(os.readlink(p / "exe")).name for p in of_pod)
        same("processes with the pod's directories", programs, ["conward", "conward", *holders])
        for process in of_pod:
            same("threads", len(list((process / "task").iterdir())), 1)
        s.remove_pod(pod)
        until(lambda: not processes(s), "they go with the pod")


def processes(s):
    own = str(s.dir / "run").encode()
    return [p for p in pathlib.Path("/proc").iterdir() if p.name.isdigit() and own in read(p / "cmdline")]


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    sys.exit(main(CASES, setup))
