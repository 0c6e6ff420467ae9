//! The sd-notify relay: what the container may say to the service manager on the host.
//!
//! A notification is a datagram of `NAME=VALUE` lines (sd_notify(3)). Only the lines below go through: a container may
//! say how it is, but not which process is the main one, and it may not leave descriptors behind.

mod saved;

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, recv, sendto, socket};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::control::Drained;
use crate::error::Error;
use crate::sys::Arena;

const WHOLE_LINES: [&[u8]; 5] = [b"READY=1", b"RELOADING=1", b"STOPPING=1", b"WATCHDOG=1", b"WATCHDOG=trigger"];
const BEGINNINGS: [&[u8]; 4] = [b"STATUS=", b"ERRNO=", b"BUSERROR=", b"MONOTONIC_USEC="];

/// What of a datagram may be passed on, as one datagram; `None` if nothing.
///
/// It ends at a NUL byte: senders count their C string's end in, and systemd refuses one within.
pub fn filter(datagram: &[u8]) -> Option<Vec<u8>> {
    let text = datagram.split(|byte| *byte == 0).next().unwrap_or_default();
    let lines = text.split(|byte| matches!(byte, b'\n' | b'\r')).filter(|line| may_pass(line));
    let passed = lines.collect::<Vec<_>>().join(&b'\n');
    (!passed.is_empty()).then_some(passed)
}

fn may_pass(line: &[u8]) -> bool {
    WHOLE_LINES.contains(&line) || BEGINNINGS.iter().any(|beginning| line.starts_with(beginning))
}

/// The socket in the bundle that is mounted into the container, and the way to the host's.
#[derive(Debug)]
pub struct Relay {
    inside: OwnedFd,
    outside: OwnedFd,
    host: Host,
}

/// The host's notification socket; nobody needs to listen yet.
#[derive(Debug)]
enum Host {
    Address(UnixAddr),
    /// Longer than an address can be.
    Path(PathBuf),
}

impl Relay {
    /// Makes `<bundle>/notify/notify.sock` anew; `host` is a path, or an abstract name behind `@`.
    ///
    /// The directory `notify` is the caller's to make. The socket is never removed.
    pub fn bind(bundle: &Path, host: &OsStr) -> Result<Relay, Error> {
        let host = Host::new(host).map_err(Error::at("use the notify socket", Path::new(host)))?;
        let path = bundle.join("notify");
        let dir_flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = open(&path, dir_flags, Mode::empty()).map_err(Error::at("open", &path))?;
        let path = path.join(NAME);
        let inside = datagrams().map_err(Error::at("make a socket for", &path))?;
        match unlinkat(&dir, NAME, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(Error::at("remove", &path)(error)),
        }
        bind_in(&dir, &inside).map_err(Error::at("bind the notify socket", &path))?;
        open_up(&dir).map_err(Error::at("set the mode of", &path))?;
        let outside = datagrams().map_err(Error::at("make a socket for", Path::new("notifications")))?;
        Ok(Relay { inside, outside, host })
    }

    /// Passes on what has come, up to a bound. What the host does not take now is dropped.
    pub fn relay(&mut self) -> Drained {
        // Mapped for the moment: notifications are rare, and the monitor is small.
        let mut arena = match Arena::new(DATAGRAM_MAX) {
            Ok(arena) => arena,
            Err(error) => {
                crate::warn!("No memory to relay a notification: {error}");
                return Drained::Wait;
            }
        };
        for _ in 0..DATAGRAMS {
            // Without a control buffer the kernel closes descriptors that came along.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
            match recv(self.inside.as_raw_fd(), arena.bytes(), flags) {
                Ok(len) => self.pass_on(whole_lines(arena.bytes(), len)),
                Err(Errno::EAGAIN) => return Drained::Wait,
                Err(Errno::EINTR) => {}
                Err(error) => {
                    crate::warn!("Failed to receive a notification: {error}");
                    return Drained::Wait;
                }
            }
        }
        Drained::Again
    }

    fn pass_on(&self, datagram: &[u8]) {
        let Some(passed) = filter(datagram) else { return };
        if let Err(error) = self.host.send(self.outside.as_fd(), &passed) {
            crate::warn!("Dropped a notification that the host's socket did not take: {error}");
        }
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inside.as_fd()
    }
}

impl Host {
    fn new(text: &OsStr) -> nix::Result<Host> {
        if let Some(name) = text.as_bytes().strip_prefix(b"@") {
            return UnixAddr::new_abstract(name).map(Host::Address);
        }
        match UnixAddr::new(text) {
            Ok(address) => Ok(Host::Address(address)),
            Err(Errno::ENAMETOOLONG) => Ok(Host::Path(text.into())),
            Err(error) => Err(error),
        }
    }

    fn send(&self, from: BorrowedFd<'_>, datagram: &[u8]) -> nix::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = match self {
            Host::Address(address) => sendto(from.as_raw_fd(), datagram, address, flags),
            Host::Path(path) => {
                let there = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
                sendto(from.as_raw_fd(), datagram, &UnixAddr::new(proc_name(&there).as_str())?, flags)
            }
        };
        sent.map(drop)
    }
}

const NAME: &str = "notify.sock";

/// Longer datagrams are cut.
const DATAGRAM_MAX: usize = 32768;

/// Datagrams of one turn; a socket nobody reads holds ten by default.
const DATAGRAMS: usize = 8;

/// The lines of a datagram of `len` bytes of which `buffer` holds the beginning: a line that was cut is none.
fn whole_lines(buffer: &[u8], len: usize) -> &[u8] {
    match buffer.get(..len) {
        Some(datagram) => datagram,
        None => &buffer[..buffer.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(0)],
    }
}

fn datagrams() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

/// Paths of any length fit into an address this way.
fn bind_in(dir: &OwnedFd, socket: &OwnedFd) -> nix::Result<()> {
    bind(socket.as_raw_fd(), &UnixAddr::new(format!("{}/{NAME}", proc_name(dir)).as_str())?)
}

/// Mode 0777: the container's user is anyone. It is set on the socket itself, since a name could have been swapped for
/// a link by whoever else the directory is mounted to.
fn open_up(dir: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let socket = openat(dir, NAME, flags, Mode::empty())?;
    fchmodat(AT_FDCWD, proc_name(&socket).as_str(), Mode::from_bits_truncate(0o777), FchmodatFlags::FollowSymlink)
}

fn proc_name(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, sendmsg};
    use std::fs;
    use std::io::IoSlice;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn only_known_lines_pass() {
        let rows: &[(&[u8], Option<&[u8]>)] = &[
            (b"READY=1", Some(b"READY=1")),
            (b"READY=1\n", Some(b"READY=1")),
            (b"READY=1\0", Some(b"READY=1")),
            (b"RELOADING=1\nMONOTONIC_USEC=17\n", Some(b"RELOADING=1\nMONOTONIC_USEC=17")),
            (b"STOPPING=1\r\nWATCHDOG=1\rWATCHDOG=trigger", Some(b"STOPPING=1\nWATCHDOG=1\nWATCHDOG=trigger")),
            (b"MAINPID=1\nREADY=1\nSTATUS=a b\xff=c", Some(b"READY=1\nSTATUS=a b\xff=c")),
            (b"STATUS=\nERRNO=2\nBUSERROR=x", Some(b"STATUS=\nERRNO=2\nBUSERROR=x")),
            (b"STATUS=a\0b\nREADY=1", Some(b"STATUS=a")),
            (b"READY=1 ", None),
            (b" READY=1", None),
            (b"READY=0", None),
            (b"READY=11", None),
            (b"ready=1", None),
            (b"READY", None),
            (b"WATCHDOG=2\nWATCHDOG_USEC=1\nEXTEND_TIMEOUT_USEC=1\nBARRIER=1", None),
            (b"FDSTORE=1\nFDNAME=x\nMAINPID=7\nNOTIFYACCESS=all\nXSTATUS=1", None),
            (b"\n\r\n", None),
            (b"", None),
        ];
        for (datagram, expected) in rows {
            assert_eq!(filter(datagram).as_deref(), *expected, "{}", String::from_utf8_lossy(datagram));
        }
    }

    #[test]
    fn a_cut_line_is_not_passed() {
        let rows: [(&[u8], usize, &[u8]); 4] = [
            (b"READY=1\nSTATUS=a", 16, b"READY=1\nSTATUS=a"),
            (b"READY=1\nSTATUS=a", 17, b"READY=1"),
            (b"READY=1\nSTATUS=a", 9, b"READY=1\nS"),
            (b"STATUS=a", 9, b""),
        ];
        for (buffer, len, expected) in rows {
            assert_eq!(whole_lines(buffer, len), expected);
        }
    }

    /// A bundle, a relay to `host` in it, and a sender inside the container.
    struct Scene {
        dir: tempfile::TempDir,
        bundle: PathBuf,
    }

    impl Scene {
        fn new() -> Scene {
            Scene::below(Path::new("."))
        }

        fn below(between: &Path) -> Scene {
            let dir = tempfile::tempdir().unwrap();
            let bundle = dir.path().join(between).join("bundle");
            fs::create_dir_all(bundle.join("notify")).unwrap();
            Scene { dir, bundle }
        }

        fn relay(&self, host: &Path) -> Relay {
            Relay::bind(&self.bundle, host.as_os_str()).unwrap()
        }

        fn sender(&self) -> UnixDatagram {
            let socket = UnixDatagram::unbound().unwrap();
            socket.set_nonblocking(true).unwrap();
            let dir: OwnedFd = fs::File::open(self.bundle.join("notify")).unwrap().into();
            socket.connect(format!("{}/{NAME}", proc_name(&dir))).unwrap();
            socket
        }
    }

    fn host(path: &Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    fn received(host: &UnixDatagram) -> Vec<String> {
        let mut buffer = vec![0; 2 * DATAGRAM_MAX];
        std::iter::from_fn(|| host.recv(&mut buffer).ok().map(|len| String::from_utf8_lossy(&buffer[..len]).into()))
            .take(100)
            .collect()
    }

    #[test]
    fn notifications_reach_the_host() {
        let scene = Scene::new();
        let path = scene.dir.path().join("host");
        let outside = host(&path);
        let mut relay = scene.relay(&path);
        let mode = fs::metadata(scene.bundle.join("notify").join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o777);
        assert_eq!(relay.relay(), Drained::Wait);
        let inside = scene.sender();
        for text in ["MAINPID=1\nREADY=1", "", "NOTHING=1", "STATUS=x"] {
            inside.send(text.as_bytes()).unwrap();
        }
        assert_eq!(relay.relay(), Drained::Wait);
        assert_eq!(received(&outside), ["READY=1", "STATUS=x"]);
        for _ in 0..DATAGRAMS + 1 {
            inside.send(b"WATCHDOG=1").unwrap();
        }
        assert_eq!(relay.relay(), Drained::Again);
        assert_eq!(relay.relay(), Drained::Wait);
        assert_eq!(received(&outside).len(), DATAGRAMS + 1);
        drop(relay);
        assert!(fs::metadata(scene.bundle.join("notify").join(NAME)).unwrap().file_type().is_socket());
    }

    #[test]
    fn a_deaf_host_costs_only_what_was_said_meanwhile() {
        let scene = Scene::new();
        let path = scene.dir.path().join("host");
        let mut relay = scene.relay(&path);
        let inside = scene.sender();
        inside.send(b"STATUS=nobody listens").unwrap();
        relay.relay();
        let outside = host(&path);
        inside.send(b"STATUS=one").unwrap();
        relay.relay();
        drop(outside);
        inside.send(b"STATUS=refused").unwrap();
        relay.relay();
        fs::remove_file(&path).unwrap();
        let outside = host(&path);
        let mut taken = 0;
        // More than the host's socket holds.
        for _ in 0..40 {
            inside.send(b"STATUS=two").unwrap();
            relay.relay();
        }
        taken += received(&outside).len();
        assert!((1..40).contains(&taken), "{taken} taken");
        inside.send(b"STATUS=three").unwrap();
        relay.relay();
        assert_eq!(received(&outside), ["STATUS=three"]);
    }

    #[test]
    fn hosts_may_be_abstract_or_far_away() {
        let scene = Scene::below(Path::new(&"long/".repeat(30)));
        assert!(scene.bundle.as_os_str().len() > 150);
        let name = format!("conward-test-{}", std::process::id());
        let outside = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        outside.set_nonblocking(true).unwrap();
        let mut relay = scene.relay(Path::new(&format!("@{name}")));
        scene.sender().send(b"READY=1").unwrap();
        relay.relay();
        assert_eq!(received(&outside), ["READY=1"]);

        let far = scene.bundle.join("h".repeat(200));
        let mut relay = scene.relay(&far);
        let dir: OwnedFd = fs::File::open(&scene.bundle).unwrap().into();
        let short = PathBuf::from(format!("{}/host", proc_name(&dir)));
        let outside = host(&short);
        fs::rename(short, &far).unwrap();
        scene.sender().send(b"READY=1").unwrap();
        relay.relay();
        assert_eq!(received(&outside), ["READY=1"]);
    }

    #[test]
    fn large_datagrams_are_cut_at_a_line() {
        let scene = Scene::new();
        let path = scene.dir.path().join("host");
        let outside = host(&path);
        let mut relay = scene.relay(&path);
        let inside = scene.sender();
        let fits = format!("READY=1\nSTATUS={}", "x".repeat(DATAGRAM_MAX - 15));
        assert_eq!(fits.len(), DATAGRAM_MAX);
        inside.send(fits.as_bytes()).unwrap();
        inside.send(format!("{fits}x").as_bytes()).unwrap();
        relay.relay();
        assert_eq!(received(&outside), [fits.as_str(), "READY=1"]);
    }

    #[test]
    fn passed_descriptors_are_closed() {
        let scene = Scene::new();
        let path = scene.dir.path().join("host");
        let outside = host(&path);
        let mut relay = scene.relay(&path);
        let inside = scene.sender();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let rights = [writer.as_raw_fd()];
        let text = [IoSlice::new(b"FDSTORE=1\nREADY=1")];
        let message = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(inside.as_raw_fd(), &text, &message, MsgFlags::empty(), None).unwrap();
        drop(writer);
        relay.relay();
        assert_eq!(received(&outside), ["READY=1"]);
        assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0), "nobody holds the writing end any more");
    }

    #[test]
    fn an_old_socket_is_replaced_and_errors_say_where() {
        let scene = Scene::new();
        let path = scene.bundle.join("notify").join(NAME);
        let precious = scene.dir.path().join("precious");
        fs::write(&precious, "").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&precious, &path).unwrap();
        drop(scene.relay(Path::new("@x")));
        drop(scene.relay(Path::new("@x")));
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
        assert_eq!(fs::metadata(&precious).unwrap().permissions().mode() & 0o777, 0o600);

        let long = format!("@{}", "x".repeat(200));
        let error = Relay::bind(&scene.bundle, OsStr::new(&long)).unwrap_err().to_string();
        assert!(error.starts_with("cannot use the notify socket @xxx"), "{error}");
        fs::remove_dir_all(scene.bundle.join("notify")).unwrap();
        let error = Relay::bind(&scene.bundle, OsStr::new("@x")).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot open {}/notify: ", scene.bundle.display())), "{error}");
    }
}
