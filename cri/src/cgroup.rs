//! Cgroups: where they are, what they have used, and removing them. The runtimes make those of containers.

pub mod figures;
mod parse;
mod processes;
mod rate;
mod separate;
mod unified;

use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;

use crate::error::{Error, Result};

pub use figures::Figures;
pub use processes::{Processes, soft_open_files};
pub use rate::Rate;

const ROOT: &str = "/sys/fs/cgroup";

/// The host has cgroup v2 and nothing else.
pub fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// One cgroup: a path from the root of the hierarchy, or of each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup(String);

impl Display for Cgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

impl Cgroup {
    /// That of a container: `parent` is in the driver's notation.
    pub fn of_container(parent: &str, id: &str, systemd: bool) -> Cgroup {
        let Cgroup(parent) = Cgroup::of_parent(parent, systemd);
        let name = if systemd { format!("conward-{id}.scope") } else { id.to_owned() };
        Cgroup(if parent.is_empty() { name } else { format!("{parent}/{name}") })
    }

    /// That above containers: a path, or the name of a slice.
    pub fn of_parent(parent: &str, systemd: bool) -> Cgroup {
        let parent = parent.trim_matches('/');
        Cgroup(if systemd { slice(parent) } else { parent.to_owned() })
    }

    /// What it has used; nothing, if it is gone.
    pub fn figures(&self) -> Option<Figures> {
        let root = Path::new(ROOT);
        if unified() {
            let dir = root.join(&self.0);
            return unified::read(&|_, name| fs::read_to_string(dir.join(name)).ok(), huge_sizes());
        }
        let read =
            |controller: &str, name: &str| fs::read_to_string(root.join(controller).join(&self.0).join(name)).ok();
        separate::read(&read, huge_sizes())
    }

    /// How many processes are in it and those below it.
    pub fn count(&self) -> u64 {
        processes::pids(&self.dir()).len() as u64
    }

    /// What its processes have open; looks at each of them.
    pub fn processes(&self) -> Processes {
        Processes::of(&processes::pids(&self.dir()))
    }

    /// The directory with the list of its processes.
    fn dir(&self) -> PathBuf {
        let hierarchy = if unified() { "" } else { "pids" };
        Path::new(ROOT).join(hierarchy).join(&self.0)
    }
}

/// The path of a slice: `a-b.slice` is in `a.slice` (systemd.slice(5)). What is no slice's name is a path already.
fn slice(name: &str) -> String {
    let Some(stem) = name.strip_suffix(".slice").filter(|stem| !stem.contains('/') && *stem != "-") else {
        return if name == "-.slice" { String::new() } else { name.to_owned() };
    };
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    let steps: Vec<String> = ends.map(|end| format!("{}.slice", &stem[..end])).collect();
    steps.join("/")
}

/// The sizes of huge pages that this kernel has, as cgroups write them. They do not change.
fn huge_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| huge_size(name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?)).collect()
    })
}

fn huge_size(kib: u64) -> Option<String> {
    match kib {
        0 => None,
        kib if kib % (1 << 20) == 0 => Some(format!("{}GB", kib >> 20)),
        kib if kib % (1 << 10) == 0 => Some(format!("{}MB", kib >> 10)),
        kib => Some(format!("{kib}KB")),
    }
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
    let dirs = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink());
    dirs.filter(|path| is_hierarchy(path)).collect()
}

/// A directory on which no hierarchy is mounted holds plain files, if anything: they are not ours to remove.
fn is_hierarchy(path: &Path) -> bool {
    let kinds = [nix::sys::statfs::CGROUP_SUPER_MAGIC, nix::sys::statfs::CGROUP2_SUPER_MAGIC];
    nix::sys::statfs::statfs(path).is_ok_and(|fs| kinds.contains(&fs.filesystem_type()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_drivers_have_their_paths() {
        let path = |parent, systemd| Cgroup::of_container(parent, "id", systemd).0;
        assert_eq!(path("/kubepods/podx", false), "kubepods/podx/id");
        assert_eq!(
            path("kubepods-burstable-podx.slice", true),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/conward-id.scope"
        );
        assert_eq!(path("system.slice", true), "system.slice/conward-id.scope");
        assert_eq!(path("/a.slice/a-b.slice", true), "a.slice/a-b.slice/conward-id.scope");
        assert_eq!(path("", false), "id");
    }

    #[test]
    fn sizes_of_huge_pages() {
        assert_eq!([64, 2048, 1 << 20].map(huge_size), [Some("64KB".into()), Some("2MB".into()), Some("1GB".into())]);
    }
}
