//! What a log remembers of itself: where its files begin and end, and where bytes are missing.
//!
//! Every byte that the container wrote on a stream has an absolute offset, from 0. A [`Mark`] is a place in the log
//! whose offsets are known for certain; what lies between two marks is found by reading.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::LogFile;
use crate::stream::Stream;

/// A place in the log that stays valid across rotations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Counts the files that this log has had, from 0.
    pub generation: u64,
    /// Bytes from the beginning of that file.
    pub offset: u64,
}

/// A place between two records, and the offset of each stream's next byte there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    pub at: Position,
    pub offsets: [u64; 2],
}

/// Where what can be read back of a file begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub begin: u64,
    pub offsets: [u64; 2],
    /// What to add to an offset of ours for the real one: not 0 once somebody else has cut or extended the file.
    pub shift: i64,
}

/// A file that was rotated away.
#[derive(Debug)]
pub(super) struct Generation {
    pub number: u64,
    /// Device and inode, or [`NOBODY`].
    pub id: (u64, u64),
    /// The first bytes of its first record, its stamp: a file of somebody else may get its inode.
    pub head: [u8; HEAD],
    pub span: Span,
    /// Bytes of whole records in it, and the streams' offsets there.
    pub end: u64,
    pub ended: [u64; 2],
    /// Open while somebody reads it.
    pub file: RefCell<Option<Rc<OwnedFd>>>,
}

/// The identity of a file that cannot be found again.
pub(super) const NOBODY: (u64, u64) = (0, 0);

/// Bytes that tell a file from others: as far as the nanoseconds of a stamp.
pub(super) const HEAD: usize = 32;

/// A place where the log lost bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    pub mark: Mark,
    /// Bytes of the record that says so; 0 while it is not written.
    pub note: u64,
    pub lost: [u64; 2],
}

impl Gap {
    fn behind(&self) -> Mark {
        let Mark { at, offsets: [out, err] } = self.mark;
        let at = Position { offset: at.offset + self.note, ..at };
        Mark { at, offsets: [out + self.lost[0], err + self.lost[1]] }
    }
}

/// The files before the current one, and the places where bytes are missing in all of them.
#[derive(Debug, Default)]
pub(super) struct Past {
    pub(super) generations: VecDeque<Generation>,
    pub(super) gaps: VecDeque<Gap>,
    /// What lies before was given up.
    pub(super) floor: Mark,
}

/// Files remembered besides the current one.
pub(super) const PAST_MAX: usize = 16;

/// Gaps remembered; with one more, what lies before the oldest is given up.
pub(super) const GAPS_MAX: usize = 256;

impl Past {
    /// Counts bytes that are missing at `end`, which is the end of the log.
    #[inline(never)]
    pub fn lose(&mut self, end: Mark, stream: Stream, payload: u64) {
        self.gap_at_end(end).lost[stream.index()] += payload;
    }

    /// Notes that `bytes` of our own stand at `end`.
    #[inline(never)]
    pub fn note(&mut self, end: Mark, bytes: u64) {
        self.gap_at_end(end).note = bytes;
    }

    pub fn gaps(&self) -> usize {
        self.gaps.len()
    }

    fn gap_at_end(&mut self, end: Mark) -> &mut Gap {
        let is_here = self.gaps.back().is_some_and(|gap| gap.mark.at == end.at && gap.note == 0);
        if !is_here {
            if self.gaps.len() >= GAPS_MAX {
                self.give_up();
            }
            self.gaps.push_back(Gap { mark: end, note: 0, lost: [0; 2] });
        }
        let last = self.gaps.len() - 1;
        &mut self.gaps[last]
    }

    fn give_up(&mut self) {
        if let Some(gap) = self.gaps.pop_front() {
            self.floor = gap.behind();
        }
    }

    pub fn push(&mut self, generation: Generation) {
        if self.generations.len() >= PAST_MAX {
            self.generations.pop_front();
        }
        self.generations.push_back(generation);
        let oldest = self.generations[0].number;
        while self.gaps.front().is_some_and(|gap| gap.mark.at.generation < oldest) {
            self.give_up();
        }
    }

    /// A new file that begins at `begin` has this identity: an older one that was longer is gone.
    pub fn replaced(&mut self, id: (u64, u64), begin: u64) {
        for past in self.generations.iter_mut().filter(|past| past.id == id && past.end > begin) {
            past.id = NOBODY;
        }
    }

    pub fn generation(&self, number: u64) -> Option<&Generation> {
        self.generations.iter().find(|past| past.number == number)
    }

    pub fn generations(&self) -> impl Iterator<Item = &Generation> {
        self.generations.iter()
    }
}

/// Where the readable part of a file begins and ends.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub begin: Mark,
    pub end: Mark,
    /// See [`Span::shift`].
    pub shift: i64,
}

impl Extent {
    fn new(number: u64, span: Span, end: u64, ended: [u64; 2]) -> Extent {
        let mark = |offset, offsets| Mark { at: Position { generation: number, offset }, offsets };
        Extent { begin: mark(span.begin, span.offsets), end: mark(end, ended), shift: span.shift }
    }
}

/// What is next to a mark.
#[derive(Clone, Copy, Debug)]
pub enum Beside {
    /// No record of the container: go on from there.
    Jump(Mark),
    /// Records, up to the next mark in this direction.
    Records(Mark),
    /// Nothing any more.
    Nothing,
}

impl LogFile {
    /// The end of the log: where the next record goes.
    pub fn end(&self) -> Mark {
        Mark { at: Position { generation: self.generation, offset: self.size }, offsets: self.offsets }
    }

    /// Where the history that is still known begins.
    pub fn start(&self) -> Mark {
        let oldest = self.past.generations.front().map_or(self.generation, |past| past.number);
        let begin = self.extent(oldest).map_or(self.end(), |extent| extent.begin);
        if self.past.floor.at > begin.at { self.past.floor } else { begin }
    }

    /// Where a file of this log begins and ends; `None` if that is forgotten.
    pub fn extent(&self, generation: u64) -> Option<Extent> {
        if generation == self.generation {
            return Some(Extent::new(generation, self.span.get(), self.size, self.offsets));
        }
        let past = self.past.generation(generation)?;
        Some(Extent::new(generation, past.span, past.end, past.ended))
    }

    /// What comes behind `here`.
    pub fn ahead(&self, here: Mark) -> Beside {
        let start = self.start();
        if here.at < start.at {
            return Beside::Jump(start);
        }
        let Some(extent) = self.extent(here.at.generation) else { return Beside::Jump(self.end()) };
        if here.at < extent.begin.at {
            return Beside::Jump(extent.begin);
        }
        let gaps = &self.past.gaps;
        let is_open = |gap: &&Gap| gap.mark.at == here.at && (gap.note > 0 || gap.behind().offsets != here.offsets);
        if let Some(gap) = gaps.iter().find(is_open) {
            return Beside::Jump(gap.behind());
        }
        if here.at < extent.end.at {
            let next = gaps.iter().map(|gap| gap.mark).find(|mark| mark.at > here.at);
            return Beside::Records(next.filter(|mark| mark.at < extent.end.at).unwrap_or(extent.end));
        }
        match self.extent(here.at.generation + 1) {
            Some(next) => Beside::Jump(next.begin),
            None if here == self.end() => Beside::Nothing,
            None => Beside::Jump(self.end()),
        }
    }

    /// What comes before `here`.
    pub fn behind(&self, here: Mark) -> Beside {
        let start = self.start();
        if here.at <= start.at {
            return Beside::Nothing;
        }
        let Some(extent) = self.extent(here.at.generation) else { return Beside::Jump(self.end()) };
        let gap = self.past.gaps.iter().rev().find(|gap| gap.mark.at <= here.at && gap.mark != here);
        if let Some(gap) = gap
            && gap.behind().at >= here.at
        {
            return Beside::Jump(gap.mark);
        }
        if here.at <= extent.begin.at {
            let before = self.extent(here.at.generation.wrapping_sub(1));
            return before.map_or(Beside::Nothing, |before| Beside::Jump(before.end));
        }
        let marks = [Some(start), Some(extent.begin), gap.map(Gap::behind)];
        let low = marks.into_iter().flatten().max_by_key(|mark| mark.at);
        Beside::Records(low.unwrap_or(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(generation: u64, offset: u64, stdout: u64) -> Mark {
        Mark { at: Position { generation, offset }, offsets: [stdout, 0] }
    }

    #[test]
    fn gaps_at_one_place_are_one_until_a_note_ends_them() {
        let mut past = Past::default();
        past.lose(mark(0, 100, 10), Stream::Stdout, 5);
        past.lose(mark(0, 100, 15), Stream::Stderr, 2);
        past.note(mark(0, 100, 15), 60);
        past.lose(mark(0, 160, 15), Stream::Stdout, 1);
        let gaps: Vec<_> = past.gaps.iter().map(|gap| (gap.mark, gap.behind())).collect();
        let first = (mark(0, 100, 10), Mark { offsets: [15, 2], ..mark(0, 160, 0) });
        assert_eq!(gaps, [first, (mark(0, 160, 15), mark(0, 160, 16))]);
    }

    #[test]
    fn with_too_many_gaps_what_is_before_the_oldest_is_given_up() {
        let mut past = Past::default();
        for number in 0..1000 {
            past.lose(mark(0, number * 10, number * 3), Stream::Stdout, 1);
        }
        assert_eq!(past.gaps.len(), GAPS_MAX);
        let dropped = 1000 - GAPS_MAX as u64 - 1;
        assert_eq!(past.floor, mark(0, dropped * 10, dropped * 3 + 1));
    }
}
