//! The way to journald: datagrams on a Unix socket, and sealed memory for what does not fit into one.
//!
//! Each datagram is addressed by path, so a journald that was restarted is found again by the next entry.
//!
//! journald's queue is short, and a burst of lines fills it faster than journald can read: a living journald is waited
//! for, up to [`PATIENCE`] per chunk of output. One that takes nothing in that time is not waited for again until it
//! has taken an entry.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// A socket that is opened when it is needed first.
#[derive(Debug)]
pub struct Socket {
    /// An address that cannot be is an error of each entry, not of the start.
    address: nix::Result<UnixAddr>,
    socket: Option<OwnedFd>,
    /// How long journald may still be waited for.
    patience: Duration,
    /// It took nothing although it was waited for.
    stuck: bool,
}

/// The longest that journald may hold up one chunk of output.
pub const PATIENCE: Duration = Duration::from_millis(PATIENCE_MS.unsigned_abs());

const PATIENCE_MS: i64 = 200;

impl Socket {
    pub fn new(path: &Path) -> Socket {
        Socket { address: UnixAddr::new(path), socket: None, patience: PATIENCE, stuck: false }
    }

    /// A new chunk of output begins.
    pub fn renew_patience(&mut self) {
        self.patience = if self.stuck { Duration::ZERO } else { PATIENCE };
    }

    /// Hands over one entry, as soon as journald has room for it but not later than patience lasts.
    pub fn send(&mut self, entry: &[IoSlice<'_>]) -> nix::Result<()> {
        let begin = Instant::now();
        let result = self.hand_over(entry);
        self.patience = self.patience.saturating_sub(begin.elapsed());
        match result {
            Ok(()) => self.stuck = false,
            Err(Errno::EAGAIN) => (self.stuck, self.patience) = (true, Duration::ZERO),
            Err(_) => {}
        }
        result
    }

    /// True if it is not waited for any more.
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }

    pub fn set_stuck(&mut self, stuck: bool) {
        self.stuck = stuck;
    }

    fn hand_over(&mut self, entry: &[IoSlice<'_>]) -> nix::Result<()> {
        let wait = if self.patience.is_zero() { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
        let address = self.address?;
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(open()?),
        };
        match send(socket, entry, &[], &address, wait) {
            Err(Errno::EMSGSIZE | Errno::ENOBUFS) => {
                let memory = seal(entry)?;
                send(socket, &[], &[memory.as_raw_fd()], &address, wait)
            }
            result => result,
        }
    }
}

fn send(
    socket: &OwnedFd,
    entry: &[IoSlice<'_>],
    passed: &[RawFd],
    address: &UnixAddr,
    wait: MsgFlags,
) -> nix::Result<()> {
    let rights = [ControlMessage::ScmRights(passed)];
    let rights = if passed.is_empty() { &[] } else { &rights[..] };
    sendmsg(socket.as_raw_fd(), entry, rights, MsgFlags::MSG_NOSIGNAL | wait, Some(address)).map(drop)
}

fn open() -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(PATIENCE_MS))?;
    // A burst waits in the kernel until journald has time. Without privilege the system's limit stays.
    if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
        let _ = setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER);
    }
    Ok(socket)
}

/// The entry in memory that can no longer be changed, as journald demands before it maps it.
fn seal(entry: &[IoSlice<'_>]) -> nix::Result<File> {
    let mut memory = File::from(memfd_create(c"conward-entry", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    for part in entry {
        memory.write_all(part).map_err(errno)?;
    }
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(memory)
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// What journald's own library asks for.
const SEND_BUFFER: usize = 8 << 20;
