//! What a cgroup has used, read from its files: cgroup v2 (Linux, admin-guide/cgroup-v2.rst) or the hierarchies of v1
//! (admin-guide/cgroup-v1). Both end in the same figures. Everything counts the cgroups below as well.
//!
//! Reading goes through a function from controller and file name to text, so that the tests need no cgroup.

use super::parse::{number, pressure, row, rows, transfers, word};

/// What was used until now, and what may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub cpu: Cpu,
    pub memory: Memory,
    pub pids: Pids,
    /// By device.
    pub io: Vec<Io>,
    /// Only cgroup v2 knows, with a kernel that counts it.
    pub pressure: Option<Pressure>,
    pub huge: Vec<Huge>,
}

/// Times are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub total: u64,
    pub user: u64,
    pub system: u64,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled: u64,
    /// Microseconds.
    pub period: u64,
    /// Microseconds in each period; nothing: as much as there is.
    pub quota: Option<u64>,
    /// In v1's measure.
    pub shares: u64,
}

/// Bytes, if not faults. A limit that is not there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub usage: u64,
    /// Without files that nobody has used lately.
    pub working_set: u64,
    pub rss: u64,
    pub cache: u64,
    pub mapped: u64,
    pub kernel: u64,
    pub peak: u64,
    pub faults: u64,
    pub major_faults: u64,
    /// How often the limit was met.
    pub limit_hits: u64,
    pub oom_kills: u64,
    pub limit: Option<u64>,
    pub reservation: Option<u64>,
    /// Nothing, if swap is not counted.
    pub swap: Option<u64>,
    pub swap_limit: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// Processes and their threads.
    pub tasks: u64,
    pub limit: Option<u64>,
}

/// What went to and from one block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Io {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Nanoseconds that some or all tasks had to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    pub some: u64,
    pub full: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub cpu: Waits,
    pub memory: Waits,
    pub io: Waits,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Huge {
    /// As in the names of the files: `2MB`.
    pub size: String,
    pub usage: u64,
    /// Only v1 knows.
    pub peak: Option<u64>,
}

/// From controller and file name to text. In v2 the controller says nothing.
type Files<'a> = dyn Fn(&str, &str) -> Option<String> + 'a;

/// Reads a cgroup of v2; nothing, if it is gone.
pub fn unified(files: &Files<'_>, huge_sizes: &[String]) -> Option<Figures> {
    let file = |name: &str| files("", name).unwrap_or_default();
    let cpu = files("", "cpu.stat")?;
    Some(Figures {
        cpu: unified_cpu(&cpu, &file("cpu.max"), &file("cpu.weight")),
        memory: unified_memory(&file),
        pids: Pids { tasks: number(&file("pids.current")).unwrap_or(0), limit: number(&file("pids.max")) },
        io: transfers(&file("io.stat")),
        pressure: unified_pressure(files),
        huge: huge_sizes.iter().filter_map(|size| unified_huge(files, size)).collect(),
    })
}

fn unified_cpu(stat: &str, max: &str, weight: &str) -> Cpu {
    let micros = |key| row(stat, key).unwrap_or(0).saturating_mul(1000);
    Cpu {
        total: micros("usage_usec"),
        user: micros("user_usec"),
        system: micros("system_usec"),
        periods: row(stat, "nr_periods").unwrap_or(0),
        throttled_periods: row(stat, "nr_throttled").unwrap_or(0),
        throttled: micros("throttled_usec"),
        period: word(max, 1).unwrap_or(0),
        quota: word(max, 0),
        shares: number(weight).map_or(0, shares),
    }
}

/// The inverse of what the runtimes make of shares (2..262144) for v2, which has weights (1..10000).
fn shares(weight: u64) -> u64 {
    2 + weight.saturating_sub(1).saturating_mul(262_142) / 9999
}

fn unified_memory(file: &dyn Fn(&str) -> String) -> Memory {
    let (stat, events) = (file("memory.stat"), file("memory.events"));
    let stat = |key| row(&stat, key).unwrap_or(0);
    let usage = number(&file("memory.current")).unwrap_or(0);
    Memory {
        usage,
        working_set: usage.saturating_sub(stat("inactive_file")),
        rss: stat("anon"),
        cache: stat("file"),
        mapped: stat("file_mapped"),
        kernel: stat("kernel"),
        // Before 5.19 nobody takes note of the peak.
        peak: number(&file("memory.peak")).unwrap_or(usage),
        faults: stat("pgfault"),
        major_faults: stat("pgmajfault"),
        limit_hits: row(&events, "max").unwrap_or(0),
        oom_kills: row(&events, "oom_kill").unwrap_or(0),
        limit: number(&file("memory.max")),
        reservation: number(&file("memory.low")).filter(|low| *low > 0),
        swap: number(&file("memory.swap.current")),
        swap_limit: number(&file("memory.swap.max")),
    }
}

fn unified_pressure(files: &Files<'_>) -> Option<Pressure> {
    let of = |name: &str| files("", name).and_then(|text| pressure(&text));
    // Each may be missing, as that of cpu was for long in its "full" line.
    let (cpu, memory, io) = (of("cpu.pressure"), of("memory.pressure"), of("io.pressure"));
    let any = cpu.is_some() || memory.is_some() || io.is_some();
    any.then(|| Pressure {
        cpu: cpu.unwrap_or_default(),
        memory: memory.unwrap_or_default(),
        io: io.unwrap_or_default(),
    })
}

fn unified_huge(files: &Files<'_>, size: &str) -> Option<Huge> {
    let usage = number(&files("", &format!("hugetlb.{size}.current"))?)?;
    Some(Huge { size: size.to_owned(), usage, peak: None })
}

/// Reads a cgroup of v1; nothing, if it is gone.
pub fn separate(files: &Files<'_>, huge_sizes: &[String]) -> Option<Figures> {
    let file = |controller: &str, name: &str| files(controller, name).unwrap_or_default();
    let total = number(&files("cpuacct", "cpuacct.usage")?)?;
    Some(Figures {
        cpu: separate_cpu(total, &file),
        memory: separate_memory(&file),
        pids: Pids {
            tasks: number(&file("pids", "pids.current")).unwrap_or(0),
            limit: number(&file("pids", "pids.max")),
        },
        io: separate_io(&file),
        pressure: None,
        huge: huge_sizes.iter().filter_map(|size| separate_huge(files, size)).collect(),
    })
}

fn separate_cpu(total: u64, file: &dyn Fn(&str, &str) -> String) -> Cpu {
    let stat = file("cpu", "cpu.stat");
    let own = |name: &str| number(&file("cpuacct", name)).unwrap_or(0);
    Cpu {
        total,
        user: own("cpuacct.usage_user"),
        system: own("cpuacct.usage_sys"),
        periods: row(&stat, "nr_periods").unwrap_or(0),
        throttled_periods: row(&stat, "nr_throttled").unwrap_or(0),
        throttled: row(&stat, "throttled_time").unwrap_or(0),
        period: number(&file("cpu", "cpu.cfs_period_us")).unwrap_or(0),
        // -1 is no number here, and so no quota.
        quota: number(&file("cpu", "cpu.cfs_quota_us")),
        shares: number(&file("cpu", "cpu.shares")).unwrap_or(0),
    }
}

/// Limits of v1 are as large as can be where there is none: the greatest signed number, rounded down to a page.
const NO_LIMIT: u64 = 1 << 62;

fn separate_memory(file: &dyn Fn(&str, &str) -> String) -> Memory {
    let own = |name: &str| number(&file("memory", name));
    let (stat, oom) = (file("memory", "memory.stat"), file("memory", "memory.oom_control"));
    let stat = |key| row(&stat, key);
    let limit = |name: &str| own(name).filter(|bytes| *bytes < NO_LIMIT);
    let usage = own("memory.usage_in_bytes").unwrap_or(0);
    let bytes = limit("memory.limit_in_bytes");
    Memory {
        usage,
        working_set: usage.saturating_sub(stat("total_inactive_file").unwrap_or(0)),
        rss: stat("total_rss").unwrap_or(0),
        cache: stat("total_cache").unwrap_or(0),
        mapped: stat("total_mapped_file").unwrap_or(0),
        kernel: own("memory.kmem.usage_in_bytes").unwrap_or(0),
        peak: own("memory.max_usage_in_bytes").unwrap_or(usage),
        faults: stat("total_pgfault").unwrap_or(0),
        major_faults: stat("total_pgmajfault").unwrap_or(0),
        limit_hits: own("memory.failcnt").unwrap_or(0),
        oom_kills: row(&oom, "oom_kill").unwrap_or(0),
        limit: bytes,
        reservation: limit("memory.soft_limit_in_bytes"),
        swap: stat("total_swap"),
        // v1 limits the sum of both.
        swap_limit: limit("memory.memsw.limit_in_bytes").map(|both| both.saturating_sub(bytes.unwrap_or(0))),
    }
}

fn separate_io(file: &dyn Fn(&str, &str) -> String) -> Vec<Io> {
    let mut all: Vec<Io> = Vec::new();
    for (name, is_bytes) in
        [("blkio.throttle.io_service_bytes_recursive", true), ("blkio.throttle.io_serviced_recursive", false)]
    {
        for (major, minor, operation, count) in rows(&file("blkio", name)) {
            let at = all.iter().position(|io| (io.major, io.minor) == (major, minor)).unwrap_or_else(|| {
                all.push(Io { major, minor, ..Io::default() });
                all.len() - 1
            });
            match (operation.as_str(), is_bytes) {
                ("Read", true) => all[at].read_bytes = count,
                ("Write", true) => all[at].written_bytes = count,
                ("Read", false) => all[at].reads = count,
                ("Write", false) => all[at].writes = count,
                _ => {}
            }
        }
    }
    all
}

fn separate_huge(files: &Files<'_>, size: &str) -> Option<Huge> {
    let of = |name: &str| files("hugetlb", &format!("hugetlb.{size}.{name}")).and_then(|text| number(&text));
    Some(Huge { size: size.to_owned(), usage: of("usage_in_bytes")?, peak: of("max_usage_in_bytes") })
}

impl Figures {
    /// Adds what another cgroup has used; limits stay as they are.
    pub fn add(&mut self, other: &Figures) {
        let (cpu, memory) = (&mut self.cpu, &mut self.memory);
        cpu.total += other.cpu.total;
        cpu.user += other.cpu.user;
        cpu.system += other.cpu.system;
        memory.usage += other.memory.usage;
        memory.working_set += other.memory.working_set;
        memory.rss += other.memory.rss;
        memory.cache += other.memory.cache;
        memory.mapped += other.memory.mapped;
        memory.kernel += other.memory.kernel;
        memory.faults += other.memory.faults;
        memory.major_faults += other.memory.major_faults;
        memory.oom_kills += other.memory.oom_kills;
        memory.swap = memory.swap.into_iter().chain(other.memory.swap).reduce(|one, two| one + two);
        self.pids.tasks += other.pids.tasks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files<'a>(all: &'a [(&str, &str)]) -> impl Fn(&str, &str) -> Option<String> + 'a {
        |_, wanted| all.iter().find(|(name, _)| *name == wanted).map(|(_, text)| (*text).to_owned())
    }

    const SIZES: [&str; 1] = ["2MB"];

    fn sizes() -> Vec<String> {
        SIZES.map(str::to_owned).into()
    }

    const UNIFIED: &[(&str, &str)] = &[
        (
            "cpu.stat",
            "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnice_usec 0\ncore_sched.force_idle_usec 0\nnr_periods 20\nnr_throttled 3\nthrottled_usec 7000\nnr_bursts 0\nburst_usec 0\n",
        ),
        ("cpu.max", "20000 100000\n"),
        ("cpu.weight", "39\n"),
        ("memory.current", "104857600\n"),
        ("memory.peak", "120000000\n"),
        (
            "memory.stat",
            "anon 41943040\nfile 52428800\nkernel 2097152\nkernel_stack 65536\nfile_mapped 1048576\ninactive_anon 1\nactive_anon 2\ninactive_file 31457280\nactive_file 20971520\npgfault 12345\npgmajfault 67\n",
        ),
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n"),
        ("memory.max", "209715200\n"),
        ("memory.low", "0\n"),
        ("memory.swap.current", "4096\n"),
        ("memory.swap.max", "max\n"),
        ("pids.current", "5\n"),
        ("pids.max", "max\n"),
        ("io.stat", "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:1 \n"),
        (
            "cpu.pressure",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=2000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1000\n",
        ),
        (
            "memory.pressure",
            "some avg10=1.00 avg60=0.50 avg300=0.10 total=30\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=20\n",
        ),
        ("hugetlb.2MB.current", "4194304\n"),
    ];

    #[test]
    fn a_cgroup_of_v2() {
        let figures = unified(&files(UNIFIED), &sizes()).unwrap();
        let cpu = Cpu {
            total: 1_500_000_000,
            user: 1_000_000_000,
            system: 500_000_000,
            periods: 20,
            throttled_periods: 3,
            throttled: 7_000_000,
            period: 100_000,
            quota: Some(20_000),
            shares: 998,
        };
        assert_eq!(figures.cpu, cpu);
        let memory = Memory {
            usage: 100 << 20,
            working_set: 70 << 20,
            rss: 40 << 20,
            cache: 50 << 20,
            mapped: 1 << 20,
            kernel: 2 << 20,
            peak: 120_000_000,
            faults: 12345,
            major_faults: 67,
            limit_hits: 9,
            oom_kills: 1,
            limit: Some(200 << 20),
            reservation: None,
            swap: Some(4096),
            swap_limit: None,
        };
        assert_eq!(figures.memory, memory);
        assert_eq!(figures.pids, Pids { tasks: 5, limit: None });
        let disk = Io { major: 254, minor: 0, read_bytes: 4096, written_bytes: 8192, reads: 1, writes: 2 };
        assert_eq!(figures.io, [disk]);
        let pressure = figures.pressure.unwrap();
        assert_eq!(pressure.cpu, Waits { some: 2_000_000, full: 1_000_000 });
        assert_eq!((pressure.memory.some, pressure.io), (30_000, Waits::default()));
        assert_eq!(figures.huge, [Huge { size: "2MB".into(), usage: 4 << 20, peak: None }]);
    }

    #[test]
    fn a_cgroup_of_v2_with_few_controllers() {
        let few = [("cpu.stat", "usage_usec 1\nuser_usec 1\nsystem_usec 0\n")];
        let figures = unified(&files(&few), &sizes()).unwrap();
        assert_eq!((figures.cpu.total, figures.memory, figures.pressure), (1000, Memory::default(), None));
        assert_eq!(unified(&files(&[]), &sizes()), None);
    }

    const SEPARATE: &[(&str, &str)] = &[
        ("cpuacct.usage", "1500000001\n"),
        ("cpuacct.usage_user", "1000000000\n"),
        ("cpuacct.usage_sys", "500000001\n"),
        ("cpu.stat", "nr_periods 20\nnr_throttled 3\nthrottled_time 7000000\n"),
        ("cpu.cfs_period_us", "100000\n"),
        ("cpu.cfs_quota_us", "-1\n"),
        ("cpu.shares", "1024\n"),
        ("memory.usage_in_bytes", "104857600\n"),
        ("memory.max_usage_in_bytes", "120000000\n"),
        (
            "memory.stat",
            "cache 1\nrss 2\npgfault 3\ninactive_file 4\ntotal_cache 52428800\ntotal_rss 41943040\ntotal_mapped_file 1048576\ntotal_swap 4096\ntotal_pgfault 12345\ntotal_pgmajfault 67\ntotal_inactive_file 31457280\n",
        ),
        ("memory.kmem.usage_in_bytes", "2097152\n"),
        ("memory.failcnt", "9\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
        ("memory.limit_in_bytes", "209715200\n"),
        ("memory.memsw.limit_in_bytes", "314572800\n"),
        ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
        ("pids.current", "5\n"),
        ("pids.max", "100\n"),
        (
            "blkio.throttle.io_service_bytes_recursive",
            "254:0 Read 4096\n254:0 Write 8192\n254:0 Total 12288\nTotal 12288\n",
        ),
        ("blkio.throttle.io_serviced_recursive", "254:0 Read 1\n254:0 Write 2\n254:0 Total 3\nTotal 3\n"),
        ("hugetlb.2MB.usage_in_bytes", "4194304\n"),
        ("hugetlb.2MB.max_usage_in_bytes", "8388608\n"),
    ];

    #[test]
    fn a_cgroup_of_v1() {
        let figures = separate(&files(SEPARATE), &sizes()).unwrap();
        assert_eq!(
            (figures.cpu.total, figures.cpu.user, figures.cpu.system),
            (1_500_000_001, 1_000_000_000, 500_000_001)
        );
        assert_eq!((figures.cpu.throttled, figures.cpu.quota, figures.cpu.shares), (7_000_000, None, 1024));
        let memory = &figures.memory;
        assert_eq!((memory.usage, memory.working_set, memory.rss), (100 << 20, 70 << 20, 40 << 20));
        assert_eq!((memory.faults, memory.major_faults, memory.limit_hits, memory.oom_kills), (12345, 67, 9, 1));
        assert_eq!(
            (memory.limit, memory.reservation, memory.swap, memory.swap_limit),
            (Some(200 << 20), None, Some(4096), Some(100 << 20))
        );
        assert_eq!(figures.pids, Pids { tasks: 5, limit: Some(100) });
        let disk = Io { major: 254, minor: 0, read_bytes: 4096, written_bytes: 8192, reads: 1, writes: 2 };
        assert_eq!(figures.io, [disk]);
        assert_eq!(figures.huge, [Huge { size: "2MB".into(), usage: 4 << 20, peak: Some(8 << 20) }]);
        assert_eq!(separate(&files(&[]), &sizes()), None);
    }

    #[test]
    fn sums() {
        let mut sum = Figures::default();
        let one = unified(&files(UNIFIED), &[]).unwrap();
        sum.add(&one);
        sum.add(&one);
        assert_eq!((sum.cpu.total, sum.memory.usage, sum.memory.swap), (3_000_000_000, 200 << 20, Some(8192)));
        assert_eq!((sum.pids.tasks, sum.memory.limit), (10, None));
    }
}
