//! From what containers and pods use to the messages of the CRI.

use std::path::Path;

use k8s_cri::v1::*;

use super::convert::number;
use crate::cgroup::Figures;
use crate::container::{self, Container, Layer};
use crate::sandbox::{self, Interface, Pod};

/// `files` is the file system that ImageFsInfo names: the writable layers are on the same.
pub fn container_stats(container: &Container, stats: &container::stats::Stats, files: &Path) -> ContainerStats {
    let record = &container.record;
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        cpu: Some(cpu(stats.at, &stats.used, stats.nano_cores)),
        memory: Some(memory(stats.at, &stats.used)),
        writable_layer: stats.layer.map(|layer| writable_layer(layer, files)),
        swap: swap(stats.at, &stats.used),
    }
}

fn cpu(timestamp: i64, used: &Figures, nano_cores: Option<u64>) -> CpuUsage {
    CpuUsage {
        timestamp,
        usage_core_nano_seconds: number(used.cpu.total),
        usage_nano_cores: nano_cores.and_then(number),
    }
}

fn memory(timestamp: i64, used: &Figures) -> MemoryUsage {
    let memory = &used.memory;
    MemoryUsage {
        timestamp,
        working_set_bytes: number(memory.working_set),
        // Without a limit the kubelet wants to hear nothing.
        available_bytes: memory.limit.and_then(|limit| number(limit.saturating_sub(memory.working_set))),
        usage_bytes: number(memory.usage),
        rss_bytes: number(memory.rss),
        page_faults: number(memory.faults),
        major_page_faults: number(memory.major_faults),
    }
}

fn swap(timestamp: i64, used: &Figures) -> Option<SwapUsage> {
    let usage = used.memory.swap?;
    let available = used.memory.swap_limit.map(|limit| limit.saturating_sub(usage));
    Some(SwapUsage { timestamp, swap_available_bytes: available.and_then(number), swap_usage_bytes: number(usage) })
}

fn writable_layer(layer: Layer, files: &Path) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: layer.at,
        fs_id: Some(FilesystemIdentifier { mountpoint: files.to_string_lossy().into_owned() }),
        used_bytes: number(layer.bytes),
        inodes_used: number(layer.inodes),
    }
}

pub fn pod_stats(pod: &Pod, stats: &sandbox::stats::Stats, files: &Path) -> PodSandboxStats {
    let containers = stats.containers.iter();
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: pod.record.id.clone(),
            metadata: pod.record.config.metadata.clone(),
            labels: pod.record.config.labels.clone(),
            annotations: pod.record.config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: Some(cpu(stats.at, &stats.used, stats.nano_cores)),
            memory: Some(memory(stats.at, &stats.used)),
            network: stats.network.as_deref().map(|interfaces| network(stats.at, interfaces)),
            process: Some(ProcessUsage { timestamp: stats.at, process_count: number(stats.processes) }),
            containers: containers.map(|(container, own)| container_stats(container, own, files)).collect(),
        }),
        windows: None,
    }
}

/// The default interface is that which CNI made, or the first.
fn network(timestamp: i64, interfaces: &[Interface]) -> NetworkUsage {
    let mut all: Vec<NetworkInterfaceUsage> = interfaces.iter().map(interface).collect();
    let default = all.iter().position(|interface| interface.name == crate::network::INTERFACE).unwrap_or(0);
    let default_interface = (default < all.len()).then(|| all.remove(default));
    NetworkUsage { timestamp, default_interface, interfaces: all }
}

fn interface(interface: &Interface) -> NetworkInterfaceUsage {
    NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: number(interface.received.bytes),
        rx_errors: number(interface.received.errors),
        tx_bytes: number(interface.sent.bytes),
        tx_errors: number(interface.sent.errors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_is_what_the_limit_leaves() {
        let mut used = Figures::default();
        used.memory.working_set = 30;
        assert_eq!(memory(1, &used).available_bytes, None);
        used.memory.limit = Some(100);
        assert_eq!(memory(1, &used).available_bytes, number(70));
        used.memory.limit = Some(10);
        assert_eq!(memory(1, &used).available_bytes, number(0));
        assert_eq!(swap(1, &used), None);
    }

    #[test]
    fn the_default_interface_is_not_among_the_others() {
        let named = |name: &str| Interface { name: name.to_owned(), ..Interface::default() };
        let usage = network(1, &[named("net1"), named("eth0")]);
        let others: Vec<&str> = usage.interfaces.iter().map(|one| one.name.as_str()).collect();
        assert_eq!((usage.default_interface.unwrap().name.as_str(), others), ("eth0", vec!["net1"]));
        assert_eq!(network(1, &[]).default_interface, None);
    }
}
