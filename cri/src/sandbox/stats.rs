//! What pods use: PodSandboxStats and its kin.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

use super::Pod;
use crate::container::{self, Container};
use crate::daemon::Daemon;
use crate::error::{Context, Error, Result};
use crate::figures::{Figures, Interface, Place, interfaces};
use crate::state;

/// One look at a pod and its containers.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Nanoseconds since 1970.
    pub at: i64,
    pub figures: Figures,
    /// Nanoseconds of processor time per second.
    pub nano_cores: Option<u64>,
    /// Of a network of its own; that of the host is the host's.
    pub interfaces: Option<Vec<Interface>>,
    /// Those that run.
    pub containers: Vec<(Arc<Container>, container::stats::Stats)>,
}

/// Looks at a pod.
pub async fn stats(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<Stats> {
    let pod = Arc::clone(pod);
    daemon.blocking(move |daemon| Ok(look(daemon, &pod))).await
}

fn look(daemon: &Daemon, pod: &Pod) -> Stats {
    let mut containers = daemon.containers_of(pod.id());
    containers.retain(|container| container.state().phase == container::Phase::Running);
    let containers: Vec<_> = containers
        .into_iter()
        .map(|container| {
            let stats = container::stats::look(daemon, &container);
            (container, stats)
        })
        .collect();
    let at = state::now();
    let figures = own(pod).unwrap_or_else(|| sum(containers.iter().map(|(_, stats)| &stats.figures)));
    let nano_cores = figures.cpu.and_then(|cpu| pod.rate.now(at, cpu));
    let network = || traffic(&pod.run_dir().join("ns/net"));
    let interfaces = (!pod.on_host_network()).then(network).and_then(|seen| {
        seen.inspect_err(|error| tracing::debug!(pod = pod.id(), "No figures of the network: {error}")).ok()
    });
    Stats { at, figures, nano_cores, interfaces, containers }
}

/// Of the cgroup that is the pod's alone, if it has one.
fn own(pod: &Pod) -> Option<Figures> {
    let asked = pod.record.config.linux.as_ref().is_some_and(|linux| !linux.cgroup_parent.is_empty());
    let place = (asked || pod.record.owns_cgroup).then(|| Place::named(&pod.record.cgroup_parent))?;
    place.exists().then(|| place.figures())
}

/// Where nobody counts for the pod as a whole.
fn sum<'a>(parts: impl Iterator<Item = &'a Figures>) -> Figures {
    let add = |one: Option<u64>, other: Option<u64>| one.map_or(other, |one| Some(one + other.unwrap_or(0)));
    parts.fold(Figures::default(), |sum, part| Figures {
        cpu: add(sum.cpu, part.cpu),
        cpu_user: add(sum.cpu_user, part.cpu_user),
        cpu_system: add(sum.cpu_system, part.cpu_system),
        memory: add(sum.memory, part.memory),
        working_set: add(sum.working_set, part.working_set),
        rss: add(sum.rss, part.rss),
        cache: add(sum.cache, part.cache),
        faults: add(sum.faults, part.faults),
        major_faults: add(sum.major_faults, part.major_faults),
        swap: add(sum.swap, part.swap),
        pids: add(sum.pids, part.pids),
        oom_kills: add(sum.oom_kills, part.oom_kills),
        // Limits and quotas do not add up.
        ..Figures::default()
    })
}

/// The traffic in a network namespace, read by a thread that is never used for anything else.
fn traffic(netns: &Path) -> Result<Vec<Interface>> {
    let doing = || format!("Failed to read the traffic in {}", netns.display());
    let file = File::open(netns).context(doing)?;
    let read = || -> std::io::Result<String> {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        std::fs::read_to_string("/proc/thread-self/net/dev")
    };
    let text = std::thread::scope(|scope| scope.spawn(read).join());
    let text = text.map_err(|_| Error::failed(doing()))?.context(doing)?;
    Ok(interfaces(&text))
}
