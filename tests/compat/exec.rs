//! Exec mode: reports, the handshake with `--exec-attach`, time limits; and passthrough, OOM and sd-notify.

use std::fs;
use std::time::Duration;

use crate::support::attach::STDOUT;
use crate::support::pipes::{KINDS, Kind};
use crate::support::scene::Scene;
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, contains, procs, same, wait};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("exec/simple", "3.7", "api 0: exit_code at the end, nothing before", simple),
        Case::new("exec/api-1", "3.7", "pid, then the exit code", api_1),
        Case::new("exec/crio-sync", "10.3", "as CRI-O's ExecSync calls it: --sync, no -u, no -b, empty pidfile", crio),
        Case::new("exec/no-bundle", "1.2", "without -b there is no attach, ctl, winsz", no_bundle),
        Case::new("exec/exit-dir", "3.10", "exit files of an exec", exit_files),
        Case::new("exec/nonzero-runtime", "3.7", "runtime exits 1 but the process ran: no failure", nonzero)
            .since("2.2"),
        Case::new("exec/failed", "3.7", "no pidfile: data -1 and the runtime's words", failed),
        Case::new(
            "exec/failed-empty-pidfile",
            "3.7",
            "empty pidfile of the caller: exit_code -1 and message",
            failed_empty,
        ),
        Case::new("exec/timeout-api-0", "3.7", "-T: exit_code -1, command timed out", |m| timeout(m, false)),
        Case::new("exec/timeout-api-1", "3.7", "-T: data -1, command timed out", |m| timeout(m, true)),
        Case::new(
            "exec/timeout-keeps-output",
            "11 B17",
            "what was printed before the time was up is logged",
            timeout_output,
        ),
        Case::new("exec/attach-needs-pipe", "2.1", "--exec-attach without attach pipe: exit 1 with --sync", needs_pipe),
        Case::new("exec/attach-handshake", "3.6", "readiness, client, start message, first byte", handshake),
        Case::new("exec/attach-no-start-pipe", "3.6", "no start pipe: no wait", no_start),
        Case::new("exec/attach-eof-starts", "3.6", "EOF on the start pipe starts the process", eof_starts),
        Case::new("exec/attach-resize-first", "3.6", "a resize before the start counts", resize_first),
        Case::new("exec/tty", "4", "exec with a terminal", tty),
        Case::new("exec/shared-bundle", "10.1", "create and exec share a bundle; both end well", shared_bundle),
        Case::new("passthrough/output", "7.9", "the container has the caller's descriptors", passthrough),
        Case::new("passthrough/no-files", "7.9", "no attach, ctl, winsz, no attach report", passthrough_files),
        Case::new("passthrough/failure", "7.9", "failure report without message", passthrough_failure).since("2.2"),
        Case::new("passthrough/detached", "7.9", "the daemon lets go once the runtime runs", passthrough_detached),
        Case::new("oom/literal", "3.12", "the program has the text that a test greps for", literal).since("2.2"),
        Case::new("oom/verdict", "3.12", "killed for memory: <persist>/oom is there before the exit file", |m| {
            oom(m, "p/oom")
        }),
        Case::new("oom/verdict-bundle", "3.12", "and so is <bundle>/oom", |m| oom(m, "b/oom")).since("2.2"),
    ];
    for kind in KINDS {
        let what = "readiness and start over this kind of pipe";
        cases.push(Case::new(&format!("exec/attach-pipes-{kind:?}"), "3.6", what, move |m: &Monitor| {
            attach_pipes(m, kind)
        }));
    }
    cases
}

fn simple(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    let mut live = scene.sync_pipe(Kind::Pipe)?.script("echo hi; exit 7")?.start()?;
    same("all reports", live.sync()?.rest()?.as_str(), "{\"exit_code\": 7}\n")?;
    same("daemon's status", live.end()?, 7)?;
    same("log", live.plain_log()?, vec!["stdout F hi".to_owned()])
}

fn api_1(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    let mut live = scene.flag("--api-version").sync_pipe(Kind::Seqpacket)?.script("go; exit 126")?.start()?;
    same("first report", live.sync()?.report()?, format!("{{\"data\": {}}}\n", live.container()?))?;
    check(live.sync()?.silent()?, "no second report before the end")?;
    live.go()?;
    same("second report", live.sync()?.report()?.as_str(), "{\"data\": 126}\n")?;
    same("then", live.sync()?.rest()?.as_str(), "")
}

fn crio(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    fs::write(scene.dir.join("pid"), "")?;
    scene.without("-u").without("-b").without("-P").without("--exit-dir").without("--persist-dir");
    scene.flag("--sync").set("--log-global-size-max", "16777216").set("-n", "name").sync_pipe(Kind::Pipe)?;
    scene.script("echo out; echo err >&2; exit 42")?;
    let mut live = scene.spawn()?;
    same("status of the started process", live.front_end()?, 42)?;
    same("all reports", live.sync()?.rest()?.as_str(), "{\"exit_code\": 42}\n")?;
    let mut log = live.plain_log()?;
    log.sort();
    same("log", log, vec!["stderr F err".to_owned(), "stdout F out".to_owned()])
}

fn no_bundle(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    let live = scene.without("-b").script("go")?.start()?;
    live.container()?;
    for name in ["attach", "ctl", "winsz"] {
        check(
            !live.dir.join("b").join(name).exists() && !live.dir.join(name).exists(),
            format!("there must be no {name}"),
        )?;
    }
    live.go()?;
    same("status", live.end()?, 0)
}

fn exit_files(monitor: &Monitor) -> Outcome {
    let (live, _) = Scene::exec(monitor)?.script("exit 9")?.run()?;
    same("exit-dir file", live.exit_file()?, "9".to_owned())?;
    same("persist file", live.persist_file()?, "9".to_owned())
}

fn nonzero(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    let mut live = scene.flag("--api-version").sync_pipe(Kind::Pipe)?.runtime("exit 1")?.script("exit 5")?.start()?;
    contains("first report", &live.sync()?.report()?, "{\"data\": ")?;
    same("second report", live.sync()?.report()?.as_str(), "{\"data\": 5}\n")
}

fn failed(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    scene.flag("--api-version").sync_pipe(Kind::Pipe)?.runtime("nocontainer\nstderr exec failed: no\nexit 255")?;
    let mut live = scene.start()?;
    let report = live.sync()?.json()?;
    same("data", report["data"].as_i64(), Some(-1))?;
    contains("message", report["message"].as_str().unwrap_or_default(), "exec failed: no")?;
    check(live.end()? != 0, "the daemon's status must not be 0")
}

fn failed_empty(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    fs::write(scene.dir.join("pid"), "")?;
    scene.sync_pipe(Kind::Pipe)?.runtime("nocontainer\nnopid\nstderr exec failed: not found\nexit 255")?;
    let mut live = scene.start()?;
    let report = live.sync()?.json()?;
    same("exit_code", report["exit_code"].as_i64(), Some(-1))?;
    contains("message", report["message"].as_str().unwrap_or_default(), "exec failed: not found")
}

fn timeout(monitor: &Monitor, api: bool) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    let key = if api { "data" } else { "exit_code" };
    if api {
        scene.flag("--api-version");
    }
    let mut live = scene.set("-T", "1").sync_pipe(Kind::Seqpacket)?.script("exec sleep 30")?.start()?;
    let container = live.container()?;
    let reports = live.sync()?.rest()?;
    let expected = format!("{{\"{key}\": -1, \"message\": \"command timed out\"}}\n");
    same("last report", reports.split_inclusive('\n').next_back(), Some(expected.as_str()))?;
    wait::until_true("the process to be gone", || !procs::alive(container))
}

fn timeout_output(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    // Fills the pipe in the last moment, with the monitor stopped, so that there is something to drain.
    let live = scene.set("-T", "1").script("echo early; go; echo late; exec sleep 30")?.start()?;
    live.log_has("early")?;
    let pid = live.pid()?;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    live.go()?;
    std::thread::sleep(Duration::from_millis(1300));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)?;
    same("daemon's status", live.end()?, 255)?;
    same("log", live.plain_log()?, vec!["stdout F early".to_owned(), "stdout F late".to_owned()])
}

// ---------------------------------------------------------------- --exec-attach

fn attached(monitor: &Monitor, script: &str) -> Outcome<Scene> {
    let mut scene = Scene::exec(monitor)?;
    scene.flag("--api-version").flag("--exec-attach").flag("--full-attach").set("-l", "none").script(script)?;
    Ok(scene)
}

fn needs_pipe(monitor: &Monitor) -> Outcome {
    let mut scene = attached(monitor, "exit 0")?;
    let (code, _, stderr) = scene.flag("--sync").front()?;
    same("status", code, 1)?;
    contains("stderr", &stderr, "--attach specified but _OCI_ATTACHPIPE was not")
}

fn handshake(monitor: &Monitor) -> Outcome {
    let mut scene = attached(monitor, "echo first; exit 3")?;
    scene.sync_pipe(Kind::Seqpacket)?.start_pipe(Kind::Seqpacket)?.attach_pipe(Kind::Seqpacket)?;
    let mut live = scene.spawn()?;
    live.start()?.send()?;
    same("front's status", live.front_end()?, 0)?;
    same("readiness", live.attach_pipe()?.report()?.as_str(), "{\"data\": 0}\n")?;
    let client = live.attach()?;
    check(!live.dir.join("b/seen").exists(), "the runtime must wait for the second start message")?;
    live.start()?.send()?;
    same("output", client.to_end(STDOUT)?, b"first\n".to_vec())?;
    contains("first report", &live.sync()?.report()?, "{\"data\": ")?;
    same("second report", live.sync()?.report()?.as_str(), "{\"data\": 3}\n")
}

fn attach_pipes(monitor: &Monitor, kind: Kind) -> Outcome {
    let mut scene = attached(monitor, "exit 3")?;
    scene.start_pipe(kind)?.attach_pipe(kind)?;
    let mut live = scene.spawn()?;
    live.start()?.send()?;
    same("front's status", live.front_end()?, 0)?;
    same("readiness", live.attach_pipe()?.report()?.as_str(), "{\"data\": 0}\n")?;
    let seen = live.dir.join("b/seen");
    wait::never("a runtime before its start message", Duration::from_millis(200), || seen.exists())?;
    live.start()?.send()?;
    same("daemon's status", live.end()?, 3)
}

fn no_start(monitor: &Monitor) -> Outcome {
    let mut scene = attached(monitor, "exit 3")?;
    let mut live = scene.attach_pipe(Kind::Fifo)?.start()?;
    same("readiness", live.attach_pipe()?.report()?.as_str(), "{\"data\": 0}\n")?;
    same("daemon's status", live.end()?, 3)
}

fn eof_starts(monitor: &Monitor) -> Outcome {
    let mut scene = attached(monitor, "exit 3")?;
    let mut live = scene.attach_pipe(Kind::Stream)?.start_pipe(Kind::Stream)?.spawn()?;
    live.start()?.send()?;
    same("front's status", live.front_end()?, 0)?;
    live.attach_pipe()?.report()?;
    live.start = None;
    same("daemon's status", live.end()?, 3)
}

fn resize_first(monitor: &Monitor) -> Outcome {
    let script = "n=0; while [ $n -lt 200 ]; do n=$((n+1)); [ \"$(stty size)\" = '30 90' ] && exit 3; sleep 0.02; done";
    let mut scene = attached(monitor, script)?;
    let mut live = scene.flag("-t").attach_pipe(Kind::Seqpacket)?.start_pipe(Kind::Seqpacket)?.spawn()?;
    live.start()?.send()?;
    live.front_end()?;
    live.attach_pipe()?.report()?;
    live.ctl("1 30 90\n")?;
    live.start()?.send()?;
    same("daemon's status", live.end()?, 3)
}

fn tty(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    let mut live = scene.flag("-t").flag("--api-version").sync_pipe(Kind::Pipe)?.script("tty; exit 4")?.start()?;
    live.sync()?.report()?;
    same("second report", live.sync()?.report()?.as_str(), "{\"data\": 4}\n")?;
    live.log_has("stdout F /dev/pts/")
}

/// The second monitor replaces socket and FIFOs under the first.
fn shared_bundle(monitor: &Monitor) -> Outcome {
    let first = Scene::create(monitor)?.script("go; exit 5")?.start()?;
    first.container()?;
    let client = first.attach()?;
    let mut scene = Scene::exec(monitor)?;
    let (_, status) = scene.set("-b", first.dir.join("b")).script("exit 6")?.run()?;
    same("status of the exec", status, 6)?;
    first.go()?;
    client.to_end(STDOUT)?;
    same("status of the container", first.end()?, 5)?;
    same("exit file", first.exit_file()?, "5".to_owned())
}

// ---------------------------------------------------------------- passthrough

fn passthrough_scene(monitor: &Monitor, script: &str) -> Outcome<Scene> {
    let mut scene = Scene::create(monitor)?;
    let (input, out, err) = (scene.dir.join("in"), scene.dir.join("out"), scene.dir.join("err"));
    fs::write(&input, "input\n")?;
    scene.stdio(fs::File::open(input)?, fs::File::create(out)?, fs::File::create(err)?);
    scene.set("-l", "passthrough").script(script)?;
    Ok(scene)
}

fn passthrough(monitor: &Monitor) -> Outcome {
    let (live, status) = passthrough_scene(monitor, "read x; echo \"got $x\"; echo oops >&2; exit 3")?.run()?;
    same("status", status, 3)?;
    same("stdout", fs::read_to_string(live.dir.join("out"))?.as_str(), "got input\n")?;
    same("stderr", fs::read_to_string(live.dir.join("err"))?.as_str(), "oops\n")?;
    same("exit file", live.exit_file()?, "3".to_owned())
}

fn passthrough_files(monitor: &Monitor) -> Outcome {
    let mut scene = passthrough_scene(monitor, "go")?;
    scene.flag("-e").flag("--exec-attach").flag("--api-version").attach_pipe(Kind::Pipe)?;
    let spec = scene.dir.join("b/process.json");
    fs::write(&spec, "{}")?;
    let mut live = scene.set("--exec-process-spec", spec).start()?;
    live.container()?;
    for name in ["attach", "ctl", "winsz"] {
        check(!live.dir.join("b").join(name).exists(), format!("there must be no {name}"))?;
    }
    live.go()?;
    live.end()?;
    same("attach reports", live.attach_pipe()?.rest()?.as_str(), "")
}

fn passthrough_failure(monitor: &Monitor) -> Outcome {
    let mut scene = passthrough_scene(monitor, "")?;
    scene.runtime("nocontainer\nstderr straight to the caller\nexit 1")?.flag("--api-version").sync_pipe(Kind::Pipe)?;
    let mut live = scene.start()?;
    same("report", live.sync()?.report()?.as_str(), "{\"data\": -1}\n")?;
    live.end()?;
    contains("stderr", &fs::read_to_string(live.dir.join("err"))?, "straight to the caller")
}

fn passthrough_detached(monitor: &Monitor) -> Outcome {
    let live = passthrough_scene(monitor, "go")?.start()?;
    live.container()?;
    let pid = live.pid()?;
    wait::until_true("the daemon to let go of stdout", || {
        procs::descriptors(pid).is_ok_and(|fds| fds.iter().take(3).all(|(_, target)| target == "/dev/null"))
    })?;
    live.go()?;
    live.end().map(drop)
}

// ---------------------------------------------------------------- out of memory

fn literal(monitor: &Monitor) -> Outcome {
    let program = fs::read(&monitor.program)?;
    let text = b"Cgroup appears to have been removed";
    check(program.windows(text.len()).any(|window| window == text), "the text is not in the program")
}

fn oom(monitor: &Monitor, path: &str) -> Outcome {
    let group = crate::oomgroup::Group::new(32 << 20)?;
    let mut scene = Scene::create(monitor)?;
    scene.runtime(&format!("cgroup {}", group.procs()))?;
    // The shell itself must be the one that is killed.
    scene.script("go; exec tail /dev/zero")?;
    let live = scene.start()?;
    live.container()?;
    live.go()?;
    same("exit file", live.exit_file()?, "137".to_owned())?;
    let meta = fs::metadata(live.dir.join(path)).map_err(|error| format!("{path} at the exit file: {error}"))?;
    same("size", meta.len(), 0)?;
    live.end().map(drop)
}
