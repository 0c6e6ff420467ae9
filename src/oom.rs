//! Whether the kernel's OOM killer struck the container.
//!
//! cgroup v2 counts in `memory.events` and wakes whoever polls that file for priority data (Linux,
//! `admin-guide/cgroup-v2.rst`). cgroup v1 counts in `memory.oom_control` and writes to an eventfd that was registered
//! in `cgroup.event_control` (`admin-guide/cgroup-v1/memory.rst`, chapters 9 and 10).

pub mod cgroup;
mod saved;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;

use crate::error::Error;
pub use cgroup::v2_path;
use cgroup::{Place, V1_FILE, V2_FILE};

/// What is known of the OOM killer's work in the container's cgroup since the watch began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is nothing to know it from.
    Unknown,
    None,
    /// Memory ran out, but none of the container's own cgroup was seen to be killed: a charge failed, or it hit a
    /// cgroup below. How the container ended decides.
    Limit,
    Oom {
        kills: u64,
    },
}

impl Verdict {
    /// Whether the container fell to the OOM killer, given whether SIGKILL ended it; `None` if nobody can say.
    pub const fn killed(self, by_sigkill: bool) -> Option<bool> {
        match self {
            Verdict::Unknown => None,
            Verdict::None => Some(false),
            Verdict::Limit => Some(by_sigkill),
            Verdict::Oom { .. } => Some(true),
        }
    }
}

/// What a watch's descriptor says when there is something to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Priority data (EPOLLPRI), never to be read.
    Priority,
    Readable,
}

/// A watch on the memory events of one cgroup.
#[derive(Debug)]
pub struct OomWatch {
    counters: Source,
    verdict: Verdict,
}

#[derive(Debug)]
enum Source {
    V2 {
        all: Counted,
        /// The same without the cgroups below, since Linux 5.2.
        local: Option<Counted>,
    },
    V1 {
        control: Counted,
        event: EventFd,
        /// OOM events so far.
        events: u64,
        removed: bool,
    },
}

impl OomWatch {
    /// Watches the memory cgroup of the container's process `pid`; `None` if there is none that tells.
    ///
    /// `root` is `/`, or a directory with a `proc` and a `sys` of its own. No failure is a reason to stop.
    pub fn open(pid: i32, root: &Path) -> Result<Option<OomWatch>, Error> {
        let counters = match cgroup::find(pid, root)? {
            None => return Ok(None),
            Some(Place::V2(dir)) => watch_v2(&dir)?,
            Some(Place::V1(dir)) => watch_v1(&dir)?,
        };
        Ok(Some(OomWatch { counters, verdict: Verdict::Unknown }))
    }

    /// The descriptor to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.counters {
            Source::V2 { all, .. } => all.file.as_fd(),
            Source::V1 { event, .. } => event.as_fd(),
        }
    }

    /// What to wait for on it.
    pub const fn wake(&self) -> Wake {
        match self.counters {
            Source::V2 { .. } => Wake::Priority,
            Source::V1 { .. } => Wake::Readable,
        }
    }

    /// Looks at the counters. To be called on each event, and at last before the container is reaped: after that its
    /// cgroup may vanish, and the counters with it.
    pub fn check(&mut self) -> Verdict {
        self.verdict = match &mut self.counters {
            Source::V2 { all, local } => {
                let local = local.as_ref().and_then(Counted::growth);
                judge_v2(all.growth(), local, self.verdict)
            }
            Source::V1 { control, event, events, removed } => {
                let growth = control.growth();
                let mut new = event.read().unwrap_or(0);
                if growth.is_none() && new > 0 && !std::mem::replace(removed, true) {
                    // The removal of a cgroup is an event as well.
                    new -= 1;
                    crate::debug!("Cgroup appears to have been removed");
                }
                *events += new;
                judge_v1(growth, *events, self.verdict)
            }
        };
        self.verdict
    }
}

fn watch_v2(dir: &Path) -> Result<Source, Error> {
    let all = Counted::open(&dir.join(V2_FILE))?;
    let local = Counted::open(&dir.join("memory.events.local")).ok();
    Ok(Source::V2 { all, local })
}

fn watch_v1(dir: &Path) -> Result<Source, Error> {
    let control = Counted::open(&dir.join(V1_FILE))?;
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let event = EventFd::from_flags(flags).map_err(Error::at("make an eventfd for", dir))?;
    let path = dir.join("cgroup.event_control");
    let line = format!("{} {}", event.as_fd().as_raw_fd(), control.file.as_raw_fd());
    let mut options = fs::OpenOptions::new();
    let written = options.write(true).open(&path).and_then(|file| file.write_all_at(line.as_bytes(), 0));
    written.map_err(Error::at("register for OOM events in", &path))?;
    Ok(Source::V1 { control, event, events: 0, removed: false })
}

/// The rule of version 2: `oom_kill` of the cgroup itself decides. What was seen before the counters went stays seen.
fn judge_v2(all: Option<Growth>, local: Option<Growth>, before: Verdict) -> Verdict {
    let Some(all) = all else {
        return if before == Verdict::None { Verdict::Unknown } else { before };
    };
    match local.and_then(|local| local.kills).or(all.kills) {
        Some(kills @ 1..) => Verdict::Oom { kills },
        _ if all.kills.max(all.limit) > Some(0) => Verdict::Limit,
        _ if all == Growth::default() => Verdict::Unknown,
        _ => Verdict::None,
    }
}

/// The rule of version 1: `oom_kill` decides where it exists (since Linux 4.13), else each event is a kill. `events` is
/// complete even when the cgroup is gone.
fn judge_v1(growth: Option<Growth>, events: u64, before: Verdict) -> Verdict {
    match growth.and_then(|growth| growth.kills) {
        Some(kills @ 1..) => Verdict::Oom { kills },
        // The killer may be switched off, or be about to strike.
        Some(0) if events > 0 => Verdict::Limit,
        Some(0) => Verdict::None,
        None if matches!(before, Verdict::Oom { .. }) => before,
        None if events > 0 => Verdict::Oom { kills: events },
        None => Verdict::None,
    }
}

// ---------------------------------------------------------------- counters

/// A file of counters and what they were at first.
#[derive(Debug)]
struct Counted {
    file: File,
    base: Counters,
}

impl Counted {
    fn open(path: &Path) -> Result<Counted, Error> {
        let file = File::open(path).map_err(Error::at("open", path))?;
        let base = Counters::read(&file).map_err(Error::at("read", path))?;
        Ok(Counted { file, base })
    }

    /// `None` when the cgroup is gone.
    fn growth(&self) -> Option<Growth> {
        Some(self.base.growth(&Counters::read(&self.file).ok()?))
    }
}

/// The counters of `memory.events` or `memory.oom_control` that matter here; `None` for one that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `oom`: a charge ran into the limit and nothing could be reclaimed.
    pub oom: Option<u64>,
    /// `oom_kill`: processes that the OOM killer ended.
    pub oom_kill: Option<u64>,
}

impl Counters {
    fn read(file: &File) -> io::Result<Counters> {
        let mut text = [0; 4096];
        let len = file.read_at(&mut text, 0)?;
        Ok(Counters::parse(&text[..len]))
    }

    /// Parses lines of the form `KEY VALUE`; other lines are skipped.
    pub fn parse(text: &[u8]) -> Counters {
        let mut counters = Counters::default();
        for line in text.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()) {
            let mut words = line.split_ascii_whitespace();
            let (Some(key), Some(value), None) = (words.next(), words.next(), words.next()) else { continue };
            let digits = value.bytes().all(|byte| byte.is_ascii_digit());
            let Some(value) = value.parse().ok().filter(|_| digits) else { continue };
            match key {
                "oom" => counters.oom = Some(value),
                "oom_kill" => counters.oom_kill = Some(value),
                _ => {}
            }
        }
        counters
    }

    fn growth(&self, now: &Counters) -> Growth {
        Growth { limit: grown(self.oom, now.oom), kills: grown(self.oom_kill, now.oom_kill) }
    }
}

/// How far the counters have moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Growth {
    limit: Option<u64>,
    kills: Option<u64>,
}

/// A counter that is smaller than before has begun anew.
fn grown(base: Option<u64>, now: Option<u64>) -> Option<u64> {
    let now = now?;
    Some(now.checked_sub(base.unwrap_or(0)).unwrap_or(now))
}

// ---------------------------------------------------------------- the mark

/// Leaves the empty file `oom` in each directory, which is how podman and CRI-O learn of it.
pub fn mark(dirs: &[&Path]) {
    for dir in dirs.iter().filter(|dir| !dir.as_os_str().is_empty()) {
        if let Err(error) = mark_in(dir) {
            crate::warn!("Failed to say that memory ran out: {error}");
        }
    }
}

fn mark_in(dir: &Path) -> Result<(), Error> {
    let dir_flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir_fd = open(dir, dir_flags, Mode::empty()).map_err(Error::at("open", dir))?;
    // Reading is all that is asked for: nothing that is there already may be changed or waited for.
    let flags = OFlag::O_RDONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match openat(&dir_fd, "oom", flags, Mode::from_bits_truncate(0o644)) {
        Ok(_) | Err(Errno::EISDIR) => Ok(()),
        Err(error) => Err(Error::at("make", &dir.join("oom"))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn counters_are_parsed_line_by_line() {
        let rows: &[(&[u8], Option<u64>, Option<u64>)] = &[
            (b"low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 9\n", Some(3), Some(2)),
            (b"oom_kill_disable 0\nunder_oom 1\noom_kill 5", None, Some(5)),
            (b"oom\noom x\noom_kill -1\noom_kill +1\noom_kill 1 2\n\xff\n", None, None),
            (b"oom_kill 99999999999999999999999\noom 18446744073709551615\n", Some(u64::MAX), None),
            (b"oom 1\ngarbage\n\noom 2\noom_kill\t4\n", Some(2), Some(4)),
            (b"", None, None),
        ];
        for (text, oom, oom_kill) in rows {
            let expected = Counters { oom: *oom, oom_kill: *oom_kill };
            assert_eq!(Counters::parse(text), expected, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn counters_grow_or_begin_anew() {
        for (base, now, expected) in [
            (Some(2), Some(2), Some(0)),
            (Some(2), Some(5), Some(3)),
            (Some(5), Some(2), Some(2)),
            (Some(5), Some(0), Some(0)),
            (None, Some(4), Some(4)),
            (Some(4), None, None),
        ] {
            assert_eq!(grown(base, now), expected);
        }
    }

    fn growth(limit: u64, kills: u64) -> Option<Growth> {
        Some(Growth { limit: Some(limit), kills: Some(kills) })
    }

    #[test]
    fn verdicts_of_version_2() {
        use Verdict::{Limit, None as No, Oom, Unknown};
        let only_limit = |limit| Some(Growth { limit: Some(limit), kills: None });
        let rows = [
            (growth(0, 0), None, Unknown, No),
            (growth(1, 1), None, No, Oom { kills: 1 }),
            (growth(1, 1), growth(1, 1), No, Oom { kills: 1 }),
            (growth(3, 0), growth(3, 0), No, Limit),
            // A cgroup below was hit.
            (growth(3, 3), growth(0, 0), No, Limit),
            (growth(3, 3), growth(0, 1), No, Oom { kills: 1 }),
            (only_limit(0), None, No, No),
            (only_limit(1), None, No, Limit),
            (Some(Growth::default()), None, Unknown, Unknown),
            (None, None, Unknown, Unknown),
            (None, None, No, Unknown),
            (None, None, Limit, Limit),
            (None, None, Oom { kills: 2 }, Oom { kills: 2 }),
        ];
        for (all, local, before, expected) in rows {
            assert_eq!(judge_v2(all, local, before), expected, "{all:?} {local:?} {before:?}");
        }
    }

    #[test]
    fn verdicts_of_version_1() {
        use Verdict::{Limit, None as No, Oom, Unknown};
        let uncounted = Some(Growth::default());
        let rows = [
            (growth(0, 0), 0, Unknown, No),
            (growth(0, 1), 1, Unknown, Oom { kills: 1 }),
            (growth(0, 2), 0, Unknown, Oom { kills: 2 }),
            (growth(0, 0), 1, No, Limit),
            (uncounted, 0, Unknown, No),
            (uncounted, 2, No, Oom { kills: 2 }),
            (None, 0, Unknown, No),
            (None, 0, No, No),
            (None, 1, No, Oom { kills: 1 }),
            (None, 5, Oom { kills: 2 }, Oom { kills: 2 }),
        ];
        for (growth, events, before, expected) in rows {
            assert_eq!(judge_v1(growth, events, before), expected, "{growth:?} {events} {before:?}");
        }
    }

    #[test]
    fn what_a_verdict_means_for_the_container() {
        let rows = [
            (Verdict::Unknown, [None, None]),
            (Verdict::None, [Some(false), Some(false)]),
            (Verdict::Limit, [Some(false), Some(true)]),
            (Verdict::Oom { kills: 1 }, [Some(true), Some(true)]),
        ];
        for (verdict, expected) in rows {
            assert_eq!([verdict.killed(false), verdict.killed(true)], expected);
        }
    }

    /// A root with process 7 in the cgroup `a` and the given files there.
    fn fake(cgroup: &str, dir: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/7")).unwrap();
        fs::write(root.path().join("proc/7/cgroup"), cgroup).unwrap();
        let dir = root.path().join("sys/fs/cgroup").join(dir);
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        root
    }

    #[test]
    fn a_version_2_watch_counts_from_its_beginning() {
        let files = [("memory.events", "oom 4\noom_kill 3\n"), ("memory.events.local", "oom 4\noom_kill 3\n")];
        let root = fake("0::/a\n", "a", &files);
        fs::write(root.path().join("sys/fs/cgroup/cgroup.controllers"), "memory\n").unwrap();
        let mut watch = OomWatch::open(7, root.path()).unwrap().unwrap();
        assert_eq!(watch.wake(), Wake::Priority);
        assert_eq!(watch.check(), Verdict::None);
        let set = |name: &str, text: &str| fs::write(root.path().join("sys/fs/cgroup/a").join(name), text).unwrap();
        set("memory.events", "oom 5\noom_kill 3\n");
        assert_eq!(watch.check(), Verdict::Limit);
        set("memory.events", "oom 5\noom_kill 5\n");
        set("memory.events.local", "oom 4\noom_kill 5\n");
        assert_eq!(watch.check(), Verdict::Oom { kills: 2 });
        assert_eq!(watch.check(), Verdict::Oom { kills: 2 });
    }

    #[test]
    fn a_version_1_watch_registers_its_eventfd() {
        let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n";
        let root = fake("4:memory:/a\n", "memory/a", &[("memory.oom_control", control), ("cgroup.event_control", "")]);
        let dir = root.path().join("sys/fs/cgroup/memory/a");
        let mut watch = OomWatch::open(7, root.path()).unwrap().unwrap();
        assert_eq!(watch.wake(), Wake::Readable);
        let registered = fs::read_to_string(dir.join("cgroup.event_control")).unwrap();
        assert!(registered.starts_with(&format!("{} ", watch.fd().as_raw_fd())), "{registered}");
        assert_eq!(watch.check(), Verdict::None);
        nix::unistd::write(watch.fd(), &1u64.to_ne_bytes()).unwrap();
        assert_eq!(watch.check(), Verdict::Limit);
        fs::write(dir.join("memory.oom_control"), "oom_kill 1\n").unwrap();
        assert_eq!(watch.check(), Verdict::Oom { kills: 1 });
    }

    #[test]
    fn no_counters_no_watch() {
        let root = fake("0::/a\n", "a", &[]);
        assert!(OomWatch::open(7, root.path()).unwrap().is_none());
        let root = fake("4:memory:/a\n", "memory/a", &[("memory.oom_control", "oom_kill 0\n")]);
        let error = OomWatch::open(7, root.path()).unwrap_err().to_string();
        assert!(error.starts_with("cannot register for OOM events in "), "{error}");
        assert!(OomWatch::open(8, root.path()).is_err());
    }

    #[test]
    fn marks_are_left_where_they_can_be() {
        let base = tempfile::tempdir().unwrap();
        let dir = |name: &str| {
            let path = base.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (fresh, marked, linked, last) = (dir("fresh"), dir("marked"), dir("linked"), dir("last"));
        fs::write(marked.join("oom"), "before").unwrap();
        symlink(base.path().join("elsewhere"), linked.join("oom")).unwrap();
        mark(&[&fresh, &marked, &base.path().join("missing"), &linked, Path::new(""), &last]);
        for path in [&fresh, &last] {
            let metadata = fs::metadata(path.join("oom")).unwrap();
            assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (0, 0o644));
        }
        assert_eq!(fs::read_to_string(marked.join("oom")).unwrap(), "before");
        assert!(!base.path().join("elsewhere").exists());
        assert!(mark_in(&linked).unwrap_err().to_string().starts_with("cannot make "));
    }
}
