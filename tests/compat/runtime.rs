//! What the runtime is given: arguments, descriptors, environment; and what is reported when it fails.

use std::fs;

use crate::support::pipes::{Kind, inherit};
use crate::support::scene::{CID, Scene};
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, contains, procs, roles, same};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("runtime/argv-create", "3.5", "words and their order", argv_create),
        Case::new("runtime/argv-create-tty", "3.5", "--console-socket stands last before the ID", argv_create_tty),
        Case::new("runtime/argv-restore", "3.5", "words and their order", argv_restore),
        Case::new("runtime/argv-exec", "3.5", "words and their order; no -s, no --no-pivot", argv_exec),
        Case::new("runtime/argv-exec-tty", "3.5", "no --tty in exec", argv_exec_tty).since("2.1.11"),
        Case::new("runtime/bundle-defaults-to-cwd", "1.2", "no -b: the working directory", bundle_default),
        Case::new("runtime/cwd-env", "3.5", "working directory and environment", surroundings),
        Case::new("runtime/umask", "3.1", "umask 022 whatever the caller's is", umask).since("2.2"),
        Case::new("runtime/oom-score", "3.5", "the caller's oom_score_adj for runtime and container", oom_score)
            .since("2.2"),
        Case::new("runtime/oom-score-daemon", "3.1", "-1000 for the daemon", oom_score_daemon),
        Case::new("runtime/signal-mask", "3.5", "nothing blocked", signal_mask),
        Case::new("runtime/pipes-0777", "3.3", "stdout and stderr are pipes of mode 0777", |m| pipe_modes(m, 1))
            .since("2.2"),
        Case::new("runtime/stdin-0777", "3.3", "so is stdin", |m| pipe_modes(m, 0)).since("2.2"),
        Case::new("runtime/reopen-stdout", "3.3", "a container may open /dev/stdout", reopen_stdout),
        Case::new("runtime/inherited-fds", "2.2", "descriptors reach the runtime under their numbers", inherited),
        Case::new("runtime/no-leak", "2.2", "nothing of the monitor's own reaches the runtime", no_leak),
        Case::new("runtime/kept-open", "2.2", "the daemon holds them, and lets go before the exit file", kept_open),
        Case::new("runtime/listen-pid-replaced", "2.3", "--replace-listen-pid", listen_pid),
        Case::new("runtime/listen-pid-alone", "2.3", "left alone without the option", listen_pid_alone),
        Case::new("runtime/listen-pid-invalid", "2.3", "a word for LISTEN_PID: the create fails", listen_pid_invalid),
        Case::new("runtime/not-executable", "11 B15", "exec failure is reported with its reason", not_executable)
            .defect("B15"),
        Case::new("report/create-failed", "3.7", "pid -1 with the runtime's stderr", create_failed),
        Case::new(
            "report/create-failed-silently",
            "3.7",
            "pid -1 although the runtime said nothing",
            create_failed_silently,
        )
        .since("2.2"),
        Case::new("report/create-failed-api1", "3.7", "data -1 with message", create_failed_api1),
        Case::new("report/runtime-killed", "3.7", "a runtime that died by a signal", runtime_killed),
        Case::new("report/escapes", "3.7", "quotes, backslash, tab in the message", escapes),
        Case::new("report/control-characters", "3.7", "control characters as \\u00xx", control_characters).since("2.2"),
        Case::new("report/no-pidfile", "3.7", "pidfile missing: -1", no_pidfile).since("2.2"),
        Case::new("report/tty-not-received", "3.7", "-t and no terminal: -1", tty_not_received).since("2.2"),
        Case::new("report/one-short-line", "11 B11", "8 KiB of stderr: one line of at most 4096 bytes", short_line)
            .defect("B11"),
        Case::new("report/megabyte-of-stderr", "11 B9", "1 MB of stderr does not stop anything", |m| flood(m, 1 << 20))
            .defect("B9"),
        Case::new("report/leftover-on-stderr", "11 B10", "a leftover process on stderr holds up no report", leftover)
            .defect("B10"),
        Case::new("report/invalid-utf8", "3.7", "the message is valid UTF-8 whatever the runtime says", invalid_utf8)
            .defect("3.7"),
        Case::new("report/early-failure", "11 B14", "socket directory missing: -1 and a reason", early_failure)
            .defect("B14"),
        Case::new("report/fast-container", "11 B9", "100 KB of output before the runtime ends", fast_container)
            .defect("B9"),
        Case::new(
            "report/failure-leaves-log-empty",
            "3.9",
            "nothing is added to a log when the runtime failed",
            log_untouched,
        ),
        Case::new("report/broken-reader", "3.7", "a sync pipe without a reader is no reason to end", broken_reader)
            .since("2.2"),
        Case::new("report/missing-persist-dir", "11 B19", "the exit-dir file is written all the same", missing_persist)
            .defect("B19"),
    ]
}

fn argv(live: &crate::support::scene::Live) -> Outcome<Vec<String>> {
    let seen = live.seen()?;
    let words = seen["argv"].as_array().into_iter().flatten();
    Ok(words.filter_map(|word| word.as_str()).map(str::to_owned).collect())
}

/// Replaces the scene's directory by `D`, so that expectations can be written down.
fn argv_of(scene: &mut Scene) -> Outcome<String> {
    let dir = scene.dir.to_string_lossy().into_owned();
    let (live, _) = scene.run()?;
    Ok(argv(&live)?.join(" ").replace(&dir, "D"))
}

fn argv_create(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.flag("-s").flag("--no-pivot").flag("--no-new-keyring");
    scene.add("--runtime-arg", "--root=/r").add("--runtime-arg", "--log");
    scene.add("--runtime-opt", "--preserve-fds").add("--runtime-opt", "2");
    let expected = format!(
        "D/{} --systemd-cgroup --root=/r --log create --bundle D/b --pid-file D/pid --no-pivot --no-new-keyring \
         --preserve-fds 2 {CID}",
        roles::RUNTIME
    );
    same("argv", argv_of(&mut scene)?, expected)
}

fn argv_create_tty(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let tmp = scene.dir.join("t");
    fs::create_dir(&tmp)?;
    scene.flag("-t").env("TMPDIR", &tmp).add("--runtime-opt", "--last");
    let words = argv_of(&mut scene)?;
    let (head, tail) = words.split_once(" --console-socket ").ok_or_else(|| format!("no console socket: {words}"))?;
    check(head.ends_with(" --last"), format!("--runtime-opt stands before --console-socket: {words}"))?;
    check(tail.starts_with("D/t/"), format!("the console socket lies in TMPDIR: {words}"))?;
    check(tail.ends_with(&format!(" {CID}")), format!("the ID stands last: {words}"))?;
    same("what is left in TMPDIR", fs::read_dir(&tmp)?.count(), 0)
}

fn argv_restore(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.set("--restore", "/image").add("--runtime-opt", "--tcp-close").add("--restore-arg", "--file-locks");
    let expected = format!(
        "D/{} restore --bundle D/b --pid-file D/pid --detach --image-path /image --work-path D/b --tcp-close \
         --file-locks {CID}",
        roles::RUNTIME
    );
    same("argv", argv_of(&mut scene)?, expected)
}

fn argv_exec(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    scene.flag("-s").flag("--no-pivot").flag("--no-new-keyring");
    scene.add("--runtime-arg", "--root=/r").add("--runtime-opt", "--cap").add("--runtime-opt", "X");
    let expected = format!(
        "D/{} --root=/r exec --pid-file D/pid --process D/b/process.json --detach --cap X {CID}",
        roles::RUNTIME
    );
    same("argv", argv_of(&mut scene)?, expected)
}

fn argv_exec_tty(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    let words = argv_of(scene.flag("-t"))?;
    check(!words.contains("--tty"), format!("no --tty: {words}"))?;
    contains("argv", &words, " --console-socket ")
}

fn bundle_default(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let bundle = scene.dir.join("b");
    let words = argv_of(scene.without("-b").cwd(bundle))?;
    contains("argv", &words, "--bundle D/b ")
}

fn surroundings(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let cwd = scene.dir.join("s");
    let (live, _) = scene.cwd(&cwd).env("MARKER", "kept").env("LISTEN_FDS", "2").env("XDG_RUNTIME_DIR", "/x").run()?;
    let seen = live.seen()?;
    same("cwd", seen["cwd"].as_str(), cwd.to_str())?;
    for (name, value) in [("MARKER", "kept"), ("LISTEN_FDS", "2"), ("XDG_RUNTIME_DIR", "/x")] {
        same(name, seen["env"][name].as_str(), Some(value))?;
    }
    check(seen["env"]["NOTIFY_SOCKET"].is_null(), "NOTIFY_SOCKET must not be invented")
}

fn umask(monitor: &Monitor) -> Outcome {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let (live, _) = Scene::create(monitor)?.run()?;
    same("umask", live.seen()?["umask"].as_str(), Some("0022"))
}

fn oom_score(monitor: &Monitor) -> Outcome {
    fs::write("/proc/self/oom_score_adj", "77")?;
    let mut scene = Scene::create(monitor)?;
    let live = scene.script("go")?.start()?;
    let container = fs::read_to_string(format!("/proc/{}/oom_score_adj", live.container()?))?;
    same("the runtime's", live.seen()?["oom_score_adj"].as_str(), Some("77"))?;
    same("the container's", container.trim(), "77")?;
    live.go()?;
    live.end().map(drop)
}

fn oom_score_daemon(monitor: &Monitor) -> Outcome {
    let before = fs::read_to_string("/proc/self/oom_score_adj")?;
    fs::write("/proc/self/oom_score_adj", "-1000")
        .map_err(|error| Fail::Skip(format!("this user may not set oom_score_adj to -1000: {error}")))?;
    fs::write("/proc/self/oom_score_adj", before.trim())?;
    let mut scene = Scene::create(monitor)?;
    let live = scene.script("go")?.start()?;
    let daemon = fs::read_to_string(format!("/proc/{}/oom_score_adj", live.pid()?))?;
    same("the daemon's oom_score_adj", daemon.trim(), "-1000")?;
    live.go()?;
    live.end().map(drop)
}

fn signal_mask(monitor: &Monitor) -> Outcome {
    let (live, _) = Scene::create(monitor)?.run()?;
    same("SigBlk", live.seen()?["blocked"].as_str(), Some("0000000000000000"))
}

fn pipe_modes(monitor: &Monitor, first: usize) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (live, _) = scene.flag("-i").run()?;
    let seen = live.seen()?;
    for fd in first..3 {
        let mode = seen["modes"][fd].as_u64().unwrap_or(0);
        same(&format!("type and mode of descriptor {fd}"), format!("{mode:o}"), "10777".to_owned())?;
    }
    Ok(())
}

fn reopen_stdout(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (live, _) = scene.script("echo again > /proc/self/fd/1; echo err > /proc/self/fd/2")?.run()?;
    live.log_has("stdout F again")?;
    live.log_has("stderr F err")
}

fn inherited(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let path = scene.dir.join("kept");
    let files = [fs::File::create(&path)?, fs::File::open(&path)?];
    let mut numbers = Vec::new();
    for file in &files {
        inherit(file)?;
        numbers.push(std::os::fd::AsRawFd::as_raw_fd(file).to_string());
    }
    scene.sync_pipe(Kind::Seqpacket)?;
    let (live, _) = scene.run()?;
    let seen = live.seen()?;
    for number in numbers {
        same(&format!("descriptor {number} of the runtime"), seen["fds"][&number].as_str(), path.to_str())?;
    }
    Ok(())
}

fn no_leak(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.sync_pipe(Kind::Pipe)?.start_pipe(Kind::Pipe)?;
    let mut live = scene.spawn()?;
    live.start()?.send()?;
    live.front_end()?;
    let seen = live.seen()?;
    let mut fds: Vec<i32> =
        seen["fds"].as_object().into_iter().flat_map(|fds| fds.keys()).filter_map(|fd| fd.parse().ok()).collect();
    fds.sort_unstable();
    same("descriptors of the runtime", fds, inheritable()?)
}

/// The descriptors that this process itself was given to pass on.
fn inheritable() -> Outcome<Vec<i32>> {
    let passes_on = |fd: &i32| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t"));
        flags.and_then(|flags| i32::from_str_radix(flags, 8).ok()).is_some_and(|flags| flags & CLOEXEC == 0)
    };
    let fds = procs::descriptors(nix::unistd::Pid::this())?.into_iter().map(|(fd, _)| fd);
    Ok(fds.filter(passes_on).collect())
}

const CLOEXEC: i32 = nix::fcntl::OFlag::O_CLOEXEC.bits();

fn kept_open(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    inherit(&writer)?;
    // The container must not hold it: this is about the daemon.
    let number = std::os::fd::AsRawFd::as_raw_fd(&writer);
    scene.script(&format!("exec {number}>&-\necho ready\ngo"))?.exit_command(&[]).set("--exit-delay", "3");
    let live = scene.start()?;
    drop(writer);
    live.log_has("ready")?;
    let open = |limit| crate::support::pipes::readable(&reader, limit).map(|ended| !ended);
    check(open(std::time::Duration::from_millis(100))?, "the daemon must keep the inherited descriptor open")?;
    live.go()?;
    live.exit_file()?;
    check(!open(std::time::Duration::ZERO)?, "it must be closed when the exit file is seen")
}

fn listen_pid(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (live, _) = scene.flag("--replace-listen-pid").env("LISTEN_PID", "12345").run()?;
    let seen = live.seen()?;
    same("LISTEN_PID of the runtime", seen["env"]["LISTEN_PID"].as_str(), Some(seen["pid"].to_string().as_str()))
}

fn listen_pid_alone(monitor: &Monitor) -> Outcome {
    let (live, _) = Scene::create(monitor)?.env("LISTEN_PID", "12345").run()?;
    same("LISTEN_PID of the runtime", live.seen()?["env"]["LISTEN_PID"].as_str(), Some("12345"))
}

fn listen_pid_invalid(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.env("LISTEN_PID", "abc").sync_pipe(Kind::Pipe)?;
    let mut live = scene.start()?;
    same("report", live.sync()?.json()?["pid"].as_i64(), Some(-1))?;
    check(!live.dir.join("b/seen").exists(), "the runtime must not be run")
}

fn not_executable(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.set("-r", "/tmp").sync_pipe(Kind::Pipe)?;
    let mut live = scene.start()?;
    let report = live.sync()?.json()?;
    same("pid", report["pid"].as_i64(), Some(-1))?;
    check(report["message"].is_string(), format!("a reason is expected, saw {report}"))
}

// ---------------------------------------------------------------- reports of failure

/// A runtime with these orders; gives the report and the daemon's exit status.
fn failing(scene: &mut Scene, orders: &str) -> Outcome<(String, i32)> {
    scene.runtime(orders)?.sync_pipe(Kind::Seqpacket)?;
    let mut live = scene.start()?;
    check(live.dir.join("cpid").exists(), "the monitor's pidfile must be there in any case")?;
    let report = live.sync()?.report()?;
    let status = live.end()?;
    same("after the report", live.sync()?.rest()?, String::new())?;
    check(!live.dir.join("x").join(CID).exists(), "no exit file")?;
    Ok((report, status))
}

fn create_failed(monitor: &Monitor) -> Outcome {
    let (report, status) = failing(&mut Scene::create(monitor)?, "nocontainer\nstderr runc: not found\nexit 1")?;
    same("report", report.as_str(), "{\"pid\": -1, \"message\": \"runc: not found\\n\"}\n")?;
    same("daemon's status", status, 1)
}

fn create_failed_silently(monitor: &Monitor) -> Outcome {
    let (report, status) = failing(&mut Scene::create(monitor)?, "nocontainer\nexit 1")?;
    // conmon has nothing more to say here; a monitor that names the stage may.
    same("pid", serde_json::from_str::<serde_json::Value>(&report)?["pid"].as_i64(), Some(-1))?;
    same("daemon's status", status, 1)
}

fn create_failed_api1(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (report, _) = failing(scene.flag("--api-version"), "nocontainer\nstderr bad\nexit 127")?;
    same("report", report.as_str(), "{\"data\": -1, \"message\": \"bad\\n\"}\n")
}

fn runtime_killed(monitor: &Monitor) -> Outcome {
    let (report, status) = failing(&mut Scene::create(monitor)?, "nocontainer\nstderr dying\ndie 9")?;
    contains("report", &report, "{\"pid\": -1, \"message\": \"dying\\n\"}")?;
    same("daemon's status", status, 1)
}

fn escapes(monitor: &Monitor) -> Outcome {
    let (report, _) = failing(&mut Scene::create(monitor)?, "nocontainer\nstderr a \"b\" c\\d\te/f\nexit 1")?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    same("message", report["message"].as_str(), Some("a \"b\" c\\d\te/f\n"))
}

fn control_characters(monitor: &Monitor) -> Outcome {
    let (report, _) = failing(&mut Scene::create(monitor)?, "nocontainer\nstderr \x1b[31m\x7f\nexit 1")?;
    contains("report", &report, "\\u001b[31m\\u007f")
}

fn no_pidfile(monitor: &Monitor) -> Outcome {
    let (report, _) = failing(&mut Scene::create(monitor)?, "nocontainer\nnopid\nstderr strange\nexit 0")?;
    contains("report", &report, "{\"pid\": -1, \"message\": \"")
}

fn tty_not_received(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.runtime("noconsole")?.flag("-t").sync_pipe(Kind::Pipe)?;
    let mut live = scene.start()?;
    let report = live.sync()?.json()?;
    same("pid", report["pid"].as_i64(), Some(-1))?;
    contains("message", report["message"].as_str().unwrap_or_default(), "Runtime did not set up terminal")
}

fn short_line(monitor: &Monitor) -> Outcome {
    let (report, _) = failing(&mut Scene::create(monitor)?, "nocontainer\nflood 8000\nexit 1")?;
    check(report.len() <= 4096, format!("{} bytes in one report; readers take 4096", report.len()))?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    contains("message", report["message"].as_str().unwrap_or_default(), "eeee")
}

fn flood(monitor: &Monitor, size: usize) -> Outcome {
    let orders = format!("nocontainer\nflood {size}\nstderr the end\nexit 1");
    let (report, status) = failing(&mut Scene::create(monitor)?, &orders)?;
    check(report.len() <= 4096, format!("{} bytes in one report", report.len()))?;
    same("pid", serde_json::from_str::<serde_json::Value>(&report)?["pid"].as_i64(), Some(-1))?;
    same("daemon's status", status, 1)
}

fn leftover(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let stop = scene.dir.join("stop");
    let (report, _) = failing(&mut scene, &format!("nocontainer\nlinger {}\nexit 1", stop.display()))?;
    contains("report", &report, "{\"pid\": -1")
}

fn invalid_utf8(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let script = scene.dir.join("odd-runtime");
    fs::write(&script, "#!/bin/sh\nprintf 'bad \\377\\376 bytes\\n' >&2\nexit 1\n")?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    scene.set("-r", &script).sync_pipe(Kind::Seqpacket)?;
    let mut live = scene.start()?;
    let bytes = live.sync()?.packet(crate::support::wait::SOON)?;
    check(std::str::from_utf8(&bytes).is_ok(), format!("not UTF-8: {}", bytes.escape_ascii()))?;
    let report: serde_json::Value = serde_json::from_slice(&bytes)?;
    contains("message", report["message"].as_str().unwrap_or_default(), " bytes")
}

fn early_failure(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.set("--socket-dir-path", "/not/there").sync_pipe(Kind::Pipe)?;
    let mut live = scene.start()?;
    let report = live.sync()?.json()?;
    same("pid", report["pid"].as_i64(), Some(-1))?;
    check(report["message"].is_string(), format!("a reason is expected, saw {report}"))
}

/// The container writes more than a pipe holds while its runtime has not ended.
fn fast_container(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let written = scene.dir.join("written");
    scene.script(&format!("head -c 100000 /dev/zero; : > {}; exit 3", written.display()))?;
    scene.runtime(&format!("stderr starting\nwait-after {}", written.display()))?;
    let (live, status) = scene.run()?;
    same("daemon's status", status, 3)?;
    let bytes = crate::support::crilog::bytes_of(&live.log()?, "stdout");
    crate::support::same_bytes("stdout in the log", &bytes, &vec![0; 100_000])
}

fn log_untouched(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.runtime("nocontainer\nstderr failed\nexit 1")?;
    fs::write(scene.dir.join("log"), "")?;
    let (live, _) = scene.run()?;
    same("bytes in the log", live.log_bytes().len(), 0)
}

fn broken_reader(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.sync_pipe(Kind::Pipe)?.start_pipe(Kind::Pipe)?.script("echo on; exit 4")?;
    let mut live = scene.spawn()?;
    live.sync = None;
    live.start()?.send()?;
    same("front's status", live.front_end()?, 0)?;
    same("daemon's status", live.end()?, 4)?;
    same("exit file", live.exit_file()?, "4".to_owned())
}

fn missing_persist(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.script("go; exit 5")?.start()?;
    live.container()?;
    fs::remove_dir_all(live.dir.join("p"))?;
    live.go()?;
    same("exit file", live.exit_file()?, "5".to_owned())?;
    check(!procs::alive(live.pid()?) || live.end().is_ok(), "the daemon must end")
}
