//! ListContainers.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Container, Phase};
use crate::daemon::Daemon;

/// What a listed container must be; empty fields say nothing.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub id: String,
    pub pod: String,
    pub phases: Option<Vec<Phase>>,
    pub labels: HashMap<String, String>,
}

/// The containers that fit, oldest first.
pub fn list(daemon: &Daemon, filter: &Filter) -> Vec<Arc<Container>> {
    let mut found = daemon.containers.all();
    found.retain(|container| container.state().phase != Phase::Creating && matching(container, filter));
    found.sort_by_key(|container| container.record.created_at);
    found
}

/// Whether a container is what the filter asks for.
pub fn matching(container: &Container, filter: &Filter) -> bool {
    let labels = &container.record.config.labels;
    container.id().starts_with(&filter.id)
        && container.record.pod.starts_with(&filter.pod)
        && filter.phases.as_ref().is_none_or(|phases| phases.contains(&container.state().phase))
        && filter.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
}
