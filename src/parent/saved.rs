//! The report pipes in the state that an upgrade hands over.

use super::{Pipe, Reports};
use crate::options::{Mode, Options};
use crate::upgrade::state::{Given, StateError, Taken};
use crate::upgrade::state_capnp::reports;

impl Reports {
    pub fn save(&self, mut to: reports::Builder<'_>, given: &mut Given) {
        to.set_sync(given.give_if(self.sync.fd.as_ref()));
        to.set_attach(given.give_if(self.attach.fd.as_ref()));
    }

    pub fn restore(options: &Options, from: reports::Reader<'_>, taken: &mut Taken) -> Result<Reports, StateError> {
        Ok(Reports {
            sync: Pipe { fd: taken.take_if(from.get_sync())? },
            attach: Pipe { fd: taken.take_if(from.get_attach())? },
            exec: matches!(options.mode, Mode::Exec { .. }),
            legacy: options.api_version == 0,
        })
    }
}
