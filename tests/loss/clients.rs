//! Attached clients that do not keep up, with and without a log to fall back on, and many that misbehave.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::disk;
use crate::flow::{Expect, Pattern};
use crate::reading::Reader;
use crate::rig::{LINES, MIB, Steady, ended, patience, reached, scene, size, totals};
use crate::support::attach::{Client, STDOUT};
use crate::support::scene::Live;
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, procs, same, wait};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("stall/reads-later", "5.6", "one client of three reads when all is written", |m| later(m, LINES)),
        Case::new("stall/reads-later-binary", "5.6", "the same with random bytes", |m| later(m, Pattern::Binary)),
        Case::new("stall/reads-after-the-end", "P3", "it reads when container and monitor are gone", after_the_end),
        Case::new("stall/reads-again-and-again", "P3", "clients that stop and go on at their own pace", paces),
        Case::new("stall/rotated", "P3", "the log is rotated while a client is behind", |m| rotated(m, true, false)),
        Case::new("stall/rotated-after-end", "P3", "the same, read after the end", |m| rotated(m, true, true)),
        Case::new("stall/rotated-removed", "P3", "rotated files are removed before it reads", |m| {
            rotated(m, false, true)
        }),
        Case::new("stall/gone", "P2", "a client that never read leaves", gone),
        Case::new("stall/gone-listener", "P2", "a client that only listened leaves while stdin is full", gone_listener),
        Case::new("stall/none-back-pressure", "P2", "without a log the stream waits for its reader", back_pressure),
        Case::new("stall/none-end-in-time", "P2", "without a log the exit is recorded in time", none_ends),
        Case::new("stall/none-killed", "P2", "the same when the container is killed while it waits", none_killed),
        Case::new("storm/200-clients", "5.1", "200 come, send garbage, read a bit and leave", |m| storm(m, false)),
        Case::new("storm/200-clients-stdin", "5.1", "the same with an open stdin", |m| storm(m, true)),
    ]
}

/// Reads stdout on a thread of its own, to the end, and compares it; the bytes that came.
pub fn follow(client: Client, pattern: Pattern) -> JoinHandle<Outcome<u64>> {
    std::thread::spawn(move || read_on(&client, pattern, 0, None))
}

/// Reads from the place `at` to `until`, or to the end of the stream.
pub fn read_on(client: &Client, pattern: Pattern, at: u64, until: Option<u64>) -> Outcome<u64> {
    let mut expect = Expect::new(pattern, at);
    while until.is_none_or(|until| expect.at < until) {
        let packet = client.packet_within(patience())?;
        match packet.ok_or_else(|| Fail::Wrong(format!("nothing came to a client at byte {}", expect.at)))? {
            None => break,
            Some((STDOUT, bytes)) => expect.take(&bytes).map_err(|fail| Fail::Wrong(format!("a client: {fail:?}")))?,
            Some((stream, _)) => return Err(format!("a packet of stream {stream}").into()),
        }
    }
    Ok(expect.at)
}

pub fn joined(thread: JoinHandle<Outcome<u64>>) -> Outcome<u64> {
    thread.join().map_err(|_| Fail::from("a client panicked"))?
}

/// A container that writes so much after its go and then waits for another.
fn waiter(monitor: &Monitor, pattern: Pattern, total: u64) -> Outcome<Live> {
    let script = format!("go; $W {} 0 {total}; : >$D/written; go; exit 4", pattern.name());
    scene(monitor, &script)?.start()
}

fn later(monitor: &Monitor, pattern: Pattern) -> Outcome {
    let total = size(128, 1024) * MIB;
    let live = waiter(monitor, pattern, total)?;
    let (slow, one, two) = (live.attach()?, live.attach()?, live.attach()?);
    let others = [follow(one, pattern), follow(two, pattern)];
    live.go()?;
    reached(&live, "written")?;
    // The log has all of it although the client has nothing yet.
    same("bytes read by the slow client", read_on(&slow, pattern, 0, Some(total))?, total)?;
    live.go()?;
    same("the end", slow.packet()?, None)?;
    for other in others {
        same("bytes read by another client", joined(other)?, total)?;
    }
    conclude(&live, pattern, total, 4)
}

fn conclude(live: &Live, pattern: Pattern, total: u64, status: i32) -> Outcome {
    same("status", ended(live)?, status)?;
    complete(live, pattern, total)
}

fn complete(live: &Live, pattern: Pattern, total: u64) -> Outcome {
    let mut reader = Reader::new(pattern);
    reader.eat(&live.dir.join("log"))?;
    reader.complete(total)?;
    same("exit.json", totals(live, 0)?, (total, 0))
}

fn after_the_end(monitor: &Monitor) -> Outcome {
    let total = size(128, 1024) * MIB;
    let live = scene(monitor, &format!("go; $W {} 0 {total}; exit 4", LINES.name()))?.start()?;
    let (slow, slower, quick) = (live.attach()?, live.attach()?, live.attach()?);
    let quick = follow(quick, LINES);
    live.go()?;
    conclude(&live, LINES, total, 4)?;
    same("bytes read by the quick client", joined(quick)?, total)?;
    same("exit file", live.exit_file()?, "4".to_owned())?;
    // Its name is gone, and so is the log's, by now; the bytes are not.
    for client in [slow, slower] {
        same("bytes read after the end", read_on(&client, LINES, 0, None)?, total)?;
    }
    Ok(())
}

/// Behind, live, behind again: at every change the stream goes on at the right byte.
fn paces(monitor: &Monitor) -> Outcome {
    let steady = Steady::start(scene(monitor, &paced())?, "log")?;
    let client = steady.live.attach()?;
    steady.live.go()?;
    let mut at = 0;
    for round in 0..size(30, 200) {
        std::thread::sleep(Duration::from_millis(round % 4 * 10));
        at = read_on(&client, LINES, at, Some(at + 64 * 1024 * (1 + round * 7 % 40)))?;
    }
    let total = steady.stop()?;
    same("bytes read by the client", read_on(&client, LINES, at, None)?, total)?;
    complete(&steady.live, LINES, total)
}

/// As [`Steady::script`], after a go.
fn paced() -> String {
    format!("go; {}", Steady::script(LINES))
}

fn rotated(monitor: &Monitor, keep: bool, end_first: bool) -> Outcome {
    let mut scene = scene(monitor, &paced())?;
    scene.set("--history-held-max", (64_u64 << 30).to_string());
    let steady = Steady::start(scene, "log")?;
    let slow = steady.live.attach()?;
    steady.live.go()?;
    let (mut pieces, mut reader) = (Vec::<PathBuf>::new(), Reader::new(LINES));
    for number in 0..8 {
        steady.grows(2 * MIB)?;
        let piece = steady.log.with_extension(number.to_string());
        disk::reopen(&steady, &piece)?;
        if keep { pieces.push(piece) } else { reader.eat(&piece)? }
    }
    let read = if end_first { 0 } else { read_on(&slow, LINES, 0, Some(20 * MIB))? };
    let total = steady.stop()?;
    same("bytes read by the slow client", read_on(&slow, LINES, read, None)?, total)?;
    pieces.iter().try_for_each(|piece| reader.eat(piece))?;
    reader.eat(&steady.log)?;
    reader.complete(total)
}

fn gone(monitor: &Monitor) -> Outcome {
    let total = 16 * MIB;
    let live = waiter(monitor, LINES, total)?;
    let before = settled(&live)?;
    let clients: Vec<Client> = (0..10).map(|_| live.attach()).collect::<Outcome<_>>()?;
    live.go()?;
    reached(&live, "written")?;
    drop(clients);
    descriptors_back(&live, before)?;
    live.go()?;
    conclude(&live, LINES, total, 4)
}

/// Who types no more does not wait for the container to take what others type.
fn gone_listener(monitor: &Monitor) -> Outcome {
    let mut scene = scene(monitor, "read line; echo $line; go; cat >/dev/null; exit 4")?;
    let live = scene.flag("-i").start()?;
    let before = settled(&live)?;
    let listener = live.attach()?;
    let typist = live.attach()?;
    typist.send(b"both are known\n")?;
    same("answer", listener.packet()?, Some((STDOUT, b"both are known\n".to_vec())))?;
    // Not before: the container's input ends with the last client that can type.
    listener.half_close()?;
    for _ in 0..64 {
        typist.send_now(&[b'x'; 30_000])?;
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(listener);
    descriptors_back(&live, before + 1)?;
    live.go()?;
    drop(typist);
    same("status", ended(&live)?, 4)
}

/// The monitor's descriptors when it has been started and opens no more of them.
fn settled(live: &Live) -> Outcome<usize> {
    let pid = live.pid()?;
    live.container()?;
    let (mut last, mut since) = (0, 0);
    wait::until("the monitor's descriptors to settle", patience(), || {
        let now = procs::descriptors(pid)?.len();
        since = if now == last { since + 1 } else { 0 };
        last = now;
        Ok((since > 10).then_some(now))
    })
}

fn descriptors_back(live: &Live, before: usize) -> Outcome {
    let pid = live.pid()?;
    let now = || procs::descriptors(pid).map(|list| list.len());
    wait::until(&format!("the monitor to have {before} descriptors again"), patience(), || {
        Ok((now()? <= before).then_some(()))
    })
}

/// A monitor without a log, and clients of its stdout.
fn no_log(monitor: &Monitor, script: &str) -> Outcome<Live> {
    scene(monitor, script)?.set("-l", "none").start()
}

fn back_pressure(monitor: &Monitor) -> Outcome {
    let total = size(64, 512) * MIB;
    let live = no_log(monitor, &format!("go; $W {} 0 {total}; : >$D/written; exit 4", LINES.name()))?;
    let (slow, quick) = (live.attach()?, live.attach()?);
    let quick = follow(quick, LINES);
    live.go()?;
    let written = live.dir.join("b/written");
    wait::never("all is written although a client reads nothing", Duration::from_millis(400), || written.exists())?;
    same("bytes read by the slow client", read_on(&slow, LINES, 0, None)?, total)?;
    same("bytes read by the quick client", joined(quick)?, total)?;
    same("status", ended(&live)?, 4)?;
    same("bytes in exit.json", totals(&live, 0)?, (total, 0))
}

/// Small enough for the pipe, too much for the client's socket.
fn none_ends(monitor: &Monitor) -> Outcome {
    let total = 900_000;
    let live = no_log(monitor, &format!("go; $W {} 0 {total} pipe:{MIB}; exit 4", LINES.name()))?;
    let (slow, quick) = (live.attach()?, live.attach()?);
    let quick = follow(quick, LINES);
    live.go()?;
    same("exit file", live.exit_file()?, "4".to_owned())?;
    same("status", ended(&live)?, 4)?;
    same("bytes read after the end", read_on(&slow, LINES, 0, None)?, total)?;
    same("bytes read by the quick client", joined(quick)?, total)?;
    same("exit.json", totals(&live, 0)?, (total, 0))
}

fn none_killed(monitor: &Monitor) -> Outcome {
    let live = no_log(monitor, &format!("go; exec $W {} 0 {}", LINES.name(), 1_u64 << 40))?;
    let container = live.container()?;
    let (slow, quick) = (live.attach()?, live.attach()?);
    let quick = follow(quick, LINES);
    live.go()?;
    // It reads a little, then stops: so much that the container surely waits in a write when it is killed.
    let read = read_on(&slow, LINES, 0, Some(2 * MIB))?;
    std::thread::sleep(Duration::from_millis(200));
    kill(container, Signal::SIGKILL)?;
    same("exit file", live.exit_file()?, "137".to_owned())?;
    same("status", ended(&live)?, 137)?;
    let (bytes, lost) = totals(&live, 0)?;
    check(bytes > read, format!("{bytes} bytes in exit.json, {read} were read before the end"))?;
    same("bytes lost", lost, 0)?;
    same("bytes read after the end", read_on(&slow, LINES, read, None)?, bytes)?;
    same("bytes read by the quick client", joined(quick)?, bytes)
}

fn storm(monitor: &Monitor, stdin: bool) -> Outcome {
    // What is sent and never read stays with its sender's connection, so there is somebody who reads.
    let mut scene = scene(monitor, &format!("exec 3<&0; cat <&3 >/dev/null & {}", Steady::script(LINES)))?;
    if stdin {
        scene.flag("-i");
    }
    let steady = Steady::start(scene, "log")?;
    let before = settled(&steady.live)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|seed| {
                scope.spawn({
                    let live = &steady.live;
                    move || rude(live, seed)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| Fail::from("a client panicked"))?)
    })?;
    steady.alive()?;
    descriptors_back(&steady.live, before)?;
    let total = steady.stop()?;
    complete(&steady.live, LINES, total)
}

/// 25 clients one after another; none is polite.
fn rude(live: &Live, seed: u64) -> Outcome {
    for number in 0..25 {
        let client = live.attach()?;
        let mut garbage = vec![0; 1 + usize::try_from(number * 1237 % 30_000).unwrap_or(0)];
        Pattern::Binary.fill(seed * 100_000 + number, &mut garbage);
        if number % 5 != 4 {
            // A monitor that has not read the last one yet may leave no room; waiting for it is not the point.
            client.send_now(&garbage)?;
        }
        for _ in 0..number % 4 {
            client.packet_within(Duration::from_secs(5))?;
        }
        if number % 3 == 0 {
            client.half_close()?;
        }
    }
    Ok(())
}
