//! A layer's tar becomes a tree that overlayfs understands.
//!
//! Nothing in a tar is trusted. Parent directories are opened by `openat2` with the tree as their root, so that no
//! symbolic link leads out, and the last component is never followed. `..` that would leave the tree is refused.

mod attributes;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timestamps, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tar::EntryType;

use attributes::Attributes;

use super::files;
use crate::error::{Context, Error, Result};

/// Unpacks a layer, compressed or not, into an empty directory, and says its DiffID.
pub fn unpack(layer: impl Read, into: &Path) -> Result<String> {
    let mut plain = Hashed { inner: decompress(BufReader::with_capacity(1 << 16, layer))?, hash: Sha256::new() };
    let mut tree = Tree::open(into)?;
    let mut archive = tar::Archive::new(&mut plain);
    for entry in archive.entries().context(|| "Failed to read layer")? {
        let mut entry = entry.context(|| "Failed to read layer")?;
        tree.add(&mut entry)?;
    }
    tree.finish()?;
    // What follows the end mark belongs to the digest.
    io::copy(&mut plain, &mut io::sink()).context(|| "Failed to read layer")?;
    Ok(files::finish(plain.hash))
}

/// By the first bytes, for media types are wrong at times.
fn decompress<'a>(mut layer: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>> {
    let start = layer.fill_buf().context(|| "Failed to read layer")?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(layer)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(layer).context(|| "Failed to read layer as zstd")?)
        }
        _ => Box::new(layer),
    })
}

struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// A tree while it is filled.
struct Tree {
    root: OwnedFd,
    /// Set at the end, for each new entry touches its directory.
    times: Vec<(PathBuf, Timestamps)>,
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

impl Tree {
    fn open(path: &Path) -> Result<Tree> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(path, flags, Mode::empty()).context(|| format!("Failed to open {}", path.display()))?;
        Ok(Tree { root, times: Vec::new() })
    }

    fn add(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<()> {
        let raw = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let path = clean(Path::new(OsStr::from_bytes(&raw)))?;
        self.place(entry, &path, raw.ends_with(b"/")).context(|| format!("Failed to unpack {shown:?}"))
    }

    fn place(&mut self, entry: &mut tar::Entry<'_, impl Read>, path: &Path, slash: bool) -> Result<()> {
        let mut kind = entry.header().entry_type();
        // How tars older than the flag for directories mark them.
        if kind.is_file() && slash {
            kind = EntryType::Directory;
        }
        let Some(name) = path.file_name() else {
            return if kind.is_dir() { self.root_attributes(entry) } else { Ok(()) };
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let dir = self.dir(parent, 0).context(|| format!("directory {}", parent.display()))?;
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return whiteout(&dir, name, OsStr::from_bytes(hidden));
        }
        let attributes = Attributes::of(entry)?;
        match kind {
            EntryType::Directory => {
                make_directory(&dir, name, &attributes)?;
                self.times.push((path.to_owned(), attributes.times));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                write_file(&dir, name, entry, &attributes)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| Error::failed("no target"))?;
                clear(&dir, name)?;
                rustix::fs::symlinkat(&*target, &dir, name).context(|| "symlink")?;
                attributes.own(&dir, name)?;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().ok_or_else(|| Error::failed("no target"))?;
                self.hard_link(&clean(Path::new(OsStr::from_bytes(&target)))?, &dir, name)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                clear(&dir, name)?;
                make_node(&dir, name, kind, entry, &attributes)?;
            }
            other => tracing::debug!(path = %path.display(), kind = ?other, "tar entry of no use to a layer"),
        }
        Ok(())
    }

    fn root_attributes(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<()> {
        let attributes = Attributes::of(entry)?;
        let dir = self.reopen(Path::new("")).context(|| "open")?;
        attributes.apply(dir.as_fd())?;
        self.times.push((PathBuf::new(), attributes.times));
        Ok(())
    }

    fn hard_link(&self, target: &Path, dir: &OwnedFd, name: &OsStr) -> Result<()> {
        let from = target.file_name().ok_or_else(|| Error::failed("hard link to the root"))?;
        let from_dir = self.open_dir(target.parent().unwrap_or(Path::new(""))).context(|| "target of hard link")?;
        // A name that is linked to itself must survive.
        if !same(&from_dir, from, dir, name) {
            clear(dir, name)?;
            rustix::fs::linkat(&from_dir, from, dir, name, AtFlags::empty())
                .context(|| format!("hard link to {}", target.display()))?;
        }
        Ok(())
    }

    /// Opens a directory below the root, making what is missing; links lead where they would with the tree as root.
    fn dir(&self, path: &Path, depth: u32) -> rustix::io::Result<OwnedFd> {
        match self.open_dir(path) {
            Err(Errno::NOENT) if depth < 64 => {}
            other => return other,
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::NOENT) };
        let above = self.dir(parent, depth + 1)?;
        match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
            // A link to what is not there yet.
            Err(Errno::EXIST) => {
                let target = rustix::fs::readlinkat(&above, name, Vec::new())?;
                let target = parent.join(OsStr::from_bytes(target.to_bytes()));
                self.dir(&confined(&target), depth + 1)
            }
            Err(error) => Err(error),
            Ok(()) => self.open_dir(path),
        }
    }

    fn open_dir(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.open_in(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    fn reopen(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.open_in(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)
    }

    fn open_in(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            // A rename anywhere on the machine while a link with `..` is walked.
            match rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    fn finish(&self) -> Result<()> {
        for (path, times) in self.times.iter().rev() {
            // A later entry may have put something else in its place.
            if let Ok(dir) = self.reopen(path) {
                rustix::fs::futimens(&dir, times)
                    .context(|| format!("Failed to set the time of {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// A path below the root without `.` and `..`.
fn clean(path: &Path) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir if !clean.pop() => {
                return Err(Error::failed(format!("Refused: {:?} leads out of the layer", path)));
            }
            _ => {}
        }
    }
    Ok(clean)
}

/// The same for targets of links, where the root is its own parent.
fn confined(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir => clean.clear(),
            _ => {}
        }
    }
    clean
}

fn stat(dir: impl AsFd, name: &OsStr) -> Option<rustix::fs::Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()
}

fn same(a: &OwnedFd, a_name: &OsStr, b: &OwnedFd, b_name: &OsStr) -> bool {
    let key = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    matches!((stat(a, a_name).map(key), stat(b, b_name).map(key)), (Some(a), Some(b)) if a == b)
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Removes what an entry takes the place of.
fn clear(dir: &OwnedFd, name: &OsStr) -> Result<()> {
    let Some(stat) = stat(dir, name) else { return Ok(()) };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return rustix::fs::unlinkat(dir, name, AtFlags::empty()).context(|| "replace");
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(dir, name, flags, Mode::empty()).context(|| "replace")?;
    let entries = rustix::fs::Dir::read_from(&inner).context(|| "replace")?;
    for entry in entries {
        let entry = entry.context(|| "replace")?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            clear(&inner, name)?;
        }
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR).context(|| "replace")
}

fn make_directory(dir: &OwnedFd, name: &OsStr, attributes: &Attributes) -> Result<()> {
    let old = stat(dir, name);
    let is_dir = |stat: &rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if !old.as_ref().is_some_and(is_dir) {
        clear(dir, name)?;
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700)).context(|| "mkdir")?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(dir, name, flags, Mode::empty()).context(|| "open")?;
    attributes.apply(made.as_fd())?;
    // Removed below and made anew: what the lower one holds stays hidden.
    if old.as_ref().is_some_and(is_whiteout) { opaque(made.as_fd()) } else { Ok(()) }
}

fn write_file(dir: &OwnedFd, name: &OsStr, data: &mut impl Read, attributes: &Attributes) -> Result<()> {
    clear(dir, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).context(|| "create")?;
    let mut file = File::from(file);
    io::copy(data, &mut file).context(|| "write")?;
    attributes.apply(file.as_fd())
}

fn make_node(
    dir: &OwnedFd,
    name: &OsStr,
    kind: EntryType,
    entry: &tar::Entry<'_, impl Read>,
    attributes: &Attributes,
) -> Result<()> {
    let number = |part: io::Result<Option<u32>>| part.context(|| "device number").map(Option::unwrap_or_default);
    let device = || {
        let header = entry.header();
        Ok::<_, Error>(rustix::fs::makedev(number(header.device_major())?, number(header.device_minor())?))
    };
    let (kind, device) = match kind {
        EntryType::Char => (FileType::CharacterDevice, device()?),
        EntryType::Block => (FileType::BlockDevice, device()?),
        _ => (FileType::Fifo, 0),
    };
    rustix::fs::mknodat(dir, name, kind, attributes.mode, device).context(|| "mknod")?;
    attributes.own(dir, name)?;
    rustix::fs::chmodat(dir, name, attributes.mode, AtFlags::empty()).context(|| "mode")
}

fn opaque(dir: BorrowedFd<'_>) -> Result<()> {
    rustix::fs::fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty()).context(|| "mark as opaque")
}

/// A name that is removed, or a directory of which nothing below shows.
fn whiteout(dir: &OwnedFd, marker: &OsStr, hidden: &OsStr) -> Result<()> {
    if marker.as_bytes() == OPAQUE {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(dir, ".", flags, Mode::empty()).context(|| "open")?;
        return opaque(dir.as_fd());
    }
    // Marks of aufs for itself.
    if hidden.as_bytes().starts_with(WHITEOUT) {
        return Ok(());
    }
    if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
        return Err(Error::failed("Refused: a whiteout of no name"));
    }
    match stat(dir, hidden) {
        None => rustix::fs::mknodat(dir, hidden, FileType::CharacterDevice, Mode::empty(), 0).context(|| "whiteout"),
        // Whiteouts are about the layers below: what this one has already brought stays.
        Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            opaque(rustix::fs::openat(dir, hidden, flags, Mode::empty()).context(|| "open")?.as_fd())
        }
        Some(_) => Ok(()),
    }
}

/// Puts everything written below a path on its disk.
pub fn sync(path: &Path) -> Result<()> {
    let dir = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    dir.and_then(rustix::fs::syncfs).context(|| format!("Failed to sync {}", path.display()))
}
