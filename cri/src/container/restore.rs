//! Containers that were there before this program.

use std::sync::Arc;

use super::{Container, Dirs, Phase, create, end};
use crate::daemon::Daemon;
use crate::error::Result;
use crate::{runtime, state};

/// Reads all containers from the disk and finds out what became of them. The monitors are the truth.
pub async fn restore(daemon: &Arc<Daemon>) -> Result<()> {
    runtime::settle(&daemon.config.run).await;
    for id in state::entries(&daemon.config.root.join("containers"))? {
        let dirs = Dirs::new(&daemon.config, &id);
        if !Container::begun(&dirs) {
            // It was only begun, or nearly removed.
            state::remove_dir(&dirs.root)?;
            continue;
        }
        let container = match Container::load(dirs) {
            Ok(container) => Arc::new(container),
            Err(error) => {
                tracing::error!(container = id, "It stays as it is: {error}");
                continue;
            }
        };
        state::not_before(container.record.created_at);
        match container.state().phase {
            Phase::Creating => {
                tracing::info!(container = id, "Removing a container that was not finished");
                match create::undo(daemon, &container).await {
                    Ok(()) => continue,
                    // Whoever removes it hears the same, and can try again.
                    Err(error) => {
                        tracing::error!(container = id, "Failed to remove a container that was not finished: {error}");
                    }
                }
                container.change(|state| state.phase = Phase::Exited)?;
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
            if let Err(error) = end::clean(daemon, &container).await {
                tracing::warn!(container = id, "{error}");
            }
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
    match handler.status(container.id()).await {
        Ok(status) if status.as_deref() == Some("created") => Ok(()),
        Ok(_) => container.change(|state| state.phase = Phase::Running),
        Err(error) => {
            tracing::warn!(container = container.id(), "{error}");
            Ok(())
        }
    }
}
