//! The way to journald: datagrams on a Unix socket, and sealed memory for what does not fit into one.
//!
//! Each datagram is addressed by path, so a journald that was restarted is found again by the next entry.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, setsockopt, socket, sockopt,
};

/// A socket that is opened when it is needed first.
#[derive(Debug)]
pub struct Socket {
    /// An address that cannot be is an error of each entry, not of the start.
    address: nix::Result<UnixAddr>,
    socket: Option<OwnedFd>,
}

impl Socket {
    pub fn new(path: &Path) -> Socket {
        Socket { address: UnixAddr::new(path), socket: None }
    }

    /// Hands over one entry at once or not at all.
    pub fn send(&mut self, entry: &[IoSlice<'_>]) -> nix::Result<()> {
        let address = self.address?;
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(open()?),
        };
        match send(socket, entry, &[], &address) {
            Err(Errno::EMSGSIZE | Errno::ENOBUFS) => {
                let memory = seal(entry)?;
                send(socket, &[], &[memory.as_raw_fd()], &address)
            }
            result => result,
        }
    }
}

fn send(socket: &OwnedFd, entry: &[IoSlice<'_>], passed: &[RawFd], address: &UnixAddr) -> nix::Result<()> {
    let rights = [ControlMessage::ScmRights(passed)];
    let rights = if passed.is_empty() { &[] } else { &rights[..] };
    sendmsg(socket.as_raw_fd(), entry, rights, MsgFlags::MSG_NOSIGNAL, Some(address)).map(drop)
}

fn open() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
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
