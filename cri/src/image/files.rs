//! Files that are whole or not there, and the size of trees.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Context, Result};

/// What a tree takes of its file system.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Size {
    pub bytes: u64,
    pub inodes: u64,
}

/// Makes a directory, and those above it.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context(|| format!("Failed to make {}", path.display()))
}

/// Writes a file that is whole under its name or not there, also after a loss of power; `temp` is beside it or on the
/// same file system.
pub fn write(temp: &Path, path: &Path, data: &[u8]) -> Result<()> {
    let written = (|| {
        let mut file = File::create(temp)?;
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(temp, path)
    })();
    written.context(|| format!("Failed to write {}", path.display()))?;
    sync_parent(path)
}

/// As [`write`] for who comes after a kill; after a loss of power it may be anything. For what is no longer so then.
pub fn write_for_now(temp: &Path, path: &Path, data: &[u8]) -> Result<()> {
    fs::write(temp, data)
        .and_then(|()| fs::rename(temp, path))
        .context(|| format!("Failed to write {}", path.display()))
}

/// Makes the names in a directory last.
pub fn sync_parent(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).context(|| format!("Failed to sync {}", dir.display()))
}

/// Removes a file that may be missing.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("Failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a tree that may be missing.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("Failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The names in a directory.
pub fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).context(|| format!("Failed to list {}", dir.display()))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Measures a tree; a file of many names counts once, and what goes away meanwhile not at all.
pub fn measure(root: &Path) -> Size {
    let mut size = Size::default();
    let mut seen = HashSet::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(data) = entry.metadata() else { continue };
            if data.nlink() > 1 && !data.is_dir() && !seen.insert((data.dev(), data.ino())) {
                continue;
            }
            size.bytes += data.blocks() * 512;
            size.inodes += 1;
            if data.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    size
}

/// `sha256:` and the digest.
pub fn digest(data: &[u8]) -> String {
    finish(Sha256::new_with_prefix(data))
}

/// What a hash comes to.
pub fn finish(hash: Sha256) -> String {
    use std::fmt::Write;
    let mut text = String::from("sha256:");
    for byte in hash.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The part after `sha256:`, when it is a digest and nothing else: digests become file names.
pub fn hex(digest: &str) -> Result<&str> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
        .ok_or_else(|| crate::error::Error::failed(format!("Bad digest {digest:?}: not sha256 in lower case")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_two_names_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/a"), vec![1; 10_000]).unwrap();
        fs::hard_link(dir.path().join("d/a"), dir.path().join("b")).unwrap();
        let size = measure(dir.path());
        assert_eq!(size.inodes, 2);
        assert!((10_000..30_000).contains(&size.bytes), "{size:?}");
    }

    #[test]
    fn only_digests_become_file_names() {
        let digest = digest(b"");
        assert_eq!(hex(&digest).unwrap(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        for bad in ["sha256:../../etc", "sha512:00", "", "sha256:E3B0"] {
            assert!(hex(bad).is_err(), "{bad}");
        }
    }
}
