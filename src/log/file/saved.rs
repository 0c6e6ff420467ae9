//! A log file in the state that an upgrade hands over; path and policy are the command line's.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::LogFile;
use super::past::{Generation, Mark, Past, Position, Span};
use crate::options::Options;
use crate::upgrade::state::{Given, StateError, Taken, count};
use crate::upgrade::state_capnp::{log_file, mark, past_file, per_stream, span};

impl LogFile {
    pub fn save(&self, mut to: log_file::Builder<'_>, given: &mut Given) {
        to.set_fd(given.give(&self.file));
        to.set_generation(self.generation);
        save_span(self.span.get(), to.reborrow().init_span());
        to.set_size(self.size);
        save_pair(self.offsets, to.reborrow().init_offsets());
        to.set_total(self.total);
        to.set_readable(self.readable);
        to.set_error(self.error.map_or(0, |error| error as i32));
        to.set_torn(self.torn);
        save_pair(self.unnoted, to.reborrow().init_unnoted());
        save_pair(self.lost, to.reborrow().init_lost());
        to.set_owing(self.owing);
        if let Some(at) = self.retry_at {
            let left = at.saturating_duration_since(Instant::now()).as_millis();
            to.set_retries(true);
            to.set_retry_left(u64::try_from(left).unwrap_or(u64::MAX));
        }
        to.set_hold(self.hold);
        self.past.save(to, given);
    }

    pub fn restore(
        path: &Path,
        options: &Options,
        from: log_file::Reader<'_>,
        taken: &mut Taken,
    ) -> Result<LogFile, StateError> {
        let retry_at = from.get_retries().then(|| Instant::now().checked_add(millis(from.get_retry_left())));
        Ok(LogFile {
            path: path.to_path_buf(),
            policy: options.log.clone(),
            held_max: options.history_held_max,
            file: Rc::new(taken.take(from.get_fd())?),
            generation: count(from.get_generation(), "generation")?,
            span: Cell::new(restore_span(from.get_span()?)?),
            size: count(from.get_size(), "size")?,
            offsets: restore_pair(from.get_offsets()?)?,
            total: count(from.get_total(), "total")?,
            readable: from.get_readable(),
            error: Some(from.get_error()).filter(|error| *error != 0).map(Errno::from_raw),
            torn: count(from.get_torn(), "torn")?,
            unnoted: restore_pair(from.get_unnoted()?)?,
            lost: restore_pair(from.get_lost()?)?,
            owing: from.get_owing(),
            retry_at: retry_at.flatten(),
            past: Past::restore(from, taken)?,
            hold: from.get_hold(),
        })
    }
}

impl Past {
    fn save(&self, mut to: log_file::Builder<'_>, given: &mut Given) {
        save_mark(self.floor, to.reborrow().init_floor());
        let mut gaps = to.reborrow().init_gaps(u32::try_from(self.gaps.len()).unwrap_or(0));
        for (index, gap) in (0..).zip(&self.gaps) {
            let mut to = gaps.reborrow().get(index);
            save_mark(gap.mark, to.reborrow().init_mark());
            to.set_note(gap.note);
            save_pair(gap.lost, to.init_lost());
        }
        let mut past = to.init_past(u32::try_from(self.generations.len()).unwrap_or(0));
        for (index, generation) in (0..).zip(&self.generations) {
            generation.save(past.reborrow().get(index), given);
        }
    }

    fn restore(from: log_file::Reader<'_>, taken: &mut Taken) -> Result<Past, StateError> {
        let (gaps, past) = (from.get_gaps()?, from.get_past()?);
        if gaps.len() as usize > super::past::GAPS_MAX || past.len() as usize > super::past::PAST_MAX {
            return Err(StateError::Value("past"));
        }
        let gaps = gaps.iter().map(|gap| {
            let mark = restore_mark(gap.get_mark()?)?;
            Ok(super::past::Gap { mark, note: count(gap.get_note(), "note")?, lost: restore_pair(gap.get_lost()?)? })
        });
        Ok(Past {
            gaps: gaps.collect::<Result<_, StateError>>()?,
            generations: past.iter().map(|past| Generation::restore(past, taken)).collect::<Result<_, _>>()?,
            floor: restore_mark(from.get_floor()?)?,
        })
    }
}

impl Generation {
    fn save(&self, mut to: past_file::Builder<'_>, given: &mut Given) {
        to.set_fd(given.give_if(self.file.borrow().as_deref()));
        to.set_number(self.number);
        to.set_device(self.id.0);
        to.set_inode(self.id.1);
        to.set_head(&self.head);
        save_span(self.span, to.reborrow().init_span());
        to.set_end(self.end);
        save_pair(self.ended, to.init_ended());
    }

    fn restore(from: past_file::Reader<'_>, taken: &mut Taken) -> Result<Generation, StateError> {
        Ok(Generation {
            number: count(from.get_number(), "number")?,
            id: (from.get_device(), from.get_inode()),
            head: from.get_head()?.try_into().map_err(|_| StateError::Value("head"))?,
            span: restore_span(from.get_span()?)?,
            end: count(from.get_end(), "end")?,
            ended: restore_pair(from.get_ended()?)?,
            file: RefCell::new(taken.take_if(from.get_fd())?.map(Rc::new)),
        })
    }
}

fn save_span(from: Span, mut to: span::Builder<'_>) {
    to.set_begin(from.begin);
    to.set_shift(from.shift);
    save_pair(from.offsets, to.init_offsets());
}

fn restore_span(from: span::Reader<'_>) -> Result<Span, StateError> {
    count(from.get_shift().unsigned_abs(), "shift")?;
    let offsets = restore_pair(from.get_offsets()?)?;
    Ok(Span { begin: count(from.get_begin(), "begin")?, offsets, shift: from.get_shift() })
}

pub fn save_mark(from: Mark, mut to: mark::Builder<'_>) {
    to.set_generation(from.at.generation);
    to.set_offset(from.at.offset);
    save_pair(from.offsets, to.init_offsets());
}

pub fn restore_mark(from: mark::Reader<'_>) -> Result<Mark, StateError> {
    let generation = count(from.get_generation(), "generation")?;
    let at = Position { generation, offset: count(from.get_offset(), "offset")? };
    Ok(Mark { at, offsets: restore_pair(from.get_offsets()?)? })
}

pub fn save_pair([stdout, stderr]: [u64; 2], mut to: per_stream::Builder<'_>) {
    to.set_stdout(stdout);
    to.set_stderr(stderr);
}

pub fn restore_pair(from: per_stream::Reader<'_>) -> Result<[u64; 2], StateError> {
    Ok([count(from.get_stdout(), "stdout")?, count(from.get_stderr(), "stderr")?])
}

/// A time that a monitor may have to wait; longer ones are cut.
fn millis(left: u64) -> Duration {
    Duration::from_millis(left).min(super::rotate::RETRY)
}
