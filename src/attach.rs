//! conmon's attach socket: clients see live output in packets and send input.
//!
//! A packet to a client is one byte for the stream (2 stdout or terminal, 3 stderr) and up to [`PACKET`] bytes of
//! output; what a client sends is raw input. End of output is end of file.
//!
//! Clients of the Cap'n Proto service are served by the same means (`seat`): they may also ask for what was said before,
//! and hear of bytes that cannot be had.
//!
//! No client holds up anything. The socket's own buffer is the only queue: a client whose socket is full is behind,
//! remembers its place in the log, and is served from there until it is live again. Only where no log can be read
//! back do clients hold up the stream they are behind in, which then is what the caller asked for.

mod packets;
mod saved;
mod seat;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, renameat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt, listen, recv,
    shutdown, socket,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::log::Recorded;
use crate::log::file::LogFile;
use crate::log::history::{Place, Search};
use crate::options::Options;
use crate::rpc::Target;
use crate::source::Source;
use crate::stdio::Turn;
use crate::stream::Stream;
use crate::sys;
pub use seat::{History, Request, Seat};

/// Bytes of output in one packet, the most that conmon's clients can take (they read 8193 bytes at once).
pub const PACKET: usize = 7680;

/// Log bytes that a client behind is served before others get their turn.
pub(crate) const QUANTUM: usize = 512 * 1024;

/// Clients at once; one more is turned away.
const CLIENTS_MAX: usize = 1024;

/// Clients that are accepted in one turn.
const ARRIVALS: usize = 32;

/// Descriptors that no client gets: what reopening a log and publishing the exit files takes.
const SPARE: u64 = 8;

/// The socket and those who are connected to it.
#[derive(Debug)]
pub struct Attach {
    /// conmon's socket, where there is one.
    listener: Option<OwnedFd>,
    socket: PathBuf,
    link: Option<PathBuf>,
    clients: Vec<Client>,
    next: u32,
    /// Descriptors from this number on are not for clients.
    spare_from: RawFd,
    /// Somebody waits who could not be accepted.
    stuck: bool,
}

/// One attached client.
#[derive(Debug)]
pub struct Client {
    id: u32,
    line: Line,
    feed: Feed,
    /// There may be something to receive.
    pub readable: bool,
    /// It has not shut down its sending side.
    sending: bool,
    /// It has closed its end, or we did.
    pub left: bool,
    /// Since when it has taken nothing.
    stalled: Option<Instant>,
}

/// How a client is reached.
#[derive(Debug)]
enum Line {
    /// conmon's protocol.
    Packets(OwnedFd),
    /// The Cap'n Proto service.
    Service(Seat),
}

/// How a client gets its output.
#[derive(Debug)]
enum Feed {
    /// It has all there is.
    Live,
    /// It is not known yet where what it asked for begins.
    Looking(Search),
    /// From the log, up to the end or to a place where the log lost bytes.
    Behind(Place),
    /// From memory, where there is no log to read; the streams with something here wait.
    Queued([Vec<u8>; 2]),
    /// It takes or gets no more output; what it sent still counts.
    Deaf,
}

/// What a client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Bytes(usize),
    Nothing,
    /// It will send no more.
    End,
}

impl Attach {
    /// Makes the socket, and the symlink to the bundle unless `--full-attach`.
    pub fn create(options: &Options, bundle: &Path) -> Result<Attach, String> {
        let link = if options.full_attach { None } else { Some(link_bundle(options, bundle)?) };
        let socket = bundle.join("attach");
        match listen_at(&socket, SockType::SeqPacket) {
            Ok(listener) => {
                let (listener, clients, spare_from) = (Some(listener), Vec::new(), spare_from());
                Ok(Attach { listener, socket, link, clients, next: 0, spare_from, stuck: false })
            }
            Err(error) => {
                link.as_deref().map(fs::remove_file);
                Err(format!("Failed to bind attach socket {}: {error}", socket.display()))
            }
        }
    }

    /// Without a socket: only clients of the service.
    pub fn bare() -> Attach {
        let (socket, clients) = (PathBuf::new(), Vec::new());
        Attach { listener: None, socket, link: None, clients, next: 0, spare_from: spare_from(), stuck: false }
    }

    /// Accepts some connections; `Again` while there may be more.
    pub fn accept(&mut self, registry: &Registry) -> Turn {
        for _ in 0..ARRIVALS {
            if self.accept_one(registry) == Turn::Wait {
                return Turn::Wait;
            }
        }
        Turn::Again
    }

    fn accept_one(&mut self, registry: &Registry) -> Turn {
        let Some(listener) = &self.listener else { return Turn::Wait };
        self.stuck = false;
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            Ok(fd) => {
                if let Err(reason) = self.admit(fd, registry) {
                    crate::warn!("Turned an attach client away: {reason}");
                }
                Turn::Again
            }
            Err(Errno::EINTR | Errno::ECONNABORTED) => Turn::Again,
            Err(Errno::EAGAIN) => Turn::Wait,
            Err(error) => {
                // Out of descriptors, say: the connection stays in the backlog until the next one comes.
                crate::warn!("Failed to accept an attach client: {error}");
                self.stuck = true;
                Turn::Wait
            }
        }
    }

    /// True if somebody can be accepted who has connected by now, whether the event has been seen or not.
    pub fn is_called(&self) -> bool {
        let Some(listener) = self.listener.as_ref().filter(|_| !self.stuck) else { return false };
        poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
    }

    fn admit(&mut self, fd: RawFd, registry: &Registry) -> io::Result<()> {
        let socket = sys::adopt(fd)?;
        let peer = getsockopt(&socket, PeerCredentials)?.uid();
        if peer != 0 && peer != geteuid().as_raw() {
            return Err(io::Error::other(format!("user {peer} is neither root nor ours")));
        }
        if self.clients.len() >= CLIENTS_MAX {
            return Err(io::Error::other(format!("there are {CLIENTS_MAX} already")));
        }
        if fd >= self.spare_from {
            return Err(io::Error::other("the descriptors that are left are needed for the exit files"));
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        registry.register(&mut SourceFd(&socket.as_raw_fd()), Source::Client(id).token(), Interest::READABLE)?;
        let (line, feed) = (Line::Packets(socket), Feed::Live);
        self.clients.push(Client { id, line, feed, readable: true, sending: true, left: false, stalled: None });
        Ok(())
    }

    /// Takes a client of the service; its number.
    pub fn seat(&mut self, seat: Seat, search: Option<Search>) -> Result<u32, String> {
        if self.clients.len() >= CLIENTS_MAX {
            return Err(format!("there are {CLIENTS_MAX} clients already"));
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        seat.remote.aim(Target::Client(id));
        let (sending, feed) = (seat.types, search.map_or(Feed::Live, Feed::Looking));
        let line = Line::Service(seat);
        self.clients.push(Client { id, line, feed, readable: false, sending, left: false, stalled: None });
        Ok(id)
    }

    pub fn client(&mut self, id: u32) -> Option<&mut Client> {
        self.clients.iter_mut().find(|client| client.id == id)
    }

    /// Disconnects a client.
    pub fn remove(&mut self, id: u32) {
        self.clients.retain(|client| client.id != id);
    }

    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Clients whose input waits to be received.
    pub fn readable(&self) -> impl Iterator<Item = u32> {
        self.clients.iter().filter(|client| client.readable && client.sending).map(|client| client.id)
    }

    /// True if somebody else than `id` may still type.
    pub fn others_type(&self, id: u32) -> bool {
        self.clients.iter().any(|client| client.id != id && client.sending)
    }

    /// Passes a chunk on to everybody who is live, after the log had it; `offset` is that of its first byte.
    pub fn offer(&mut self, registry: &Registry, stream: Stream, offset: u64, chunk: &[u8], recorded: Recorded) {
        for client in &mut self.clients {
            if !client.offer(registry, stream, offset, chunk, recorded) {
                client.deafen();
            }
        }
    }

    /// True if a client holds up this stream.
    pub fn holds_up(&self, stream: Stream) -> bool {
        self.clients.iter().any(|client| client.waits_in_memory(stream))
    }

    /// The oldest log file that a client still needs.
    pub fn oldest_needed(&self) -> Option<u64> {
        self.clients.iter().filter_map(Client::needs).min()
    }

    /// Serves a client that was behind; `Closed` if it is to be disconnected.
    pub fn serve(&mut self, registry: &Registry, id: u32, log: Option<&LogFile>, buffer: &mut [u8]) -> Turn {
        let Some(client) = self.client(id) else { return Turn::Wait };
        if matches!(client.feed, Feed::Live | Feed::Deaf) {
            return Turn::Wait;
        }
        let turn = client.serve(log, buffer);
        if matches!(client.feed, Feed::Live) {
            client.watch(registry, Interest::READABLE);
        }
        turn
    }

    /// Clients that have taken nothing for `limit`.
    pub fn stalled(&self, limit: Duration) -> Vec<u32> {
        let is_over = |client: &&Client| client.stalled.is_some_and(|since| since.elapsed() >= limit);
        self.clients.iter().filter(is_over).map(|client| client.id).collect()
    }

    /// True if a client makes a stream wait for it.
    pub fn any_stalled(&self) -> bool {
        self.clients.iter().any(|client| client.stalled.is_some())
    }

    /// Nobody can come any more: the socket's name is gone. The name may be another monitor's by now.
    pub fn unlink(&self) {
        let _ = fs::remove_file(&self.socket);
    }

    /// Removes the symlink, as on every end of the monitor.
    pub fn unlink_link(&self) {
        self.link.as_deref().map(fs::remove_file);
    }

    /// Lets go of all clients that have everything; the others are returned.
    pub fn take_behind(&mut self) -> Vec<Client> {
        let is_behind = |client: &Client| matches!(client.feed, Feed::Behind(_) | Feed::Queued(_));
        self.clients.extract_if(.., |client| client.socket().is_some()).filter(is_behind).collect()
    }

    /// Clients of the service.
    pub fn seated(&self) -> Vec<u32> {
        self.clients.iter().filter(|client| client.seat().is_some()).map(|client| client.id).collect()
    }

    /// conmon's socket.
    pub fn path(&self) -> &Path {
        &self.socket
    }

    pub fn clients(&self) -> impl Iterator<Item = &Client> {
        self.clients.iter()
    }
}

impl Attach {
    /// conmon's socket, to be watched.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }
}

impl Client {
    /// Receives input into `buffer`.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Received {
        let Line::Packets(socket) = &self.line else { return Received::Nothing };
        // A peer that closed with our output unread leaves ECONNRESET in front of what it sent.
        for _ in 0..2 {
            match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => break,
                Ok(count) => return Received::Bytes(count),
                Err(Errno::EAGAIN) => {
                    self.readable = false;
                    return Received::Nothing;
                }
                Err(_) => {}
            }
        }
        self.sending = false;
        self.readable = false;
        Received::End
    }

    /// It will get no more output, and sees the end of it; the end of its input follows as an event.
    pub fn deafen(&mut self) {
        self.feed = Feed::Deaf;
        self.left = true;
        self.stalled = None;
        if let Line::Packets(socket) = &self.line {
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }

    /// Its socket, if it has one of its own.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.line {
            Line::Packets(socket) => Some(socket.as_fd()),
            Line::Service(_) => None,
        }
    }

    /// What makes it a client of the service.
    pub fn seat(&self) -> Option<&Seat> {
        match &self.line {
            Line::Packets(_) => None,
            Line::Service(seat) => Some(seat),
        }
    }

    /// True if it does not have all there is.
    pub fn is_behind(&self) -> bool {
        matches!(self.feed, Feed::Looking(_) | Feed::Behind(_) | Feed::Queued(_))
    }

    /// True if it may type.
    pub fn types(&self) -> bool {
        self.sending
    }

    /// Process at the other end.
    pub fn pid(&self) -> i32 {
        match &self.line {
            Line::Packets(socket) => getsockopt(socket, PeerCredentials).map_or(0, |peer| peer.pid()),
            Line::Service(seat) => seat.remote.pid,
        }
    }

    /// Bytes that it has not taken yet, if the log ends at `end`.
    pub fn behind_by(&self, end: [u64; 2]) -> u64 {
        match &self.feed {
            Feed::Live | Feed::Deaf => 0,
            Feed::Looking(_) => end.iter().sum(),
            Feed::Behind(place) => (0..2).map(|index| end[index].saturating_sub(place.next()[index])).sum(),
            Feed::Queued(pending) => pending.iter().map(|queue| queue.len() as u64).sum(),
        }
    }

    /// True if nothing can come from it or go to it any more.
    pub fn has_left(&self) -> bool {
        self.left && !self.sending
    }

    fn waits_in_memory(&self, stream: Stream) -> bool {
        matches!(&self.feed, Feed::Queued(pending) if !pending[stream.index()].is_empty())
    }

    fn needs(&self) -> Option<u64> {
        match &self.feed {
            // It may go back as far as there is anything.
            Feed::Looking(_) => Some(0),
            Feed::Behind(place) => Some(place.mark.at.generation),
            Feed::Live | Feed::Queued(_) | Feed::Deaf => None,
        }
    }

    /// False if the client cannot be kept.
    fn offer(&mut self, registry: &Registry, stream: Stream, offset: u64, chunk: &[u8], recorded: Recorded) -> bool {
        match (&mut self.feed, &self.line) {
            (Feed::Live, _) => {}
            (Feed::Deaf | Feed::Looking(_) | Feed::Behind(_), _) => return true,
            (Feed::Queued(_), Line::Service(seat)) if !seat.wants(stream) => return true,
            (Feed::Queued(pending), _) => {
                pending[stream.index()].extend_from_slice(chunk);
                return true;
            }
        }
        let answer = match &mut self.line {
            Line::Packets(socket) => packets::send(socket.as_fd(), stream, chunk),
            Line::Service(seat) => Ok(seat.send(stream, offset, chunk)),
        };
        let sent = match answer {
            Ok(sent) if sent == chunk.len() => return true,
            Ok(sent) => sent,
            Err(_) => return false,
        };
        self.feed = match (recorded, &self.line) {
            (Recorded::At(begin), _) | (Recorded::Lost(begin), Line::Service(_)) => {
                let mut place = Place::from(begin);
                place.from[stream.index()] += sent as u64;
                Feed::Behind(place)
            }
            (Recorded::Nowhere, _) => {
                let mut pending = [Vec::new(), Vec::new()];
                pending[stream.index()].extend_from_slice(&chunk[sent..]);
                self.stalled = Some(Instant::now());
                Feed::Queued(pending)
            }
            (Recorded::Lost(_), Line::Packets(_)) => {
                crate::warn!("Disconnected an attach client: the log lost what it would need");
                return false;
            }
        };
        self.watch(registry, Interest::READABLE | Interest::WRITABLE);
        true
    }

    fn watch(&self, registry: &Registry, interest: Interest) {
        let Line::Packets(socket) = &self.line else { return };
        let token = Source::Client(self.id).token();
        if let Err(error) = registry.reregister(&mut SourceFd(&socket.as_raw_fd()), token, interest) {
            crate::warn!("Failed to watch an attach client: {error}");
        }
    }

    /// Sends what the client takes now: `Wait` when it is full or live again, `Closed` when it cannot be served.
    fn serve(&mut self, log: Option<&LogFile>, buffer: &mut [u8]) -> Turn {
        if let (Feed::Looking(search), Some(log)) = (&mut self.feed, log) {
            let Some(place) = search.step(log, buffer) else { return Turn::Again };
            self.feed = Feed::Behind(place);
        }
        let (turn, live) = match (&mut self.feed, &mut self.line, log) {
            (Feed::Live | Feed::Deaf, ..) => return Turn::Wait,
            (Feed::Looking(_) | Feed::Behind(_), _, None) => (Turn::Closed, false),
            (Feed::Looking(_), ..) => (Turn::Again, false),
            (Feed::Behind(place), Line::Packets(socket), Some(log)) => {
                packets::serve_log(socket.as_fd(), log, place, buffer)
            }
            (Feed::Behind(place), Line::Service(seat), Some(log)) => seat.serve_log(log, place, buffer),
            (Feed::Queued(pending), line, _) => {
                let before: usize = pending.iter().map(Vec::len).sum();
                let answer = match line {
                    Line::Packets(socket) => packets::serve_pending(socket.as_fd(), pending),
                    Line::Service(seat) => seat.serve_pending(pending),
                };
                if pending.iter().map(Vec::len).sum::<usize>() < before {
                    self.stalled = Some(Instant::now());
                }
                answer
            }
        };
        if live {
            self.feed = Feed::Live;
            self.stalled = None;
        }
        turn
    }
}

/// Serves clients that are behind, each to its last byte; for a process that has nothing else to do any more. Gives up
/// when none takes anything for `patience`.
pub fn serve_to_the_end(
    mut clients: Vec<Client>,
    mut log: Option<LogFile>,
    buffer: &mut [u8],
    patience: Option<Duration>,
) {
    let timeout = patience.map_or(PollTimeout::NONE, |limit| PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX));
    while !clients.is_empty() {
        let mut polled: Vec<PollFd<'_>> =
            clients.iter().filter_map(Client::socket).map(|fd| PollFd::new(fd, PollFlags::POLLOUT)).collect();
        if poll(&mut polled, timeout) == Ok(0) {
            return;
        }
        let ready: Vec<bool> = polled.iter().map(|one| one.any().unwrap_or(true)).collect();
        let mut ready = ready.into_iter();
        clients.retain_mut(|client| {
            if !ready.next().unwrap_or(false) {
                return true;
            }
            client.serve(log.as_ref(), buffer) != Turn::Closed && !matches!(client.feed, Feed::Live)
        });
        let oldest = clients.iter().filter_map(Client::needs).min();
        if let (Some(log), Some(oldest)) = (log.as_mut(), oldest) {
            log.release_before(oldest);
        }
    }
}

/// The descriptors that [`serve_to_the_end`] needs.
pub fn sockets(clients: &[Client]) -> impl Iterator<Item = RawFd> {
    clients.iter().filter_map(Client::socket).map(|fd| fd.as_raw_fd())
}

/// `<socket-dir>/<cuuid>` → bundle, the text as given. One of exactly 107 bytes loses its last one, as with conmon,
/// since callers that connect to such a name cut it as well.
fn link_bundle(options: &Options, bundle: &Path) -> Result<PathBuf, String> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let name = options.cuuid.as_deref().unwrap_or(&options.cid);
    let mut link = options.socket_dir.join(name).into_os_string().into_vec();
    if link.len() == 107 {
        link.pop();
    }
    let link = PathBuf::from(std::ffi::OsStr::from_bytes(&link));
    let _ = fs::remove_file(&link);
    symlink(bundle, &link)
        .map_err(|error| format!("Failed to create symlink for attach socket {}: {error}", link.display()))?;
    Ok(link)
}

/// Descriptors from this number on are for what must not fail. The kernel gives the lowest free number: one near the
/// limit means that few are left.
pub fn spare_from() -> RawFd {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    RawFd::try_from(limit.saturating_sub(SPARE)).unwrap_or(RawFd::MAX)
}

/// A listening socket at `path`, mode 0700, that is there only once it listens: nobody who sees it is refused. Through
/// the directory's descriptor, since the path may be longer than a socket address.
pub fn listen_at(path: &Path, kind: SockType) -> io::Result<OwnedFd> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = open(parent, OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, kind, flags, None)?;
    let temporary = format!(".{}.{}", name.to_string_lossy(), std::process::id());
    let _ = unlinkat(&dir, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
    let address = UnixAddr::new(format!("/proc/self/fd/{}/{temporary}", dir.as_raw_fd()).as_str())?;
    let before = umask(Mode::from_bits_truncate(0o077));
    let bound = bind(listener.as_raw_fd(), &address);
    umask(before);
    bound?;
    listen(&listener, Backlog::new(if kind == SockType::Stream { SERVICE_BACKLOG } else { BACKLOG })?)?;
    renameat(&dir, temporary.as_str(), &dir, name)?;
    Ok(listener)
}

/// conmon's backlog; clients may connect before anybody accepts.
const BACKLOG: i32 = 10;

/// Whoever connects to the service is answered, if only with a refusal, and should not be turned away by the kernel.
const SERVICE_BACKLOG: i32 = 128;
