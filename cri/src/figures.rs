//! What the processes in a cgroup have used, of whichever version the host has (Linux, admin-guide/cgroup-v2.rst and
//! cgroup-v1/{cpuacct,memory,pids}.rst).

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// Where a cgroup's files are: one directory for all controllers, or one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    V2(PathBuf),
    V1 { cpuacct: PathBuf, memory: PathBuf, pids: PathBuf },
}

/// Bytes, unless another unit is said; what the kernel does not count is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Nanoseconds of processor time, and of it in the program and in the kernel.
    pub cpu: Option<u64>,
    pub cpu_user: Option<u64>,
    pub cpu_system: Option<u64>,
    /// Periods of the quota, and those in which it was used up.
    pub periods: Option<u64>,
    pub throttled: Option<u64>,
    pub memory: Option<u64>,
    /// Without file pages that can be dropped at once.
    pub working_set: Option<u64>,
    pub rss: Option<u64>,
    pub cache: Option<u64>,
    pub memory_limit: Option<u64>,
    /// Page faults, and those that waited for a disk.
    pub faults: Option<u64>,
    pub major_faults: Option<u64>,
    pub swap: Option<u64>,
    pub swap_limit: Option<u64>,
    /// Threads and processes, as the pids controller counts them.
    pub pids: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
}

impl Place {
    /// The cgroup of a process; `None` when there is no such process.
    pub fn of(pid: i32) -> Option<Place> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Place::read(&text, Path::new(ROOT))
    }

    /// A cgroup by its path, as in `cgroup_parent`: of cgroupfs, or a slice of systemd.
    pub fn named(path: &str) -> Place {
        let path = if path.contains('/') || !path.ends_with(".slice") { path.to_owned() } else { slice(path) };
        let inside = path.trim_start_matches('/');
        let at = |controller: &str| Path::new(ROOT).join(controller).join(inside);
        match crate::cgroup::unified() {
            true => Place::V2(Path::new(ROOT).join(inside)),
            false => Place::V1 { cpuacct: at("cpuacct"), memory: at("memory"), pids: at("pids") },
        }
    }

    /// From the lines of `/proc/PID/cgroup`: `0::PATH` of version 2, `N:CONTROLLERS:PATH` of version 1.
    fn read(text: &str, root: &Path) -> Option<Place> {
        let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let v1 = |wanted: &str| {
            let (_, path) = lines().find(|(names, _)| names.split(',').any(|name| name == wanted))?;
            Some(root.join(wanted).join(path.trim_start_matches('/')))
        };
        match (v1("cpuacct"), v1("memory"), v1("pids")) {
            (Some(cpuacct), Some(memory), Some(pids)) => Some(Place::V1 { cpuacct, memory, pids }),
            _ => {
                let (_, path) = lines().find(|(names, _)| names.is_empty())?;
                Some(Place::V2(root.join(path.trim_start_matches('/'))))
            }
        }
    }

    /// Reads what is there now.
    pub fn figures(&self) -> Figures {
        match self {
            Place::V2(dir) => v2(dir),
            Place::V1 { cpuacct, memory, pids } => v1(cpuacct, memory, pids),
        }
    }

    /// The cgroup is there.
    pub fn exists(&self) -> bool {
        match self {
            Place::V2(dir) => dir.exists(),
            Place::V1 { memory, .. } => memory.exists(),
        }
    }
}

const ROOT: &str = "/sys/fs/cgroup";

/// Where systemd has a slice: `a-b.slice` is in `a.slice` (systemd.slice(5)).
fn slice(name: &str) -> String {
    let stem = name.trim_end_matches(".slice");
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    ends.map(|end| format!("/{}.slice", &stem[..end])).collect()
}

fn v2(dir: &Path) -> Figures {
    let cpu = Table::at(&dir.join("cpu.stat"));
    let memory = Table::at(&dir.join("memory.stat"));
    let usage = one(&dir.join("memory.current"));
    let micros = |key| cpu.get(key).map(|value: u64| value * 1000);
    Figures {
        cpu: micros("usage_usec"),
        cpu_user: micros("user_usec"),
        cpu_system: micros("system_usec"),
        periods: cpu.get("nr_periods"),
        throttled: cpu.get("nr_throttled"),
        memory: usage,
        working_set: without(usage, memory.get("inactive_file")),
        rss: memory.get("anon"),
        cache: memory.get("file"),
        // `max` is no number, and no limit.
        memory_limit: one(&dir.join("memory.max")),
        faults: memory.get("pgfault"),
        major_faults: memory.get("pgmajfault"),
        swap: one(&dir.join("memory.swap.current")),
        swap_limit: one(&dir.join("memory.swap.max")),
        pids: one(&dir.join("pids.current")),
        oom_kills: Table::at(&dir.join("memory.events")).get("oom_kill"),
    }
}

fn v1(cpuacct: &Path, memory: &Path, pids: &Path) -> Figures {
    // In ticks of 10 ms, whatever the kernel was built with (USER_HZ).
    const TICK: u64 = 10_000_000;
    // More than any machine has: how version 1 says that there is none.
    const NO_LIMIT: u64 = 1 << 62;
    let split = Table::at(&cpuacct.join("cpuacct.stat"));
    let cpu = Table::at(&cpuacct.join("cpu.stat"));
    let stat = Table::at(&memory.join("memory.stat"));
    let usage = one(&memory.join("memory.usage_in_bytes"));
    let with_swap = one(&memory.join("memory.memsw.usage_in_bytes"));
    let limit = |name: &str| one(&memory.join(name)).filter(|limit| *limit < NO_LIMIT);
    let memory_limit = limit("memory.limit_in_bytes");
    let ticks = |key| split.get(key).map(|value: u64| value * TICK);
    Figures {
        cpu: one(&cpuacct.join("cpuacct.usage")),
        cpu_user: ticks("user"),
        cpu_system: ticks("system"),
        periods: cpu.get("nr_periods"),
        throttled: cpu.get("nr_throttled"),
        memory: usage,
        working_set: without(usage, stat.get("total_inactive_file")),
        rss: stat.get("total_rss"),
        cache: stat.get("total_cache"),
        memory_limit,
        faults: stat.get("total_pgfault"),
        major_faults: stat.get("total_pgmajfault"),
        swap: without(with_swap, usage),
        swap_limit: without(limit("memory.memsw.limit_in_bytes"), memory_limit),
        pids: one(&pids.join("pids.current")),
        oom_kills: Table::at(&memory.join("memory.oom_control")).get("oom_kill"),
    }
}

fn without(whole: Option<u64>, part: Option<u64>) -> Option<u64> {
    Some(whole?.saturating_sub(part?))
}

/// A file with one number.
fn one<T: FromStr>(path: &Path) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A file with a name and a number on each line.
struct Table(String);

impl Table {
    fn at(path: &Path) -> Table {
        Table(fs::read_to_string(path).unwrap_or_default())
    }

    fn get<T: FromStr>(&self, key: &str) -> Option<T> {
        let mut pairs = self.0.lines().filter_map(|line| line.split_once(' '));
        pairs.find(|(name, _)| *name == key)?.1.trim().parse().ok()
    }
}

/// How fast processor time is used up, from one look to another.
#[derive(Debug, Default)]
pub struct Rate(Mutex<Option<Look>>);

#[derive(Clone, Copy, Debug)]
struct Look {
    at: i64,
    cpu: u64,
    rate: Option<u64>,
}

/// Nanoseconds between two looks, at least: clients that ask more often get what the former ones got.
const APART: i64 = 500_000_000;

impl Rate {
    /// Nanoseconds of processor time per second, given what was used (ns) by now (ns since 1970). Nothing is known at the
    /// first look.
    pub fn now(&self, at: i64, cpu: u64) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = match *last {
            Some(before) if at - before.at < APART => return before.rate,
            Some(before) => per_second(cpu.saturating_sub(before.cpu), at - before.at),
            None => None,
        };
        *last = Some(Look { at, cpu, rate });
        rate
    }
}

fn per_second(amount: u64, nanoseconds: i64) -> Option<u64> {
    let second = 1_000_000_000;
    u64::try_from(u128::from(amount) * second / u128::try_from(nanoseconds).ok().filter(|time| *time > 0)?).ok()
}

/// What went over one interface of a network namespace, since it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// The table of `/proc/net/dev` (proc_pid_net(5)), without the loopback.
pub fn interfaces(text: &str) -> Vec<Interface> {
    let rows = text.lines().filter_map(|line| line.split_once(':'));
    let row = |(name, row): (&str, &str)| {
        let numbers: Vec<u64> = row.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let &[rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] =
            numbers.as_slice()
        else {
            return None;
        };
        let name = name.trim().to_owned();
        Some(Interface {
            name,
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        })
    };
    rows.filter_map(row).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn version_2() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 4\nnr_throttled 1\n"),
                ("memory.stat", "anon 100\nfile 300\ninactive_file 200\npgfault 7\npgmajfault 1\n"),
                ("memory.current", "1000\n"),
                ("memory.max", "max\n"),
                ("memory.swap.current", "5\n"),
                ("memory.swap.max", "10\n"),
                ("pids.current", "3\n"),
                ("memory.events", "low 0\noom 1\noom_kill 2\n"),
            ],
        );
        let seen = Place::V2(dir.path().to_owned()).figures();
        let expected = Figures {
            cpu: Some(1_500_000),
            cpu_user: Some(1_000_000),
            cpu_system: Some(500_000),
            periods: Some(4),
            throttled: Some(1),
            memory: Some(1000),
            working_set: Some(800),
            rss: Some(100),
            cache: Some(300),
            memory_limit: None,
            faults: Some(7),
            major_faults: Some(1),
            swap: Some(5),
            swap_limit: Some(10),
            pids: Some(3),
            oom_kills: Some(2),
        };
        assert_eq!(seen, expected);
    }

    #[test]
    fn version_1() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("cpuacct.usage", "1500000\n"),
                ("cpuacct.stat", "user 3\nsystem 2\n"),
                ("memory.stat", "rss 1\ntotal_rss 100\ntotal_cache 300\ntotal_inactive_file 1200\n"),
                ("memory.usage_in_bytes", "1000\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.memsw.usage_in_bytes", "1005\n"),
                ("pids.current", "3\n"),
            ],
        );
        let at = || dir.path().to_owned();
        let seen = Place::V1 { cpuacct: at(), memory: at(), pids: at() }.figures();
        assert_eq!((seen.cpu, seen.cpu_user, seen.cpu_system), (Some(1_500_000), Some(30_000_000), Some(20_000_000)));
        assert_eq!((seen.memory, seen.working_set, seen.rss), (Some(1000), Some(0), Some(100)));
        assert_eq!((seen.memory_limit, seen.swap, seen.pids), (None, Some(5), Some(3)));
        assert_eq!(seen.oom_kills, None);
    }

    #[test]
    fn a_cgroup_that_is_not_there_has_no_figures() {
        assert_eq!(Place::V2("/nowhere".into()).figures(), Figures::default());
    }

    #[test]
    fn where_a_process_is() {
        let root = Path::new("/c");
        let hybrid = "5:pids:/a\n4:cpu,cpuacct:/b/c\n3:memory:/d\n0::/e\n";
        let expected =
            Place::V1 { cpuacct: "/c/cpuacct/b/c".into(), memory: "/c/memory/d".into(), pids: "/c/pids/a".into() };
        assert_eq!(Place::read(hybrid, root), Some(expected));
        assert_eq!(Place::read("0::/kubepods/x\n", root), Some(Place::V2("/c/kubepods/x".into())));
        assert_eq!(Place::read("", root), None);
        assert_eq!(
            slice("kubepods-burstable-pod1_2.slice"),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"
        );
    }

    #[test]
    fn a_rate_takes_two_looks() {
        let (rate, second) = (Rate::default(), 1_000_000_000);
        assert_eq!(rate.now(second, 100), None);
        assert_eq!(rate.now(second + 1000, 200), None, "too early");
        assert_eq!(rate.now(3 * second, 1_000_000_100), Some(500_000_000));
        assert_eq!(rate.now(3 * second + 1, 0), Some(500_000_000), "too early again");
    }

    #[test]
    fn network() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let seen = interfaces(text);
        assert_eq!(seen.len(), 1);
        let eth0 = &seen[0];
        assert_eq!(
            (eth0.name.as_str(), eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors, eth0.rx_dropped),
            ("eth0", 10, 2, 3, 4)
        );
        assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped), (50, 6, 7, 8));
    }
}
