//! Output whose every byte tells its place: what is missing, doubled or changed can be located without keeping a copy.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::support::{Fail, Outcome};

/// The writer's name; a case puts a link of this name to the test program beside the bundle.
pub const WRITER: &str = "writer";

/// What the bytes look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Printable lines of so many bytes, newline included.
    Lines(u64),
    /// All byte values: NUL, newlines, invalid UTF-8.
    Binary,
}

impl Pattern {
    /// `lines:N` or `binary`.
    pub fn parse(text: &str) -> Option<Pattern> {
        match text.strip_prefix("lines:") {
            Some(number) => number.parse().ok().filter(|len| *len > 0).map(Pattern::Lines),
            None => (text == "binary").then_some(Pattern::Binary),
        }
    }

    pub fn name(self) -> String {
        match self {
            Pattern::Lines(len) => format!("lines:{len}"),
            Pattern::Binary => "binary".to_owned(),
        }
    }

    /// The bytes from `at` on.
    pub fn fill(self, at: u64, out: &mut [u8]) {
        let mut word = at / 8;
        let mut skip = usize::try_from(at % 8).unwrap_or(0);
        let mut rest = &mut *out;
        while !rest.is_empty() {
            let bytes = self.word(word).to_le_bytes();
            let (now, later) = rest.split_at_mut(rest.len().min(8 - skip));
            now.copy_from_slice(&bytes[skip..skip + now.len()]);
            (rest, skip, word) = (later, 0, word + 1);
        }
        if let Pattern::Lines(len) = self {
            let mut newline = len - 1 - at % len;
            while let Some(byte) = usize::try_from(newline).ok().and_then(|index| out.get_mut(index)) {
                *byte = b'\n';
                newline += len;
            }
        }
    }

    /// Eight bytes that depend on nothing but their place (the finaliser of splitmix64).
    fn word(self, place: u64) -> u64 {
        let mut x = place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        match self {
            Pattern::Binary => x,
            Pattern::Lines(_) => (x & 0x3f3f_3f3f_3f3f_3f3f) + 0x3030_3030_3030_3030,
        }
    }
}

/// Compares a stream with what it should be, piece by piece.
#[derive(Debug)]
pub struct Expect {
    pattern: Pattern,
    /// The place of the next byte.
    pub at: u64,
    ready: Vec<u8>,
    used: usize,
}

const STEP: usize = 64 * 1024;

impl Expect {
    pub fn new(pattern: Pattern, at: u64) -> Expect {
        Expect { pattern, at, ready: Vec::new(), used: 0 }
    }

    /// Some bytes are known to be missing.
    pub fn skip(&mut self, count: u64) {
        *self = Expect::new(self.pattern, self.at + count);
    }

    /// The next bytes of the stream.
    pub fn take(&mut self, mut seen: &[u8]) -> Outcome {
        while !seen.is_empty() {
            if self.used == self.ready.len() {
                self.ready.resize(STEP, 0);
                self.pattern.fill(self.at, &mut self.ready);
                self.used = 0;
            }
            let size = seen.len().min(self.ready.len() - self.used);
            let wanted = &self.ready[self.used..self.used + size];
            if wanted != &seen[..size] {
                let same = wanted.iter().zip(seen).take_while(|(a, b)| a == b).count();
                return Err(Fail::Wrong(self.explain(self.at + same as u64, &seen[same..])));
            }
            self.used += size;
            self.at += size as u64;
            seen = &seen[size..];
        }
        Ok(())
    }

    /// What is there instead: a place further on means loss, one before means doubling.
    fn explain(&self, at: u64, seen: &[u8]) -> String {
        let part = &seen[..seen.len().min(24)];
        let begin = at.saturating_sub(REACH);
        let mut around = vec![0; usize::try_from(at - begin + REACH).unwrap_or(0)];
        self.pattern.fill(begin, &mut around);
        let found = around.windows(part.len()).position(|window| window == part).map(|place| begin + place as u64);
        let shown = part.escape_ascii();
        match found {
            Some(place) if place > at => format!("{} bytes are missing at byte {at}", place - at),
            Some(place) => format!("at byte {at} the stream goes back by {} bytes", at - place),
            None => format!("at byte {at} stands \"{shown}\", which is nowhere near in the stream"),
        }
    }
}

/// How far around a difference is looked for its cause.
const REACH: u64 = 8 << 20;

/// Makes a pipe as large as allowed, at most `size`; gives what it has become. Above /proc/sys/fs/pipe-max-size a
/// process needs CAP_SYS_RESOURCE.
pub fn enlarge(pipe: impl AsFd, size: i32) -> Outcome<u64> {
    let mut size = size;
    loop {
        match fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(size)) {
            Ok(now) => return Ok(u64::try_from(now).unwrap_or(0)),
            Err(Errno::EPERM) if size > 65536 => size /= 2,
            Err(error) => return Err(error.into()),
        }
    }
}

/// What `until:` writes at most: a test that hangs does not fill the disk.
const MOST: u64 = 16 << 30;

/// `writer PATTERN FROM [OPTION…]`: the container's process. `END` is a place or `until:PATH`; the place that was
/// reached is then written to PATH.end.
///
/// Options: `pipe:N` makes its stdout so large before, if that is allowed, `block:N` writes so much at once, `err` writes to stderr,
/// `max:N` is where `until:` ends in any case.
pub fn writer(args: &[String]) -> Outcome {
    let [pattern, from, end, options @ ..] = args else { return Err("writer PATTERN FROM END".into()) };
    let pattern = Pattern::parse(pattern).ok_or("no such pattern")?;
    let option = |name: &str| options.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
    let number = |text: &str| text.parse::<u64>().map_err(|error| Fail::Wrong(format!("{text}: {error}")));
    if let Some(size) = option("pipe") {
        enlarge(std::io::stdout(), size.parse().map_err(|_| "pipe size")?)?;
    }
    let block = option("block").map_or(Ok(STEP as u64), number)?;
    let fd = if options.iter().any(|word| word == "err") { 2 } else { 1 };
    // Opened by name, so that nothing buffers lines.
    let mut out = File::options().write(true).open(format!("/proc/self/fd/{fd}"))?;
    let (stop, limit) = match end.strip_prefix("until:") {
        Some(path) => (Some(Path::new(path)), option("max").map_or(Ok(MOST), number)?),
        None => (None, number(end)?),
    };
    let mut at = number(from)?;
    let mut buffer = Vec::new();
    // A test that failed leaves nothing behind that writes for ever.
    let (begun, last) = (Instant::now(), Instant::now() + Duration::from_secs(3600));
    let rate = option("rate").map(number).transpose()?;
    while at < limit && !stop.is_some_and(Path::exists) && Instant::now() < last {
        buffer.resize(usize::try_from(block.min(limit - at)).unwrap_or(STEP), 0);
        pattern.fill(at, &mut buffer);
        out.write_all(&buffer)?;
        at += buffer.len() as u64;
        if let Some(rate) = rate {
            let due = Duration::from_millis(at.saturating_mul(1000) / rate);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
    }
    if let Some(path) = stop {
        let new = path.with_extension("new");
        std::fs::write(&new, at.to_string())?;
        std::fs::rename(new, path.with_extension("end"))?;
    }
    Ok(())
}
