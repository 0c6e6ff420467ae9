//! Processes: a case owns all of its descendants and leaves none behind.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Fail, Outcome, wait};

/// Makes this process the parent of every descendant that loses its own.
pub fn adopt_orphans() -> Outcome {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Ends and reaps all descendants, by pid: children first, then those that become ours by that.
pub fn end_descendants() {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let children = children_of(Pid::this());
        if children.is_empty() {
            return;
        }
        for child in children {
            // It may have ended by itself; then there is only something to reap.
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends the descendants of another process that is about to be ended too.
pub fn end_tree(pid: Pid) {
    for child in children_of(pid) {
        end_tree(child);
        // It may have ended by itself.
        let _ = kill(child, Signal::SIGKILL);
    }
}

/// The children of all threads of a process.
pub fn children_of(pid: Pid) -> Vec<Pid> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<i32>>())
        .map(Pid::from_raw)
        .collect()
}

/// True if this process ignores a signal, as a job in the background of a script does with SIGINT and SIGQUIT.
pub fn ignores(signal: Signal) -> Outcome<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or("0");
    let mask = u64::from_str_radix(mask.trim(), 16).map_err(|error| Fail::Wrong(format!("SigIgn: {error}")))?;
    Ok(mask >> (signal as i32 - 1) & 1 == 1)
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: Pid) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

/// The state letter of a process.
pub fn state(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// One field of `/proc/<pid>/status`, trimmed.
pub fn status_field(pid: Pid, name: &str) -> Outcome<String> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(|rest| rest.trim().to_owned()).ok_or_else(|| Fail::Wrong(format!("{path} has no {name}")))
}

/// User and system time of a process so far, in clock ticks.
pub fn cpu_ticks(pid: Pid) -> Outcome<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    Ok(rest.split(' ').skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum())
}

/// The descriptors of a process: number and what it points to.
pub fn descriptors(pid: Pid) -> Outcome<Vec<(i32, String)>> {
    let mut list = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let number = entry.file_name().to_string_lossy().parse().map_err(|_| "odd name in /proc/<pid>/fd")?;
        if let Ok(target) = std::fs::read_link(entry.path()) {
            list.push((number, target.to_string_lossy().into_owned()));
        }
    }
    list.sort_unstable();
    Ok(list)
}

/// A process that is held at a system call. Dropped, it goes on.
#[derive(Debug)]
pub struct Held(Pid);

impl Held {
    /// Takes hold of a process wherever it is now.
    pub fn seize(pid: Pid) -> Outcome<Held> {
        let seized = ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).and_then(|()| ptrace::interrupt(pid));
        match seized {
            Ok(()) => {}
            Err(Errno::EPERM) => return Err(Fail::Skip("this user may not trace the monitor".to_owned())),
            Err(error) => return Err(error.into()),
        }
        let held = Held(pid);
        held.stopped()?;
        Ok(held)
    }

    /// Lets it run to its next system call.
    pub fn go_on(&self) -> Outcome {
        Ok(ptrace::syscall(self.0, None)?)
    }

    /// Waits until it is about to read from the pipe, or is back from that.
    pub fn at_read(&self, pipe: &Path) -> Outcome {
        loop {
            self.stopped()?;
            let text = std::fs::read_to_string(format!("/proc/{}/syscall", self.0))?;
            let mut words = text.split(' ');
            let number = words.next().and_then(|word| word.parse().ok());
            let fd = words.next().and_then(|word| i32::from_str_radix(word.trim_start_matches("0x"), 16).ok());
            let file = fd.and_then(|fd| std::fs::read_link(format!("/proc/{}/fd/{fd}", self.0)).ok());
            if number == Some(nix::libc::SYS_read) && file.as_deref() == Some(pipe) {
                return Ok(());
            }
            self.go_on()?;
        }
    }

    fn stopped(&self) -> Outcome {
        match waitpid(self.0, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceSyscall(_) | WaitStatus::PtraceEvent(..) => Ok(()),
            other => Err(Fail::Wrong(format!("the monitor that is traced: {other:?}"))),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}

/// Waits for a child's end: `N` for exit N, `128 + S` for signal S.
pub fn ended(what: &str, pid: Pid, limit: Duration) -> Outcome<i32> {
    wait::until(&format!("the end of {what} (pid {pid})"), limit, || match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Ok(Some(code)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(128 + signal as i32)),
        Ok(_) | Err(Errno::EINTR) => Ok(None),
        Err(error) => Err(Fail::Wrong(format!("cannot wait for {what} (pid {pid}): {error}"))),
    })
}

/// A pid as written in a file, raw: no newline is allowed.
pub fn pid_in(path: &Path) -> Outcome<Pid> {
    let bytes = wait::for_file(path)?;
    let text = String::from_utf8_lossy(&bytes);
    match text.parse() {
        Ok(number) => Ok(Pid::from_raw(number)),
        Err(_) => Err(Fail::Wrong(format!("{}: expected a bare number, saw {text:?}", path.display()))),
    }
}
