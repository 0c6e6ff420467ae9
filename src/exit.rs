//! How the container ended, and the files that say so.
//!
//! conmon's exit files hold the bare status; `exit.json` beside them is the full record. All are made under a
//! temporary name and renamed, so that a reader sees nothing or everything.

mod saved;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::oom::Verdict;
use crate::options::Options;
use crate::stream::Stream;
use crate::sys::Status;

/// How the supervised process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Signaled(i32),
    /// Killed by us because its time was up.
    TimedOut,
    /// It is gone and nobody can say how.
    Unknown,
}

impl From<Status> for End {
    fn from(status: Status) -> End {
        match status {
            Status::Exited(code) => End::Exited(code),
            Status::Signaled(signal) => End::Signaled(signal),
        }
    }
}

impl End {
    /// The number in exit files and final reports: the exit code, 128 + signal, or -1.
    pub fn status(self) -> i32 {
        match self {
            End::Exited(code) => code,
            End::Signaled(signal) => 128 + signal,
            End::TimedOut | End::Unknown => -1,
        }
    }

    /// The monitor's own exit status.
    pub fn exit_status(self) -> u8 {
        self.status().to_le_bytes()[0]
    }

    const fn reason(self) -> &'static str {
        match self {
            End::Exited(_) => "exited",
            End::Signaled(_) => "signaled",
            End::TimedOut => "timed-out",
            End::Unknown => "unknown",
        }
    }
}

/// What one stream amounted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Bytes that the container wrote.
    pub bytes: u64,
    /// Bytes of these that the log file could not take.
    pub lost: u64,
}

/// How a process ended, in a form that outlives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// `None` if it never started.
    pub end: Option<End>,
    /// Whether the kernel's OOM killer struck; `None` if there was no way to know.
    pub oom_killed: Option<bool>,
    pub pid: i32,
    pub started: SystemTime,
    pub finished: SystemTime,
    pub totals: [Total; 2],
}

/// The durable record of one supervised process.
#[derive(Debug)]
pub struct Record<'a> {
    pub id: &'a OsStr,
    /// `create`, `restore` or `exec`.
    pub mode: &'static str,
    pub pid: i32,
    pub end: End,
    pub oom: Verdict,
    pub started: SystemTime,
    pub finished: SystemTime,
    pub totals: [Total; 2],
}

impl Record<'_> {
    /// The record as JSON, described in `conward(8)` under EXIT RECORD.
    pub fn json(&self) -> String {
        let mut text = String::from("{\n  \"version\": 1,\n");
        let _ = writeln!(text, "  \"id\": {},", quoted(&self.id.to_string_lossy()));
        let _ = writeln!(text, "  \"mode\": \"{}\",", self.mode);
        let _ = writeln!(text, "  \"pid\": {},", self.pid);
        let _ = writeln!(text, "  \"reason\": \"{}\",", self.end.reason());
        let _ = writeln!(text, "  \"status\": {},", self.end.status());
        let _ = writeln!(
            text,
            "  \"exitCode\": {},",
            number_or_null(match self.end {
                End::Exited(code) => Some(code),
                _ => None,
            })
        );
        let _ = writeln!(
            text,
            "  \"signal\": {},",
            number_or_null(match self.end {
                End::Signaled(signal) => Some(signal),
                _ => None,
            })
        );
        let _ = writeln!(text, "  \"timedOut\": {},", self.end == End::TimedOut);
        let _ = writeln!(
            text,
            "  \"oomKilled\": {},",
            self.oom_killed().map_or("null".into(), |killed| killed.to_string())
        );
        let _ = writeln!(text, "  \"startedAt\": \"{}\",", rfc3339(self.started));
        let _ = writeln!(text, "  \"finishedAt\": \"{}\",", rfc3339(self.finished));
        for (stream, comma) in [(Stream::Stdout, ","), (Stream::Stderr, "")] {
            let Total { bytes, lost } = self.totals[stream.index()];
            let _ = writeln!(text, "  \"{}\": {{ \"bytes\": {bytes}, \"lost\": {lost} }}{comma}", stream.name());
        }
        text.push_str("}\n");
        text
    }

    /// Whether the kernel's OOM killer struck; `None` if there was no way to know.
    pub fn oom_killed(&self) -> Option<bool> {
        self.oom.killed(self.end == End::Signaled(libc::SIGKILL))
    }
}

fn number_or_null(number: Option<i32>) -> String {
    number.map_or("null".into(), |number| number.to_string())
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\0'..='\u{1f}' | '\u{7f}' => drop(write!(out, "\\u{:04x}", u32::from(c))),
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A time as RFC 3339 in UTC with nanoseconds.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

/// Year, month and day of a day number since 1970-01-01 in the proleptic Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before(year + 1) <= days {
        year += 1;
    }
    let mut day = days - days_before(year);
    let leap = days_before(year + 1) - days_before(year) == 366;
    let mut month = 1;
    for length in [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before(year: u64) -> u64 {
    let past = year - 1;
    let leaps = |y: u64| y / 4 - y / 100 + y / 400;
    (year - 1970) * 365 + leaps(past) - leaps(1969)
}

/// The name of the record, in the bundle directory.
pub const RECORD: &str = "exit.json";

/// A published file that is not durable yet.
#[derive(Debug)]
pub struct Published {
    file: File,
    dir: OwnedFd,
}

impl Published {
    /// Brings the file and its name to the disk; false if that failed.
    pub fn sync(self) -> bool {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let content = fsync(&self.file);
        // There may be no descriptor left for the directory.
        drop(self.file);
        let name = || fsync(&openat(&self.dir, ".", flags, Mode::empty())?);
        let synced = content.and_then(|()| name());
        if let Err(error) = &synced {
            crate::warn!("Failed to make an exit file durable: {error}");
        }
        synced.is_ok()
    }
}

/// The exit files of one session, in the order that conmon's callers count on: the record first, the file that CRI-O
/// watches for last.
#[derive(Debug)]
pub struct ExitFiles {
    record: Option<Slot>,
    /// `<persist-dir>/exit` and `<exit-dir>/<cid>`: the bare status.
    statuses: Vec<Slot>,
}

impl ExitFiles {
    pub fn new(options: &Options) -> ExitFiles {
        let given = |dir: &Option<PathBuf>| dir.clone().filter(|dir| !dir.as_os_str().is_empty());
        let persist = given(&options.persist_dir).map(|dir| Slot::new(&dir, OsStr::new("exit")));
        let exit = given(&options.exit_dir).map(|dir| Slot::new(&dir, &options.cid));
        ExitFiles {
            record: options.bundle.as_deref().map(|dir| Slot::new(dir, OsStr::new(RECORD))),
            statuses: persist.into_iter().chain(exit).collect(),
        }
    }

    pub fn prepare(&mut self) {
        self.record.iter_mut().chain(&mut self.statuses).for_each(Slot::prepare);
    }

    pub fn abandon(&self) {
        self.record.iter().chain(&self.statuses).for_each(Slot::abandon);
    }

    /// Publishes all; a directory that is missing costs only its own file. Without descriptors for all at once, the first
    /// ones are made durable before the others. The second value says that none is missing so far.
    pub fn publish(&self, record: &Record<'_>) -> (Vec<Published>, bool) {
        let (json, status) = (record.json(), record.end.status().to_string());
        let full = self.record.iter().map(|slot| (slot, &json));
        let bare = self.statuses.iter().map(|slot| (slot, &status));
        let (mut published, mut complete) = (Vec::new(), true);
        for (slot, content) in full.chain(bare) {
            let mut answer = slot.publish(content.as_bytes());
            if answer.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EMFILE)) {
                complete &= sync_all(published.drain(..));
                answer = slot.publish(content.as_bytes());
            }
            match answer {
                Ok(file) => published.push(file),
                Err(error) => {
                    crate::error!("Failed to write exit file {}: {error}", slot.path().display());
                    complete = false;
                }
            }
        }
        (published, complete)
    }
}

/// Brings all to the disk; false if one failed.
pub fn sync_all(published: impl IntoIterator<Item = Published>) -> bool {
    let mut all = true;
    for one in published {
        all &= one.sync();
    }
    all
}

/// A place for one exit file: made under a temporary name in its directory, then renamed.
///
/// Everything is relative to the directory's descriptor, and no symlink is followed. Mode 0644 under our umask.
#[derive(Debug)]
pub struct Slot {
    dir: PathBuf,
    name: OsString,
    /// An empty file that waits for its content.
    prepared: Option<OsString>,
}

impl Slot {
    pub fn new(dir: &Path, name: &OsStr) -> Slot {
        Slot { dir: dir.to_path_buf(), name: name.to_os_string(), prepared: None }
    }

    /// Makes the temporary file beforehand, while nobody waits: a new inode and its first page are the dearest parts of
    /// publishing. If that fails, publishing will try again and say why.
    pub fn prepare(&mut self) {
        let made = self.open_dir().and_then(|dir| {
            let (mut file, name) = self.temporary(&dir)?;
            // Takes the place of the first byte, which every content has.
            file.write_all(b" ")?;
            Ok(name)
        });
        self.prepared = made.ok();
    }

    /// Publishes `content` at once.
    pub fn publish(&self, content: &[u8]) -> io::Result<Published> {
        let dir = self.open_dir()?;
        let (mut file, temporary) = match self.reopen(&dir) {
            Some(prepared) => prepared,
            None => self.temporary(&dir)?,
        };
        match file.write_all(content).and_then(|()| Ok(renameat(&dir, &*temporary, &dir, &*self.name)?)) {
            Ok(()) => Ok(Published { file, dir }),
            Err(error) => {
                let _ = unlinkat(&dir, &*temporary, UnlinkatFlags::NoRemoveDir);
                Err(error)
            }
        }
    }

    /// Removes what was prepared for nothing.
    pub fn abandon(&self) {
        if let (Some(temporary), Ok(dir)) = (&self.prepared, self.open_dir()) {
            let _ = unlinkat(&dir, &**temporary, UnlinkatFlags::NoRemoveDir);
        }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    fn open_dir(&self) -> io::Result<OwnedFd> {
        Ok(open(&self.dir, OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    fn reopen(&self, dir: &OwnedFd) -> Option<(File, OsString)> {
        let name = self.prepared.clone()?;
        let fd = openat(dir, &*name, OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty()).ok()?;
        Some((fd.into(), name))
    }

    /// A new file `name.XXXXXX`, with a name that nobody has.
    fn temporary(&self, dir: &OwnedFd) -> io::Result<(File, OsString)> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let mut seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        for _ in 0..100 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) ^ std::process::id();
            let mut candidate = self.name.clone();
            candidate.push(format!(".{:06x}", seed >> 8));
            match openat(dir, &*candidate, flags, Mode::from_bits_truncate(0o644)) {
                Ok(fd) => return Ok((fd.into(), candidate)),
                Err(nix::Error::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        let rows = [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000007Z"),
        ];
        for (seconds, expected) in rows {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, 7)), expected);
        }
    }

    #[test]
    fn a_record_is_json() {
        let record = Record {
            id: OsStr::new("a\"b"),
            mode: "create",
            pid: 7,
            end: End::Signaled(9),
            oom: Verdict::None,
            started: UNIX_EPOCH,
            finished: UNIX_EPOCH,
            totals: [Total { bytes: 5, lost: 1 }, Total::default()],
        };
        let value: serde_json::Value = serde_json::from_str(&record.json()).unwrap();
        assert_eq!(value["id"], "a\"b");
        assert_eq!(value["status"], 137);
        assert_eq!(value["signal"], 9);
        assert_eq!(value["exitCode"], serde_json::Value::Null);
        assert_eq!(value["oomKilled"], false);
        assert_eq!(value["stdout"]["lost"], 1);
    }

    fn entries(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn publishing_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["1", "23"] {
            let mut slot = Slot::new(dir.path(), OsStr::new("exit"));
            slot.prepare();
            slot.publish(text.as_bytes()).unwrap().sync();
            slot.publish(text.as_bytes()).unwrap().sync();
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("exit")).unwrap(), "23");
        assert_eq!(entries(dir.path()), 1);
    }

    #[test]
    fn what_was_prepared_can_be_abandoned_or_be_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut slot = Slot::new(dir.path(), OsStr::new("exit"));
        slot.prepare();
        assert_eq!(entries(dir.path()), 1);
        slot.abandon();
        assert_eq!(entries(dir.path()), 0);
        slot.publish(b"0").unwrap();
        assert_eq!(entries(dir.path()), 1);
        let mut missing = Slot::new(&dir.path().join("missing"), OsStr::new("exit"));
        missing.prepare();
        assert!(missing.publish(b"0").is_err());
    }
}
