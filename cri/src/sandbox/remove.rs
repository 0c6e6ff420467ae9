//! RemovePodSandbox.

use std::sync::Arc;

use super::{Pod, stop};
use crate::container;
use crate::daemon::{Daemon, whole};
use crate::error::Result;
use crate::{cgroup, state};

/// Stops a pod if need be, and removes it with its containers. One that is not there is fine.
pub async fn remove(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let Some(pod) = daemon.pods.find(id) else { return Ok(()) };
    let daemon = Arc::clone(daemon);
    whole(async move { remove_it(&daemon, &pod).await }).await
}

async fn remove_it(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    stop::stop(daemon, pod.id()).await?;
    let _making = pod.making.write().await;
    for container in daemon.containers_of(pod.id()) {
        container::remove(daemon, container.id()).await?;
    }
    let _turn = pod.turn.lock().await;
    if daemon.pods.find(pod.id()).is_none() {
        return Ok(());
    }
    forget(daemon, pod).await?;
    daemon.events.gone(pod);
    Ok(())
}

/// Removes the files of a pod that has nothing else any more.
pub async fn forget(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    let gone = Arc::clone(pod);
    daemon.blocking(move |_| files(&gone)).await?;
    daemon.pods.remove(pod.id());
    daemon.pod_names.release(&pod.name());
    Ok(())
}

fn files(pod: &Pod) -> Result<()> {
    if pod.record.owns_cgroup {
        cgroup::remove(&pod.record.cgroup_parent)?;
    }
    state::remove_dir(&pod.dirs().run)?;
    // The last, since everything else is found through it.
    state::remove_dir(&pod.dirs().root)
}
