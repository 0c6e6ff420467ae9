//! How long a caller waits: start, exit, exec.

use super::{
    Bench, Subject,
    container::{Outcome, PATIENCE, Place, Plan, Reports, pause},
    milliseconds, row,
    runtime::{Role, Stamp, now},
    table::Row,
};

/// Nanoseconds of one life.
struct Life {
    start: u64,
    begin: u64,
    exit: u64,
    gone: u64,
}

pub fn start(bench: &mut Bench) -> Vec<Row> {
    let rounds = bench.rounds(15, 80);
    let lives = bench.compare("start", rounds, |subject| life(subject, false));
    vec![
        row("start → container's pid reported", "ms", 2, &lives, |life| milliseconds(life.start)),
        row("start → container's first instruction", "ms", 2, &lives, |life| milliseconds(life.begin)),
    ]
}

pub fn exit(bench: &mut Bench) -> Vec<Row> {
    let rounds = bench.rounds(15, 80);
    let bare = bench.compare("exit, --no-sync-log", rounds, |subject| life(subject, false));
    let synced = bench.compare("exit", rounds, |subject| life(subject, true));
    vec![
        row("container's end → exit file, `--no-sync-log`", "ms", 3, &bare, |life| milliseconds(life.exit)),
        row("container's end → exit file", "ms", 3, &synced, |life| milliseconds(life.exit)),
        row("container's end → monitor gone, `--no-sync-log`", "ms", 3, &bare, |life| milliseconds(life.gone)),
    ]
}

fn life(subject: &Subject, sync_log: bool) -> Outcome<Life> {
    let container = subject.start(&Role::Exit, Plan { sync_log, ..Plan::default() })?;
    // A monitor that polls is met at any phase.
    pause(10 + now() / 1000 % 20);
    container.dir.go()?;
    let written = container.wait_exit_file(PATIENCE).ok_or("no exit file")?;
    let gone = container.wait_gone(PATIENCE).then(now).ok_or("the monitor stays")?;
    let end = container.dir.stamp(Stamp::End);
    Ok(Life { start: container.start, begin: container.begin, exit: written - end, gone: gone - end })
}

pub fn exec(bench: &mut Bench) -> Vec<Row> {
    let rounds = bench.rounds(15, 80);
    let times = bench.compare("exec", rounds, exec_once);
    vec![
        row("exec: start → pid reported", "ms", 2, &times, |(pid, _)| milliseconds(*pid)),
        row("exec: start → exit code of a process that ends at once", "ms", 2, &times, |(_, code)| {
            milliseconds(*code)
        }),
    ]
}

/// Nanoseconds until the pid and until the exit code was reported.
pub fn exec_once(subject: &Subject) -> Outcome<(u64, u64)> {
    let run = || -> std::io::Result<(u64, u64)> {
        let place = Place::new(subject.work, &Role::Quick)?;
        let spec = place.bundle.join("role");
        let mut command = place.command(subject.monitor)?;
        command.arg("-P").arg(place.monitor_pidfile()).arg("-b").arg(&place.bundle);
        command.args(["-l", "none", "-e", "--exec-process-spec"]).arg(&spec);
        let mut reports = Reports::start(&mut command)?;
        let pid = (reports.next()?, reports.latest - reports.began);
        let code = (reports.next()?, reports.latest - reports.began);
        if pid.0 <= 0 || code.0 != 0 {
            return Err(std::io::Error::other(format!("reports of {} and {}", pid.0, code.0)));
        }
        place.reap_monitor()?;
        Ok((pid.1, code.1))
    };
    run().map_err(|error| format!("exec fails: {error}"))
}
