//! The Cap'n Proto service on `<bundle>/conward.sock` (`schema/conward.capnp`).
//!
//! A connection is a future on a small executor that the monitor's loop runs; there is no thread and no other loop.
//! What a client asks becomes a [`Command`] in the inbox, which the monitor empties and answers. Nothing but the
//! listening socket exists while nobody is connected.

mod desk;
mod executor;
pub mod fill;
mod inspect;
mod plain;
mod remote;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use capnp::message::ReaderOptions;
use capnp_rpc::{RpcSystem, rpc_capnp, rpc_twoparty_capnp, twoparty};
use conmon_proto::conward_capnp::monitor;
use futures_channel::oneshot;
use futures_util::io::{BufReader, BufWriter};
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{MsgFlags, SockFlag, SockType, accept4, getsockopt, send};
use nix::unistd::geteuid;

use crate::attach::{self, spare_from};
use crate::command::{Answered, Command};
use crate::options::{Mode, Options, RpcSocket};
use crate::source::Source;
use crate::stdio::Turn;
use crate::sys;
use crate::upgrade::state::{StateError, Taken};
pub use desk::STARTED;
use executor::Executor;
pub use inspect::{Inspection, inspect};
pub use remote::{CHUNK, Closing, Events, Phase, Remote, Target};
use wire::{Half, Wire};

/// Connections at once.
const LINKS_MAX: usize = 16;

/// A connection that has not asked for anything after this time makes room for one more.
const SILENT: Duration = Duration::from_secs(1);

/// Bytes of one message at most, and what a client can make us look through in it.
const MESSAGE_MAX: usize = 1 << 20;

/// Pointers that may follow each other in a message.
const NESTING_MAX: i32 = 32;

/// Heap that clients may take with what they leave lying about, beyond captured output.
const HEAP_MAX: usize = 32 << 20;

/// Bytes read before the heap is looked at again.
const LOOK_AFTER: u64 = 256 * 1024;

/// One request that waits for the monitor.
#[derive(Debug)]
pub struct Ask {
    pub command: Command,
    /// `None` if nobody waits for the answer.
    pub answer: Option<Answer>,
}

/// Where an answer goes.
pub type Answer = oneshot::Sender<Answered>;

type Inbox = Rc<RefCell<VecDeque<Ask>>>;

/// What exists only while somebody is connected.
#[derive(Debug, Default)]
struct Core {
    executor: Executor,
    inbox: Inbox,
    events: Events,
}

impl Core {
    fn has_news(&self) -> bool {
        !self.inbox.borrow().is_empty() || !self.events.borrow().is_empty()
    }
}

/// One connection.
#[derive(Debug)]
struct Link {
    id: u32,
    wire: Rc<Wire>,
    since: Instant,
    /// It has asked for something.
    known: Rc<Cell<bool>>,
    over: Rc<Cell<bool>>,
}

/// The socket and who is connected to it.
#[derive(Debug)]
pub struct Service {
    listener: OwnedFd,
    path: PathBuf,
    links: Vec<Link>,
    next: u32,
    core: Option<Box<Core>>,
    /// Bytes that links had read when the heap was last looked at.
    looked: u64,
    spare_from: i32,
}

impl Service {
    /// Makes the socket; `path` appears when it listens.
    #[inline(never)]
    pub fn bind(path: &Path) -> io::Result<Service> {
        let listener = attach::listen_at(path, SockType::Stream)?;
        let (links, spare_from) = (Vec::new(), spare_from());
        Ok(Service { listener, path: path.to_path_buf(), links, next: 0, core: None, looked: 0, spare_from })
    }

    /// Takes over the socket that another program has made.
    pub fn restore(options: &Options, number: i32, taken: &mut Taken) -> Result<Option<Service>, StateError> {
        let Some(listener) = taken.take_if(number)? else { return Ok(None) };
        let path = service_path(options).ok_or(StateError::Value("service"))?;
        let (links, spare_from) = (Vec::new(), spare_from());
        Ok(Some(Service { listener, path, links, next: 0, core: None, looked: 0, spare_from }))
    }

    /// Takes the socket's name away. The name may be another monitor's by now.
    pub fn unlink(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// True while the connection of this number is there.
    pub fn has_link(&self, id: u32) -> bool {
        self.links.iter().any(|link| link.id == id && !link.over.get())
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.links.len()
    }

    /// Accepts one connection; `Again` while there may be more.
    #[inline(never)]
    pub fn accept(&mut self, registry: &Registry) -> Turn {
        match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            Ok(fd) => {
                if let Err(error) = sys::adopt(fd).and_then(|socket| self.admit(socket, registry)) {
                    crate::warn!("Turned a client of the service away: {error}");
                }
                Turn::Again
            }
            Err(Errno::EINTR | Errno::ECONNABORTED) => Turn::Again,
            Err(Errno::EAGAIN) => Turn::Wait,
            Err(error) => {
                crate::warn!("Failed to accept a client of the service: {error}");
                Turn::Wait
            }
        }
    }

    fn admit(&mut self, socket: OwnedFd, registry: &Registry) -> io::Result<()> {
        let peer = getsockopt(&socket, PeerCredentials)?;
        if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
            let reason = format!("user {} is neither root nor the monitor's own", peer.uid());
            abort(&socket, &reason, rpc_capnp::exception::Type::Failed);
            return Err(io::Error::other(reason));
        }
        self.make_room();
        if self.links.len() >= LINKS_MAX || socket.as_raw_fd() >= self.spare_from {
            // Said to the client alone: a storm of them is no storm in our own log.
            let reason = format!("there are {} connections already", self.links.len());
            abort(&socket, &reason, rpc_capnp::exception::Type::Overloaded);
            return Ok(());
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut SourceFd(&socket.as_raw_fd()), Source::Link(id).token(), interest)?;
        self.connect(id, socket, peer.pid());
        Ok(())
    }

    /// A full house lets go of the one who has been silent longest.
    fn make_room(&mut self) {
        if self.links.len() < LINKS_MAX {
            return;
        }
        let silent = |link: &&Link| !link.known.get() && link.since.elapsed() >= SILENT;
        if let Some(link) = self.links.iter().filter(silent).min_by_key(|link| link.since) {
            link.wire.close();
            link.over.set(true);
        }
        self.links.retain(|link| !link.over.get());
    }

    /// Starts the RPC system of one connection.
    #[inline(never)]
    fn connect(&mut self, id: u32, socket: OwnedFd, pid: i32) {
        let core = self.core.get_or_insert_default();
        let wire = Wire::new(socket);
        let (known, over) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let desk = desk::Desk {
            inbox: Rc::clone(&core.inbox),
            spawner: core.executor.spawner().clone(),
            events: Rc::clone(&core.events),
            wire: Rc::clone(&wire),
            known: Rc::clone(&known),
            link: id,
            pid,
        };
        let options = ReaderOptions { traversal_limit_in_words: Some(MESSAGE_MAX / 8), nesting_limit: NESTING_MAX };
        let reader = BufReader::with_capacity(BUFFER, Half(Rc::clone(&wire)));
        let writer = BufWriter::with_capacity(BUFFER, Half(Rc::clone(&wire)));
        let side = rpc_twoparty_capnp::Side::Server;
        let network = twoparty::VatNetwork::new(reader, writer, side, options);
        let bootstrap: monitor::Client = capnp_rpc::new_client(desk);
        let system = RpcSystem::new(Box::new(network), Some(bootstrap.client));
        let (ended, socket) = (Rc::clone(&over), Rc::clone(&wire));
        core.executor.spawner().spawn(async move {
            if let Err(error) = system.await {
                crate::debug!("A connection to the service ended: {error}");
            }
            socket.close();
            ended.set(true);
        });
        self.links.push(Link { id, wire, since: Instant::now(), known, over });
    }

    /// Something happened to a connection's socket.
    pub fn wake(&self, id: u32) {
        if let Some(link) = self.links.iter().find(|link| link.id == id) {
            link.wire.wake();
        }
    }

    /// As if something had happened to all of them.
    pub fn wake_all(&self) {
        self.links.iter().for_each(|link| link.wire.wake());
    }

    /// Lets every connection do a bounded piece of work; true if one has ended.
    #[inline(never)]
    pub fn run(&mut self) -> bool {
        let Some(core) = &mut self.core else { return false };
        core.executor.run();
        let before = self.links.len();
        self.links.retain(|link| !link.over.get());
        let ended = self.links.len() < before;
        if self.links.is_empty() && !core.executor.is_awake() && !core.has_news() {
            // What is left waits for somebody who is gone.
            self.core = None;
        }
        ended
    }

    /// A new turn of the loop begins.
    pub fn refill(&self) {
        self.links.iter().for_each(|link| link.wire.refill());
    }

    /// True if there is work without a further event.
    pub fn is_awake(&self) -> bool {
        self.core.as_ref().is_some_and(|core| core.executor.is_awake())
    }

    /// True if something was asked, or has happened to somebody's output.
    pub fn has_news(&self) -> bool {
        self.core.as_ref().is_some_and(|core| core.has_news())
    }

    /// True if somebody used up what may be read in one turn: no event will say that there is more.
    pub fn is_hungry(&self) -> bool {
        self.links.iter().any(|link| link.wire.is_hungry())
    }

    /// True while somebody is connected or what they asked for is being done.
    pub fn is_used(&self) -> bool {
        self.core.is_some()
    }

    /// What clients have asked for since the last time.
    pub fn asked(&mut self) -> VecDeque<Ask> {
        self.core.as_ref().map(|core| core.inbox.take()).unwrap_or_default()
    }

    /// Whose output can go on, or is at an end.
    pub fn happened(&mut self) -> Vec<Target> {
        self.core.as_ref().map(|core| core.events.take()).unwrap_or_default()
    }

    /// True if a client has not taken what was sent to it.
    pub fn is_stuck(&self) -> bool {
        self.links.iter().any(|link| link.wire.is_stuck())
    }

    /// Ends the greediest connection if the heap has grown beyond its bound; `captured` is output that is kept on
    /// purpose.
    pub fn guard(&mut self, captured: usize) {
        let read: u64 = self.links.iter().map(|link| link.wire.read.get()).sum();
        if read < self.looked.saturating_add(LOOK_AFTER) && read >= self.looked {
            return;
        }
        self.looked = read;
        let held = sys::heap_in_use();
        if held > HEAP_MAX + captured
            && let Some(link) = self.links.iter().max_by_key(|link| link.wire.read.get())
        {
            crate::warn!("Ended a connection to the service: with it {held} bytes of memory are in use");
            link.wire.close();
        }
    }

    /// Sockets of all connections.
    pub fn sockets(&self) -> impl Iterator<Item = i32> {
        self.links.iter().map(|link| link.wire.as_fd().as_raw_fd())
    }

    /// Number of the listening socket.
    pub fn number(&self) -> i32 {
        self.listener.as_raw_fd()
    }
}

impl AsFd for Service {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Where the socket is to be. An exec of conmon's kind has none of its own unless a path is given.
pub fn service_path(options: &Options) -> Option<PathBuf> {
    let exec = matches!(options.mode, Mode::Exec { .. });
    match (&options.rpc_socket, options.bundle.as_deref()) {
        (RpcSocket::At(path), _) => Some(path.clone()),
        (RpcSocket::InBundle, Some(bundle)) if !exec => Some(bundle.join(NAME)),
        (RpcSocket::InBundle | RpcSocket::None, _) => None,
    }
}

/// The socket's name in the bundle.
const NAME: &str = "conward.sock";

/// Small writes and reads are put together; large ones pass by.
const BUFFER: usize = 4096;

/// Tells a peer why it is not served (rpc.capnp, `Message.abort`), as far as its socket takes it.
fn abort(socket: &OwnedFd, reason: &str, kind: rpc_capnp::exception::Type) {
    let mut message = capnp::message::Builder::new_default();
    let mut exception = message.init_root::<rpc_capnp::message::Builder<'_>>().init_abort();
    exception.set_reason(reason);
    exception.set_type(kind);
    let words = capnp::serialize::write_message_to_words(&message);
    let _ = send(socket.as_raw_fd(), &words, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
}
