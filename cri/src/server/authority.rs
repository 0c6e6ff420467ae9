//! Connections of clients that name the socket's path as their HTTP/2 `:authority`.
//!
//! A unix socket has no host, and gRPC libraries disagree about what to say in its place: the kubelet and crictl before
//! 1.31 say the path, gRPC's C core the path percent-encoded. Neither is a host as RFC 3986 §3.2.2 has it, so `h2` resets
//! the request as malformed. Nobody here asks for the authority: it is replaced before `h2` reads it.
//!
//! What is replaced is the value of a literal of that name, spelt out or as entry 1 of HPACK's static table (RFC 7541
//! §6.2, Appendix A), by one letter. Literals are found without any table, and an entry that is never longer than the sender's keeps the
//! indexes of both sides the same: what the sender still refers to has not been evicted here (RFC 7541 §4.1, §4.4).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

/// `PRI * HTTP/2.0` and what belongs to it, in bytes (RFC 9113 §3.4).
const PREFACE: usize = 24;
/// Length u24, type u8, flags u8, stream u32 (RFC 9113 §4.1).
const FRAME_HEADER: usize = 9;
/// The longest frame that is allowed as long as we have not asked for longer ones (RFC 9113 §6.5.2).
const LONGEST: usize = 16384;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The name in HPACK's static table, and spelt out with its length before it.
const AUTHORITY: usize = 1;
const AUTHORITY_SPELT: &[u8] = b"\x0a:authority";
/// A host of the shortest length: a string of one byte, not Huffman-coded.
const HOST: [u8; 2] = [1, b'c'];

/// One connection of a client.
pub struct Connection {
    socket: UnixStream,
    rewriter: Rewriter,
}

impl Connection {
    pub fn new(socket: UnixStream) -> Connection {
        Connection { socket, rewriter: Rewriter::new() }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rewriter.ready.is_empty() {
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.socket).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.rewriter.take(read.filled());
        }
        let ready = &mut self.rewriter.ready;
        let rest = ready.split_off(ready.len().min(into.remaining()));
        into.put_slice(ready);
        *ready = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// Cuts a client's bytes into frames; holds back header frames until they are whole, and nothing else.
struct Rewriter {
    /// So many bytes go on as they are.
    pass: usize,
    /// The beginning of a frame.
    held: Vec<u8>,
    /// For `h2` to read.
    ready: Vec<u8>,
}

impl Rewriter {
    fn new() -> Rewriter {
        Rewriter { pass: PREFACE, held: Vec::new(), ready: Vec::new() }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let wanted = if self.pass > 0 { self.pass } else { self.whole() - self.held.len() };
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            bytes = later;
            if self.pass > 0 {
                self.ready.extend_from_slice(now);
                self.pass -= now.len();
            } else {
                self.held.extend_from_slice(now);
                self.frame();
            }
        }
    }

    /// The length of what is held once it can be looked at: a frame's header, or a whole frame of headers.
    fn whole(&self) -> usize {
        if self.held.len() < FRAME_HEADER { FRAME_HEADER } else { FRAME_HEADER + length(&self.held) }
    }

    /// Lets go what is held as soon as that can be.
    fn frame(&mut self) {
        if self.held.len() < FRAME_HEADER {
            return;
        }
        let length = length(&self.held);
        // A block that goes on in other frames is longer than any that our clients send; it is not looked into.
        let (kind, flags) = (self.held[3], self.held[4]);
        if kind != HEADERS || flags & END_HEADERS == 0 || length > LONGEST {
            self.ready.append(&mut self.held);
            self.pass = length;
        } else if self.held.len() == FRAME_HEADER + length {
            // What cannot be read is for `h2` to refuse.
            let mut frame = replaced(&self.held).unwrap_or_else(|| std::mem::take(&mut self.held));
            self.ready.append(&mut frame);
            self.held.clear();
        }
    }
}

fn length(frame: &[u8]) -> usize {
    usize::from(frame[0]) << 16 | usize::from(frame[1]) << 8 | usize::from(frame[2])
}

/// A whole frame of headers with another authority; `None` for one that is malformed.
fn replaced(frame: &[u8]) -> Option<Vec<u8>> {
    let mut frame = frame.to_vec();
    let flags = frame[4];
    let mut at = FRAME_HEADER;
    let mut end = frame.len();
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(at)?))?;
        at += 1;
    }
    if flags & PRIORITY != 0 {
        at += 5;
    }
    while at < end {
        let field = Field::read(frame.get(..end)?, at)?;
        if field.authority && field.value.len() > HOST.len() {
            end = end - field.value.len() + HOST.len();
            at = field.value.start + HOST.len();
            frame.splice(field.value, HOST);
        } else {
            at = field.value.end;
        }
    }
    let length = frame.len() - FRAME_HEADER;
    frame[..3].copy_from_slice(&u32::try_from(length).ok()?.to_be_bytes()[1..]);
    Some(frame)
}

/// One representation of a block (RFC 7541 §6).
struct Field {
    /// Whether it is a literal with the authority's name.
    authority: bool,
    /// Where a literal's value is, with its length before it; empty, at the field's end, for others.
    value: std::ops::Range<usize>,
}

impl Field {
    fn read(block: &[u8], at: usize) -> Option<Field> {
        let first = *block.get(at)?;
        let prefix = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let (name, mut at) = integer(block, at, prefix)?;
        if prefix == 7 || prefix == 5 {
            return Some(Field { authority: false, value: at..at });
        }
        let mut authority = name == AUTHORITY;
        if name == 0 {
            let end = string(block, at)?;
            authority = block[at..end] == *AUTHORITY_SPELT;
            at = end;
        }
        Some(Field { authority, value: at..string(block, at)? })
    }
}

/// An integer whose first byte has `prefix` bits of it, and where it ends (RFC 7541 §5.1).
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let most = (1_usize << prefix) - 1;
    let mut value = usize::from(*block.get(at)?) & most;
    let mut at = at + 1;
    if value < most {
        return Some((value, at));
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*block.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// Where the string at `at` ends (RFC 7541 §5.2).
fn string(block: &[u8], at: usize) -> Option<usize> {
    let (length, at) = integer(block, at, 7)?;
    at.checked_add(length).filter(|end| *end <= block.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// `:method: POST`, `:authority: /run/x.sock`, a literal with a name of its own, `:scheme: http`.
    const BLOCK: &[u8] = b"\x83\x41\x0b/run/x.sock\x40\x01a\x01b\x86";
    const REPLACED: &[u8] = b"\x83\x41\x01c\x40\x01a\x01b\x86";

    fn sent(frames: &[Vec<u8>]) -> Vec<u8> {
        [vec![b'P'; PREFACE], frames.concat()].concat()
    }

    fn read(bytes: &[u8], at_once: usize) -> Vec<u8> {
        let mut rewriter = Rewriter::new();
        bytes.chunks(at_once).for_each(|chunk| rewriter.take(chunk));
        assert!(rewriter.held.is_empty());
        rewriter.ready
    }

    #[test]
    fn only_the_authority_is_replaced_however_the_bytes_come() {
        let data = frame(0, 1, BLOCK);
        let given = sent(&[frame(4, 0, &[]), frame(HEADERS, END_HEADERS, BLOCK), data.clone()]);
        let wanted = sent(&[frame(4, 0, &[]), frame(HEADERS, END_HEADERS, REPLACED), data]);
        for at_once in [1, 2, 7, 33, given.len()] {
            assert_eq!(read(&given, at_once), wanted);
        }
    }

    #[test]
    fn the_name_may_be_spelt_out() {
        let given = sent(&[frame(HEADERS, END_HEADERS, b"\x83\x40\x0a:authority\x04/a/b\x86")]);
        let wanted = sent(&[frame(HEADERS, END_HEADERS, b"\x83\x40\x0a:authority\x01c\x86")]);
        assert_eq!(read(&given, 4), wanted);
    }

    #[test]
    fn padding_and_priority_stay() {
        let flags = END_HEADERS | PADDED | PRIORITY;
        let around = |block: &[u8]| [b"\x02pppp5", block, b"\0\0"].concat();
        let given = sent(&[frame(HEADERS, flags, &around(BLOCK))]);
        assert_eq!(read(&given, 5), sent(&[frame(HEADERS, flags, &around(REPLACED))]));
    }

    #[test]
    fn a_huffman_coded_value_and_every_kind_of_literal() {
        // "www.example.com" as RFC 7541 §C.4.1 has it; incremental, without and never indexed; a size update before it.
        let coded = b"\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        for first in [0x41, 0x01, 0x11] {
            let block = [&[0x3f, 0xe1, 0x1f, first], &coded[..], &[0x84]].concat();
            let wanted = [0x3f, 0xe1, 0x1f, first, 1, b'c', 0x84];
            assert_eq!(
                read(&sent(&[frame(HEADERS, END_HEADERS, &block)]), 64),
                sent(&[frame(HEADERS, END_HEADERS, &wanted)])
            );
        }
    }

    #[test]
    fn what_cannot_be_read_goes_on_as_it_is() {
        for block in
            [&b"\x41"[..], b"\x41\x0babc", b"\x40\x7f\xff\xff\xff\xff\xff\xff", b"\x41\x01/\x41\x02//\x41\x09/"]
        {
            let given = sent(&[frame(HEADERS, END_HEADERS, block)]);
            assert_eq!(read(&given, 3), given);
        }
        let too_padded = sent(&[frame(HEADERS, END_HEADERS | PADDED, b"\xffab")]);
        assert_eq!(read(&too_padded, 3), too_padded);
        let goes_on = sent(&[frame(HEADERS, 0, BLOCK), frame(9, END_HEADERS, BLOCK)]);
        assert_eq!(read(&goes_on, 3), goes_on);
    }
}
