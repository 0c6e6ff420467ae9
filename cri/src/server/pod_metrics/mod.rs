//! The metrics of pods and containers that the kubelet passes on instead of cAdvisor's, under cAdvisor's names.
//!
//! Each is defined once, with its labels and where its values come from, so that descriptors and metrics cannot differ.
//! Values are whole numbers (the CRI has no others), times among them in seconds.

mod disk;
mod families;

use std::collections::HashSet;
use std::sync::Arc;

use k8s_cri::v1::*;

use crate::cgroup::Cgroup;
use crate::container::{self, Container};
use crate::sandbox::{self, Pod};

pub use disk::Disk;
use families::{FAMILIES, Family, Source};

/// What all metrics have, in this order.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

pub fn descriptors() -> Vec<MetricDescriptor> {
    FAMILIES.iter().map(descriptor).collect()
}

fn descriptor(family: &Family) -> MetricDescriptor {
    MetricDescriptor {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        label_keys: LABELS.iter().chain(family.labels).map(|label| (*label).to_owned()).collect(),
    }
}

fn metric(family: &Family, base: &[String; 6], labels: Vec<String>, value: u64) -> Metric {
    Metric {
        name: family.name.to_owned(),
        // They are of now.
        timestamp: 0,
        metric_type: family.kind as i32,
        label_values: base.iter().cloned().chain(labels).collect(),
        value: crate::server::convert::number(value),
    }
}

/// All metrics. Pods that share a cgroup, as a pod and its restarted self may for a moment, have its figures once: the
/// kubelet refuses everything when one metric comes twice.
pub fn all(pods: &[(Arc<Pod>, sandbox::stats::Stats)], disk: &Disk, systemd: bool) -> Vec<PodSandboxMetrics> {
    let mut known = HashSet::new();
    let mut of = |pod: &Pod, stats: &sandbox::stats::Stats| {
        let cgroup = Cgroup::of_parent(&pod.record.cgroup_parent, systemd).to_string();
        let metadata = pod.record.config.metadata.clone().unwrap_or_default();
        let whole = known.insert((cgroup.clone(), metadata.namespace, metadata.name));
        let containers = stats.containers.iter();
        let containers = containers.map(|(container, own)| of_container(pod, container, own, disk, systemd));
        PodSandboxMetrics {
            pod_sandbox_id: pod.id().to_owned(),
            metrics: of_pod(pod, stats, cgroup, whole),
            container_metrics: containers.collect(),
        }
    };
    pods.iter().map(|(pod, stats)| of(pod, stats)).collect()
}

/// As cAdvisor has it, the figures of a whole pod name no container, so that sums over containers do not count them
/// twice, and its network belongs to `POD`.
fn of_pod(pod: &Pod, stats: &sandbox::stats::Stats, cgroup: String, with_figures: bool) -> Vec<Metric> {
    let network = base(pod, "POD", cgroup.clone(), "", pod.id());
    let whole = base(pod, "", cgroup, "", "");
    let mut all = Vec::new();
    for family in FAMILIES {
        match family.rows {
            Source::Used(rows) if with_figures => {
                all.extend(rows(&stats.used).into_iter().map(|(labels, value)| metric(family, &whole, labels, value)))
            }
            Source::Network(value) => {
                let links = stats.network.iter().flatten();
                all.extend(links.map(|link| metric(family, &network, vec![link.name.clone()], value(link))));
            }
            Source::Used(_) | Source::Container(_) | Source::Disk(_) | Source::WrittenTo(_) => {}
        }
    }
    all
}

fn of_container(
    pod: &Pod,
    container: &Container,
    stats: &container::stats::Stats,
    disk: &Disk,
    systemd: bool,
) -> ContainerMetrics {
    let record = &container.record;
    let name = record.config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    let image = record.config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
    let cgroup = Cgroup::of_container(&pod.record.cgroup_parent, container.id(), systemd).to_string();
    let base = base(pod, &name, cgroup, &image, container.id());
    let mut metrics = Vec::new();
    for family in FAMILIES {
        let rows = match family.rows {
            Source::Used(rows) => rows(&stats.used),
            Source::Container(rows) => rows(container, stats),
            Source::Disk(rows) => rows(disk),
            Source::WrittenTo(rows) => stats.layer.map(|layer| rows(disk, layer.bytes)).unwrap_or_default(),
            Source::Network(_) => Vec::new(),
        };
        metrics.extend(rows.into_iter().map(|(labels, value)| metric(family, &base, labels, value)));
    }
    ContainerMetrics { container_id: container.id().to_owned(), metrics }
}

/// The values of the labels that all have; cAdvisor's ids are the paths of cgroups.
fn base(pod: &Pod, container: &str, cgroup: String, image: &str, name: &str) -> [String; 6] {
    let metadata = pod.record.config.metadata.clone().unwrap_or_default();
    [container.to_owned(), cgroup, image.to_owned(), name.to_owned(), metadata.namespace, metadata.name]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_described_once() {
        let all = descriptors();
        let names: HashSet<&str> = all.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        for one in &all {
            assert!(one.name.starts_with("container_") && !one.help.is_empty(), "{one:?}");
            let keys: HashSet<&String> = one.label_keys.iter().collect();
            assert_eq!(keys.len(), one.label_keys.len(), "{one:?}");
        }
    }

    /// Labels have names and values in two places: this is where they meet.
    #[test]
    fn rows_have_a_value_for_every_label() {
        let mut used = crate::cgroup::Figures::default();
        used.io.push(crate::cgroup::figures::Io { major: 8, ..Default::default() });
        used.huge.push(crate::cgroup::figures::Huge { size: "2MB".into(), usage: 1, peak: Some(2) });
        used.pressure = Some(Default::default());
        let disk = Disk::of(std::path::Path::new("/"));
        assert!(disk.bytes > 0);
        for family in FAMILIES {
            let rows = match family.rows {
                Source::Used(rows) => rows(&used),
                Source::Disk(rows) => rows(&disk),
                Source::WrittenTo(rows) => rows(&disk, 1),
                // The whole program's test looks at these.
                Source::Container(_) | Source::Network(_) => continue,
            };
            assert!(!rows.is_empty(), "{}", family.name);
            assert!(rows.iter().all(|(labels, _)| labels.len() == family.labels.len()), "{}", family.name);
        }
    }
}
