//! `inspect`: everything that a monitor knows.

use std::fmt::Write;

use conmon_proto::{Action, LogPolicy, State};

use crate::fail::{Done, OK};
use crate::line::{Line, print, print_json};
use crate::show::{age, bytes, now, plain, time};
use crate::{json, target};

pub async fn run(mut line: Line) -> Done {
    let (container, []) = target::words(&mut line, [])?;
    let (client, target) = target::client(&line, container.as_deref()).await?;
    let state = target.call(client.inspect()).await?;
    if line.json {
        return print_json(&json::state(&state));
    }
    print(&text(&state, now()))?;
    Ok(OK)
}

/// A fact per line; what there may be several of has lines of its own.
fn text(state: &State, now: i64) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<14} {}", plain(&value));
        }
    };
    fact("container", state.id.clone());
    fact("name", state.name.clone());
    fact("phase", state.phase.to_string());
    fact("pid", number(state.pid));
    fact("started", format!("{} ({} ago)", time(state.started_at), age(state.started_at, now)));
    fact("monitor", state.monitor_pid.to_string());
    fact("bundle", state.bundle.clone());
    fact("runtime", state.runtime.clone());
    if state.terminal {
        fact("terminal", format!("{} rows, {} columns", state.rows, state.columns));
    }
    fact("stdin", if state.stdin { "open" } else { "closed" }.to_owned());
    for stream in &state.streams {
        let (open, policy) = (if stream.open { "" } else { ", closed" }, policy(stream.policy));
        let lost = format!("{} lost in {} gaps", bytes(stream.lost), stream.gaps);
        let all = format!("{} bytes, {} records, {lost}{open}{policy}", stream.bytes, stream.records);
        fact(stream.stream.word(), all);
    }
    for sink in &state.sinks {
        let error = if sink.error.is_empty() { String::new() } else { format!(", FAILS: {}", sink.error) };
        let rotated = format!("{}, {} rotations, inode {}", bytes(sink.size), sink.rotations, sink.inode);
        fact("log", format!("{} {} ({rotated}){error}", sink.driver, sink.path));
    }
    for peer in &state.clients {
        let behind = if peer.behind { format!(", behind by {}", bytes(peer.waiting_for)) } else { String::new() };
        let types = if peer.types { ", may type" } else { "" };
        fact("client", format!("pid {} by {}{types}{behind}", peer.pid, peer.kind));
    }
    for exec in &state.execs {
        let since = age(exec.started_at, now);
        fact(
            "exec",
            format!("{}: pid {}, {since}, {} captured: {}", exec.id, exec.pid, bytes(exec.captured), exec.command),
        );
    }
    let memory = &state.memory;
    let all = (bytes(memory.private), bytes(memory.resident), bytes(memory.heap));
    fact("memory", format!("{} private, {} resident, {} of heap", all.0, all.1, all.2));
    fact("descriptors", state.descriptors.to_string());
    // We are one of them.
    fact(
        "connections",
        if state.connections > 1 { format!("{}, this one included", state.connections) } else { "this one".to_owned() },
    );
    fact("oom kills", if state.oom_kills < 0 { "unknown".to_owned() } else { state.oom_kills.to_string() });
    fact("attach socket", state.attach_socket.clone());
    fact("exit file", state.exit_file.clone());
    fact("label", state.process_label.clone());
    state.errors.iter().for_each(|error| fact("complaint", error.clone()));
    text
}

fn number(pid: i32) -> String {
    if pid > 0 { pid.to_string() } else { "none".to_owned() }
}

fn policy(policy: LogPolicy) -> String {
    match policy {
        LogPolicy::Pass => String::new(),
        LogPolicy::Limit { bytes_per_second, burst, action } => {
            let then = if action == Action::Drop { "more is dropped" } else { "then the container waits" };
            format!(", at most {}/s and {} at once, {then}", bytes(bytes_per_second), bytes(burst))
        }
    }
}
