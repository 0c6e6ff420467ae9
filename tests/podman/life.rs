//! wait, stop, kill, restart, timeouts, and many at once.

use std::{collections::HashSet, time::Duration};

use super::{
    Verdict,
    bed::{Bed, IMAGE, PARK, PATIENCE},
    check,
    processes::{eventually, listed},
    run::PROMPT,
};

pub fn wait_for_many(bed: &Bed) -> Verdict {
    for code in 1..=3 {
        bed.start(&format!("w{code}"), &format!("sleep 0.{code}; exit {code}"))?;
    }
    let codes = bed.ok(&["wait", "w1", "w2", "w3"])?;
    check!(codes == "1\n2\n3", "podman wait: {codes:?}");
    // Once more, of containers that ended long ago.
    let codes = bed.ok(&["wait", "w3", "w1"])?;
    check!(codes == "3\n1", "podman wait, again: {codes:?}");
    Ok(())
}

pub fn stop_polite(bed: &Bed) -> Verdict {
    bed.start("s", "trap 'echo bye; exit 4' TERM; echo ready; sleep 600 & wait")?;
    bed.logged("s", "ready")?;
    let stop = bed.podman(&["stop", "-t", "20", "s"]).run()?.expect(0)?;
    check!(stop.took < PROMPT, "stop waited for its limit: {}", stop.story());
    let (state, log) = (bed.inspect("s", "{{.State.Status}} {{.State.ExitCode}}")?, bed.ok(&["logs", "s"])?);
    check!(state == "exited 4", "after stop: {state}");
    check!(log == "ready\nbye", "the last words are not in the log: {log:?}");
    Ok(())
}

pub fn stop_impatient(bed: &Bed) -> Verdict {
    bed.start("s", "trap '' TERM; echo ready; while :; do sleep 0.2; done")?;
    bed.logged("s", "ready")?;
    bed.podman(&["stop", "-t", "1", "s"]).run()?.expect(0)?;
    let state = bed.inspect("s", "{{.State.Status}} {{.State.ExitCode}}")?;
    check!(state == "exited 137", "after SIGKILL: {state}");
    Ok(())
}

pub fn kill(bed: &Bed) -> Verdict {
    bed.start("k", "trap 'echo one' USR1; echo ready; while :; do sleep 0.1; done")?;
    bed.logged("k", "ready")?;
    bed.ok(&["kill", "-s", "USR1", "k"])?;
    bed.logged("k", "one")?;
    bed.ok(&["kill", "k"])?;
    let code = bed.ok(&["wait", "k"])?;
    check!(code == "137", "wait after SIGKILL: {code}");
    bed.podman(&["kill", "k"]).run()?.expect(125)?;
    Ok(())
}

pub fn restart(bed: &Bed) -> Verdict {
    bed.start("r", &format!("echo run; {PARK}"))?;
    bed.logged("r", "run")?;
    let before = bed.inspect("r", "{{.State.Pid}} {{.State.ConmonPid}}")?;
    bed.ok(&["restart", "-t", "10", "r"])?;
    bed.logged("r", "run\nrun")?;
    let after = bed.inspect("r", "{{.State.Pid}} {{.State.ConmonPid}}")?;
    let (old, new): (Vec<_>, Vec<_>) = (before.split(' ').collect(), after.split(' ').collect());
    check!(old[0] != new[0] && old[1] != new[1], "container and monitor before {before}, after {after}");
    let one = eventually(bed.left(PATIENCE), || bed.monitors().len() == 1);
    check!(one, "one container, but these monitors:{}", listed(&bed.monitors()));
    bed.podman(&["exec", "r", "echo", "inside"]).run()?.expect(0)?.says("inside\n")?;
    Ok(())
}

/// podman starts it again from within the monitor's exit command.
pub fn restart_policy(bed: &Bed) -> Verdict {
    bed.ok(&["run", "-d", "--restart", "on-failure:2", "--name", "r", IMAGE, "sh", "-c", "echo run; exit 3"])?;
    bed.logged("r", "run\nrun\nrun")?;
    bed.without_monitors()?;
    let mut state = String::new();
    // podman says "stopped" until its own clean-up is done.
    let exited = eventually(bed.left(PATIENCE), || {
        state = bed.inspect("r", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}").unwrap_or_default();
        state == "exited 3 2"
    });
    check!(exited, "after two restarts: {state}");
    Ok(())
}

/// podman makes 255 of the monitor's -1.
pub fn timeout(bed: &Bed) -> Verdict {
    let run = bed.podman(&["run", "--rm", "--timeout", "1", IMAGE, "sleep", "100"]).run()?.expect(255)?;
    check!(run.took >= Duration::from_secs(1) && run.took < PROMPT, "{}", run.story());
    bed.ok(&["run", "-d", "--name", "t", "--timeout", "1", IMAGE, "sh", "-c", "echo started; sleep 100"])?;
    let code = bed.ok(&["wait", "t"])?;
    check!(code == "-1" || code == "255", "wait after the timeout: {code}");
    let log = bed.ok(&["logs", "t"])?;
    check!(log == "started", "the log of a timed out container: {log:?}");
    // In time means no timeout.
    bed.podman(&["run", "--rm", "--timeout", "20", IMAGE, "sh", "-c", "exit 3"]).run()?.expect(3)?;
    Ok(())
}

pub fn twenty_at_once(bed: &Bed) -> Verdict {
    let names: Vec<String> = (1..=MANY).map(|n| format!("m{n}")).collect();
    let mut starting = Vec::new();
    for (n, name) in (1..).zip(&names) {
        let script = format!("trap 'echo bye {n}; exit {n}' TERM; echo this is {n}; sleep 600 & wait");
        starting.push(bed.podman(&["run", "-d", "--name", name, IMAGE, "sh", "-c", &script]).start()?);
    }
    for run in starting {
        run.finish()?.expect(0)?;
    }
    let pids: HashSet<String> = bed.ok(&["ps", "--format", "{{.Pid}}"])?.lines().map(String::from).collect();
    check!(pids.len() == MANY, "{} containers run: {pids:?}", pids.len());
    check!(bed.monitors().len() == MANY, "monitors:{}", listed(&bed.monitors()));
    for (n, name) in (1..).zip(&names) {
        bed.logged(name, &format!("this is {n}"))?;
    }
    let stop: Vec<&str> = ["stop", "-t", "20"].into_iter().chain(names.iter().map(String::as_str)).collect();
    bed.ok(&stop)?;
    for (n, name) in (1..).zip(&names) {
        let (code, log) = (bed.inspect(name, "{{.State.ExitCode}}")?, bed.ok(&["logs", name])?);
        check!(code == n.to_string(), "{name} ended with {code}");
        check!(log == format!("this is {n}\nbye {n}"), "log of {name}: {log:?}");
    }
    Ok(())
}

const MANY: usize = 20;
