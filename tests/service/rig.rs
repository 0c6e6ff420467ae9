//! What the cases share: a monitor, a connection to it, and the loop that a client runs on.

use std::fs;
use std::time::Duration;

use conmon_proto::{Client, Code, Error, Event, Events, Exec, ExecResult, ExecSpec, Stream};
use nix::unistd::Pid;

pub use crate::support::amount::{MIB, patience, size, soak};
use crate::support::scene::{Live, Scene};
pub use crate::support::service::{connect, socket, talk};
use crate::support::suite::Monitor;
use crate::support::{Fail, Outcome, check, procs, same, wait};

/// A container that runs this script and lasts until its go if it says `go`.
pub fn start(monitor: &Monitor, script: &str) -> Outcome<Live> {
    start_with(monitor, script, |scene| scene)
}

pub fn start_with(monitor: &Monitor, script: &str, change: impl FnOnce(&mut Scene) -> &mut Scene) -> Outcome<Live> {
    let mut scene = Scene::create(monitor)?;
    scene.script(script)?;
    change(&mut scene);
    let live = scene.start()?;
    live.container()?;
    Ok(live)
}

/// One that does nothing until its go.
pub fn idle(monitor: &Monitor) -> Outcome<Live> {
    let live = start(monitor, "echo ready; go; exit 6")?;
    live.log_has("ready")?;
    Ok(live)
}

/// Lets it end.
pub fn end_idle(live: &Live) -> Outcome {
    live.go()?;
    same("the monitor's status", live.end()?, 6)
}

/// What this shell command is as an exec.
pub fn sh(script: &str) -> ExecSpec {
    ExecSpec::command(["/bin/sh", "-c", script])
}

/// Runs it with its output captured.
pub async fn run(client: &Client, spec: &ExecSpec) -> Outcome<ExecResult> {
    Ok(client.exec(spec, None).await?.wait().await?)
}

/// Sees that a call is refused with this code.
pub fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, Error>, code: Code) -> Outcome<String> {
    match answer {
        Err(Error::Refused(refusal)) => {
            same(&format!("{what}: code of the refusal ({})", refusal.text), refusal.code, code)?;
            check(!refusal.text.is_empty(), format!("{what}: a refusal says why"))?;
            Ok(refusal.text)
        }
        other => Err(format!("{what}: expected a refusal with {code}, saw {other:?}").into()),
    }
}

/// Waits for something that the monitor does by itself.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    let probing = async {
        loop {
            if let Some(answer) = probe().await? {
                return Ok(answer);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limited = tokio::time::timeout(patience().min(Duration::from_secs(40)), probing).await;
    limited.map_err(|_| Fail::Wrong(format!("waited in vain for {what}")))?
}

/// Reads a stream of output to its end.
pub async fn collect(events: &mut Events) -> Outcome<(Vec<u8>, Vec<u8>, conmon_proto::End)> {
    let mut streams = (Vec::new(), Vec::new());
    loop {
        match events.next().await {
            Some(Event::Write { stream, data, .. }) => match stream {
                Stream::Stdout => streams.0.extend(data),
                _ => streams.1.extend(data),
            },
            Some(Event::End(end)) => return Ok((streams.0, streams.1, end)),
            other => return Err(format!("expected output or its end, saw {other:?}").into()),
        }
    }
}

/// The pid that a script left in a file of the bundle.
pub fn pid_of(live: &Live, name: &str) -> Outcome<Pid> {
    let path = live.dir.join("b").join(name);
    wait::until(&format!("a pid in {name}"), wait::SOON, || {
        Ok(fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).map(Pid::from_raw))
    })
}

pub fn gone(what: &str, pid: Pid) -> Outcome {
    wait::until_true(&format!("the end of {what} ({pid})"), || !procs::alive(pid))
}

/// No exec is left: started, running or writing.
pub async fn no_execs(client: &Client) -> Outcome {
    let mut left = Vec::new();
    let none = until("no exec to be left", async || {
        left = client.inspect().await?.execs;
        Ok(left.is_empty().then_some(()))
    })
    .await;
    none.map_err(|fail| format!("{fail:?}: {left:?}").into())
}

/// Ends an exec's process whatever it does.
pub async fn kill(exec: &Exec) -> Outcome {
    Ok(exec.signal(9).await?)
}

/// Private memory of a process, in KiB, as `/proc/PID/smaps_rollup` has it.
pub fn private_kib(pid: Pid) -> Outcome<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    // Pages of the program itself count as private, too, while no other monitor runs.
    let line = text.lines().find(|line| line.starts_with("Anonymous:")).ok_or("no Anonymous")?;
    Ok(line.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok()).ok_or("a number")?)
}
