//! UpdateContainerResources.

use std::sync::Arc;

use k8s_cri::v1::LinuxContainerResources;

use super::{Phase, host, spec};
use crate::daemon::Daemon;
use crate::error::{Error, Result};

/// Changes the resources of a container that is there.
pub async fn update(daemon: &Arc<Daemon>, id: &str, resources: LinuxContainerResources) -> Result<()> {
    let container = daemon.container(id)?;
    let _turn = container.turn.lock().await;
    let state = container.state();
    if !matches!(state.phase, Phase::Created | Phase::Running) {
        return Err(Error::Precondition(format!(
            "Container {} cannot be updated, it is {:?}",
            container.id(),
            state.phase
        )));
    }
    let before = state.resources.or_else(|| container.record.config.linux.as_ref()?.resources.clone());
    let (merged, oci) = spec::updated(before.as_ref(), &resources, host::cgroups())?;
    daemon.handlers.named(&container.record.handler)?.update(container.id(), &oci).await?;
    container.change(|state| state.resources = Some(merged))
}
