//! Statistics and metrics as the CRI has them. The names of metrics are those of cAdvisor, in whose place they are
//! (KEP-2371).

use k8s_cri::v1::*;

use super::convert::number;
use crate::container::{self, Container};
use crate::figures::{Figures, Interface};
use crate::sandbox::{self, Pod};

pub fn of_container(container: &Container, stats: &container::stats::Stats, root: &str) -> ContainerStats {
    let config = &container.record.config;
    let written = &stats.written;
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: container.id().to_owned(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        cpu: cpu(stats.at, &stats.figures, stats.nano_cores),
        memory: memory(stats.at, &stats.figures),
        writable_layer: Some(FilesystemUsage {
            timestamp: written.at,
            fs_id: Some(FilesystemIdentifier { mountpoint: root.to_owned() }),
            used_bytes: number(written.bytes),
            inodes_used: number(written.inodes),
        }),
        swap: swap(stats.at, &stats.figures),
    }
}

pub fn of_pod(pod: &Pod, stats: &sandbox::Stats, root: &str) -> PodSandboxStats {
    let config = &pod.record.config;
    let containers = stats.containers.iter().map(|(container, own)| of_container(container, own, root)).collect();
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: pod.id().to_owned(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: cpu(stats.at, &stats.figures, stats.nano_cores),
            memory: memory(stats.at, &stats.figures),
            network: stats.interfaces.as_ref().map(|interfaces| network(stats.at, interfaces)),
            process: stats.figures.pids.map(|count| ProcessUsage { timestamp: stats.at, process_count: number(count) }),
            containers,
        }),
        windows: None,
    }
}

fn wrap(value: Option<u64>) -> Option<UInt64Value> {
    value.map(|value| UInt64Value { value })
}

fn cpu(at: i64, figures: &Figures, nano_cores: Option<u64>) -> Option<CpuUsage> {
    figures.cpu?;
    Some(CpuUsage { timestamp: at, usage_core_nano_seconds: wrap(figures.cpu), usage_nano_cores: wrap(nano_cores) })
}

fn memory(at: i64, figures: &Figures) -> Option<MemoryUsage> {
    figures.memory?;
    let available = figures.memory_limit.zip(figures.working_set).map(|(limit, used)| limit.saturating_sub(used));
    Some(MemoryUsage {
        timestamp: at,
        working_set_bytes: wrap(figures.working_set),
        available_bytes: wrap(available),
        usage_bytes: wrap(figures.memory),
        rss_bytes: wrap(figures.rss),
        page_faults: wrap(figures.faults),
        major_page_faults: wrap(figures.major_faults),
    })
}

fn swap(at: i64, figures: &Figures) -> Option<SwapUsage> {
    let used = figures.swap?;
    let available = figures.swap_limit.map(|limit| limit.saturating_sub(used));
    Some(SwapUsage { timestamp: at, swap_available_bytes: wrap(available), swap_usage_bytes: number(used) })
}

fn network(at: i64, interfaces: &[Interface]) -> NetworkUsage {
    let mut all = interfaces.iter().map(|interface| NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: number(interface.rx_bytes),
        rx_errors: number(interface.rx_errors),
        tx_bytes: number(interface.tx_bytes),
        tx_errors: number(interface.tx_errors),
    });
    // The first is the one that CNI made.
    NetworkUsage { timestamp: at, default_interface: all.next(), interfaces: all.collect() }
}

// ---------------------------------------------------------------- metrics

/// Labels that every metric has, in this order.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// A metric that a cgroup has one value of.
struct Row<T> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&T) -> Option<u64>,
}

const fn row<T>(name: &'static str, help: &'static str, kind: MetricType, value: fn(&T) -> Option<u64>) -> Row<T> {
    Row { name, help, kind, value }
}

const SECOND: u64 = 1_000_000_000;

use MetricType::{Counter, Gauge};

const CGROUP: [Row<Figures>; 13] = [
    row("container_cpu_usage_seconds_total", "Processor time used, in seconds", Counter, |f| Some(f.cpu? / SECOND)),
    row("container_cpu_user_seconds_total", "Of it in programs", Counter, |f| Some(f.cpu_user? / SECOND)),
    row("container_cpu_system_seconds_total", "Of it in the kernel", Counter, |f| Some(f.cpu_system? / SECOND)),
    row("container_cpu_cfs_periods_total", "Periods of the quota of processor time", Counter, |f| f.periods),
    row("container_cpu_cfs_throttled_periods_total", "Periods whose quota was used up", Counter, |f| f.throttled),
    row("container_memory_usage_bytes", "Memory in use, file pages included", Gauge, |f| f.memory),
    row("container_memory_working_set_bytes", "Memory in use that cannot be had back at once", Gauge, |f| {
        f.working_set
    }),
    row("container_memory_rss", "Memory of processes, in bytes", Gauge, |f| f.rss),
    row("container_memory_cache", "File pages, in bytes", Gauge, |f| f.cache),
    row("container_memory_swap", "Memory on swap devices, in bytes", Gauge, |f| f.swap),
    row("container_processes", "Processes and threads", Gauge, |f| f.pids),
    row("container_oom_events_total", "Processes killed for want of memory", Counter, |f| f.oom_kills),
    row("container_spec_memory_limit_bytes", "The limit of memory; 0: none", Gauge, |f| {
        f.memory?;
        Some(f.memory_limit.unwrap_or(0))
    }),
];

const NETWORK: [Row<Interface>; 8] = [
    row("container_network_receive_bytes_total", "Bytes received", Counter, |i| Some(i.rx_bytes)),
    row("container_network_receive_packets_total", "Packets received", Counter, |i| Some(i.rx_packets)),
    row("container_network_receive_errors_total", "Errors while receiving", Counter, |i| Some(i.rx_errors)),
    row("container_network_receive_packets_dropped_total", "Dropped when received", Counter, |i| Some(i.rx_dropped)),
    row("container_network_transmit_bytes_total", "Bytes sent", Counter, |i| Some(i.tx_bytes)),
    row("container_network_transmit_packets_total", "Packets sent", Counter, |i| Some(i.tx_packets)),
    row("container_network_transmit_errors_total", "Errors while sending", Counter, |i| Some(i.tx_errors)),
    row("container_network_transmit_packets_dropped_total", "Dropped when sent", Counter, |i| Some(i.tx_dropped)),
];

const FAULTS: &str = "container_memory_failures_total";
const WRITTEN: &str = "container_fs_usage_bytes";
const INODES: &str = "container_fs_inodes_used";
const STARTED: &str = "container_start_time_seconds";
const SEEN: &str = "container_last_seen";

/// All metrics that there are.
pub fn descriptors() -> Vec<MetricDescriptor> {
    let labelled = |name: &str, help: &str, more: &[&str]| MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS.iter().chain(more).map(|&key| key.to_owned()).collect(),
    };
    let cgroup = CGROUP.iter().map(|row| labelled(row.name, row.help, &[]));
    let network = NETWORK.iter().map(|row| labelled(row.name, row.help, &["interface"]));
    let others = [
        labelled(FAULTS, "Page faults", &["failure_type", "scope"]),
        labelled(WRITTEN, "Bytes in the writable layer", &["device"]),
        labelled(INODES, "Inodes in the writable layer", &["device"]),
        labelled(STARTED, "When it was started, in seconds since 1970", &[]),
        labelled(SEEN, "When it was looked at, in seconds since 1970", &[]),
    ];
    cgroup.chain(network).chain(others).collect()
}

pub fn metrics(pod: &Pod, stats: &sandbox::Stats, root: &str) -> PodSandboxMetrics {
    let book = Book { at: stats.at, labels: pod_labels(pod) };
    let mut own = book.cgroup(&stats.figures);
    for interface in stats.interfaces.iter().flatten() {
        own.extend(NETWORK.iter().filter_map(|row| {
            let value = (row.value)(interface)?;
            Some(book.metric(row.name, row.kind, &[&interface.name], value))
        }));
    }
    own.push(book.metric(SEEN, Gauge, &[], seconds(stats.at)));
    PodSandboxMetrics {
        pod_sandbox_id: pod.id().to_owned(),
        metrics: own,
        container_metrics: stats.containers.iter().map(|(container, own)| of_one(pod, container, own, root)).collect(),
    }
}

fn of_one(pod: &Pod, container: &Container, stats: &container::stats::Stats, root: &str) -> ContainerMetrics {
    let book = Book { at: stats.at, labels: container_labels(pod, container) };
    let mut metrics = book.cgroup(&stats.figures);
    metrics.extend([
        book.metric(WRITTEN, Gauge, &[root], stats.written.bytes),
        book.metric(INODES, Gauge, &[root], stats.written.inodes),
        book.metric(STARTED, Gauge, &[], seconds(container.state().started_at)),
        book.metric(SEEN, Gauge, &[], seconds(stats.at)),
    ]);
    ContainerMetrics { container_id: container.id().to_owned(), metrics }
}

fn seconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0) / SECOND
}

/// The pod as a whole has no container and no image.
fn pod_labels(pod: &Pod) -> Vec<String> {
    let metadata = pod.record.config.metadata.clone().unwrap_or_default();
    let none = String::new;
    vec![none(), pod.id().to_owned(), none(), pod.id().to_owned(), metadata.namespace, metadata.name]
}

fn container_labels(pod: &Pod, container: &Container) -> Vec<String> {
    let of_pod = pod.record.config.metadata.clone().unwrap_or_default();
    let config = &container.record.config;
    let name = config.metadata.clone().unwrap_or_default().name;
    let id = container.id().to_owned();
    vec![name, id.clone(), container.record.image_ref.clone(), id, of_pod.namespace, of_pod.name]
}

/// Whose metrics are made, and of when.
struct Book {
    at: i64,
    labels: Vec<String>,
}

impl Book {
    fn metric(&self, name: &str, kind: MetricType, more: &[&str], value: u64) -> Metric {
        let more = more.iter().map(|&value| value.to_owned());
        Metric {
            name: name.to_owned(),
            timestamp: self.at,
            metric_type: kind as i32,
            label_values: self.labels.iter().cloned().chain(more).collect(),
            value: number(value),
        }
    }

    fn cgroup(&self, figures: &Figures) -> Vec<Metric> {
        let rows = CGROUP.iter().filter_map(|row| Some((row, (row.value)(figures)?)));
        let mut metrics: Vec<Metric> = rows.map(|(row, value)| self.metric(row.name, row.kind, &[], value)).collect();
        for (kind, count) in [("pgfault", figures.faults), ("pgmajfault", figures.major_faults)] {
            metrics.extend(count.map(|count| self.metric(FAULTS, Counter, &[kind, "hierarchy"], count)));
        }
        metrics
    }
}
