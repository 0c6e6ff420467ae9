//! The way to journald: datagrams on a Unix socket, and sealed memory for what does not fit into one.
//!
//! Each datagram is addressed by path, so a journald that was restarted is found again by the next entry.
//!
//! journald's queue is short, and a burst of lines fills it faster than journald can read: a living journald is waited
//! for, up to [`PATIENCE`] per piece of output and up to [`TURN`] in one turn. One that takes nothing in that time is
//! not waited for again until it has taken an entry.

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
    /// How long journald may still be waited for, for this piece of output.
    patience: Duration,
    /// How long in this turn.
    allowance: Duration,
    /// It took an entry of this piece.
    took: bool,
    /// It took nothing although it was waited for.
    stuck: bool,
}

/// The longest that journald may hold up one piece of output.
pub const PATIENCE: Duration = Duration::from_millis(200);

/// The longest that it may hold up all that is logged in one turn, or at the container's end.
pub const TURN: Duration = Duration::from_secs(1);

/// After so much waiting the others get their turn.
const TIRED: Duration = Duration::from_millis(100);

impl Socket {
    pub fn new(path: &Path) -> Socket {
        let (patience, allowance) = (PATIENCE, TURN);
        Socket { address: UnixAddr::new(path), socket: None, patience, allowance, took: false, stuck: false }
    }

    /// A new turn begins.
    pub fn begin_turn(&mut self) {
        self.allowance = TURN;
    }

    /// A new piece of output begins.
    pub fn renew_patience(&mut self) {
        self.patience = if self.stuck { Duration::ZERO } else { PATIENCE.min(self.allowance) };
        self.took = false;
    }

    /// True if this turn has been held up for long enough.
    pub fn is_tired(&self) -> bool {
        TURN - self.allowance >= TIRED
    }

    /// Hands over one entry, as soon as journald has room for it but not later than patience lasts.
    pub fn send(&mut self, entry: &[IoSlice<'_>]) -> nix::Result<()> {
        let mut result = self.hand_over(entry, MsgFlags::MSG_DONTWAIT);
        if result == Err(Errno::EAGAIN) && !self.patience.is_zero() {
            result = self.wait_for_room(entry);
        }
        match result {
            Ok(()) => (self.took, self.stuck) = (true, false),
            // A journald that is merely slow is waited for again with the next piece.
            Err(Errno::EAGAIN) => (self.stuck, self.patience) = (!self.took, Duration::ZERO),
            Err(_) => {}
        }
        result
    }

    #[inline(never)]
    fn wait_for_room(&mut self, entry: &[IoSlice<'_>]) -> nix::Result<()> {
        let begin = Instant::now();
        if let Some(socket) = &self.socket {
            // Zero would mean for ever.
            let limit = i64::try_from(self.patience.as_micros()).unwrap_or(i64::MAX).max(1000);
            setsockopt(socket, sockopt::SendTimeout, &TimeVal::microseconds(limit))?;
        }
        let result = self.hand_over(entry, MsgFlags::empty());
        let waited = begin.elapsed();
        self.patience = self.patience.saturating_sub(waited);
        self.allowance = self.allowance.saturating_sub(waited);
        result
    }

    /// True if it is not waited for any more.
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }

    pub fn set_stuck(&mut self, stuck: bool) {
        self.stuck = stuck;
    }

    fn hand_over(&mut self, entry: &[IoSlice<'_>], wait: MsgFlags) -> nix::Result<()> {
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
