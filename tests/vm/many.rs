//! Many containers at once, none of which may take from the others what watches them.

use std::fs;
use std::sync::Mutex;

use serde_json::Value;

use crate::oom::{GREEDY, MEMORY, PATIENCE, verdict};
use crate::support::container::Container;
use crate::support::scene::Live;
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, procs, same, wait};

pub fn cases() -> Vec<Case> {
    let what = "many at once (VM_MANY, or 60) without inotify; the verdict is each one's own";
    vec![Case::new("oom/many", "3.11", what, many).native()]
}

/// How many: names the number. A machine without hardware support takes a second for each.
pub const MANY: &str = "VM_MANY";
const FEW: usize = 60;

fn count() -> Outcome<usize> {
    let Ok(text) = std::env::var(MANY) else { return Ok(FEW) };
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or(Fail::Wrong(format!("{MANY} is {text:?}, and should be a number of containers")))
}

/// The kernel has two processors to start them with.
const STARTERS: usize = 4;
/// Each tenth runs out of memory.
const GREEDY_EACH: usize = 10;

fn many(monitor: &Monitor) -> Outcome {
    // Whoever wants one fails.
    let inotify = "/proc/sys/fs/inotify/max_user_instances";
    let before = fs::read_to_string(inotify)?;
    fs::write(inotify, "0")?;
    let outcome = all(monitor);
    fs::write(inotify, before.trim())?;
    outcome
}

fn all(monitor: &Monitor) -> Outcome {
    let mut waiting = Vec::new();
    let count = count()?;
    for number in 0..count {
        let mut container = Container::of("crun", monitor, &script(number))?;
        container.memory(MEMORY);
        waiting.push((number, container));
    }
    let waiting = Mutex::new(waiting);
    let running: Mutex<Vec<(usize, Container, Live)>> = Mutex::default();
    std::thread::scope(|scope| {
        let starters: Vec<_> = (0..STARTERS).map(|_| scope.spawn(|| start(&waiting, &running))).collect();
        starters.into_iter().try_for_each(|starter| starter.join().map_err(|_| Fail::Wrong("panic".into()))?)
    })?;
    let running = running.into_inner().map_err(|_| "a starter panicked")?;
    same("containers", running.len(), count)?;
    for (number, _, live) in &running {
        live.log_has("up").map_err(|fail| Fail::Wrong(format!("container {number}: {fail:?}")))?;
        let fds = procs::descriptors(live.pid()?)?;
        check(!fds.iter().any(|(_, target)| target.contains("inotify")), format!("inotify in {fds:?}"))?;
    }
    running.iter().try_for_each(|(number, container, _)| go_on(*number, container))?;
    for (number, _, live) in &running {
        let expected = if greedy(*number) { ("137", true) } else { ("7", false) };
        let seen = verdict(live)?;
        same(&format!("container {number}"), seen, (expected.0.to_owned(), Value::Bool(expected.1)))?;
    }
    Ok(())
}

const fn greedy(number: usize) -> bool {
    number.is_multiple_of(GREEDY_EACH)
}

fn script(number: usize) -> String {
    let end = if greedy(number) { format!("exec {GREEDY}") } else { "exit 7".to_owned() };
    format!("mkfifo /tmp/go; echo up; read go </tmp/go; {end}")
}

fn start(waiting: &Mutex<Vec<(usize, Container)>>, running: &Mutex<Vec<(usize, Container, Live)>>) -> Outcome {
    let next = || waiting.lock().ok().and_then(|mut list| list.pop());
    while let Some((number, mut container)) = next() {
        let live = container.start(|scene| scene)?;
        running.lock().map_err(|_| "another starter panicked")?.push((number, container, live));
    }
    Ok(())
}

fn go_on(number: usize, container: &Container) -> Outcome {
    let path = container.dir().join("b/rootfs/tmp/go");
    wait::until(&format!("container {number} to wait"), PATIENCE, || Ok(fs::exists(&path)?.then_some(())))?;
    Ok(fs::write(path, "go\n")?)
}
