//! From the start of the front to the end of the daemon: pidfiles, pipes, reports, exit files, exit command, signals.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::pipes::{KINDS, Kind};
use crate::support::scene::{CID, Scene};
use crate::support::suite::{Case, Monitor};
use crate::support::wait::{self, SOON};
use crate::support::{Outcome, check, contains, procs, same};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("life/simple", "3", "report, log, exit files, status of a short container", simple),
        Case::new("life/front-waits-for-start", "3.1", "the front waits for the start message before it forks", waits),
        Case::new("life/start-eof", "3.1", "end of file on the start pipe is a start as well", start_eof),
        Case::new(
            "life/conmon-pidfile",
            "3.4",
            "bare number, mode 0644, there when the front has ended",
            conmon_pidfile,
        ),
        Case::new("life/pidfile-unwritable", "3.4", "front ends with 1 when it cannot write its pidfile", bad_pidfile),
        Case::new("life/sync-option", "3.1", "--sync: no fork, no pidfile, status of the container", sync_option),
        Case::new(
            "life/default-pidfile",
            "1.2",
            "the container pidfile defaults to pidfile-<cid> in the cwd",
            default_pidfile,
        ),
        Case::new("life/hidden-pidfile", "1.2", "--pidfile is --container-pidfile", hidden_pidfile),
        Case::new("life/own-session", "3.2", "the daemon leads a session of its own", own_session),
        Case::new("life/bad-syncpipe", "2.1", "unusable sync pipe: front 0, daemon 1", bad_syncpipe),
        Case::new("life/no-report-without-pipe", "2.1", "no sync pipe, no complaint", |m| {
            same("status", Scene::create(m)?.run()?.1, 0)
        }),
        Case::new("life/exit-files-order", "3.10", "persist exit is older than the exit-dir file", exit_order),
        Case::new("life/exit-files-form", "3.10", "bare number, mode 0644, no temporary file left", exit_form),
        Case::new("life/persist-dir-alone", "3.10", "no --exit-dir: only the persist file", persist_alone),
        Case::new(
            "life/grandchild-holds-stdout",
            "3.9",
            "a leftover child on stdout does not delay the exit",
            grandchild,
        ),
        Case::new("life/drain", "3.9", "700 000 bytes and an immediate end: all in the log", drain),
        Case::new("life/exit-command", "3.13", "argv, only 0-2 open, /dev/null, monitor still alive", exit_command),
        Case::new("life/exit-command-after-failure", "3.13", "runs also when the runtime failed", exit_command_failure),
        Case::new("life/exit-command-status", "3.13", "its status does not change ours", exit_command_status),
        Case::new("life/exit-delay", "3.13", "--exit-delay: sync pipe closed before, command after", exit_delay),
        Case::new("life/exit-command-oom-score", "3.13", "runs with the caller's oom_score_adj", exit_command_score)
            .since("2.2"),
        Case::new("life/exit-command-clean-mask", "3.13", "no blocked signals", exit_command_mask).defect("3.13"),
        Case::new("life/timeout-create", "3.11", "-T: killed, exit file -1, status 255", timeout_create),
        Case::new("life/timeout-not-reached", "3.11", "-T with a container that ends before", timeout_not_reached),
        Case::new("life/sigpipe", "3.1", "SIGPIPE is ignored", sigpipe),
        Case::new("life/reaps-strangers", "3.8", "re-parented children are reaped", reaps_strangers),
        Case::new("life/same-process", "2.4", "the pid in the pidfile keeps cmdline and environment", same_process),
        Case::new("life/stdio-detached", "2.2", "the daemon lets go of stdout and stderr", stdio_detached),
        Case::new("life/restore", "3.5", "restore: report and end as in create", restore),
    ];
    for kind in KINDS {
        cases.push(Case::new(
            &format!("life/pipes-{kind:?}"),
            "2.1",
            "sync and start pipe of this kind",
            move |m: &Monitor| pipes(m, kind),
        ));
    }
    cases.extend(statuses());
    cases.extend(forwarded());
    cases
}

fn simple(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.script("echo hi; echo oops >&2; exit 3")?.sync_pipe(Kind::Pipe)?;
    let mut live = scene.start()?;
    let pid = live.container()?;
    same("report", live.sync()?.report()?, format!("{{\"pid\": {pid}}}\n"))?;
    same("daemon's status", live.end()?, 3)?;
    same("after the report", live.sync()?.rest()?, String::new())?;
    same("exit-dir file", live.exit_file()?, "3".to_owned())?;
    same("persist file", live.persist_file()?, "3".to_owned())?;
    let mut log = live.plain_log()?;
    log.sort();
    same("log", log, vec!["stderr F oops".to_owned(), "stdout F hi".to_owned()])
}

fn pipes(monitor: &Monitor, kind: Kind) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.flag("--api-version").sync_pipe(kind)?.start_pipe(kind)?;
    let mut live = scene.spawn()?;
    live.start()?.send()?;
    same("front's status", live.front_end()?, 0)?;
    let packet = live.sync()?.packet(SOON)?;
    let expected = format!("{{\"data\": {}}}\n", live.container()?);
    same("one read of the sync pipe", String::from_utf8_lossy(&packet).into_owned(), expected)?;
    same("after the report", live.sync()?.rest()?, String::new())
}

fn waits(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.start_pipe(Kind::Stream)?;
    let mut live = scene.spawn()?;
    let front = nix::unistd::Pid::from_raw(i32::try_from(live.front.id()).map_err(|_| "pids are positive")?);
    let pidfile = live.dir.join("cpid");
    wait::never("a fork before the start message", Duration::from_millis(300), || {
        pidfile.exists() || !procs::children_of(front).is_empty() || !procs::alive(front)
    })?;
    live.start()?.send()?;
    same("front's status", live.front_end()?, 0)?;
    same("daemon's status", live.end()?, 0)
}

fn start_eof(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.start_pipe(Kind::Pipe)?;
    let mut live = scene.spawn()?;
    live.start = None;
    same("front's status", live.front_end()?, 0)?;
    same("daemon's status", live.end()?, 0)
}

fn conmon_pidfile(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.script("go")?;
    let live = scene.start()?;
    let path = live.dir.join("cpid");
    check(path.exists(), "the pidfile must exist when the front has ended")?;
    same("mode", fs::metadata(&path)?.mode() & 0o7777, 0o644)?;
    let pid = live.pid()?;
    check(procs::alive(pid), "the pid in the pidfile must be the daemon's")?;
    let container = live.container()?;
    wait::until_true("the container to be the daemon's child", || procs::children_of(pid).contains(&container))?;
    live.go()?;
    same("daemon's status", live.end()?, 0)
}

fn bad_pidfile(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    same("front's status", scene.set("-P", "/not/there/pid").front()?.0, 1)
}

fn sync_option(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.flag("--sync").script("exit 7")?;
    let mut live = scene.spawn()?;
    same("status of the started process", live.front_end()?, 7)?;
    check(!live.dir.join("cpid").exists(), "no pidfile with --sync")?;
    same("exit file", live.exit_file()?, "7".to_owned())
}

fn default_pidfile(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (live, _) = scene.without("-p").run()?;
    check(live.dir.join(format!("pidfile-{CID}")).exists(), "expected pidfile-<cid> in the working directory")
}

fn hidden_pidfile(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let path = scene.dir.join("hidden");
    scene.without("-p").set("--pidfile", &path).run()?;
    check(path.exists(), "--pidfile must name the container pidfile")
}

fn own_session(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.script("go")?;
    let live = scene.start()?;
    live.container()?;
    let seen = live.seen()?;
    let pid = live.pid()?;
    same("session of the daemon", nix::unistd::getsid(Some(pid))?, pid)?;
    same("session of the runtime", seen["session"].as_i64(), Some(i64::from(pid.as_raw())))?;
    live.go()?;
    live.end().map(drop)
}

fn bad_syncpipe(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.env("_OCI_SYNCPIPE", "abc").start()?;
    same("daemon's status", live.end()?, 1)
}

fn exit_order(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.script("exit 9")?;
    let live = scene.start()?;
    live.exit_file()?;
    // CRI-O reads the one when it sees the other.
    let persist = fs::read_to_string(live.dir.join("p/exit"))?;
    same("persist file at the moment when the exit-dir file is seen", persist.as_str(), "9")?;
    live.end().map(drop)
}

fn exit_form(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (live, _) = scene.run()?;
    for (dir, name) in [("x", CID), ("p", "exit")] {
        let dir = live.dir.join(dir);
        same("content", fs::read_to_string(dir.join(name))?.as_str(), "0")?;
        same("mode", fs::metadata(dir.join(name))?.mode() & 0o7777, 0o644)?;
        for entry in fs::read_dir(&dir)?.flatten() {
            let found = entry.file_name().to_string_lossy().into_owned();
            check(!found.starts_with(&format!("{name}.")) || found == "exit.json", format!("left behind: {found}"))?;
        }
    }
    Ok(())
}

fn persist_alone(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (live, _) = scene.without("--exit-dir").run()?;
    same("persist file", live.persist_file()?, "0".to_owned())?;
    same("files in x", fs::read_dir(live.dir.join("x"))?.count(), 0)
}

fn grandchild(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.script("sleep 30 & echo before; exit 6")?;
    let live = scene.start()?;
    same("exit file", live.exit_file()?, "6".to_owned())?;
    same("log", live.plain_log()?, vec!["stdout F before".to_owned()])
}

fn drain(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.script("head -c 700000 /dev/zero | tr '\\0' x")?;
    let (live, _) = scene.run()?;
    let bytes = crate::support::crilog::bytes_of(&live.log()?, "stdout");
    crate::support::same_bytes("stdout in the log", &bytes, &vec![b'x'; 700_000])
}

/// How a container may end, and what is recorded of it.
fn statuses() -> Vec<Case> {
    let rows: [(&str, &str, i32); 8] = [
        ("exit-0", "exit 0", 0),
        ("exit-1", "exit 1", 1),
        ("exit-126", "exit 126", 126),
        ("exit-127", "exit 127", 127),
        ("exit-255", "exit 255", 255),
        ("sigkill", "kill -KILL $$", 137),
        ("sigterm", "kill -TERM $$", 143),
        ("sigabrt", "kill -ABRT $$", 134),
    ];
    let case = |(id, script, status): (&'static str, &'static str, i32)| {
        Case::new(
            &format!("status/{id}"),
            "3.10",
            &format!("{script}: {status} everywhere"),
            move |monitor: &Monitor| {
                let mut scene = Scene::create(monitor)?;
                let (live, seen) = scene.script(script)?.run()?;
                same("daemon's status", seen, status)?;
                same("exit-dir file", live.exit_file()?, status.to_string())?;
                same("persist file", live.persist_file()?, status.to_string())
            },
        )
    };
    rows.into_iter().map(case).collect()
}

/// Signals that the daemon hands on to the container.
fn forwarded() -> Vec<Case> {
    let rows = [("TERM", Signal::SIGTERM), ("INT", Signal::SIGINT), ("QUIT", Signal::SIGQUIT)];
    let case = |(name, signal): (&'static str, Signal)| {
        Case::new(
            &format!("signal/{name}"),
            "3.8",
            "forwarded to the container; the daemon logs on",
            move |m: &Monitor| {
                let mut scene = Scene::create(m)?;
                scene.script(&format!(
                    "trap 'echo caught {name}; exit 44' {name}\necho ready\nwhile :; do sleep 0.05; done"
                ))?;
                let live = scene.start()?;
                live.log_has("ready")?;
                live.signal(signal)?;
                same("daemon's status", live.end()?, 44)?;
                live.log_has(&format!("caught {name}"))
            },
        )
    };
    let mut cases: Vec<Case> = rows.into_iter().map(case).collect();
    cases.push(Case::new(
        "signal/TERM-during-runtime",
        "3.8",
        "goes to the runtime while that still runs",
        |monitor| {
            let mut scene = Scene::create(monitor)?;
            scene.runtime("nocontainer\nstderr working\nhang")?.sync_pipe(Kind::Pipe)?;
            let mut live = scene.start()?;
            live.seen()?;
            live.signal(Signal::SIGTERM)?;
            same("report", live.sync()?.json()?["pid"].as_i64(), Some(-1))?;
            same("daemon's status", live.end()?, 1)
        },
    ));
    cases.push(Case::new("signal/USR1", "3.8", "harmless", |m| survives(m, Signal::SIGUSR1)));
    cases.push(
        Case::new("signal/HUP", "11 B38", "does not end the daemon", |m| survives(m, Signal::SIGHUP)).defect("B38"),
    );
    cases
}

fn survives(monitor: &Monitor, signal: Signal) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.script("echo ready; go; echo after; exit 3")?;
    let live = scene.start()?;
    live.log_has("ready")?;
    live.signal(signal)?;
    live.go()?;
    same("daemon's status", live.end()?, 3)?;
    same("exit file", live.exit_file()?, "3".to_owned())?;
    live.log_has("after")
}

fn sigpipe(monitor: &Monitor) -> Outcome {
    survives(monitor, Signal::SIGPIPE)
}

fn exit_command(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.env("MARKER", "kept").exit_command(&["container", "cleanup", "--rm"]).script("exit 2")?;
    let (live, status) = scene.run()?;
    same("daemon's status", status, 2)?;
    let after = live.after()?;
    let argv: Vec<&str> = after["argv"].as_array().into_iter().flatten().filter_map(|word| word.as_str()).collect();
    same("arguments", &argv[2..], &["container", "cleanup", "--rm"][..])?;
    same("parent is the monitor", after["parent"].as_i64(), Some(i64::from(live.pid()?.as_raw())))?;
    same("monitor alive", after["parent_alive"].as_bool(), Some(true))?;
    same("environment", after["env"]["MARKER"].as_str(), Some("kept"))?;
    let fds = serde_json::json!({"0": "/dev/null", "1": "/dev/null", "2": "/dev/null"});
    same("descriptors", &after["fds"], &fds)
}

fn exit_command_failure(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.runtime("nocontainer\nstderr no\nexit 1")?.exit_command(&[]);
    let (live, status) = scene.run()?;
    same("daemon's status", status, 1)?;
    live.after()?;
    check(!live.dir.join("x").join(CID).exists(), "no exit file when the create failed")
}

fn exit_command_status(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    fs::write(scene.dir.join("exit-command-status"), "42")?;
    let (live, status) = scene.exit_command(&[]).script("exit 2")?.run()?;
    live.after()?;
    same("daemon's status", status, 2)
}

fn exit_delay(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.exit_command(&[]).set("--exit-delay", "1").sync_pipe(Kind::Pipe)?;
    let mut live = scene.start()?;
    live.exit_file()?;
    let ended = Instant::now();
    live.sync()?.rest()?;
    check(!live.dir.join("after").exists(), "the sync pipe must be closed before the delay is over")?;
    live.after()?;
    check(ended.elapsed() > Duration::from_millis(700), format!("the command ran after {:?}", ended.elapsed()))
}

fn exit_command_score(monitor: &Monitor) -> Outcome {
    fs::write("/proc/self/oom_score_adj", "123")?;
    let (live, _) = Scene::create(monitor)?.exit_command(&[]).run()?;
    same("oom_score_adj", live.after()?["oom_score_adj"].as_str(), Some("123"))
}

fn exit_command_mask(monitor: &Monitor) -> Outcome {
    let (live, _) = Scene::create(monitor)?.exit_command(&[]).run()?;
    same("SigBlk", live.after()?["blocked"].as_str(), Some("0000000000000000"))
}

fn timeout_create(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.script("echo begun; sleep 30 & wait")?.set("-T", "1").sync_pipe(Kind::Pipe)?;
    let mut live = scene.start()?;
    let container = live.container()?;
    same("first report", live.sync()?.json()?["pid"].as_i64(), Some(i64::from(container.as_raw())))?;
    same("exit file", live.exit_file()?, "-1".to_owned())?;
    same("daemon's status", live.end()?, 255)?;
    same("no further report", live.sync()?.rest()?, String::new())?;
    wait::until_true("the container to be gone", || !procs::alive(container))
}

fn timeout_not_reached(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (live, status) = scene.script("exit 3")?.set("-T", "30").run()?;
    same("daemon's status", status, 3)?;
    same("exit file", live.exit_file()?, "3".to_owned())
}

fn reaps_strangers(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.script("( sh -c 'sleep 0.05' & ) ; echo made; go")?;
    let live = scene.start()?;
    live.log_has("made")?;
    let (pid, container) = (live.pid()?, live.container()?);
    wait::until_true("the daemon to have the container as its only child", || {
        procs::children_of(pid) == vec![container]
    })?;
    live.go()?;
    live.end().map(drop)
}

fn same_process(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.env("MARKER", "kept").script("go")?;
    let words = scene.args();
    let live = scene.start()?;
    live.container()?;
    let pid = live.pid()?;
    let cmdline = fs::read(format!("/proc/{pid}/cmdline"))?;
    let seen: Vec<_> = cmdline.split(|byte| *byte == 0).skip(1).map(|word| String::from_utf8_lossy(word)).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    same("arguments in /proc/<pid>/cmdline", &seen[..words.len().min(seen.len())], &words[..])?;
    let environ = fs::read(format!("/proc/{pid}/environ"))?;
    check(environ.split(|byte| *byte == 0).any(|word| word == b"MARKER=kept"), "the environment must be kept")?;
    live.go()?;
    live.end().map(drop)
}

fn stdio_detached(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    scene.script("go")?.stdio(std::process::Stdio::null(), writer.try_clone()?, writer);
    let live = scene.start()?;
    let end = crate::support::pipes::readable(&reader, SOON)?;
    check(end, "the caller's pipe must reach its end while the daemon lives")?;
    let fds = procs::descriptors(live.pid()?)?;
    for fd in 0..3 {
        let target = fds.iter().find(|(number, _)| *number == fd).map(|(_, target)| target.as_str());
        same("descriptor of the daemon", target, Some("/dev/null"))?;
    }
    live.go()?;
    live.end().map(drop)
}

fn restore(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.set("--restore", "/some/checkpoint").sync_pipe(Kind::Pipe)?.script("echo back; exit 8")?;
    let mut live = scene.start()?;
    contains("report", &live.sync()?.report()?, "{\"pid\": ")?;
    same("daemon's status", live.end()?, 8)?;
    contains("report of the log", &format!("{:?}", live.plain_log()?), "stdout F back")
}
