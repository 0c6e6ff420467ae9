//! A layer's tar becomes a tree that overlayfs understands.
//!
//! Nothing in a tar is trusted. Parent directories are opened by `openat2` with the tree as their root, so that no
//! symbolic link leads out, and the last component is never followed. `..` that would leave the tree is refused.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tar::EntryType;

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

/// What an entry's header and its extensions say.
struct Attributes {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    times: Timestamps,
    xattrs: Vec<(OsString, Vec<u8>)>,
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

impl Attributes {
    fn of(entry: &mut tar::Entry<'_, impl Read>) -> Result<Attributes> {
        let header = entry.header();
        let bad = || "header";
        let old = header.as_old();
        let mode = or_zero(&old.mode, header.mode()).context(bad)? & 0o7777;
        let uid = u32::try_from(or_zero(&old.uid, header.uid()).context(bad)?).context(|| "uid")?;
        let gid = u32::try_from(or_zero(&old.gid, header.gid()).context(bad)?).context(|| "gid")?;
        let seconds = or_zero(&old.mtime, header.mtime()).context(bad)?;
        let mut mtime = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
        let mut xattrs = Vec::new();
        for extension in entry.pax_extensions().context(bad)?.into_iter().flatten().flatten() {
            let key = extension.key_bytes();
            if key == b"mtime" {
                mtime = extension.value().ok().and_then(timespec).unwrap_or(mtime);
            } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.".as_slice()).filter(|name| wanted(name)) {
                xattrs.push((OsString::from_vec(name.to_vec()), extension.value_bytes().to_vec()));
            }
        }
        Ok(Attributes {
            mode: Mode::from_raw_mode(mode),
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            times: Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: mtime },
            xattrs,
        })
    }

    /// Owner first: a change of owner clears capabilities and the set-id bits.
    fn apply(&self, file: BorrowedFd<'_>) -> Result<()> {
        rustix::fs::fchown(file, Some(self.uid), Some(self.gid)).context(|| "owner")?;
        for (name, value) in &self.xattrs {
            match rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()) {
                Err(Errno::NOTSUP) if name.as_bytes().starts_with(b"user.") => {}
                other => other.context(|| format!("attribute {}", name.display()))?,
            }
        }
        rustix::fs::fchmod(file, self.mode).context(|| "mode")?;
        rustix::fs::futimens(file, &self.times).context(|| "time")
    }

    /// For what cannot be opened.
    fn own(&self, dir: &OwnedFd, name: &OsStr) -> Result<()> {
        rustix::fs::chownat(dir, name, Some(self.uid), Some(self.gid), AtFlags::SYMLINK_NOFOLLOW)
            .context(|| "owner")?;
        rustix::fs::utimensat(dir, name, &self.times, AtFlags::SYMLINK_NOFOLLOW).context(|| "time")
    }
}

/// Some write nothing where they mean zero.
fn or_zero<T: Default>(field: &[u8], number: io::Result<T>) -> io::Result<T> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(T::default()) } else { number }
}

/// Attributes with a meaning for the container. Those of overlayfs would let an image steer the mount, and labels are
/// given by the mount.
fn wanted(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Seconds with a fraction, as pax has them.
fn timespec(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanoseconds.parse().ok()? })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    /// Names as they are, which `tar::Builder` would refuse.
    fn entry(tar: &mut Vec<u8>, kind: EntryType, path: &str, link: &str, data: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o4751);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }

    fn file(tar: &mut Vec<u8>, path: &str) {
        entry(tar, EntryType::Regular, path, "", b"data");
    }

    struct Case {
        dir: tempfile::TempDir,
        root: PathBuf,
    }

    fn case() -> Case {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("in/root");
        fs::create_dir_all(&root).unwrap();
        Case { root, dir }
    }

    impl Case {
        fn unpack(&self, mut tar: Vec<u8>) -> Result<String> {
            tar.extend_from_slice(&[0; 1024]);
            let result = unpack(tar.as_slice(), &self.root);
            if let Ok(id) = &result {
                assert_eq!(*id, files::digest(&tar));
            }
            let outside = files::measure(self.dir.path()).inodes - files::measure(&self.root).inodes;
            assert_eq!(outside, 2, "something was written outside of the root");
            result
        }

        fn stat(&self, path: &str) -> fs::Metadata {
            fs::symlink_metadata(self.root.join(path)).unwrap()
        }
    }

    #[test]
    fn everything_that_a_tree_has() {
        let case = case();
        let mut tar = Vec::new();
        entry(&mut tar, EntryType::Directory, "d/", "", b"");
        file(&mut tar, "d/f");
        entry(&mut tar, EntryType::Link, "hard", "/d/f", b"");
        entry(&mut tar, EntryType::Symlink, "soft", "/nowhere", b"");
        entry(&mut tar, EntryType::Char, "null", "", b"");
        entry(&mut tar, EntryType::Fifo, "fifo", "", b"");
        file(&mut tar, "made/on/the/way");
        case.unpack(tar).unwrap();
        let d = case.stat("d");
        assert_eq!((d.mode() & 0o7777, d.uid(), d.gid(), d.mtime()), (0o4751, 1000, 1001, 1_000_000_000));
        let f = case.stat("d/f");
        assert_eq!((f.mode() & 0o7777, f.uid(), f.mtime(), f.nlink()), (0o4751, 1000, 1_000_000_000, 2));
        assert_eq!(case.stat("hard").ino(), f.ino());
        assert_eq!(fs::read_link(case.root.join("soft")).unwrap(), Path::new("/nowhere"));
        let null = case.stat("null");
        assert!(null.file_type().is_char_device() && null.rdev() == rustix::fs::makedev(1, 3));
        assert!(case.stat("fifo").file_type().is_fifo());
        assert_eq!(case.stat("made/on").mode() & 0o7777, 0o755);
    }

    #[test]
    fn compressed_layers() {
        let mut tar = Vec::new();
        file(&mut tar, "f");
        tar.resize(4096, 0);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        for packed in [gzip.finish().unwrap(), zstd::encode_all(tar.as_slice(), 0).unwrap()] {
            let case = case();
            assert_eq!(unpack(packed.as_slice(), &case.root).unwrap(), files::digest(&tar));
            assert_eq!(fs::read(case.root.join("f")).unwrap(), b"data");
            assert!(unpack(&packed[..packed.len() - 20], &case.root).is_err(), "half a layer");
        }
    }

    #[test]
    fn whiteouts() {
        let case = case();
        let mut tar = Vec::new();
        file(&mut tar, "d/.wh.gone");
        file(&mut tar, "o/kept");
        file(&mut tar, "o/.wh..wh..opq");
        file(&mut tar, ".wh.anew");
        entry(&mut tar, EntryType::Directory, "anew/", "", b"");
        file(&mut tar, "file");
        file(&mut tar, ".wh.file");
        file(&mut tar, ".wh..wh.plnk");
        case.unpack(tar).unwrap();
        let gone = case.stat("d/gone");
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        for dir in ["o", "anew"] {
            let mut value = [0; 8];
            let path = case.root.join(dir);
            assert_eq!(rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value).unwrap(), 1, "{dir}");
        }
        assert!(case.stat("file").is_file() && case.stat("o/kept").is_file());
        assert_eq!(fs::read_dir(&case.root).unwrap().count(), 4);
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for path in ["../x", "a/../../x", "/../x", "..", ".wh..", ".wh...", ".wh."] {
            let case = case();
            let mut tar = Vec::new();
            file(&mut tar, path);
            let text = case.unpack(tar).unwrap_err().to_string();
            assert!(text.contains("Refused"), "{path}: {text}");
        }
        let case = case();
        let mut tar = Vec::new();
        entry(&mut tar, EntryType::Link, "x", "../../../etc/passwd", b"");
        assert!(case.unpack(tar).is_err());
    }

    #[test]
    fn links_that_lead_out_are_confined() {
        let case = case();
        let outside = case.dir.path().to_str().unwrap().to_owned();
        let mut tar = Vec::new();
        entry(&mut tar, EntryType::Symlink, "abs", &outside, b"");
        file(&mut tar, "abs/one");
        entry(&mut tar, EntryType::Symlink, "up", "../../..", b"");
        file(&mut tar, "up/two");
        // The last component is replaced, not followed.
        entry(&mut tar, EntryType::Symlink, "file", "../../three", b"");
        file(&mut tar, "file");
        entry(&mut tar, EntryType::Symlink, "dir", "..", b"");
        entry(&mut tar, EntryType::Directory, "dir", "", b"");
        file(&mut tar, "/abs/../four");
        case.unpack(tar).unwrap();
        assert!(case.stat("two").is_file() && case.stat("file").is_file() && case.stat("dir").is_dir());
        assert!(case.root.join(outside.trim_start_matches('/')).join("one").is_file());
        assert!(case.stat("four").is_file());
        let mut tar = Vec::new();
        entry(&mut tar, EntryType::Symlink, "loop", "loop", b"");
        file(&mut tar, "loop/x");
        assert!(case.unpack(tar).is_err());
        let mut tar = Vec::new();
        entry(&mut tar, EntryType::Symlink, "secret", "/etc", b"");
        entry(&mut tar, EntryType::Link, "stolen", "secret/passwd", b"");
        assert!(case.unpack(tar).is_err());
    }

    #[test]
    fn extended_attributes() {
        let case = case();
        let mut builder = tar::Builder::new(Vec::new());
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let attributes: [(&str, &[u8]); 4] = [
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("mtime", b"1234567890.25"),
        ];
        builder.append_pax_extensions(attributes).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_mode(0o755);
        header.set_uid(7);
        header.set_gid(7);
        builder.append_data(&mut header, "ping", io::empty()).unwrap();
        unpack(builder.into_inner().unwrap().as_slice(), &case.root).unwrap();
        let mut names = Vec::with_capacity(1024);
        rustix::fs::llistxattr(case.root.join("ping"), rustix::buffer::spare_capacity(&mut names)).unwrap();
        assert_eq!(names, b"security.capability\0");
        assert_eq!((case.stat("ping").mtime(), case.stat("ping").mtime_nsec()), (1_234_567_890, 250_000_000));
    }

    #[test]
    fn fields_without_a_number_are_zero() {
        let case = case();
        let mut tar = Vec::new();
        file(&mut tar, "f");
        tar[108..124].fill(0);
        tar[136..148].fill(b' ');
        let mut header = tar::Header::from_byte_slice(&tar[..512]).clone();
        header.set_cksum();
        tar[..512].copy_from_slice(header.as_bytes());
        case.unpack(tar).unwrap();
        let data = case.stat("f");
        assert_eq!((data.uid(), data.gid(), data.mtime(), data.mode() & 0o7777), (0, 0, 0, 0o4751));
    }

    #[test]
    fn a_later_entry_replaces_an_earlier() {
        let case = case();
        let mut tar = Vec::new();
        file(&mut tar, "d/e/f");
        file(&mut tar, "d");
        file(&mut tar, "x");
        entry(&mut tar, EntryType::Link, "x", "x", b"");
        case.unpack(tar).unwrap();
        assert!(case.stat("d").is_file() && case.stat("x").is_file());
    }
}
