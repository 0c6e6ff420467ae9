//! Container events, for clients that would rather be told than ask.
//!
//! Every listener has a queue of its own. When one does not keep up, events that a later one of the same container makes
//! out of date are dropped from its queue: it misses what happened in between, and never how anything ended.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tokio::sync::Notify;

use crate::container::Container;
use crate::daemon::Daemon;
use crate::sandbox::Pod;
use crate::state;

/// What happened to a container or, by the pod's own id, to a pod.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: Kind,
    pub container: String,
    /// Nanoseconds since 1970.
    pub at: i64,
    /// The pod and its containers as they were then known: they can be described after they are removed.
    pub pod: Option<Arc<Pod>>,
    pub containers: Vec<Arc<Container>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Where events come from, and who listens.
#[derive(Debug, Default)]
pub struct Events {
    daemon: OnceLock<Weak<Daemon>>,
    listeners: Mutex<Vec<Weak<Queue>>>,
}

/// Events that wait for one listener.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<VecDeque<Event>>,
    /// There is something in it.
    filled: Notify,
}

/// Events that wait for a listener before any is dropped.
const WAITING: usize = 1024;

/// The most that ever wait: a listener that did not take the last events of so many containers is as good as dead.
const WAITING_MAX: usize = 64 * WAITING;

impl Events {
    /// Takes note of whose events these are.
    pub fn know(&self, daemon: &Arc<Daemon>) {
        let _ = self.daemon.set(Arc::downgrade(daemon));
    }

    pub fn tell(&self, kind: Kind, container: &str, pod: &str) {
        let daemon = self.daemon.get().and_then(Weak::upgrade);
        let containers = daemon.as_ref().map(|daemon| daemon.containers_of(pod)).unwrap_or_default();
        let pod = daemon.and_then(|daemon| daemon.pods.find(pod));
        self.send(&Event { kind, container: container.to_owned(), at: state::now(), pod, containers });
    }

    /// The last event of a pod, which nobody finds any more.
    pub fn gone(&self, pod: &Arc<Pod>) {
        let (container, pod) = (pod.id().to_owned(), Some(Arc::clone(pod)));
        self.send(&Event { kind: Kind::Deleted, container, at: state::now(), pod, containers: Vec::new() });
    }

    /// All events from now on.
    pub fn listen(&self) -> Listener {
        let queue = Arc::new(Queue::default());
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&queue));
        Listener(queue)
    }

    fn send(&self, event: &Event) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| {
            let Some(queue) = listener.upgrade() else { return false };
            queue.push(event.clone());
            true
        });
    }
}

impl Queue {
    fn push(&self, event: Event) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(event);
        // Not at every event: looking through all of them has to be paid for by as many that come after.
        if waiting.len() >= WAITING && waiting.len().is_power_of_two() {
            thin(&mut waiting);
        }
        if waiting.len() > WAITING_MAX {
            waiting.pop_front();
        }
        drop(waiting);
        self.filled.notify_one();
    }
}

/// Leaves the last event of every container.
fn thin(waiting: &mut VecDeque<Event>) {
    let mut seen = HashSet::new();
    let last: Vec<Event> = waiting.drain(..).rev().filter(|event| seen.insert(event.container.clone())).collect();
    waiting.extend(last.into_iter().rev());
}

/// One who listens.
#[derive(Debug)]
pub struct Listener(Arc<Queue>);

impl Listener {
    /// The next event, when there is one.
    pub async fn next(&mut self) -> Event {
        loop {
            let filled = self.0.filled.notified();
            if let Some(event) = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                return event;
            }
            filled.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn all(listener: &mut Listener) -> Vec<(String, Kind)> {
        std::iter::from_fn(|| listener.next().now_or_never()).map(|event| (event.container, event.kind)).collect()
    }

    #[test]
    fn every_listener_hears_everything_in_order() {
        let events = Events::default();
        events.tell(Kind::Created, "early", "pod");
        let (mut one, mut two) = (events.listen(), events.listen());
        events.tell(Kind::Created, "a", "pod");
        events.tell(Kind::Started, "a", "pod");
        let expected = [("a".to_owned(), Kind::Created), ("a".to_owned(), Kind::Started)];
        assert_eq!((all(&mut one), all(&mut two)), (expected.to_vec(), expected.to_vec()));
        drop(two);
        events.tell(Kind::Stopped, "a", "pod");
        assert_eq!(all(&mut one), [("a".to_owned(), Kind::Stopped)]);
        assert_eq!(events.listeners.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_slow_listener_hears_how_everything_ended() {
        let events = Events::default();
        let mut slow = events.listen();
        events.tell(Kind::Created, "first", "pod");
        events.tell(Kind::Deleted, "first", "pod");
        for _ in 0..10 * WAITING {
            events.tell(Kind::Started, "busy", "pod");
        }
        events.tell(Kind::Stopped, "busy", "pod");
        let heard = all(&mut slow);
        assert!(heard.len() <= 2 * WAITING, "{} events", heard.len());
        assert_eq!(heard[0], ("first".to_owned(), Kind::Deleted));
        assert_eq!(heard.last(), Some(&("busy".to_owned(), Kind::Stopped)));
    }

    #[test]
    fn a_dead_listener_takes_no_more_than_so_much() {
        let events = Events::default();
        let mut dead = events.listen();
        for number in 0..WAITING_MAX + 10 {
            events.tell(Kind::Created, &number.to_string(), "pod");
        }
        assert_eq!(all(&mut dead).len(), WAITING_MAX);
    }
}
