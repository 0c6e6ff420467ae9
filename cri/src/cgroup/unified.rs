//! Reading a cgroup of v2 (Linux, admin-guide/cgroup-v2.rst).

use super::figures::{Cpu, Figures, Files, Huge, Memory, Pids, Pressure};
use super::parse::{number, pressure, row, transfers, word};

/// Reads a cgroup of v2; nothing, if it is gone.
pub fn read(files: &Files<'_>, huge_sizes: &[String]) -> Option<Figures> {
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

#[cfg(test)]
mod tests {
    use super::super::figures::tests::files;
    use super::super::figures::{Io, Waits};
    use super::*;

    const UNIFIED: &[(&str, &str)] = &[
        (
            "cpu.stat",
            "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnice_usec 0\ncore_sched.force_idle_usec 0\n\
             nr_periods 20\nnr_throttled 3\nthrottled_usec 7000\nnr_bursts 0\nburst_usec 0\n",
        ),
        ("cpu.max", "20000 100000\n"),
        ("cpu.weight", "39\n"),
        ("memory.current", "104857600\n"),
        ("memory.peak", "120000000\n"),
        (
            "memory.stat",
            "anon 41943040\nfile 52428800\nkernel 2097152\nkernel_stack 65536\nfile_mapped 1048576\ninactive_anon 1\n\
             active_anon 2\ninactive_file 31457280\nactive_file 20971520\npgfault 12345\npgmajfault 67\n",
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
        let figures = read(&files(UNIFIED), &["2MB".to_owned()]).unwrap();
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
        let figures = read(&files(&few), &["2MB".to_owned()]).unwrap();
        assert_eq!((figures.cpu.total, figures.memory, figures.pressure), (1000, Memory::default(), None));
        assert_eq!(read(&files(&[]), &["2MB".to_owned()]), None);
    }
}
