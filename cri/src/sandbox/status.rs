//! PodSandboxStatus.

use std::sync::Arc;

use super::Pod;
use crate::daemon::Daemon;
use crate::error::Result;

/// A pod by its id.
pub fn status(daemon: &Daemon, id: &str) -> Result<Arc<Pod>> {
    daemon.pod(id)
}
