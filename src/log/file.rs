//! A log file: appending, caps, rotation, and going on when the disk does not.
//!
//! The file at the path may be renamed, removed or replaced by others at any time; we hold a descriptor and notice
//! only when we are told to reopen. A write that fails never stops the container: what the file could not take is
//! counted, a record that was torn is cut off again, and the first thing written after recovery is an ordinary
//! record that says how much is missing.

mod entry;
mod past;
mod rotate;
pub mod saved;

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::{fsync, ftruncate, write};

use crate::options::LogPolicy;
use crate::stream::Stream;
use entry::{Entry, check_allowed, is_regular};
pub use past::{Beside, Extent, Mark, Position};
use past::{Past, Span};
pub use rotate::physical;

/// What a file needs to know of the format of its records; each record ends with its only newline.
pub trait Format {
    /// The container's bytes in one record.
    fn payload(&self, record: &[u8]) -> u64;
    /// An ordinary record with a text of our own.
    fn note(&mut self, text: &str) -> Vec<u8>;
}

/// One log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    policy: LogPolicy,
    held_max: u64,
    file: Rc<OwnedFd>,
    generation: u64,
    /// What can be read back of the current file.
    span: Cell<Span>,
    /// Bytes of whole records in the current file.
    size: u64,
    /// The offset of each stream's next byte: what was recorded and what was lost.
    offsets: [u64; 2],
    /// Bytes ever put in the log, for the global cap.
    total: u64,
    /// A regular file that we may read back.
    readable: bool,
    /// Why the last write failed; `None` while all is well.
    error: Option<Errno>,
    /// Bytes of an incomplete record behind `size`.
    torn: u64,
    /// Payload that the log could not take since the last note.
    unnoted: [u64; 2],
    /// Payload that the log could not take, ever.
    lost: [u64; 2],
    /// Something was left out on purpose, and no note says so yet.
    owing: bool,
    retry_at: Option<Instant>,
    past: Past,
    /// Somebody may need the file that a rotation replaces.
    pub hold: bool,
}

impl LogFile {
    /// Opens or creates the log for appending; its existing size counts for the caps.
    pub fn open(path: &Path, policy: &LogPolicy, held_max: u64) -> io::Result<LogFile> {
        if !policy.allowlist.is_empty() {
            check_allowed(path, &policy.allowlist)?;
        }
        let (file, readable) = Entry::of(path)?.open(OFlag::O_CREAT, policy.file_mode)?;
        let stat = fstat(&file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(LogFile {
            path: path.to_path_buf(),
            policy: policy.clone(),
            held_max,
            file: Rc::new(file),
            generation: 0,
            span: Cell::new(Span { begin: size, ..Span::default() }),
            size,
            offsets: [0; 2],
            total: size,
            readable: readable && is_regular(&stat),
            error: None,
            torn: 0,
            unnoted: [0; 2],
            lost: [0; 2],
            owing: false,
            retry_at: None,
            past: Past::default(),
            hold: false,
        })
    }

    /// True if what was written can be read back exactly.
    pub fn readable(&self) -> bool {
        self.readable && self.error.is_none()
    }

    /// Why it takes nothing now.
    pub fn error(&self) -> Option<Errno> {
        self.error
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the current file, and how many files there were before it.
    pub fn size(&self) -> (u64, u64) {
        (self.size.saturating_add_signed(self.span.get().shift), self.generation)
    }

    /// Inode of the current file.
    pub fn inode(&self) -> u64 {
        fstat(&*self.file).map_or(0, |stat| stat.st_ino)
    }

    /// Places where bytes are missing, as far as they are remembered.
    pub fn gaps(&self) -> usize {
        self.past.gaps()
    }

    /// Payload bytes that could not be recorded, per stream.
    pub fn lost(&self) -> [u64; 2] {
        self.lost
    }

    /// True if `more` bytes behind `ahead` ones that are not written yet must go to a new file. What is larger than the
    /// cap by itself gets a file of its own.
    pub fn is_full(&self, ahead: usize, more: usize) -> bool {
        let before = self.size.saturating_add_signed(self.span.get().shift) + ahead as u64;
        self.policy.size_max.is_some_and(|max| before > 0 && before + more as u64 > max)
    }

    /// True if the global cap is reached with `ahead` bytes that are not written yet.
    pub fn is_capped(&self, ahead: usize) -> bool {
        self.policy.global_size_max.is_some_and(|max| self.total + ahead as u64 >= max)
    }

    /// Counts payload that a cap keeps out; what comes before it must have been appended.
    #[inline(never)]
    pub fn drop_capped(&mut self, stream: Stream, payload: usize) {
        self.miss(stream, payload as u64);
    }

    /// Leaves payload out that a policy keeps from the log; the next record is preceded by a note.
    #[inline(never)]
    pub fn leave_out(&mut self, stream: Stream, payload: usize) {
        self.unnoted[stream.index()] += payload as u64;
        self.owing = true;
        self.miss(stream, payload as u64);
    }

    /// Appends whole records of one stream with `payload` bytes of the container's in them (0 where nobody reads back).
    pub fn append(&mut self, stream: Stream, records: &[u8], payload: u64, format: &mut impl Format) {
        if (self.error.is_some() || self.owing) && !self.recover(format) {
            self.lose(stream, records, format);
            return;
        }
        let (written, error) = write_all(&self.file, records);
        if error.is_none() {
            self.advance(written);
            self.offsets[stream.index()] += payload;
            return;
        }
        let whole = memchr::memrchr(b'\n', &records[..written]).map_or(0, |at| at + 1);
        self.advance(whole);
        self.offsets[stream.index()] += payload_of(&records[..whole], format);
        self.torn = (written - whole) as u64;
        self.fail(error);
        self.lose(stream, &records[whole..], format);
        self.repair();
    }

    fn advance(&mut self, bytes: usize) {
        self.size += bytes as u64;
        self.total += bytes as u64;
    }

    fn fail(&mut self, error: Option<Errno>) {
        if self.error != error {
            let reason = error.map_or("", Errno::desc);
            crate::warn!(
                "Failed to write log {}: {reason}; output goes on and is counted as lost",
                self.path.display()
            );
        }
        self.error = error;
    }

    fn lose(&mut self, stream: Stream, records: &[u8], format: &impl Format) {
        let payload = payload_of(records, format);
        self.unnoted[stream.index()] += payload;
        self.miss(stream, payload);
    }

    fn miss(&mut self, stream: Stream, payload: u64) {
        self.past.lose(self.end(), stream, payload);
        self.offsets[stream.index()] += payload;
        self.lost[stream.index()] += payload;
    }

    /// Cuts off an incomplete record; true if the file ends with a whole one.
    fn repair(&mut self) -> bool {
        if self.torn == 0 {
            return true;
        }
        let Ok(actual) = fstat(&self.file).map(|stat| stat.st_size) else { return false };
        let shift = self.span.get().shift;
        if Some(actual) == physical(self.size + self.torn, shift) {
            if ftruncate(&self.file, physical(self.size, shift).unwrap_or(0)).is_err() {
                return false;
            }
        } else {
            // Somebody else cut or extended the file: end the torn record where it is.
            if actual > 0 && write(&self.file, b"\n") != Ok(1) {
                return false;
            }
            let real = if actual > 0 { actual + 1 } else { 0 };
            self.start_over(real.saturating_sub(i64::try_from(self.size).unwrap_or(i64::MAX)));
        }
        self.torn = 0;
        true
    }

    /// Writes the note on what was lost; true if the log is well again.
    fn recover(&mut self, format: &mut impl Format) -> bool {
        if !self.repair() {
            return false;
        }
        let [stdout, stderr] = self.unnoted;
        let reason = self.error.map_or("over the limit", Errno::desc);
        let text = format!("conward: lost {stdout} bytes of stdout and {stderr} bytes of stderr: {reason}");
        let note = format.note(&text);
        let (written, error) = write_all(&self.file, &note);
        if error.is_some() {
            self.torn = written as u64;
            self.fail(error);
            self.repair();
            return false;
        }
        self.past.note(self.end(), written as u64);
        self.advance(written);
        self.unnoted = [0; 2];
        self.owing = false;
        if self.error.take().is_some() {
            crate::warn!("Log {} is written again", self.path.display());
        }
        true
    }

    /// The last attempt to say what was lost, at the end.
    pub fn finish(&mut self, format: &mut impl Format) {
        if self.error.is_some() || self.owing {
            self.recover(format);
        }
    }

    /// Brings the log to the disk, unless that was not wanted.
    pub fn sync(&self) {
        if self.policy.sync
            && let Err(error) = fsync(&*self.file)
        {
            crate::warn!("Failed to sync log {}: {error}", self.path.display());
        }
    }
}

fn payload_of(records: &[u8], format: &impl Format) -> u64 {
    records.split_inclusive(|byte| *byte == b'\n').map(|record| format.payload(record)).sum()
}

/// Writes all, or as much as can be written, and says why it stopped.
fn write_all(file: &OwnedFd, bytes: &[u8]) -> (usize, Option<Errno>) {
    let mut done = 0;
    while done < bytes.len() {
        match write(file, &bytes[done..]) {
            Ok(0) => return (done, Some(Errno::EIO)),
            Ok(count) => done += count,
            Err(Errno::EINTR) => {}
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}
