//! The journald sink: every line of the container is an entry of the journal.
//!
//! An entry is a datagram in journald's native format, a list of `KEY=value\n`; a value with newlines is written
//! `KEY\n`, its length as 64 bits little endian, the value, `\n`. See "Native Journal Protocol" of systemd.
//!
//! A line is sent when its newline arrives. Text without newline is kept, up to [`KEPT_MAX`] bytes; more becomes a
//! partial entry at once, so that a line of any length takes bounded memory. journald is waited for within a bound
//! (`socket`); an entry that it does not take even so is counted as refused.

mod saved;
mod socket;

#[cfg(test)]
mod fake;

use std::ffi::OsStr;
use std::io::IoSlice;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use memchr::memchr;
use nix::errno::Errno;

use crate::options::JournalIdentity;
use crate::stream::Stream;
use socket::Socket;

/// Sends the container's lines to journald.
#[derive(Debug)]
pub struct Journald {
    socket: Socket,
    fields: Fields,
    parse_priority: bool,
    lines: [Line; 2],
    counters: Counters,
    refused: [u64; 2],
}

/// What became of the container's output; bytes are the container's own, without fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub entries: u64,
    pub bytes: u64,
    pub refused_entries: u64,
    pub refused_bytes: u64,
    /// Why the latest refused entry was refused.
    pub last_error: Option<Errno>,
}

/// The unfinished line of a stream.
#[derive(Debug, Default)]
struct Line {
    /// Text that has not been sent.
    kept: Vec<u8>,
    /// The priority of the line if its beginning has been sent, so that its pieces have the same.
    priority: Option<u8>,
}

/// The fields that are the same in every entry, as they are sent.
#[derive(Debug)]
struct Fields {
    /// Between MESSAGE and PRIORITY.
    id: Box<[u8]>,
    /// Behind PRIORITY.
    names: Box<[u8]>,
    /// Only in partial entries; empty if these are not to be marked.
    partial: &'static [u8],
    labels: Box<[u8]>,
}

impl Journald {
    /// Nothing is opened before the first entry: journald may be absent now and come later.
    pub fn new(socket: &Path, cid: &OsStr, name: Option<&OsStr>, identity: &JournalIdentity) -> Journald {
        Journald {
            socket: Socket::new(socket),
            fields: Fields::new(cid, name, identity),
            parse_priority: identity.parse_priority,
            lines: Default::default(),
            counters: Counters::default(),
            refused: [0; 2],
        }
    }

    /// A new turn begins, in which journald may be waited for again.
    pub fn begin_turn(&mut self) {
        self.socket.begin_turn();
    }

    /// True if others should get their turn before more is written.
    pub fn is_tired(&self) -> bool {
        self.socket.is_tired()
    }

    /// Takes what the container wrote; waits for a living journald, but not longer than `socket` allows.
    pub fn write(&mut self, stream: Stream, data: &[u8]) {
        for piece in data.chunks(PIECE_MAX) {
            self.socket.renew_patience();
            self.write_piece(stream, piece);
        }
    }

    /// Sends the kept text as partial entries; nothing follows.
    pub fn finish(&mut self) {
        self.socket.renew_patience();
        for stream in Stream::ALL {
            if !self.lines[stream.index()].kept.is_empty() {
                self.send(stream, &[], true);
            }
        }
    }

    /// Counts text that a policy keeps from the journal.
    pub fn leave_out(&mut self, stream: Stream, bytes: usize) {
        self.refused[stream.index()] += bytes as u64;
    }

    /// The container's bytes that journald did not take, per stream.
    pub fn lost(&self) -> [u64; 2] {
        self.refused
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn write_piece(&mut self, stream: Stream, mut rest: &[u8]) {
        while let Some(newline) = memchr(b'\n', rest) {
            let (line, after) = rest.split_at(newline + 1);
            self.send(stream, line, false);
            rest = after;
        }
        let kept = &mut self.lines[stream.index()].kept;
        if rest.len() + kept.len() <= KEPT_MAX {
            kept.extend_from_slice(rest);
        } else {
            self.send(stream, rest, true);
        }
    }

    /// Sends the kept text and `text` as one entry.
    fn send(&mut self, stream: Stream, text: &[u8], partial: bool) {
        let line = &mut self.lines[stream.index()];
        // Taking it also gives the memory back.
        let kept = mem::take(&mut line.kept);
        let prefix = if self.parse_priority && line.priority.is_none() { prefix(&kept, text) } else { None };
        let priority = prefix.or(line.priority).unwrap_or(default_priority(stream));
        line.priority = partial.then_some(priority);
        let skip = prefix.map_or(0, |_| PREFIX_LEN);
        let skip_kept = skip.min(kept.len());
        let message = [&kept[skip_kept..], &text[skip - skip_kept..]];
        let result = self.fields.with_entry(message, priority, partial, |entry| self.socket.send(entry));
        let bytes = kept.len() + text.len();
        if result.is_err() {
            self.refused[stream.index()] += bytes as u64;
        }
        self.counters.count(bytes, result);
    }
}

impl Counters {
    fn count(&mut self, bytes: usize, result: nix::Result<()>) {
        let (entry_count, byte_count) = match result {
            Ok(()) => (&mut self.entries, &mut self.bytes),
            Err(error) => {
                self.last_error = Some(error);
                (&mut self.refused_entries, &mut self.refused_bytes)
            }
        };
        *entry_count += 1;
        *byte_count += bytes as u64;
    }
}

impl Fields {
    fn new(cid: &OsStr, name: Option<&OsStr>, identity: &JournalIdentity) -> Fields {
        let cid = cid.as_bytes();
        let short = &cid[..cid.len().min(SHORT_ID_LEN)];
        let tag = identity.tag.as_deref().map(OsStr::as_bytes);
        let name = name.map(OsStr::as_bytes);
        let mut names = Vec::new();
        put_field(&mut names, b"CONTAINER_ID", short);
        if let Some(tag) = tag {
            put_field(&mut names, b"CONTAINER_TAG", tag);
        }
        if let Some(name) = name {
            put_field(&mut names, b"CONTAINER_NAME", name);
        }
        put_field(&mut names, b"SYSLOG_IDENTIFIER", tag.or(name).unwrap_or(short));
        let mut id = Vec::new();
        put_field(&mut id, b"CONTAINER_ID_FULL", cid);
        let mut labels = Vec::new();
        for label in identity.labels.iter().map(|label| label.as_bytes()) {
            // The options have been checked: there is a sign, and nothing strange before it.
            if let Some(sign) = memchr(b'=', label) {
                put_field(&mut labels, &label[..sign], &label[sign + 1..]);
            }
        }
        let partial: &[u8] = if identity.mark_partial { b"CONTAINER_PARTIAL_MESSAGE=true\n" } else { b"" };
        Fields { id: id.into(), names: names.into(), partial, labels: labels.into() }
    }

    /// Lays out an entry without copying anything of it, and hands it to `send`.
    fn with_entry<T>(
        &self,
        message: [&[u8]; 2],
        priority: u8,
        partial: bool,
        send: impl FnOnce(&[IoSlice<'_>]) -> T,
    ) -> T {
        let [first, second] = message;
        let length = ((first.len() + second.len()) as u64).to_le_bytes();
        // A partial message has no newline, a complete one ends with it.
        let (key, length): (&[u8], &[u8]) = if partial { (b"MESSAGE=", b"") } else { (b"MESSAGE\n", &length) };
        let priority = [b'0' + priority];
        send(
            &[
                key,
                length,
                first,
                second,
                b"\n",
                &self.id,
                b"PRIORITY=",
                &priority,
                b"\n",
                &self.names,
                if partial { self.partial } else { b"" },
                &self.labels,
            ]
            .map(IoSlice::new),
        )
    }
}

fn put_field(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.extend_from_slice(key);
    if memchr(b'\n', value).is_some() {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// N of `<N>` at the beginning of a line that lies in two pieces.
fn prefix(first: &[u8], second: &[u8]) -> Option<u8> {
    let mut bytes = first.iter().chain(second).copied();
    match [bytes.next()?, bytes.next()?, bytes.next()?] {
        [b'<', digit @ b'0'..=b'7', b'>'] => Some(digit - b'0'),
        _ => None,
    }
}

/// Informational and error (syslog severities, RFC 5424, 6.2.1).
const fn default_priority(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => 6,
        Stream::Stderr => 3,
    }
}

/// More text than this without newline becomes a partial entry (conmon's limit).
const KEPT_MAX: usize = 8191;
/// Output is looked at in pieces of this size, as conmon reads it, so that long lines fall apart at the same places.
pub const PIECE_MAX: usize = 8192;
const PREFIX_LEN: usize = 3;
/// The length of a container ID as people see it.
const SHORT_ID_LEN: usize = 12;

#[cfg(test)]
mod tests;
