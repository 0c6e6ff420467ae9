//! StartContainer.

use std::sync::Arc;

use super::{Container, Phase};
use crate::daemon::{Daemon, whole};
use crate::error::{Error, Result};
use crate::events::Kind;
use crate::runtime::Handler;

/// Lets a created container run.
pub async fn start(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let (daemon, container) = (Arc::clone(daemon), daemon.container(id)?);
    whole(async move { start_it(&daemon, &container).await }).await
}

async fn start_it(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    let _turn = container.turn.lock().await;
    // It may have been removed meanwhile.
    daemon.container(container.id())?;
    let phase = container.state().phase;
    if phase != Phase::Created {
        return Err(Error::Precondition(format!("Container {} cannot be started, it is {phase:?}", container.id())));
    }
    let handler = daemon.handlers.named(&container.record.handler)?;
    let before = container.state();
    let again = before.started_at != 0;
    container.starts()?;
    if let Err(error) = handler.start(container.id(), before.pid, container.bundle()).await
        && !(again && started(handler, container).await)
    {
        failed(daemon, container, &error).await;
        return Err(error);
    }
    container.started();
    container.tell_start(|| daemon.events.tell(Kind::Started, container.id(), &container.record.pod));
    tokio::spawn(save(Arc::clone(daemon), Arc::clone(container)));
    Ok(())
}

/// Writes down that it runs. Nobody waits for that: after a kill it is found out, and a loss of power ends it anyway.
async fn save(daemon: Arc<Daemon>, container: Arc<Container>) {
    let _turn = container.turn.lock().await;
    if daemon.container(container.id()).is_ok() {
        let container = Arc::clone(&container);
        let _ = tokio::task::spawn_blocking(move || container.learn(|_| ())).await;
    }
}

/// A server that was killed meanwhile has done it.
async fn started(handler: &Handler, container: &Container) -> bool {
    !matches!(handler.status(container.id()).await.as_ref().map(Option::as_deref), Ok(Some("created")))
}

/// A container that could not be started will not be: it ends, and its status says why.
async fn failed(daemon: &Arc<Daemon>, container: &Arc<Container>, error: &Error) {
    let text = error.to_string();
    if let Err(error) = container.change(|state| (state.never_started, state.message) = (true, text)) {
        tracing::warn!(container = container.id(), "{error}");
    }
    let Ok(handler) = daemon.handlers.named(&container.record.handler) else { return };
    if let Err(error) = handler.delete(container.id()).await {
        tracing::warn!(container = container.id(), "{error}");
    }
    container.wait_ended().await;
}
