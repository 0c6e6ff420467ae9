//! What the outside does wrong: runtimes, callers, limits, signals, readers of the exit file.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use crate::flow::{Expect, Pattern};
use crate::reading::Reader;
use crate::rig::{LINES, MIB, Steady, ended, patience, scene, size, totals, writes};
use crate::support::attach::Client;
use crate::support::pipes::{Kind, inherit};
use crate::support::scene::{CID, Scene};
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, contains, crilog, procs, same, wait};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("grandchild/quiet", "3.9", "one that holds stdout delays no exit", |m| grandchild(m, "sleep 300 &")),
        Case::new("grandchild/loud", "3.9", "nor does one that goes on writing", |m| {
            grandchild(m, "$W lines:100000 10000000 1000000000000 &")
        }),
        Case::new("runtime/10-mb-and-success", "11 B9", "10 MB of stderr, then a container", flood_and_start),
        Case::new("runtime/10-mb-and-failure", "11 B9", "10 MB of stderr, then a failure", |m| {
            fails(m, "nocontainer\nflood 10000000\nexit 1", "eeee")
        }),
        Case::new("runtime/no-pidfile", "3.7", "a runtime that writes no pidfile", |m| {
            fails(m, "nocontainer\nnopid", "pidfile")
        }),
        Case::new("runtime/killed", "3.7", "a runtime that is killed", |m| fails(m, "nocontainer\ndie 9", "signal 9")),
        Case::new("runtime/missing", "3.7", "a runtime that does not exist", missing),
        Case::new("runtime/hangs", "3.8", "a runtime that hangs ends with SIGTERM to the monitor", hangs),
        Case::new("limit/16-descriptors", "P11", "16 descriptors: works or says why not", |m| few_descriptors(m, 16)),
        Case::new("limit/28-descriptors", "P2", "clients take no descriptor that the exit needs", |m| {
            few_descriptors(m, 28)
        }),
        Case::new("sync/full", "3.7", "a sync pipe that is full and not read", |m| sync_pipe(m, false)),
        Case::new("sync/closed", "3.7", "a sync pipe without a reader", |m| sync_pipe(m, true)),
        Case::new("exit/polled", "3.10", "exit files are never seen empty or in part", polled),
    ];
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        cases.push(Case::new(&format!("signal/{signal}"), "3.8", "changes nothing under load", move |m| {
            harmless(m, signal)
        }));
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        cases.push(Case::new(&format!("signal/{signal}"), "3.8", "is passed on; all is logged", move |m| {
            passed(m, signal)
        }));
    }
    cases
}

/// The container's own output is there when the exit file is, whatever a survivor does.
fn grandchild(monitor: &Monitor, survivor: &str) -> Outcome {
    let own = 10_000_000;
    let pattern = Pattern::Lines(100_000);
    let live = scene(monitor, &format!("$W {} 0 {own}; {survivor} exit 3", pattern.name()))?.start()?;
    same("exit file", live.exit_file()?, "3".to_owned())?;
    let mut reader = Reader::new(pattern);
    reader.read(&live.dir.join("log"))?;
    check(reader.stdout() >= own, format!("{} of {own} bytes are in the log", reader.stdout()))?;
    same("status", ended(&live)?, 3)
}

fn flood_and_start(monitor: &Monitor) -> Outcome {
    let total = 8 * MIB;
    let live = scene(monitor, &writes(LINES, total))?.runtime("flood 10000000")?.start()?;
    same("status", ended(&live)?, 0)?;
    // It has the stderr that the container will have, so what it says is logged like the container's.
    let log = live.log()?;
    let [stdout, stderr] = ["stdout", "stderr"].map(|stream| crilog::bytes_of(&log, stream));
    check(stderr.len() == 10_000_000 && stderr.iter().all(|byte| *byte == b'e'), "not what the runtime said")?;
    let mut expect = Expect::new(LINES, 0);
    expect.take(&stdout)?;
    same("bytes of stdout", expect.at, total)
}

fn fails(monitor: &Monitor, orders: &str, reason: &str) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.runtime(orders)?;
    reports(&mut scene, reason)
}

/// One report with the reason, no exit file, status 1.
fn reports(scene: &mut Scene, reason: &str) -> Outcome {
    let mut live = scene.sync_pipe(Kind::Seqpacket)?.start()?;
    let report = live.sync()?.json()?;
    same("pid", report["pid"].as_i64(), Some(-1))?;
    contains("message", report["message"].as_str().unwrap_or(""), reason)?;
    same("status", ended(&live)?, 1)?;
    check(!live.dir.join("x").join(CID).exists(), "there must be no exit file")
}

fn missing(monitor: &Monitor) -> Outcome {
    let (code, _, stderr) = Scene::create(monitor)?.set("-r", "/does/not/exist").front()?;
    same("the front's status", code, 1)?;
    contains("stderr", &stderr, "/does/not/exist")
}

fn hangs(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let mut live = scene.runtime("nocontainer\nhang")?.sync_pipe(Kind::Seqpacket)?.start()?;
    live.seen()?;
    live.signal(Signal::SIGTERM)?;
    same("pid", live.sync()?.json()?["pid"].as_i64(), Some(-1))?;
    same("status", ended(&live)?, 1)
}

/// The limit is for the monitor; the test itself needs more.
fn few_descriptors(monitor: &Monitor, limit: u64) -> Outcome {
    let mut scene = scene(monitor, &Steady::script(LINES))?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
    let front = scene.front();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    let (code, _, stderr) = front?;
    if code != 0 {
        return contains("stderr", &stderr, Errno::EMFILE.desc());
    }
    let (dir, stop) = (scene.dir.clone(), scene.dir.join("b/stop"));
    wait::for_file(&dir.join("pid"))?;
    let path = dir.join("b/attach");
    if limit > 16 {
        // More than there are descriptors, at once: who is turned away gets in when others have left.
        let visits: Vec<_> = (0..40)
            .map(|_| {
                std::thread::spawn({
                    let path = path.clone();
                    move || visit(&path)
                })
            })
            .collect();
        visits.into_iter().try_for_each(|visit| visit.join().map_err(|_| "a client panicked")?)?;
    }
    let stay = (0..40).map(|_| Client::connect_soon(&path)).collect::<Outcome<Vec<_>>>()?;
    fs::write(stop, "")?;
    let exit = wait::for_file(&dir.join("x").join(CID))?;
    same("exit file", String::from_utf8_lossy(&exit).into_owned(), "5".to_owned())?;
    drop(stay);
    let total = fs::read_to_string(dir.join("b/stop.end"))?.parse().map_err(|_| "the writer's place")?;
    let mut reader = Reader::new(LINES);
    reader.eat(&dir.join("log"))?;
    reader.complete(total)
}

/// Comes until it gets some output, and leaves.
fn visit(path: &Path) -> Outcome {
    wait::until("a client to get its turn", patience(), || {
        let packet = Client::connect_soon(path)?.packet_within(Duration::from_secs(30))?;
        Ok(packet.flatten().map(drop))
    })
}

/// Neither a caller that does not read nor one that is gone holds anything up.
fn sync_pipe(monitor: &Monitor, closed: bool) -> Outcome {
    let total = 8 * MIB;
    let (ours, theirs): (OwnedFd, OwnedFd) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    inherit(&theirs)?;
    while send(theirs.as_raw_fd(), &[b'x'; 4096], MsgFlags::MSG_DONTWAIT).is_ok() {}
    let ours = if closed { None } else { Some(ours) };
    let mut scene = scene(monitor, &writes(LINES, total))?;
    let live = scene.env("_OCI_SYNCPIPE", theirs.as_raw_fd().to_string()).start()?;
    drop(theirs);
    same("exit file", live.exit_file()?, "0".to_owned())?;
    same("status", ended(&live)?, 0)?;
    let mut reader = Reader::new(LINES);
    reader.eat(&live.dir.join("log"))?;
    reader.complete(total)?;
    if let Some(ours) = ours {
        // The end is to be seen as well.
        let mut packet = [0; 8192];
        while recv(ours.as_raw_fd(), &mut packet, MsgFlags::empty())? > 0 {}
    }
    Ok(())
}

fn polled(monitor: &Monitor) -> Outcome {
    for _ in 0..size(20, 300) {
        let mut scene = Scene::create(monitor)?;
        let paths = [scene.dir.join("x").join(CID), scene.dir.join("p/exit"), scene.dir.join("b/exit.json")];
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let threads: Vec<_> = paths.iter().map(|path| scope.spawn(|| poll_file(path, &done))).collect();
            let run = scene.script("exit 107").and_then(|scene| scene.run());
            done.store(true, Ordering::Relaxed);
            run?;
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a reader panicked")?)
        })?;
        fs::remove_dir_all(&scene.dir)?;
    }
    Ok(())
}

/// Reads the file as fast as it can; the first time that it is there it must be whole.
fn poll_file(path: &PathBuf, done: &AtomicBool) -> Outcome {
    loop {
        let last = done.load(Ordering::Relaxed);
        match fs::read(path) {
            Ok(bytes) if path.ends_with("exit.json") => {
                let record: serde_json::Value = serde_json::from_slice(&bytes)?;
                same("status in exit.json", record["status"].as_i64(), Some(107))?;
            }
            Ok(bytes) => same("exit file", String::from_utf8_lossy(&bytes).into_owned(), "107".to_owned())?,
            Err(_) if last => return Err(format!("{} never came", path.display()).into()),
            Err(_) => {}
        }
        if last {
            return Ok(());
        }
    }
}

fn harmless(monitor: &Monitor, signal: Signal) -> Outcome {
    let steady = Steady::start(scene(monitor, &Steady::script(LINES))?, "log")?;
    for _ in 0..50 {
        steady.live.signal(signal)?;
        std::thread::sleep(Duration::from_millis(2));
    }
    steady.alive()?;
    let total = steady.stop()?;
    let mut reader = Reader::new(LINES);
    reader.eat(&steady.log)?;
    reader.complete(total)
}

/// The container gets it, says its last words and ends; the monitor ends after it.
fn passed(monitor: &Monitor, signal: Signal) -> Outcome {
    if procs::ignores(signal)? {
        return Err(Fail::Skip(format!("{signal} is ignored here, so a shell cannot trap it")));
    }
    let name = signal.as_str().trim_start_matches("SIG");
    let total = 4 * MIB;
    // dash loses a signal that comes while it starts a command in the foreground.
    let then = format!("$W lines:100 0 {total}; kill $!; exit 9");
    let script = format!("trap '{then}' {name}; sleep 1000 & : >$D/ready; wait");
    let mut scene = scene(monitor, &script)?;
    let mut live = scene.sync_pipe(Kind::Pipe)?.start()?;
    crate::rig::reached(&live, "ready")?;
    // Until the pid is reported, a signal is the runtime's, and may end that.
    check(live.sync()?.json()?["pid"].as_i64() > Some(0), "the pid is reported")?;
    live.signal(signal)?;
    same("exit file", live.exit_file()?, "9".to_owned())?;
    check(!procs::alive(live.container()?), "the container has ended")?;
    same("status", ended(&live)?, 9)?;
    let mut reader = Reader::new(LINES);
    reader.eat(&live.dir.join("log"))?;
    reader.complete(total)?;
    same("exit.json", totals(&live, 0)?, (total, 0))?;
    // Its pid is nobody's now; whoever signals it late hits nothing.
    same("a late signal", kill(live.container()?, None), Err(Errno::ESRCH))
}
