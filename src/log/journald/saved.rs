//! The journald sink in the state that an upgrade hands over. The socket is opened again when it is needed.

use nix::errno::Errno;

use super::{Counters, Journald, KEPT_MAX, Line};
use crate::log::file::saved::{restore_pair, save_pair};
use crate::upgrade::state::{StateError, count};
use crate::upgrade::state_capnp::journald;

impl Journald {
    pub fn save(&self, mut to: journald::Builder<'_>) {
        let [stdout, stderr] = &self.lines;
        stdout.save(to.reborrow().init_stdout());
        stderr.save(to.reborrow().init_stderr());
        to.set_entries(self.counters.entries);
        to.set_bytes(self.counters.bytes);
        to.set_refused_entries(self.counters.refused_entries);
        to.set_refused_bytes(self.counters.refused_bytes);
        to.set_last_error(self.counters.last_error.map_or(0, |error| error as i32));
        save_pair(self.refused, to.reborrow().init_refused());
        to.set_stuck(self.socket.is_stuck());
    }

    /// Goes on where another sink of the same identity has stopped.
    pub fn restore(&mut self, from: journald::Reader<'_>) -> Result<(), StateError> {
        self.lines = [Line::restore(from.get_stdout()?)?, Line::restore(from.get_stderr()?)?];
        self.counters = Counters {
            entries: count(from.get_entries(), "entries")?,
            bytes: count(from.get_bytes(), "bytes")?,
            refused_entries: count(from.get_refused_entries(), "refusedEntries")?,
            refused_bytes: count(from.get_refused_bytes(), "refusedBytes")?,
            last_error: Some(from.get_last_error()).filter(|error| *error != 0).map(Errno::from_raw),
        };
        self.refused = restore_pair(from.get_refused()?)?;
        self.socket.set_stuck(from.get_stuck());
        Ok(())
    }
}

impl Line {
    fn save(&self, mut to: journald::line::Builder<'_>) {
        to.set_kept(&self.kept);
        if let Some(priority) = self.priority {
            to.set_has_priority(true);
            to.set_priority(priority);
        }
    }

    fn restore(from: journald::line::Reader<'_>) -> Result<Line, StateError> {
        let (kept, priority) = (from.get_kept()?, from.get_priority());
        if kept.len() > KEPT_MAX {
            return Err(StateError::Value("kept"));
        }
        if priority > 7 {
            return Err(StateError::Value("priority"));
        }
        Ok(Line { kept: kept.to_vec(), priority: from.get_has_priority().then_some(priority) })
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use capnp::message::Builder;

    use super::*;
    use crate::options::JournalIdentity;

    #[test]
    fn unfinished_lines_and_counters_are_handed_over() {
        let new = || Journald::new(Path::new("/none"), OsStr::new("id"), None, &JournalIdentity::default());
        let (mut before, mut after) = (new(), new());
        before.lines[1] = Line { kept: b"half".to_vec(), priority: Some(3) };
        before.counters = Counters { entries: 7, refused_bytes: 9, last_error: Some(Errno::EAGAIN), ..before.counters };
        before.refused = [1, 2];
        before.socket.set_stuck(true);
        let mut message = Builder::new_default();
        before.save(message.init_root());
        after.restore(message.get_root_as_reader().unwrap()).unwrap();
        assert_eq!((&*after.lines[1].kept, after.lines[1].priority), (&b"half"[..], Some(3)));
        assert_eq!((after.counters, after.lost()), (before.counters, [1, 2]));
        assert!(after.lines[0].kept.is_empty() && after.socket.is_stuck());
    }
}
