//! What containers use.
//!
//! A container has figures from its creation until its process has ended; lists leave out the others, as the kubelet
//! does itself with ended ones. Whoever asks for an ended one by its id hears that it uses nothing but its writable
//! layer.

use std::collections::HashMap;
use std::sync::Arc;

use super::layer::{self, Layer};
use super::{Container, Phase};
use crate::cgroup::{Cgroup, Figures, Processes, soft_open_files};
use crate::daemon::Daemon;
use crate::error::Result;
use crate::state;

/// What a container uses.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Nanoseconds since 1970.
    pub at: i64,
    pub used: Figures,
    /// Nanoseconds of CPU per second; nothing, when there was no reading before.
    pub nano_cores: Option<u64>,
    /// Nothing, while nobody has had the time to measure it.
    pub layer: Option<Layer>,
    /// Only for metrics.
    pub open: Option<Open>,
}

/// What the processes of a container have open and may have open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Open {
    pub processes: Processes,
    pub soft_limit: Option<u64>,
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    Stats,
    /// At every process, too.
    Metrics,
}

/// The phases in which a container has figures.
pub const PHASES: [Phase; 3] = [Phase::Created, Phase::Running, Phase::Lost];

/// What one container uses.
pub async fn of(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<Stats> {
    let own = [Arc::clone(container)];
    let sizes = layer::sizes(daemon, &own).await;
    let container = Arc::clone(container);
    daemon
        .blocking(move |daemon| {
            let layer = sizes.get(container.id()).copied();
            let ended = Stats { at: state::now(), used: Figures::default(), nano_cores: None, layer, open: None };
            Ok(read(daemon, &container, layer, Depth::Stats).unwrap_or(ended))
        })
        .await
}

/// What these containers use. One that vanishes meanwhile is left out.
pub async fn of_all(
    daemon: &Arc<Daemon>,
    containers: Vec<Arc<Container>>,
    depth: Depth,
) -> Result<Vec<(Arc<Container>, Stats)>> {
    let sizes = layer::sizes(daemon, &containers).await;
    daemon.blocking(move |daemon| Ok(read_all(daemon, containers, &sizes, depth))).await
}

fn read_all(
    daemon: &Daemon,
    containers: Vec<Arc<Container>>,
    sizes: &HashMap<String, Layer>,
    depth: Depth,
) -> Vec<(Arc<Container>, Stats)> {
    let read = |container: Arc<Container>| {
        let stats = read(daemon, &container, sizes.get(container.id()).copied(), depth)?;
        Some((container, stats))
    };
    containers.into_iter().filter_map(read).collect()
}

/// Nothing, if it has no cgroup any more.
fn read(daemon: &Daemon, container: &Container, layer: Option<Layer>, depth: Depth) -> Option<Stats> {
    let pid = container.state().pid;
    if !PHASES.contains(&container.state().phase) {
        return None;
    }
    let pod = daemon.pods.find(&container.record.pod)?;
    let cgroup = Cgroup::of_container(&pod.record.cgroup_parent, container.id(), daemon.systemd);
    let used = cgroup.figures()?;
    let at = state::now();
    let nano_cores = container.rate.take(at, used.cpu.total);
    let open =
        (depth == Depth::Metrics).then(|| Open { processes: cgroup.processes(), soft_limit: soft_open_files(pid) });
    Some(Stats { at, used, nano_cores, layer, open })
}
