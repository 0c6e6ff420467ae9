//! The families of metrics: names, labels, and where their values come from.

use k8s_cri::v1::MetricType;

use super::disk::{Disk, device};
use crate::cgroup::Figures;
use crate::cgroup::figures::{Io, Pressure, Waits};
use crate::container::{self, Container};
use crate::sandbox::Interface;

/// The values of a metric's own labels, and its value.
pub type Rows = Vec<(Vec<String>, u64)>;

pub struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricType,
    /// Besides those that all have.
    pub labels: &'static [&'static str],
    pub rows: Source,
}

#[derive(Clone, Copy)]
pub enum Source {
    /// Containers and whole pods.
    Used(fn(&Figures) -> Rows),
    Container(fn(&Container, &container::stats::Stats) -> Rows),
    Disk(fn(&Disk) -> Rows),
    WrittenTo(fn(&Disk, u64) -> Rows),
    Network(fn(&Interface) -> u64),
}

use MetricType::{Counter, Gauge};
use Source::{Container as OfContainer, Disk as OfDisk, Network as OfNetwork, Used, WrittenTo};

const SECOND: u64 = 1_000_000_000;

const fn family(
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    rows: Source,
) -> Family {
    Family { name, help, kind, labels, rows }
}

pub const FAMILIES: &[Family] = &[
    family(
        "container_blkio_device_usage_total",
        "Bytes read from and written to block devices",
        Counter,
        &["device", "major", "minor", "operation"],
        Used(blkio),
    ),
    family(
        "container_cpu_cfs_periods_total",
        "Periods of the CPU quota that have passed",
        Counter,
        &[],
        Used(|used| one(used.cpu.periods)),
    ),
    family(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the CPU quota was used up",
        Counter,
        &[],
        Used(|used| one(used.cpu.throttled_periods)),
    ),
    family(
        "container_cpu_cfs_throttled_seconds_total",
        "Time spent waiting for more CPU quota",
        Counter,
        &[],
        Used(|used| one(used.cpu.throttled / SECOND)),
    ),
    family(
        "container_cpu_system_seconds_total",
        "CPU time used in the kernel",
        Counter,
        &[],
        Used(|used| one(used.cpu.system / SECOND)),
    ),
    family(
        "container_cpu_usage_seconds_total",
        "CPU time used",
        Counter,
        &["cpu"],
        Used(|used| vec![(vec!["total".to_owned()], used.cpu.total / SECOND)]),
    ),
    family(
        "container_cpu_user_seconds_total",
        "CPU time used outside of the kernel",
        Counter,
        &[],
        Used(|used| one(used.cpu.user / SECOND)),
    ),
    family(
        "container_file_descriptors",
        "Files that the processes have open",
        Gauge,
        &[],
        OfContainer(|_, stats| stats.open.iter().flat_map(|open| one(open.processes.files)).collect()),
    ),
    family(
        "container_fs_inodes_free",
        "Free inodes of the file system below the container",
        Gauge,
        &["device"],
        OfDisk(|disk| on(disk, disk.free_inodes)),
    ),
    family(
        "container_fs_inodes_total",
        "Inodes of the file system below the container",
        Gauge,
        &["device"],
        OfDisk(|disk| on(disk, disk.inodes)),
    ),
    family(
        "container_fs_limit_bytes",
        "Size of the file system below the container",
        Gauge,
        &["device"],
        OfDisk(|disk| on(disk, disk.bytes)),
    ),
    family(
        "container_fs_reads_bytes_total",
        "Bytes read from devices",
        Counter,
        &["device"],
        Used(|used| devices(used, |io| io.read_bytes)),
    ),
    family(
        "container_fs_reads_total",
        "Reads from devices",
        Counter,
        &["device"],
        Used(|used| devices(used, |io| io.reads)),
    ),
    family("container_fs_usage_bytes", "Size of the writable layer", Gauge, &["device"], WrittenTo(on)),
    family(
        "container_fs_writes_bytes_total",
        "Bytes written to devices",
        Counter,
        &["device"],
        Used(|used| devices(used, |io| io.written_bytes)),
    ),
    family(
        "container_fs_writes_total",
        "Writes to devices",
        Counter,
        &["device"],
        Used(|used| devices(used, |io| io.writes)),
    ),
    family(
        "container_hugetlb_max_usage_bytes",
        "Most memory ever used in huge pages",
        Gauge,
        &["pagesize"],
        Used(|used| used.huge.iter().filter_map(|huge| Some((vec![huge.size.clone()], huge.peak?))).collect()),
    ),
    family(
        "container_hugetlb_usage_bytes",
        "Memory used in huge pages",
        Gauge,
        &["pagesize"],
        Used(|used| used.huge.iter().map(|huge| (vec![huge.size.clone()], huge.usage)).collect()),
    ),
    family(
        "container_last_seen",
        "When these figures were read, in seconds since 1970",
        Gauge,
        &[],
        OfContainer(|_, stats| one(seconds(stats.at))),
    ),
    family(
        "container_memory_cache",
        "Memory used for the contents of files",
        Gauge,
        &[],
        Used(|used| one(used.memory.cache)),
    ),
    family(
        "container_memory_failcnt",
        "Times that the memory limit was met",
        Counter,
        &[],
        Used(|used| one(used.memory.limit_hits)),
    ),
    family("container_memory_failures_total", "Page faults", Counter, &["failure_type", "scope"], Used(faults)),
    family(
        "container_memory_kernel_usage",
        "Memory that the kernel uses for the container",
        Gauge,
        &[],
        Used(|used| one(used.memory.kernel)),
    ),
    family(
        "container_memory_mapped_file",
        "Memory used for mapped files",
        Gauge,
        &[],
        Used(|used| one(used.memory.mapped)),
    ),
    family("container_memory_max_usage_bytes", "Most memory ever used", Gauge, &[], Used(|used| one(used.memory.peak))),
    family("container_memory_rss", "Memory used for anything but files", Gauge, &[], Used(|used| one(used.memory.rss))),
    family("container_memory_swap", "Swap used", Gauge, &[], Used(|used| one(used.memory.swap.unwrap_or(0)))),
    family(
        "container_memory_usage_bytes",
        "Memory used, whenever it was last accessed",
        Gauge,
        &[],
        Used(|used| one(used.memory.usage)),
    ),
    family(
        "container_memory_working_set_bytes",
        "Memory used without files that were not used lately",
        Gauge,
        &[],
        Used(|used| one(used.memory.working_set)),
    ),
    family(
        "container_network_receive_bytes_total",
        "Bytes received",
        Counter,
        &["interface"],
        OfNetwork(|link| link.received.bytes),
    ),
    family(
        "container_network_receive_errors_total",
        "Errors while receiving",
        Counter,
        &["interface"],
        OfNetwork(|link| link.received.errors),
    ),
    family(
        "container_network_receive_packets_dropped_total",
        "Received packets that were dropped",
        Counter,
        &["interface"],
        OfNetwork(|link| link.received.dropped),
    ),
    family(
        "container_network_receive_packets_total",
        "Packets received",
        Counter,
        &["interface"],
        OfNetwork(|link| link.received.packets),
    ),
    family(
        "container_network_transmit_bytes_total",
        "Bytes sent",
        Counter,
        &["interface"],
        OfNetwork(|link| link.sent.bytes),
    ),
    family(
        "container_network_transmit_errors_total",
        "Errors while sending",
        Counter,
        &["interface"],
        OfNetwork(|link| link.sent.errors),
    ),
    family(
        "container_network_transmit_packets_dropped_total",
        "Packets dropped instead of being sent",
        Counter,
        &["interface"],
        OfNetwork(|link| link.sent.dropped),
    ),
    family(
        "container_network_transmit_packets_total",
        "Packets sent",
        Counter,
        &["interface"],
        OfNetwork(|link| link.sent.packets),
    ),
    family(
        "container_oom_events_total",
        "Processes killed because memory had run out",
        Counter,
        &[],
        OfContainer(|_, stats| one(stats.used.memory.oom_kills)),
    ),
    family(
        "container_pressure_cpu_stalled_seconds_total",
        "Time that all tasks waited for CPU",
        Counter,
        &[],
        Used(|used| waits(used, |all| all.cpu, true)),
    ),
    family(
        "container_pressure_cpu_waiting_seconds_total",
        "Time that some task waited for CPU",
        Counter,
        &[],
        Used(|used| waits(used, |all| all.cpu, false)),
    ),
    family(
        "container_pressure_io_stalled_seconds_total",
        "Time that all tasks waited for devices",
        Counter,
        &[],
        Used(|used| waits(used, |all| all.io, true)),
    ),
    family(
        "container_pressure_io_waiting_seconds_total",
        "Time that some task waited for devices",
        Counter,
        &[],
        Used(|used| waits(used, |all| all.io, false)),
    ),
    family(
        "container_pressure_memory_stalled_seconds_total",
        "Time that all tasks waited for memory",
        Counter,
        &[],
        Used(|used| waits(used, |all| all.memory, true)),
    ),
    family(
        "container_pressure_memory_waiting_seconds_total",
        "Time that some task waited for memory",
        Counter,
        &[],
        Used(|used| waits(used, |all| all.memory, false)),
    ),
    family(
        "container_processes",
        "Processes",
        Gauge,
        &[],
        OfContainer(|_, stats| stats.open.iter().flat_map(|open| one(open.processes.count)).collect()),
    ),
    family(
        "container_sockets",
        "Sockets that the processes have open",
        Gauge,
        &[],
        OfContainer(|_, stats| stats.open.iter().flat_map(|open| one(open.processes.sockets)).collect()),
    ),
    family(
        "container_spec_cpu_period",
        "Microseconds after which the CPU quota is there again",
        Gauge,
        &[],
        OfContainer(|_, stats| one(stats.used.cpu.period)),
    ),
    family(
        "container_spec_cpu_quota",
        "Microseconds of CPU in each period",
        Gauge,
        &[],
        OfContainer(|_, stats| stats.used.cpu.quota.into_iter().flat_map(one).collect()),
    ),
    family(
        "container_spec_cpu_shares",
        "Share of the CPU",
        Gauge,
        &[],
        OfContainer(|_, stats| one(stats.used.cpu.shares)),
    ),
    family(
        "container_spec_memory_limit_bytes",
        "Memory limit, 0 for none",
        Gauge,
        &[],
        OfContainer(|_, stats| one(stats.used.memory.limit.unwrap_or(0))),
    ),
    family(
        "container_spec_memory_reservation_limit_bytes",
        "Memory that is kept for the container, 0 for none",
        Gauge,
        &[],
        OfContainer(|_, stats| one(stats.used.memory.reservation.unwrap_or(0))),
    ),
    family(
        "container_spec_memory_swap_limit_bytes",
        "Swap limit, 0 for none",
        Gauge,
        &[],
        OfContainer(|_, stats| one(stats.used.memory.swap_limit.unwrap_or(0))),
    ),
    family(
        "container_start_time_seconds",
        "When the container was started, in seconds since 1970",
        Gauge,
        &[],
        OfContainer(|container, _| one(started(container))),
    ),
    family(
        "container_threads",
        "Processes and their threads",
        Gauge,
        &[],
        OfContainer(|_, stats| one(stats.used.pids.tasks)),
    ),
    family(
        "container_threads_max",
        "Most processes and threads that there may be, 0 for any number",
        Gauge,
        &[],
        OfContainer(|_, stats| one(stats.used.pids.limit.unwrap_or(0))),
    ),
    family("container_ulimits_soft", "Soft limits of the first process", Gauge, &["ulimit"], OfContainer(soft_limits)),
];

fn one(value: u64) -> Rows {
    vec![(Vec::new(), value)]
}

fn on(disk: &Disk, value: u64) -> Rows {
    vec![(vec![disk.device.clone()], value)]
}

fn seconds(nanos: i64) -> u64 {
    u64::try_from(nanos).unwrap_or(0) / SECOND
}

fn started(container: &Container) -> u64 {
    let at = container.state().started_at;
    seconds(if at > 0 { at } else { container.record.created_at })
}

fn blkio(used: &Figures) -> Rows {
    let rows = |io: &Io| {
        let labels = |operation: &str| {
            vec![device(io.major, io.minor), io.major.to_string(), io.minor.to_string(), operation.to_owned()]
        };
        [(labels("Read"), io.read_bytes), (labels("Write"), io.written_bytes)]
    };
    used.io.iter().flat_map(rows).collect()
}

fn devices(used: &Figures, value: fn(&Io) -> u64) -> Rows {
    used.io.iter().map(|io| (vec![device(io.major, io.minor)], value(io))).collect()
}

fn faults(used: &Figures) -> Rows {
    let row = |kind: &str, scope: &str, value| (vec![kind.to_owned(), scope.to_owned()], value);
    let (minor, major) = (used.memory.faults, used.memory.major_faults);
    ["container", "hierarchy"]
        .iter()
        .flat_map(|scope| [row("pgfault", scope, minor), row("pgmajfault", scope, major)])
        .collect()
}

fn waits(used: &Figures, of: fn(&Pressure) -> Waits, all: bool) -> Rows {
    let Some(pressure) = &used.pressure else { return Vec::new() };
    let waits = of(pressure);
    one(if all { waits.full } else { waits.some } / SECOND)
}

fn soft_limits(_: &Container, stats: &container::stats::Stats) -> Rows {
    let limit = stats.open.as_ref().and_then(|open| open.soft_limit);
    limit.into_iter().map(|limit| (vec!["max_open_files".to_owned()], limit)).collect()
}
