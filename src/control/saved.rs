//! A FIFO in the state that an upgrade hands over.

use super::{Fifo, Kind, LINE_MAX, Lines};
use crate::upgrade::state::{Given, StateError, Taken};
use crate::upgrade::state_capnp::fifo;

impl Fifo {
    pub fn save(&self, mut to: fifo::Builder<'_>, given: &mut Given) {
        to.set_fd(given.give(&self.fd));
        to.set_line(&self.lines.line);
        to.set_discarding(self.lines.discarding);
    }

    pub fn restore(kind: Kind, from: fifo::Reader<'_>, taken: &mut Taken) -> Result<Fifo, StateError> {
        let (line, discarding) = (from.get_line()?, from.get_discarding());
        if line.len() > LINE_MAX {
            return Err(StateError::Value("line"));
        }
        Ok(Fifo { fd: taken.take(from.get_fd())?, lines: Lines { kind, line: line.to_vec(), discarding } })
    }
}
