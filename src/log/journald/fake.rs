//! The other end of the socket in tests: takes datagrams as journald does, and is strict about their form.

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

pub struct Journal {
    socket: UnixDatagram,
}

pub struct Entry {
    pub fields: Vec<(String, Vec<u8>)>,
    /// It came as sealed memory.
    pub by_memory: bool,
}

impl Journal {
    pub fn bind(path: &Path) -> Journal {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Journal { socket }
    }

    /// All entries that have arrived.
    pub fn entries(&self) -> Vec<Entry> {
        std::iter::from_fn(|| self.entry()).collect()
    }

    /// The next entry, if one has arrived.
    pub fn entry(&self) -> Option<Entry> {
        let mut bytes = vec![0; 1 << 20];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut control = nix::cmsg_space!([RawFd; 2]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Ok(message) => message,
            Err(error) => {
                assert_eq!(std::io::Error::from(error).kind(), ErrorKind::WouldBlock);
                return None;
            }
        };
        assert!(!message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC));
        let passed = message.cmsgs().unwrap().find_map(|control| match control {
            ControlMessageOwned::ScmRights(passed) => Some(passed),
            _ => None,
        });
        let length = message.bytes;
        Some(match passed {
            Some(passed) => {
                assert_eq!((length, passed.len()), (0, 1), "only the descriptor, nothing beside it");
                Entry { fields: decode(&read_sealed(passed[0])), by_memory: true }
            }
            None => Entry { fields: decode(&bytes[..length]), by_memory: false },
        })
    }
}

impl Entry {
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        let mut values = self.fields.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_slice());
        let value = values.next();
        assert!(values.next().is_none(), "{key} is there twice");
        value
    }

    pub fn message(&self) -> &[u8] {
        self.value("MESSAGE").unwrap()
    }

    pub fn is_partial(&self) -> bool {
        self.value("CONTAINER_PARTIAL_MESSAGE").is_some_and(|value| value == b"true")
    }
}

/// Reads and closes a descriptor that was passed, as journald would accept it.
fn read_sealed(passed: RawFd) -> Vec<u8> {
    let mut file = File::open(format!("/proc/self/fd/{passed}")).unwrap();
    nix::unistd::close(passed).unwrap();
    let seals = SealFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GET_SEALS).unwrap());
    assert!(seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE));
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn decode(mut rest: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|&byte| byte == b'\n').expect("a field ends with a newline");
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        let (key, value, after) = match line.iter().position(|&byte| byte == b'=') {
            Some(sign) => (&line[..sign], &line[sign + 1..], after),
            None => {
                let (length, after) = after.split_first_chunk().expect("a length follows a key without sign");
                let (value, after) = after.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
                (line, value, after.strip_prefix(b"\n").expect("a newline follows a value with length"))
            }
        };
        assert!(!key.is_empty() && key.iter().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_')));
        fields.push((String::from_utf8(key.to_vec()).unwrap(), value.to_vec()));
        rest = after;
    }
    fields
}
