//! A log file: appending, caps, rotation, and going on when the disk does not.
//!
//! The file at the path may be renamed, removed or replaced by others at any time; we hold a descriptor and notice
//! only when we are told to reopen. A write that fails never stops the container: what the file could not take is
//! counted, a record that was torn is cut off again, and the first thing written after recovery is an ordinary
//! record that says how much is missing.

pub mod saved;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, open, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, fsync, ftruncate, unlinkat, write};

use crate::options::LogPolicy;
use crate::stream::Stream;

/// A place in the log that stays valid across rotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Counts the files that this log has had, from 0.
    pub generation: u64,
    /// Bytes from the beginning of that file.
    pub offset: u64,
}

/// What a file needs to know of the format of its records; each record ends with its only newline.
pub trait Format {
    /// The container's bytes in one record.
    fn payload(&self, record: &[u8]) -> u64;
    /// An ordinary record with a text of our own.
    fn note(&mut self, text: &str) -> Vec<u8>;
}

/// A file that was rotated away and is still needed by a client that is behind.
#[derive(Debug)]
struct Old {
    generation: u64,
    file: Rc<OwnedFd>,
    begin: u64,
    end: u64,
    /// Bytes that only our descriptor keeps on the disk.
    unlinked: u64,
}

/// Rotated files held for clients that are behind, at most.
const OLD_MAX: usize = 16;

/// A rotation that failed is tried again after this time, when there is something to write.
const RETRY: Duration = Duration::from_secs(1);

/// One log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    policy: LogPolicy,
    held_max: u64,
    file: Rc<OwnedFd>,
    generation: u64,
    /// Bytes that were in the current file before us.
    begin: u64,
    /// Bytes of whole records in the current file.
    size: u64,
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
    retry_at: Option<Instant>,
    old: VecDeque<Old>,
    /// Somebody may need the file that a rotation replaces.
    pub hold: bool,
}

impl LogFile {
    /// Opens or creates the log for appending; its existing size counts for the caps.
    pub fn open(path: &Path, policy: &LogPolicy, held_max: u64) -> io::Result<LogFile> {
        if !policy.allowlist.is_empty() {
            check_allowed(path, &policy.allowlist)?;
        }
        let place = Place::of(path)?;
        let (file, readable) = place.open(OFlag::O_CREAT, policy.file_mode)?;
        let stat = fstat(&file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(LogFile {
            path: path.to_path_buf(),
            policy: policy.clone(),
            held_max,
            file: Rc::new(file),
            generation: 0,
            begin: size,
            size,
            total: size,
            readable: readable && is_regular(&stat),
            error: None,
            torn: 0,
            unnoted: [0; 2],
            lost: [0; 2],
            retry_at: None,
            old: VecDeque::new(),
            hold: false,
        })
    }

    /// The end of the log: where the next record goes.
    pub fn end(&self) -> Position {
        Position { generation: self.generation, offset: self.size }
    }

    /// True if what was written can be read back exactly.
    pub fn readable(&self) -> bool {
        self.readable && self.error.is_none()
    }

    /// Payload bytes that could not be recorded, per stream.
    pub fn lost(&self) -> [u64; 2] {
        self.lost
    }

    /// True if `more` bytes behind `ahead` ones that are not written yet must go to a new file. What is larger than the
    /// cap by itself gets a file of its own.
    pub fn is_full(&self, ahead: usize, more: usize) -> bool {
        let before = self.size + ahead as u64;
        self.policy.size_max.is_some_and(|max| before > 0 && before + more as u64 > max)
    }

    /// True if the global cap is reached with `ahead` bytes that are not written yet.
    pub fn is_capped(&self, ahead: usize) -> bool {
        self.policy.global_size_max.is_some_and(|max| self.total + ahead as u64 >= max)
    }

    /// Counts payload that a cap keeps out.
    pub fn drop_capped(&mut self, stream: Stream, payload: usize) {
        self.lost[stream.index()] += payload as u64;
    }

    /// Appends whole records of one stream.
    pub fn append(&mut self, stream: Stream, records: &[u8], format: &mut impl Format) {
        if self.error.is_some() && !self.recover(format) {
            self.lose(stream, records, format);
            return;
        }
        let (written, error) = write_all(&self.file, records);
        if error.is_none() {
            self.advance(written);
            return;
        }
        let whole = memchr::memrchr(b'\n', &records[..written]).map_or(0, |at| at + 1);
        self.advance(whole);
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
        let payload: u64 = records.split_inclusive(|byte| *byte == b'\n').map(|record| format.payload(record)).sum();
        self.unnoted[stream.index()] += payload;
        self.lost[stream.index()] += payload;
    }

    /// Cuts off an incomplete record; true if the file ends with a whole one.
    fn repair(&mut self) -> bool {
        if self.torn == 0 {
            return true;
        }
        let Ok(actual) = fstat(&self.file).map(|stat| u64::try_from(stat.st_size).unwrap_or(0)) else { return false };
        if actual == self.size + self.torn {
            let end = i64::try_from(self.size).unwrap_or(i64::MAX);
            if ftruncate(&self.file, end).is_err() {
                return false;
            }
        } else {
            // Somebody else cut or extended the file: end the torn record where it is.
            if actual > 0 && write(&self.file, b"\n") != Ok(1) {
                return false;
            }
            self.size = if actual > 0 { actual + 1 } else { 0 };
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
        let reason = self.error.map_or("", Errno::desc);
        let text = format!("conward: lost {stdout} bytes of stdout and {stderr} bytes of stderr: {reason}");
        let note = format.note(&text);
        let (written, error) = write_all(&self.file, &note);
        if error.is_some() {
            self.torn = written as u64;
            self.fail(error);
            self.repair();
            return false;
        }
        self.advance(written);
        self.unnoted = [0; 2];
        self.error = None;
        crate::warn!("Log {} is written again", self.path.display());
        true
    }

    /// The last attempt to say what was lost, at the end.
    pub fn finish(&mut self, format: &mut impl Format) {
        if self.error.is_some() {
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

    // ------------------------------------------------------------ rotation

    /// Makes room because [`LogFile::is_full`]; on failure the old file is kept and grows.
    pub fn make_room(&mut self) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let done = if self.policy.rotate { self.rotate() } else { self.replace() };
        self.settle(&done, "rotate");
    }

    /// Obeys a request to reopen or rotate. A watcher of the path sees it created or moved to, whatever was there.
    pub fn reopen(&mut self) -> io::Result<()> {
        let done = if self.policy.rotate { self.rotate() } else { self.reopen_path() };
        self.settle(&done, "reopen");
        done
    }

    fn settle(&mut self, done: &io::Result<()>, what: &str) {
        self.retry_at = None;
        if let Err(error) = done {
            self.retry_at = Some(Instant::now() + RETRY);
            crate::warn!("Failed to {what} log {}: {error}; the old file is kept", self.path.display());
        }
    }

    /// An empty file in place of the current one, whose content is given up.
    fn replace(&mut self) -> io::Result<()> {
        let place = Place::of(&self.path)?;
        if !matches!(place.look(&self.file)?, Found::Ours | Found::Nothing) {
            return self.reopen_path();
        }
        let (file, readable) = place.fresh(".tmp", self.policy.file_mode)?;
        place.rename(&place.with(".tmp"), &place.name)?;
        self.switch(file, readable, 0);
        Ok(())
    }

    /// The current file becomes `.1`, `.1` becomes `.2`, and so on up to the number of backups.
    fn rotate(&mut self) -> io::Result<()> {
        let place = Place::of(&self.path)?;
        if !matches!(place.look(&self.file)?, Found::Ours) {
            return self.reopen_path();
        }
        let (file, readable) = place.fresh(".new", self.policy.file_mode)?;
        for number in (1..self.policy.max_files).rev() {
            let (from, to) = (place.with(&format!(".{number}")), place.with(&format!(".{}", number + 1)));
            match place.rename(&from, &to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        place.rename(&place.name, &place.with(".1"))?;
        place.rename(&place.with(".new"), &place.name)?;
        self.switch(file, readable, 0);
        Ok(())
    }

    /// Goes on in whatever is at the path now, or in a new file there. Nothing is truncated.
    fn reopen_path(&mut self) -> io::Result<()> {
        let place = Place::of(&self.path)?;
        match place.look(&self.file)? {
            Found::Nothing => {
                let (file, readable) = place.fresh(".tmp", self.policy.file_mode)?;
                place.rename(&place.with(".tmp"), &place.name)?;
                self.switch(file, readable, 0);
            }
            Found::Ours => place.stir(self.policy.file_mode)?,
            Found::Other => {
                let (file, readable) = place.open(OFlag::empty(), 0)?;
                let size = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
                self.switch(file, readable, size);
                place.stir(self.policy.file_mode)?;
            }
            Found::Unfit => return Err(io::Error::other("it is no regular file any more")),
        }
        Ok(())
    }

    fn switch(&mut self, file: OwnedFd, readable: bool, size: u64) {
        self.repair();
        let old = std::mem::replace(&mut self.file, Rc::new(file));
        if self.hold && self.readable {
            let unlinked = fstat(&*old).map_or(0, |stat| if stat.st_nlink == 0 { self.size } else { 0 });
            let (generation, begin, end) = (self.generation, self.begin, self.size);
            self.old.push_back(Old { generation, file: old, begin, end, unlinked });
            self.bound();
        }
        self.generation += 1;
        self.begin = size;
        self.size = size;
        self.torn = 0;
        self.readable = readable;
    }

    // ------------------------------------------------------------ reading back

    /// The file, the end of what is in it, and whether a newer one follows, for a reader at `position`; `None` if
    /// that file is not held any more.
    pub fn at(&self, position: Position) -> Option<(Rc<OwnedFd>, u64, bool)> {
        if position.generation == self.generation {
            return self.readable.then(|| (Rc::clone(&self.file), self.size, false));
        }
        let old = self.old.iter().find(|old| old.generation == position.generation)?;
        Some((Rc::clone(&old.file), old.end, true))
    }

    /// Where our records begin in a file.
    pub fn begin(&self, generation: u64) -> Option<Position> {
        let offset = if generation == self.generation {
            self.begin
        } else {
            self.old.iter().find(|old| old.generation == generation)?.begin
        };
        Some(Position { generation, offset })
    }

    /// Everything that is needed to read back.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        std::iter::once(self.file.as_raw_fd()).chain(self.old.iter().map(|old| old.file.as_raw_fd()))
    }

    /// Lets go of files before `generation`, which nobody needs any more.
    pub fn release_before(&mut self, generation: u64) {
        while self.old.front().is_some_and(|old| old.generation < generation) {
            self.old.pop_front();
        }
    }

    fn bound(&mut self) {
        while self.old.len() > OLD_MAX || self.old.iter().map(|old| old.unlinked).sum::<u64>() > self.held_max {
            self.old.pop_front();
        }
    }
}

/// What is at the log's path, compared with the file we hold.
enum Found {
    Ours,
    Other,
    Nothing,
    /// Something that is no regular file: nothing to write a log to.
    Unfit,
}

/// The directory and the last component of a path: everything is done relative to the directory's descriptor.
struct Place {
    dir: OwnedFd,
    name: OsString,
}

impl Place {
    fn of(path: &Path) -> io::Result<Place> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_os_string();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
        Ok(Place { dir: open(parent, flags, Mode::empty())?, name })
    }

    fn with(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }

    /// Opens for appending and, where permissions allow, for reading back.
    fn open(&self, more: OFlag, mode: u32) -> io::Result<(OwnedFd, bool)> {
        self.open_name(&self.name, more, mode)
    }

    fn open_name(&self, name: &OsStr, more: OFlag, mode: u32) -> io::Result<(OwnedFd, bool)> {
        // Non-blocking means nothing to a file, and keeps a FIFO that nobody reads from holding us up.
        let common =
            OFlag::O_APPEND | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | more;
        let mode = Mode::from_bits_truncate(mode);
        match openat(&self.dir, name, common | OFlag::O_RDWR, mode) {
            Err(Errno::EACCES) => Ok((openat(&self.dir, name, common | OFlag::O_WRONLY, mode)?, false)),
            answer => Ok((answer?, true)),
        }
    }

    /// A new file beside the log; a stale one of that name, left by a crash, is replaced.
    fn fresh(&self, suffix: &str, mode: u32) -> io::Result<(OwnedFd, bool)> {
        let name = self.with(suffix);
        let _ = unlinkat(&self.dir, &*name, UnlinkatFlags::NoRemoveDir);
        self.open_name(&name, OFlag::O_CREAT | OFlag::O_EXCL, mode)
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.dir, from, &self.dir, to)?)
    }

    fn look(&self, file: impl AsFd) -> io::Result<Found> {
        let there = match fstatat(&self.dir, &*self.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(Found::Nothing),
            answer => answer?,
        };
        let ours = fstat(file)?;
        Ok(match () {
            () if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => Found::Ours,
            () if is_regular(&there) => Found::Other,
            () => Found::Unfit,
        })
    }

    /// Makes a watcher of the path see a move without touching what is there: exchanged with an empty file and back.
    fn stir(&self, mode: u32) -> io::Result<()> {
        let other = self.with(".tmp");
        drop(self.fresh(".tmp", mode)?);
        let exchange = || renameat2(&self.dir, &*other, &self.dir, &*self.name, RenameFlags::RENAME_EXCHANGE);
        let done = match exchange() {
            Ok(()) => exchange(),
            // Not every file system can exchange: for a moment nothing is at the path.
            Err(Errno::EINVAL | Errno::ENOSYS) => renameat(&self.dir, &*self.name, &self.dir, &*other)
                .and_then(|()| renameat(&self.dir, &*other, &self.dir, &*self.name)),
            Err(error) => Err(error),
        };
        let _ = unlinkat(&self.dir, &*other, UnlinkatFlags::NoRemoveDir);
        Ok(done?)
    }
}

fn is_regular(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
}

fn check_allowed(path: &Path, allowed: &[PathBuf]) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = parent.canonicalize()?;
    if allowed.iter().filter_map(|dir| dir.canonicalize().ok()).any(|dir| parent.starts_with(dir)) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "not below a directory of --log-allowlist-dir"))
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
