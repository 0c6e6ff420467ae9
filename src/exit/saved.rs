//! Which exit files are prepared, in the state that an upgrade hands over.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use capnp::struct_list;

use super::{ExitFiles, Slot};
use crate::upgrade::state::StateError;
use crate::upgrade::state_capnp::{exit_file, state};

impl ExitFiles {
    pub fn save(&self, to: state::Builder<'_>) {
        let slots = self.record.iter().chain(&self.statuses);
        let prepared: Vec<(&Slot, &OsString)> =
            slots.filter_map(|slot| Some((slot, slot.prepared.as_ref()?))).collect();
        let mut list = to.init_exit_files(u32::try_from(prepared.len()).unwrap_or(0));
        for (index, (slot, name)) in (0..).zip(prepared) {
            let mut to = list.reborrow().get(index);
            to.set_path(slot.path().as_os_str().as_bytes());
            to.set_prepared(name.as_bytes());
        }
    }

    /// Takes over what was prepared for the places that the command line names.
    pub fn restore(&mut self, from: struct_list::Reader<'_, exit_file::Owned>) -> Result<(), StateError> {
        if from.len() > PREPARED_MAX {
            return Err(StateError::Value("exitFiles"));
        }
        for file in from {
            let (path, name) = (file.get_path()?, file.get_prepared()?);
            if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                return Err(StateError::Value("prepared"));
            }
            let mut slots = self.record.iter_mut().chain(&mut self.statuses);
            if let Some(slot) = slots.find(|slot| slot.path().as_os_str().as_bytes() == path) {
                slot.prepared = Some(OsString::from_vec(name.to_vec()));
            }
        }
        Ok(())
    }
}

/// More than there are places for exit files.
const PREPARED_MAX: u32 = 16;
