//! The monitor with a real runtime: runc, and a root file system that is nothing but busybox.
//!
//! `cargo test --test runc -- [FILTER…] [--list] [--only conmon|conward]`. Where runc, busybox or the right to make
//! containers is missing, the cases are skipped and say so.

#[path = "../support/mod.rs"]
mod support;

mod service;

use std::process::ExitCode;

use nix::sys::signal::Signal;
use support::attach::STDOUT;
use support::container::Container;
use support::pipes::Kind;
use support::suite::{Case, Monitor};
use support::{Outcome, contains, same, same_bytes};

fn main() -> ExitCode {
    if let Some(code) = support::roles::dispatch() {
        return code;
    }
    support::suite::main(&cases().into_iter().chain(service::cases()).collect::<Vec<_>>())
}

fn cases() -> Vec<Case> {
    vec![
        Case::new("runc/run", "3", "create, start, both streams in the log, exit code", run),
        Case::new("runc/attach", "5", "type into it, half-close, everything comes back", attach),
        Case::new("runc/tty", "4", "a terminal: size, CR LF, typing, exit code", tty),
        Case::new("runc/kill", "3.10", "runc kill KILL: 137", |m| kill(m, "KILL", 137)),
        Case::new("runc/sigterm", "3.8", "SIGTERM to the monitor reaches the container", sigterm),
        Case::new("runc/bulk", "3.9", "1 MB and an immediate end: all in the log", bulk),
        Case::new("runc/exec", "3.7", "exec: output, exit code 42", exec),
        Case::new("runc/exec-tty", "4", "exec with a terminal", exec_tty),
        Case::new("runc/exec-not-found", "3.7", "exec of nothing: data -1 and runc's words", exec_not_found),
        Case::new(
            "runc/create-not-found",
            "3.7",
            "create with a missing command: -1 and runc's words",
            create_not_found,
        ),
        Case::new("runc/stdout-by-name", "3.3", "an ordinary user may open /dev/stdout", stdout_by_name),
    ]
}

fn run(monitor: &Monitor) -> Outcome {
    let mut container = Container::new(monitor, "echo out; echo err >&2; exit 3")?;
    let live = container.start(|scene| scene)?;
    same("daemon's status", live.end()?, 3)?;
    same("exit file", live.exit_file()?, "3".to_owned())?;
    let mut log = live.plain_log()?;
    log.sort();
    same("log", log, vec!["stderr F err".to_owned(), "stdout F out".to_owned()])
}

fn attach(monitor: &Monitor) -> Outcome {
    let mut container = Container::new(monitor, "cat; exit 5")?;
    let live = container.start(|scene| scene.flag("-i"))?;
    let client = live.attach()?;
    client.send(b"hello\n")?;
    client.expect("hello")?;
    client.half_close()?;
    client.to_end(STDOUT)?;
    same("daemon's status", live.end()?, 5)
}

fn tty(monitor: &Monitor) -> Outcome {
    let mut container = Container::new(monitor, "read x; stty size; echo \"got $x\"; exit 4")?;
    container.terminal();
    let live = container.start(|scene| scene.flag("-t"))?;
    let client = live.attach()?;
    live.ctl("1 33 44\n")?;
    client.send(b"abc\n")?;
    client.expect("got abc\r\n")?;
    same("daemon's status", live.end()?, 4)?;
    live.log_has("stdout F 33 44\r")
}

fn kill(monitor: &Monitor, signal: &str, status: i32) -> Outcome {
    let mut container = Container::new(monitor, "echo ready; sleep 60")?;
    let live = container.start(|scene| scene)?;
    live.log_has("ready")?;
    container.call(&["kill", "ID", signal])?;
    same("daemon's status", live.end()?, status)?;
    same("exit file", live.exit_file()?, status.to_string())
}

fn sigterm(monitor: &Monitor) -> Outcome {
    let mut container = Container::new(monitor, "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done")?;
    let live = container.start(|scene| scene)?;
    live.log_has("ready")?;
    live.signal(Signal::SIGTERM)?;
    same("daemon's status", live.end()?, 9)
}

fn bulk(monitor: &Monitor) -> Outcome {
    let mut container = Container::new(monitor, "yes 0123456789abcdef | head -c 1000000")?;
    let live = container.start(|scene| scene)?;
    same("daemon's status", live.end()?, 0)?;
    let expected: Vec<u8> = b"0123456789abcdef\n".iter().copied().cycle().take(1_000_000).collect();
    same_bytes("stdout in the log", &support::crilog::bytes_of(&live.log()?, "stdout"), &expected)
}

fn exec(monitor: &Monitor) -> Outcome {
    let mut container = Container::new(monitor, "echo ready; sleep 60")?;
    let live = container.start(|scene| scene)?;
    live.log_has("ready")?;
    let mut exec = container.exec(monitor, &["/bin/sh", "-c", "echo inside; exit 42"], false)?;
    let mut exec = exec.flag("--api-version").sync_pipe(Kind::Seqpacket)?.start()?;
    contains("first report", &exec.sync()?.report()?, "{\"data\": ")?;
    same("second report", exec.sync()?.report()?.as_str(), "{\"data\": 42}\n")?;
    exec.end()?;
    same("log", exec.plain_log()?, vec!["stdout F inside".to_owned()])
}

fn exec_tty(monitor: &Monitor) -> Outcome {
    let mut container = Container::new(monitor, "echo ready; sleep 60")?;
    let live = container.start(|scene| scene)?;
    live.log_has("ready")?;
    let mut exec = container.exec(monitor, &["/bin/sh", "-c", "[ -t 0 ] && echo terminal; exit 7"], true)?;
    let mut exec = exec.flag("-t").flag("--api-version").sync_pipe(Kind::Seqpacket)?.start()?;
    exec.sync()?.report()?;
    same("second report", exec.sync()?.report()?.as_str(), "{\"data\": 7}\n")?;
    exec.log_has("stdout F terminal\r")
}

fn exec_not_found(monitor: &Monitor) -> Outcome {
    let mut container = Container::new(monitor, "echo ready; sleep 60")?;
    let live = container.start(|scene| scene)?;
    live.log_has("ready")?;
    let mut exec = container.exec(monitor, &["/not/there"], false)?;
    let mut exec = exec.flag("--api-version").sync_pipe(Kind::Seqpacket)?.start()?;
    let report = exec.sync()?.json()?;
    same("data", report["data"].as_i64(), Some(-1))?;
    contains("message", report["message"].as_str().unwrap_or_default(), "no such file or directory")
}

fn create_not_found(monitor: &Monitor) -> Outcome {
    let mut container = Container::new(monitor, "")?;
    container.command(&["/not/there"]);
    let mut live = container.create(|scene| scene.sync_pipe(Kind::Pipe).map(drop))?;
    let report = live.sync()?.json()?;
    same("pid", report["pid"].as_i64(), Some(-1))?;
    contains("message", report["message"].as_str().unwrap_or_default(), "no such file or directory")?;
    same("daemon's status", live.end()?, 1)
}

fn stdout_by_name(monitor: &Monitor) -> Outcome {
    let mut container = Container::new(monitor, "echo again > /proc/self/fd/1")?;
    container.user(1000);
    let live = container.start(|scene| scene)?;
    same("daemon's status", live.end()?, 0)?;
    same("log", live.plain_log()?, vec!["stdout F again".to_owned()])
}
