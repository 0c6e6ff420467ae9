//! Chooses cases, runs a few of them side by side, and says how it went.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    Case, Stop, Verdict,
    bed::Bed,
    check, processes,
    processes::{eventually, listed},
    rig::Rig,
};

pub fn main(words: &[String], cases: &'static [Case]) -> ExitCode {
    let wanted: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word));
    let chosen: Vec<&Case> = cases.iter().filter(|case| is_wanted(case.name)).collect();
    if words.iter().any(|word| word == "--list") {
        chosen.iter().map(|case| case.name).chain([LAST]).for_each(|name| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let tally = Tally::default();
    match Rig::new() {
        Ok(rig) => run(&rig, &chosen, &tally),
        // One reason for all of them.
        Err(Stop::Skipped(why)) => {
            chosen
                .iter()
                .map(|case| case.name)
                .chain([LAST])
                .for_each(|name| tally.add(name, Duration::ZERO, &Err(Stop::Skipped(why.clone()))));
        }
        Err(stop) => tally.add("rig", Duration::ZERO, &Err(stop)),
    }
    tally.close()
}

fn run(rig: &Rig, chosen: &[&Case], tally: &Tally) {
    println!("podman with {}\n", rig.version.replace('\n', ", "));
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = chosen.get(number) else { return };
                    let began = Instant::now();
                    let verdict = one(rig, number, case);
                    tally.add(case.name, began.elapsed(), &verdict);
                }
            });
        }
    });
    tally.add(LAST, Duration::ZERO, &nothing_left(rig));
}

/// One case on a bed of its own; the bed must be empty afterwards.
fn one(rig: &Rig, number: usize, case: &Case) -> Verdict {
    check!(Instant::now() < rig.until, "not run: the time of the whole suite is over");
    let bed = Bed::new(rig, number)?;
    let verdict = catch_unwind(AssertUnwindSafe(|| (case.run)(&bed)));
    let verdict = verdict.unwrap_or_else(|_| Err(Stop::Failed("the test itself panicked".into())));
    let verdict = match verdict {
        Err(Stop::Failed(why)) => Err(Stop::Failed(why + &bed.scene())),
        other => other,
    };
    let stripped = bed.strip();
    match (verdict, stripped) {
        (Err(Stop::Failed(why)), Err(Stop::Failed(more))) => Err(Stop::Failed(format!("{why}\n  and then: {more}"))),
        (Ok(()), stripped) | (Err(Stop::Skipped(_)), stripped @ Err(_)) => stripped,
        (verdict, _) => verdict,
    }
}

/// The last case: no process and no mount of the whole run is left.
fn nothing_left(rig: &Rig) -> Verdict {
    eventually(Duration::from_secs(5), || processes::of(&rig.dir).is_empty());
    let left = processes::of(&rig.dir);
    check!(left.is_empty(), "processes are left:{}", listed(&left));
    let mounts = processes::mounts(&rig.dir);
    check!(mounts.is_empty(), "mounts are left: {mounts:?}");
    Ok(())
}

/// Counts and prints, one case at a time.
#[derive(Default)]
struct Tally {
    counts: Mutex<[usize; 3]>,
}

impl Tally {
    fn add(&self, name: &str, took: Duration, verdict: &Verdict) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (slot, text) = match verdict {
            Ok(()) => (0, "ok".to_string()),
            Err(Stop::Failed(why)) => (1, format!("FAILED\n  {why}")),
            Err(Stop::Skipped(why)) => (2, format!("skipped: {why}")),
        };
        counts[slot] += 1;
        println!("{name:<34} {:>5.1} s  {text}", took.as_secs_f64());
    }

    fn close(&self) -> ExitCode {
        let [passed, failed, skipped] = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

const LAST: &str = "nothing_left";
/// Cases mostly wait, so three keep two processors busy.
const AT_ONCE: usize = 3;
