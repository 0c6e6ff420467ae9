"""Statistics and metrics."""

import concurrent.futures
import contextlib
import pathlib
import re
import threading
import time
import urllib.error
import urllib.request

import grpc

from server import check, refused, same, until

from . import Code, METRICS_ADDRESS, case


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
        # What the runtime's process had in there may still have been counted before.
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
