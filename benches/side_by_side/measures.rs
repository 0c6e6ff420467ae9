//! The list of measurements.

use super::{Bench, flow, latency, service, standing, table::Row};

pub struct Measure {
    pub name: &'static str,
    pub what: &'static str,
    pub run: fn(&mut Bench) -> Vec<Row>,
}

/// In the order of the table.
pub const MEASURES: &[Measure] = &[
    Measure {
        name: "start",
        what: "start of the monitor to the container's pid on the sync pipe",
        run: latency::start,
    },
    Measure {
        name: "exit",
        what: "end of the container to its exit file, and to the end of the monitor",
        run: latency::exit,
    },
    Measure {
        name: "exec",
        what: "start of an exec monitor to the exit code of a process that ends at once",
        run: latency::exec,
    },
    Measure {
        name: "service-exec",
        what: "an exec over one connection to the service, and a monitor of conmon's for each",
        run: service::exec,
    },
    Measure {
        name: "log",
        what: "throughput into a CRI log, and CPU time per GB; every byte is verified",
        run: flow::log,
    },
    Measure { name: "terminal", what: "the same through a pty", run: flow::terminal },
    Measure { name: "load", what: "peak memory while draining at full speed", run: flow::load },
    Measure { name: "attach", what: "echo round trip, and throughput to one client", run: flow::attach },
    Measure { name: "stalled", what: "throughput with a second client that never reads", run: flow::stalled },
    Measure {
        name: "idle",
        what: "private memory, threads and descriptors of many idle monitors",
        run: standing::idle,
    },
    Measure {
        name: "service-memory",
        what: "private memory that clients of the service and their execs leave behind",
        run: service::memory,
    },
    Measure { name: "wakeups", what: "context switches of an idle monitor", run: standing::wakeups },
    Measure {
        name: "fanin",
        what: "CPU time of many monitors whose containers write a few lines a second",
        run: standing::fan_in,
    },
];
