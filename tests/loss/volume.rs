//! Sheer amounts: many lines, long lines, any bytes, and much that is still in flight at the end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::flow::{Expect, Pattern, enlarge};
use crate::reading::Reader;
use crate::rig::{LINES, MIB, ended, patience, reached, scene, size, totals, writes};
use crate::support::scene::CID;
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, procs, same, wait};

pub fn cases() -> Vec<Case> {
    let row = |id: &str, what: &str, pattern: Pattern, usual: u64, long: u64| {
        Case::new(id, "7.3", what, move |monitor| volume(monitor, pattern, size(usual, long)))
    };
    vec![
        row("volume/empty-lines", "lines that are only a newline", Pattern::Lines(1), MIB, 16 * MIB),
        row("volume/1-byte-lines", "lines of one byte", Pattern::Lines(2), 4 * MIB, 64 * MIB),
        row("volume/100-byte-lines", "lines of 100 bytes", LINES, 128 * MIB, 1024 * MIB),
        row("volume/16-kib-lines", "lines of 16 KiB", Pattern::Lines(16384), 128 * MIB, 1024 * MIB),
        row("volume/one-line", "one line", Pattern::Lines(u64::MAX), 64 * MIB, 1024 * MIB),
        row("volume/binary", "random bytes: NUL, newlines, invalid UTF-8", Pattern::Binary, 64 * MIB, 1024 * MIB),
        Case::new("volume/both-streams", "7.3", "stdout and stderr at once", both),
        Case::new("volume/json-file", "native", "json-file under load", json),
        Case::new("flight/lines", "3.9", "the largest pipe is full when the container ends", |m| in_flight(m, LINES)),
        Case::new("flight/one-line", "3.9", "the same without any newline", |m| in_flight(m, Pattern::Lines(u64::MAX))),
        Case::new("flight/64-mib", "3.9", "64 MiB at full speed and an immediate end, several times", hurried),
        Case::new("flight/any-size", "3.9", "pipes full of long lines at the end, in many sizes", any_size),
        Case::new("flight/at-once", "3.9", "written and ended at full speed, again and again", at_once),
    ]
}

fn volume(monitor: &Monitor, pattern: Pattern, total: u64) -> Outcome {
    let live = scene(monitor, &writes(pattern, total))?.start()?;
    same("status", ended(&live)?, 0)?;
    let mut reader = Reader::new(pattern);
    reader.eat(&live.dir.join("log"))?;
    reader.complete(total)?;
    same("exit.json", totals(&live, 0)?, (total, 0))
}

fn both(monitor: &Monitor) -> Outcome {
    let (total, err) = (size(32, 512) * MIB, Pattern::Lines(37));
    let script = format!("$W {} 0 {total} err & $W {} 0 {total}; wait", err.name(), LINES.name());
    let live = scene(monitor, &script)?.start()?;
    same("status", ended(&live)?, 0)?;
    let mut reader = Reader::both(LINES, err);
    reader.eat(&live.dir.join("log"))?;
    reader.complete(total)?;
    same("bytes of stderr", reader.stderr(), total)?;
    same("exit.json", (totals(&live, 0)?, totals(&live, 1)?), ((total, 0), (total, 0)))
}

fn json(monitor: &Monitor) -> Outcome {
    let total = size(16, 256) * MIB;
    let mut scene = scene(monitor, &writes(LINES, total))?;
    let path = scene.dir.join("json");
    let live = scene.add("-l", format!("json-file:{}", path.display())).start()?;
    same("status", ended(&live)?, 0)?;
    let mut reader = Reader::new(LINES);
    reader.eat(&live.dir.join("log"))?;
    reader.complete(total)?;
    let mut expect = Expect::new(LINES, 0);
    for line in BufReader::new(File::open(path)?).lines() {
        let record: serde_json::Value = serde_json::from_str(&line?)?;
        same("stream", record["stream"].as_str(), Some("stdout"))?;
        expect.take(record["log"].as_str().ok_or("a record without log")?.as_bytes())?;
    }
    same("bytes in the JSON log", expect.at, total)
}

/// The monitor stands still while the container fills a large pipe and ends.
fn in_flight(monitor: &Monitor, pattern: Pattern) -> Outcome {
    let (reader, _writer) = nix::unistd::pipe()?;
    let total = enlarge(reader, 64 << 20)?;
    let script = format!("go; $W {} 0 {total} pipe:{total}; : >$D/written; exit 6", pattern.name());
    let live = scene(monitor, &script)?.start()?;
    let container = live.container()?;
    live.signal(Signal::SIGSTOP)?;
    live.go()?;
    reached(&live, "written")?;
    wait::until("the container's end", patience(), || Ok((!procs::alive(container)).then_some(())))?;
    check(!live.dir.join("x").join(CID).exists(), "an exit file of a stopped monitor")?;
    live.signal(Signal::SIGCONT)?;
    same("exit file", live.exit_file()?, "6".to_owned())?;
    // Complete at the moment when the exit file is there, not only later.
    let mut reader = Reader::new(pattern);
    reader.eat(&live.dir.join("log"))?;
    reader.complete(total)?;
    same("status", ended(&live)?, 6)?;
    same("exit.json", totals(&live, 0)?, (total, 0))
}

/// The log is complete at the moment when the exit file is there.
fn hurried(monitor: &Monitor) -> Outcome {
    let total = 64 * MIB + 12_345;
    for _ in 0..size(3, 20) {
        let live = scene(monitor, &writes(LINES, total))?.start()?;
        let path = live.dir.join("x").join(CID);
        wait::until("the exit file", patience(), || Ok(path.exists().then_some(())))?;
        let mut reader = Reader::new(LINES);
        reader.eat(&live.dir.join("log"))?;
        reader.complete(total)?;
        same("status", ended(&live)?, 0)?;
    }
    Ok(())
}

/// Wherever a bounded turn of reading ends, the rest comes as well.
fn any_size(monitor: &Monitor) -> Outcome {
    for round in 0..size(40, 400) {
        let stopped = round % 2 == 0;
        let total = if stopped { MIB - round * 20_011 % MIB } else { 3 * MIB + round * 30_011 };
        let script = format!("go; $W lines:100000 0 {total} pipe:{MIB}; : >$D/written");
        let live = scene(monitor, &script)?.start()?;
        let container = live.container()?;
        if stopped {
            live.signal(Signal::SIGSTOP)?;
        }
        live.go()?;
        if stopped {
            reached(&live, "written")?;
            wait::until("the container's end", patience(), || Ok((!procs::alive(container)).then_some(())))?;
            live.signal(Signal::SIGCONT)?;
        }
        same("status", ended(&live)?, 0)?;
        let mut reader = Reader::new(Pattern::Lines(100_000));
        reader.eat(&live.dir.join("log"))?;
        reader.complete(total)?;
        same("exit.json", totals(&live, 0)?, (total, 0))?;
        fs::remove_dir_all(&live.dir)?;
    }
    Ok(())
}

/// A container that is stopped at any place of its writing: what it wrote is in the log when the exit file appears.
fn at_once(monitor: &Monitor) -> Outcome {
    for round in 0..size(25, 200) {
        let script = format!("exec $W lines:70000 0 {} pipe:{}", 1_u64 << 40, MIB);
        let live = scene(monitor, &script)?.start()?;
        let container = live.container()?;
        reached(&live, "../log")?;
        std::thread::sleep(Duration::from_millis(1 + round % 16));
        nix::sys::signal::kill(container, Signal::SIGKILL)?;
        same("exit file", live.exit_file()?, "137".to_owned())?;
        let mut reader = Reader::new(Pattern::Lines(70_000));
        reader.eat(&live.dir.join("log"))?;
        same("status", ended(&live)?, 137)?;
        // The writer was killed between or within writes of 64 KiB, which fill pages.
        same("bytes beyond whole pages", reader.stdout() % 4096, 0)?;
        same("exit.json", totals(&live, 0)?, (reader.stdout(), 0))?;
        fs::remove_dir_all(&live.dir)?;
    }
    Ok(())
}
