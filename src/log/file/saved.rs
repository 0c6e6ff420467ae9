//! A log file in the state that an upgrade hands over; path and policy are the command line's.

use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{LogFile, OLD_MAX, Old};
use crate::options::Options;
use crate::upgrade::state::{Given, StateError, Taken, count};
use crate::upgrade::state_capnp::{log_file, old_file, per_stream};

impl LogFile {
    pub fn save(&self, mut to: log_file::Builder<'_>, given: &mut Given) {
        to.set_fd(given.give(&self.file));
        to.set_generation(self.generation);
        to.set_begin(self.begin);
        to.set_size(self.size);
        to.set_total(self.total);
        to.set_readable(self.readable);
        to.set_error(self.error.map_or(0, |error| error as i32));
        to.set_torn(self.torn);
        save_pair(self.unnoted, to.reborrow().init_unnoted());
        save_pair(self.lost, to.reborrow().init_lost());
        if let Some(at) = self.retry_at {
            let left = at.saturating_duration_since(Instant::now()).as_millis();
            to.set_retries(true);
            to.set_retry_left(u64::try_from(left).unwrap_or(u64::MAX));
        }
        to.set_hold(self.hold);
        let mut old = to.init_old(u32::try_from(self.old.len()).unwrap_or(0));
        for (index, file) in (0..).zip(&self.old) {
            file.save(old.reborrow().get(index), given);
        }
    }

    pub fn restore(
        path: &Path,
        options: &Options,
        from: log_file::Reader<'_>,
        taken: &mut Taken,
    ) -> Result<LogFile, StateError> {
        let old = from.get_old()?;
        if old.len() as usize > OLD_MAX {
            return Err(StateError::Value("old"));
        }
        let retry_at = from.get_retries().then(|| Instant::now().checked_add(millis(from.get_retry_left())));
        Ok(LogFile {
            path: path.to_path_buf(),
            policy: options.log.clone(),
            held_max: options.history_held_max,
            file: Rc::new(taken.take(from.get_fd())?),
            generation: count(from.get_generation(), "generation")?,
            begin: count(from.get_begin(), "begin")?,
            size: count(from.get_size(), "size")?,
            total: count(from.get_total(), "total")?,
            readable: from.get_readable(),
            error: Some(from.get_error()).filter(|error| *error != 0).map(Errno::from_raw),
            torn: count(from.get_torn(), "torn")?,
            unnoted: restore_pair(from.get_unnoted()?)?,
            lost: restore_pair(from.get_lost()?)?,
            retry_at: retry_at.flatten(),
            old: old.iter().map(|old| Old::restore(old, taken)).collect::<Result<VecDeque<Old>, StateError>>()?,
            hold: from.get_hold(),
        })
    }
}

impl Old {
    fn save(&self, mut to: old_file::Builder<'_>, given: &mut Given) {
        to.set_fd(given.give(&self.file));
        to.set_generation(self.generation);
        to.set_begin(self.begin);
        to.set_end(self.end);
        to.set_unlinked(self.unlinked);
    }

    fn restore(from: old_file::Reader<'_>, taken: &mut Taken) -> Result<Old, StateError> {
        Ok(Old {
            generation: count(from.get_generation(), "generation")?,
            file: Rc::new(taken.take(from.get_fd())?),
            begin: count(from.get_begin(), "begin")?,
            end: count(from.get_end(), "end")?,
            unlinked: count(from.get_unlinked(), "unlinked")?,
        })
    }
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
    Duration::from_millis(left).min(super::RETRY)
}
