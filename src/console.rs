//! The console socket: how an OCI runtime hands over the container's terminal.
//!
//! The runtime connects once and sends one message that carries the pty master as SCM_RIGHTS (runc,
//! `docs/terminals.md`). The socket lies in a private directory of its own, which is removed whatever happens.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen,
    recvmsg, socket,
};
use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{isatty, mkdtemp};

use crate::sys;

/// The waiting end of the hand-over.
#[derive(Debug)]
pub struct Console {
    dir: PathBuf,
    listener: OwnedFd,
    connection: Option<OwnedFd>,
}

/// What came of an event on the console socket.
#[derive(Debug)]
pub enum Received {
    /// Nothing yet.
    Nothing,
    /// The runtime has connected: from now on this is the descriptor to watch.
    Connected,
    Terminal(OwnedFd),
}

const NAME: &str = "console";

impl Console {
    /// Makes the socket in a new private directory below `base` (`$TMPDIR` or `/tmp`).
    pub fn create(base: &Path) -> io::Result<Console> {
        let dir = mkdtemp(&base.join("conmon-term.XXXXXX"))?;
        match listen_at(&dir.join(NAME)) {
            Ok(listener) => Ok(Console { dir, listener, connection: None }),
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                Err(error)
            }
        }
    }

    /// The path for `--console-socket`.
    pub fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Goes one step further, as far as it can without waiting.
    pub fn advance(&mut self) -> io::Result<Received> {
        let Some(connection) = &self.connection else {
            return match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
                Ok(fd) => {
                    self.connection = Some(own(fd)?);
                    let _ = fs::remove_file(self.path());
                    Ok(Received::Connected)
                }
                Err(Errno::EAGAIN) => Ok(Received::Nothing),
                Err(error) => Err(error.into()),
            };
        };
        match receive(connection) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            answer => choose(answer?).map(Received::Terminal),
        }
    }
}

impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_ref().unwrap_or(&self.listener).as_fd()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&listener, Backlog::new(1)?)?;
    Ok(listener)
}

/// Descriptors that one message carried.
fn receive(connection: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    let mut name = vec![0; 4096];
    // Room for all that one message can carry (SCM_MAX_FD): what does not fit would be installed and never closed.
    let mut space = nix::cmsg_space!([RawFd; 253]);
    let mut parts = [IoSliceMut::new(&mut name)];
    let message = recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            for number in numbers {
                fds.push(own(number)?);
            }
        }
    }
    Ok(fds)
}

/// The one terminal among the descriptors of a message; anything else is the runtime's mistake.
pub fn choose(mut fds: Vec<OwnedFd>) -> io::Result<OwnedFd> {
    let count = fds.len();
    match fds.pop() {
        Some(fd) if count == 1 && isatty(&fd).unwrap_or(false) => Ok(fd),
        Some(_) if count == 1 => Err(io::Error::other("the runtime sent a descriptor that is no terminal")),
        _ => Err(io::Error::other(format!("the runtime sent {count} descriptors instead of one terminal"))),
    }
}

fn own(fd: RawFd) -> io::Result<OwnedFd> {
    sys::adopt(fd)
}

/// Makes the terminal write `\r\n` for `\n`, and nothing else; refusals only mean odd line ends.
pub fn prepare(terminal: &OwnedFd) {
    let done = tcgetattr(terminal).and_then(|mut termios| {
        termios.output_flags |= OutputFlags::ONLCR;
        tcsetattr(terminal, SetArg::TCSANOW, &termios)
    });
    if let Err(error) = done {
        crate::warn!("Failed to set the container's terminal to write CR LF: {error}");
    }
}

/// The directory for console sockets.
pub fn base(tmpdir: Option<&OsStr>) -> PathBuf {
    tmpdir.filter(|dir| !dir.is_empty()).map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, connect, sendmsg};
    use std::io::IoSlice;

    fn sender(console: &Console) -> OwnedFd {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(&console.path()).unwrap()).unwrap();
        fd
    }

    fn send(to: &OwnedFd, fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b"/dev/pts/0")], &rights, MsgFlags::empty(), None).unwrap();
    }

    #[test]
    fn a_terminal_is_taken_over_and_nothing_is_left() {
        let base = tempfile::tempdir().unwrap();
        let mut console = Console::create(base.path()).unwrap();
        assert!(matches!(console.advance(), Ok(Received::Nothing)));
        let runtime = sender(&console);
        assert!(matches!(console.advance(), Ok(Received::Connected)));
        assert!(matches!(console.advance(), Ok(Received::Nothing)));
        let pty = nix::pty::openpty(None, None).unwrap();
        send(&runtime, &[pty.master.as_raw_fd()]);
        assert!(matches!(console.advance(), Ok(Received::Terminal(_))));
        drop(console);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn other_messages_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let pty = nix::pty::openpty(None, None).unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        for fds in [vec![], vec![null.as_raw_fd()], vec![pty.master.as_raw_fd(), pty.slave.as_raw_fd()]] {
            let mut console = Console::create(base.path()).unwrap();
            let runtime = sender(&console);
            console.advance().unwrap();
            send(&runtime, &fds);
            assert!(console.advance().is_err(), "{fds:?}");
        }
        // More than usual are counted, and so closed, not cut off.
        let mut console = Console::create(base.path()).unwrap();
        let runtime = sender(&console);
        console.advance().unwrap();
        send(&runtime, &[pty.master.as_raw_fd(); 40]);
        assert!(console.advance().unwrap_err().to_string().contains("40 descriptors"));
        let mut console = Console::create(base.path()).unwrap();
        drop(sender(&console));
        console.advance().unwrap();
        assert!(console.advance().is_err());
    }
}
