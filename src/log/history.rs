//! Reads the CRI log back, so that a client that fell behind misses nothing.
//!
//! The log is the only copy of what the container said: a client that is behind remembers a [`Cursor`] instead of
//! bytes, and is served from the file at its own pace.

use nix::sys::uio::pread;

use super::file::{LogFile, Position};
use crate::stream::Stream;

/// Where a reader is: a record boundary, and how many of the container's bytes behind it are done already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub at: Position,
    pub skip: usize,
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
pub struct Piece {
    pub stream: Stream,
    pub start: usize,
    pub end: usize,
}

/// What is at a cursor.
#[derive(Debug)]
pub enum Window {
    /// Pieces of `buffer`, in order, and the cursor behind all of them.
    Pieces(Vec<Piece>, Cursor),
    /// Nothing: the cursor is at the end of the log.
    End,
    /// What the cursor needs cannot be read any more.
    Gone,
}

/// Reads a window of the log at `cursor` into `buffer` (64 KiB or more) and cuts it into pieces of at most
/// `piece_max` bytes. `stop` is a place where the log lost bytes: nothing is read beyond it.
pub fn window(log: &LogFile, cursor: Cursor, stop: Option<Position>, buffer: &mut [u8], piece_max: usize) -> Window {
    let mut at = cursor.at;
    loop {
        let Some((file, mut end, more)) = log.at(at) else { return Window::Gone };
        if let Some(stop) = stop
            && stop.generation == at.generation
        {
            end = end.min(stop.offset);
        }
        if at.offset >= end {
            match (stop, more) {
                (Some(stop), _) if at >= stop => return Window::Gone,
                (_, true) => {
                    let Some(next) = log.begin(at.generation + 1) else { return Window::Gone };
                    at = next;
                    continue;
                }
                _ => return Window::End,
            }
        }
        let want = usize::try_from(end - at.offset).unwrap_or(usize::MAX).min(buffer.len());
        let Ok(offset) = i64::try_from(at.offset) else { return Window::Gone };
        // Still to be done in the next file, if the cursor was at the end of its own: nothing was read there.
        let skip = cursor.skip;
        return match pread(&file, &mut buffer[..want], offset) {
            Ok(count) if count > 0 => cut(buffer, count, Cursor { at, skip }, piece_max),
            // Cut short behind our back, or unreadable.
            _ => Window::Gone,
        };
    }
}

/// Moves the payload of the records in `buffer[..count]` to its front and lists it as pieces.
fn cut(buffer: &mut [u8], count: usize, cursor: Cursor, piece_max: usize) -> Window {
    let mut pieces: Vec<Piece> = Vec::new();
    let (mut read, mut put, mut skip) = (0, 0, cursor.skip);
    while let Parsed::Record(record) = record(&buffer[read..count]) {
        let Record { stream, payload, len } = record;
        let skipped = skip.min(payload.len());
        skip -= skipped;
        let from = read + (payload.as_ptr() as usize - buffer[read..].as_ptr() as usize) + skipped;
        let size = payload.len() - skipped;
        buffer.copy_within(from..from + size, put);
        add(&mut pieces, stream, put, size, piece_max);
        put += size;
        read += len;
    }
    if read == 0 {
        return Window::Gone;
    }
    let at = Position { offset: cursor.at.offset + read as u64, ..cursor.at };
    Window::Pieces(pieces, Cursor { at, skip })
}

fn add(pieces: &mut Vec<Piece>, stream: Stream, mut start: usize, mut size: usize, piece_max: usize) {
    if let Some(last) = pieces.last_mut()
        && last.stream == stream
    {
        let room = (piece_max - (last.end - last.start)).min(size);
        last.end += room;
        start += room;
        size -= room;
    }
    while size > 0 {
        let len = size.min(piece_max);
        pieces.push(Piece { stream, start, end: start + len });
        start += len;
        size -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::k8s::K8sFile;
    use crate::log::stamp::Stamper;
    use crate::options::LogPolicy;

    #[test]
    fn a_place_within_a_chunk_survives_the_rotation_that_the_chunk_caused() {
        let dir = tempfile::tempdir().unwrap();
        let policy = LogPolicy {
            size_max: Some(100),
            global_size_max: None,
            rotate: true,
            max_files: 2,
            allowlist: Vec::new(),
            sync: false,
            line_max: 80,
            utc: true,
            file_mode: 0o640,
        };
        let mut file = LogFile::open(&dir.path().join("log"), &policy, 0).unwrap();
        file.hold = true;
        let mut log = K8sFile::new(file, Stamper::new(true), policy.line_max);
        let mut scratch = [0; 256];
        log.write(&mut scratch, Stream::Stdout, &[b'x'; 50]).unwrap();
        // No room: the file is rotated first, but the chunk begins where the old one ends.
        let at = log.write(&mut scratch, Stream::Stdout, b"done, to do").unwrap();
        let mut buffer = [0; 256];
        let Window::Pieces(pieces, next) = window(&log.file, Cursor { at, skip: 6 }, None, &mut buffer, 8) else {
            panic!("there is something to read")
        };
        assert_eq!(pieces, [Piece { stream: Stream::Stdout, start: 0, end: 5 }]);
        assert_eq!((&buffer[..5], next), (&b"to do"[..], Cursor { at: log.file.end(), skip: 0 }));
    }
}
