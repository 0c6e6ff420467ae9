//! Clients of the Cap'n Proto service that stop, come late, or see the monitor replaced: conwardctl is one, in a process
//! of its own that can really be stopped.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clients::joined;
use crate::disk;
use crate::flow::{Expect, Pattern};
use crate::reading::Reader;
use crate::rig::{LINES, MIB, Steady, ended, patience, reached, scene, size, totals};
use crate::support::scene::Live;
use crate::support::suite::{Case, Column, Monitor, program};
use crate::support::{Fail, Outcome, check, procs, same, wait};
use crate::upgrade;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("service/stopped", "P3", "clients are stopped while all is written", |m| stopped(m, false)),
        Case::new("service/stopped-rotated", "P3", "the log is rotated meanwhile", |m| stopped(m, true)),
        Case::new("service/stopped-to-the-end", "P3", "they go on when monitor and container are gone", to_the_end),
        Case::new("service/stopped-for-ever", "P2", "one that never goes on is in nobody's way", for_ever),
        Case::new("service/rotated-removed", "P3", "bytes that cannot be had are told", removed),
        Case::new("service/tail", "P3", "the last lines and bytes of a log in several files", tail),
        Case::new("service/none", "P2", "without a log the stream waits for a stopped client", none),
        Case::new("service/replaced", "P15", "the monitor is replaced again and again", replaced),
    ]
}

// ---------------------------------------------------------------- clients

fn command(live: &Live, words: &[&str]) -> Outcome<Command> {
    let beside = program(Column::Conward).map(|path| path.with_file_name("conwardctl")).ok_or("no conward")?;
    let path = std::env::var_os("CONWARDCTL").map_or(beside, PathBuf::from);
    if !path.exists() {
        return Err(Fail::Skip(
            "no conwardctl beside the monitor (cargo build --release --package conmon-proto)".into(),
        ));
    }
    let mut command = Command::new(path);
    command.args(words).arg("--socket").arg(live.dir.join("b/conward.sock")).stdin(Stdio::null());
    Ok(command)
}

/// What conwardctl prints.
fn said(live: &Live, words: &[&str]) -> Outcome<(Vec<u8>, String)> {
    let output = command(live, words)?.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    check(output.status.success(), format!("{words:?}: {stderr}"))?;
    Ok((output.stdout, stderr))
}

fn inspect(live: &Live) -> Outcome<serde_json::Value> {
    Ok(serde_json::from_slice(&said(live, &["inspect", "--json"])?.0)?)
}

/// A client that follows the log, and the thread that compares what it prints.
struct Follower {
    child: Child,
    reader: Option<JoinHandle<Outcome<u64>>>,
}

impl Follower {
    fn start(live: &Live, pattern: Pattern) -> Outcome<Follower> {
        // The doors are opened while the runtime is at work.
        let socket = live.dir.join("b/conward.sock");
        wait::until("the service", patience(), || Ok(socket.exists().then_some(())))?;
        let mut child = command(live, &["logs", "-f"])?.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let mut stdout = child.stdout.take().ok_or("no stdout")?;
        let reader = std::thread::spawn(move || {
            let (mut expect, mut buffer) = (Expect::new(pattern, 0), vec![0; 1 << 16]);
            loop {
                match stdout.read(&mut buffer)? {
                    0 => return Ok(expect.at),
                    count => expect.take(&buffer[..count])?,
                }
            }
        });
        Ok(Follower { child, reader: Some(reader) })
    }

    /// Several, which are all attached.
    fn some(live: &Live, count: usize) -> Outcome<Vec<Follower>> {
        let all = (0..count).map(|_| Follower::start(live, LINES)).collect::<Outcome<Vec<_>>>()?;
        wait::until("the clients to be attached", patience(), || {
            Ok((inspect(live)?["clients"].as_array().is_some_and(|clients| clients.len() == count)).then_some(()))
        })?;
        Ok(all)
    }

    fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id()).map_err(|_| "a pid")?), signal)?)
    }

    /// Bytes that it printed, when it has ended.
    fn total(mut self) -> Outcome<u64> {
        let total = joined(self.reader.take().ok_or("it was joined")?)?;
        check(self.child.wait()?.success(), "the client ends well")?;
        Ok(total)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may be stopped, and the case may have failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---------------------------------------------------------------- cases

/// A container that waits for its go, then writes until it is stopped.
fn steady(monitor: &Monitor) -> Outcome<Steady> {
    let mut scene = scene(monitor, &format!("go; {}", Steady::script(LINES)))?;
    scene.set("--history-held-max", (64_u64 << 30).to_string());
    Steady::start(scene, "log")
}

/// Private memory of the monitor that was written to, KiB.
fn dirty(live: &Live) -> Outcome<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", live.pid()?))?;
    let line = text.lines().find(|line| line.starts_with("Private_Dirty:")).ok_or("no Private_Dirty")?;
    Ok(line.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok()).ok_or("a number")?)
}

/// What each client may cost while it stands still, and the monitor itself with its buffers, KiB.
const EACH: u64 = 200;
const BUSY: u64 = 700;

fn stopped(monitor: &Monitor, rotate: bool) -> Outcome {
    let clients = 8;
    let steady = steady(monitor)?;
    let followers = Follower::some(&steady.live, clients)?;
    followers.iter().try_for_each(|follower| follower.signal(Signal::SIGSTOP))?;
    steady.live.go()?;
    let (mut pieces, mut peak) = (Vec::new(), 0);
    let parts = 8;
    for number in 0..parts {
        steady.grows(size(8, 128) * MIB)?;
        peak = peak.max(dirty(&steady.live)?);
        if rotate {
            let piece = steady.log.with_extension(number.to_string());
            disk::reopen(&steady, &piece)?;
            pieces.push(piece);
        }
    }
    let bound = BUSY + EACH * clients as u64 + program_size(monitor)?;
    check(peak <= bound, format!("{peak} KiB of private memory with {clients} stopped clients, the bound is {bound}"))?;
    followers.iter().try_for_each(|follower| follower.signal(Signal::SIGCONT))?;
    let total = steady.stop()?;
    for follower in followers {
        same("bytes that a client printed", follower.total()?, total)?;
    }
    let mut reader = Reader::new(LINES);
    pieces.iter().try_for_each(|piece| reader.eat(piece))?;
    reader.eat(&steady.log)?;
    reader.complete(total)
}

/// A program that was built just now may not be on the disk yet: then its pages count as written to, KiB.
fn program_size(_: &Monitor) -> Outcome<u64> {
    Ok(std::fs::metadata(program(Column::Conward).ok_or("no conward")?)?.len() / 1024)
}

fn to_the_end(monitor: &Monitor) -> Outcome {
    let total = size(64, 1024) * MIB;
    let live = scene(monitor, &format!("go; $W {} 0 {total}; exit 4", LINES.name()))?.start()?;
    live.container()?;
    let followers = Follower::some(&live, 3)?;
    followers[..2].iter().try_for_each(|follower| follower.signal(Signal::SIGSTOP))?;
    live.go()?;
    same("status", ended(&live)?, 4)?;
    same("exit.json", totals(&live, 0)?, (total, 0))?;
    check(!live.dir.join("b/conward.sock").exists(), "the socket is gone")?;
    followers[..2].iter().try_for_each(|follower| follower.signal(Signal::SIGCONT))?;
    for follower in followers {
        same("bytes that a client printed", follower.total()?, total)?;
    }
    Ok(())
}

fn for_ever(monitor: &Monitor) -> Outcome {
    let steady = steady(monitor)?;
    let mut followers = Follower::some(&steady.live, 2)?;
    followers[0].signal(Signal::SIGSTOP)?;
    steady.live.go()?;
    steady.grows(16 * MIB)?;
    let waiting = command(&steady.live, &["wait"])?.stdout(Stdio::piped()).spawn()?;
    let total = steady.stop()?;
    let waited = waiting.wait_with_output()?;
    same("what wait says", String::from_utf8_lossy(&waited.stdout).trim().to_owned(), "5".to_owned())?;
    same("bytes that the other client printed", followers.remove(1).total()?, total)?;
    check(!procs::alive(steady.live.pid()?), "the monitor has ended")
}

fn removed(monitor: &Monitor) -> Outcome {
    let mut scene = scene(monitor, &format!("{}; go", writes(3 * MIB)))?;
    scene.flag("--log-rotate").set("--log-size-max", (MIB).to_string()).set("--log-max-files", "1");
    let live = scene.start()?;
    reached(&live, "written")?;
    let (bytes, told) = said(&live, &["logs"])?;
    let state = inspect(&live)?;
    same("bytes written", state["streams"][0]["bytes"].as_u64(), Some(3 * MIB))?;
    let lost = 3 * MIB - bytes.len() as u64;
    check(lost > 0 && told.contains("bytes of stdout are lost here"), format!("{lost} bytes are missing: {told:?}"))?;
    Expect::new(LINES, lost).take(&bytes)?;
    live.go()?;
    same("status", ended(&live)?, 0)
}

/// A script that writes so much.
fn writes(total: u64) -> String {
    format!("$W {} 0 {total}; : >$D/written", LINES.name())
}

fn tail(monitor: &Monitor) -> Outcome {
    let total = 5 * MIB;
    let mut scene = scene(monitor, &format!("{}; go", writes(total)))?;
    scene.flag("--log-rotate").set("--log-size-max", MIB.to_string()).set("--log-max-files", "20");
    let live = scene.start()?;
    reached(&live, "written")?;
    let mut all = vec![0; usize::try_from(total).map_err(|_| "a size")?];
    LINES.fill(0, &mut all);
    for count in [1, 7, 20_000] {
        let (bytes, _) = said(&live, &["logs", "--tail", &count.to_string()])?;
        let from = all[..all.len() - 1].iter().rev().enumerate().filter(|(_, byte)| **byte == b'\n').nth(count - 1);
        let from = from.map_or(0, |(back, _)| all.len() - 1 - back);
        check(bytes == all[from..], format!("the last {count} lines: {} bytes for {}", bytes.len(), all.len() - from))?;
    }
    for count in [1_usize, 100_001, 4 << 20] {
        let (bytes, _) = said(&live, &["logs", "--bytes", &count.to_string()])?;
        check(bytes == all[all.len() - count..], format!("the last {count} bytes"))?;
    }
    check(said(&live, &["logs"])?.0 == all, "all of it")?;
    let (bytes, _) = said(&live, &["logs", "--since-offset", "1234567"])?;
    check(bytes == all[1_234_567..], "from an offset on")?;
    live.go()?;
    same("status", ended(&live)?, 0)
}

fn none(monitor: &Monitor) -> Outcome {
    let total = 16 * MIB;
    let script = format!("go; $W {} 0 {total}; : >$D/written; exit 4", LINES.name());
    let live = scene(monitor, &script)?.set("-l", "none").start()?;
    live.container()?;
    let followers = [attached(&live)?, attached(&live)?];
    followers[0].signal(Signal::SIGSTOP)?;
    live.go()?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    check(!live.dir.join("b/written").exists(), "the stream waits for the stopped client")?;
    followers[0].signal(Signal::SIGCONT)?;
    same("status", ended(&live)?, 4)?;
    for mut follower in followers {
        let reader = follower.reader.take().ok_or("it was joined")?;
        same("bytes that a client printed", joined(reader)?, total)?;
        same("its status", follower.child.wait()?.code(), Some(4))?;
    }
    same("exit.json", totals(&live, 0)?, (total, 0))
}

/// A client that is attached without history.
fn attached(live: &Live) -> Outcome<Follower> {
    let before = inspect(live)?["clients"].as_array().map_or(0, Vec::len);
    let mut command = command(live, &["attach", "--no-stdin", "--history", "none"])?;
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    let reader = std::thread::spawn(move || {
        let (mut expect, mut buffer) = (Expect::new(LINES, 0), vec![0; 1 << 16]);
        loop {
            match stdout.read(&mut buffer)? {
                0 => return Ok(expect.at),
                count => expect.take(&buffer[..count])?,
            }
        }
    });
    let follower = Follower { child, reader: Some(reader) };
    wait::until("the client to be attached", patience(), || {
        Ok((inspect(live)?["clients"].as_array().is_some_and(|clients| clients.len() > before)).then_some(()))
    })?;
    Ok(follower)
}

fn replaced(monitor: &Monitor) -> Outcome {
    let scene = upgrade::scene(monitor, &format!("go; {}", Steady::script(LINES)))?;
    let steady = Steady::start(scene, "log")?;
    upgrade::started(&steady.live)?;
    let pid = steady.pid()?;
    let client = steady.live.attach()?;
    let quick = crate::clients::follow(client, LINES);
    // The client of the service comes second: both count.
    let follower = Follower::start(&steady.live, LINES)?;
    steady.live.go()?;
    for round in 0..size(10, 100) {
        if round % 2 == 0 {
            upgrade::replace(&steady.live)?;
        } else {
            said(&steady.live, &["upgrade"])?;
        }
        steady.grows(MIB)?;
    }
    same("pid", steady.pid()?, pid)?;
    let total = steady.stop()?;
    same("bytes that the client of the service printed", follower.total()?, total)?;
    same("bytes that the attached client read", joined(quick)?, total)?;
    let mut reader = Reader::new(LINES);
    reader.eat(&steady.log)?;
    reader.complete(total)?;
    same("exit.json", totals(&steady.live, 0)?, (total, 0))
}
