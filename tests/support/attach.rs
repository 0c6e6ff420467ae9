//! A client of the attach socket: SOCK_SEQPACKET, one byte of stream before each packet that comes, none before those
//! that go.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect, recv, send, shutdown, socket,
};

use super::pipes::readable;
use super::wait::{self, SOON};
use super::{Fail, Outcome};

/// One packet: stream byte and data.
pub type Packet = (u8, Vec<u8>);

pub const STDOUT: u8 = 2;
pub const STDERR: u8 = 3;

#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    /// Keeps the directory of a long path open for the length of the connection.
    _dir: Option<File>,
}

impl Client {
    /// Connects; a path that is too long for an address goes through the directory's descriptor, as podman does it.
    pub fn connect(path: &Path) -> Outcome<Client> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let (address, dir) = match UnixAddr::new(path) {
            Ok(address) => (address, None),
            Err(_) => through_directory(path)?,
        };
        connect(socket.as_raw_fd(), &address)
            .map_err(|error| Fail::Wrong(format!("cannot connect to {}: {error}", path.display())))?;
        Ok(Client { socket, _dir: dir })
    }

    /// Whether the socket at this path takes connections yet: its file is there a moment before.
    pub fn connect_soon(path: &Path) -> Outcome<Client> {
        wait::until(&format!("a connection to {}", path.display()), SOON, || Ok(Client::connect(path).ok()))
    }

    /// Sends one packet to the container's stdin.
    pub fn send(&self, data: &[u8]) -> Outcome {
        send(self.socket.as_raw_fd(), data, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// As [`Client::send`], but what has no room is dropped.
    pub fn send_now(&self, data: &[u8]) -> Outcome {
        match send(self.socket.as_raw_fd(), data, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(Errno::EAGAIN | Errno::EPIPE) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// No more input from here.
    pub fn half_close(&self) -> Outcome {
        Ok(shutdown(self.socket.as_raw_fd(), Shutdown::Write)?)
    }

    /// The next packet, `None` at the end.
    pub fn packet(&self) -> Outcome<Option<Packet>> {
        match self.packet_within(SOON)? {
            Some(packet) => Ok(packet),
            None => Err(Fail::Wrong(format!("nothing came on the attach socket for {} s", SOON.as_secs()))),
        }
    }

    /// The next packet (`Some(None)` at the end), or `None` when the time is over.
    pub fn packet_within(&self, limit: Duration) -> Outcome<Option<Option<Packet>>> {
        if !readable(&self.socket, limit)? {
            return Ok(None);
        }
        let mut bytes = vec![0; 65536];
        match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(0) | Err(Errno::ECONNRESET) => Ok(Some(None)),
            Ok(count) => Ok(Some(Some((bytes[0], bytes[1..count].to_vec())))),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads until `wanted` bytes of a stream are there.
    pub fn bytes(&self, stream: u8, wanted: usize) -> Outcome<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < wanted {
            match self.packet()? {
                Some((from, data)) if from == stream => bytes.extend(data),
                Some(_) => {}
                None => {
                    return Err(Fail::Wrong(format!(
                        "the attach stream ended after {} of {wanted} bytes",
                        bytes.len()
                    )));
                }
            }
        }
        Ok(bytes)
    }

    /// Reads stdout until `text` is in it.
    pub fn expect(&self, text: &str) -> Outcome<String> {
        let mut seen = String::new();
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            match self.packet()? {
                Some((_, data)) => seen += &String::from_utf8_lossy(&data),
                None => break,
            }
            if seen.contains(text) {
                return Ok(seen);
            }
        }
        Err(Fail::Wrong(format!("attach: expected {text:?} to come, saw {seen:?}")))
    }

    /// Everything of one stream up to the end.
    pub fn to_end(&self, stream: u8) -> Outcome<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some((from, data)) = self.packet()? {
            if from == stream {
                bytes.extend(data);
            }
        }
        Ok(bytes)
    }
}

fn through_directory(path: &Path) -> Outcome<(UnixAddr, Option<File>)> {
    let parent = path.parent().ok_or("an attach path has a directory")?;
    let name = path.file_name().ok_or("an attach path has a name")?;
    let dir = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(parent)?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((UnixAddr::new(&short)?, Some(dir)))
}
