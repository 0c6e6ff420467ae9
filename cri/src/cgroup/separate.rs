//! Reading a cgroup that has a place in each of the hierarchies of v1 (Linux, admin-guide/cgroup-v1).

use super::figures::{Cpu, Figures, Files, Huge, Io, Memory, Pids};
use super::parse::{number, row, rows};

/// Reads a cgroup of v1; nothing, if it is gone.
pub fn read(files: &Files<'_>, huge_sizes: &[String]) -> Option<Figures> {
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

#[cfg(test)]
mod tests {
    use super::super::figures::tests::files;
    use super::*;

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
            "cache 1\nrss 2\npgfault 3\ninactive_file 4\ntotal_cache 52428800\ntotal_rss 41943040\n\
             total_mapped_file 1048576\ntotal_swap 4096\ntotal_pgfault 12345\ntotal_pgmajfault 67\n\
             total_inactive_file 31457280\n",
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
        let figures = read(&files(SEPARATE), &["2MB".to_owned()]).unwrap();
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
        assert_eq!(read(&files(&[]), &["2MB".to_owned()]), None);
    }
}
