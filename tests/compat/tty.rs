//! Terminals: the console socket, what is set on the pty, its size, its hang-ups.

use std::time::Duration;

use crate::support::crilog::bytes_of;
use crate::support::pipes::Kind;
use crate::support::scene::Scene;
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, contains, same, same_bytes, wait};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("tty/crlf", "4", "output comes with CR LF, in the log and at the client", crlf),
        Case::new("tty/onlcr", "4", "ONLCR is set on the master even if the container took it away", onlcr),
        Case::new("tty/stderr-is-stdout", "4", "everything is stdout, stream byte 2", one_stream),
        Case::new("tty/is-a-tty", "4", "stdin, stdout and stderr are one terminal", is_a_tty),
        Case::new("tty/size-0-0", "4", "0 0 until somebody says otherwise", no_size),
        Case::new("tty/early-resize", "4", "a resize before the terminal exists is kept", |m| {
            early_resize(m, "1 33 44\n")
        }),
        Case::new("tty/early-resizes", "4", "of several resizes the latest is kept", |m| {
            early_resize(m, "1 11 22\n1 33 44\n")
        })
        .since("2.2"),
        Case::new("tty/early-input", "4", "input before the terminal exists is kept", early_input),
        Case::new("tty/drain", "4", "100 000 bytes and an immediate end: all in the log", drain),
        Case::new("tty/hang-up-is-not-the-end", "4", "all descriptors closed, opened again: output goes on", hang_up),
        Case::new("tty/detach-reattach", "5.5", "-t without -i: detach, attach again, type", reattach),
        Case::new("tty/exec-detach-closes", "5.5", "-t -i: the write side closes with the first client", detach_closes),
        Case::new("tty/status", "3.10", "exit status through a terminal", status),
        Case::new(
            "tty/exec-failure-message",
            "11 B13",
            "exec -t that fails: the runtime's words are reported",
            exec_failure,
        ),
    ]
}

fn scene(monitor: &Monitor, script: &str) -> Outcome<Scene> {
    let mut scene = Scene::create(monitor)?;
    scene.flag("-t").script(script)?;
    Ok(scene)
}

fn crlf(monitor: &Monitor) -> Outcome {
    let live = scene(monitor, "go; echo hi; go")?.start()?;
    let client = live.attach()?;
    live.go()?;
    client.expect("hi\r\n")?;
    live.log_has("stdout F hi\r\n")?;
    live.go()?;
    live.end().map(drop)
}

fn onlcr(monitor: &Monitor) -> Outcome {
    let live = scene(monitor, "stty -a")?.start()?;
    live.end()?;
    let log = bytes_of(&live.log()?, "stdout");
    let words = String::from_utf8_lossy(&log).into_owned();
    check(words.split_whitespace().any(|word| word == "onlcr"), format!("expected onlcr among {words:?}"))
}

fn one_stream(monitor: &Monitor) -> Outcome {
    let (live, _) = scene(monitor, "echo one; echo two >&2")?.run()?;
    same("log", live.plain_log()?, vec!["stdout F one\\r".to_owned(), "stdout F two\\r".to_owned()])
}

fn is_a_tty(monitor: &Monitor) -> Outcome {
    same("status", scene(monitor, "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && exit 42")?.run()?.1, 42)
}

fn no_size(monitor: &Monitor) -> Outcome {
    let (live, _) = scene(monitor, "stty size")?.run()?;
    same("log", live.plain_log()?, vec!["stdout F 0 0\\r".to_owned()])
}

/// A runtime that starts the container only when `now` exists.
fn late(monitor: &Monitor, script: &str) -> Outcome<(Scene, std::path::PathBuf)> {
    let mut scene = scene(monitor, script)?;
    let now = scene.dir.join("now");
    scene.runtime(&format!("wait {}", now.display()))?;
    Ok((scene, now))
}

fn early_resize(monitor: &Monitor, lines: &str) -> Outcome {
    let (mut scene, now) = late(
        monitor,
        "n=0; while [ $n -lt 200 ]; do n=$((n+1)); \
        [ \"$(stty size)\" = '33 44' ] && echo right && exit 0; sleep 0.02; done; stty size",
    )?;
    let live = scene.start()?;
    live.seen()?;
    live.ctl(lines)?;
    std::fs::write(now, "")?;
    live.end()?;
    same("log", live.plain_log()?, vec!["stdout F right\\r".to_owned()])
}

fn early_input(monitor: &Monitor) -> Outcome {
    let (mut scene, now) = late(monitor, "stty -echo; read x; echo \"got $x\"")?;
    let live = scene.start()?;
    live.seen()?;
    let client = live.attach()?;
    client.send(b"early\n")?;
    std::fs::write(now, "")?;
    client.expect("got early\r\n")?;
    live.end().map(drop)
}

fn drain(monitor: &Monitor) -> Outcome {
    let (live, _) = scene(monitor, "stty -opost; head -c 100000 /dev/zero | tr '\\0' y")?.run()?;
    same_bytes("stdout in the log", &bytes_of(&live.log()?, "stdout"), &vec![b'y'; 100_000])
}

fn hang_up(monitor: &Monitor) -> Outcome {
    let script = "t=$(tty); echo one; exec 0<&- 1>&- 2>&-; sleep 0.3; exec >\"$t\"; echo two; exit 3";
    let (live, status) = scene(monitor, script)?.run()?;
    same("status", status, 3)?;
    same("log", live.plain_log()?, vec!["stdout F one\\r".to_owned(), "stdout F two\\r".to_owned()])
}

fn reattach(monitor: &Monitor) -> Outcome {
    let live = scene(monitor, "while read x; do echo \"<$x>\"; [ \"$x\" = end ] && exit 5; done")?.start()?;
    for word in ["first", "second"] {
        let client = live.attach()?;
        client.send(format!("{word}\n").as_bytes())?;
        client.expect(&format!("<{word}>"))?;
        client.half_close()?;
    }
    let client = live.attach()?;
    client.send(b"end\n")?;
    same("status", live.end()?, 5)
}

/// The write side of the pty is closed, no ^D is sent: the shell goes on, and later input is dropped.
fn detach_closes(monitor: &Monitor) -> Outcome {
    let mut scene = scene(monitor, "while read x; do echo \"<$x>\"; done; exit 6")?;
    let live = scene.flag("-i").start()?;
    let first = live.attach()?;
    first.send(b"one\n")?;
    first.expect("<one>")?;
    first.half_close()?;
    std::thread::sleep(Duration::from_millis(100));
    let second = live.attach()?;
    second.send(b"two\n")?;
    let log = || String::from_utf8_lossy(&live.log_bytes()).contains("two");
    wait::never("input after the write side was closed", Duration::from_millis(300), log)?;
    check(!live.dir.join("p/exit").exists(), "no ^D is sent: the container goes on")
}

fn status(monitor: &Monitor) -> Outcome {
    let (live, status) = scene(monitor, "kill -KILL $$")?.run()?;
    same("daemon's status", status, 137)?;
    same("exit file", live.exit_file()?, "137".to_owned())
}

fn exec_failure(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    scene.flag("-t").flag("--api-version").sync_pipe(Kind::Seqpacket)?;
    scene.runtime("nocontainer\nnopid\nstderr exec failed: not found\nexit 1")?;
    let mut live = scene.start()?;
    let report = live.sync()?.json()?;
    same("data", report["data"].as_i64(), Some(-1))?;
    contains("message", report["message"].as_str().unwrap_or_default(), "exec failed: not found")
}
