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

/// And at most.
const LIFE_MAX: Duration = Duration::from_secs(600);

/// No more than one part in so many of a CPU's time goes into all trees together.
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

    /// What was found, if it could be found, and how long that took; `all` are as many as have a tree to walk through.
    fn note(&self, found: Option<(u64, u64)>, took: Duration, all: usize) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.walking = false;
        known.fresh_until = Some(Instant::now() + LIFE.max(life(took, all)));
        if let Some((bytes, inodes)) = found {
            known.layer = Some(Layer { at: state::now(), bytes, inodes });
        }
    }
}

/// How long a size must be good for, so that walks do not take more than their share.
fn life(took: Duration, all: usize) -> Duration {
    took.saturating_mul(SHARE).saturating_mul(u32::try_from(all).unwrap_or(u32::MAX)).min(LIFE_MAX)
}

/// The sizes of the layers of these containers by their ids, as new as there is time for.
pub async fn sizes(daemon: &Arc<Daemon>, containers: &[Arc<Container>]) -> HashMap<String, Layer> {
    let mut walks = JoinSet::new();
    let all = daemon.containers.all().len();
    for container in containers.iter().filter(|container| container.layer.claim()) {
        walks.spawn(walk(Arc::clone(daemon), Arc::clone(container), all));
    }
    let done = async { while walks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(PATIENCE, done).await;
    // They go on: the next to ask wants to know.
    walks.detach_all();
    containers.iter().filter_map(|one| Some((one.id().to_owned(), one.layer.layer()?))).collect()
}

async fn walk(daemon: Arc<Daemon>, container: Arc<Container>, all: usize) {
    let Ok(_turn) = WALKERS.acquire().await else { return };
    let (began, id) = (Instant::now(), container.id().to_owned());
    let found = daemon.images_blocking(move |images| images.rw_usage(&id)).await;
    container.layer.note(found.ok(), began.elapsed(), all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_looks_and_the_others_take_what_there_is() {
        let memo = Memo::default();
        assert!(memo.claim() && !memo.claim());
        memo.note(Some((10, 2)), Duration::ZERO, 1);
        assert!(!memo.claim(), "it is new");
        assert_eq!(memo.layer().map(|layer| (layer.bytes, layer.inodes)), Some((10, 2)));
        memo.0.lock().unwrap().fresh_until = Some(Instant::now());
        assert!(memo.claim(), "it is old");
        memo.note(None, Duration::ZERO, 1);
        assert_eq!(memo.layer().map(|layer| layer.bytes), Some(10), "a failure does not forget");
    }

    #[test]
    fn walks_take_no_more_than_their_share() {
        let memo = Memo::default();
        memo.note(Some((1, 1)), Duration::from_secs(2), 1);
        let until = memo.0.lock().unwrap().fresh_until.unwrap();
        assert!(until > Instant::now() + Duration::from_secs(39));
        assert_eq!(life(Duration::from_millis(5), 1000), Duration::from_secs(100));
        assert_eq!(life(Duration::from_secs(60), 1000), LIFE_MAX);
    }
}
