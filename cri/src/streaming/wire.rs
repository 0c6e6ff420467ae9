//! A connection after its upgrade, and what ends it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, interval_at, sleep, sleep_until};

/// A connection that has left HTTP behind.
#[derive(Debug)]
pub struct Wire {
    pub tcp: TcpStream,
    /// What the client sent right behind its request.
    pub early: Bytes,
    pub ends: Ends,
}

/// Reasons to end a connection, other than what is said on it.
#[derive(Clone, Debug)]
pub struct Ends {
    /// How long it may be without data.
    pub idle: Option<Duration>,
    /// Becomes true when the server stops.
    pub stop: watch::Receiver<bool>,
    pub peer: Peer,
}

impl Ends {
    /// Waits until the connection is to be ended; pings are no data.
    pub async fn wait(mut self, clock: Arc<Clock>) {
        tokio::select! {
            () = clock.idle(self.idle) => {}
            // An error means that the server is no more.
            _ = self.stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// Learns that the client has gone while its bytes are not read, which may be for long when nobody takes them.
#[derive(Clone, Debug)]
pub struct Peer(Arc<OwnedFd>);

impl Peer {
    pub fn of(tcp: &TcpStream) -> io::Result<Peer> {
        Ok(Peer(Arc::new(tcp.as_fd().try_clone_to_owned()?)))
    }

    /// Waits until the client has closed; begins to look after a second, since nearly every wait is shorter.
    ///
    /// A client's kernel cannot deliver the end while bytes before it are refused, but answers with a reset when
    /// something comes for a socket that nobody has: hence `probe` is called now and then, and sends what means
    /// nothing. That reset takes with it what the client has sent and nobody has read, hence not at once.
    pub async fn left(&self, probe: impl Fn()) {
        sleep(Duration::from_secs(1)).await;
        let watched = self.0.try_clone().map(std::net::TcpStream::from).and_then(TcpStream::from_std);
        let Ok(watched) = watched else { return std::future::pending().await };
        let mut probing = interval_at(Instant::now() + PROBE, PROBE);
        loop {
            let ready = tokio::select! {
                ready = watched.ready(Interest::READABLE) => ready,
                _ = probing.tick() => {
                    probe();
                    continue;
                }
            };
            if ready.is_ok_and(|ready| !ready.is_read_closed()) {
                // There is data, which is not ours to read: waits for the next change.
                let _ = watched.try_io(Interest::READABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
                continue;
            }
            return;
        }
    }
}

/// How often a client is probed whose bytes are not read.
const PROBE: Duration = Duration::from_secs(5);

/// When data last went over a connection.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    /// Milliseconds since the start.
    last: AtomicU64,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { start: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Clock {
    pub fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Waits until nothing has happened for so long; without a limit for ever.
    async fn idle(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let end = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}
