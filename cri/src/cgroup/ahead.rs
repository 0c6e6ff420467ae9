//! Waiting for the kernel beforehand.
//!
//! To move a process from one cgroup to another, the kernel first has every CPU take notice (`cgroup_threadgroup_rwsem`,
//! an RCU grace period): some 8 ms in which nothing happens, of the 20 that a runtime takes to create a container and of
//! the 12 of an exec. What was waited for holds for a while: whoever moves a process soon after another does not wait. So
//! while a runtime gets ready, this program moves itself to where it is, which changes nothing else.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{ROOT, unified};

/// A process is about to be moved, as long as this is there.
#[derive(Debug)]
pub struct Ahead(());

/// How many there are.
static WANTED: AtomicUsize = AtomicUsize::new(0);

/// When the youngest of them is out of date, in milliseconds.
static UNTIL: AtomicU64 = AtomicU64::new(0);

/// Somebody is at it, for all.
static BUSY: AtomicBool = AtomicBool::new(false);

/// What the kernel waited for holds for one grace period at least, and there is none this short.
const PAUSE: Duration = Duration::from_millis(4);

/// A runtime that has not moved its process by then is not waited for.
const LIFE: u64 = 300;

/// Begins to wait, in place of a runtime that is to be started now.
pub fn ahead() -> Ahead {
    WANTED.fetch_add(1, Ordering::SeqCst);
    UNTIL.fetch_max(now() + LIFE, Ordering::SeqCst);
    if !BUSY.swap(true, Ordering::SeqCst) {
        tokio::task::spawn_blocking(work);
    }
    Ahead(())
}

impl Drop for Ahead {
    fn drop(&mut self) {
        WANTED.fetch_sub(1, Ordering::SeqCst);
    }
}

fn work() {
    loop {
        while wanted() {
            touch(own(ROOT.as_ref(), &fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), unified()));
            std::thread::sleep(PAUSE);
        }
        BUSY.store(false, Ordering::SeqCst);
        // Whoever came just now has seen that somebody was at it.
        if !wanted() || BUSY.swap(true, Ordering::SeqCst) {
            return;
        }
    }
}

fn wanted() -> bool {
    WANTED.load(Ordering::SeqCst) > 0 && now() < UNTIL.load(Ordering::SeqCst)
}

fn now() -> u64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGIN.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Moves this program to its own cgroup. Where that is not allowed, runtimes wait themselves.
fn touch(procs: Option<PathBuf>) {
    let Some(mut file) = procs.and_then(|path| File::options().write(true).open(path).ok()) else { return };
    let _ = file.write(b"0");
}

/// The list of processes of one cgroup that a process is in, by the text of its `/proc/PID/cgroup` (cgroups(7)): of the
/// only hierarchy, or of the first one with a controller.
fn own(root: &Path, text: &str, unified: bool) -> Option<PathBuf> {
    let in_hierarchy = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        // Somebody else's namespace: it cannot be named here.
        let inside = path.strip_prefix('/').filter(|inside| !inside.split('/').any(|part| part == ".."))?;
        match unified {
            true => (number == "0").then(|| root.join(inside)),
            false => {
                let named = !controllers.is_empty() && !controllers.contains('=');
                named.then(|| root.join(controllers).join(inside))
            }
        }
    };
    text.lines().find_map(in_hierarchy).map(|dir| dir.join("cgroup.procs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cgroups_are_found() {
        let root = Path::new("/c");
        let both = "9:name=systemd:/s\n8:cpu,cpuacct:/a/b\n7:pids:/\n0::/u/v\n";
        assert_eq!(own(root, both, false), Some(PathBuf::from("/c/cpu,cpuacct/a/b/cgroup.procs")));
        assert_eq!(own(root, both, true), Some(PathBuf::from("/c/u/v/cgroup.procs")));
        assert_eq!(own(root, "0::/\n", true), Some(PathBuf::from("/c/cgroup.procs")));
        for text in ["", "0::/\n", "8:cpu:/../x\n", "8:cpu\n"] {
            assert_eq!(own(root, text, false), None, "{text:?}");
        }
    }

    #[tokio::test]
    async fn somebody_is_at_it_as_long_as_it_is_wanted() {
        let (one, two) = (ahead(), ahead());
        assert!(wanted() && BUSY.load(Ordering::SeqCst));
        drop(one);
        assert!(wanted());
        drop(two);
        let end = Instant::now() + Duration::from_secs(10);
        while BUSY.load(Ordering::SeqCst) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(!wanted() && !BUSY.load(Ordering::SeqCst));
    }
}
