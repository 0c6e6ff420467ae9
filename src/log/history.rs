//! Reads the CRI log back, so that nobody who fell behind or came late misses anything.
//!
//! The log is the only copy of what the container said: a reader remembers a [`Place`] instead of bytes, and is served
//! from the files at its own pace. What the log lost, or what was taken away from us, is a gap with exact offsets.

mod search;

use std::os::fd::OwnedFd;

use nix::sys::uio::pread;

use super::file::{Beside, LogFile, Mark, Position, physical};
use crate::stream::Stream;
pub use search::{Ask, Search};

/// Where a reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Where to read on.
    pub mark: Mark,
    /// What lies before these offsets is done, or not wanted.
    pub from: [u64; 2],
}

impl Place {
    /// The first byte of all, whether or not it is still known.
    pub const START: Place =
        Place { mark: Mark { at: Position { generation: 0, offset: 0 }, offsets: [0; 2] }, from: [0; 2] };

    /// The offset of each stream's next byte.
    pub fn next(&self) -> [u64; 2] {
        [0, 1].map(|index| self.mark.offsets[index].max(self.from[index]))
    }

    /// Remembers that the first `bytes` of `chunks`, which were read here, are done.
    pub fn advance(&mut self, chunks: &[Chunk], mut bytes: usize) {
        for chunk in chunks {
            let taken = bytes.min(chunk.end - chunk.start);
            self.from[chunk.stream.index()] = chunk.offset + taken as u64;
            bytes -= taken;
            if bytes == 0 {
                return;
            }
        }
    }

    /// Goes on at a mark further on; if bytes of a wanted stream lie between, they are a gap, one stream at a time.
    fn jump(&mut self, mark: Mark, wanted: [bool; 2]) -> Option<Read> {
        let next = self.next();
        for stream in Stream::ALL {
            let index = stream.index();
            if wanted[index] && next[index] < mark.offsets[index] {
                self.from[index] = mark.offsets[index];
                let (offset, lost) = (next[index], mark.offsets[index] - next[index]);
                return Some(Read::Gap { stream, offset, lost, next: *self });
            }
        }
        self.mark = mark;
        None
    }
}

impl From<Mark> for Place {
    fn from(mark: Mark) -> Place {
        Place { mark, from: mark.offsets }
    }
}

/// One record of a CRI log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub stream: Stream,
    /// The container's bytes: with their newline if the line ends here, which is the record's own one.
    pub payload: &'a [u8],
    /// Bytes of the whole record.
    pub len: usize,
}

/// What stands at the beginning of some bytes of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    Record(Record<'a>),
    /// The record's end is not among these bytes.
    Incomplete,
    Malformed,
}

/// Takes the first record off `bytes`.
pub fn record(bytes: &[u8]) -> Parsed<'_> {
    let Some(newline) = memchr::memchr(b'\n', bytes) else { return Parsed::Incomplete };
    parse(&bytes[..=newline]).map_or(Parsed::Malformed, Parsed::Record)
}

fn parse(line: &[u8]) -> Option<Record<'_>> {
    let blank = memchr::memchr(b' ', line)?;
    let rest = &line[blank + 1..];
    let stream = match rest.get(..7)? {
        b"stdout " => Stream::Stdout,
        b"stderr " => Stream::Stderr,
        _ => return None,
    };
    let end = match rest.get(7..9)? {
        b"F " => line.len(),
        b"P " => line.len() - 1,
        _ => return None,
    };
    let start = blank + 1 + 9;
    Some(Record { stream, payload: line.get(start..end)?, len: line.len() })
}

/// A run of bytes of one stream, ready to be sent: at most as long as a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub stream: Stream,
    /// Which byte of the stream the first one is.
    pub offset: u64,
    /// Where the bytes are in the buffer.
    pub start: usize,
    pub end: usize,
}

/// What is at a place.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Chunks of the buffer, in order, and the place behind all of them. There may be none although there is more to
    /// read: nothing was wanted of a whole buffer.
    Chunks(Vec<Chunk>, Place),
    /// So many bytes of a stream cannot be had any more.
    Gap { stream: Stream, offset: u64, lost: u64, next: Place },
    /// Nothing: the place is at the end of the log.
    End,
}

/// Reads the log at `place` into `buffer` (64 KiB or more: it must hold a record) and cuts what is wanted into chunks
/// of at most `piece_max` bytes. Bytes and gaps of a wanted stream follow each other without a hole.
pub fn read(log: &LogFile, place: &Place, wanted: [bool; 2], buffer: &mut [u8], piece_max: usize) -> Read {
    let mut place = *place;
    loop {
        let mark = match log.ahead(place.mark) {
            Beside::Nothing => return Read::End,
            Beside::Jump(mark) => mark,
            Beside::Records(limit) => match fetch(log, place.mark.at, limit.at, buffer) {
                Err(end) => end,
                Ok(count) => {
                    let chunks = cut(buffer, count, &mut place, limit, wanted, piece_max);
                    match chunks {
                        Some(chunks) => return Read::Chunks(chunks, place),
                        // What stands there is not what we wrote.
                        None => limit,
                    }
                }
            },
        };
        if let Some(gap) = place.jump(mark, wanted) {
            return gap;
        }
    }
}

/// Reads what is between two places of one file, or its beginning; the error is where that file ends for us.
fn fetch(log: &LogFile, at: Position, limit: Position, buffer: &mut [u8]) -> Result<usize, Mark> {
    let file = log.file_of(at.generation);
    let extent = log.extent(at.generation).ok_or(log.end())?;
    let want = usize::try_from(limit.offset - at.offset).unwrap_or(usize::MAX).min(buffer.len());
    let count = file.and_then(|file| read_at(&file, physical(at.offset, extent.shift)?, &mut buffer[..want]));
    count.filter(|count| *count == want).ok_or(extent.end)
}

fn read_at(file: &OwnedFd, at: i64, buffer: &mut [u8]) -> Option<usize> {
    pread(file, buffer, at).ok()
}

/// Moves the wanted payload of the records in `buffer[..count]` to its front, lists it as chunks, and brings `place`
/// behind the last record; `None` if there is no record at all.
fn cut(
    buffer: &mut [u8],
    count: usize,
    place: &mut Place,
    limit: Mark,
    wanted: [bool; 2],
    piece_max: usize,
) -> Option<Vec<Chunk>> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let (mut read, mut put) = (0, 0);
    while let Parsed::Record(record) = record(&buffer[read..count]) {
        let Record { stream, payload, len } = record;
        let index = stream.index();
        let offset = place.mark.offsets[index];
        let after = offset + payload.len() as u64;
        if after > limit.offsets[index] {
            break;
        }
        if wanted[index] && after > place.from[index] {
            let first = offset.max(place.from[index]);
            let size = usize::try_from(after - first).unwrap_or(payload.len());
            let end = read + (payload.as_ptr() as usize - buffer[read..].as_ptr() as usize) + payload.len();
            buffer.copy_within(end - size..end, put);
            add(&mut chunks, Chunk { stream, offset: first, start: put, end: put + size }, piece_max);
            put += size;
        }
        place.mark.offsets[index] = after;
        read += len;
    }
    place.mark.at.offset += read as u64;
    (read > 0).then_some(chunks)
}

fn add(chunks: &mut Vec<Chunk>, mut more: Chunk, piece_max: usize) {
    if let Some(last) = chunks.last_mut()
        && last.stream == more.stream
    {
        let room = (piece_max - (last.end - last.start)).min(more.end - more.start);
        last.end += room;
        more.start += room;
        more.offset += room as u64;
    }
    while more.start < more.end {
        let end = more.end.min(more.start + piece_max);
        chunks.push(Chunk { end, ..more });
        more.offset += (end - more.start) as u64;
        more.start = end;
    }
}

#[cfg(test)]
mod tests;
