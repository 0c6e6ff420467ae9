//! Containers that were there before this program.

use std::sync::Arc;

use super::{Container, Dirs, Phase, create, end};
use crate::daemon::Daemon;
use crate::error::Result;
use crate::state;

/// Reads all containers from the disk and finds out what became of them. The monitors are the truth.
pub async fn restore(daemon: &Arc<Daemon>) -> Result<()> {
    for id in state::entries(&daemon.config.root.join("containers"))? {
        let dirs = Dirs::new(&daemon.config, &id);
        let Ok(container) = Container::load(dirs.clone()) else {
            // It ended before the record was there, so nothing else is.
            state::remove_dir(&dirs.root)?;
            continue;
        };
        let container = Arc::new(container);
        state::not_before(container.record.created_at);
        match container.state().phase {
            Phase::Creating => {
                tracing::info!(container = id, "Removing a container that was not finished");
                create::undo(daemon, &container).await?;
                continue;
            }
            Phase::Exited => {}
            Phase::Created => {
                started_meanwhile(daemon, &container).await?;
                end::watch(daemon, Arc::clone(&container));
            }
            Phase::Running | Phase::Lost => end::watch(daemon, Arc::clone(&container)),
        }
        daemon.container_names.restore(container.name(), id.clone());
        daemon.containers.insert(&id, Arc::clone(&container));
        if container.state().phase == Phase::Exited {
            let _turn = container.turn.lock().await;
            end::clean(daemon, &container).await?;
        }
    }
    Ok(())
}

/// The runtime was asked to start it, and this program died before it could take note.
async fn started_meanwhile(daemon: &Daemon, container: &Container) -> Result<()> {
    if container.state().started_at == 0 {
        return Ok(());
    }
    let handler = daemon.handlers.named(&container.record.handler)?;
    if handler.status(container.id()).await?.as_deref() != Some("created") {
        container.change(|state| state.phase = Phase::Running)?;
    }
    Ok(())
}
