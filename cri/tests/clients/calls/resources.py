"""Limits, and what happens at them."""

import json
import pathlib
import re

from server import Skip, check, refused, same, until

from . import Code, case, each_handler


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
