//! Clients of the service that do not keep up, while the container runs and after its end, with and without a log.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conmon_proto::History;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::clients::{follow, joined};
use crate::flow::Pattern;
use crate::reading;
use crate::rig::{LINES, MIB, ended, patience, reached, scene, size, soak, totals};
use crate::rpc::{Door, Follower, Reader, socket, talk};
use crate::support::scene::Live;
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, contains, procs, same, wait};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("service/stopped", "P2", "a stopped client of either kind", |m| stopped(m, 1, LINES)),
        Case::new("service/stopped-binary", "P2", "the same with random bytes", |m| stopped(m, 1, Pattern::Binary)),
        Case::new("service/stopped-8", "P3", "8 of each kind, and a rotation", |m| stopped(m, 8, LINES)),
        Case::new("service/stopped-throughput", "P2", "they slow nothing down (SOAK=1)", throughput),
        Case::new("service/stopped-past-the-end", "P3", "they go on when container and monitor are gone", past_the_end),
        Case::new("service/never-reads", "P2", "one that never reads again costs one process", never_reads),
        Case::new("service/keeps-up", "P2", "for one that keeps up nothing is left behind", keeps_up),
        Case::new("service/survivor", "P1", "what survivors write comes to nobody behind the end", survivor),
        Case::new("service/none-back-pressure", "P2", "without a log the stream waits for its reader", back_pressure),
        Case::new("service/none-end-in-time", "P2", "without a log the exit is recorded in time", none_ends),
        Case::new("service/none-dies", "P2", "without a log a stopped client is killed", |m| none_goes_on(m, true)),
        Case::new("service/none-stall-timeout", "P2", "without a log a stopped client is dropped", |m| {
            none_goes_on(m, false)
        }),
    ]
}

/// Private memory that one client may cost while it takes nothing.
const EACH: u64 = 200 * 1024;

/// Private memory of a monitor at work, without clients of the service.
const AT_WORK: u64 = 768 * 1024;

fn script(pattern: Pattern, total: u64) -> String {
    format!("go; $W {} 0 {total}; : >$D/written; go; exit 4", pattern.name())
}

fn start(live: &Live, count: usize, pattern: Pattern) -> Outcome<Vec<Reader>> {
    live.container()?;
    let mut readers = Vec::new();
    for door in [Door::Service, Door::Attach] {
        for _ in 0..count {
            readers.push(Reader::start(live, door, pattern)?);
        }
    }
    Ok(readers)
}

fn signal(readers: &[Reader], signal: Signal) -> Outcome {
    readers.iter().try_for_each(|reader| reader.signal(signal))
}

fn stopped(monitor: &Monitor, count: usize, pattern: Pattern) -> Outcome {
    let total = size(64, 1024) * MIB;
    let mut scene = scene(monitor, &script(pattern, total))?;
    let live = scene.set("--history-held-max", (64_u64 << 30).to_string()).start()?;
    let readers = start(&live, count, pattern)?;
    signal(&readers, Signal::SIGSTOP)?;
    let (log, piece) = (live.dir.join("log"), live.dir.join("log.1"));
    let peak = watched(&live, || {
        live.go()?;
        if count > 1 {
            wait::until("half of the log", patience(), || Ok((fs::metadata(&log)?.len() > total / 2).then_some(())))?;
            fs::rename(&log, &piece)?;
            talk(&socket(&live), async |client| Ok(client.reopen_log().await.map(drop)?))?;
        }
        reached(&live, "written")?;
        signal(&readers, Signal::SIGCONT)?;
        live.go()
    })?;
    same("exit file", live.exit_file()?, "4".to_owned())?;
    for reader in readers {
        let (at, end) = reader.result()?;
        same("bytes read", at, total)?;
        check(end == "end" || end == "ended 4", format!("the end was {end:?}"))?;
    }
    same("status", ended(&live)?, 4)?;
    let bound = AT_WORK + 2 * count as u64 * EACH;
    check(peak <= bound, format!("{peak} bytes of private memory with {count} clients of each kind, {bound} allowed"))?;
    let mut reader = reading::Reader::new(pattern);
    if count > 1 {
        reader.eat(&piece)?;
    }
    reader.eat(&log)?;
    reader.complete(total)
}

/// Does something while the monitor's private memory is watched; its peak in bytes.
fn watched(live: &Live, work: impl FnOnce() -> Outcome) -> Outcome<u64> {
    let (path, peak, done) = (format!("/proc/{}/smaps_rollup", live.pid()?), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let text = fs::read_to_string(&path).unwrap_or_default();
                let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
                let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
                peak.fetch_max(kib * 1024, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        worked
    })?;
    let peak = peak.into_inner();
    check(peak > 0, "nothing was measured")?;
    Ok(peak)
}

/// Pairs of the same load without and with stopped clients; times say little on a machine that is busy.
fn throughput(monitor: &Monitor) -> Outcome {
    if !soak() {
        return Err(Fail::Skip("a measure: SOAK=1".to_owned()));
    }
    let total = 1024 * MIB;
    let mut ratios = Vec::new();
    for _ in 0..7 {
        let times = [0, 1].map(|count| timed(monitor, count, total));
        let [without, with] = times;
        ratios.push(without?.as_secs_f64() / with?.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    check(ratios[3] >= 0.95, format!("throughput with stopped clients by that without, sorted: {ratios:.3?}"))
}

fn timed(monitor: &Monitor, count: usize, total: u64) -> Outcome<Duration> {
    let live = scene(monitor, &script(LINES, total))?.start()?;
    let readers = start(&live, count, LINES)?;
    signal(&readers, Signal::SIGSTOP)?;
    let begun = Instant::now();
    live.go()?;
    reached(&live, "written")?;
    let took = begun.elapsed();
    signal(&readers, Signal::SIGKILL)?;
    live.go()?;
    same("status", ended(&live)?, 4)?;
    fs::remove_dir_all(&live.dir)?;
    Ok(took)
}

// ---------------------------------------------------------------- the end

/// Processes that a monitor has left behind; they are ours by now.
fn left_behind() -> Vec<Pid> {
    let is_monitor = |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "conward\n");
    procs::children_of(Pid::this()).into_iter().filter(|pid| procs::alive(*pid)).filter(is_monitor).collect()
}

fn all_gone() -> Outcome {
    wait::until("what was left behind to end", patience(), || Ok(left_behind().is_empty().then_some(())))
}

/// The container ends while its readers are stopped: everything is on time, and then they get the rest.
fn past_the_end(monitor: &Monitor) -> Outcome {
    let total = size(32, 1024) * MIB;
    let mut scene = scene(monitor, &format!("go; $W {} 0 {total}; exit 4", LINES.name()))?;
    let live = scene.exit_command(&["one"]).start()?;
    let (readers, quick) = (start(&live, 2, LINES)?, Reader::start(&live, Door::Service, LINES)?);
    signal(&readers, Signal::SIGSTOP)?;
    live.go()?;
    on_time(&live, 4)?;
    live.after()?;
    same("the quick reader", quick.result()?, (total, "ended 4".to_owned()))?;
    // One for those of the service, one for those of the attach socket.
    same("processes left behind", left_behind().len(), 2)?;
    fs::remove_file(live.dir.join("log"))?;
    signal(&readers, Signal::SIGCONT)?;
    for (number, reader) in readers.into_iter().enumerate() {
        let end = if number < 2 { "ended 4" } else { "end" };
        same("a reader that was stopped", reader.result()?, (total, end.to_owned()))?;
    }
    all_gone()
}

/// The exit is on record and the monitor gone, whoever does not read.
fn on_time(live: &Live, status: i32) -> Outcome {
    same("exit file", live.exit_file()?, status.to_string())?;
    let recorded = Instant::now();
    same("status", ended(live)?, status)?;
    let late = recorded.elapsed();
    check(late < Duration::from_secs(2), format!("the monitor was there {late:?} after the exit file"))
}

fn never_reads(monitor: &Monitor) -> Outcome {
    let live = scene(monitor, &format!("go; $W {} 0 {}; exit 4", LINES.name(), 8 * MIB))?.start()?;
    live.container()?;
    let reader = Reader::start(&live, Door::Service, LINES)?;
    reader.signal(Signal::SIGSTOP)?;
    live.go()?;
    on_time(&live, 4)?;
    let left = left_behind();
    same("processes left behind", left.len(), 1)?;
    let before = procs::cpu_ticks(left[0])?;
    wait::never("it ends by itself", Duration::from_millis(400), || left_behind() != left)?;
    check(procs::cpu_ticks(left[0])? <= before + 1, "it works although it has nothing to do")?;
    reader.signal(Signal::SIGKILL)?;
    all_gone()
}

fn keeps_up(monitor: &Monitor) -> Outcome {
    for _ in 0..size(5, 50) {
        let live = scene(monitor, "go; echo all; exit 4")?.start()?;
        live.container()?;
        // A reader of two lines that are equal: the pattern is not the point here.
        let (seen, waited) = talk(&socket(&live), async |client| {
            let request = conmon_proto::AttachRequest::default();
            let (output, mut events) = conmon_proto::output();
            let _attachment = client.attach(&request, output).await?;
            live.go()?;
            let mut seen = Vec::new();
            while let Some(event) = crate::rpc::soon("output", events.next()).await? {
                seen.push(event);
            }
            Ok((seen, client.wait().await.is_err()))
        })?;
        let [conmon_proto::Event::Write { data, offset: 0, .. }, conmon_proto::Event::End(end)] = &seen[..] else {
            return Err(format!("what came: {seen:?}").into());
        };
        same("output", &data[..], b"all\n")?;
        same("status in the end", end.exit.as_ref().map(|exit| exit.status), Some(4))?;
        check(waited, "the connection ends with the monitor")?;
        same("status", ended(&live)?, 4)?;
        // It may have been behind for the moment in which the container ended.
        all_gone()?;
        fs::remove_dir_all(&live.dir)?;
    }
    Ok(())
}

/// A stopped client keeps the service busy in the end, while a grandchild goes on to write.
fn survivor(monitor: &Monitor) -> Outcome {
    let own = 4 * MIB;
    let script = format!("go; $W {} 0 {own}; $W {} {own} {} & exit 3", LINES.name(), LINES.name(), 1_u64 << 40);
    let live = scene(monitor, &script)?.start()?;
    live.container()?;
    let reader = Reader::start(&live, Door::Service, LINES)?;
    live.go()?;
    same("exit file", live.exit_file()?, "3".to_owned())?;
    same("status", ended(&live)?, 3)?;
    let (total, _) = totals(&live, 0)?;
    same("the reader", reader.result()?, (total, "ended 3".to_owned()))?;
    let mut log = reading::Reader::new(LINES);
    log.eat(&live.dir.join("log"))?;
    log.complete(total)
}

// ---------------------------------------------------------------- without a log

fn no_log(monitor: &Monitor, script: &str, options: &[(&str, &str)]) -> Outcome<Live> {
    let mut scene = scene(monitor, script)?;
    for (name, value) in options {
        scene.set(name, value);
    }
    let live = scene.set("-l", "none").start()?;
    live.container()?;
    Ok(live)
}

fn back_pressure(monitor: &Monitor) -> Outcome {
    let total = size(32, 512) * MIB;
    let live = no_log(monitor, &format!("go; $W {} 0 {total}; : >$D/written; exit 4", LINES.name()), &[])?;
    let (slow, other) = (Reader::start(&live, Door::Service, LINES)?, Reader::start(&live, Door::Service, LINES)?);
    let packets = follow(live.attach()?, LINES);
    let refused = talk(&socket(&live), async |client| {
        Ok(Follower::attach(client, [Some(LINES), None], History::All).await.err().map(|fail| format!("{fail:?}")))
    })?;
    contains("history without a log", &refused.unwrap_or_default(), "no k8s-file log")?;
    slow.signal(Signal::SIGSTOP)?;
    live.go()?;
    let written = live.dir.join("b/written");
    wait::never("all is written although a client reads nothing", Duration::from_millis(400), || written.exists())?;
    slow.signal(Signal::SIGCONT)?;
    for reader in [slow, other] {
        same("a reader", reader.result()?, (total, "ended 4".to_owned()))?;
    }
    same("bytes read from the attach socket", joined(packets)?, total)?;
    same("status", ended(&live)?, 4)?;
    same("bytes in exit.json", totals(&live, 0)?, (total, 0))
}

/// Small enough for the pipe, too much for what may be on its way to a client.
fn none_ends(monitor: &Monitor) -> Outcome {
    let total = 900_000;
    let live = no_log(monitor, &format!("go; $W {} 0 {total} pipe:{MIB}; exit 4", LINES.name()), &[])?;
    let (slow, quick) = (Reader::start(&live, Door::Service, LINES)?, Reader::start(&live, Door::Service, LINES)?);
    slow.signal(Signal::SIGSTOP)?;
    live.go()?;
    on_time(&live, 4)?;
    same("the quick reader", quick.result()?, (total, "ended 4".to_owned()))?;
    slow.signal(Signal::SIGCONT)?;
    same("the slow reader", slow.result()?, (total, "ended 4".to_owned()))?;
    all_gone()
}

/// Whom a stream waited for goes away: it goes on, and the others have all of it.
fn none_goes_on(monitor: &Monitor, killed: bool) -> Outcome {
    let total = size(16, 256) * MIB;
    let options: &[_] = if killed { &[] } else { &[("--attach-stall-timeout", "1")] };
    let script = format!("go; $W {} 0 {total}; : >$D/written; go; exit 4", LINES.name());
    let live = no_log(monitor, &script, options)?;
    let (slow, quick) = (Reader::start(&live, Door::Service, LINES)?, Reader::start(&live, Door::Service, LINES)?);
    slow.signal(Signal::SIGSTOP)?;
    live.go()?;
    let written = live.dir.join("b/written");
    wait::never("all is written although a client reads nothing", Duration::from_millis(300), || written.exists())?;
    if killed {
        slow.signal(Signal::SIGKILL)?;
    }
    reached(&live, "written")?;
    if !killed {
        slow.signal(Signal::SIGCONT)?;
        let (at, end) = slow.result()?;
        same("the end", end, "detached".to_owned())?;
        check(at < total, "it was dropped after it had everything")?;
    }
    live.go()?;
    same("the quick reader", quick.result()?, (total, "ended 4".to_owned()))?;
    same("status", ended(&live)?, 4)?;
    same("bytes in exit.json", totals(&live, 0)?, (total, 0))
}
