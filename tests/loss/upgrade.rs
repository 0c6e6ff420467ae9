//! The monitor is replaced by a newly installed program while the container runs, and nobody notices.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use conmon_proto::{
    Action, AttachRequest, Client, Code, EndReason, ExecResult, ExecSpec, ExitReason, History, LogPolicy, OnDisconnect,
    Stream, output,
};
use nix::sys::signal::{Signal, kill};

use crate::clients::{follow, joined, read_on};
use crate::flow::{Expect, Pattern};
use crate::reading::Reader;
use crate::rig::{self, LINES, MIB, Steady, ended, patience, reached, size, totals};
use crate::rpc::{Follower, Track, socket, soon, talk};
use crate::support::attach::STDOUT;
use crate::support::pipes::Kind;
use crate::support::scene::{CID, Live, Scene};
use crate::support::suite::{Case, Column, Monitor, program};
use crate::support::{Fail, Outcome, check, contains, crilog, procs, same, same_bytes, wait};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("upgrade/lines", "P15", "again and again under load", |m| under_load(m, LINES)),
        Case::new("upgrade/binary", "P15", "the same with random bytes", |m| under_load(m, Pattern::Binary)),
        Case::new("upgrade/one-line", "P15", "the same without any newline", |m| {
            under_load(m, Pattern::Lines(u64::MAX))
        }),
        Case::new("upgrade/json-file", "P15", "a json-file under load", json),
        Case::new("upgrade/clients", "P15", "a client that keeps up and one that is behind", clients),
        Case::new("upgrade/clients-rotated", "P15", "one is behind in logs that were rotated away", rotated),
        Case::new("upgrade/clients-none", "P15", "without a log: a client with queued bytes", queued),
        Case::new("upgrade/stdin", "P15", "stdin goes on, with what the container had not taken yet", stdin),
        Case::new("upgrade/terminal", "P15", "a terminal goes on, and is resized", terminal),
        Case::new("upgrade/partial-line", "P15", "in the middle of a line", partial_line),
        Case::new("upgrade/exec", "P15", "an exec: its status is reported, the exit command runs", exec),
        Case::new("upgrade/timeout", "P15", "--timeout goes on", timeout),
        Case::new("upgrade/ends-meanwhile", "P15", "the container ends at that moment", ends),
        Case::new("upgrade/service", "P15", "by call and by signal; a client comes again where it was", service),
        Case::new("upgrade/service-execs", "P15", "execs, results, timeouts and policies go on", service_execs),
        Case::new("upgrade/service-refused", "P15", "candidates by call: the refusal says why", service_refused),
        Case::new("upgrade/exec-fails", "P15", "the candidate cannot be executed after its check", |m| {
            kept(m, |path| role(path, "unexecutable"), Duration::ZERO)
        }),
    ];
    for (id, what) in [
        ("upgrade/candidate-refuses", "a candidate that refuses"),
        ("upgrade/candidate-crashes", "a candidate that crashes"),
        ("upgrade/candidate-lies", "a candidate that ends with 0 and says nothing"),
        ("upgrade/candidate-hangs", "a candidate that hangs"),
    ] {
        let name = id.trim_start_matches("upgrade/candidate-");
        let pause = Duration::from_millis(if name == "hangs" { 2500 } else { 0 });
        cases.push(Case::new(id, "P15", what, move |m| kept(m, |path| role(path, name), pause)));
    }
    cases.push(Case::new("upgrade/candidate-missing", "P15", "no candidate", |m| kept(m, missing, WHILE)));
    cases.push(Case::new("upgrade/candidate-mode", "P15", "not executable", |m| kept(m, not_executable, WHILE)));
    cases.push(Case::new("upgrade/candidate-directory", "P15", "a directory", |m| kept(m, directory, WHILE)));
    cases.push(Case::new("upgrade/candidate-script", "P15", "a script that accepts all", |m| kept(m, script, WHILE)));
    cases
}

/// A candidate that runs nothing of ours cannot say when it was looked at.
const WHILE: Duration = Duration::from_millis(300);

// ---------------------------------------------------------------- the program and its replacement

/// Where a scene's monitor is installed.
fn place(dir: &Path) -> PathBuf {
    dir.join("bin/conward")
}

/// As [`rig::scene`], with a program of its own that can be replaced.
pub fn scene(monitor: &Monitor, script: &str) -> Outcome<Scene> {
    let mut scene = rig::scene(monitor, script)?;
    fs::create_dir(scene.dir.join("bin"))?;
    let path = place(&scene.dir);
    install(&path)?;
    scene.program(path);
    Ok(scene)
}

/// Puts a new copy in place of what is there, as package managers do.
fn install(path: &Path) -> Outcome {
    let new = path.with_extension("new");
    fs::copy(program(Column::Conward).ok_or("no conward")?, &new)?;
    Ok(fs::rename(new, path)?)
}

/// The file that a monitor runs.
fn running(live: &Live) -> Outcome<u64> {
    Ok(fs::metadata(format!("/proc/{}/exe", live.pid()?))?.ino())
}

/// Installs a new program and has the monitor replaced by it.
pub fn replace(live: &Live) -> Outcome {
    install(&place(&live.dir))?;
    let wanted = fs::metadata(place(&live.dir))?.ino();
    live.signal(Signal::SIGUSR2)?;
    wait::until("the monitor to be replaced", patience(), || Ok((running(live)? == wanted).then_some(())))
}

/// The container is known and the monitor sleeps: from now on it can be replaced.
pub fn started(live: &Live) -> Outcome {
    live.container()?;
    let prepared = || fs::read_dir(live.dir.join("x")).map(|list| list.count() > 0);
    wait::until("the exit files to be prepared", patience(), || Ok(prepared()?.then_some(())))
}

/// Nothing but the exit files themselves is left.
fn tidy(live: &Live) -> Outcome {
    let names = |dir: &str| -> Outcome<Vec<String>> {
        let list = fs::read_dir(live.dir.join(dir))?.flatten();
        Ok(list.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    };
    same("exit directory", names("x")?, vec![CID.to_owned()])?;
    same("persist directory", names("p")?, vec!["exit".to_owned()])
}

// ---------------------------------------------------------------- nobody notices

fn under_load(monitor: &Monitor, pattern: Pattern) -> Outcome {
    let mut scene = scene(monitor, &Steady::script(pattern))?;
    // What stands behind `--` is not read.
    scene.flag("--").flag("word");
    let steady = Steady::start(scene, "log")?;
    started(&steady.live)?;
    let pid = steady.pid()?;
    let surroundings = || -> Outcome<_> {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        let fields = ["SigBlk", "SigIgn", "Umask", "Threads"].map(|field| procs::status_field(pid, field));
        let fields = fields.into_iter().collect::<Outcome<Vec<_>>>()?;
        Ok(((name, fields), procs::descriptors(pid)?.len()))
    };
    let (before, descriptors) = surroundings()?;
    for round in 0..size(10, 100) {
        replace(&steady.live)?;
        std::thread::sleep(Duration::from_millis(round * 7 % 30));
    }
    steady.grows(MIB)?;
    let (after, left) = surroundings()?;
    same("name, signals, umask, threads", after, before)?;
    // The first look may have found some of the start that were not closed yet.
    check(left <= descriptors, format!("{left} descriptors, and {descriptors} before"))?;
    steady.alive()?;
    same("pid", steady.pid()?, pid)?;
    let total = steady.stop()?;
    let mut reader = Reader::new(pattern);
    reader.eat(&steady.log)?;
    reader.complete(total)?;
    same("exit.json", totals(&steady.live, 0)?, (total, 0))?;
    tidy(&steady.live)
}

fn json(monitor: &Monitor) -> Outcome {
    let mut scene = scene(monitor, &Steady::script(LINES))?;
    let path = scene.dir.join("json");
    scene.add("-l", format!("json-file:{}", path.display()));
    let steady = Steady::start(scene, "log")?;
    started(&steady.live)?;
    for _ in 0..size(10, 100) {
        replace(&steady.live)?;
    }
    let total = steady.stop()?;
    let mut expect = Expect::new(LINES, 0);
    for line in BufReader::new(fs::File::open(path)?).lines() {
        let record: serde_json::Value = serde_json::from_str(&line?)?;
        expect.take(record["log"].as_str().ok_or("a record without log")?.as_bytes())?;
    }
    same("bytes in the JSON log", expect.at, total)?;
    let mut reader = Reader::new(LINES);
    reader.eat(&steady.log)?;
    reader.complete(total)
}

fn clients(monitor: &Monitor) -> Outcome {
    let script = format!("go; {}", Steady::script(LINES));
    let steady = Steady::start(scene(monitor, &script)?, "log")?;
    started(&steady.live)?;
    let (slow, quick) = (steady.live.attach()?, steady.live.attach()?);
    let quick = follow(quick, LINES);
    steady.live.go()?;
    let mut at = 0;
    for _ in 0..size(10, 100) {
        steady.grows(MIB)?;
        replace(&steady.live)?;
        // A part of a packet more than whole ones: it stays within a chunk.
        at = read_on(&slow, LINES, at, Some(at + 100_000))?;
    }
    let late = steady.live.attach()?;
    check(late.packet()?.is_some(), "a new client gets output")?;
    let total = steady.stop()?;
    same("bytes read by the slow client", read_on(&slow, LINES, at, None)?, total)?;
    same("bytes read by the quick client", joined(quick)?, total)?;
    let mut reader = Reader::new(LINES);
    reader.eat(&steady.log)?;
    reader.complete(total)
}

fn rotated(monitor: &Monitor) -> Outcome {
    let script = format!("go; {}", Steady::script(LINES));
    let mut scene = scene(monitor, &script)?;
    scene.set("--history-held-max", (64_u64 << 30).to_string());
    let steady = Steady::start(scene, "log")?;
    started(&steady.live)?;
    let slow = steady.live.attach()?;
    steady.live.go()?;
    let mut reader = Reader::new(LINES);
    for number in 0..6 {
        steady.grows(2 * MIB)?;
        let piece = steady.log.with_extension(number.to_string());
        crate::disk::reopen(&steady, &piece)?;
        reader.eat(&piece)?;
        replace(&steady.live)?;
    }
    let total = steady.stop()?;
    same("bytes read by the slow client", read_on(&slow, LINES, 0, None)?, total)?;
    reader.eat(&steady.log)?;
    reader.complete(total)
}

fn queued(monitor: &Monitor) -> Outcome {
    let total = 16 * MIB;
    let script = format!("go; $W {} 0 {total}; : >$D/written; exit 4", LINES.name());
    let live = scene(monitor, &script)?.set("-l", "none").start()?;
    started(&live)?;
    let (slow, quick) = (live.attach()?, live.attach()?);
    let quick = follow(quick, LINES);
    live.go()?;
    let mut at = 0;
    for _ in 0..size(10, 100) {
        // By now the stream waits for the slow one.
        std::thread::sleep(Duration::from_millis(30));
        replace(&live)?;
        at = read_on(&slow, LINES, at, Some(at + 100_000))?;
    }
    check(!live.dir.join("b/written").exists(), "the stream waits for the slow client")?;
    same("bytes read by the slow client", read_on(&slow, LINES, at, None)?, total)?;
    same("bytes read by the quick client", joined(quick)?, total)?;
    same("status", ended(&live)?, 4)?;
    same("exit.json", totals(&live, 0)?, (total, 0))
}

fn stdin(monitor: &Monitor) -> Outcome {
    let mut scene = scene(monitor, "go; cat; : >$D/eof; go; exit 3")?;
    let live = scene.flag("-i").start()?;
    started(&live)?;
    let client = live.attach()?;
    // More than the pipe takes: the rest waits in the monitor and in the socket.
    let mut sent = Vec::new();
    for number in 0..6 {
        let mut packet = vec![0; 30_000];
        LINES.fill(number * 30_000, &mut packet);
        client.send(&packet)?;
        sent.extend(packet);
    }
    std::thread::sleep(Duration::from_millis(100));
    replace(&live)?;
    replace(&live)?;
    live.go()?;
    same_bytes("what comes back", &client.bytes(STDOUT, sent.len())?, &sent)?;
    replace(&live)?;
    client.send(b"more\n")?;
    client.expect("more\n")?;
    check(!live.dir.join("b/eof").exists(), "stdin is open")?;
    client.half_close()?;
    reached(&live, "eof")?;
    replace(&live)?;
    live.go()?;
    same("status", ended(&live)?, 3)
}

fn terminal(monitor: &Monitor) -> Outcome {
    let mut scene = scene(monitor, "read a; echo got $a; read b; stty size; echo got $b; exit 6")?;
    let live = scene.flag("-t").flag("-i").start()?;
    started(&live)?;
    let client = live.attach()?;
    client.send(b"one\n")?;
    client.expect("got one\r\n")?;
    // A request that is cut by the replacement is one request.
    live.ctl("1 33 ")?;
    std::thread::sleep(Duration::from_millis(50));
    replace(&live)?;
    live.ctl("44\n")?;
    std::thread::sleep(Duration::from_millis(50));
    client.send(b"two\n")?;
    let seen = client.expect("got two\r\n")?;
    contains("terminal", &seen, "33 44\r\n")?;
    same("status", ended(&live)?, 6)?;
    same("exit file", live.exit_file()?, "6".to_owned())
}

fn partial_line(monitor: &Monitor) -> Outcome {
    let mut scene = scene(monitor, "printf 'half a '; printf err >&2; go; echo line; go; echo or >&2; exit 0")?;
    let path = scene.dir.join("json");
    let live = scene.add("-l", format!("json-file:{}", path.display())).start()?;
    started(&live)?;
    let client = live.attach()?;
    live.log_has("half a ")?;
    live.log_has("err")?;
    replace(&live)?;
    live.go()?;
    client.expect("line\n")?;
    replace(&live)?;
    live.go()?;
    same("status", ended(&live)?, 0)?;
    let log = live.log()?;
    same_bytes("stdout", &crilog::bytes_of(&log, "stdout"), b"half a line\n")?;
    same_bytes("stderr", &crilog::bytes_of(&log, "stderr"), b"error\n")?;
    let mut text = String::new();
    for line in BufReader::new(fs::File::open(path)?).lines() {
        let record: serde_json::Value = serde_json::from_str(&line?)?;
        if record["stream"] == "stdout" {
            text += record["log"].as_str().ok_or("a record without log")?;
        }
    }
    same("stdout in the JSON log", text, "half a line\n".to_owned())?;
    same("exit.json", (totals(&live, 0)?, totals(&live, 1)?), ((12, 0), (6, 0)))
}

fn exec(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::exec(monitor)?;
    fs::create_dir(scene.dir.join("bin"))?;
    install(&place(&scene.dir))?;
    let path = place(&scene.dir);
    scene.program(path).flag("--api-version").script("go; exit 7")?;
    scene.exit_command(&["one"]).sync_pipe(Kind::Seqpacket)?;
    let mut live = scene.start()?;
    check(live.sync()?.json()?["data"].as_i64().is_some_and(|pid| pid > 0), "a pid is reported")?;
    started(&live)?;
    replace(&live)?;
    replace(&live)?;
    check(live.sync()?.silent()?, "nothing is reported in between, and the pipe stays open")?;
    live.go()?;
    same("reported status", live.sync()?.json()?["data"].as_i64(), Some(7))?;
    same("what follows", live.sync()?.rest()?, String::new())?;
    same("status", ended(&live)?, 7)?;
    let (seen, after) = (live.seen()?, live.after()?);
    for key in ["blocked", "oom_score_adj", "cwd", "umask"] {
        same(&format!("{key} of the exit command"), after[key].clone(), seen[key].clone())?;
    }
    tidy(&live)
}

fn timeout(monitor: &Monitor) -> Outcome {
    let mut scene = scene(monitor, "exec sleep 60")?;
    let live = scene.set("-T", "2").start()?;
    started(&live)?;
    replace(&live)?;
    same("exit file", live.exit_file()?, "-1".to_owned())?;
    let record: serde_json::Value = serde_json::from_slice(&fs::read(live.dir.join("b/exit.json"))?)?;
    same("timedOut", record["timedOut"].as_bool(), Some(true))?;
    same("status", ended(&live)?, 255)
}

/// Whether the end comes before, during or after the replacement, all of it is recorded.
fn ends(monitor: &Monitor) -> Outcome {
    for round in 0..size(24, 300) {
        let live = scene(monitor, &format!("exec $W {} 0 {} block:4096", LINES.name(), 1_u64 << 40))?.start()?;
        started(&live)?;
        let container = live.container()?;
        install(&place(&live.dir))?;
        live.signal(Signal::SIGUSR2)?;
        std::thread::sleep(Duration::from_micros(round * 300 % 8000));
        kill(container, Signal::SIGKILL)?;
        same("exit file", live.exit_file()?, "137".to_owned())?;
        let mut reader = Reader::new(LINES);
        reader.eat(&live.dir.join("log"))?;
        same("status", ended(&live)?, 137)?;
        same("exit.json", totals(&live, 0)?, (reader.stdout(), 0))?;
        tidy(&live)?;
        fs::remove_dir_all(&live.dir)?;
    }
    Ok(())
}

// ---------------------------------------------------------------- clients of the service

/// Replaced in turns by a call and by a signal.
fn service(monitor: &Monitor) -> Outcome {
    let script = format!("go; {}", Steady::script(LINES));
    let steady = Steady::start(scene(monitor, &script)?, "log")?;
    let live = &steady.live;
    started(live)?;
    let pid = steady.pid()?;
    let packets = follow(live.attach()?, LINES);
    let (total, (track, times)) = std::thread::scope(|scope| {
        let resuming = scope.spawn(|| resumed(live));
        live.go()?;
        let replaced = (0..size(10, 100)).try_for_each(|round| {
            steady.grows(MIB)?;
            let before = version(live)?;
            install(&place(&live.dir))?;
            talk(&socket(live), async |client| Ok(client.upgrade(None, true).await?))?;
            same("program after a check", version(live)?, before.clone())?;
            if round.is_multiple_of(2) {
                replace(live)?
            } else {
                call(live)?
            }
            let after = version(live)?;
            same("pid", (after.pid, before.pid), (pid.as_raw(), pid.as_raw()))?;
            check(after.started_at > before.started_at, "a new program began to run")
        });
        let total = steady.stop();
        let resumed = resuming.join().map_err(|_| Fail::from("a client panicked"))?;
        replaced?;
        Ok::<_, Fail>((total?, resumed?))
    })?;
    check(times >= size(10, 100), format!("a client was sent away {times} times"))?;
    same("where it began, and what it lost", (track.first[0], track.lost), (Some(0), 0))?;
    track.complete([total, 0], 5)?;
    same("bytes read from the attach socket", joined(packets)?, total)?;
    let mut reader = Reader::new(LINES);
    reader.eat(&steady.log)?;
    reader.complete(total)
}

fn version(live: &Live) -> Outcome<conmon_proto::Version> {
    talk(&socket(live), async |client| Ok(client.version().await?))
}

/// Installs a new program and asks for the replacement by a call.
fn call(live: &Live) -> Outcome {
    install(&place(&live.dir))?;
    let wanted = fs::metadata(place(&live.dir))?.ino();
    talk(&socket(live), async |client| match client.upgrade(None, false).await {
        // The answer may be overtaken by the end of the connection.
        Err(error) if !error.is_disconnect() => Err(error.into()),
        _ => Ok(()),
    })?;
    wait::until("the monitor to be replaced", patience(), || Ok((running(live)? == wanted).then_some(())))
}

/// Reads to the end, over as many connections as it takes; how often it was sent away.
fn resumed(live: &Live) -> Outcome<(Track, u64)> {
    let (mut track, mut times) = (Track::new([Some(LINES), None]), 0);
    loop {
        let history = History::From { stdout: track.at(0), stderr: 0 };
        let before = std::mem::replace(&mut track, Track::new([Some(LINES), None]));
        track = talk(&socket(live), async |client| follow_on(client, history, before).await)?;
        match track.end.as_ref().map(|end| end.reason) {
            Some(EndReason::Ended) => return Ok((track, times)),
            Some(EndReason::Upgrade) | None => times += 1,
            Some(other) => return Err(format!("sent away because of {other}").into()),
        }
        track.end = None;
        track.told_before = track.lost;
    }
}

async fn follow_on(client: &Client, history: History, before: Track) -> Outcome<Track> {
    let request = AttachRequest { stderr: false, history, ..AttachRequest::default() };
    let (output, events) = output();
    let attachment = match client.attach(&request, output).await {
        Ok(attachment) => attachment,
        Err(error) if error.is_disconnect() => return Ok(before),
        Err(error) => return Err(error.into()),
    };
    let mut follower = Follower { attachment, events, track: before };
    follower.read(|_| false).await?;
    Ok(follower.track)
}

/// A runtime that also runs further commands. It waits for nothing, or it might reap one before the monitor can.
fn with_execs(scene: &mut Scene) -> Outcome {
    // A shell takes note of the end of its own children, so the process is one of nobody's: the monitor's.
    let path = scene.dir.join("runtime.sh");
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in *' exec '*) ;; *) exec {}/fake-runtime \"$@\" ;; esac\n\
         while [ \"$1\" != {CID} ]; do [ \"$1\" = --pid-file ] && file=$2; shift; done\nshift\n\
         (sh -c 'printf %s $$ >\"$0.new\"; mv \"$0.new\" \"$0\"; exec \"$@\"' \"$file\" \"$@\" </dev/null &)\n\
         until [ -s \"$file\" ]; do :; done\n",
        scene.dir.display()
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    scene.set("-r", path);
    Ok(())
}

/// An exec that goes on without us, and is captured.
async fn begin(client: &Client, script: &str, timeout: u64) -> Outcome<u32> {
    let command = ExecSpec::command(["sh", "-c", script]);
    let spec = ExecSpec { timeout, on_disconnect: OnDisconnect::Detach, ..command };
    Ok(client.exec(&spec, None).await?.id)
}

/// The result of an exec, once there is one.
async fn result(client: &Client, id: u32) -> Outcome<ExecResult> {
    let what = format!("the result of exec {id}");
    let found = soon(&what, async {
        loop {
            match client.exec_result(id).await {
                Err(error) if error.refusal().is_some_and(|refusal| refusal.code == Code::Busy) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                other => return other,
            }
        }
    });
    Ok(found.await??)
}

fn service_execs(monitor: &Monitor) -> Outcome {
    let mut scene = scene(monitor, "go; exit 3")?;
    with_execs(&mut scene)?;
    let live = scene.start()?;
    started(&live)?;
    let policy = LogPolicy::Limit { bytes_per_second: 1 << 30, burst: 1 << 20, action: Action::BackPressure };
    let after = live.dir.join("after");
    let (kept, running_one, timed) = talk(&socket(&live), async |client| {
        client.set_log_policy(Stream::Stderr, policy).await?;
        let kept = begin(client, "echo kept; exit 9", 0).await?;
        let wait = format!("echo before; until [ -e {} ]; do sleep 0.02; done; echo behind; exit 7", after.display());
        let running_one = begin(client, &wait, 0).await?;
        let timed = begin(client, "sleep 60", 2000).await?;
        // What goes to a client cannot be handed over.
        let (output, mut events) = output();
        let streaming = client.exec(&ExecSpec::command(["sh", "-c", "echo here; sleep 60"]), Some(output)).await?;
        check(soon("output", events.next()).await?.is_some(), "the exec says something")?;
        let refused = client.upgrade(None, false).await.err();
        let code = refused.as_ref().and_then(|error| error.refusal()).map(|refusal| refusal.code);
        same("refusal", code, Some(Code::Busy))?;
        drop((streaming, events));
        soon("the execs to be plain", async {
            while client.inspect().await?.execs.len() > 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok::<_, Fail>(())
        })
        .await??;
        Ok((kept, running_one, timed))
    })?;
    call(&live)?;
    replace(&live)?;
    fs::write(&after, "")?;
    talk(&socket(&live), async |client| {
        same("policy", client.inspect().await?.streams[1].policy, policy)?;
        let first = result(client, kept).await?;
        same_bytes("output of one that had ended", &first.stdout, b"kept\n")?;
        same("its exit code", first.exit.exit_code, 9)?;
        let second = result(client, running_one).await?;
        same_bytes("output of one that went on", &second.stdout, b"before\nbehind\n")?;
        same("its exit code", second.exit.exit_code, 7)?;
        same("one whose time is up", result(client, timed).await?.exit.reason, ExitReason::TimedOut)?;
        let next = begin(client, "exit 0", 0).await?;
        check(next > timed, "numbers count on")
    })?;
    live.go()?;
    same("status", ended(&live)?, 3)
}

/// What a call is told of candidates that may not take over; nothing changes.
fn service_refused(monitor: &Monitor) -> Outcome {
    let steady = Steady::start(scene(monitor, &Steady::script(LINES))?, "log")?;
    let live = &steady.live;
    started(live)?;
    let other = live.dir.join("bin/other");
    let before = (version(live)?, running(live)?);
    for (name, what) in [("refuses", "status 3"), ("crashes", "SIGABRT"), ("lies", "status 0"), ("hangs", "no answer")]
    {
        role(&other, name)?;
        let refused = talk(&socket(live), async |client| Ok(client.upgrade(other.to_str(), false).await.err()))?;
        let refusal = refused.as_ref().and_then(|error| error.refusal()).ok_or(format!("{name}: {refused:?}"))?;
        contains("refusal", &refusal.text, what)?;
        same("program", (version(live)?, running(live)?), before.clone())?;
    }
    steady.grows(MIB)?;
    let total = steady.stop()?;
    let mut reader = Reader::new(LINES);
    reader.eat(&steady.log)?;
    reader.complete(total)
}

// ---------------------------------------------------------------- candidates that are not to take over

/// With such a candidate everything goes on as it was; a right one is taken afterwards.
fn kept(monitor: &Monitor, put: impl Fn(&Path) -> Outcome, pause: Duration) -> Outcome {
    let script = format!("go; {}", Steady::script(LINES));
    let steady = Steady::start(scene(monitor, &script)?, "log")?;
    let (live, path) = (&steady.live, place(&steady.live.dir));
    started(live)?;
    let client = follow(live.attach()?, LINES);
    live.go()?;
    steady.grows(MIB)?;
    let before = (running(live)?, procs::descriptors(live.pid()?)?.len());
    put(&path)?;
    live.signal(Signal::SIGUSR2)?;
    if path.with_extension("role").exists() {
        wait::for_file(&path.with_extension("ran"))?;
    }
    std::thread::sleep(pause);
    steady.grows(MIB)?;
    steady.alive()?;
    same("program and descriptors", (running(live)?, procs::descriptors(live.pid()?)?.len()), before)?;
    if path.is_dir() {
        fs::remove_dir(&path)?;
    }
    replace(live)?;
    steady.grows(MIB)?;
    let total = steady.stop()?;
    same("bytes read by a client", joined(client)?, total)?;
    let mut reader = Reader::new(LINES);
    reader.eat(&steady.log)?;
    reader.complete(total)
}

/// This test program as the candidate, which does what the file beside it says.
fn role(path: &Path, role: &str) -> Outcome {
    fs::write(path.with_extension("role"), role)?;
    let new = path.with_extension("new");
    fs::copy(std::env::current_exe()?, &new)?;
    Ok(fs::rename(new, path)?)
}

fn missing(path: &Path) -> Outcome {
    Ok(fs::remove_file(path)?)
}

fn not_executable(path: &Path) -> Outcome {
    let new = path.with_extension("new");
    fs::copy(path, &new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
    Ok(fs::rename(new, path)?)
}

fn directory(path: &Path) -> Outcome {
    fs::remove_file(path)?;
    Ok(fs::create_dir(path)?)
}

fn script(path: &Path) -> Outcome {
    let new = path.with_extension("new");
    fs::write(&new, format!("#!/bin/sh\necho '{}'\nexit 0\n", conward::upgrade::ACCEPTED))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(new, path)?)
}

/// The test program as somebody's candidate.
pub fn candidate(args: &[String]) -> Option<ExitCode> {
    if args.get(1)? != "--check-state" {
        return None;
    }
    let path = std::env::current_exe().ok()?;
    let role = fs::read_to_string(path.with_extension("role")).ok()?;
    fs::write(path.with_extension("ran"), "yes").ok()?;
    Some(match role.as_str() {
        "refuses" => ExitCode::from(3),
        "crashes" => std::process::abort(),
        "hangs" => {
            std::thread::sleep(Duration::from_secs(30));
            ExitCode::SUCCESS
        }
        "unexecutable" => {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).ok()?;
            crate::support::suite::say(conward::upgrade::ACCEPTED);
            ExitCode::SUCCESS
        }
        _ => ExitCode::SUCCESS,
    })
}
