//! What containers write, and whether a log or a client got exactly that.
//!
//! A payload is one block of whole lines, written over and over up to a total that ends with a line. Writer and reader build
//! the same block, so nothing has to be kept to compare with.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

/// The shape of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// Every line has this many bytes, its newline included.
    Fixed(usize),
    /// As in the logs of services: most have 60 to 400 bytes, a few are empty and a few have tens of kilobytes.
    Mixed,
}

/// How often lines of which length occur in [`Lines::Mixed`]: parts per thousand, from, up to.
const MIX: [(usize, usize, usize); 7] = [
    (10, 1, 2),
    (80, 20, 60),
    (600, 60, 160),
    (250, 160, 400),
    (40, 400, 2_000),
    (17, 2_000, 8_000),
    (3, 16_000, 40_000),
];

const BLOCK: usize = 4 << 20;

#[derive(Debug)]
pub struct Payload {
    pub block: Vec<u8>,
    /// Bytes altogether.
    pub total: u64,
}

impl Payload {
    /// At most `total` bytes, ending with a line.
    pub fn new(lines: Lines, total: u64) -> Payload {
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        let mut block = Vec::with_capacity(BLOCK + (64 << 10));
        while block.len() < BLOCK {
            let len = match lines {
                Lines::Fixed(len) => len,
                Lines::Mixed => dice.mixed_len(),
            };
            push_line(&mut block, len, &mut dice);
        }
        let size = block.len() as u64;
        let rest = usize::try_from(total % size).unwrap_or(0);
        let rest = memchr::memrchr(b'\n', &block[..rest]).map_or(0, |newline| newline + 1);
        Payload { total: total - total % size + rest as u64, block }
    }

    /// The words that [`Payload::parse`] understands.
    pub fn words(lines: Lines, total: u64) -> String {
        match lines {
            Lines::Fixed(len) => format!("{len} {total}"),
            Lines::Mixed => format!("mixed {total}"),
        }
    }

    pub fn parse(lines: &str, total: &str) -> Option<Payload> {
        let lines = if lines == "mixed" { Lines::Mixed } else { Lines::Fixed(lines.parse().ok()?) };
        Some(Payload::new(lines, total.parse().ok()?))
    }

    /// Up to `most` bytes from the absolute position `at`, in one piece.
    pub fn piece(&self, at: u64, most: usize) -> &[u8] {
        let start = usize::try_from(at % self.block.len() as u64).unwrap_or(0);
        let left = usize::try_from(self.total - at).unwrap_or(usize::MAX);
        let end = start.saturating_add(most.min(left)).min(self.block.len());
        &self.block[start..end]
    }
}

fn push_line(block: &mut Vec<u8>, len: usize, dice: &mut Dice) {
    let end = block.len() + len - 1;
    let head = format!("{:08} level=info path=/items/{} ", block.len(), dice.below(10_000));
    block.extend_from_slice(&head.as_bytes()[..head.len().min(len - 1)]);
    while block.len() < end {
        // Printable, and never a byte that a terminal changes.
        block.push(b' ' + dice.below(95).to_le_bytes()[0]);
    }
    block.push(b'\n');
}

/// A small generator of reproducible numbers (xorshift64*).
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % limit
    }

    fn mixed_len(&mut self) -> usize {
        let mut throw = self.below(1000);
        for (share, from, to) in MIX {
            if throw < share {
                return from + self.below(to - from);
            }
            throw -= share;
        }
        100
    }
}

/// Compares a stream with a payload, piece by piece.
#[derive(Debug)]
pub struct Comparison<'a> {
    payload: &'a Payload,
    pub seen: u64,
    pub differs: bool,
}

impl<'a> Comparison<'a> {
    pub fn new(payload: &'a Payload) -> Comparison<'a> {
        Comparison { payload, seen: 0, differs: false }
    }

    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.differs {
            if self.seen >= self.payload.total {
                self.differs = true;
                return;
            }
            let expected = self.payload.piece(self.seen, bytes.len());
            self.differs = bytes[..expected.len()] != *expected;
            self.seen += expected.len() as u64;
            bytes = &bytes[expected.len()..];
        }
    }

    /// Nothing is missing, nothing is different.
    pub fn verdict(&self) -> Result<(), String> {
        if self.differs {
            return Err(format!("differs from what the container wrote, near byte {}", self.seen));
        }
        match self.payload.total - self.seen {
            0 => Ok(()),
            missing => Err(format!("{missing} of {} bytes are missing", self.payload.total)),
        }
    }
}

/// Strips the records of a CRI log and compares what is left. A terminal's `\r` before each newline is left out.
pub fn verify_log(log: &Path, payload: &Payload, terminal: bool) -> Result<(), String> {
    let read = || -> io::Result<Result<(), String>> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(log)?);
        let mut comparison = Comparison::new(payload);
        let mut record = Vec::new();
        while file.read_until(b'\n', &mut record)? > 0 {
            let Some(content) = content(&record) else {
                let text = String::from_utf8_lossy(&record[..record.len().min(60)]);
                return Ok(Err(format!("not a record, near byte {}: {text:?}", comparison.seen)));
            };
            if terminal {
                content.split(|byte| *byte == b'\r').for_each(|part| comparison.take(part));
            } else {
                comparison.take(content);
            }
            record.clear();
        }
        Ok(comparison.verdict())
    };
    read().unwrap_or_else(|error| Err(format!("cannot read the log: {error}")))
}

/// The content of `TIME STREAM TAG CONTENT\n`: with its newline for a whole line (`F`), without for a part (`P`).
fn content(record: &[u8]) -> Option<&[u8]> {
    let stamp = memchr::memchr(b' ', record)?;
    let rest = record[stamp..].strip_prefix(b" stdout ").or_else(|| record[stamp..].strip_prefix(b" stderr "))?;
    match (stamp, rest) {
        (20..=40, [b'F', b' ', content @ ..]) => Some(content),
        (20..=40, [b'P', b' ', content @ .., b'\n']) => Some(content),
        _ => None,
    }
}
