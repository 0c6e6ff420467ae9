//! Cgroups as the kernel has them, and those that a kubelet makes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::suite::{Fail, Outcome};

const ROOT: &str = "/sys/fs/cgroup";

/// The parent of all pods for which nobody has made a cgroup. It is the server's, and stays.
const OWN: &str = "/conward";

/// Where a cgroup is among the files.
pub fn dir(cgroup: &str) -> PathBuf {
    Path::new(ROOT).join(cgroup.trim_start_matches('/'))
}

/// All cgroups but those that stay.
pub fn all() -> Outcome<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    below(Path::new(ROOT), &mut found)?;
    found.remove(OWN);
    Ok(found)
}

fn below(dir: &Path, found: &mut BTreeSet<String>) -> Outcome {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.insert(entry.path().to_string_lossy().trim_start_matches(ROOT).to_owned());
            below(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// The cgroup of a process.
pub fn of(pid: i32) -> Outcome<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|error| format!("process {pid}: {error}"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.map(str::to_owned).ok_or_else(|| Fail::Wrong(format!("process {pid} is in no cgroup of version 2: {text}")))
}

/// What a file of a cgroup says.
pub fn read(cgroup: &str, file: &str) -> Outcome<String> {
    let path = dir(cgroup).join(file);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// The cgroup of a pod, as a kubelet makes it, below others.
#[derive(Debug)]
pub struct Parent {
    pub path: String,
}

impl Parent {
    /// Makes all of `/kubepods/burstable/NAME`.
    pub fn new(name: &str) -> Outcome<Parent> {
        let parent = Parent { path: format!("/kubepods/burstable/{name}") };
        for own in parent.steps() {
            fs::create_dir_all(&own).map_err(|error| format!("{}: {error}", own.display()))?;
            // What a cgroup has for those below it; there is nobody in it.
            for controller in fs::read_to_string(own.join("cgroup.controllers"))?.split_whitespace() {
                fs::write(own.join("cgroup.subtree_control"), format!("+{controller}"))?;
            }
        }
        Ok(parent)
    }

    /// Itself and those above it, from the top down.
    fn steps(&self) -> Vec<PathBuf> {
        let ends = self.path.match_indices('/').skip(1).map(|(at, _)| at).chain([self.path.len()]);
        ends.map(|end| dir(&self.path[..end])).collect()
    }

    pub fn write(&self, file: &str, text: &str) -> Outcome {
        Ok(fs::write(dir(&self.path).join(file), text)?)
    }

    /// Removes them as the kubelet does, which kills nobody: nothing may be in there.
    pub fn remove(self) -> Outcome {
        for own in self.steps().into_iter().rev() {
            fs::remove_dir(&own).map_err(|error| format!("{}: {error}", own.display()))?;
        }
        Ok(())
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // After a case that failed.
        let _ = conward_cri::cgroup::remove("/kubepods");
    }
}
