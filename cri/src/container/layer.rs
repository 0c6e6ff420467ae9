//! How large the writable layers of containers are. Finding out is a walk through a tree of any size, so it is done
//! rarely, by few at a time, and nobody waits long for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Container;
use crate::daemon::Daemon;
use crate::state;

/// What a writable layer took when somebody last looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Nanoseconds since 1970.
    pub at: i64,
    pub bytes: u64,
    pub inodes: u64,
}

/// What is known of a container's layer, kept with the container.
#[derive(Debug, Default)]
pub struct Memo(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    layer: Option<Layer>,
    /// Until when that is good enough.
    fresh_until: Option<Instant>,
    /// Somebody is looking.
    walking: bool,
}

/// How long a size is good for at least.
const LIFE: Duration = Duration::from_secs(5);

/// No more than one part in so many of the time goes into one tree.
const SHARE: u32 = 20;

/// How long somebody who asks waits for walks, whatever the number of containers. After that there is the size of the
/// last time, or none; the next to ask gets the new one.
const PATIENCE: Duration = Duration::from_millis(800);

/// Walks at a time, of all.
static WALKERS: Semaphore = Semaphore::const_new(2);

impl Memo {
    fn layer(&self) -> Option<Layer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).layer
    }

    /// Whether whoever asks has to look; then nobody else does.
    fn claim(&self) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = known.fresh_until.is_none_or(|until| until <= Instant::now());
        let claimed = old && !known.walking;
        known.walking |= claimed;
        claimed
    }

    /// What was found, if it could be found, and how long that took.
    fn note(&self, found: Option<(u64, u64)>, took: Duration) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.walking = false;
        known.fresh_until = Some(Instant::now() + LIFE.max(took * SHARE));
        if let Some((bytes, inodes)) = found {
            known.layer = Some(Layer { at: state::now(), bytes, inodes });
        }
    }
}

/// The sizes of the layers of these containers by their ids, as new as there is time for.
pub async fn sizes(daemon: &Arc<Daemon>, containers: &[Arc<Container>]) -> HashMap<String, Layer> {
    let mut walks = JoinSet::new();
    for container in containers.iter().filter(|container| container.layer.claim()) {
        walks.spawn(walk(Arc::clone(daemon), Arc::clone(container)));
    }
    let all = async { while walks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(PATIENCE, all).await;
    // They go on: the next to ask wants to know.
    walks.detach_all();
    containers.iter().filter_map(|one| Some((one.id().to_owned(), one.layer.layer()?))).collect()
}

async fn walk(daemon: Arc<Daemon>, container: Arc<Container>) {
    let Ok(_turn) = WALKERS.acquire().await else { return };
    let (began, id) = (Instant::now(), container.id().to_owned());
    let found = daemon.images_blocking(move |images| images.rw_usage(&id)).await;
    container.layer.note(found.ok(), began.elapsed());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_looks_and_the_others_take_what_there_is() {
        let memo = Memo::default();
        assert!(memo.claim() && !memo.claim());
        memo.note(Some((10, 2)), Duration::ZERO);
        assert!(!memo.claim(), "it is new");
        assert_eq!(memo.layer().map(|layer| (layer.bytes, layer.inodes)), Some((10, 2)));
        memo.0.lock().unwrap().fresh_until = Some(Instant::now());
        assert!(memo.claim(), "it is old");
        memo.note(None, Duration::ZERO);
        assert_eq!(memo.layer().map(|layer| layer.bytes), Some(10), "a failure does not forget");
    }

    #[test]
    fn a_long_walk_is_not_repeated_soon() {
        let memo = Memo::default();
        memo.note(Some((1, 1)), Duration::from_secs(60));
        let until = memo.0.lock().unwrap().fresh_until.unwrap();
        assert!(until > Instant::now() + Duration::from_secs(19 * 60));
    }
}
