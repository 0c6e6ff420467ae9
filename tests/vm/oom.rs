//! Who fell to the OOM killer, and who did not.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::container::Container;
use crate::support::scene::Live;
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, procs, same, wait};

pub fn cases() -> Vec<Case> {
    let case = |id, what, run: fn(&Monitor) -> Outcome| Case::new(id, "3.11", what, run).native();
    vec![
        case("oom/init", "the container's first process is killed: 137, and memory did it", init),
        case("oom/child", "only a child is killed: the container's own status, and memory struck", child),
        case("oom/quick", "killed as soon as it runs, ten times: never missed", quick),
        case("oom/none", "a kill without a shortage, at the same limit, is none", none),
        case("oom/cgroup-gone", "the cgroup went before anybody looked: nobody knows, and nothing is guessed", gone),
        case("oom/cgroup-gone-after", "it went after the kill had been seen: that is not forgotten", gone_after),
    ]
}

/// Small enough to be full at once, large enough for a runtime to start in.
pub const MEMORY: u64 = 24 << 20;
/// More than that in one buffer.
pub const GREEDY: &str = "dd if=/dev/zero of=/dev/null bs=64M count=1";
/// For a virtual machine without hardware support.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn small(monitor: &Monitor, script: &str) -> Outcome<Container> {
    let mut container = Container::of("crun", monitor, script)?;
    container.memory(MEMORY);
    Ok(container)
}

/// What is recorded by the time that the exit file is there: the status in it, and the verdict.
pub fn verdict(live: &Live) -> Outcome<(String, Value)> {
    let path = live.dir.join("x").join(crate::support::scene::CID);
    let status = wait::until("the exit file", PATIENCE, || Ok(fs::read_to_string(&path).ok()))?;
    // Not waited for: whoever sees the exit file asks at once.
    let record: Value = serde_json::from_slice(&fs::read(live.dir.join("b/exit.json"))?)?;
    let marks = ["p/oom", "b/oom"].map(|name| live.dir.join(name).exists());
    same("files named oom", marks, [record["oomKilled"] == true; 2])?;
    Ok((status, record["oomKilled"].clone()))
}

fn ended(live: &Live) -> Outcome<i32> {
    procs::ended("the monitor", live.pid()?, PATIENCE)
}

fn init(monitor: &Monitor) -> Outcome {
    let live = small(monitor, &format!("exec {GREEDY}")).and_then(|mut container| run(&mut container))?;
    same("exit file and verdict", live.1, ("137".to_owned(), Value::Bool(true)))?;
    same("the monitor's status", live.0, 137)
}

/// Runs it to its end: the monitor's status, and what is recorded.
fn run(container: &mut Container) -> Outcome<(i32, (String, Value))> {
    let live = container.start(|scene| scene)?;
    let recorded = verdict(&live)?;
    Ok((ended(&live)?, recorded))
}

fn child(monitor: &Monitor) -> Outcome {
    let mut container = small(monitor, &format!("{GREEDY}; echo child $?; exit 3"))?;
    let live = container.start(|scene| scene)?;
    same("exit file and verdict", verdict(&live)?, ("3".to_owned(), Value::Bool(true)))?;
    same("the monitor's status", ended(&live)?, 3)?;
    live.log_has("stdout F child 137")
}

fn quick(monitor: &Monitor) -> Outcome {
    for round in 1..=10 {
        let (_, recorded) = run(&mut small(monitor, &format!("exec {GREEDY}"))?)?;
        same(&format!("round {round}"), recorded, ("137".to_owned(), Value::Bool(true)))?;
    }
    Ok(())
}

fn none(monitor: &Monitor) -> Outcome {
    let (_, recorded) = run(&mut small(monitor, "kill -9 $$; sleep 1; exit 9")?)?;
    same("its own SIGKILL does not reach a first process", recorded, ("9".to_owned(), Value::Bool(false)))?;
    let mut container = small(monitor, "echo up; exec sleep 600")?;
    let live = container.start(|scene| scene)?;
    live.log_has("up")?;
    container.call(&["kill", "ID", "KILL"])?;
    same("killed by a runtime", verdict(&live)?, ("137".to_owned(), Value::Bool(false)))?;
    ended(&live).map(drop)
}

/// Stops the monitor, so that it sees what follows all at once.
fn hold(live: &Live) -> Outcome<Pid> {
    let pid = live.pid()?;
    kill(pid, Signal::SIGSTOP)?;
    wait::until("the monitor to stand still", PATIENCE, || Ok((procs::state(pid) == Some('T')).then_some(())))?;
    Ok(pid)
}

/// Kills the container and removes its cgroup, as a runtime or a tidy administrator does.
fn remove(container: &Container) -> Outcome {
    container.call(&["delete", "--force", "ID"])?;
    let cgroup = format!("/sys/fs/cgroup{}", container.dir().display());
    check(!fs::exists(&cgroup)?, format!("{cgroup} is still there"))
}

fn gone(monitor: &Monitor) -> Outcome {
    let mut container = small(monitor, "echo up; exec sleep 600")?;
    let live = container.start(|scene| scene)?;
    live.log_has("up")?;
    let pid = hold(&live)?;
    remove(&container)?;
    kill(pid, Signal::SIGCONT)?;
    same("exit file and verdict", verdict(&live)?, ("137".to_owned(), Value::Null))?;
    same("the monitor's status", ended(&live)?, 137)
}

fn gone_after(monitor: &Monitor) -> Outcome {
    let mut container = small(monitor, &format!("{GREEDY}; echo child $?; exec sleep 600"))?;
    let live = container.start(|scene| scene)?;
    live.log_has("child 137")?;
    // It saw the event, if it has slept since: it is idle.
    wait::until("an idle monitor", PATIENCE, || idle(&live))?;
    let pid = hold(&live)?;
    remove(&container)?;
    kill(pid, Signal::SIGCONT)?;
    same("exit file and verdict", verdict(&live)?, ("137".to_owned(), Value::Bool(true)))?;
    ended(&live).map(drop)
}

/// Whether it has used no processor time and slept for a while.
fn idle(live: &Live) -> Outcome<Option<()>> {
    let pid = live.pid()?;
    let look = || -> Outcome<(String, Option<char>)> {
        Ok((procs::status_field(pid, "voluntary_ctxt_switches")?, procs::state(pid)))
    };
    let before = look()?;
    std::thread::sleep(Duration::from_millis(500));
    let after = look()?;
    match (before == after, after.1) {
        (true, Some('S')) => Ok(Some(())),
        (_, None) => Err(Fail::Wrong("the monitor is gone".to_owned())),
        _ => Ok(None),
    }
}
