//! The service: what an exec over it takes compared with a monitor for each, and what clients leave behind.

use std::{path::Path, time::Duration};

use conmon_proto::{AttachRequest, Client, Event, Exec, ExecSpec, History, connect, output};

use super::{
    Bench, Subject,
    container::{Container, Outcome, PATIENCE, Plan, pause},
    latency, milliseconds, pairs, processes, row,
    runtime::{Role, now},
    table::{Row, quantile},
};

/// Memory is given back a second or two after the last of a load.
const SETTLE: u64 = 4000;

/// Execs of one round, one after the other; the first ones find nothing warm.
const EXECS: usize = 9;

/// Clients that come and go, and what they run altogether.
const CLIENTS: usize = 8;
const COMMANDS: usize = 50;

pub fn exec(bench: &mut Bench) -> Vec<Row> {
    let rounds = bench.rounds(3, 20);
    let times = bench.compare("service-exec", rounds, |subject| {
        let times = if subject.is_conmon() { monitors(subject)? } else { calls(subject)? };
        quantile(&times, 0.5).ok_or("nothing was measured".to_string())
    });
    vec![row("exec over the service; conmon: a monitor each → exit code", "ms", 2, &times, |time| *time)]
}

fn monitors(subject: &Subject) -> Outcome<Vec<f64>> {
    (0..EXECS).map(|_| latency::exec_once(subject).map(|(_, code)| milliseconds(code))).collect()
}

fn calls(subject: &Subject) -> Outcome<Vec<f64>> {
    let container = subject.start(&Role::Sleep, Plan::default())?;
    talk(async {
        let client = client(&container).await?;
        let mut times = Vec::new();
        for _ in 0..EXECS {
            let began = now();
            quick(&client).await?;
            times.push(milliseconds(now() - began));
        }
        Ok(times)
    })
}

/// Memory above that of an idle monitor.
pub fn memory(bench: &mut Bench) -> Vec<Row> {
    let rounds = bench.rounds(1, 5);
    let kept = bench.compare("service-memory", rounds, |subject| {
        if subject.is_conmon() {
            return Ok(None);
        }
        let container = subject.start(&Role::Sleep, Plan::default())?;
        let private = || {
            pause(SETTLE);
            processes::dirty_memory(container.monitor) as f64
        };
        let before = private();
        talk(visit(&container))?;
        Ok(Some(private() - before))
    });
    let title = format!("private memory that {CLIENTS} clients and {COMMANDS} execs leave behind");
    vec![Row::new(title, "KiB", 0, pairs(&kept, |kept| *kept))]
}

/// Clients look, attach, run commands between them, and go.
async fn visit(container: &Container) -> Outcome<()> {
    let failed = |error| format!("a client fails: {error}");
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let client = client(container).await?;
        client.inspect().await.map_err(failed)?;
        let request = AttachRequest { history: History::All, ..AttachRequest::default() };
        let (output, events) = output();
        let attachment = client.attach(&request, output).await.map_err(failed)?;
        clients.push((client, attachment, events));
    }
    for number in 0..COMMANDS {
        quick(&clients[number % CLIENTS].0).await?;
    }
    for (_, attachment, mut events) in clients {
        drop(attachment);
        while let Some(event) = events.next().await {
            if matches!(event, Event::End(_)) {
                break;
            }
        }
    }
    Ok(())
}

async fn quick(client: &Client) -> Outcome<()> {
    let run = async {
        let exec: Exec = client.exec(&ExecSpec::command(["quick"]), None).await?;
        exec.wait().await
    };
    let result = run.await.map_err(|error| format!("exec fails: {error}"))?;
    match result.exit.status {
        0 => Ok(()),
        status => Err(format!("an exec ended with {status}: {}", result.error)),
    }
}

async fn client(container: &Container) -> Outcome<Client> {
    let socket: &Path = &container.dir.bundle.join("conward.sock");
    connect(socket).await.map_err(|error| error.to_string())
}

/// Runs a conversation to its end, on this thread.
fn talk<T>(conversation: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot set up the event loop: {error}"))?;
    let limit: Duration = PATIENCE;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(limit, conversation).await.map_err(|_| "the monitor does not answer".to_string())?
    })
}
