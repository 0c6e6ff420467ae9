//! Many execs: in a row, side by side, too many; nothing of them is left.

use std::rc::Rc;
use std::time::{Duration, Instant};

use conmon_proto::{Client, Code, ExecSpec};
use nix::unistd::Pid;

use crate::rig::{
    connect, end_idle, idle, kill, no_execs, patience, private_kib, refused, run, sh, size, start_with, talk, until,
};
use crate::support::scene::Live;
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, procs, same};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("many/in-a-row", "P10", "thousands one after the other leave nothing", in_a_row),
        Case::new("many/overlapping", "P10", "200 at once, with output on both streams", overlapping),
        Case::new("many/one-too-many", "P10", "the 257th is refused, and room comes again", one_too_many),
        Case::new("many/descriptors", "P11", "a low limit of descriptors: refused, and all else works", descriptors),
        Case::new("many/endless-output", "P10", "gigabytes of output stay within the cap", endless_output),
        Case::new("many/kept-waiting", "P8", "streams that nobody takes cost no memory", kept_waiting),
    ]
}

/// What an exec could leave behind.
#[derive(Debug, PartialEq)]
struct Left {
    descriptors: Vec<(i32, String)>,
    children: usize,
    told: (u32, usize),
}

async fn left(live: &Live, client: &Client) -> Outcome<Left> {
    let state = client.inspect().await?;
    let pid = live.pid()?;
    Ok(Left {
        descriptors: procs::descriptors(pid)?.into_iter().map(|(number, name)| (number, kind(&name))).collect(),
        children: procs::children_of(pid).len(),
        told: (state.descriptors, state.execs.len()),
    })
}

fn kind(name: &str) -> String {
    name.chars().take_while(|c| *c != ':').collect()
}

async fn nothing_more(live: &Live, client: &Client, before: &Left) -> Outcome {
    let mut now = None;
    let settled = until("everything to be given back", async || {
        now = Some(left(live, client).await?);
        Ok((now.as_ref() == Some(before)).then_some(()))
    })
    .await;
    settled.map_err(|_| format!("before {before:?}, after {now:?}").into())
}

/// Memory once a load has been over for a while.
async fn settled_memory(pid: Pid, limit: u64) -> Outcome {
    let mut seen = 0;
    let given_back = until("memory to be given back", async || {
        seen = private_kib(pid)?;
        Ok((seen <= limit).then_some(()))
    });
    let in_time = tokio::time::timeout(Duration::from_secs(8), given_back).await;
    in_time.map_err(|_| format!("{seen} KiB are private, {limit} are expected at most"))?
}

fn in_a_row(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    std::fs::write(live.dir.join("b/quiet-exec"), "")?;
    talk(async {
        let client = connect(&live).await?;
        for _ in 0..10 {
            run(&client, &sh("echo warm")).await?;
        }
        let before = left(&live, &client).await?;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let memory = private_kib(live.pid()?)?;
        let began = Instant::now();
        for number in 0..size(1000, 10_000) {
            let result = run(&client, &sh(&format!("echo {number}; exit {}", number % 100))).await?;
            same("status", u64::try_from(result.exit.status).unwrap_or(u64::MAX), number % 100)?;
            same("stdout", result.stdout, format!("{number}\n").into_bytes())?;
            if began.elapsed() > patience() * 4 / 5 {
                return Err(format!("only {number} execs in {:?}", began.elapsed()).into());
            }
        }
        nothing_more(&live, &client, &before).await?;
        // 64 results are kept.
        settled_memory(live.pid()?, memory + 96).await
    })?;
    end_idle(&live)
}

fn overlapping(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    std::fs::write(live.dir.join("b/quiet-exec"), "")?;
    talk(async {
        let client = connect(&live).await?;
        run(&client, &sh("true")).await?;
        let before = left(&live, &client).await?;
        let running: Vec<_> = (0..200_usize)
            .map(|number| {
                let client = client.clone();
                tokio::task::spawn_local(async move {
                    let script = format!("head -c {} /dev/zero; echo {number} >&2; exit {}", number * 100, number % 50);
                    (number, run(&client, &sh(&script)).await)
                })
            })
            .collect();
        for one in running {
            let (number, result) = one.await.map_err(|error| error.to_string())?;
            let result = result?;
            same("status", usize::try_from(result.exit.status).unwrap_or(usize::MAX), number % 50)?;
            same("stdout", (result.stdout.len(), result.truncated), (number * 100, false))?;
            same("stderr", result.stderr, format!("{number}\n").into_bytes())?;
        }
        nothing_more(&live, &client, &before).await
    })?;
    end_idle(&live)
}

fn one_too_many(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    std::fs::write(live.dir.join("b/quiet-exec"), "")?;
    // Held back, so that they cost little: the runtime waits until all are there.
    let orders = format!("wait {}\nnocontainer\nexit 1\n", live.dir.join("all").display());
    std::fs::write(live.dir.join("b/runtime-exec"), orders)?;
    talk(async {
        let client = connect(&live).await?;
        let mut execs = Vec::new();
        for _ in 0..256 {
            execs.push(client.exec(&sh("true"), None).await?);
        }
        refused("one more", client.exec(&sh("true"), None).await, Code::TooMany)?;
        same("execs", client.inspect().await?.execs.len(), 256)?;
        kill(&execs[7]).await?;
        execs[7].wait().await?;
        execs.push(client.exec(&sh("true"), None).await?);
        std::fs::write(live.dir.join("all"), "")?;
        no_execs(&client).await?;
        same("the last one's status", execs[256].wait().await?.exit.status, -1)
    })?;
    end_idle(&live)
}

fn descriptors(monitor: &Monitor) -> Outcome {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 40, hard)?;
    let live = start_with(monitor, "echo ready; go; exit 6", |scene| scene);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    let live = live?;
    live.log_has("ready")?;
    talk(async {
        let client = connect(&live).await?;
        let (mut running, mut refusals) = (Vec::new(), 0);
        for _ in 0..30 {
            match client.exec(&sh("exec sleep 1000"), None).await {
                Ok(exec) => running.push(exec),
                Err(error) => {
                    same("code", error.refusal().map(|refusal| refusal.code), Some(Code::TooMany))?;
                    refusals += 1;
                }
            }
        }
        check(running.len() >= 2 && refusals >= 10, format!("{} run, {refusals} were refused", running.len()))?;
        // New connections are refused with a reason as well.
        let mut peer = crate::peer::Peer::connect(&live)?;
        peer.bootstrap().ok();
        if let Some(crate::peer::Came::Abort(reason, _)) = peer.next()? {
            crate::support::contains("reason", &reason, "connections")?;
        }
        drop(peer);
        for exec in &running {
            // Its runtime has the same limit, and may have failed for it.
            kill(exec).await.ok();
            let status = exec.wait().await?.exit.status;
            check([137, -1].contains(&status), format!("status {status}"))?;
        }
        drop(running);
        no_execs(&client).await?;
        same("and again", run(&client, &sh("exit 5")).await?.exit.status, 5)
    })?;
    end_idle(&live)?;
    same("exit file", live.exit_file()?, "6".to_owned())
}

/// The monitor's memory while an exec says much more than is captured.
fn endless_output(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    let total = size(512 << 20, 8 << 30);
    let cap = 16 << 20;
    talk(async {
        let client = connect(&live).await?;
        let script = format!("head -c {total} /dev/zero; : >$D/said; until [ -e $D/end ]; do sleep 0.02; done; exit 3");
        let exec = Rc::new(client.exec(&ExecSpec { output_max: cap, ..sh(&script) }, None).await?);
        let waiting = {
            let exec = Rc::clone(&exec);
            tokio::task::spawn_local(async move { exec.wait().await })
        };
        let mut most = 0;
        while !live.dir.join("b/said").exists() {
            most = most.max(private_kib(live.pid()?)?);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        check(most <= (cap >> 10) + 2048, format!("{most} KiB were private while it said so much"))?;
        std::fs::write(live.dir.join("b/end"), "")?;
        // Handing it over takes as much once more.
        while !waiting.is_finished() {
            most = most.max(private_kib(live.pid()?)?);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        check(most <= ((2 * cap) >> 10) + 2048, format!("{most} KiB were private in the end"))?;
        let result = waiting.await.map_err(|error| error.to_string())??;
        same("result", (result.exit.status, result.truncated), (3, true))?;
        same("captured", result.stdout.len() as u64, cap)?;
        same("total", result.exit.stdout.bytes, total)?;
        settled_memory(live.pid()?, 1024).await
    })?;
    end_idle(&live)
}

/// Clients whose streams are not taken: their execs wait, and the monitor keeps a window's worth each.
fn kept_waiting(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let mut streams = Vec::new();
        for _ in 0..20 {
            let (output, events) = conmon_proto::output();
            streams.push((client.exec(&sh("exec yes"), Some(output)).await?, events));
        }
        tokio::time::sleep(Duration::from_millis(800)).await;
        let held: usize = streams.iter().map(|(_, events)| events.waiting()).sum();
        check(held < 20 * (1 << 20), format!("{held} bytes came unasked"))?;
        let private = private_kib(live.pid()?)?;
        check(private < 12 * 1024, format!("{private} KiB are private"))?;
        same("a short one beside them", run(&client, &sh("exit 9")).await?.exit.status, 9)?;
        drop(streams);
        no_execs(&client).await?;
        settled_memory(live.pid()?, 6 * 1024).await
    })?;
    end_idle(&live)
}
