//! conmon's attach socket: clients see live output in packets and send input.
//!
//! A packet to a client is one byte for the stream (2 stdout or terminal, 3 stderr) and up to [`PACKET`] bytes of
//! output; what a client sends is raw input. End of output is end of file.
//!
//! No client holds up anything. The socket's own buffer is the only queue: a client whose socket is full is behind,
//! remembers its place in the log, and is served from there until it is live again. Only where no log can be read
//! back do clients hold up the stream they are behind in, which then is what the caller asked for.

mod saved;

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
use crate::log::file::{LogFile, Position};
use crate::log::history::{self, Cursor, Piece, Window};
use crate::options::Options;
use crate::source::Source;
use crate::stdio::Turn;
use crate::stream::Stream;
use crate::sys::{self, PACKETS_MAX};

/// Bytes of output in one packet, the most that conmon's clients can take (they read 8193 bytes at once).
pub const PACKET: usize = 7680;

/// Log bytes that a client behind is served before others get their turn.
const QUANTUM: usize = 512 * 1024;

/// Clients at once; one more is turned away.
const CLIENTS_MAX: usize = 1024;

/// Descriptors that no client gets: what reopening a log and publishing the exit files takes.
const SPARE: u64 = 8;

/// The socket and those who are connected to it.
#[derive(Debug)]
pub struct Attach {
    listener: OwnedFd,
    socket: PathBuf,
    link: Option<PathBuf>,
    clients: Vec<Client>,
    next: u32,
    /// Descriptors from this number on are not for clients.
    spare_from: RawFd,
}

/// One attached client.
#[derive(Debug)]
pub struct Client {
    id: u32,
    socket: OwnedFd,
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

/// How a client gets its output.
#[derive(Debug)]
enum Feed {
    /// It has all there is.
    Live,
    /// From the log, up to the end or to a place where the log lost bytes.
    Behind { cursor: Cursor, stop: Option<Position> },
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
        match bind_at(bundle) {
            Ok(listener) => {
                let spare_from = spare_from();
                Ok(Attach { listener, socket, link, clients: Vec::new(), next: 0, spare_from })
            }
            Err(error) => {
                link.as_deref().map(fs::remove_file);
                Err(format!("Failed to bind attach socket {}: {error}", socket.display()))
            }
        }
    }

    /// Accepts one connection; `Again` while there may be more.
    pub fn accept(&mut self, registry: &Registry) -> Turn {
        match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
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
                Turn::Wait
            }
        }
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
        let client = Client { id, socket, feed: Feed::Live, readable: true, sending: true, left: false, stalled: None };
        self.clients.push(client);
        Ok(())
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

    /// Passes a chunk on to everybody who is live, after the log had it.
    pub fn offer(&mut self, registry: &Registry, stream: Stream, chunk: &[u8], recorded: Recorded) {
        for client in &mut self.clients {
            if !client.offer(registry, stream, chunk, recorded) {
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
        let is_behind = |client: &Client| matches!(client.feed, Feed::Behind { .. } | Feed::Queued(_));
        std::mem::take(&mut self.clients).into_iter().filter(is_behind).collect()
    }
}

impl AsFd for Attach {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Client {
    /// Receives input into `buffer`.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Received {
        // A peer that closed with our output unread leaves ECONNRESET in front of what it sent.
        for _ in 0..2 {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
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
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
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
            Feed::Behind { cursor, .. } => Some(cursor.at.generation),
            _ => None,
        }
    }

    /// False if the client cannot be kept.
    fn offer(&mut self, registry: &Registry, stream: Stream, chunk: &[u8], recorded: Recorded) -> bool {
        match (&mut self.feed, recorded) {
            (Feed::Live, _) => {}
            (Feed::Deaf, _) => return true,
            (Feed::Behind { stop, .. }, Recorded::Lost(at)) => {
                stop.get_or_insert(at);
                return true;
            }
            (Feed::Behind { .. }, _) => return true,
            (Feed::Queued(pending), _) => {
                pending[stream.index()].extend_from_slice(chunk);
                return true;
            }
        }
        let sent = match send(self.socket.as_fd(), stream, chunk) {
            Ok(sent) if sent == chunk.len() => return true,
            Ok(sent) => sent,
            Err(_) => return false,
        };
        self.feed = match recorded {
            Recorded::At(at) => Feed::Behind { cursor: Cursor { at, skip: sent }, stop: None },
            Recorded::Nowhere => {
                let mut pending = [Vec::new(), Vec::new()];
                pending[stream.index()].extend_from_slice(&chunk[sent..]);
                self.stalled = Some(Instant::now());
                Feed::Queued(pending)
            }
            Recorded::Lost(_) => {
                crate::warn!("Disconnected an attach client: the log lost what it would need");
                return false;
            }
        };
        self.watch(registry, Interest::READABLE | Interest::WRITABLE);
        true
    }

    fn watch(&self, registry: &Registry, interest: Interest) {
        let token = Source::Client(self.id).token();
        if let Err(error) = registry.reregister(&mut SourceFd(&self.socket.as_raw_fd()), token, interest) {
            crate::warn!("Failed to watch an attach client: {error}");
        }
    }

    /// Sends what the client takes now: `Wait` when it is full or live again, `Closed` when it cannot be served.
    fn serve(&mut self, log: Option<&LogFile>, buffer: &mut [u8]) -> Turn {
        let socket = self.socket.as_fd();
        let (turn, live) = match &mut self.feed {
            Feed::Live | Feed::Deaf => return Turn::Wait,
            Feed::Behind { cursor, stop } => match log {
                Some(log) => serve_log(socket, log, cursor, *stop, buffer),
                None => (Turn::Closed, false),
            },
            Feed::Queued(pending) => {
                let before: usize = pending.iter().map(Vec::len).sum();
                let answer = serve_pending(socket, pending);
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

/// From the log; the second value says that the client has all there is.
fn serve_log(
    socket: BorrowedFd<'_>,
    log: &LogFile,
    cursor: &mut Cursor,
    stop: Option<Position>,
    buffer: &mut [u8],
) -> (Turn, bool) {
    let mut done = 0;
    while done < QUANTUM {
        match history::window(log, *cursor, stop, buffer, PACKET) {
            Window::End => return (Turn::Wait, true),
            Window::Gone => return (Turn::Closed, false),
            Window::Pieces(pieces, next) => match send_pieces(socket, &pieces, buffer) {
                Err(_) => return (Turn::Closed, false),
                Ok(sent) => {
                    let all = pieces.last().map_or(0, |piece| piece.end);
                    if sent < all {
                        cursor.skip += sent;
                        return (Turn::Wait, false);
                    }
                    *cursor = next;
                    done += all.max(1);
                }
            },
        }
    }
    (Turn::Again, false)
}

/// From memory; the second value says that the client has all there is.
fn serve_pending(socket: BorrowedFd<'_>, pending: &mut [Vec<u8>; 2]) -> (Turn, bool) {
    for stream in Stream::ALL {
        let queue = &mut pending[stream.index()];
        match send(socket, stream, queue) {
            Ok(sent) if sent == queue.len() => *queue = Vec::new(),
            Ok(sent) => {
                queue.drain(..sent);
                return (Turn::Wait, false);
            }
            Err(_) => return (Turn::Closed, false),
        }
    }
    (Turn::Wait, true)
}

/// Sends as much of `bytes` as the socket takes, in packets.
fn send(socket: BorrowedFd<'_>, stream: Stream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        let mut parts: [&[u8]; PACKETS_MAX] = [&[]; PACKETS_MAX];
        let mut count = 0;
        for (slot, part) in parts.iter_mut().zip(bytes[sent..].chunks(PACKET)) {
            *slot = part;
            count += 1;
        }
        let taken = send_batch(socket, stream, &parts[..count])?;
        sent += parts[..taken].iter().map(|part| part.len()).sum::<usize>();
        if taken < count {
            break;
        }
    }
    Ok(sent)
}

/// Sends pieces in order; returns how many bytes of payload were taken.
fn send_pieces(socket: BorrowedFd<'_>, pieces: &[Piece], buffer: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    for run in pieces.chunk_by(|a, b| a.stream == b.stream) {
        for batch in run.chunks(PACKETS_MAX) {
            let mut parts: [&[u8]; PACKETS_MAX] = [&[]; PACKETS_MAX];
            for (slot, piece) in parts.iter_mut().zip(batch) {
                *slot = &buffer[piece.start..piece.end];
            }
            let taken = send_batch(socket, batch[0].stream, &parts[..batch.len()])?;
            sent += parts[..taken].iter().map(|part| part.len()).sum::<usize>();
            if taken < batch.len() {
                return Ok(sent);
            }
        }
    }
    Ok(sent)
}

/// A full socket takes no packet; any other error means that the client is gone.
fn send_batch(socket: BorrowedFd<'_>, stream: Stream, parts: &[&[u8]]) -> io::Result<usize> {
    match sys::send_packets(socket, stream.packet_byte(), parts) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        // No memory for a socket buffer now: as good as full.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
        answer => answer,
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
            clients.iter().map(|client| PollFd::new(client.socket.as_fd(), PollFlags::POLLOUT)).collect();
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
    clients.iter().map(|client| client.socket.as_raw_fd())
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

/// The kernel gives the lowest free number: one near the limit means that few are left.
fn spare_from() -> RawFd {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    RawFd::try_from(limit.saturating_sub(SPARE)).unwrap_or(RawFd::MAX)
}

/// A listening socket `dir/attach`, mode 0700, that is there only once it listens: nobody who sees it is refused. Through
/// the directory's descriptor, since the path may be longer than a socket address.
fn bind_at(dir: &Path) -> io::Result<OwnedFd> {
    let dir = open(dir, OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let temporary = format!(".attach.{}", std::process::id());
    let _ = unlinkat(&dir, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
    let address = UnixAddr::new(format!("/proc/self/fd/{}/{temporary}", dir.as_raw_fd()).as_str())?;
    let before = umask(Mode::from_bits_truncate(0o077));
    let bound = bind(listener.as_raw_fd(), &address);
    umask(before);
    bound?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    renameat(&dir, temporary.as_str(), &dir, "attach")?;
    Ok(listener)
}

/// conmon's backlog; clients may connect before anybody accepts.
const BACKLOG: i32 = 10;
