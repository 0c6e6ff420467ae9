//! What pods use.
//!
//! A pod's own cgroup counts everything that was ever in it. Where the pod has none of its own, because nobody made one
//! for it, the sum of its containers takes its place. A pod that is not ready uses nothing and has no network.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Interface, Phase, Pod, interfaces};
use crate::cgroup::{Cgroup, Figures};
use crate::container::stats::{Depth, PHASES};
use crate::container::{self, Container};
use crate::daemon::Daemon;
use crate::error::Result;
use crate::state;

/// What a pod and its containers use.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Nanoseconds since 1970.
    pub at: i64,
    pub used: Figures,
    /// Nanoseconds of CPU per second; nothing, when there was no reading before.
    pub nano_cores: Option<u64>,
    pub processes: u64,
    /// Nothing on the host's network: what goes through that is not the pod's.
    pub network: Option<Vec<Interface>>,
    pub containers: Vec<(Arc<Container>, container::stats::Stats)>,
}

/// What one pod uses.
pub async fn of(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<Stats> {
    let mut all = of_all(daemon, vec![Arc::clone(pod)], Depth::Stats).await?;
    all.pop().map(|(_, stats)| stats).ok_or_else(|| crate::error::Error::missing("pod", pod.id()))
}

/// What these pods use.
pub async fn of_all(daemon: &Arc<Daemon>, pods: Vec<Arc<Pod>>, depth: Depth) -> Result<Vec<(Arc<Pod>, Stats)>> {
    let wanted: HashSet<&str> = pods.iter().map(|pod| pod.id()).collect();
    let mut containers = daemon.containers.all();
    containers.retain(|one| wanted.contains(one.record.pod.as_str()) && PHASES.contains(&one.state().phase));
    containers.sort_by_key(|container| container.record.created_at);
    let mut by_pod: HashMap<String, Vec<_>> = HashMap::new();
    for (container, stats) in container::stats::of_all(daemon, containers, depth).await? {
        by_pod.entry(container.record.pod.clone()).or_default().push((container, stats));
    }
    let read_all = move |daemon: &Daemon| {
        let read = |pod: Arc<Pod>| {
            let stats = read(daemon, &pod, by_pod.remove(pod.id()).unwrap_or_default());
            (pod, stats)
        };
        Ok(pods.into_iter().map(read).collect())
    };
    daemon.blocking(read_all).await
}

fn read(daemon: &Daemon, pod: &Pod, containers: Vec<(Arc<Container>, container::stats::Stats)>) -> Stats {
    let own = own_cgroup(daemon, pod);
    let used = own.as_ref().and_then(Cgroup::figures).unwrap_or_else(|| sum(&containers));
    let at = state::now();
    let counted = |(container, _): &(Arc<Container>, _)| {
        Cgroup::of_container(&pod.record.cgroup_parent, container.id(), daemon.systemd).count()
    };
    Stats {
        at,
        nano_cores: pod.rate.take(at, used.cpu.total),
        processes: own.as_ref().map_or_else(|| containers.iter().map(counted).sum(), Cgroup::count),
        network: network(pod),
        used,
        containers,
    }
}

/// The cgroup that is this pod's alone: whoever asked for a pod named it, or we made it.
fn own_cgroup(daemon: &Daemon, pod: &Pod) -> Option<Cgroup> {
    let record = &pod.record;
    let asked = record.config.linux.as_ref().is_some_and(|linux| !linux.cgroup_parent.is_empty());
    (asked || record.owns_cgroup).then(|| Cgroup::of_parent(&record.cgroup_parent, daemon.systemd))
}

fn sum(containers: &[(Arc<Container>, container::stats::Stats)]) -> Figures {
    let mut sum = Figures::default();
    for (_, stats) in containers {
        sum.add(&stats.used);
    }
    sum
}

fn network(pod: &Pod) -> Option<Vec<Interface>> {
    if pod.on_host_network() || pod.state().phase != Phase::Ready {
        return None;
    }
    let found = interfaces::within(&pod.run_dir().join("ns/net"));
    // A pod that is being stopped loses its namespace at some moment.
    found.inspect_err(|error| tracing::debug!(pod = pod.id(), "{error}")).ok()
}
