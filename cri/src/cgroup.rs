//! Cgroups as far as they are made and removed here: the runtimes make those of containers.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::error::{Error, Result};

const ROOT: &str = "/sys/fs/cgroup";

/// The host has cgroup v2 and nothing else.
pub fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Removes a cgroup that has no processes, and those in it, from every hierarchy.
pub fn remove(parent: &str) -> Result<()> {
    for hierarchy in hierarchies(Path::new(ROOT)) {
        remove_tree(&hierarchy.join(parent.trim_start_matches('/')))?;
    }
    Ok(())
}

fn hierarchies(root: &Path) -> Vec<PathBuf> {
    if unified() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| !path.is_symlink() && is_cgroup(path)).collect()
}

/// A plain directory may have the name of a hierarchy that is not mounted: crun leaves files in such.
fn is_cgroup(path: &Path) -> bool {
    use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
    statfs(path).is_ok_and(|fs| [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&fs.filesystem_type()))
}

/// Only directories can be removed; the files in them go by themselves.
fn remove_tree(dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path())?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.raw_os_error() != Some(Errno::ENOENT as i32) => {
            Err(Error::failed(format!("Failed to remove cgroup {}: {error}", dir.display())))
        }
        _ => Ok(()),
    }
}
