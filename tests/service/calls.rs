//! The calls that are about the container itself.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use conmon_proto::{Action, AttachRequest, Code, ExitReason, LogPolicy, Phase, Stream, Verdict, output};

use crate::rig::{collect, connect, end_idle, idle, refused, run, sh, socket, start, start_with, talk, until};
use crate::support::scene::{CID, Live, Scene};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, contains, same, wait};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("call/version", "P9", "names, protocol, pid and start of the program", version),
        Case::new("call/inspect", "P8", "everything is told, and agrees with /proc and the log", inspect),
        Case::new("wait/record", "P4", "32 who wait hear the same, durable, equal to exit.json", wait_record),
        Case::new("wait/signalled", "P4", "an end by a signal", wait_signalled),
        Case::new("wait/after-the-end", "P4", "who comes too late is refused cleanly", wait_late),
        Case::new("wait/never-started", "P4", "a runtime that fails: neverStarted, nothing durable", never_started),
        Case::new("wait/no-exit-record", "P4", "a record that cannot be written is not durable", no_record),
        Case::new("wait/too-many", "P11", "the 1025th waiter is refused", too_many_waiters),
        Case::new("call/signal", "P14", "signals arrive; nonsense is refused", signal),
        Case::new("call/resize", "P11", "a terminal is resized, and without one it is refused", resize),
        Case::new("call/close-stdin", "P2", "the container reads its end of file behind what was typed", close_stdin),
        Case::new("call/no-stdin", "P2", "without stdin all typing is refused", no_stdin),
        Case::new("call/stdin-closed-by-container", "P2", "input that nobody will read is refused", stdin_gone),
        Case::new("call/leave-stdin-open", "P2", "stdin ends with the last who types, or stays open", leave_open),
        Case::new("call/reopen-log", "P6", "inode and offsets are right, and twice does no harm", reopen),
        Case::new("call/reopen-log-fails", "P16", "a directory that is gone: refused with its errno", reopen_fails),
        Case::new(
            "call/passthrough",
            "P11",
            "a container with its caller's stdio: no attach, the rest works",
            passthrough,
        ),
        Case::new("socket/path", "P12", "--rpc-socket PATH; the name goes at the end", socket_path),
        Case::new("socket/none", "P12", "--rpc-socket none", socket_none),
        Case::new("socket/relative", "P13", "a relative path is refused", socket_relative),
        Case::new("socket/mode", "P12", "the socket's mode is 0700", socket_mode),
    ]
}

fn version(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let version = connect(&live).await?.version().await?;
        same("conward", version.conward.as_str(), env!("CARGO_PKG_VERSION"))?;
        same("conmon", version.conmon.as_str(), "2.2.1")?;
        same("protocol", version.protocol, 1)?;
        same("pid", version.pid, live.pid()?.as_raw())?;
        check(!version.commit.is_empty() && version.started_at > 1_600_000_000_000_000_000, format!("{version:?}"))
    })?;
    end_idle(&live)
}

fn inspect(monitor: &Monitor) -> Outcome {
    let live = start(monitor, "echo one; echo two >&2; echo three; : >$D/said; go")?;
    live.log_has("three")?;
    live.log_has("two")?;
    talk(async {
        let client = connect(&live).await?;
        let state = client.inspect().await?;
        same("id", state.id.as_str(), CID)?;
        same("phase", state.phase, Phase::Running)?;
        same("pid", state.pid, live.container()?.as_raw())?;
        same("monitor's pid", state.monitor_pid, live.pid()?.as_raw())?;
        same("stdin and terminal", (state.stdin, state.terminal), (false, false))?;
        same("connections", state.connections, 1)?;
        let told = |stream| state.stream(stream).map(|s| (s.bytes, s.records, s.lost, s.gaps, s.open, s.policy));
        same("stdout", told(Stream::Stdout), Some((10, 2, 0, 0, true, LogPolicy::Pass)))?;
        same("stderr", told(Stream::Stderr), Some((4, 1, 0, 0, true, LogPolicy::Pass)))?;
        let meta = fs::metadata(live.dir.join("log"))?;
        let sink = state.sinks.first().ok_or("there is a log")?;
        same("sink", (sink.inode, sink.size, sink.error.as_str()), (meta.ino(), meta.len(), ""))?;
        same("sink's path", sink.path.as_str(), &*live.dir.join("log").to_string_lossy())?;
        let descriptors = crate::support::procs::descriptors(live.pid()?)?.len();
        same("descriptors", state.descriptors as usize, descriptors)?;
        check(state.memory.private > 0 && state.memory.heap > 0, format!("{:?}", state.memory))?;
        let _attached = live.attach()?;
        let exec = client.exec(&sh("exec sleep 100"), None).await?;
        let state = until("client and exec to be told", async || {
            let state = client.inspect().await?;
            Ok((state.clients.len() == 1 && state.execs.first().is_some_and(|exec| exec.pid > 0)).then_some(state))
        })
        .await?;
        same("exec", (state.execs[0].id, state.execs[0].command.as_str()), (exec.id, "/bin/sh -c exec sleep 100"))?;
        same("client's pid", state.clients[0].pid, std::process::id().cast_signed())
    })?;
    live.go()?;
    same("status", live.end()?, 0)
}

fn wait_record(monitor: &Monitor) -> Outcome {
    let live = start(monitor, "go; echo out; echo error >&2; exit 7")?;
    let told = talk(async {
        let mut waiting = Vec::new();
        for _ in 0..8 {
            let client = connect(&live).await?;
            for _ in 0..4 {
                let client = client.clone();
                waiting.push(tokio::task::spawn_local(async move { client.wait().await }));
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        live.go()?;
        let mut told = Vec::new();
        for one in waiting {
            told.push(one.await.map_err(|error| error.to_string())??);
        }
        Ok(told)
    })?;
    same("status", live.end()?, 7)?;
    let (exit, durable) = &told[0];
    check(told.iter().all(|one| one == &told[0]), format!("all hear the same: {told:?}"))?;
    check(*durable, "it is durable")?;
    let record: serde_json::Value = serde_json::from_slice(&fs::read(live.dir.join("b/exit.json"))?)?;
    same("reason", exit.reason, ExitReason::Exited)?;
    same("code", Some(i64::from(exit.exit_code)), record["exitCode"].as_i64())?;
    same("status in the record", Some(i64::from(exit.status)), record["status"].as_i64())?;
    same("pid", Some(i64::from(exit.pid)), record["pid"].as_i64())?;
    same("stdout", Some(exit.stdout.bytes), record["stdout"]["bytes"].as_u64())?;
    same("stderr", (exit.stderr.bytes, exit.stderr.lost), (6, 0))?;
    check(exit.oom_killed != Verdict::Yes, "no memory was short")?;
    for (key, time) in [("startedAt", exit.started_at), ("finishedAt", exit.finished_at)] {
        let nanos = format!("{:09}", time % 1_000_000_000);
        contains(key, record[key].as_str().unwrap_or_default(), &format!(".{nanos}"))?;
    }
    Ok(())
}

fn wait_signalled(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let waiting = {
            let client = client.clone();
            tokio::task::spawn_local(async move { client.wait().await })
        };
        client.signal(9).await?;
        let (exit, durable) = waiting.await.map_err(|error| error.to_string())??;
        same("end", (exit.reason, exit.signal, exit.status, durable), (ExitReason::Signalled, 9, 137, true))
    })?;
    same("status", live.end()?, 137)
}

fn wait_late(monitor: &Monitor) -> Outcome {
    let live = start(monitor, "go; exit 3")?;
    talk(async {
        let client = connect(&live).await?;
        client.version().await?;
        live.go()?;
        same("status", live.end()?, 3)?;
        match client.wait().await {
            Err(error) if error.is_disconnect() => {}
            other => return Err(format!("expected to be disconnected, saw {other:?}").into()),
        }
        check(conmon_proto::connect(&socket(&live)).await.is_err(), "nobody listens any more")?;
        check(!socket(&live).exists(), "the socket's name is gone")
    })
}

/// The runtime waits, so that a client can come, and then fails.
fn never_started(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let go = scene.dir.join("fail");
    scene.runtime(&format!("nocontainer\nwait {}\nstderr no such thing\nexit 1\n", go.display()))?;
    let live = scene.start()?;
    talk(async {
        let client = connect(&live).await?;
        same("phase", client.inspect().await?.phase, Phase::Starting)?;
        refused("exec", client.exec(&sh("true"), None).await, Code::NotRunning)?;
        let waiting = {
            let client = client.clone();
            tokio::task::spawn_local(async move { client.wait().await })
        };
        client.version().await?;
        fs::write(&go, "")?;
        let (exit, durable) = waiting.await.map_err(|error| error.to_string())??;
        same("end", (exit.reason, exit.status, durable), (ExitReason::NeverStarted, -1, false))
    })?;
    same("status", live.end()?, 1)
}

fn no_record(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    // Nothing can be renamed to a directory that has something in it.
    fs::create_dir_all(live.dir.join("b/exit.json/full"))?;
    talk(async {
        let client = connect(&live).await?;
        let waiting = {
            let client = client.clone();
            tokio::task::spawn_local(async move { client.wait().await })
        };
        client.version().await?;
        live.go()?;
        let (exit, durable) = waiting.await.map_err(|error| error.to_string())??;
        same("end", (exit.reason, exit.status, durable), (ExitReason::Exited, 6, false))
    })?;
    same("status", live.end()?, 6)
}

fn too_many_waiters(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let waiting: Vec<_> = (0..1024)
            .map(|_| {
                let client = client.clone();
                tokio::task::spawn_local(async move { client.wait().await })
            })
            .collect();
        client.version().await?;
        refused("one more", client.wait().await, Code::TooMany)?;
        live.go()?;
        for one in waiting {
            same("status", one.await.map_err(|error| error.to_string())??.0.status, 6)?;
        }
        Ok(())
    })?;
    same("status", live.end()?, 6)
}

fn signal(monitor: &Monitor) -> Outcome {
    let live = start(monitor, "trap 'echo got it; exit 2' USR1; echo ready; while :; do sleep 0.02; done")?;
    live.log_has("ready")?;
    talk(async {
        let client = connect(&live).await?;
        for number in [0, 65, 255] {
            refused("no signal", client.signal(number).await, Code::Invalid)?;
        }
        client.signal(10).await?;
        Ok(())
    })?;
    live.log_has("got it")?;
    same("status", live.end()?, 2)
}

fn resize(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async { refused("resize", connect(&live).await?.resize(5, 6).await, Code::NoTerminal).map(drop) })?;
    end_idle(&live)?;
    let live = start_with(monitor, "echo ready; go; stty size", |scene| scene.flag("-t"))?;
    live.log_has("ready")?;
    talk(async {
        let client = connect(&live).await?;
        client.resize(33, 44).await?;
        let state = client.inspect().await?;
        same("size", (state.rows, state.columns, state.terminal), (33, 44, true))?;
        refused("end of a terminal's input", client.close_stdin().await, Code::NoStdin).map(drop)
    })?;
    live.go()?;
    same("status", live.end()?, 0)?;
    live.log_has("33 44")
}

fn close_stdin(monitor: &Monitor) -> Outcome {
    let live = start_with(monitor, "cat; echo over", |scene| scene.flag("-i"))?;
    talk(async {
        let client = connect(&live).await?;
        let (output, mut events) = output();
        let request = AttachRequest { stdin: true, ..AttachRequest::default() };
        let attachment = client.attach(&request, output).await?;
        attachment.write(b"typed\n").await?;
        client.close_stdin().await?;
        refused("again", client.close_stdin().await, Code::NoStdin)?;
        check(attachment.write(b"more").await.is_err(), "nothing can be typed any more")?;
        let (stdout, _, end) = collect(&mut events).await?;
        same("stdout", String::from_utf8_lossy(&stdout).into_owned(), "typed\nover\n".to_owned())?;
        same("status", end.exit.map(|exit| exit.status), Some(0))
    })?;
    same("status", live.end()?, 0)
}

fn no_stdin(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        refused("closeStdin", client.close_stdin().await, Code::NoStdin)?;
        let (typing, _) = output();
        let request = AttachRequest { stdin: true, ..AttachRequest::default() };
        refused("attach", client.attach(&request, typing).await, Code::NoStdin)?;
        let (listening, _events) = output();
        let attachment = client.attach(&AttachRequest::default(), listening).await?;
        check(attachment.write(b"x").await.is_err(), "who only listens may not type")?;
        refused("its closeStdin", attachment.close_stdin().await, Code::Invalid).map(drop)
    })?;
    end_idle(&live)
}

/// Whoever types hears that it was in vain, also what was on its way already.
fn stdin_gone(monitor: &Monitor) -> Outcome {
    let script = "read -r line; echo got $line; exec <&-; : >$D/closed; go";
    let live = start_with(monitor, script, |scene| scene.flag("-i"))?;
    talk(async {
        let client = connect(&live).await?;
        let (output, _events) = output();
        let request = AttachRequest { stdin: true, ..AttachRequest::default() };
        let attachment = client.attach(&request, output).await?;
        let large = vec![b'x'; 300_000];
        // More than the pipe takes: it is answered when the container has taken it, which it never does.
        let typed = async {
            attachment.write(b"a line\n").await?;
            attachment.write(&large).await
        };
        check(typed.await.is_err(), "what the container never took is no success")?;
        check(attachment.write(b"more").await.is_err(), "stdin is closed")?;
        check(!client.inspect().await?.stdin, "inspect knows")
    })?;
    live.go()?;
    same("status", live.end()?, 0)
}

fn leave_open(monitor: &Monitor) -> Outcome {
    let script = "read -r one; echo $one; read -r two; echo $two; cat; echo over";
    let live = start_with(monitor, script, |scene| scene.flag("-i"))?;
    talk(async {
        let client = connect(&live).await?;
        for (text, leave) in [(&b"first\n"[..], true), (b"second\n", false)] {
            let (output, _events) = output();
            let request = AttachRequest { stdin: true, leave_stdin_open: leave, ..AttachRequest::default() };
            let attachment = client.attach(&request, output).await?;
            attachment.write(text).await?;
            drop(attachment);
            if leave {
                live.log_has("first")?;
                check(client.inspect().await?.stdin, "it stays open")?;
            }
        }
        Ok(())
    })?;
    same("status", live.end()?, 0)?;
    same("log", live.plain_log()?, ["stdout F first", "stdout F second", "stdout F over"].map(str::to_owned).to_vec())
}

fn reopen(monitor: &Monitor) -> Outcome {
    let live = start(monitor, "echo before; echo err >&2; go; echo after; go")?;
    live.log_has("before")?;
    live.log_has("err")?;
    let (log, old) = (live.dir.join("log"), live.dir.join("log.old"));
    talk(async {
        let client = connect(&live).await?;
        let same_file = client.reopen_log().await?;
        same("the same file", same_file[0].inode, fs::metadata(&log)?.ino())?;
        fs::rename(&log, &old)?;
        for _ in 0..2 {
            let switch = client.reopen_log().await?.swap_remove(0);
            same("driver", switch.driver.as_str(), "k8s-file")?;
            same("path", switch.path.as_str(), &*log.to_string_lossy())?;
            same("inode", switch.inode, fs::metadata(&log)?.ino())?;
            same("offsets", (switch.stdout, switch.stderr), (7, 4))?;
        }
        live.go()?;
        live.log_has("after")?;
        let switch = client.reopen_log().await?.swap_remove(0);
        same("offsets", (switch.stdout, switch.stderr), (13, 4))
    })?;
    same("new log", live.plain_log()?, vec!["stdout F after".to_owned()])?;
    live.go()?;
    same("status", live.end()?, 0)?;
    let mut records = crate::support::crilog::plain(&crate::support::crilog::parse(&fs::read(old)?)?);
    records.sort();
    same("old log", records, vec!["stderr F err".to_owned(), "stdout F before".to_owned()])
}

fn reopen_fails(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let dir = scene.dir.join("logs");
    fs::create_dir(&dir)?;
    scene.script("echo ready; go; exit 6")?.set("-l", dir.join("log"));
    let live = scene.start()?;
    live.container()?;
    wait::until_true("the log", || fs::read(dir.join("log")).is_ok_and(|bytes| !bytes.is_empty()))?;
    fs::remove_dir_all(&dir)?;
    talk(async {
        let client = connect(&live).await?;
        let answer = client.reopen_log().await;
        let errno = answer.as_ref().err().and_then(conmon_proto::Error::refusal).map(|refusal| refusal.errno);
        let text = refused("reopen", answer, Code::Failed)?;
        contains("its text", &text, &dir.to_string_lossy())?;
        same("errno", errno, Some(nix::errno::Errno::ENOENT as i32))
    })?;
    end_idle(&live)
}

fn passthrough(monitor: &Monitor) -> Outcome {
    let live = start_with(monitor, "go; exit 6", |scene| scene.set("-l", "passthrough"))?;
    talk(async {
        let client = connect(&live).await?;
        let (output, _events) = output();
        refused("attach", client.attach(&AttachRequest::default(), output).await, Code::Invalid)?;
        same("stdout of an exec", run(&client, &sh("echo works")).await?.stdout, b"works\n".to_vec())?;
        refused("resize", client.resize(1, 1).await, Code::NoTerminal)?;
        same("files", client.reopen_log().await?, vec![])?;
        client.set_log_policy(Stream::Stdout, LogPolicy::Pass).await?;
        let nothing = LogPolicy::Limit { bytes_per_second: 0, burst: 0, action: Action::Drop };
        refused("no bytes", client.set_log_policy(Stream::Stdout, nothing).await, Code::Invalid).map(drop)
    })?;
    end_idle(&live)
}

fn socket_path(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let path = scene.dir.join("s/other.sock");
    scene.script("go; exit 6")?.set("--rpc-socket", &path);
    let live: Live = scene.start()?;
    live.container()?;
    talk(async {
        same("pid", conmon_proto::connect(&path).await?.version().await?.pid, live.pid()?.as_raw())?;
        check(!socket(&live).exists(), "and none in the bundle")
    })?;
    end_idle(&live)?;
    check(!path.exists(), "its name is gone")
}

fn socket_none(monitor: &Monitor) -> Outcome {
    let live = start_with(monitor, "go; exit 6", |scene| scene.set("--rpc-socket", "none"))?;
    live.attach()?;
    check(!socket(&live).exists(), "there is no socket")?;
    end_idle(&live)
}

fn socket_relative(monitor: &Monitor) -> Outcome {
    let (code, _, stderr) = Scene::create(monitor)?.set("--rpc-socket", "some/where").front()?;
    check(code != 0, "it must not start")?;
    contains("stderr", &stderr, "rpc-socket")
}

fn socket_mode(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    same("mode", fs::metadata(socket(&live))?.permissions().mode() & 0o7777, 0o700)?;
    end_idle(&live)
}
