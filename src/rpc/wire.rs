//! One connection's bytes: a socket that never blocks, with what keeps a peer from taking more than its share.
//!
//! Nothing is read while the peer does not read what it was sent, nor while too much of its input waits to be taken by
//! a container, so that neither can pile up here; and no more than a quantum is read in one turn of the loop.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_util::io::{AsyncRead, AsyncWrite};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

/// Bytes read from one connection before others get their turn.
const QUANTUM: usize = 256 * 1024;

/// Input that may wait to be taken by a container before its connection is not read any more.
const TYPED_MAX: usize = 512 * 1024;

/// What both halves and the service share.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
    /// The peer does not take what it is sent.
    stuck: Cell<bool>,
    /// Bytes that may still be read in this turn.
    budget: Cell<usize>,
    /// Input that no container has taken yet.
    typed: Cell<usize>,
    /// Bytes read so far that were not input.
    pub read: Cell<u64>,
    closed: Cell<bool>,
}

impl Wire {
    /// Takes a socket that does not block.
    pub fn new(socket: OwnedFd) -> Rc<Wire> {
        Rc::new(Wire {
            socket,
            reader: RefCell::default(),
            writer: RefCell::default(),
            stuck: Cell::new(false),
            budget: Cell::new(QUANTUM),
            typed: Cell::new(0),
            read: Cell::new(0),
            closed: Cell::new(false),
        })
    }

    /// Something happened to the socket.
    pub fn wake(&self) {
        for slot in [&self.reader, &self.writer] {
            if let Some(waker) = slot.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// A new turn of the loop.
    pub fn refill(&self) {
        if self.budget.replace(QUANTUM) == 0 {
            self.wake_reader();
        }
    }

    /// True if it may read on in the next turn, and was stopped in this one.
    pub fn is_hungry(&self) -> bool {
        self.budget.get() == 0
    }

    /// True if what was sent has not been taken by the peer's socket.
    pub fn is_stuck(&self) -> bool {
        self.stuck.get()
    }

    /// Input came, `bytes` of it.
    pub fn typed(&self, bytes: usize) {
        self.typed.set(self.typed.get() + bytes);
        self.read.set(self.read.get().saturating_sub(bytes as u64));
    }

    /// Input was taken.
    pub fn taken(&self, bytes: usize) {
        self.typed.set(self.typed.get().saturating_sub(bytes));
        self.wake_reader();
    }

    /// Ends the connection; both halves see it.
    pub fn close(&self) {
        self.closed.set(true);
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        self.wake();
    }

    fn wake_reader(&self) {
        if let Some(waker) = self.reader.borrow_mut().take() {
            waker.wake();
        }
    }

    fn may_read(&self) -> bool {
        self.closed.get() || (!self.stuck.get() && self.budget.get() > 0 && self.typed.get() <= TYPED_MAX)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One half of a connection, for the RPC system.
#[derive(Clone, Debug)]
pub struct Half(pub Rc<Wire>);

impl AsyncRead for Half {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let wire = &self.0;
        if !wire.may_read() {
            *wire.reader.borrow_mut() = Some(context.waker().clone());
            return Poll::Pending;
        }
        let room = buffer.len().min(wire.budget.get().max(1));
        match recv(wire.socket.as_raw_fd(), &mut buffer[..room], MsgFlags::MSG_DONTWAIT) {
            Ok(count) => {
                wire.budget.set(wire.budget.get().saturating_sub(count));
                wire.read.set(wire.read.get() + count as u64);
                Poll::Ready(Ok(count))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {
                *wire.reader.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl AsyncWrite for Half {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = &self.0;
        match send(wire.socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(count) => {
                if wire.stuck.replace(false) {
                    wire.wake_reader();
                }
                Poll::Ready(Ok(count))
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => {
                wire.stuck.set(true);
                *wire.writer.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = shutdown(self.0.socket.as_raw_fd(), Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use nix::unistd::{read, write};

    fn pair() -> (Rc<Wire>, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags).unwrap();
        (Wire::new(ours), theirs)
    }

    fn poll_read(wire: &Rc<Wire>, buffer: &mut [u8]) -> Poll<usize> {
        let half = Half(Rc::clone(wire));
        let polled = Pin::new(&mut { half }).poll_read(&mut Context::from_waker(Waker::noop()), buffer);
        polled.map(|answer| answer.unwrap())
    }

    fn poll_write(wire: &Rc<Wire>, bytes: &[u8]) -> Poll<usize> {
        let half = Half(Rc::clone(wire));
        let polled = Pin::new(&mut { half }).poll_write(&mut Context::from_waker(Waker::noop()), bytes);
        polled.map(|answer| answer.unwrap())
    }

    #[test]
    fn whoever_does_not_read_is_not_read() {
        let (wire, theirs) = pair();
        write(&theirs, b"calls").unwrap();
        while poll_write(&wire, &[b'x'; 4096]).is_ready() {}
        assert!(wire.is_stuck());
        let mut buffer = [0; 64 * 1024];
        assert_eq!(poll_read(&wire, &mut buffer), Poll::Pending);
        while read(&theirs, &mut buffer).is_ok() {}
        assert!(poll_write(&wire, b"x").is_ready());
        assert_eq!(poll_read(&wire, &mut buffer), Poll::Ready(5));
    }

    #[test]
    fn a_turn_and_untaken_input_have_their_bounds() {
        let (wire, theirs) = pair();
        let mut buffer = [0; 64 * 1024];
        let mut total = 0;
        loop {
            while write(&theirs, &[b'x'; 4096]).is_ok() {}
            match poll_read(&wire, &mut buffer) {
                Poll::Ready(count) => total += count,
                Poll::Pending => break,
            }
        }
        assert_eq!(total, QUANTUM);
        wire.refill();
        wire.typed(TYPED_MAX + 1);
        assert_eq!(poll_read(&wire, &mut buffer), Poll::Pending);
        wire.taken(TYPED_MAX + 1);
        assert!(poll_read(&wire, &mut buffer).is_ready());
        wire.close();
        while matches!(poll_read(&wire, &mut buffer), Poll::Ready(1..)) {}
        assert_eq!(poll_read(&wire, &mut buffer), Poll::Ready(0));
    }
}
