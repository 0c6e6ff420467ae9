//! The table: one case after the other, each with every runtime that it is about, on one server. What a case leaves is
//! removed, and then no cgroup may be there that was not there before.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cgroups;
use crate::host::Host;

/// What a case ends with.
pub type Outcome<T = ()> = Result<T, Fail>;

/// Why a case did not pass.
#[derive(Debug)]
pub enum Fail {
    /// What was expected and what was seen.
    Wrong(String),
    /// What this machine lacks.
    Skip(String),
}

impl<T: ToString> From<T> for Fail {
    fn from(what: T) -> Fail {
        Fail::Wrong(what.to_string())
    }
}

pub struct Case {
    id: &'static str,
    what: &'static str,
    run: fn(&mut Host) -> Outcome,
}

impl Case {
    pub fn new(id: &'static str, what: &'static str, run: fn(&mut Host) -> Outcome) -> Case {
        Case { id, what, run }
    }
}

/// Those whose name has one of the words; without words, all.
pub fn chosen(mut cases: Vec<Case>, words: &[String]) -> Vec<Case> {
    let words: Vec<&String> = words.iter().filter(|word| !word.starts_with("--")).collect();
    cases.retain(|case| words.is_empty() || words.iter().any(|word| case.id.contains(word.as_str())));
    cases
}

pub fn list(cases: &[Case]) -> ExitCode {
    for case in cases {
        say(&format!("{:<24} {}", case.id, case.what));
    }
    ExitCode::SUCCESS
}

/// Nothing was tested, for want of something.
const SKIPPED: u8 = 77;

/// Without a machine nothing is tested, and that is said.
pub fn without(reason: &str, cases: &[Case]) -> ExitCode {
    for case in cases {
        say(&format!("skipped {}: {reason}", case.id));
    }
    say(&format!("\n0 passed, 0 failed, {} skipped", cases.len()));
    ExitCode::from(SKIPPED)
}

/// Runs the cases on this machine.
pub fn run(programs: &Path, cases: &[Case]) -> ExitCode {
    let mut host = match Host::start(programs) {
        Ok(host) => host,
        Err(fail) => {
            say(&format!("FAILED: there is no server: {fail:?}\n\n0 passed, {} failed, 0 skipped", cases.len()));
            return ExitCode::FAILURE;
        }
    };
    let [mut passed, mut failed, mut skipped] = [0; 3];
    for runtime in host.runtimes.clone() {
        host.handler.clone_from(&runtime);
        for case in cases {
            let name = format!("{}, {runtime}", case.id);
            let begun = Instant::now();
            let outcome = one(&mut host, case);
            let took = begun.elapsed().as_secs_f64();
            match outcome {
                Ok(()) => passed += 1,
                Err(Fail::Skip(_)) => skipped += 1,
                Err(Fail::Wrong(_)) => failed += 1,
            }
            match outcome {
                Ok(()) => say(&format!("passed  {name:<30} {took:5.1} s  {}", case.what)),
                Err(Fail::Skip(why)) => say(&format!("skipped {name:<30} {why}")),
                Err(Fail::Wrong(why)) => {
                    let log = host.log().replace('\n', "\n      | ");
                    say(&format!("\nFAILED {name}: {}\n    {why}\n    the server:\n      | {log}", case.what));
                }
            }
        }
    }
    say(&format!("\n{passed} passed, {failed} failed, {skipped} skipped"));
    match (passed, failed) {
        (0, 0) => ExitCode::from(SKIPPED),
        (_, 0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn one(host: &mut Host, case: &Case) -> Outcome {
    let before = cgroups::all()?;
    host.skip_log();
    let outcome = (case.run)(host);
    host.clear()?;
    outcome?;
    let mut after = cgroups::all()?;
    after.retain(|path| !before.contains(path));
    check(after.is_empty(), format!("cgroups that nobody removed: {after:?}"))
}

/// Fails with both values when they differ.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, seen: T, expected: T) -> Outcome {
    match seen == expected {
        true => Ok(()),
        false => Err(Fail::Wrong(format!("{what}: expected {expected:?}, saw {seen:?}"))),
    }
}

/// Fails with `what` when `truth` does not hold.
pub fn check(truth: bool, what: impl Into<String>) -> Outcome {
    match truth {
        true => Ok(()),
        false => Err(Fail::Wrong(what.into())),
    }
}

/// For a virtual machine without hardware support.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until there is something to be seen.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        check(Instant::now() < end, format!("not within {} s: {what}", PATIENCE.as_secs()))?;
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A line on stdout; a reader that went away is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
