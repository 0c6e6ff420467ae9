//! Console message: whatever a runtime sends over the console socket, only one terminal and nothing else is taken,
//! and no descriptor is left behind.
#![no_main]

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use conward::console::{Console, Received};
use conward_fuzz::Dice;
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// What a runtime may send: the terminal and its other side are terminals, the rest is not.
static WARES: LazyLock<[OwnedFd; 4]> = LazyLock::new(|| {
    let pty = nix::pty::openpty(None, None).expect("a pty");
    let null = File::open("/dev/null").expect("/dev/null");
    let socket = UnixStream::pair().expect("a socket").0;
    [pty.master, pty.slave, null.into(), socket.into()]
});

fuzz_target!(|data: &[u8]| {
    LazyLock::force(&WARES);
    let before = open_descriptors();
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut dice = Dice(data);
    {
        let mut console = Console::create(dir.path()).expect("a console socket");
        assert!(matches!(console.advance(), Ok(Received::Nothing)));
        let runtime = UnixStream::connect(console.path()).expect("connected");
        assert!(matches!(console.advance(), Ok(Received::Connected)));
        assert!(matches!(console.advance(), Ok(Received::Nothing)));

        // One message; how it is to be taken is known beforehand.
        let count = dice.below(12);
        let kinds: Vec<usize> = (0..count).map(|_| dice.below(WARES.len())).collect();
        let name = dice.0;
        send(&runtime, name, &kinds.iter().map(|&kind| WARES[kind].as_raw_fd()).collect::<Vec<_>>());
        match (console.advance(), &kinds[..], name) {
            (Ok(Received::Nothing), _, []) => {}
            (Ok(Received::Terminal(_)), [0 | 1], [_, ..]) => {}
            (Err(_), kinds, [_, ..]) if !matches!(kinds, [0 | 1]) => {}
            (answer, kinds, name) => panic!("{answer:?} for {kinds:?} with {} bytes", name.len()),
        }
    }
    assert_eq!(fs::read_dir(dir.path()).expect("scratch directory").count(), 0, "the socket is gone");
    drop(dir);
    assert_eq!(open_descriptors(), before, "a descriptor is left");
});

fn send(to: &UnixStream, bytes: &[u8], fds: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[] } else { &rights[..] };
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::empty(), None).expect("sent");
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or_else(|error: io::Error| panic!("{error}"), Iterator::count)
}
