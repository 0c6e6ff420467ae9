//! Cgroups: where they are, what they have used, and removing them. The runtimes make those of containers.

mod ahead;
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
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Error, Result};

pub use ahead::{Ahead, ahead};
pub use figures::Figures;
pub use processes::{Processes, soft_open_files};
pub use rate::Rate;

const ROOT: &str = "/sys/fs/cgroup";

/// How long killed processes may take to leave a cgroup.
const PATIENCE: Duration = Duration::from_secs(5);

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
pub fn huge_sizes() -> &'static [String] {
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

fn is_cgroup(dir: &Path) -> bool {
    let kinds = [nix::sys::statfs::CGROUP_SUPER_MAGIC, nix::sys::statfs::CGROUP2_SUPER_MAGIC];
    nix::sys::statfs::statfs(dir).is_ok_and(|fs| kinds.contains(&fs.filesystem_type()))
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
