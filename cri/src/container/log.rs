//! ReopenContainerLog.

use std::sync::Arc;

use crate::daemon::Daemon;
use crate::error::Result;

/// Goes on in a new file after a rotation; also while the container is being stopped.
pub async fn reopen_log(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let container = daemon.container(id)?;
    container.running()?;
    daemon.monitors.call(container.bundle(), |client| async move { client.reopen_log().await }).await.map(drop)
}
