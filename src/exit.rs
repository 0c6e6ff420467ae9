//! How the container ended, and the files that say so.
//!
//! conmon's exit files hold the bare status; `exit.json` beside them is the full record. All are made under a
//! temporary name and renamed, so that a reader sees nothing or everything.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::oom::Verdict;
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
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
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
    /// Brings the file and its name to the disk.
    pub fn sync(&self) {
        if let Err(error) = fsync(&self.file).and_then(|()| fsync(&self.dir)) {
            crate::warn!("Failed to make an exit file durable: {error}");
        }
    }
}

/// Makes an empty temporary file beforehand, while nobody waits: a new inode is the dearest part of publishing.
pub fn prepare(dir: &Path, name: &OsStr) -> io::Result<()> {
    let dir = open_dir(dir)?;
    let temporary = prepared(name);
    let _ = unlinkat(&dir, &*temporary, UnlinkatFlags::NoRemoveDir);
    openat(&dir, &*temporary, NEW, Mode::from_bits_truncate(0o644))?;
    Ok(())
}

/// Publishes as [`publish`] does, in the file that [`prepare`] made if it is still there.
pub fn publish_prepared(dir: &Path, name: &OsStr, content: &[u8]) -> io::Result<Published> {
    let dir_fd = open_dir(dir)?;
    let temporary = prepared(name);
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    match openat(&dir_fd, &*temporary, flags, Mode::empty()) {
        Ok(fd) => finish_publishing(dir_fd, fd.into(), &temporary, name, content),
        Err(_) => publish(dir, name, content),
    }
}

fn prepared(name: &OsStr) -> OsString {
    let mut temporary = name.to_os_string();
    temporary.push(".tmp");
    temporary
}

/// Publishes `content` as `dir/name` at once: a temporary file beside it, then a rename. Mode 0644 under our umask.
pub fn publish(dir: &Path, name: &OsStr, content: &[u8]) -> io::Result<Published> {
    let dir_fd = open_dir(dir)?;
    let (file, temporary) = temporary(&dir_fd, name)?;
    finish_publishing(dir_fd, file, &temporary, name, content)
}

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    Ok(open(dir, OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn finish_publishing(
    dir: OwnedFd,
    mut file: File,
    temporary: &OsStr,
    name: &OsStr,
    content: &[u8],
) -> io::Result<Published> {
    match file.write_all(content).and_then(|()| Ok(renameat(&dir, temporary, &dir, name)?)) {
        Ok(()) => Ok(Published { file, dir }),
        Err(error) => {
            let _ = unlinkat(&dir, temporary, UnlinkatFlags::NoRemoveDir);
            Err(error)
        }
    }
}

const NEW: OFlag =
    OFlag::O_WRONLY.union(OFlag::O_CREAT).union(OFlag::O_EXCL).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// A new file `name.XXXXXX`, with a name that nobody has.
fn temporary(dir: &OwnedFd, name: &OsStr) -> io::Result<(File, OsString)> {
    let mut seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    for _ in 0..100 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) ^ std::process::id();
        let mut candidate = name.to_os_string();
        candidate.push(OsStr::from_bytes(format!(".{:06x}", seed >> 8).as_bytes()));
        match openat(dir, &*candidate, NEW, Mode::from_bits_truncate(0o644)) {
            Ok(fd) => return Ok((fd.into(), candidate)),
            Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
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

    #[test]
    fn publishing_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["1", "23"] {
            publish(dir.path(), OsStr::new("exit"), text.as_bytes()).unwrap().sync();
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("exit")).unwrap(), "23");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        prepare(dir.path(), OsStr::new("record")).unwrap();
        publish_prepared(dir.path(), OsStr::new("record"), b"{}").unwrap();
        publish_prepared(dir.path(), OsStr::new("record"), b"[]").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("record")).unwrap(), "[]");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        assert!(publish(&dir.path().join("missing"), OsStr::new("exit"), b"1").is_err());
    }
}
