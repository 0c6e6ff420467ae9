//! Finds where a request for history begins, walking backward from the end of the log in bounded steps.

use super::{Place, Record, fetch, parse};
use crate::log::file::{Beside, LogFile, Mark, Position};

/// How much of what the container said is wanted. Who asks for more than there is gets all there is, and a gap for all
/// that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    All,
    /// The last bytes of the wanted streams together.
    Bytes(u64),
    /// The last lines of the wanted streams together, in the order of their ends. A last line without an end counts.
    Lines(u64),
    /// Everything from these offsets on; offsets beyond the end mean the end.
    From([u64; 2]),
}

/// A search under way.
#[derive(Clone, Debug)]
pub struct Search {
    ask: Ask,
    wanted: [bool; 2],
    /// Everything behind was looked at.
    here: Mark,
    /// Where the found part of each stream begins, as far as that is known.
    from: [u64; 2],
    /// Bytes or lines still to be found.
    left: u64,
    /// Streams whose line at `from` may begin further back.
    within: [bool; 2],
    /// Streams of which a record was seen.
    seen: [bool; 2],
}

/// Log bytes that one step looks at, about.
const STEP: u64 = 512 * 1024;

impl Search {
    /// A search in what the log holds now; what comes later follows what is found.
    pub fn new(log: &LogFile, ask: Ask, wanted: [bool; 2]) -> Search {
        let here = log.end();
        let left = match ask {
            Ask::Bytes(count) | Ask::Lines(count) => count,
            Ask::All | Ask::From(_) => 0,
        };
        let mut search = Search { ask, wanted, here, from: here.offsets, left, within: [false; 2], seen: [false; 2] };
        if let Ask::From(from) = ask {
            search.from = [0, 1].map(|index| from[index].min(here.offsets[index]));
            search.skip_files(log);
        }
        search
    }

    /// Looks at a bounded part of the log; `buffer` as for [`super::read`]. Call it again until there is an answer.
    pub fn step(&mut self, log: &LogFile, buffer: &mut [u8]) -> Option<Place> {
        let mut budget = STEP;
        loop {
            if let Some(place) = self.found() {
                return Some(place);
            }
            match log.behind(self.here) {
                Beside::Nothing => return Some(self.all()),
                Beside::Jump(mark) => self.here = mark,
                Beside::Records(_) if budget == 0 => return None,
                Beside::Records(low) => {
                    self.walk(log, low, buffer);
                    budget = budget.saturating_sub(buffer.len() as u64);
                }
            }
        }
    }

    /// Files that begin behind what is asked for need not be read.
    fn skip_files(&mut self, log: &LogFile) {
        let newest = self.here.at.generation;
        let begins = (0..=newest).rev().map_while(|generation| Some(log.extent(generation)?.begin));
        let is_behind =
            |begin: &Mark| (0..2).all(|index| !self.wanted[index] || begin.offsets[index] >= self.from[index]);
        if let Some(begin) = begins.take_while(is_behind).last() {
            self.here = begin;
        }
    }

    fn found(&self) -> Option<Place> {
        let done = match self.ask {
            Ask::All => return Some(Place::START),
            Ask::Bytes(_) => self.left == 0,
            Ask::Lines(_) => self.left == 0 && self.within == [false; 2],
            Ask::From(_) => true,
        };
        let is_before = |index: usize| !self.wanted[index] || self.here.offsets[index] <= self.from[index];
        let none = self.wanted == [false; 2];
        (none || done && (0..2).all(is_before)).then_some(Place { mark: self.here, from: self.from })
    }

    /// There is nothing further back.
    fn all(&self) -> Place {
        let from = match self.ask {
            // What was found is enough, only it is not all there any more.
            Ask::Bytes(_) | Ask::Lines(_) if self.left == 0 => self.from,
            Ask::From(_) => self.from,
            _ => [0; 2],
        };
        Place { from, ..Place::START }
    }

    /// Goes back over the records of one buffer, but not beyond `low`.
    fn walk(&mut self, log: &LogFile, low: Mark, buffer: &mut [u8]) {
        let high = self.here.at;
        let offset = low.at.offset.max(high.offset.saturating_sub(buffer.len() as u64));
        let Ok(count) = fetch(log, Position { offset, ..high }, high, buffer) else {
            self.here = low;
            return;
        };
        let bytes = &buffer[..count];
        // The first record may be cut.
        let first = if offset == low.at.offset { 0 } else { memchr::memchr(b'\n', bytes).map_or(count, |at| at + 1) };
        let mut end = count;
        while end > first {
            let begin = memchr::memrchr(b'\n', &bytes[first..end - 1]).map_or(first, |at| first + at + 1);
            let is_whole = bytes[end - 1] == b'\n';
            let Some(record) = parse(&bytes[begin..end]).filter(|record| is_whole && self.fits(record, low)) else {
                break;
            };
            self.take(&record);
            if self.found().is_some() {
                return;
            }
            end = begin;
        }
        if end > first || first == count {
            // What stands there is not what we wrote.
            self.here = low;
        }
    }

    fn fits(&self, record: &Record<'_>, low: Mark) -> bool {
        let index = record.stream.index();
        self.here.offsets[index] >= low.offsets[index] + record.payload.len() as u64
    }

    fn take(&mut self, record: &Record<'_>) {
        let (index, len) = (record.stream.index(), record.payload.len() as u64);
        self.here.at.offset -= record.len as u64;
        self.here.offsets[index] -= len;
        if !self.wanted[index] {
            return;
        }
        match self.ask {
            Ask::Bytes(_) => self.take_bytes(index, len),
            Ask::Lines(_) => self.take_line(index, record.payload.ends_with(b"\n")),
            Ask::All | Ask::From(_) => {}
        }
    }

    fn take_bytes(&mut self, index: usize, len: u64) {
        let taken = len.min(self.left);
        self.left -= taken;
        if self.left == 0 {
            self.from = self.here.offsets;
            self.from[index] += len - taken;
        }
    }

    fn take_line(&mut self, index: usize, full: bool) {
        // The end of a line of this stream: what follows is another line.
        if full || !self.seen[index] {
            self.seen[index] = true;
            self.within[index] = self.left > 0;
            self.left -= u64::from(self.left > 0);
        }
        if self.within[index] {
            self.from[index] = self.here.offsets[index];
        }
    }
}
