//! The service, seen by a client in another language: Python with `pycapnp`, which reads the schema itself.
//!
//! `cargo test --test python -- [FILTER…] [--list]`. The containers are runc's. Where Python, its package, or the right
//! to make containers is missing, the cases are skipped and say so.

#[path = "../support/mod.rs"]
mod support;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use support::container::Container;
use support::suite::{Case, Monitor};
use support::{Fail, Outcome};

/// The interpreter, and why there is none: found once, for all cases.
const PYTHON: &str = "SERVICE_PYTHON";
const WHY: &str = "SERVICE_PYTHON_WHY";

/// What most cases talk to: it says something on both streams, then answers every line.
const TALKS: &str = "trap 'exit 9' TERM; echo err >&2; echo ready
while read -r line; do
    case $line in bulk) yes 0123456789abcde | head -c 1048576 ;; size) stty size ;; esac
    echo \"got $line\"
done
echo bye; exit 3";

fn main() -> ExitCode {
    if let Some(code) = support::roles::dispatch() {
        return code;
    }
    if std::env::var_os(PYTHON).is_none() && std::env::var_os(WHY).is_none() {
        return with_python();
    }
    support::suite::main(&cases())
}

/// Becomes this program once more, with the answer in its environment, from where all cases have it.
fn with_python() -> ExitCode {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/python");
    let (name, text) = match Command::new(tool).output() {
        Ok(output) if output.status.success() => (PYTHON, output.stdout),
        Ok(output) => (WHY, output.stderr),
        Err(error) => (WHY, format!("cannot run {tool}: {error}").into_bytes()),
    };
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let mut args = std::env::args_os();
    let own = args.next().unwrap_or_default();
    let error = Command::new(own).args(args).env(name, text).exec();
    eprintln!("cannot start myself again: {error}");
    ExitCode::FAILURE
}

fn cases() -> Vec<Case> {
    let pipes = [
        ("version", "who it is"),
        ("inspect", "streams, sinks, connections, memory"),
        ("wait", "answers when the container has ended, with what the exit file says"),
        ("signal", "ends it; no number that is none"),
        ("attach", "from now on, typing, end of stdin, the end"),
        ("history", "all, the last lines, from an offset; detached, ended"),
        ("slow", "a client that takes its time gets every byte"),
        ("captured", "an exec's output comes with its result, once, and no more than asked for"),
        ("ten", "ten execs at once over one connection"),
        ("streaming", "an exec's input and output as streams: a megabyte of every byte"),
        ("timeout", "an exec whose time is up is killed, with what it has started"),
        ("exec_terminal", "an exec with a terminal and its size"),
        ("exec_signal", "an exec gets a signal"),
        ("abandoned", "an exec ends with the last reference to it, or goes on"),
        ("missing_command", "an exec of nothing: the runtime's own words"),
        ("reopen_log", "the new file, twice; history goes over both"),
        ("refusals", "every refusal has its code and a reason"),
        ("mistakes", "a call without what it needs ends in an exception, and the monitor goes on"),
    ];
    let case = |name: &'static str, what: &str, terminal: bool| {
        Case::new(&format!("python/{}", name.replace('_', "-")), "service", what, move |m| run(m, name, terminal))
            .native()
    };
    let mut cases: Vec<Case> = pipes.map(|(name, what)| case(name, what, false)).into();
    cases.push(case("terminal", "attach to a terminal: its size from the client and from the call", true));
    cases
}

fn run(monitor: &Monitor, name: &str, terminal: bool) -> Outcome {
    let python = std::env::var(PYTHON).map_err(|_| {
        Fail::Skip(std::env::var(WHY).unwrap_or_else(|_| "no Python with pycapnp was looked for".to_owned()))
    })?;
    let mut container = Container::new(monitor, TALKS)?;
    if terminal {
        container.terminal();
    }
    let live = container.start(|scene| scene.flag(if terminal { "-t" } else { "-i" }))?;
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/client.py");
    let output = Command::new(python).arg("-B").arg(program).arg(name).arg(live.dir.join("b")).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Fail::Wrong(format!(
            "{}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ))),
    }
}
