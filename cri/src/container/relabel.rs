//! SELinux: giving what a request mounts the label of the container's files.
//!
//! The walk goes from descriptor to descriptor: another container may have the same volume and put a link to the host
//! in the place of a directory meanwhile.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags, getxattr, openat, setxattr};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

const NAME: &str = "security.selinux";

/// Directories whose new label would be the end of the host.
const SYSTEM: [&str; 16] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp",
    "/usr", "/var",
];

/// Labels a tree. One whose top has the label already is left alone, so that a great volume costs its time once.
pub fn relabel(path: &Path, label: &str) -> Result<()> {
    if SYSTEM.iter().any(|system| path == fs::canonicalize(system).as_deref().unwrap_or(Path::new(system))) {
        return Err(Error::invalid(format!(
            "{} is the system's and cannot be given another SELinux label",
            path.display()
        )));
    }
    let top = open(CWD, path).context(|| format!("Failed to open {}", path.display()))?;
    let mut value = vec![0; 256];
    let length = getxattr(by_number(&top), NAME, value.as_mut_slice()).unwrap_or(0);
    if value[..length].strip_suffix(b"\0").unwrap_or(&value[..length]) == label.as_bytes() {
        return Ok(());
    }
    match walk(&top, label) {
        // A file system without labels has one for all of its files, by its mount.
        Err(Errno::NOTSUP) => Ok(()),
        done => done.context(|| format!("Failed to give {} the SELinux label {label}", path.display())),
    }
}

/// The top comes last, so that what broke off is done again.
fn walk(file: &OwnedFd, label: &str) -> std::result::Result<(), Errno> {
    if FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) == FileType::Directory {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let list = Dir::new(openat(file, c".", flags, Mode::empty())?)?;
        for entry in list {
            let entry = entry?;
            if [c".", c".."].contains(&entry.file_name()) {
                continue;
            }
            match open(file, entry.file_name()) {
                Ok(inner) => walk(&inner, label)?,
                // It has gone meanwhile.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let value = [label.as_bytes(), b"\0"].concat();
    setxattr(by_number(file), NAME, &value, XattrFlags::empty())
}

fn open(at: impl AsFd, path: impl rustix::path::Arg) -> std::result::Result<OwnedFd, Errno> {
    openat(at, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// A descriptor that only stands for a file has no attributes of its own.
fn by_number(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(path: &Path) -> Option<String> {
        let mut value = vec![0; 256];
        let length = rustix::fs::lgetxattr(path, NAME, value.as_mut_slice()).ok()?;
        Some(String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_owned())
    }

    #[test]
    fn trees_are_labelled_and_links_are_not_followed() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "").unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        relabel(&tree, "u:r:t:s0").unwrap();
        for name in ["", "a", "a/b/file", "link"] {
            assert_eq!(label(&tree.join(name)).as_deref(), Some("u:r:t:s0"), "{name}");
        }
        assert_eq!((label(&outside), label(&outside.join("file"))), (None, None));
        // Done once, it is not done again.
        fs::write(tree.join("new"), "").unwrap();
        relabel(&tree, "u:r:t:s0").unwrap();
        assert_eq!(label(&tree.join("new")), None);
        relabel(&tree, "u:r:t:s1").unwrap();
        assert_eq!(label(&tree.join("new")).as_deref(), Some("u:r:t:s1"));
    }

    #[test]
    fn the_system_keeps_its_labels() {
        for path in ["/", "/etc", "/usr"] {
            assert!(relabel(Path::new(path), "u:r:t:s0").is_err(), "{path}");
        }
    }
}
