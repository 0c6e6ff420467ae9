//! StopContainer.

use std::sync::Arc;
use std::time::Duration;

use super::{Container, Phase, end};
use crate::daemon::Daemon;
use crate::error::{Error, Result};

/// SIGTERM.
const TERM: u8 = 15;

/// How long a killed container may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(60);

/// Asks a container to end, and kills it when it has not after `timeout`. A second call may shorten the wait of the
/// first; nothing is locked meanwhile.
pub async fn stop(daemon: &Arc<Daemon>, id: &str, timeout: Duration) -> Result<()> {
    let Some(container) = daemon.containers.find(id) else { return Ok(()) };
    end_process(daemon, &container, timeout).await
}

/// As [`stop`], for a container that is at hand.
pub async fn end_process(daemon: &Arc<Daemon>, container: &Arc<Container>, timeout: Duration) -> Result<()> {
    let phase = container.state().phase;
    let handler = daemon.handlers.named(&container.record.handler)?;
    match phase {
        Phase::Exited => return Ok(()),
        Phase::Creating => {
            return Err(Error::Precondition(format!("Container {} is still being created", container.id())));
        }
        // Nobody reports the end of what was never started, or of what lost its monitor, but the runtime.
        Phase::Lost => {
            let _turn = container.turn.lock().await;
            handler.delete(container.id()).await?;
            drop(_turn);
            end::finish(daemon, container, None).await;
            return Ok(());
        }
        Phase::Created | Phase::Running => {}
    }
    if phase == Phase::Running && !timeout.is_zero() {
        let number = u8::try_from(container.record.stop_signal).unwrap_or(TERM);
        let asked = daemon.monitors.call(container.bundle(), move |client| async move { client.signal(number).await });
        if let Err(error) = asked.await {
            tracing::debug!(container = container.id(), "{error}");
        }
        if tokio::time::timeout(timeout, container.wait_ended()).await.is_ok() {
            return Ok(());
        }
    }
    kill(daemon, container).await
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
