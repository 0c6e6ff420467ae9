//! The sinks in the state that an upgrade hands over. Which there are, the command line says.

use std::path::Path;

use super::file::LogFile;
use super::file::saved::{restore_pair, save_pair};
use super::journald::Journald;
use super::json::JsonFile;
use super::k8s::K8sFile;
use super::stamp::Stamper;
use super::{JOURNALD, Log};
use crate::options::{LogDriver, Options};
use crate::upgrade::state::{Given, StateError, Taken};
use crate::upgrade::state_capnp::log;

impl Log {
    pub fn save(&self, mut to: log::Builder<'_>, given: &mut Given) {
        if let Some(k8s) = &self.k8s {
            let mut file = to.reborrow().init_k8s();
            save_pair(k8s.records, file.reborrow().init_records());
            k8s.file.save(file, given);
        }
        if let Some(json) = &self.json {
            json.file.save(to.reborrow().init_json(), given);
        }
        if let Some(journald) = &self.journald {
            journald.save(to.init_journald());
        }
    }

    /// Takes the sinks over; nothing is opened.
    pub fn restore(from: log::Reader<'_>, options: &Options, taken: &mut Taken) -> Result<Log, StateError> {
        let mut log = Log::default();
        let line_max = options.log.line_max;
        // Of several files of one driver the last one counts, as when they were opened.
        let last = |wanted: fn(&LogDriver) -> Option<&Path>| options.log_drivers.iter().rev().find_map(wanted);
        if let Some(path) = last(k8s_path) {
            let file = LogFile::restore(path, options, from.get_k8s()?, taken)?;
            let mut k8s = K8sFile::new(file, Stamper::new(options.log.utc), line_max);
            k8s.records = restore_pair(from.get_k8s()?.get_records()?)?;
            log.k8s = Some(k8s);
        }
        if let Some(path) = last(json_path) {
            log.json = Some(JsonFile::new(LogFile::restore(path, options, from.get_json()?, taken)?, line_max));
        }
        if options.log_drivers.contains(&LogDriver::Journald) {
            let (cid, name) = (&options.cid, options.name.as_deref());
            let mut journald = Journald::new(Path::new(JOURNALD), cid, name, &options.journal);
            journald.restore(from.get_journald()?)?;
            log.journald = Some(journald);
        }
        Ok(log)
    }
}

fn k8s_path(driver: &LogDriver) -> Option<&Path> {
    if let LogDriver::K8sFile(path) = driver { Some(path) } else { None }
}

fn json_path(driver: &LogDriver) -> Option<&Path> {
    if let LogDriver::JsonFile(path) = driver { Some(path) } else { None }
}
