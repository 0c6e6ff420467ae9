//! What ties us to the caller: its stdio, and reports over the sync pipe and the attach pipe.
//!
//! A report is one JSON object in one line, written at once, so that a reader of a SOCK_SEQPACKET socket gets it
//! whole; podman reads at most 4096 bytes of it. conmon's key is `data` from API version 1 on, and `pid` or
//! `exit_code` before.

mod saved;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, write};

use crate::options::{Mode, Options};
use crate::sys;

/// The key of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Data,
    Pid,
    ExitCode,
}

impl Key {
    const fn text(self) -> &'static str {
        match self {
            Key::Data => "data",
            Key::Pid => "pid",
            Key::ExitCode => "exit_code",
        }
    }
}

/// Bytes that podman reads of a report.
pub const REPORT_MAX: usize = 4096;

/// One report as a line of at most [`REPORT_MAX`] bytes; of a message that is too long the end is kept, since that is
/// where a runtime says what went wrong. Invalid UTF-8 is replaced.
pub fn report(key: Key, value: i32, message: &[u8]) -> Vec<u8> {
    let key = key.text();
    let head = format!("{{\"{key}\": {value}");
    if message.is_empty() {
        return format!("{head}}}\n").into_bytes();
    }
    let head = format!("{head}, \"message\": \"");
    let room = REPORT_MAX - head.len() - TAIL.len();
    let text = String::from_utf8_lossy(message);
    let mut used = 0;
    let start = text
        .char_indices()
        .rev()
        .take_while(|(_, c)| {
            used += escaped_len(*c);
            used <= room
        })
        .last()
        .map_or(text.len(), |(at, _)| at);
    let mut line = head;
    text[start..].chars().for_each(|c| escape(c, &mut line));
    line.push_str(TAIL);
    line.into_bytes()
}

const TAIL: &str = "\"}\n";

fn short_escape(c: char) -> Option<char> {
    Some(match c {
        '\\' | '"' | '/' => c,
        '\n' => 'n',
        '\r' => 'r',
        '\t' => 't',
        '\u{8}' => 'b',
        '\u{c}' => 'f',
        _ => return None,
    })
}

fn escaped_len(c: char) -> usize {
    match c {
        _ if short_escape(c).is_some() => 2,
        '\0'..='\u{1f}' | '\u{7f}' => 6,
        _ => c.len_utf8(),
    }
}

fn escape(c: char, line: &mut String) {
    match (short_escape(c), c) {
        (Some(short), _) => line.extend(['\\', short]),
        (None, '\0'..='\u{1f}' | '\u{7f}') => line.push_str(&format!("\\u{:04x}", u32::from(c))),
        (None, _) => line.push(c),
    }
}

/// What a caller is told, in order.
#[derive(Debug)]
pub struct Reports {
    sync: Pipe,
    /// Only with `--exec-attach`, until it has been used.
    attach: Pipe,
    exec: bool,
    legacy: bool,
}

impl Reports {
    /// Takes over the pipes whose numbers the caller put in the environment. If only the attach pipe is unusable, the
    /// sync pipe says so.
    pub fn open(options: &Options, sync: Option<&str>, attach: Option<&str>) -> Result<Reports, String> {
        let exec = matches!(options.mode, Mode::Exec { .. });
        let sync = Pipe::open("_OCI_SYNCPIPE", sync)?;
        let mut reports = Reports { sync, attach: Pipe::default(), exec, legacy: options.api_version == 0 };
        if matches!(options.mode, Mode::Exec { attach: true, .. }) {
            let pipe = match attach {
                Some(_) => Pipe::open("_OCI_ATTACHPIPE", attach),
                None => Err("--attach specified but _OCI_ATTACHPIPE was not given".into()),
            };
            reports.attach = pipe.inspect_err(|reason| reports.failed(reason.as_bytes()))?;
        }
        Ok(reports)
    }

    /// Clients may attach, and resizes may be sent.
    pub fn ready(&mut self) {
        // The pipe stays open, as conmon's does: its end means the monitor's end.
        self.attach.send(&report(Key::Data, 0, b""));
    }

    /// The process runs; an exec of API version 0 does not say so.
    pub fn started(&mut self, pid: i32) {
        if !(self.exec && self.legacy) {
            self.sync.send(&report(self.key(), pid, b""));
        }
    }

    /// It could not be started, and why.
    pub fn failed(&mut self, message: &[u8]) {
        self.sync.send(&report(self.key(), -1, message));
    }

    /// It could not even be prepared: somebody may be waiting on either pipe.
    pub fn not_ready(&mut self, message: &[u8]) {
        self.failed(message);
        self.attach.send(&report(Key::Data, -1, message));
    }

    /// An exec has ended; a container's end is in its exit files alone.
    pub fn ended(&mut self, status: i32, message: &[u8]) {
        if self.exec {
            self.sync.send(&report(self.key(), status, message));
        }
    }

    /// Lets go of the attach pipe; the sync pipe stays to the end.
    pub fn close_attach(&mut self) {
        self.attach = Pipe::default();
    }

    fn key(&self) -> Key {
        match (self.legacy, self.exec) {
            (false, _) => Key::Data,
            (true, false) => Key::Pid,
            (true, true) => Key::ExitCode,
        }
    }
}

/// The writing end of a report pipe.
#[derive(Debug, Default)]
struct Pipe {
    fd: Option<OwnedFd>,
}

impl Pipe {
    /// The pipe named by the environment variable's `value`: a decimal descriptor number, leading blanks allowed.
    fn open(name: &str, value: Option<&str>) -> Result<Pipe, String> {
        let Some(value) = value else { return Ok(Pipe::default()) };
        let fd = adopt(value).map_err(|error| format!("unable to use {name} {value:?}: {error}"))?;
        // Reports are small and rare, but a reader that has filled the pipe may never come back.
        set_nonblocking(fd.as_fd()).map_err(|error| format!("unable to prepare {name} {value:?}: {error}"))?;
        Ok(Pipe { fd: Some(fd) })
    }

    /// Writes one report. A reader that is gone or takes nothing for [`PATIENCE`] costs the report, never the
    /// container.
    fn send(&mut self, line: &[u8]) {
        let Some(fd) = &self.fd else { return };
        if let Err(error) = write_within(fd.as_fd(), line, PATIENCE) {
            if error.raw_os_error() != Some(libc::EPIPE) {
                crate::warn!("Failed to send {} to parent: {error}", String::from_utf8_lossy(line).trim_end());
            }
            self.fd = None;
        }
    }
}

/// How long a report may wait for a reader that does not read.
const PATIENCE: Duration = Duration::from_millis(500);

/// Takes over the descriptor that a caller named in an environment variable.
pub fn adopt(value: &str) -> io::Result<OwnedFd> {
    let number: i32 = value.trim_start().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let fd = sys::adopt(number)?;
    fcntl(&fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

pub fn set_nonblocking(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

fn write_within(fd: BorrowedFd<'_>, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], timeout)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Lets go of the caller's stdin, stdout and stderr, which it may be waiting to see closed.
pub fn detach_stdio() {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty());
    let Ok(null) = null else { return crate::warn!("Failed to open /dev/null") };
    let _ = dup2_stdin(&null);
    let _ = dup2_stdout(&null);
    let _ = dup2_stderr(&null);
    crate::diag::detach();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_look_like_conmons() {
        let rows: [(Key, i32, &[u8], &str); 6] = [
            (Key::Data, 42, b"", "{\"data\": 42}\n"),
            (Key::Pid, -1, b"no", "{\"pid\": -1, \"message\": \"no\"}\n"),
            (Key::ExitCode, 0, b"", "{\"exit_code\": 0}\n"),
            (Key::Data, -1, b"a\"b\\c/d\n", "{\"data\": -1, \"message\": \"a\\\"b\\\\c\\/d\\n\"}\n"),
            (Key::Data, -1, b"\x01\x7f\t\r\x08\x0c", "{\"data\": -1, \"message\": \"\\u0001\\u007f\\t\\r\\b\\f\"}\n"),
            (Key::Data, -1, b"\xc3\xa4 \xff", "{\"data\": -1, \"message\": \"\u{e4} \u{fffd}\"}\n"),
        ];
        for (key, value, message, expected) in rows {
            assert_eq!(String::from_utf8(report(key, value, message)).unwrap(), expected);
        }
    }

    #[test]
    fn a_long_message_keeps_its_end() {
        for filler in ["x", "\u{1}", "\u{e4}", "\n", "\u{1f600}"] {
            let message = filler.repeat(9000) + "the end";
            let line = report(Key::Data, -1, message.as_bytes());
            assert!(line.len() <= REPORT_MAX, "{}", line.len());
            assert!(line.len() > REPORT_MAX - 8, "{}", line.len());
            let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert!(value["message"].as_str().unwrap().ends_with("the end"));
        }
    }
}
