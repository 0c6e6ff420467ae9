//! What containers use: ContainerStats and its kin.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Container, Phase};
use crate::daemon::Daemon;
use crate::error::Result;
use crate::figures::{Figures, Place, Rate};
use crate::state;

/// One look at a container.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Nanoseconds since 1970.
    pub at: i64,
    /// Of a container that does not run everything is absent.
    pub figures: Figures,
    /// Nanoseconds of processor time per second.
    pub nano_cores: Option<u64>,
    pub written: Written,
}

/// What is in a container's writable layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// When it was looked at, in nanoseconds since 1970.
    pub at: i64,
    pub bytes: u64,
    pub inodes: u64,
}

/// What is kept from one look to the next.
#[derive(Debug, Default)]
pub struct Known {
    rate: Rate,
    written: Mutex<Option<Written>>,
}

/// How long the size of a writable layer holds, since a tree must be walked for it: 10 s.
const WRITTEN_HOLDS: i64 = 10_000_000_000;

/// Looks at a container.
pub async fn of(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<Stats> {
    let container = Arc::clone(container);
    daemon.blocking(move |daemon| Ok(look(daemon, &container))).await
}

/// The same, for a thread that may wait for a disk.
pub fn look(daemon: &Daemon, container: &Container) -> Stats {
    let (at, now) = (state::now(), container.state());
    let place = (now.phase == Phase::Running).then(|| Place::of(now.pid)).flatten();
    let figures = place.map(|place| place.figures()).unwrap_or_default();
    let nano_cores = figures.cpu.and_then(|cpu| container.usage.rate.now(at, cpu));
    Stats { at, figures, nano_cores, written: written(daemon, container, at) }
}

fn written(daemon: &Daemon, container: &Container, at: i64) -> Written {
    let mut last = container.usage.written.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(last) = last.filter(|last| at - last.at < WRITTEN_HOLDS) {
        return last;
    }
    // A layer that is just being removed has nothing any more.
    let (bytes, inodes) = daemon.images.rw_usage(container.id()).unwrap_or_default();
    *last.insert(Written { at, bytes, inodes })
}
