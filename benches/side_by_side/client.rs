//! Clients of the attach socket.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use nix::sys::{
    socket::{
        self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr,
        sockopt::{ReceiveTimeout, SendTimeout},
    },
    time::{TimeVal, TimeValLike},
};

use super::{
    container::{Outcome, PATIENCE},
    payload::{Comparison, Payload},
    runtime::now,
};

#[derive(Debug)]
pub struct Client(OwnedFd);

impl Client {
    pub fn connect(bundle: &Path) -> Outcome<Client> {
        let connect = || -> io::Result<Client> {
            let socket = socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
            let patience = TimeVal::seconds(i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX));
            socket::setsockopt(&socket, SendTimeout, &patience)?;
            socket::setsockopt(&socket, ReceiveTimeout, &patience)?;
            socket::connect(socket.as_raw_fd(), &UnixAddr::new(&bundle.join("attach"))?)?;
            Ok(Client(socket))
        };
        connect().map_err(|error| format!("cannot attach: {error}"))
    }

    /// The payload of one packet: what follows the byte that names the stream. Empty at the end.
    fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let count = socket::recv(self.0.as_raw_fd(), buffer, MsgFlags::empty())?;
        Ok(&buffer[count.min(1)..count])
    }

    /// Nanoseconds until `size` bytes have come back from a container that echoes.
    pub fn round_trip(&self, size: usize) -> Outcome<u64> {
        let trip = || -> io::Result<u64> {
            let (sent, mut buffer) = (vec![b'e'; size], vec![0; 64 << 10]);
            let began = now();
            socket::send(self.0.as_raw_fd(), &sent, MsgFlags::MSG_NOSIGNAL)?;
            let mut back = 0;
            while back < size {
                match self.receive(&mut buffer)?.len() {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => back += count,
                }
            }
            Ok(now() - began)
        };
        trip().map_err(|error| format!("the echo does not come: {error}"))
    }

    /// Reads to the end as fast as it can, in a thread.
    pub fn read_all(self, payload: Arc<Payload>) -> JoinHandle<Outcome<Received>> {
        thread::spawn(move || {
            let (mut buffer, mut comparison) = (vec![0; 64 << 10], Comparison::new(&payload));
            let (mut first, mut last) = (0, 0);
            loop {
                let bytes = self.receive(&mut buffer).map_err(|error| format!("a client is cut off: {error}"))?;
                if bytes.is_empty() {
                    break;
                }
                last = now();
                first = if first == 0 { last } else { first };
                comparison.take(bytes);
            }
            let verdict = comparison.verdict().map_err(|why| format!("what a client got {why}"));
            Ok(Received { nanoseconds: last - first, verdict })
        })
    }
}

/// What a client got until the end.
#[derive(Debug)]
pub struct Received {
    /// From the first packet to the last.
    pub nanoseconds: u64,
    pub verdict: Outcome<()>,
}
