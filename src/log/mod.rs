//! The log: every sink gets every chunk, independently of the others.

pub mod file;
pub mod history;
pub mod journald;
pub mod json;
pub mod k8s;
mod saved;
pub mod stamp;

use std::io;
use std::path::Path;

use crate::options::{LogDriver, Options};
use crate::stream::Stream;
use file::{LogFile, Mark};
use journald::Journald;
use json::JsonFile;
use k8s::K8sFile;
use stamp::Stamper;

/// Where a chunk can be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// All of it, from here.
    At(Mark),
    /// The log lost some of it; this is where it begins.
    Lost(Mark),
    /// There is no log that can be read back exactly.
    Nowhere,
}

/// All sinks of one monitor.
#[derive(Debug, Default)]
pub struct Log {
    pub k8s: Option<K8sFile>,
    json: Option<JsonFile>,
    journald: Option<Journald>,
}

/// journald's socket for its native protocol.
pub const JOURNALD: &str = "/run/systemd/journal/socket";

impl Log {
    /// Opens the sinks that were asked for; of several files of one driver the last one counts, as with conmon.
    #[inline(never)]
    pub fn open(options: &Options) -> io::Result<Log> {
        let mut log = Log::default();
        let (policy, held) = (&options.log, options.history_held_max);
        let open = |path: &Path| LogFile::open(path, policy, held);
        for driver in &options.log_drivers {
            match driver {
                LogDriver::K8sFile(path) => {
                    log.k8s = Some(K8sFile::new(open(path)?, Stamper::new(policy.utc), policy.line_max));
                }
                LogDriver::JsonFile(path) => log.json = Some(JsonFile::new(open(path)?, policy.line_max)),
                LogDriver::Journald => {
                    let (cid, name) = (&options.cid, options.name.as_deref());
                    log.journald = Some(Journald::new(Path::new(JOURNALD), cid, name, &options.journal));
                }
                LogDriver::Passthrough | LogDriver::None => {}
            }
        }
        Ok(log)
    }

    /// True if what the container says can be read back, so that clients need not hold it up.
    pub fn has_history(&self) -> bool {
        self.k8s.is_some()
    }

    /// A new turn begins; returns how much to log at once in it.
    pub fn begin_turn(&mut self) -> usize {
        let Some(journald) = &mut self.journald else { return usize::MAX };
        journald.begin_turn();
        // A piece is what journald is waited for at a time. Files get more, so that they cut no line for its sake.
        if self.k8s.is_none() && self.json.is_none() { journald::PIECE_MAX } else { usize::MAX }
    }

    /// True if others should get their turn before more is logged.
    pub fn is_tired(&self) -> bool {
        self.journald.as_ref().is_some_and(Journald::is_tired)
    }

    /// Whether rotated files are to be kept for clients.
    pub fn hold(&mut self, wanted: bool) {
        if let Some(k8s) = &mut self.k8s {
            k8s.file.hold = wanted;
        }
    }

    /// Records a chunk everywhere; `out` is scratch space for formatted records.
    pub fn write(&mut self, out: &mut [u8], stream: Stream, chunk: &[u8]) -> Recorded {
        if let Some(journald) = &mut self.journald {
            journald.write(stream, chunk);
        }
        if let Some(json) = &mut self.json {
            json.write(stream, chunk);
        }
        let Some(k8s) = &mut self.k8s else { return Recorded::Nowhere };
        match k8s.write(out, stream, chunk) {
            (at, true) => Recorded::At(at),
            (at, false) => Recorded::Lost(at),
        }
    }

    /// Leaves a chunk out of every log because it is over the stream's limit.
    #[inline(never)]
    pub fn leave_out(&mut self, stream: Stream, chunk: &[u8]) -> Recorded {
        if let Some(journald) = &mut self.journald {
            journald.leave_out(stream, chunk.len());
        }
        if let Some(json) = &mut self.json {
            json.file.leave_out(stream, chunk.len());
        }
        let Some(k8s) = &mut self.k8s else { return Recorded::Nowhere };
        let begin = k8s.file.end();
        k8s.file.leave_out(stream, chunk.len());
        Recorded::Lost(begin)
    }

    /// Reopens or rotates every file.
    pub fn reopen(&mut self) -> io::Result<()> {
        let k8s = self.k8s.as_mut().map_or(Ok(()), |k8s| k8s.file.reopen());
        let json = self.json.as_mut().map_or(Ok(()), |json| json.file.reopen());
        k8s.and(json)
    }

    /// Writes what is still held back: partial lines, and notes on what was lost.
    pub fn finish(&mut self) {
        if let Some(k8s) = &mut self.k8s {
            k8s.finish();
        }
        if let Some(json) = &mut self.json {
            json.finish();
        }
        if let Some(journald) = &mut self.journald {
            journald.finish();
        }
    }

    /// Brings the files to the disk, if that is wanted.
    pub fn sync(&self) {
        for file in self.files() {
            file.sync();
        }
    }

    /// Bytes that a sink could not take, per stream; the worst of the sinks.
    pub fn lost(&self) -> [u64; 2] {
        let journald = self.journald.iter().map(Journald::lost);
        self.files()
            .map(LogFile::lost)
            .chain(journald)
            .fold([0; 2], |worst, lost| [worst[0].max(lost[0]), worst[1].max(lost[1])])
    }

    pub fn journald(&self) -> Option<&Journald> {
        self.journald.as_ref()
    }

    /// Each file with the name of its driver.
    pub fn named_files(&self) -> impl Iterator<Item = (&'static str, &LogFile)> {
        let k8s = self.k8s.iter().map(|k8s| ("k8s-file", &k8s.file));
        k8s.chain(self.json.iter().map(|json| ("json-file", &json.file)))
    }

    fn files(&self) -> impl Iterator<Item = &LogFile> {
        self.k8s.iter().map(|k8s| &k8s.file).chain(self.json.iter().map(|json| &json.file))
    }
}
