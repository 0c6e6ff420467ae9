//! The container's output (pipes or a terminal) and its input.
//!
//! Output is read until the source is empty or a quantum is used up. Lines are kept together: what follows the last
//! newline of a full buffer waits for the next read, but never longer than there is something to read.

mod saved;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use crate::stream::Stream;
use crate::sys;

/// What a bounded piece of work says about its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is more to do: run it again soon.
    Again,
    /// The source is empty: wait for its next event.
    Wait,
    /// The source has come to its end.
    Closed,
}

/// What one [`Output::take`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Bytes(usize),
    /// There is nothing now.
    Nothing,
    End,
}

/// Bytes read from one source before others get their turn.
const QUANTUM: usize = 1 << 20;

/// Writes of so many bytes are never torn (pipe(7)).
const PIPE_BUF: usize = 4096;

/// A read that found the pipe half full.
const LARGE: usize = 32 * 1024;

/// So many large reads in a row make a pipe grow: only containers that really produce output pay for it.
const GROW_AT: u32 = 4;

/// Bytes read ahead of a start, about.
const AHEAD_MAX: usize = 32 * 1024;

/// The size of a grown pipe, the most that an unprivileged process may ask for by default (pipe(7)).
const PIPE_MAX: i32 = 1 << 20;

/// The reading end of one output stream.
#[derive(Debug)]
pub struct Output {
    pub stream: Stream,
    fd: OwnedFd,
    tty: bool,
    /// The writers are gone: what can be read is the rest.
    pub hung_up: bool,
    /// What was read and not passed on yet: the beginning of a line between two quanta, or what was read ahead.
    held: Vec<u8>,
    may_grow: bool,
    large_reads: u32,
    /// Bytes read so far: the absolute offset of the next byte.
    pub offset: u64,
}

impl Output {
    /// Takes a non-blocking descriptor; `may_grow` unless back-pressure is wanted, which a large pipe would delay.
    pub fn new(stream: Stream, fd: OwnedFd, tty: bool, may_grow: bool) -> Output {
        Output {
            stream,
            fd,
            tty,
            hung_up: false,
            held: Vec::new(),
            may_grow: may_grow && !tty,
            large_reads: 0,
            offset: 0,
        }
    }

    /// Reads at most a quantum through `buffer` and passes it on in chunks that end at a newline where possible.
    /// `each` answers whether it wants more now.
    pub fn pump(&mut self, buffer: &mut [u8], mut each: impl FnMut(Stream, &[u8]) -> bool) -> Turn {
        let mut filled = self.held.len();
        buffer[..filled].copy_from_slice(&self.held);
        self.held.clear();
        let mut taken = 0;
        loop {
            match read(&self.fd, &mut buffer[filled..]) {
                Ok(0) => {
                    self.pass(&buffer[..filled], &mut each);
                    return Turn::Closed;
                }
                Ok(count) => {
                    filled += count;
                    taken += count;
                    self.grow(count);
                }
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    self.pass(&buffer[..filled], &mut each);
                    return self.after_error(error);
                }
            }
            if filled == buffer.len() {
                let cut = memchr::memrchr(b'\n', buffer).map_or(filled, |at| at + 1);
                let wanted = self.pass(&buffer[..cut], &mut each);
                buffer.copy_within(cut..filled, 0);
                filled -= cut;
                if !wanted {
                    self.held.extend_from_slice(&buffer[..filled]);
                    return Turn::Again;
                }
            } else if !self.tty && !self.hung_up && (buffer[filled - 1] == b'\n' || taken < PIPE_BUF) {
                // A short read has emptied the pipe, and whatever is written next is a new event (epoll(7)). So few
                // bytes were written at once: if their line has no end, the container gave it none.
                self.pass(&buffer[..filled], &mut each);
                return Turn::Wait;
            }
            if taken >= QUANTUM {
                self.held.extend_from_slice(&buffer[..filled]);
                return Turn::Again;
            }
        }
    }

    /// Takes some bytes into `buffer`, what was read ahead first. `over` says that no process can write any more, so that
    /// a terminal that nobody has open is at its end.
    pub fn take(&mut self, buffer: &mut [u8], over: bool) -> Taken {
        if !self.held.is_empty() {
            let count = self.held.len().min(buffer.len());
            buffer[..count].copy_from_slice(&self.held[..count]);
            self.held.drain(..count);
            self.offset += count as u64;
            return Taken::Bytes(count);
        }
        loop {
            match read(&self.fd, buffer) {
                Ok(0) => return Taken::End,
                Ok(count) => {
                    self.offset += count as u64;
                    self.grow(count);
                    return Taken::Bytes(count);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EIO) if over => return Taken::End,
                Err(error) => match self.after_error(error) {
                    Turn::Closed => return Taken::End,
                    _ => return Taken::Nothing,
                },
            }
        }
    }

    /// True if nobody can write any more: what is in the pipe or terminal now is all there will be.
    pub fn has_no_writer(&self) -> bool {
        let mut polled = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        let asked = poll(&mut polled, PollTimeout::ZERO);
        asked.is_ok() && polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }

    /// Reads ahead without passing anything on, so that the writer never waits for us. True if that has become so much
    /// that it must be passed on.
    pub fn read_ahead(&mut self) -> bool {
        while self.held.len() < AHEAD_MAX {
            let filled = self.held.len();
            self.held.resize(filled + AHEAD_MAX, 0);
            let answer = read(&self.fd, &mut self.held[filled..]);
            self.held.truncate(filled + answer.unwrap_or(0));
            if !matches!(answer, Ok(1..) | Err(Errno::EINTR)) {
                return false;
            }
        }
        true
    }

    /// What was read ahead.
    pub fn ahead(&self) -> &[u8] {
        &self.held
    }

    fn pass(&mut self, chunk: &[u8], each: &mut impl FnMut(Stream, &[u8]) -> bool) -> bool {
        self.offset += chunk.len() as u64;
        chunk.is_empty() || each(self.stream, chunk)
    }

    fn after_error(&self, error: Errno) -> Turn {
        match error {
            Errno::EAGAIN => Turn::Wait,
            // No process has the terminal open now; somebody may open it again, which is a new event.
            Errno::EIO if self.tty => Turn::Wait,
            _ => {
                crate::warn!("Failed to read {} of the container: {error}", self.stream.name());
                Turn::Closed
            }
        }
    }

    /// Fewer, larger reads under sustained load; a refusal (pipe-user-pages-soft, pipe(7)) is no loss.
    fn grow(&mut self, count: usize) {
        if !self.may_grow {
            return;
        }
        self.large_reads = if count >= LARGE { self.large_reads + 1 } else { 0 };
        if self.large_reads >= GROW_AT {
            self.may_grow = false;
            let _ = fcntl(&self.fd, FcntlArg::F_SETPIPE_SZ(PIPE_MAX));
        }
    }

    /// Bytes that wait to be read.
    pub fn waiting(&self) -> usize {
        sys::readable_bytes(self.fd.as_fd()).unwrap_or(0)
    }

    /// Gives back what only a load needed.
    pub fn trim(&mut self) {
        self.held.shrink_to_fit();
    }

    pub fn is_tty(&self) -> bool {
        self.tty
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The writing end of the container's input, with what it did not take yet.
#[derive(Debug)]
pub enum Input {
    /// A terminal that the runtime has not sent yet: clients wait.
    Expected,
    Open {
        fd: OwnedFd,
        /// What the container has not taken yet; while there is any, no client is read.
        pending: Vec<u8>,
    },
    /// No stdin, or closed for good: what clients send is dropped.
    Closed,
}

impl Input {
    pub fn open(fd: OwnedFd) -> Input {
        Input::Open { fd, pending: Vec::new() }
    }

    /// True if a client may be read: there is nothing that waits to be written before.
    pub fn ready(&self) -> bool {
        match self {
            Input::Expected => false,
            Input::Open { pending, .. } => pending.is_empty(),
            Input::Closed => true,
        }
    }

    /// Writes what the container takes now and keeps the rest; on a container that closed its stdin, drops all.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Input::Open { fd, pending } = self {
            if !pending.is_empty() {
                return pending.extend_from_slice(bytes);
            }
            match write_some(fd, bytes) {
                Ok(count) => pending.extend_from_slice(&bytes[count..]),
                Err(error) => self.fail(&error),
            }
        }
    }

    /// Continues after the container has made room; true if nothing is left to write.
    pub fn flush(&mut self) -> bool {
        if let Input::Open { fd, pending } = self {
            match write_some(fd, pending) {
                Ok(count) if count == pending.len() => *pending = Vec::new(),
                Ok(count) => drop(pending.drain(..count)),
                Err(error) => self.fail(&error),
            }
        }
        self.ready()
    }

    pub fn close(&mut self) {
        *self = Input::Closed;
    }

    fn fail(&mut self, error: &io::Error) {
        crate::debug!("The container takes no more input: {error}");
        self.close();
    }
}

fn write_some(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match write(fd, &bytes[done..]) {
            Ok(count) => done += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    fn pump(output: &mut Output, buffer: &mut [u8]) -> (Turn, Vec<Vec<u8>>) {
        let mut chunks = Vec::new();
        let turn = output.pump(buffer, |_, chunk| {
            chunks.push(chunk.to_vec());
            true
        });
        (turn, chunks)
    }

    #[test]
    fn a_line_is_cut_only_when_the_pipe_is_empty() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let mut output = Output::new(Stream::Stdout, reader, false, false);
        let mut buffer = [0; 8];
        write(&writer, b"abc\ndefghij\nk").unwrap();
        let (turn, chunks) = pump(&mut output, &mut buffer);
        assert_eq!(turn, Turn::Wait);
        assert_eq!(chunks, [&b"abc\n"[..], b"defghij\n", b"k"]);
        write(&writer, b"l\n").unwrap();
        assert_eq!(pump(&mut output, &mut buffer), (Turn::Wait, vec![b"l\n".to_vec()]));
        drop(writer);
        assert_eq!(pump(&mut output, &mut buffer), (Turn::Closed, vec![]));
        assert_eq!(output.offset, 15);
    }

    #[test]
    fn a_line_longer_than_the_buffer_passes_in_pieces() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let mut output = Output::new(Stream::Stderr, reader, false, false);
        write(&writer, &[b'x'; 20]).unwrap();
        drop(writer);
        output.hung_up = true;
        let (turn, chunks) = pump(&mut output, &mut [0; 8]);
        assert_eq!((turn, chunks.concat()), (Turn::Closed, vec![b'x'; 20]));
    }

    #[test]
    fn what_is_read_ahead_is_passed_on_first() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let mut output = Output::new(Stream::Stderr, reader, false, false);
        write(&writer, b"early ").unwrap();
        assert!(!output.read_ahead());
        assert_eq!(output.ahead(), b"early ");
        write(&writer, b"and late\n").unwrap();
        assert_eq!(pump(&mut output, &mut [0; 64]), (Turn::Wait, vec![b"early and late\n".to_vec()]));
        while write(&writer, &[b'x'; 4096]).is_ok() {}
        assert!(output.read_ahead());
        assert!(output.ahead().len() <= 2 * AHEAD_MAX);
    }

    #[test]
    fn input_keeps_what_a_full_pipe_does_not_take() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let mut input = Input::open(writer);
        let data: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0]).collect();
        input.write(&data);
        assert!(!input.ready());
        let mut got = Vec::new();
        let mut buffer = [0; 4096];
        while got.len() < data.len() {
            match read(&reader, &mut buffer) {
                Ok(count) => got.extend_from_slice(&buffer[..count]),
                Err(_) => drop(input.flush()),
            }
        }
        assert_eq!(got, data);
        assert!(input.flush());
    }

    #[test]
    fn input_of_a_container_that_closed_it_is_dropped() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        drop(reader);
        let mut input = Input::open(writer);
        input.write(b"nobody reads this");
        assert!(matches!(input, Input::Closed) && input.ready());
    }
}
