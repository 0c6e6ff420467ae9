//! Clients that go away, and what becomes of what they asked for.

use std::fs;
use std::time::{Duration, Instant};

use conmon_proto::{AttachRequest, Code, ExecSpec, OnDisconnect, output};

use crate::peer::Peer;
use crate::rig::{connect, end_idle, gone, idle, no_execs, pid_of, refused, sh, start_with, talk, until};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, procs, same};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("leave/kill", "P10", "an exec ends with its client, with all that came from it", leave_kills),
        Case::new("leave/kill-reference", "P10", "or with the last reference to it", reference_kills),
        Case::new("leave/detach", "P10", "or goes on, and its result is kept with its output", leave_detaches),
        Case::new("leave/detach-streamed", "P10", "the same with a stream that nobody takes any more", detach_streamed),
        Case::new("leave/at-once", "P10", "a client that leaves before it has the answer", at_once),
        Case::new("leave/attached-at-once", "P8", "the same while attaching", attached_at_once),
        Case::new("leave/results", "P8", "64 results and 16 MiB of output are kept", results),
        Case::new("leave/cancelled-input", "P11", "calls that are given up do not block their connection", cancelled),
    ]
}

const TREE: &str = "echo $$ >$D/inner; setsid sh -c 'echo $$ >$D/leader; exec sleep 1000' & exec sleep 1000";

fn leave_kills(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    for streamed in [false, true] {
        talk(async {
            let client = connect(&live).await?;
            let (output, _events) = output();
            let _exec = client.exec(&sh(TREE), streamed.then_some(output)).await?;
            pid_of(&live, "inner")?;
            pid_of(&live, "leader")?;
            Ok(())
        })?;
        gone("the exec", pid_of(&live, "inner")?)?;
        gone("what it left", pid_of(&live, "leader")?)?;
        talk(async { no_execs(&connect(&live).await?).await })?;
        fs::remove_file(live.dir.join("b/inner"))?;
        fs::remove_file(live.dir.join("b/leader"))?;
    }
    end_idle(&live)
}

fn reference_kills(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let exec = client.exec(&sh("echo $$ >$D/inner; exec sleep 1000"), None).await?;
        let (id, pid) = (exec.id, pid_of(&live, "inner")?);
        drop(exec);
        no_execs(&client).await?;
        gone("the exec", pid)?;
        same("its result", client.exec_result(id).await?.exit.status, 137)
    })?;
    end_idle(&live)
}

fn leave_detaches(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    let script = "echo $$ >$D/inner; until [ -e $D/end ]; do sleep 0.05; done; echo done; exit 12";
    let id = talk(async {
        let spec = ExecSpec { on_disconnect: OnDisconnect::Detach, ..sh(script) };
        Ok(connect(&live).await?.exec(&spec, None).await?.id)
    })?;
    let pid = pid_of(&live, "inner")?;
    talk(async {
        let client = connect(&live).await?;
        refused("running", client.exec_result(id).await, Code::Busy)?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        check(procs::alive(pid), "it goes on")?;
        fs::write(live.dir.join("b/end"), "")?;
        no_execs(&client).await?;
        let result = client.exec_result(id).await?;
        same("result", (result.exit.status, result.stdout), (12, b"done\n".to_vec()))?;
        let again = client.exec_result(id).await?;
        same("again", (again.exit.status, again.stdout.len()), (12, 0))
    })?;
    end_idle(&live)
}

/// It writes far more than a pipe takes, so that it ends only if somebody reads on.
fn detach_streamed(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    for (round, script) in
        ["sleep 0.2; yes | head -c 3000000; exit 5", "yes | head -c 3000000; exit 5"].iter().enumerate()
    {
        let id = talk(async {
            let client = connect(&live).await?;
            let (output, events) = output();
            let spec = ExecSpec { on_disconnect: OnDisconnect::Detach, ..sh(script) };
            let id = client.exec(&spec, Some(output)).await?.id;
            if round == 1 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            drop(events);
            Ok(id)
        })?;
        // Nobody is connected meanwhile: the monitor has to see to it by itself.
        std::thread::sleep(Duration::from_millis(700));
        talk(async {
            let client = connect(&live).await?;
            no_execs(&client).await?;
            let result = client.exec_result(id).await?;
            same("status", result.exit.status, 5)
        })?;
    }
    end_idle(&live)
}

fn at_once(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async { connect(&live).await?.version().await.map_err(Into::into) })?;
    for _ in 0..20 {
        let mut peer = Peer::connect(&live)?;
        peer.bootstrap()?;
        peer.exec(&["/bin/sh", "-c", "echo $$ >>$D/pids; exec sleep 1000"], true)?;
        drop(peer);
    }
    talk(async {
        let client = connect(&live).await?;
        no_execs(&client).await
    })?;
    let pids = fs::read_to_string(live.dir.join("b/pids")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()) {
        gone("an exec", nix::unistd::Pid::from_raw(pid))?;
    }
    end_idle(&live)
}

fn attached_at_once(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    for _ in 0..20 {
        let mut peer = Peer::connect(&live)?;
        peer.bootstrap()?;
        peer.attach()?;
        drop(peer);
    }
    talk(async {
        let client = connect(&live).await?;
        until("no client to be left", async || Ok(client.inspect().await?.clients.is_empty().then_some(()))).await
    })?;
    end_idle(&live)
}

fn results(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let mut ids = Vec::new();
        for number in 0..70 {
            let spec = ExecSpec {
                on_disconnect: OnDisconnect::Detach,
                ..sh(&format!("head -c 1000000 /dev/zero; exit {number}"))
            };
            ids.push(client.exec(&spec, None).await?.id);
            no_execs(&client).await?;
        }
        refused("the oldest", client.exec_result(ids[5]).await, Code::NotFound)?;
        let old = client.exec_result(ids[6]).await?;
        same("an old one", (old.exit.status, old.stdout.len(), old.truncated), (6, 0, true))?;
        let new = client.exec_result(ids[69]).await?;
        same("the newest", (new.exit.status, new.stdout.len(), new.truncated), (69, 1_000_000, false))?;
        let state = client.inspect().await?;
        check(state.memory.heap < 20 << 20, format!("{:?}", state.memory))
    })?;
    end_idle(&live)
}

fn cancelled(monitor: &Monitor) -> Outcome {
    let live = start_with(monitor, "echo ready; go; cat >/dev/null; exit 6", |scene| scene.flag("-i"))?;
    live.log_has("ready")?;
    talk(async {
        let client = connect(&live).await?;
        let (output, _events) = output();
        let request = AttachRequest { stdin: true, ..AttachRequest::default() };
        let attachment = client.attach(&request, output).await?;
        let data = vec![b'x'; 200_000];
        let began = Instant::now();
        for _ in 0..8 {
            let writing = tokio::time::timeout(Duration::from_millis(30), attachment.write(&data)).await;
            check(writing.is_err(), "nobody reads it")?;
        }
        client.version().await?;
        check(began.elapsed() < Duration::from_secs(5), "the connection works on")?;
        live.go()?;
        Ok(())
    })?;
    same("status", live.end()?, 6)
}
