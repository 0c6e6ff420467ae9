//! Where output goes over the service: a client's `Output`, with a window that bounds what is on its way.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use conmon_proto::conward_capnp::{self as wire, end, output};

use super::executor::Spawner;
use super::fill;
use crate::exit::Summary;
use crate::session::Id;
use crate::stream::Stream;

/// Bytes of output in one call.
pub const CHUNK: usize = 32 * 1024;

/// Who an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A client of the container's output.
    Client(u32),
    /// An exec.
    Exec(Id),
}

/// Targets whose remote has changed: room again, everything acknowledged, or broken.
pub type Events = Rc<RefCell<Vec<Target>>>;

/// A client's `Output`.
#[derive(Clone)]
pub struct Remote {
    output: output::Client,
    state: Rc<State>,
    spawner: Spawner,
    events: Events,
    /// Process that the connection came from.
    pub pid: i32,
    /// Number of the connection.
    pub link: u32,
}

#[derive(Default)]
struct State {
    target: Cell<Option<Target>>,
    /// The window is full.
    full: Cell<bool>,
    phase: Cell<Phase>,
}

/// Where a remote is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Open,
    /// The last call is on its way.
    Ending,
    /// The client has everything.
    Done,
    /// The client cannot be reached any more.
    Broken,
}

/// Why nothing more comes.
#[derive(Clone, Copy, Debug)]
pub struct Closing {
    pub reason: end::Reason,
    pub exit: Option<Summary>,
    /// Offsets behind the last bytes.
    pub offsets: [u64; 2],
    pub lost: u64,
}

impl Remote {
    pub fn new(output: output::Client, spawner: Spawner, events: Events, link: u32, pid: i32) -> Remote {
        Remote { output, state: Rc::default(), spawner, events, pid, link }
    }

    /// Says whom events are about.
    pub fn aim(&self, target: Target) {
        self.state.target.set(Some(target));
    }

    /// True if the next chunk may be written.
    pub fn has_room(&self) -> bool {
        self.state.phase.get() == Phase::Open && !self.state.full.get()
    }

    pub fn phase(&self) -> Phase {
        self.state.phase.get()
    }

    /// Sends bytes that begin at `offset`; the window may be overrun by one chunk.
    pub fn write(&self, stream: Stream, offset: u64, bytes: &[u8]) {
        let mut request = self.output.write_request();
        let mut call = request.get();
        call.set_stream(fill::stream(stream));
        call.set_offset(offset);
        call.set_data(bytes);
        self.follow(request.send());
    }

    /// Says that `lost` bytes from `offset` on cannot be had.
    pub fn gap(&self, stream: Stream, offset: u64, lost: u64) {
        let mut request = self.output.gap_request();
        let mut call = request.get();
        call.set_stream(fill::stream(stream));
        call.set_offset(offset);
        call.set_lost(lost);
        self.follow(request.send());
    }

    /// The last call; an event tells when it has been answered.
    pub fn end(&self, closing: &Closing) {
        if self.state.phase.get() != Phase::Open {
            return;
        }
        self.state.phase.set(Phase::Ending);
        let mut request = self.output.end_request();
        let mut end = request.get().init_end();
        end.set_reason(closing.reason);
        end.set_stdout(closing.offsets[0]);
        end.set_stderr(closing.offsets[1]);
        end.set_lost(closing.lost);
        if let Some(exit) = &closing.exit {
            fill::exit(end.init_exit(), exit);
        }
        let (promise, this) = (request.send().promise, self.clone());
        self.spawner.spawn(async move {
            let done = promise.await.is_ok();
            this.state.phase.set(if done { Phase::Done } else { Phase::Broken });
            this.tell();
        });
    }

    /// Takes note of when the window has room again; usually it still has.
    fn follow(&self, mut sent: capnp::capability::Promise<(), capnp::Error>) {
        match Pin::new(&mut sent).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => {
                self.state.phase.set(Phase::Broken);
                self.tell();
            }
            Poll::Pending => {
                self.state.full.set(true);
                let this = self.clone();
                self.spawner.spawn(async move {
                    if sent.await.is_err() {
                        this.state.phase.set(Phase::Broken);
                    }
                    this.state.full.set(false);
                    this.tell();
                });
            }
        }
    }

    fn tell(&self) {
        self.events.borrow_mut().extend(self.state.target.get());
    }
}

impl PartialEq for Remote {
    fn eq(&self, other: &Remote) -> bool {
        Rc::ptr_eq(&self.state, &other.state)
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({:?} of connection {}, {:?})", self.state.target.get(), self.link, self.phase())
    }
}

/// What the schema calls a stream.
pub const fn named(stream: wire::Stream) -> Stream {
    match stream {
        wire::Stream::Stdout => Stream::Stdout,
        wire::Stream::Stderr => Stream::Stderr,
    }
}
