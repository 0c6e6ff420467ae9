//! What a cgroup has used. Both versions of cgroups are read into the same figures (`unified`, `separate`), and
//! everything counts the cgroups below as well.

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

/// From controller and file name to text, so that the tests need no cgroup. In v2 the controller says nothing.
pub type Files<'a> = dyn Fn(&str, &str) -> Option<String> + 'a;

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
pub mod tests {
    use super::*;

    /// Files that are texts; the controller says nothing.
    pub fn files<'a>(all: &'a [(&str, &str)]) -> impl Fn(&str, &str) -> Option<String> + 'a {
        |_, wanted| all.iter().find(|(name, _)| *name == wanted).map(|(_, text)| (*text).to_owned())
    }

    #[test]
    fn sums() {
        let mut sum = Figures::default();
        let one = Figures {
            cpu: Cpu { total: 5, ..Cpu::default() },
            memory: Memory { usage: 7, swap: Some(2), limit: Some(9), ..Memory::default() },
            pids: Pids { tasks: 3, limit: Some(4) },
            ..Figures::default()
        };
        sum.add(&one);
        sum.add(&one);
        assert_eq!((sum.cpu.total, sum.memory.usage, sum.memory.swap), (10, 14, Some(4)));
        assert_eq!((sum.pids.tasks, sum.memory.limit), (6, None));
    }
}
