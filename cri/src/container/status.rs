//! ContainerStatus.

use std::sync::Arc;

use super::{Container, Phase, State};
use crate::daemon::Daemon;
use crate::error::Result;

/// A container by its id.
pub fn status(daemon: &Daemon, id: &str) -> Result<Arc<Container>> {
    daemon.container(id)
}

/// The reason of an end in one word, and the exit code; an end of which nobody knows how has a word of its own.
pub fn reason(state: &State) -> (&'static str, i32) {
    match (state.phase, state.exit_code) {
        (Phase::Exited, Some(code)) if state.never_started => ("StartError", code),
        (Phase::Exited, Some(code)) if state.oom_killed && code != 0 => ("OOMKilled", code),
        (Phase::Exited, Some(0)) => ("Completed", 0),
        (Phase::Exited, Some(code)) => ("Error", code),
        (Phase::Exited, None) => ("Unknown", 255),
        _ => ("", 0),
    }
}
