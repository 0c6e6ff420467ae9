//! Layers made entry by entry, and the trees they become.

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
