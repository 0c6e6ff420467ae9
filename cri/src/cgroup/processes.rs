//! The processes of a cgroup, and what they have open.

use std::fs;
use std::path::Path;

/// What the processes of a cgroup have open. One that ends meanwhile has nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    pub count: u64,
    pub files: u64,
    pub sockets: u64,
}

impl Processes {
    pub fn of(pids: &[u32]) -> Processes {
        let mut all = Processes { count: pids.len() as u64, ..Processes::default() };
        for pid in pids {
            let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for file in open.flatten() {
                all.files += 1;
                let target = fs::read_link(file.path());
                all.sockets += u64::from(target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:")));
            }
        }
        all
    }
}

/// The processes of a cgroup and of those below it, by their directory.
pub fn pids(dir: &Path) -> Vec<u32> {
    let mut all = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        // A cgroup of threads does not tell; its processes are in the one above.
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        all.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.extend(below.map(|entry| entry.path()));
    }
    all
}

/// How many files a process may have open; nothing for as many as it likes.
pub fn soft_open_files(pid: i32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_files_and_sockets_are_counted() {
        let own = [std::process::id()];
        let before = Processes::of(&own);
        let pairs: Vec<_> = (0..50).map(|_| std::os::unix::net::UnixStream::pair().unwrap()).collect();
        let after = Processes::of(&own);
        // Other tests open and close a few meanwhile.
        assert!(after.files >= before.files + 80 && after.sockets >= before.sockets + 80, "{before:?} {after:?}");
        drop(pairs);
        assert_eq!(Processes::of(&[u32::MAX]), Processes { count: 1, files: 0, sockets: 0 });
    }

    #[test]
    fn a_process_has_a_limit_of_files() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft_open_files(pid).unwrap_or(u64::MAX), soft);
    }

    #[test]
    fn cgroups_below_count() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("cgroup.procs"), "1\n2\n").unwrap();
        fs::write(dir.path().join("a/b/cgroup.procs"), "3\n").unwrap();
        let mut found = pids(dir.path());
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3]);
        assert!(pids(&dir.path().join("none")).is_empty());
    }
}
