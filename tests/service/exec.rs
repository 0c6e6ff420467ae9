//! What an exec tells and takes: results, signals, terminals, input, the words that the runtime gets.

use std::fs;
use std::time::{Duration, Instant};

use conmon_proto::{Code, EndReason, ExecSpec, ExitReason, output};

use crate::rig::{
    MIB, collect, connect, end_idle, gone, idle, kill, no_execs, pid_of, refused, run, sh, start, talk, until,
};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, contains, procs, same, wait};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("exec/captured", "P10", "both streams, exit code, totals", captured),
        Case::new("exec/signalled", "P10", "an exec that is killed by a signal", signalled),
        Case::new("exec/streamed", "P10", "both streams to a client, then the end", streamed),
        Case::new("exec/waits", "P10", "several wait for one exec; output is handed over once", waits),
        Case::new("exec/words", "P10", "what the runtime is told of environment, user, groups and so on", words),
        Case::new("exec/object", "P10", "a process object reaches the runtime as it is", object),
        Case::new("exec/contradictions", "P11", "requests that contradict themselves are refused", contradictions),
        Case::new("exec/not-found", "P16", "the runtime's own words, when it never started", not_found),
        Case::new("exec/silent-runtime", "P16", "a runtime that fails without a word", silent_runtime),
        Case::new("exec/runtime-hangs", "P10", "the timeout counts from the request", runtime_hangs),
        Case::new("exec/stdin", "P10", "typed input, and its end", stdin),
        Case::new("exec/stdin-closed", "P10", "a process that reads no more", stdin_closed),
        Case::new("exec/terminal", "P10", "a terminal: size, typing, resize", terminal),
        Case::new("exec/held", "P10", "`sleep &` returns at once and is flagged", held),
        Case::new("exec/held-talks", "P10", "who holds the pipes and talks on is not waited for", held_talks),
        Case::new("exec/timeout", "P10", "children, setsid ones and daemons end with it", timeout),
        Case::new("exec/timeout-terminal", "P10", "the same with a terminal", timeout_terminal),
        Case::new("exec/timeout-in-time", "P10", "one that ends in time is no timeout", in_time),
        Case::new("exec/output-max", "P10", "what is too much is counted and dropped", output_max),
        Case::new("exec/output-limit", "P10", "64 MiB can be captured, more is refused", output_limit),
        Case::new("exec/not-running", "P10", "no exec before the container is known", not_running),
        Case::new("exec/container-ends", "P10", "the result is told and the monitor ends on time", container_ends),
    ]
}

fn captured(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let result = run(&client, &sh("printf 'a\\0b'; echo no >&2; exit 42")).await?;
        same("stdout", result.stdout, b"a\0b".to_vec())?;
        same("stderr", result.stderr, b"no\n".to_vec())?;
        let exit = result.exit;
        same("end", (exit.reason, exit.exit_code, exit.status), (ExitReason::Exited, 42, 42))?;
        same("totals", (exit.stdout.bytes, exit.stderr.bytes), (3, 3))?;
        check(exit.pid > 0 && exit.finished_at >= exit.started_at && exit.started_at > 0, format!("{exit:?}"))?;
        same("flags and error", (result.truncated, result.held, result.error), (false, false, String::new()))?;
        no_execs(&client).await
    })?;
    // Nothing of it is in the container's log, nor is there a file of it left.
    same("log", live.plain_log()?, vec!["stdout F ready".to_owned()])?;
    let left = fs::read_dir(live.dir.join("b"))?.flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with(".conward")
    });
    same("files left", left.count(), 0)?;
    end_idle(&live)
}

fn signalled(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let exec = client.exec(&sh("echo $$ >$D/inner; exec sleep 100"), None).await?;
        pid_of(&live, "inner")?;
        refused("nonsense", exec.signal(0).await, Code::Invalid)?;
        exec.signal(15).await?;
        let exit = exec.wait().await?.exit;
        same("end", (exit.reason, exit.signal, exit.status), (ExitReason::Signalled, 15, 143))?;
        check(exec.signal(15).await.is_err(), "it is over")
    })?;
    end_idle(&live)
}

fn streamed(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let (output, mut events) = output();
        let exec = client.exec(&sh("echo out; echo err >&2; exit 3"), Some(output)).await?;
        let (stdout, stderr, end) = collect(&mut events).await?;
        same("output", (stdout, stderr), (b"out\n".to_vec(), b"err\n".to_vec()))?;
        same("end", (end.reason, end.stdout, end.stderr, end.lost), (EndReason::Ended, 4, 4, 0))?;
        same("status in the end", end.exit.map(|exit| exit.status), Some(3))?;
        let result = exec.wait().await?;
        same("nothing was captured", (result.stdout.len(), result.exit.status), (0, 3))?;
        no_execs(&client).await
    })?;
    end_idle(&live)
}

fn waits(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let exec = std::rc::Rc::new(client.exec(&sh("read -r _; echo once; exit 9"), None).await?);
        kill_free(&exec).await?;
        let exec = std::rc::Rc::new(client.exec(&sh("sleep 0.3; echo once; exit 9"), None).await?);
        let waiting: Vec<_> = (0..5)
            .map(|_| {
                let exec = std::rc::Rc::clone(&exec);
                tokio::task::spawn_local(async move { exec.wait().await })
            })
            .collect();
        let other = connect(&live).await?;
        refused("still running", other.exec_result(exec.id).await, Code::Busy)?;
        let mut bytes = 0;
        for one in waiting {
            let result = one.await.map_err(|error| error.to_string())??;
            same("status", result.exit.status, 9)?;
            bytes += result.stdout.len();
        }
        let later = other.exec_result(exec.id).await?;
        same("status", (later.exit.status, later.exit.stdout.bytes), (9, 5))?;
        same("handed over once", (bytes, later.stdout.len()), (5, 0))?;
        refused("unknown", other.exec_result(4711).await, Code::NotFound).map(drop)
    })?;
    end_idle(&live)
}

/// Stdin that was not asked for is at its end at once.
async fn kill_free(exec: &conmon_proto::Exec) -> Outcome {
    same("status without stdin", exec.wait().await?.exit.status, 9)
}

fn seen(live: &crate::support::scene::Live) -> Outcome<Vec<String>> {
    let seen: serde_json::Value = serde_json::from_slice(&wait::for_file(&live.dir.join("b/seen-exec"))?)?;
    let words = seen["argv"].as_array().into_iter().flatten();
    Ok(words.map(|word| word.as_str().unwrap_or_default().to_owned()).collect())
}

fn words(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    let spec = ExecSpec {
        env: vec!["ONE=1".to_owned(), "TWO=a b".to_owned()],
        cwd: "/proc".to_owned(),
        user: "12:34".to_owned(),
        additional_gids: vec![5, 6],
        capabilities: vec!["CAP_CHOWN".to_owned()],
        no_new_privileges: true,
        ..sh("echo $ONE $TWO; pwd")
    };
    talk(async {
        let client = connect(&live).await?;
        same(
            "stdout",
            String::from_utf8_lossy(&run(&client, &spec).await?.stdout).into_owned(),
            "1 a b\n/proc\n".into(),
        )
    })?;
    let words = seen(&live)?;
    let at = words.iter().position(|word| word == "exec").ok_or("there is `exec`")?;
    let options = words[at..].join(" ");
    for part in [
        "--detach",
        "--env ONE=1 --env TWO=a b",
        "--cwd /proc",
        "--user 12:34",
        "--additional-gids 5 --additional-gids 6",
        "--cap CAP_CHOWN",
        "--no-new-privs",
        "c0ffee0123456789abcd /bin/sh -c echo",
    ] {
        contains("the runtime's words", &options, part)?;
    }
    check(!options.contains("--tty") && !options.contains("--process"), options)?;
    end_idle(&live)
}

fn object(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    let process = serde_json::json!({
        "args": ["/bin/sh", "-c", "echo $WHO; pwd"], "env": ["WHO=json"], "cwd": "/proc", "terminal": false,
    });
    talk(async {
        let client = connect(&live).await?;
        let spec = ExecSpec { process: process.to_string().into_bytes(), ..ExecSpec::default() };
        let result = run(&client, &spec).await?;
        same("stdout", String::from_utf8_lossy(&result.stdout).into_owned(), "json\n/proc\n".to_owned())?;
        let spec = ExecSpec { process: b"{ not json".to_vec(), ..ExecSpec::default() };
        same("nonsense", run(&client, &spec).await?.exit.reason, ExitReason::NeverStarted)
    })?;
    check(!seen(&live)?.iter().any(|word| word == "--env"), "no words besides")?;
    end_idle(&live)
}

fn contradictions(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let both = ExecSpec { process: b"{}".to_vec(), ..sh("true") };
        refused("words and object", client.exec(&both, None).await, Code::Invalid)?;
        refused("neither", client.exec(&ExecSpec::default(), None).await, Code::Invalid)?;
        let exec = client.exec(&sh("echo $$ >$D/inner; exec sleep 100"), None).await?;
        pid_of(&live, "inner")?;
        refused("resize", exec.resize(3, 4).await, Code::NoTerminal)?;
        refused("closeStdin", exec.close_stdin().await, Code::NoStdin)?;
        check(exec.write(b"x").await.is_err(), "there is no stdin")?;
        kill(&exec).await?;
        same("status", exec.wait().await?.exit.status, 137)?;
        // A word with a NUL cannot be given to a program.
        let broken = client.exec(&ExecSpec::command(["/bin/echo", "a\0b"]), None).await;
        check(broken.is_err(), "a NUL in a word")?;
        same("and it goes on", run(&client, &sh("exit 5")).await?.exit.status, 5)
    })?;
    end_idle(&live)
}

fn not_found(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        for _ in 0..3 {
            let result = run(&client, &ExecSpec::command(["/not/there"])).await?;
            same("reason", (result.exit.reason, result.exit.status), (ExitReason::NeverStarted, -1))?;
            contains("error", &result.error, "no such file or directory")?;
            same("output", (result.stdout.len(), result.stderr.len(), result.held), (0, 0, false))?;
        }
        let (output, mut events) = output();
        let exec = client.exec(&ExecSpec::command(["/not/there"]), Some(output)).await?;
        let (stdout, stderr, end) = collect(&mut events).await?;
        same("streamed", (stdout.len(), stderr.len()), (0, 0))?;
        same("its end", end.exit.map(|exit| exit.reason), Some(ExitReason::NeverStarted))?;
        contains("its error", &exec.wait().await?.error, "no such file or directory")?;
        no_execs(&client).await
    })?;
    end_idle(&live)
}

fn silent_runtime(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    fs::write(live.dir.join("b/runtime-exec"), "nocontainer\nexit 4\n")?;
    talk(async {
        let client = connect(&live).await?;
        let result = run(&client, &sh("true")).await?;
        same("reason", result.exit.reason, ExitReason::NeverStarted)?;
        contains("error", &result.error, "fake-runtime")?;
        contains("error", &result.error, "4")?;
        let terminal = ExecSpec { terminal: true, ..sh("true") };
        fs::write(live.dir.join("b/runtime-exec"), "noconsole\n")?;
        let result = run(&client, &terminal).await?;
        same("reason", result.exit.reason, ExitReason::NeverStarted)?;
        contains("error", &result.error, "terminal")?;
        no_execs(&client).await
    })?;
    end_idle(&live)
}

fn runtime_hangs(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    fs::write(live.dir.join("b/runtime-exec"), "nocontainer\nhang\n")?;
    talk(async {
        let client = connect(&live).await?;
        let began = Instant::now();
        let result = run(&client, &ExecSpec { timeout: 200, ..sh("true") }).await?;
        check(began.elapsed() < Duration::from_secs(3), format!("it took {:?}", began.elapsed()))?;
        same("reason", result.exit.reason, ExitReason::NeverStarted)?;
        contains("error", &result.error, "time")?;
        // Whoever asked goes away: the runtime goes, too.
        let exec = client.exec(&sh("true"), None).await?;
        drop(exec);
        no_execs(&client).await
    })?;
    end_idle(&live)
}

fn stdin(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let exec = client.exec(&ExecSpec { stdin: true, ..sh("cat; echo over >&2") }, None).await?;
        for text in [&b"one\n"[..], b"", b"two\n"] {
            exec.write(text).await?;
        }
        exec.close_stdin().await?;
        check(exec.write(b"three").await.is_err(), "stdin is closed")?;
        let result = exec.wait().await?;
        same("output", (result.stdout, result.stderr), (b"one\ntwo\n".to_vec(), b"over\n".to_vec()))?;
        check(exec.write(b"late").await.is_err(), "it is over")?;
        refused("late", exec.close_stdin().await, Code::NotFound).map(drop)
    })?;
    end_idle(&live)
}

fn stdin_closed(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let spec = ExecSpec { stdin: true, ..sh("read -r line; echo $line; exec <&-; sleep 0.2; exit 4") };
        let exec = client.exec(&spec, None).await?;
        exec.write(b"line\n").await?;
        check(exec.write(&vec![b'x'; 400_000]).await.is_err(), "what was not taken is no success")?;
        check(exec.write(b"more").await.is_err(), "nor is more")?;
        let result = exec.wait().await?;
        same("result", (result.stdout, result.exit.status), (b"line\n".to_vec(), 4))?;
        no_execs(&client).await
    })?;
    end_idle(&live)
}

fn terminal(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let script = "stty size; read -r x; stty size; [ -t 1 ] && echo \"got $x\"; exit 7";
        let spec = ExecSpec { terminal: true, rows: 11, columns: 22, ..sh(script) };
        let (output, mut events) = output();
        let exec = client.exec(&spec, Some(output)).await?;
        match events.next().await {
            Some(conmon_proto::Event::Write { data, offset: 0, .. }) => same("size", data, b"11 22\r\n".to_vec())?,
            other => return Err(format!("expected the size, saw {other:?}").into()),
        }
        exec.resize(33, 44).await?;
        exec.write(b"abc\n").await?;
        let (stdout, _, end) = collect(&mut events).await?;
        let text = String::from_utf8_lossy(&stdout).into_owned();
        contains("terminal", &text, "33 44\r\n")?;
        contains("terminal", &text, "got abc\r\n")?;
        same("status", end.exit.map(|exit| exit.status), Some(7))?;
        no_execs(&client).await?;
        // Captured, and as a process object.
        let process = serde_json::json!({"args": ["/bin/sh", "-c", "stty size"], "cwd": "/", "terminal": true});
        let spec = ExecSpec {
            process: process.to_string().into_bytes(),
            terminal: true,
            rows: 5,
            columns: 6,
            ..ExecSpec::default()
        };
        same("captured", run(&client, &spec).await?.stdout, b"5 6\r\n".to_vec())
    })?;
    end_idle(&live)
}

fn held(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let began = Instant::now();
        let result = run(&client, &sh("echo before; sleep 1000 & echo $! >$D/inner; exit 3")).await?;
        check(began.elapsed() < Duration::from_secs(2), format!("it took {:?}", began.elapsed()))?;
        same("result", (result.held, result.exit.status, result.stdout), (true, 3, b"before\n".to_vec()))?;
        check(procs::alive(pid_of(&live, "inner")?), "who holds the pipes lives on")?;
        let (output, mut events) = output();
        let exec = client.exec(&sh("echo before; sleep 1000 & exit 4"), Some(output)).await?;
        let (stdout, _, end) = collect(&mut events).await?;
        same("streamed", (stdout, end.reason), (b"before\n".to_vec(), EndReason::Held))?;
        same("flag", exec.wait().await?.held, true)?;
        // One without the pipes is nobody's business.
        same("flag", run(&client, &sh("sleep 1000 >/dev/null 2>&1 &")).await?.held, false)?;
        no_execs(&client).await
    })?;
    end_idle(&live)
}

fn held_talks(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let began = Instant::now();
        let result = run(&client, &sh("yes & exit 3")).await?;
        check(began.elapsed() < Duration::from_secs(5), format!("it took {:?}", began.elapsed()))?;
        same("result", (result.held, result.exit.status), (true, 3))?;
        check(result.stdout.iter().all(|byte| b"y\n".contains(byte)), "only its own output")?;
        no_execs(&client).await
    })?;
    end_idle(&live)
}

/// A shell that leaves three kinds of descendants behind, each with the pipes.
const TREE: &str = "sleep 1000 & echo $! >$D/child; \
     setsid sh -c 'echo $$ >$D/leader; exec sleep 1000' & \
     (setsid sh -c '(echo x; exec sh -c \"echo \\$\\$ >$D/daemon; exec sleep 1000\") &' &); \
     sleep 1000";

fn timeout_of(monitor: &Monitor, terminal: bool) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let began = Instant::now();
        let spec = ExecSpec { timeout: 700, terminal, ..sh(&format!("echo begun; {TREE}")) };
        let result = run(&client, &spec).await?;
        check(began.elapsed() < Duration::from_secs(4), format!("it took {:?}", began.elapsed()))?;
        same("reason", result.exit.reason, ExitReason::TimedOut)?;
        contains("stdout", &String::from_utf8_lossy(&result.stdout), "begun")?;
        // What has left both family and pipes cannot be told from others; a terminal is no pipe.
        let names = ["child", "leader", "daemon"];
        for name in &names[..if terminal { 2 } else { 3 }] {
            gone(name, pid_of(&live, name)?)?;
        }
        no_execs(&client).await
    })?;
    end_idle(&live)
}

fn timeout(monitor: &Monitor) -> Outcome {
    timeout_of(monitor, false)
}

fn timeout_terminal(monitor: &Monitor) -> Outcome {
    timeout_of(monitor, true)
}

fn in_time(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let result = run(&client, &ExecSpec { timeout: 20_000, ..sh("sleep 0.1; exit 8") }).await?;
        same("end", (result.exit.reason, result.exit.status), (ExitReason::Exited, 8))
    })?;
    end_idle(&live)
}

fn output_max(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let script = "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2";
        let result = run(&client, &ExecSpec { output_max: 4_000_000, ..sh(script) }).await?;
        same("flag", result.truncated, true)?;
        same("captured", (result.stdout.len(), result.stderr.len()), (3_000_000, 1_000_000))?;
        same("totals", (result.exit.stdout.bytes, result.exit.stderr.bytes), (3_000_000, 2_000_000))?;
        let result = run(&client, &ExecSpec { output_max: 0, ..sh("echo x") }).await?;
        same("nothing", (result.truncated, result.stdout.len(), result.exit.stdout.bytes), (true, 0, 2))?;
        let exact = run(&client, &ExecSpec { output_max: 2, ..sh("echo x") }).await?;
        same("exactly so much", (exact.truncated, exact.stdout), (false, b"x\n".to_vec()))
    })?;
    end_idle(&live)
}

fn output_limit(monitor: &Monitor) -> Outcome {
    let live = idle(monitor)?;
    talk(async {
        let client = connect(&live).await?;
        let most = 64 * MIB;
        let spec = ExecSpec { output_max: most, ..sh("head -c 70000000 /dev/zero") };
        let result = run(&client, &spec).await?;
        same("captured", (result.stdout.len() as u64, result.truncated), (most, true))?;
        same("total", result.exit.stdout.bytes, 70_000_000)?;
        refused("more", client.exec(&ExecSpec { output_max: most + 1, ..sh("true") }, None).await, Code::Invalid)?;
        refused("all", client.exec(&ExecSpec { output_max: u64::MAX, ..sh("true") }, None).await, Code::Invalid)?;
        until("memory to be given back", async || Ok((client.inspect().await?.memory.private < 4 * MIB).then_some(())))
            .await
    })?;
    end_idle(&live)
}

fn not_running(monitor: &Monitor) -> Outcome {
    let mut scene = crate::support::scene::Scene::create(monitor)?;
    let go = scene.dir.join("go-on");
    scene.script("go; exit 6")?.runtime(&format!("wait-after {}\n", go.display()))?;
    let live = scene.spawn()?;
    talk(async {
        let client = connect(&live).await?;
        refused("exec", client.exec(&sh("true"), None).await, Code::NotRunning)?;
        fs::write(&go, "")?;
        until("an exec to be possible", async || Ok(run(&client, &sh("true")).await.ok())).await.map(drop)
    })?;
    let mut live = live;
    live.front_end()?;
    end_idle(&live)
}

fn container_ends(monitor: &Monitor) -> Outcome {
    for delay in [0, 1, 3, 10, 30] {
        let live = start(monitor, "echo ready; go; exit 6")?;
        live.log_has("ready")?;
        talk(async {
            let client = connect(&live).await?;
            let exec = client.exec(&sh("echo $$; exec sleep 1000"), None).await?;
            tokio::time::sleep(Duration::from_millis(delay)).await;
            let asked = Instant::now();
            live.go()?;
            let result = exec.wait().await?;
            check(asked.elapsed() < Duration::from_secs(2), format!("it took {:?}", asked.elapsed()))?;
            match result.exit.reason {
                // The fake runtime's exec outlives its container; a real one ends with it.
                ExitReason::Unknown => check(result.held, format!("{result:?}")),
                ExitReason::NeverStarted => check(!result.error.is_empty(), format!("{result:?}")),
                _ => Err(format!("{result:?}").into()),
            }
        })?;
        same("status", live.end()?, 6)?;
    }
    Ok(())
}
