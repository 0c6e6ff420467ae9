//! The relay in the state that an upgrade hands over; the host's address is the command line's.

use std::ffi::OsStr;

use super::{Host, Relay};
use crate::upgrade::state::{Given, StateError, Taken};
use crate::upgrade::state_capnp::relay;

impl Relay {
    pub fn save(&self, mut to: relay::Builder<'_>, given: &mut Given) {
        to.set_inside(given.give(&self.inside));
        to.set_outside(given.give(&self.outside));
    }

    pub fn restore(host: &OsStr, from: relay::Reader<'_>, taken: &mut Taken) -> Result<Relay, StateError> {
        let host = Host::new(host).map_err(|_| StateError::Value("the notify socket"))?;
        let (inside, outside) = (taken.take(from.get_inside())?, taken.take(from.get_outside())?);
        Ok(Relay { inside, outside, host })
    }
}
