//! The service with a real runtime: execs as words and as an object, terminals, timeouts, the container's end.

use std::time::{Duration, Instant};

use conmon_proto::{Client, ExecResult, ExecSpec, ExitReason};

use crate::support::container::Container;
use crate::support::scene::Live;
use crate::support::service::{socket, talk};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, contains, same, wait};

pub fn cases() -> Vec<Case> {
    let cases = vec![
        Case::new("runc/service-exec", "P10", "words: environment, user, directory, exit code", words),
        Case::new("runc/service-object", "P10", "a process object", object),
        Case::new("runc/service-terminal", "P10", "a terminal and its size", terminal),
        Case::new("runc/service-not-found", "P16", "runc's own words", not_found),
        Case::new("runc/service-timeout", "P10", "daemons in the container end with the exec", timeout),
        Case::new("runc/service-end", "P10", "the container's end is the end of its execs", end),
    ];
    cases.into_iter().map(Case::native).collect()
}

/// Runs a client beside a container that waits to be killed.
fn with<T>(monitor: &Monitor, work: impl AsyncFnOnce(Client, &Container) -> Outcome<T>) -> Outcome<T> {
    let mut container = Container::new(monitor, "echo ready; sleep 60")?;
    let live: Live = container.start(|scene| scene)?;
    live.log_has("ready")?;
    let path = socket(&live);
    wait::until_true("the socket", || path.exists())?;
    talk(async { work(conmon_proto::connect(&path).await?, &container).await })
}

async fn run(client: &Client, spec: &ExecSpec) -> Outcome<ExecResult> {
    Ok(client.exec(spec, None).await?.wait().await?)
}

fn sh(script: &str) -> ExecSpec {
    ExecSpec::command(["/bin/sh", "-c", script])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn words(monitor: &Monitor) -> Outcome {
    with(monitor, async |client, _| {
        let script = "echo $WHO in $PWD; while read -r a b c; do case $a in Uid:|Gid:) echo $b;; esac; done </proc/self/status; exit 42";
        let spec =
            ExecSpec { env: vec!["WHO=me".to_owned()], cwd: "/tmp".to_owned(), user: "12:34".to_owned(), ..sh(script) };
        let result = run(&client, &spec).await?;
        same("stderr", text(&result.stderr), String::new())?;
        same("stdout", text(&result.stdout), "me in /tmp\n12\n34\n".to_owned())?;
        same("status", (result.exit.reason, result.exit.exit_code), (ExitReason::Exited, 42))
    })
}

fn object(monitor: &Monitor) -> Outcome {
    with(monitor, async |client, _| {
        let process = serde_json::json!({
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", "echo $WHO; exit 4"],
            "env": ["PATH=/bin", "WHO=object"], "cwd": "/",
        });
        let result =
            run(&client, &ExecSpec { process: process.to_string().into_bytes(), ..ExecSpec::default() }).await?;
        same("result", (text(&result.stdout), result.exit.status), ("object\n".to_owned(), 4))
    })
}

fn terminal(monitor: &Monitor) -> Outcome {
    with(monitor, async |client, _| {
        // The size is set when the terminal is there, which may be a moment after the process is.
        let script = "until s=$(stty size 2>/dev/null) && [ -n \"$s\" ]; do sleep 0.1; done; echo $s; exit 3";
        let spec = ExecSpec { terminal: true, rows: 12, columns: 34, ..sh(script) };
        let result = run(&client, &spec).await?;
        same("result", (text(&result.stdout), result.exit.status), ("12 34\r\n".to_owned(), 3))
    })
}

fn not_found(monitor: &Monitor) -> Outcome {
    with(monitor, async |client, _| {
        let result = run(&client, &ExecSpec::command(["/not/there"])).await?;
        same("reason", result.exit.reason, ExitReason::NeverStarted)?;
        contains("error", &result.error, "no such file or directory")
    })
}

fn timeout(monitor: &Monitor) -> Outcome {
    with(monitor, async |client, _| {
        let began = Instant::now();
        // A child that its parent does not wait for becomes the container's own, and still has the output.
        let spec = ExecSpec { timeout: 600, ..sh("(sleep 50 &); echo begun; sleep 50") };
        let result = run(&client, &spec).await?;
        same("reason", result.exit.reason, ExitReason::TimedOut)?;
        same("stdout", text(&result.stdout), "begun\n".to_owned())?;
        check(began.elapsed() < Duration::from_secs(5), format!("it took {:?}", began.elapsed()))?;
        // `sleep 60` is the container's own.
        let script = "for p in /proc/[0-9]*/cmdline; do read -r line <$p; case $line in *\"sle\"ep*50*) echo $p;; esac; done 2>&1";
        same("what is left of it", text(&run(&client, &sh(script)).await?.stdout), String::new())
    })
}

fn end(monitor: &Monitor) -> Outcome {
    with(monitor, async |client, container| {
        let exec = client.exec(&sh("echo begun; sleep 50"), None).await?;
        let waiting = tokio::task::spawn_local(async move { exec.wait().await });
        tokio::time::sleep(Duration::from_millis(400)).await;
        container.call(&["kill", "ID", "KILL"])?;
        let result = waiting.await.map_err(|error| error.to_string())??;
        same("end", (result.exit.reason, result.exit.signal), (ExitReason::Signalled, 9))?;
        same("stdout", text(&result.stdout), "begun\n".to_owned())
    })
}
