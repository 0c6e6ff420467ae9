//! How much a monitor moves: into the log, through a terminal, to clients.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Bench, Subject,
    client::Client,
    container::{Container, Outcome, PATIENCE, Plan},
    pairs,
    payload::{Lines, Payload, verify_log},
    processes::{self, Family},
    row,
    runtime::{Role, Stamp, now},
    table::Row,
};

/// A container that writes as fast as the monitor takes it.
struct Flow {
    lines: Lines,
    total: u64,
    terminal: bool,
    /// Clients that read everything.
    readers: usize,
    /// Clients that never read.
    stalled: usize,
    /// After so long it counts as stuck.
    limit: Duration,
}

impl Flow {
    fn new(lines: Lines, total: u64) -> Flow {
        Flow { lines, total, terminal: false, readers: 0, stalled: 0, limit: PATIENCE * 2 }
    }
}

#[derive(Debug)]
struct Flowed {
    /// From the first write of the container to the exit file, MB/s.
    speed: f64,
    /// CPU time of the monitor, seconds per GB.
    cpu: f64,
    /// Peak resident memory, KiB.
    peak: f64,
    /// What the first reading client got, MB/s.
    client: Option<f64>,
}

/// Names, shapes, and sizes (quick, full) of what is logged, MB.
const KINDS: [(&str, Lines, u64, u64); 3] = [
    ("100-byte lines", Lines::Fixed(100), 48, 256),
    ("16 KiB lines", Lines::Fixed(16 << 10), 96, 384),
    ("mixed lines", Lines::Mixed, 64, 384),
];

pub fn log(bench: &mut Bench) -> Vec<Row> {
    let rounds = bench.rounds(2, 5);
    let mut rows = Vec::new();
    for (name, lines, quick, full) in KINDS {
        let flow = Flow::new(lines, bench.size(quick, full) * 1_000_000);
        let runs = bench.compare(&format!("log, {name}"), rounds, |subject| run(subject, &flow));
        rows.push(row(&format!("log, {name}"), "MB/s", 0, &runs, |run| run.speed));
        rows.push(row(&format!("log, {name}: CPU of the monitor"), "s/GB", 3, &runs, |run| run.cpu));
    }
    rows
}

pub fn terminal(bench: &mut Bench) -> Vec<Row> {
    let flow = Flow { terminal: true, ..Flow::new(Lines::Mixed, bench.size(8, 48) * 1_000_000) };
    let rounds = bench.rounds(2, 5);
    let runs = bench.compare("terminal", rounds, |subject| run(subject, &flow));
    vec![
        row("terminal, mixed lines", "MB/s", 0, &runs, |run| run.speed),
        row("terminal, mixed lines: CPU of the monitor", "s/GB", 3, &runs, |run| run.cpu),
    ]
}

pub fn load(bench: &mut Bench) -> Vec<Row> {
    let flow = Flow::new(Lines::Mixed, bench.size(64, 256) * 1_000_000);
    let rounds = bench.rounds(2, 5);
    let runs = bench.compare("load", rounds, |subject| run(subject, &flow));
    vec![row("peak RSS while draining at full speed", "KiB", 0, &runs, |run| run.peak)]
}

pub fn attach(bench: &mut Bench) -> Vec<Row> {
    let (rounds, trips) = (bench.rounds(3, 9), bench.size(300, 1000));
    let echoes = bench.compare("attach, echo", rounds, |subject| echo(subject, trips));
    let flow = Flow { readers: 1, ..Flow::new(Lines::Mixed, bench.size(32, 128) * 1_000_000) };
    let rounds = bench.rounds(2, 5);
    let runs = bench.compare("attach, throughput", rounds, |subject| run(subject, &flow));
    vec![
        row("attach: echo of 1 byte", "µs", 1, &echoes, |(small, _)| *small),
        row("attach: echo of 4 KiB", "µs", 1, &echoes, |(_, large)| *large),
        Row::new("attach: throughput to one client, logged too", "MB/s", 0, pairs(&runs, |run| run.client)),
    ]
}

/// Microseconds, the medians of many round trips: one byte, 4 KiB.
fn echo(subject: &Subject, trips: usize) -> Outcome<(f64, f64)> {
    let container = subject.start(&Role::Echo, Plan { stdin: true, ..Plan::default() })?;
    let client = Client::connect(&container.dir.bundle)?;
    let median = |size| -> Outcome<f64> {
        client.round_trip(size)?;
        let times = (0..trips).map(|_| Ok(client.round_trip(size)? as f64 / 1e3)).collect::<Outcome<Vec<f64>>>()?;
        super::table::quantile(&times, 0.5).ok_or("no round trips".into())
    };
    Ok((median(1)?, median(4096)?))
}

/// Each monitor is compared with itself here: a client that never reads must not slow down the rest.
pub fn stalled(bench: &mut Bench) -> Vec<Row> {
    let limit = Duration::from_secs(bench.size(3, 6));
    let alone = Flow { readers: 1, ..Flow::new(Lines::Mixed, bench.size(32, 256) * 1_000_000) };
    let beside = Flow { stalled: 1, limit, ..Flow { ..alone } };
    let rounds = bench.rounds(2, 5);
    let runs = bench.compare("stalled", rounds, |subject| {
        let base = run(subject, &alone)?;
        match run(subject, &beside) {
            Ok(flowed) => Ok((flowed.speed, flowed.speed / base.speed)),
            // That it stops is the result, not a fault of the measurement.
            Err(why) if why == STUCK && subject.is_conmon() => Ok((0.0, 0.0)),
            Err(why) => Err(why),
        }
    });
    vec![
        row("two clients, one never reads (0: stands still)", "MB/s", 0, &runs, |(speed, _)| *speed),
        row("… as a share of one reading client alone", "", 2, &runs, |(_, share)| *share),
    ]
}

const STUCK: &str = "it stands still";

fn run(subject: &Subject, flow: &Flow) -> Outcome<Flowed> {
    let role = Role::Generate(Payload::words(flow.lines, flow.total));
    let container = subject.start(&role, Plan { terminal: flow.terminal, ..Plan::default() })?;
    let payload = Arc::new(Payload::new(flow.lines, flow.total));
    let connect = || Client::connect(&container.dir.bundle);
    let stalled = (0..flow.stalled).map(|_| connect()).collect::<Outcome<Vec<_>>>()?;
    let readers = (0..flow.readers).map(|_| connect()).collect::<Outcome<Vec<_>>>()?;
    let readers: Vec<_> = readers.into_iter().map(|client| client.read_all(payload.clone())).collect();
    // Clients are accepted, the container has built its payload.
    super::container::pause(60);

    let drained = drain(&container, flow.limit);
    // The ones that were behind go first, or they hold up the others' end with a monitor that waits for them.
    drop(stalled);
    if drained.is_err() {
        drop(container);
        readers.into_iter().for_each(|reader| drop(reader.join()));
        return Err(drained.err().unwrap_or_default());
    }
    let (wall, cpu, peak) = drained?;
    let mut client = None;
    for reader in readers {
        let received = reader.join().map_err(|_| "a client panicked")??;
        if let Err(why) = received.verdict {
            subject.flaw(why);
        }
        client = client.or(Some(payload.total as f64 * 1e3 / received.nanoseconds as f64));
    }
    container.wait_gone(PATIENCE);
    if let Err(why) = verify_log(&container.dir.log, &payload, flow.terminal) {
        subject.flaw(format!("the log {why}"));
    }
    // The next run shall not pay for writing this log to the disk.
    let _ = fs::remove_file(&container.dir.log);
    let total = payload.total as f64;
    Ok(Flowed { speed: total * 1e3 / wall as f64, cpu: cpu as f64 / total, peak: peak as f64, client })
}

/// Starts the flow and waits for the exit file: wall time and CPU time in nanoseconds, peak memory in KiB.
fn drain(container: &Container, limit: Duration) -> Outcome<(u64, u64, u64)> {
    let processes = container.processes(&Family::now());
    let cpu = || processes.iter().filter_map(|pid| processes::cpu(*pid)).sum::<u64>();
    let peak = || processes.iter().map(|pid| processes::status(*pid, "VmHWM:")).sum::<u64>();
    let (cpu_before, mut highest) = (cpu(), peak());
    let deadline = Instant::now() + limit;
    container.dir.go()?;
    while !container.exit_file_appears(Duration::from_millis(20)) {
        highest = highest.max(peak());
        if Instant::now() > deadline {
            return Err(STUCK.into());
        }
    }
    let wall = now() - container.dir.stamp(Stamp::FirstWrite);
    container.wait_gone(PATIENCE / 4);
    Ok((wall, cpu() - cpu_before, highest))
}
