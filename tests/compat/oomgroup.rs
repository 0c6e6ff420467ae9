//! A memory cgroup of a case's own, where the machine lets us make one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Fail, Outcome};

#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// Makes a group with a limit in bytes, without swap; on cgroup v1 or v2.
    pub fn new(limit: u64) -> Outcome<Group> {
        let v1 = Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes");
        let (root, file) = match v1.exists() {
            true => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            false => ("/sys/fs/cgroup", "memory.max"),
        };
        let dir = Path::new(root).join(format!("conward-test-{}", std::process::id()));
        let refused = |error| Fail::Skip(format!("cannot make a memory cgroup: {error}"));
        fs::create_dir(&dir).map_err(refused)?;
        let group = Group(dir);
        fs::write(group.0.join(file), limit.to_string()).map_err(refused)?;
        // Without swap accounting there is nothing to forbid.
        for (file, value) in [("memory.memsw.limit_in_bytes", limit.to_string()), ("memory.swap.max", "0".to_owned())] {
            let _ = fs::write(group.0.join(file), value);
        }
        Ok(group)
    }

    /// Where a pid is written to join.
    pub fn procs(&self) -> String {
        self.0.join("cgroup.procs").to_string_lossy().into_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group with processes stays; the runner ends them later.
        crate::support::procs::end_descendants();
        let _ = fs::remove_dir(&self.0);
    }
}
