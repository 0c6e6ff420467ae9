//! What the kernel says about processes, read from `/proc`.

use std::{
    collections::HashMap,
    fs,
    time::{Duration, Instant},
};

use nix::{
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    time::clock_getcpuclockid,
    unistd::Pid,
};

use super::container::pause;

/// Children of every process, at one moment.
#[derive(Debug)]
pub struct Family(HashMap<i32, Vec<i32>>);

impl Family {
    pub fn now() -> Family {
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        let names = fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            if let Some(parent) = stat_field(pid, PARENT) {
                children.entry(parent).or_default().push(pid);
            }
        }
        Family(children)
    }

    /// `pid` and everything below it, except for what is below and at `but`.
    pub fn tree(&self, pid: i32, but: i32) -> Vec<i32> {
        let mut found = vec![pid];
        let mut next = 0;
        while let Some(parent) = found.get(next) {
            let children = self.0.get(parent).into_iter().flatten();
            found.extend(children.filter(|child| **child != but).copied().collect::<Vec<_>>());
            next += 1;
        }
        found
    }
}

/// Kills every descendant of this process and waits for them, `limit` at most.
pub fn end_descendants(limit: Duration) {
    let own = Pid::this().as_raw();
    let deadline = Instant::now() + limit;
    loop {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
        let left = Family::now().tree(own, 0);
        if left.len() == 1 || Instant::now() > deadline {
            return;
        }
        for pid in left.into_iter().filter(|pid| *pid != own) {
            // It may have ended since.
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        pause(5);
    }
}

/// CPU time of all threads, ended ones included, in nanoseconds; also of a process that nobody has waited for yet.
pub fn cpu(pid: i32) -> Option<u64> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid)).ok()?;
    u64::try_from(Duration::from(clock.now().ok()?).as_nanos()).ok()
}

/// How often the threads of a process were put to sleep or interrupted.
pub fn switches(pid: i32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .map(|task| fs::read_to_string(task.path().join("status")).unwrap_or_default())
        .map(|status| keyed(&status, "voluntary_ctxt_switches:") + keyed(&status, "nonvoluntary_ctxt_switches:"))
        .sum()
}

/// A number of `/proc/PID/status`: `VmHWM` in KiB, `Threads`; 0 if it is not there (any more).
pub fn status(pid: i32, key: &str) -> u64 {
    keyed(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(), key)
}

/// Memory that would be free without this process, KiB.
pub fn private_memory(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    keyed(&rollup, "Private_Clean:") + keyed(&rollup, "Private_Dirty:")
}

/// Memory that only this process has and that is nowhere else, KiB: without what it has read of its own program, of
/// which a lonely process is the only reader.
pub fn dirty_memory(pid: i32) -> u64 {
    keyed(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default(), "Private_Dirty:")
}

pub fn descriptors(pid: i32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |list| list.count() as u64)
}

fn keyed(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Fields of `/proc/PID/stat`, counted behind the name in brackets.
const PARENT: usize = 1;

fn stat_field(pid: i32, field: usize) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(field)?.parse().ok()
}
