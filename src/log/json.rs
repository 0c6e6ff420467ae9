//! The record of Docker's json-file log driver: one JSON object per line.
//!
//! ```text
//! {"log":"hello\n","stream":"stdout","time":"2026-11-22T01:56:44.196214039Z"}
//! ```
//!
//! Readers put pieces of a long line together again by the `\n` that is inside `log`: a piece has none. JSON is
//! text, so bytes that are not UTF-8 become U+FFFD; whoever needs every byte uses k8s-file.

use super::file::{Format, LogFile};
use super::k8s::split;
use super::stamp::Stamper;
use crate::stream::Stream;

/// What every record begins with.
const HEAD: &[u8] = b"{\"log\":\"";

/// Appends the record of `line`, which is the content with its newline, or without one if it is a piece.
/// `stamp` is the time in RFC 3339 and must need no escaping.
pub fn encode(out: &mut Vec<u8>, line: &[u8], stream: Stream, stamp: &[u8]) {
    out.reserve(line.len() + stamp.len() + ENVELOPE);
    out.extend_from_slice(HEAD);
    put_bytes(out, line);
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(stamp);
    out.extend_from_slice(b"\"}\n");
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // The check of a whole line is many times faster than the walk over its valid parts, and nearly all lines pass.
    if let Ok(text) = std::str::from_utf8(bytes) {
        return put_text(out, text);
    }
    for chunk in bytes.utf8_chunks() {
        put_text(out, chunk.valid());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(REPLACEMENT);
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    loop {
        let (clean, dirty) = rest.split_at(clean_len(rest));
        out.extend_from_slice(clean);
        rest = match dirty {
            [] => return,
            // Line and paragraph separator end a line in JavaScript, so encoders hide them.
            [0xE2, 0x80, last @ (0xA8 | 0xA9), after @ ..] => {
                out.extend_from_slice(if *last == 0xA8 { b"\\u2028" } else { b"\\u2029" });
                after
            }
            [byte, after @ ..] => {
                put_byte(out, *byte);
                after
            }
        };
    }
}

fn put_byte(out: &mut Vec<u8>, byte: u8) {
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        0..0x20 => {
            out.extend_from_slice(b"\\u00");
            out.extend([byte >> 4, byte & 15].map(|digit| HEX[usize::from(digit)]));
        }
        // The beginning of some other character than the separators.
        _ => out.push(byte),
    }
}

/// Length of the beginning of `text` that is copied as it is.
fn clean_len(text: &[u8]) -> usize {
    // Whole blocks first, without a branch per byte: the compiler makes vector code of this.
    let blocks = text.chunks_exact(BLOCK);
    let clean = blocks.take_while(|block| !block.iter().fold(false, |dirty, &byte| dirty | is_dirty(byte))).count();
    let start = clean * BLOCK;
    text[start..].iter().position(|&byte| is_dirty(byte)).map_or(text.len(), |more| start + more)
}

/// True for bytes that are escaped, and for the first byte of U+2028 and U+2029.
const fn is_dirty(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\') | (byte == 0xE2)
}

/// Bytes of a record around `log` and `time`.
const ENVELOPE: usize = 64;
/// Two vector registers of the smallest kind.
const BLOCK: usize = 32;
const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();
const HEX: &[u8; 16] = b"0123456789abcdef";

/// The driver: one record per line, with the file's caps and rotation.
#[derive(Debug)]
pub struct JsonFile {
    pub file: LogFile,
    format: Json,
    line_max: usize,
    records: Vec<u8>,
}

/// Formatted bytes that are written at once, about.
const BATCH: usize = 64 * 1024;

#[derive(Debug)]
struct Json(Stamper);

impl Format for Json {
    /// An estimate: an escape stands for one byte. (A replaced byte cannot be told from a real U+FFFD.)
    fn payload(&self, record: &[u8]) -> u64 {
        let text = record.strip_prefix(HEAD).unwrap_or(record);
        let mut count = 0;
        let mut bytes = text.iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' => break,
                b'\\' if bytes.next() == Some(&b'u') => drop(bytes.nth(3)),
                _ => {}
            }
            count += 1;
        }
        count
    }

    fn note(&mut self, text: &str) -> Vec<u8> {
        let mut record = Vec::new();
        encode(&mut record, format!("{text}\n").as_bytes(), Stream::Stderr, self.0.rfc3339_nano_utc());
        record
    }
}

impl JsonFile {
    pub fn new(file: LogFile, line_max: usize) -> JsonFile {
        JsonFile { file, format: Json(Stamper::new(true)), line_max, records: Vec::new() }
    }

    /// Records one chunk.
    pub fn write(&mut self, stream: Stream, chunk: &[u8]) {
        let stamp = *self.format.0.rfc3339_nano_utc();
        let mut done = 0;
        for (content, full) in split(chunk, self.line_max) {
            let len = content.len() + usize::from(full);
            let line = &chunk[done..done + len];
            done += len;
            let before = self.records.len();
            if self.file.is_capped(before) {
                self.file.drop_capped(stream, len);
                continue;
            }
            encode(&mut self.records, line, stream, &stamp);
            if self.file.is_full(before, self.records.len() - before) || self.records.len() > BATCH {
                self.flush(stream, before);
            }
        }
        self.flush(stream, self.records.len());
        self.records.shrink_to(0);
    }

    /// Writes the first `count` bytes of what is formatted, and makes room for the rest if that is needed.
    fn flush(&mut self, stream: Stream, count: usize) {
        if count > 0 {
            self.file.append(stream, &self.records[..count], 0, &mut self.format);
            self.records.drain(..count);
        }
        if self.file.is_full(0, self.records.len()) {
            self.file.make_room();
        }
    }

    pub fn finish(&mut self) {
        self.file.finish(&mut self.format);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const STAMP: &str = "2026-11-22T01:56:44.196214039Z";

    fn record(line: &[u8], stream: Stream) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, line, stream, STAMP.as_bytes());
        out
    }

    #[test]
    fn records() {
        let table: &[(&[u8], &str)] = &[
            (b"hi\n", r"hi\n"),
            (b"a piece", "a piece"),
            (b"", ""),
            (b"\n", r"\n"),
            (b"\r\n", r"\r\n"),
            (b"\t\"\\/", r#"\t\"\\/"#),
            (b"\0\x01\x08\x0b\x0c\x1b\x1f\x7f", "\\u0000\\u0001\\u0008\\u000b\\u000c\\u001b\\u001f\x7f"),
            (b"<a&b>", "<a&b>"),
            ("gr\u{fc}\u{df} \u{4f60}\u{1f600}".as_bytes(), "gr\u{fc}\u{df} \u{4f60}\u{1f600}"),
            (
                "\u{2027}\u{2028}\u{2029}\u{202a}\u{2019}\u{20ac}".as_bytes(),
                "\u{2027}\\u2028\\u2029\u{202a}\u{2019}\u{20ac}",
            ),
            (b"\xff", "\u{fffd}"),
            (b"a\xe2\x80", "a\u{fffd}"),
            (b"\xe2\x80\n", "\u{fffd}\\n"),
            (b"\xc0\xaf\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
        ];
        for (line, log) in table {
            let want = format!("{{\"log\":\"{log}\",\"stream\":\"stderr\",\"time\":\"{STAMP}\"}}\n");
            assert_eq!(String::from_utf8(record(line, Stream::Stderr)).unwrap(), want);
        }
    }

    #[test]
    fn records_are_appended() {
        let mut out = Vec::new();
        encode(&mut out, b"a\n", Stream::Stdout, STAMP.as_bytes());
        encode(&mut out, b"b\n", Stream::Stderr, STAMP.as_bytes());
        assert_eq!(out, [record(b"a\n", Stream::Stdout), record(b"b\n", Stream::Stderr)].concat());
    }

    fn reads_back(line: &[u8], stream: Stream) {
        let out = record(line, stream);
        let (last, body) = out.split_last().unwrap();
        assert!(*last == b'\n' && !body.contains(&b'\n'), "one record, one line");
        let value: Value = serde_json::from_slice(body).unwrap();
        assert_eq!(value["log"], Value::from(String::from_utf8_lossy(line)));
        assert_eq!(value["stream"], Value::from(stream.name()));
        assert_eq!(value["time"], Value::from(STAMP));
        assert_eq!(value.as_object().unwrap().len(), 3);
    }

    #[test]
    fn every_byte_at_every_place_of_a_block_reads_back() {
        for byte in 0..=u8::MAX {
            for place in 0..=2 * BLOCK {
                let mut line = vec![b'x'; 2 * BLOCK + 1];
                line[place] = byte;
                reads_back(&line, Stream::Stdout);
            }
        }
    }

    #[test]
    fn any_bytes_read_back() {
        // Pieces that are likely to meet the edges: raw bytes, characters of every width, cut characters.
        let pieces: &[&[u8]] = &[
            b"\xe2\x80\xa8",
            b"\xe2\x80\xa9",
            b"\xe2\x80",
            b"\xe2",
            b"\x80",
            b"\xf0\x9f\x98\x80",
            b"\xf0\x9f",
            b"\xc3\xbc",
            b"\xff",
            b"\0",
            b"\"",
            b"\\",
            b"\n",
            b"\r\n",
            b"plain text that is longer than one block of bytes",
            b"u0000",
        ];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from(random >> 33).unwrap() % below
        };
        for round in 0..20_000 {
            let mut line = Vec::new();
            for _ in 0..next(12) {
                match next(3) {
                    0 => line.push(u8::try_from(next(256)).unwrap()),
                    _ => line.extend_from_slice(pieces[next(pieces.len())]),
                }
            }
            reads_back(&line, Stream::ALL[round % 2]);
        }
    }
}
