//! ExecSync, and exec for streams: one more process in a running container, by the monitor that is there.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use conmon_proto::{Event, ExecSpec, ExitReason, OnDisconnect, Stream};
use tokio::time::sleep;

use super::Container;
use crate::cgroup;
use crate::daemon::Daemon;
use crate::error::{Context, Error, Result};
use crate::state;
use crate::streaming::Io;

/// Captured bytes at most; the clients of the CRI take messages of 16 MiB.
const CAPTURED_MAX: u64 = 15 << 20;

/// How long a command with an input may go on when its client has gone: it gets what was sent, and the end.
pub const LEFT: Duration = Duration::from_secs(5);

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub code: i32,
}

/// What a stream's exec is to be.
#[derive(Clone, Debug)]
pub struct Wish {
    pub command: Vec<String>,
    pub terminal: bool,
    pub stdin: bool,
}

/// Runs a command and captures what it says.
pub async fn exec_sync(daemon: &Arc<Daemon>, id: &str, command: Vec<String>, timeout: Duration) -> Result<Output> {
    let container = daemon.container(id)?;
    container.running()?;
    let shown = command.join(" ");
    let spec = ExecSpec {
        process: process(&container, command, false)?,
        timeout: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        output_max: CAPTURED_MAX,
        ..ExecSpec::default()
    };
    // To the end: nobody says when the runtime has moved the process.
    let _ahead = cgroup::ahead();
    let run = move |client: conmon_proto::Client| async move { client.exec(&spec, None).await?.wait().await };
    let result = daemon.monitors.call(container.bundle(), run).await?;
    match result.exit.reason {
        ExitReason::TimedOut => {
            Err(Error::Deadline(format!("Command {shown:?} in container {id} timed out after {timeout:?}")))
        }
        ExitReason::NeverStarted => Err(never_started(&shown, id, &result.error)),
        _ => Ok(Output { stdout: result.stdout, stderr: result.stderr, code: result.exit.status }),
    }
}

/// Runs a command whose input and output are somebody's stream; answers with its exit code.
pub async fn exec(daemon: &Arc<Daemon>, id: &str, wish: Wish, io: Io) -> Result<i32> {
    let container = daemon.container(id)?;
    container.running()?;
    let shown = wish.command.join(" ");
    let spec = ExecSpec {
        process: process(&container, wish.command, wish.terminal)?,
        terminal: wish.terminal,
        stdin: wish.stdin,
        on_disconnect: OnDisconnect::Kill,
        ..ExecSpec::default()
    };
    let id = id.to_owned();
    daemon.monitors.stream(container.bundle(), move |client| run(client, spec, io, id, shown)).await
}

async fn run(client: conmon_proto::Client, spec: ExecSpec, io: Io, id: String, shown: String) -> Result<i32> {
    let (output, mut events) = conmon_proto::output();
    let _ahead = cgroup::ahead();
    let exec = client.exec(&spec, Some(output)).await.map_err(|error| refused(&error))?;
    let exec = std::rc::Rc::new(exec);
    let Io { mut stdin, mut stdout, mut stderr, mut resize, gone } = io;
    let typed = std::rc::Rc::clone(&exec);
    let input = tokio::task::spawn_local(async move {
        let Some(stdin) = &mut stdin else { return };
        while let Some(chunk) = stdin.recv().await {
            if typed.write(&chunk).await.is_err() {
                return;
            }
        }
        let _ = typed.close_stdin().await;
    });
    let sized = std::rc::Rc::clone(&exec);
    let sizes = tokio::task::spawn_local(async move {
        while let Some((rows, columns)) = resize.recv().await {
            let _ = sized.resize(rows, columns).await;
        }
    });
    let mut leaving = pin!({
        let (mut gone, grace) = (gone.clone(), if spec.stdin { LEFT } else { Duration::ZERO });
        async move {
            gone.wait().await;
            sleep(grace).await;
        }
    });
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            // The process goes with the connection.
            () = &mut leaving => break,
        };
        let Some(event) = event else { break };
        let Event::Write { stream, data, .. } = event else { continue };
        let to = if stream == Stream::Stderr { &mut stderr } else { &mut stdout };
        // A stream that nobody takes is discarded; it is known in a moment whether that was all of the client.
        if let Some(sender) = to
            && sender.send(data.into()).await.is_err()
        {
            *to = None;
        }
    }
    drop((stdout, stderr));
    input.abort();
    sizes.abort();
    if gone.is_gone() {
        return Err(Error::failed(format!("The client of {shown:?} in container {id} has gone")));
    }
    let result = exec.wait().await.map_err(|error| refused(&error))?;
    match result.exit.reason {
        ExitReason::NeverStarted => Err(never_started(&shown, &id, &result.error)),
        _ => Ok(result.exit.status),
    }
}

fn refused(error: &conmon_proto::Error) -> Error {
    crate::monitor::refusal("exec".as_ref(), error)
}

fn never_started(command: &str, id: &str, said: &str) -> Error {
    Error::failed(format!("Failed to exec {command:?} in container {id}: {}", said.trim_end()))
}

/// The container's own process with another command: same user, environment, capabilities, directory.
fn process(container: &Container, command: Vec<String>, terminal: bool) -> Result<Vec<u8>> {
    if command.is_empty() {
        return Err(Error::invalid("A command is needed"));
    }
    let mut config: serde_json::Value = state::read(&container.bundle().join("config.json"))?;
    let mut process = config["process"].take();
    process["args"] = command.into();
    process["terminal"] = terminal.into();
    if let Some(process) = process.as_object_mut() {
        process.remove("consoleSize");
    }
    serde_json::to_vec(&process).context(|| "Failed to write a process object")
}
