//! Several processes on one store: `serve`, and an `import` beside it.
//!
//! One file, whose bytes are locked for open file descriptions: the kernel lets go when a process dies. Who changes
//! the store has `Change` for a moment and counts up the number in the file before it begins; another number than the
//! one in memory means that the disk knows better. Who puts an image together shares `Hold`: nobody else removes
//! meanwhile what no image names yet. Who has the store open shares `Open`: only who is alone tidies up after a kill.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Context, Result};

/// The lock file of a store, open.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

/// A byte of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Change = 0,
    Hold = 1,
    Open = 2,
}

/// How a lock is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Shared,
    Alone,
    Released,
}

/// Locks are held for milliseconds, or for a clean-up at a start; who is stopped with one must not stop all others.
const PATIENCE: Duration = Duration::from_secs(30);

impl Lock {
    pub fn open(path: &Path) -> Result<Lock> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        Ok(Lock { file: file.context(|| format!("Failed to open {}", path.display()))?, path: path.to_owned() })
    }

    pub fn share(&self, part: Part) -> Result<()> {
        self.wait(part, Kind::Shared)
    }

    pub fn take(&self, part: Part) -> Result<()> {
        self.wait(part, Kind::Alone)
    }

    /// Whether nobody else has that part; it is ours alone then.
    pub fn try_take(&self, part: Part) -> bool {
        set(&self.file, range(Some(part), Kind::Alone), Duration::ZERO).is_ok()
    }

    /// Cannot fail for a lock that is ours.
    pub fn release(&self, part: Part) {
        let _ = set(&self.file, range(Some(part), Kind::Released), Duration::ZERO);
    }

    fn wait(&self, part: Part, kind: Kind) -> Result<()> {
        set(&self.file, range(Some(part), kind), PATIENCE)
            .context(|| format!("Failed to lock {}, which another process has", self.path.display()))
    }

    /// How often the store was changed.
    pub fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_ne_bytes(bytes),
            // Never changed.
            Err(_) => 0,
        }
    }

    /// Says that a change begins; whoever sees the number waits for the end of the change.
    pub fn count_up(&self) -> Result<u64> {
        let number = self.number().wrapping_add(1);
        self.file
            .write_all_at(&number.to_ne_bytes(), 0)
            .context(|| format!("Failed to write {}", self.path.display()))?;
        Ok(number)
    }
}

/// A shared lock on a whole file, had in time or not at all.
pub(super) fn share_file(file: impl AsFd, patience: Duration) -> nix::Result<()> {
    set(file, range(None, Kind::Shared), patience)
}

fn range(part: Option<Part>, kind: Kind) -> libc::flock {
    let (start, length) = part.map_or((0, 0), |part| (part as libc::off_t, 1));
    let kind = match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Alone => libc::F_WRLCK,
        Kind::Released => libc::F_UNLCK,
    };
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn set(file: impl AsFd, lock: libc::flock, patience: Duration) -> nix::Result<()> {
    let end = Instant::now() + patience;
    loop {
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)) {
            Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() < end => thread::sleep(Duration::from_millis(2)),
            other => return other.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_had_one_by_one_and_go_with_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (one, two) = (Lock::open(&path).unwrap(), Lock::open(&path).unwrap());
        one.take(Part::Change).unwrap();
        assert!(!two.try_take(Part::Change) && two.try_take(Part::Hold));
        drop(one);
        assert!(two.try_take(Part::Change));
        let three = Lock::open(&path).unwrap();
        two.share(Part::Open).unwrap();
        three.share(Part::Open).unwrap();
        assert!(!two.try_take(Part::Open));
        three.release(Part::Open);
        assert!(two.try_take(Part::Open));
    }

    #[test]
    fn a_number_that_everybody_sees() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (Lock::open(&dir.path().join("l")).unwrap(), Lock::open(&dir.path().join("l")).unwrap());
        assert_eq!((one.number(), one.count_up().unwrap(), two.number()), (0, 1, 1));
        assert_eq!((two.count_up().unwrap(), one.number()), (2, 2));
    }
}
