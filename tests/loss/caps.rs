//! Size caps with rotation: what is kept is the unbroken end of the stream, and never too much of it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::flow::Pattern;
use crate::reading::{Reader, payload};
use crate::rig::{LINES, MIB, ended, scene, size};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, same};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("caps/lines", "7.7", "1 MiB and three backups, across restarts", |m| restarts(m, LINES)),
        Case::new("caps/long-lines", "7.7", "the same with long lines", |m| restarts(m, Pattern::Lines(20_000))),
        Case::new("caps/binary", "7.7", "the same with random bytes", |m| restarts(m, Pattern::Binary)),
    ]
}

const BACKUPS: usize = 3;

fn restarts(monitor: &Monitor, pattern: Pattern) -> Outcome {
    let part = size(24, 512) * MIB + 700_001;
    let mut log = None;
    for round in 0..3 {
        let (from, to) = (round * part, (round + 1) * part);
        let mut scene = scene(monitor, &format!("exec $W {} {from} {to}", pattern.name()))?;
        let log = log.get_or_insert_with(|| scene.dir.join("log")).clone();
        scene.set("-l", &log).set("--log-size-max", MIB.to_string()).flag("--log-rotate");
        let live = scene.set("--log-max-files", BACKUPS.to_string()).start()?;
        same("status", ended(&live)?, 0)?;
        kept(&log, pattern, to)?;
    }
    Ok(())
}

/// The newest file and its backups: sizes, and that together they are the end of the stream.
fn kept(log: &Path, pattern: Pattern, end: u64) -> Outcome {
    let backup = |number: usize| PathBuf::from(format!("{}.{number}", log.display()));
    let files: Vec<PathBuf> = (1..=BACKUPS).rev().map(backup).chain([log.to_owned()]).collect();
    let mut sum = 0;
    for file in &files {
        let len = fs::metadata(file)?.len();
        check(len <= MIB, format!("{} has {len} bytes, the cap is {MIB}", file.display()))?;
        sum += payload(file)?;
    }
    check(!backup(BACKUPS + 1).exists(), "there is a backup too many")?;
    // Full files: three of them hold less than the cap only by their records' heads and one record.
    check(sum > MIB, format!("only {sum} bytes of output are kept"))?;
    let mut reader = Reader::from(pattern, end - sum);
    for file in &files {
        reader.read(file)?;
    }
    reader.complete(end)
}
