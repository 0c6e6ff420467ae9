//! PortForward: where a pod's ports are.

use std::path::PathBuf;

use super::{Phase, Pod};
use crate::error::{Error, Result};

/// The pod's network namespace; nothing for the host's.
pub fn netns(pod: &Pod) -> Result<Option<PathBuf>> {
    if pod.state().phase != Phase::Ready {
        return Err(Error::Precondition(format!("Pod {} is not ready", pod.id())));
    }
    Ok((!pod.on_host_network()).then(|| pod.run_dir().join("ns/net")))
}
