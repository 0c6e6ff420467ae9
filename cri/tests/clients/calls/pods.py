"""Pods: their life, namespaces, network, names and handlers."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import socket

from server import Skip, check, refused, same, until

from . import Code, case


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
    # Who may trace the first process finds nothing of the host with it.
    tracer = s.types.LinuxContainerConfig(security_context=t.LinuxContainerSecurityContext(
        capabilities=t.Capability(add_capabilities=["SYS_PTRACE"])))
    script = ("cat /proc/1/comm; ls -A /proc/1/root/; (: >>/proc/1/root/x) 2>&1; (: >/proc/1/exe) 2>&1; ls /proc/1/fd | wc -l;"
              "grep -E 'Cap(Prm|Bnd)|NoNewPrivs' /proc/1/status")
    third = s.run(pod, script, name="third", linux=tracer)
    s.ended(third)
    lines = s.said(third).decode().splitlines()
    same("holder", (lines[0], [line.rsplit(": ", 1)[1] for line in lines[1:3]], lines[3]),
         ("conward-hold", ["Read-only file system", "Read-only file system"], "3"))
    same("its rights", [line.split()[1] for line in lines[4:]], ["0" * 16, "0" * 16, "1"])
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
