//! Cgroups as far as they are made and removed here: the runtimes make those of containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Error, Result};

const ROOT: &str = "/sys/fs/cgroup";

/// How long killed processes may take to leave a cgroup.
const PATIENCE: Duration = Duration::from_secs(5);

/// The host has cgroup v2 and nothing else.
pub fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Removes a cgroup and those in it from every hierarchy; what still runs in them is killed. One that is not there is
/// fine. Waits for disappearing processes, so not for a thread that others need.
pub fn remove(cgroup: &str) -> Result<()> {
    let inside = cgroup.trim_start_matches('/');
    if inside.is_empty() || inside.split('/').any(|part| part == "..") {
        return Err(Error::failed(format!("{cgroup:?} is no cgroup that can be removed")));
    }
    let until = Instant::now() + PATIENCE;
    hierarchies(Path::new(ROOT)).iter().try_for_each(|hierarchy| remove_tree(&hierarchy.join(inside), until))
}

/// Where one hierarchy each is mounted, or was taken to be: runtimes make directories in the place of one that is not.
fn hierarchies(root: &Path) -> Vec<PathBuf> {
    if unified() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()).collect()
}

/// From the bottom up. Only directories can be removed; the files in them go by themselves.
fn remove_tree(dir: &Path, until: Instant) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path(), until)?;
    }
    loop {
        let Err(error) = fs::remove_dir(dir) else { return Ok(()) };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => return Ok(()),
            // Files that can be in the way are ordinary ones, and this is no cgroup.
            Some(Errno::ENOTEMPTY) if !is_cgroup(dir) => return crate::state::remove_dir(dir),
            // Somebody is still in it, or was a moment ago.
            Some(Errno::EBUSY | Errno::ENOTEMPTY) if Instant::now() < until => end(dir),
            _ => return Err(Error::failed(format!("Failed to remove cgroup {}: {error}", dir.display()))),
        }
    }
}

fn is_cgroup(dir: &Path) -> bool {
    use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
    statfs(dir).is_ok_and(|fs| [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&fs.filesystem_type()))
}

/// Kills all processes of a cgroup and gives them a moment.
fn end(dir: &Path) {
    // Since Linux 5.14, in one go; version 2 only.
    if fs::write(dir.join("cgroup.kill"), "1").is_err() {
        let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        // 0 is a process that cannot be seen from here, and would be ourselves.
        for pid in pids.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    std::thread::sleep(Duration::from_millis(5));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_a_cgroup_goes_with_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("pod/container");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("cgroup.procs"), "1").unwrap();
        remove_tree(&dir.path().join("pod"), Instant::now()).unwrap();
        assert!(!dir.path().join("pod").exists());
    }

    #[test]
    fn everything_is_no_cgroup() {
        for path in ["", "/", "a/../b"] {
            assert!(remove(path).is_err(), "{path}");
        }
    }
}
