//! The log's directory entry: what is at its path, and what is beside it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, open, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// What is at the log's path, compared with the file we hold.
pub enum Found {
    Ours,
    Other,
    Nothing,
    /// Something that is no regular file: nothing to write a log to.
    Unfit,
}

/// The directory and the last component of a path: everything is done relative to the directory's descriptor.
pub struct Entry {
    dir: OwnedFd,
    pub name: OsString,
}

/// Names beside the log that are looked at, at most.
const BESIDE_MAX: usize = 1024;

impl Entry {
    pub fn of(path: &Path) -> io::Result<Entry> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_os_string();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
        Ok(Entry { dir: open(parent, flags, Mode::empty())?, name })
    }

    pub fn with(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(suffix);
        name
    }

    /// Opens for appending and, where permissions allow, for reading back.
    pub fn open(&self, more: OFlag, mode: u32) -> io::Result<(OwnedFd, bool)> {
        self.open_name(&self.name, more, mode)
    }

    pub fn open_name(&self, name: &OsStr, more: OFlag, mode: u32) -> io::Result<(OwnedFd, bool)> {
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
    pub fn fresh(&self, suffix: &str, mode: u32) -> io::Result<(OwnedFd, bool)> {
        let name = self.with(suffix);
        let _ = unlinkat(&self.dir, &*name, UnlinkatFlags::NoRemoveDir);
        self.open_name(&name, OFlag::O_CREAT | OFlag::O_EXCL, mode)
    }

    /// The regular file with this device and inode, at the log's path or a name that begins like it. A rotation,
    /// ours or a caller's, leaves it there.
    pub fn find(&self, id: (u64, u64)) -> Option<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
        let mut dir = Dir::openat(&self.dir, ".", flags, Mode::empty()).ok()?;
        let is_ours = |stat: FileStat| identity(&stat) == id && is_regular(&stat);
        let name = dir
            .iter()
            .flatten()
            .filter(|entry| entry.file_name().to_bytes().starts_with(self.name.as_bytes()))
            .take(BESIDE_MAX)
            .find(|entry| fstatat(&self.dir, entry.file_name(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(is_ours))?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
        let file = openat(&self.dir, name.file_name(), flags, Mode::empty()).ok()?;
        fstat(&file).is_ok_and(is_ours).then_some(file)
    }

    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.dir, from, &self.dir, to)?)
    }

    pub fn look(&self, file: impl AsFd) -> io::Result<Found> {
        let there = match fstatat(&self.dir, &*self.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(Found::Nothing),
            answer => answer?,
        };
        let ours = fstat(file)?;
        Ok(match () {
            () if identity(&there) == identity(&ours) => Found::Ours,
            () if is_regular(&there) => Found::Other,
            () => Found::Unfit,
        })
    }

    /// Makes a watcher of the path see a move without touching what is there: exchanged with an empty file and back.
    pub fn stir(&self, mode: u32) -> io::Result<()> {
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

/// Device and inode.
pub fn identity(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

pub fn is_regular(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
}

pub fn check_allowed(path: &Path, allowed: &[PathBuf]) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = parent.canonicalize()?;
    if allowed.iter().filter_map(|dir| dir.canonicalize().ok()).any(|dir| parent.starts_with(dir)) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "not below a directory of --log-allowlist-dir"))
}
