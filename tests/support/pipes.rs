//! The pipes between a caller and its monitor, of every kind that callers use.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::{Fail, Outcome, wait::SOON};

/// What the descriptor is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Pipe,
    Fifo,
    Stream,
    Seqpacket,
}

pub const KINDS: [Kind; 4] = [Kind::Pipe, Kind::Fifo, Kind::Stream, Kind::Seqpacket];

/// Which way the bytes go, as the monitor sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    MonitorWrites,
    MonitorReads,
}

/// One pipe. The monitor's end is inherited: it is not close-on-exec until it is dropped here.
#[derive(Debug)]
pub struct Channel {
    ours: std::fs::File,
    theirs: Option<OwnedFd>,
    pending: Vec<u8>,
}

impl Channel {
    /// Makes a pipe; `name` is where a FIFO is put.
    pub fn new(kind: Kind, way: Way, name: &Path) -> Outcome<Channel> {
        let (ours, theirs) = match kind {
            Kind::Pipe => one_way(way, nix::unistd::pipe2(OFlag::O_CLOEXEC)?),
            Kind::Fifo => one_way(way, fifo(name)?),
            Kind::Stream => socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?,
            Kind::Seqpacket => socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?,
        };
        inherit(&theirs)?;
        Ok(Channel { ours: ours.into(), theirs: Some(theirs), pending: Vec::new() })
    }

    /// The number that the monitor finds it under.
    pub fn number(&self) -> String {
        self.theirs.as_ref().map_or(-1, AsRawFd::as_raw_fd).to_string()
    }

    /// The monitor has it now: our copy of its end goes away, so that its end can be seen.
    pub fn handed_over(&mut self) {
        self.theirs = None;
    }

    /// Lets a start pipe's reader go on.
    pub fn send(&mut self) -> Outcome {
        Ok(self.ours.write_all(b"start")?)
    }

    /// The next line, `None` at the end of the stream.
    pub fn line(&mut self) -> Outcome<Option<String>> {
        let end = Instant::now() + SOON;
        loop {
            if let Some(at) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line = self.pending.drain(..=at).collect::<Vec<u8>>();
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            let bytes = self.packet(end.saturating_duration_since(Instant::now()))?;
            if bytes.is_empty() {
                let rest = String::from_utf8_lossy(&self.pending).into_owned();
                return if rest.is_empty() {
                    Ok(None)
                } else {
                    Err(Fail::Wrong(format!("report without newline: {rest:?}")))
                };
            }
            self.pending.extend(bytes);
        }
    }

    /// The next line, which must be there.
    pub fn report(&mut self) -> Outcome<String> {
        self.line()?.ok_or_else(|| Fail::Wrong("a report was expected on the pipe, its end was seen".to_owned()))
    }

    /// The next line as JSON.
    pub fn json(&mut self) -> Outcome<serde_json::Value> {
        Ok(serde_json::from_str(&self.report()?)?)
    }

    /// What one `read` gives: a whole packet where the kind has packets; empty at the end.
    pub fn packet(&mut self, limit: Duration) -> Outcome<Vec<u8>> {
        if !readable(&self.ours, limit)? {
            return Err(Fail::Wrong(format!("nothing came on the pipe for {} s", limit.as_secs_f32())));
        }
        let mut bytes = vec![0; 65536];
        let count = self.ours.read(&mut bytes)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Everything up to the end.
    pub fn rest(&mut self) -> Outcome<String> {
        let mut text = String::new();
        while let Some(line) = self.line()? {
            text += &line;
        }
        Ok(text)
    }

    /// Whether nothing has been sent yet.
    pub fn silent(&self) -> Outcome<bool> {
        Ok(self.pending.is_empty() && !readable(&self.ours, Duration::ZERO)?)
    }
}

/// Lets children have the descriptor under its number.
pub fn inherit(fd: &impl AsFd) -> Outcome {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// Waits until there is something to read or the end is reached.
pub fn readable(fd: &impl AsFd, limit: Duration) -> Outcome<bool> {
    let mut polls = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut polls, limit)? > 0)
}

/// (reader, writer) as (ours, theirs).
fn one_way(way: Way, (reader, writer): (OwnedFd, OwnedFd)) -> (OwnedFd, OwnedFd) {
    match way {
        Way::MonitorWrites => (reader, writer),
        Way::MonitorReads => (writer, reader),
    }
}

fn fifo(name: &Path) -> Outcome<(OwnedFd, OwnedFd)> {
    nix::unistd::mkfifo(name, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    // A reader that does not wait for its writer; afterwards it blocks like any other.
    let reader: OwnedFd = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(name)?.into();
    let writer = OpenOptions::new().write(true).open(name)?.into();
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader, writer))
}
