//! The CRI log format, which conmon calls `k8s-file`.
//!
//! A record is `STAMP STREAM TAG CONTENT\n` (Kubernetes, "CRI container log format"): the tag is `F` if the
//! container's line ends here and `P` if it goes on in the next record of the same stream. With our stamps of 35
//! bytes and stream names of 6, what stands before the content is always [`HEADER`] bytes long.

use super::file::{Format, LogFile, Mark};
use super::stamp::Stamper;
use crate::stream::Stream;

/// Bytes before the content: stamp, stream and tag, each with a blank behind it.
pub const HEADER: usize = 35 + 1 + 6 + 1 + 1 + 1;

/// Cuts `chunk` into pieces of at most `line_max` bytes that end at newlines; the newline is not part of the piece.
/// The second value says whether there was one: that is the tag.
pub fn split(mut chunk: &[u8], line_max: usize) -> impl Iterator<Item = (&[u8], bool)> {
    std::iter::from_fn(move || {
        if chunk.is_empty() {
            return None;
        }
        let near = &chunk[..chunk.len().min(line_max + 1)];
        let (piece, full) = match memchr::memchr(b'\n', near) {
            Some(at) => (&chunk[..at], true),
            None => (&chunk[..near.len().min(line_max)], false),
        };
        chunk = &chunk[piece.len() + usize::from(full)..];
        Some((piece, full))
    })
}

/// Formats records with one stamp.
#[derive(Debug)]
pub struct Header([u8; HEADER]);

impl Header {
    pub fn new(stamp: &[u8; 35], stream: Stream) -> Header {
        let mut header = [b' '; HEADER];
        header[..35].copy_from_slice(stamp);
        header[36..42].copy_from_slice(stream.name().as_bytes());
        header[HEADER - 2] = b'F';
        Header(header)
    }

    /// Bytes of a record with this content.
    pub const fn record_len(content: &[u8]) -> usize {
        HEADER + content.len() + 1
    }

    /// Puts one record at the beginning of `out`, which must have room for it.
    #[inline]
    pub fn put(&self, out: &mut [u8], content: &[u8], full: bool) {
        let (header, rest) = out.split_at_mut(HEADER);
        header.copy_from_slice(&self.0);
        if !full {
            header[HEADER - 2] = b'P';
        }
        rest[..content.len()].copy_from_slice(content);
        rest[content.len()] = b'\n';
    }
}

/// The driver: formats chunks and puts them in the file.
#[derive(Debug)]
pub struct K8sFile {
    pub file: LogFile,
    cri: Cri,
    line_max: usize,
    /// Records made of each stream.
    pub records: [u64; 2],
}

#[derive(Debug)]
struct Cri(Stamper);

impl Format for Cri {
    fn payload(&self, record: &[u8]) -> u64 {
        let partial = record.get(HEADER - 2) == Some(&b'P');
        record.len().saturating_sub(HEADER + usize::from(partial)) as u64
    }

    fn note(&mut self, text: &str) -> Vec<u8> {
        let mut record = vec![0; Header::record_len(text.as_bytes())];
        Header::new(self.0.cri(), Stream::Stderr).put(&mut record, text.as_bytes(), true);
        record
    }
}

impl K8sFile {
    pub fn new(file: LogFile, stamper: Stamper, line_max: usize) -> K8sFile {
        K8sFile { file, cri: Cri(stamper), line_max, records: [0; 2] }
    }

    /// Records one chunk; `out` is scratch space for at least one record.
    ///
    /// Returns where the chunk begins in the log, and whether all of it can be read back from there.
    pub fn write(&mut self, out: &mut [u8], stream: Stream, chunk: &[u8]) -> (Mark, bool) {
        let (begin, lost) = (self.file.end(), self.file.lost());
        let header = Header::new(self.cri.0.cri(), stream);
        // Bytes in `out`, and how many of them are the container's.
        let (mut used, mut payload, mut records) = (0, 0, 0);
        for (content, full) in split(chunk, self.line_max) {
            let len = Header::record_len(content);
            let capped = self.file.is_capped(used);
            if capped || used + len > out.len() || self.file.is_full(used, len) {
                if used > 0 {
                    self.file.append(stream, &out[..used], payload, &mut self.cri);
                    (used, payload) = (0, 0);
                }
                if capped {
                    self.file.drop_capped(stream, content.len() + usize::from(full));
                    continue;
                }
                if self.file.is_full(0, len) {
                    self.file.make_room();
                }
            }
            header.put(&mut out[used..], content, full);
            used += len;
            records += 1;
            payload += content.len() as u64 + u64::from(full);
        }
        if used > 0 {
            self.file.append(stream, &out[..used], payload, &mut self.cri);
        }
        self.records[stream.index()] += records;
        (begin, self.file.readable() && self.file.lost() == lost)
    }

    pub fn finish(&mut self) {
        self.file.finish(&mut self.cri);
    }
}
