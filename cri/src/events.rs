//! Container events, for clients that would rather be told than ask.

use tokio::sync::broadcast;

use crate::state;

/// What happened to a container or, by the pod's own id, to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: Kind,
    pub container: String,
    pub pod: String,
    /// Nanoseconds since 1970.
    pub at: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Events for whoever listens. One who does not keep up misses the oldest, and hears the newest state of everything.
#[derive(Debug)]
pub struct Events(broadcast::Sender<Event>);

/// Events that may wait for one listener.
const WAITING: usize = 1024;

impl Default for Events {
    fn default() -> Events {
        Events(broadcast::channel(WAITING).0)
    }
}

impl Events {
    pub fn tell(&self, kind: Kind, container: &str, pod: &str) {
        let event = Event { kind, container: container.into(), pod: pod.into(), at: state::now() };
        // Nobody may be listening.
        let _ = self.0.send(event);
    }

    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
