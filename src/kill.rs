//! Ending a process and everything that came from it.

use std::fs;
use std::os::fd::AsFd;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid, getpgrp};

use crate::oom;
use crate::session::Process;
use crate::sys;

/// Kills the process group of `process`, its descendants in whatever session they are, and, if `whole_cgroup` is
/// wanted and there is one of its own, everything in its cgroup (cgroup v2).
pub fn tree(process: &Process, whole_cgroup: bool) {
    let descendants = descendants(process.pid);
    // The process is not reaped yet, so its pid and its group are still its own.
    let group = getpgid(Some(Pid::from_raw(process.pid))).ok();
    if let Some(group) = group.filter(|group| group.as_raw() > 1 && *group != getpgrp()) {
        let _ = killpg(group, Signal::SIGKILL);
    }
    if let Some(pidfd) = &process.pidfd {
        let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
    }
    for (pid, parent) in descendants {
        kill_child_of(pid, parent);
    }
    if whole_cgroup {
        kill_cgroup(process.pid);
    }
}

/// Kills every process that has one of these pipes open (by inode), whatever it descends from: what came from an exec
/// and left its session still has its output. Our own ends do not count.
pub fn holders(pipes: &[u64]) {
    let links: Vec<String> = pipes.iter().map(|inode| format!("pipe:[{inode}]")).collect();
    let us = i32::try_from(std::process::id()).unwrap_or(0);
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter(|pid| *pid != us) {
        // Opened first: a pid that is reused meanwhile is not hit.
        let Ok(pidfd) = sys::pidfd_open(pid) else { continue };
        if has_open(pid, &links) {
            let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
        }
    }
}

fn has_open(pid: i32, links: &[String]) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
}

/// Kills `pid` if it still is the process that was a child of `parent` or has been orphaned since.
fn kill_child_of(pid: i32, parent: i32) {
    let Ok(pidfd) = sys::pidfd_open(pid) else { return };
    let us = i32::try_from(std::process::id()).unwrap_or(0);
    if parent_of(pid).is_some_and(|now| now == parent || now == us || now == 1) {
        let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
    }
}

/// Field 4 of `/proc/PID/stat`, which stands behind the last parenthesis (proc(5)).
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// All processes below `root`, each with its parent.
fn descendants(root: i32) -> Vec<(i32, i32)> {
    let mut found: Vec<(i32, i32)> = Vec::new();
    let mut queue = vec![root];
    while let Some(parent) = queue.pop() {
        let children = children(parent);
        queue.extend(&children);
        found.extend(children.into_iter().map(|child| (child, parent)));
        if found.len() > DESCENDANTS_MAX {
            break;
        }
    }
    found
}

/// More than any pids limit in use; a bound on the walk while new ones are forked.
const DESCENDANTS_MAX: usize = 100_000;

fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// `cgroup.kill` (cgroup-v2.rst), but never of a cgroup that we are in ourselves.
fn kill_cgroup(pid: i32) {
    let of = |who: &str| fs::read(format!("/proc/{who}/cgroup")).ok().and_then(|text| oom::v2_path(&text));
    let (Some(theirs), Some(ours)) = (of(&pid.to_string()), of("self")) else { return };
    if theirs != ours && !ours.starts_with(&theirs) {
        let _ = fs::write(std::path::Path::new("/sys/fs/cgroup").join(theirs).join("cgroup.kill"), "1");
    }
}
