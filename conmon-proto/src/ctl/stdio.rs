//! Standard input and output without blocking the loop.
//!
//! They belong to others as well, so they are not made non-blocking: that would last beyond our end. Instead the loop
//! waits until they are ready, and then only so much is read or written as goes without waiting.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A pipe that is ready takes this much at once (PIPE_BUF of pipe(7)); a terminal takes it in parts.
const PIECE: usize = 4096;

/// One of our standard descriptors.
pub enum Stdio {
    /// It can be waited for.
    Waits(AsyncFd<Descriptor>),
    /// A file, which is always ready.
    Ready(Descriptor),
}

/// 0, 1 or 2, which are open for as long as we run.
#[derive(Clone, Copy)]
pub enum Descriptor {
    Stdin,
    Stdout,
    Stderr,
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        *self as RawFd
    }
}

impl Descriptor {
    fn with<T>(self, act: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        match self {
            Descriptor::Stdin => act(io::stdin().as_fd()),
            Descriptor::Stdout => act(io::stdout().as_fd()),
            Descriptor::Stderr => act(io::stderr().as_fd()),
        }
    }

    fn is_ready(self, event: PollFlags) -> bool {
        self.with(|fd| matches!(poll(&mut [PollFd::new(fd, event)], PollTimeout::ZERO), Ok(1..)))
    }
}

impl Stdio {
    pub fn open(which: Descriptor) -> Stdio {
        let interest = match which {
            Descriptor::Stdin => Interest::READABLE,
            _ => Interest::WRITABLE,
        };
        // epoll refuses what never blocks.
        match sys::watch(which, interest) {
            Ok(waits) => Stdio::Waits(waits),
            Err(_) => Stdio::Ready(which),
        }
    }

    /// Reads what there is; 0 at the end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let which = self.ready(PollFlags::POLLIN).await?;
        loop {
            match which.with(|fd| nix::unistd::read(fd, buffer)) {
                Err(nix::errno::Errno::EINTR) => {}
                // A terminal whose other end has gone.
                Err(nix::errno::Errno::EIO) => return Ok(0),
                done => return Ok(done?),
            }
        }
    }

    /// Writes all of it.
    pub async fn write(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let which = self.ready(PollFlags::POLLOUT).await?;
            let most = if matches!(self, Stdio::Waits(_)) { PIECE } else { data.len() };
            let piece = &data[..most.min(data.len())];
            match which.with(|fd| nix::unistd::write(fd, piece)) {
                Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => {}
                done => data = &data[done?..],
            }
        }
        Ok(())
    }

    /// Waits until there is something to read or room to write.
    async fn ready(&self, event: PollFlags) -> io::Result<Descriptor> {
        let waits = match self {
            Stdio::Ready(which) => return Ok(*which),
            Stdio::Waits(waits) => waits,
        };
        loop {
            let mut guard = match event {
                PollFlags::POLLIN => waits.readable().await?,
                _ => waits.writable().await?,
            };
            // What the loop knows may be old; a read or write on the strength of it would block.
            if waits.get_ref().is_ready(event) {
                return Ok(*waits.get_ref());
            }
            guard.clear_ready();
        }
    }
}
