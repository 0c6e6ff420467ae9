"""Version, status, configuration."""

import ipaddress
import json
import signal
import subprocess

import grpc

from server import check, refused, same

from . import Code, case


@case
def version(s):
    """Version: the kubelet's API version, and our name"""
    answer = s.runtime.Version(s.types.VersionRequest())
    same("answer", (answer.version, answer.runtime_name, answer.runtime_api_version), ("0.1.0", "conward", "v1"))


@case
def authority(s):
    """Clients that say the socket's path, plain or percent-encoded, where others say localhost"""
    t = s.types
    encoded = str(s.socket).replace("/", "%2F")
    for name in (str(s.socket), encoded, "localhost"):
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", name)]
        with grpc.insecure_channel(f"unix://{s.socket}", options=options) as channel:
            runtime, images = s.stubs.RuntimeServiceStub(channel), s.stubs.ImageServiceStub(channel)
            # The second and later calls name it by its place in the table that both sides keep.
            for number in range(200):
                # Headers of their own push the first ones out of the table.
                more = [(f"x-{number}-{at}", "v" * 100) for at in range(10)]
                answer = runtime.Version(t.VersionRequest(), metadata=more, timeout=10)
                same(f"answer {number} to {name}", answer.runtime_name, "conward")
            check(images.ImageFsInfo(t.ImageFsInfoRequest(), timeout=10).image_filesystems, f"file systems for {name}")


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


@case
def relative_paths(s):
    """Relative paths on the command line are those of the caller, whatever directory monitors and runtimes are in"""
    words = [s.program, "config", "--root", "a/root", "--run", "run", "--socket", "x.sock"]
    text = subprocess.run(words, cwd=s.dir, capture_output=True, check=True).stdout.decode()
    for line in [f'root = "{s.dir}/a/root"', f'run = "{s.dir}/run"', f'socket = "{s.dir}/x.sock"']:
        check(line in text.splitlines(), f"{line} in {text}")
