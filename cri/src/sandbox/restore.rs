//! Pods that were there before this program.

use std::sync::Arc;

use super::{Dirs, Phase, Pod, namespaces, run};
use crate::daemon::Daemon;
use crate::error::Result;
use crate::state;

/// Reads all pods from the disk. One that was being made is unmade; one whose namespaces are gone is not ready.
pub async fn restore(daemon: &Arc<Daemon>) -> Result<()> {
    daemon.network.settle().await?;
    for id in state::entries(&daemon.config.root.join("pods"))? {
        let dirs = Dirs::new(&daemon.config, &id);
        if !Pod::begun(&dirs) {
            // It was only begun, or nearly removed.
            state::remove_dir(&dirs.root)?;
            continue;
        }
        let pod = match Pod::load(dirs) {
            Ok(pod) => Arc::new(pod),
            Err(error) => {
                tracing::error!(pod = id, "It stays as it is: {error}");
                continue;
            }
        };
        state::not_before(pod.record.created_at);
        match pod.state().phase {
            Phase::Creating => {
                tracing::info!(pod = id, "Removing a pod that was not finished");
                match run::undo(daemon, &pod).await {
                    Ok(()) => continue,
                    // Whoever removes it hears the same, and can try again.
                    Err(error) => tracing::error!(pod = id, "Failed to remove a pod that was not finished: {error}"),
                }
                pod.change(|state| state.phase = Phase::NotReady)?;
            }
            Phase::Ready if !alive(&pod) => pod.change(|state| state.phase = Phase::NotReady)?,
            _ => {}
        }
        daemon.pod_names.restore(pod.name(), id.clone());
        daemon.pods.insert(&id, pod);
    }
    Ok(())
}

fn alive(pod: &Pod) -> bool {
    // On the host's network with the host's ipc there is nothing that could be gone, but the directory after a reboot.
    pod.run_dir().exists() && namespaces::alive(pod.run_dir())
}
