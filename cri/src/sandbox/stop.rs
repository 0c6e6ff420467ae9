//! StopPodSandbox.

use std::sync::Arc;
use std::time::Duration;

use super::{Phase, Pod, namespaces, network_of};
use crate::container;
use crate::daemon::{Daemon, whole};
use crate::error::Result;
use crate::events::Kind;

/// Kills what runs in a pod and gives back its network and namespaces. May be repeated; one that is not there is fine.
pub async fn stop(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let Some(pod) = daemon.pods.find(id) else { return Ok(()) };
    let daemon = Arc::clone(daemon);
    whole(async move { stop_it(&daemon, &pod).await }).await
}

async fn stop_it(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    let _turn = pod.turn.lock().await;
    if daemon.pods.find(pod.id()).is_none() {
        return Ok(());
    }
    // First: a container that is being made finds out, and the others are known.
    let before = pod.state().phase;
    pod.learn(|state| state.phase = Phase::NotReady);
    let ends = daemon.containers_of(pod.id()).into_iter().map(|container| {
        let daemon = Arc::clone(daemon);
        async move { container::end_process(&daemon, &container, Duration::ZERO).await }
    });
    futures_util::future::try_join_all(ends).await?;
    unmake(daemon, pod).await?;
    if before == Phase::Ready {
        daemon.events.tell(Kind::Stopped, pod.id(), pod.id());
    }
    Ok(())
}

/// Gives back everything that a pod has outside of its directory; may be repeated.
pub async fn unmake(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    if !pod.on_host_network() {
        daemon.network.del(&network_of(pod)).await?;
    }
    let dir = pod.run_dir().to_owned();
    daemon.blocking(move |_| namespaces::release(&dir)).await
}
