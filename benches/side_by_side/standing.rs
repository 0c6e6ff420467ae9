//! What monitors cost that have little or nothing to do.

use super::{
    Bench, Subject,
    container::{Container, Outcome, Plan, pause},
    pairs,
    processes::{self, Family},
    row,
    runtime::Role,
    table::Row,
};

/// What one idle monitor has, on the average.
struct Holding {
    memory: f64,
    threads: f64,
    descriptors: f64,
}

pub fn idle(bench: &mut Bench) -> Vec<Row> {
    let (count, rounds) = (bench.size(10, 50), bench.rounds(1, 3));
    let found = bench.compare("idle", rounds, |subject| holding(subject, count));
    vec![
        row(&format!("private memory (USS), each of {count} idle monitors"), "KiB", 0, &found, |idle| idle.memory),
        row("threads of an idle monitor", "", 0, &found, |idle| idle.threads),
        row("open descriptors of an idle monitor", "", 0, &found, |idle| idle.descriptors),
    ]
}

fn holding(subject: &Subject, count: u32) -> Outcome<Holding> {
    let (_containers, all) = many(subject, &Role::Sleep, count)?;
    pause(1000);
    let each = |number: fn(i32) -> u64| all.iter().map(|pid| number(*pid)).sum::<u64>() as f64 / f64::from(count);
    Ok(Holding {
        memory: each(processes::private_memory),
        threads: each(|pid| processes::status(pid, "Threads:")),
        descriptors: each(processes::descriptors),
    })
}

/// Containers, and the processes of all their monitors.
fn many(subject: &Subject, role: &Role, count: u32) -> Outcome<(Vec<Container>, Vec<i32>)> {
    let containers = (0..count).map(|_| subject.start(role, Plan::default())).collect::<Outcome<Vec<_>>>()?;
    let family = Family::now();
    let processes = containers.iter().flat_map(|container| container.processes(&family)).collect();
    Ok((containers, processes))
}

pub fn wakeups(bench: &mut Bench) -> Vec<Row> {
    let (seconds, rounds) = (bench.size(2, 5), bench.rounds(1, 2));
    let counts = bench.compare("wakeups", rounds, |subject| {
        let (_containers, all) = many(subject, &Role::Sleep, 1)?;
        pause(1000);
        let switches = || all.iter().map(|pid| processes::switches(*pid)).sum::<u64>();
        let before = switches();
        pause(seconds * 1000);
        Ok(switches() - before)
    });
    vec![row(&format!("context switches of an idle monitor in {seconds} s"), "", 0, &counts, |count| *count as f64)]
}

pub fn fan_in(bench: &mut Bench) -> Vec<Row> {
    let (count, seconds, rounds) = (bench.size(20, 100), bench.size(3, 10), bench.rounds(1, 3));
    let role = Role::Paced { rate: 10, seconds };
    let times = bench.compare("fanin", rounds, |subject| {
        let (containers, all) = many(subject, &role, count)?;
        pause(300);
        let cpu = || all.iter().filter_map(|pid| processes::cpu(*pid)).sum::<u64>();
        let before = cpu();
        containers.iter().try_for_each(|container| container.dir.go())?;
        pause(u64::from(seconds) * 1000 + 700);
        let spent = cpu() - before;
        let expected = u64::from(count) * u64::from(seconds) * 10;
        match containers.iter().map(logged_lines).sum::<u64>() {
            lines if lines == expected => {}
            lines => subject.flaw(format!("{lines} of {expected} lines are in the logs")),
        }
        Ok(spent as f64 / 1e3 / expected as f64)
    });
    let title = format!("fan-in: {count} monitors, 10 lines/s each, {seconds} s: CPU per line");
    vec![Row::new(title, "µs", 1, pairs(&times, |time| Some(*time)))]
}

fn logged_lines(container: &Container) -> u64 {
    let log = std::fs::read(&container.dir.log).unwrap_or_default();
    memchr::memchr_iter(b'\n', &log).count() as u64
}
