//! ListPodSandbox.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Phase, Pod, sorted};
use crate::daemon::Daemon;

/// What a listed pod must be; empty fields say nothing.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub id: String,
    pub ready: Option<bool>,
    pub labels: HashMap<String, String>,
}

/// The pods that fit, oldest first.
pub fn list(daemon: &Daemon, filter: &Filter) -> Vec<Arc<Pod>> {
    let mut found = daemon.pods.all();
    found.retain(|pod| pod.state().phase != Phase::Creating && matching(pod, filter));
    sorted(found)
}

/// Whether a pod is what the filter asks for.
pub fn matching(pod: &Pod, filter: &Filter) -> bool {
    pod.id().starts_with(&filter.id)
        && filter.ready.is_none_or(|ready| ready == (pod.state().phase == Phase::Ready))
        && filter.labels.iter().all(|(key, value)| pod.labels().get(key) == Some(value))
}
