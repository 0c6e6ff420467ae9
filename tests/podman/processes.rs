//! Looking at the host: which processes and mounts belong to a scratch directory.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::call::PAUSE;

/// A process that has to do with us.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: i32,
    pub exe: PathBuf,
    pub command: String,
}

/// Every process whose command line or environment names `dir`: monitors, podmans, runtimes, and containers, to which
/// the configuration of the bed gives a variable with the directory's name. Zombies have neither and do not count.
pub fn of(dir: &Path) -> Vec<Process> {
    let mark = dir.as_os_str().as_encoded_bytes();
    let me = nix::unistd::getpid().as_raw();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| *pid != me);
    pids.filter_map(|pid| look(pid, mark)).collect()
}

fn look(pid: i32, mark: &[u8]) -> Option<Process> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let ours = [&command, &environment].iter().any(|text| names(text, mark));
    // Without an executable it is a zombie or on its way.
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    ours.then_some(Process { pid, exe, command })
}

/// Whether `mark` occurs as a whole path: `/tmp/x/1` is not part of `/tmp/x/10`.
fn names(text: &[u8], mark: &[u8]) -> bool {
    let whole = |rest: Option<&u8>| rest.is_none_or(|next| !next.is_ascii_alphanumeric());
    (text.windows(mark.len()).enumerate()).any(|(at, part)| part == mark && whole(text.get(at + mark.len())))
}

/// Mount points below `dir`.
pub fn mounts(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(dir));
    points.map(ToString::to_string).collect()
}

/// Asks until the answer is yes or the time is over; gives the last answer.
pub fn eventually(limit: Duration, mut question: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + limit;
    loop {
        if question() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        thread::sleep(PAUSE * 4);
    }
}

/// Processes as lines of a message.
pub fn listed(processes: &[Process]) -> String {
    let line = |p: &Process| {
        format!("\n    {} {} ({})", p.pid, p.command.chars().take(200).collect::<String>(), p.exe.display())
    };
    processes.iter().map(line).collect()
}
