//! StopContainer.

use std::sync::Arc;
use std::time::Duration;

use super::{Container, Phase, end};
use crate::daemon::{Daemon, whole};
use crate::error::{Error, Result};

/// SIGTERM.
const TERM: u8 = 15;

const KILL: u8 = 9;

/// What is killed ends within this, or something holds it.
const SOON: Duration = Duration::from_secs(2);

/// How long a killed container may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(60);

/// Asks a container to end, and kills it when it has not after `timeout`. A second call may shorten the wait of the
/// first; nothing is locked meanwhile.
pub async fn stop(daemon: &Arc<Daemon>, id: &str, timeout: Duration) -> Result<()> {
    let Some(container) = daemon.containers.find(id) else { return Ok(()) };
    end_process(daemon, &container, timeout).await
}

/// As [`stop`], for a container that is at hand. What the runtime has of it is gone then, too, so that its removal is
/// short.
pub async fn end_process(daemon: &Arc<Daemon>, container: &Arc<Container>, timeout: Duration) -> Result<()> {
    end_it(daemon, container, timeout).await?;
    let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
    whole(async move {
        let _turn = container.turn.lock().await;
        if daemon.containers.find(container.id()).is_none() {
            return Ok(());
        }
        // Who removes it hears of it if it fails again.
        end::clean(&daemon, &container).await.or_else(|error| {
            tracing::warn!(container = container.id(), "{error}");
            Ok(())
        })
    })
    .await
}

async fn end_it(daemon: &Arc<Daemon>, container: &Arc<Container>, timeout: Duration) -> Result<()> {
    let phase = container.state().phase;
    match phase {
        Phase::Exited => return Ok(()),
        Phase::Creating => {
            return Err(Error::Precondition(format!("Container {} is still being created", container.id())));
        }
        // Nobody reports the end of what was never started, or of what lost its monitor, but the runtime.
        Phase::Lost => {
            let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
            return whole(async move { delete(&daemon, &container).await }).await;
        }
        Phase::Created | Phase::Running => {}
    }
    let number = u8::try_from(container.record.stop_signal).unwrap_or(TERM);
    if phase == Phase::Running && !timeout.is_zero() && ends_by(daemon, container, number, timeout).await {
        return Ok(());
    }
    // The monitor is there already; the runtime has to be started, and is for what the monitor cannot do.
    match ends_by(daemon, container, KILL, SOON).await {
        true => Ok(()),
        false => {
            let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
            whole(async move { kill(&daemon, &container).await }).await
        }
    }
}

async fn delete(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    let turn = container.turn.lock().await;
    daemon.handlers.named(&container.record.handler)?.delete(container.id()).await?;
    drop(turn);
    end::finish(daemon, container, None).await;
    Ok(())
}

/// Has the monitor send a signal; answers whether the container has ended in time.
async fn ends_by(daemon: &Daemon, container: &Container, number: u8, timeout: Duration) -> bool {
    let end = tokio::time::Instant::now() + timeout;
    let asked = daemon.monitors.call(container.bundle(), move |client| async move { client.signal(number).await });
    match tokio::time::timeout_at(end, asked).await {
        Err(_) => return false,
        // Without its signal, waiting is for one that ends just now.
        Ok(Err(error)) if number == KILL => {
            tracing::debug!(container = container.id(), "{error}");
            return container.state().phase == Phase::Exited;
        }
        Ok(Err(error)) => tracing::debug!(container = container.id(), "{error}"),
        Ok(Ok(_)) => {}
    }
    tokio::time::timeout_at(end, container.wait_ended()).await.is_ok()
}

async fn kill(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    let handler = daemon.handlers.named(&container.record.handler)?;
    let killed = handler.kill(container.id(), libc::SIGKILL, false).await;
    match tokio::time::timeout(KILL_PATIENCE, container.wait_ended()).await {
        Ok(()) => Ok(()),
        Err(_) => {
            let why = killed.err().map(|error| format!(": {error}")).unwrap_or_default();
            Err(Error::Deadline(format!("Container {} was killed and does not end{why}", container.id())))
        }
    }
}
