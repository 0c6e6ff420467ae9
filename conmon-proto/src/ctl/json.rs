//! How values look to programs: the names of the schema, times as in exit.json, null for what is not there.

use conmon_proto::{
    Action, End, ExecResult, Exit, ExitReason, LogPolicy, LogSwitch, Peer, Sink, State, StreamState, Total, Verdict,
    Version,
};
use serde_json::{Value, json};

use crate::show;

/// A time, or null for none.
fn time(nanoseconds: i64) -> Value {
    if nanoseconds > 0 { json!(show::time(nanoseconds)) } else { Value::Null }
}

/// A text, or null for none.
fn text(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!(text) }
}

fn positive(number: i32) -> Value {
    if number > 0 { json!(number) } else { Value::Null }
}

/// Bytes as text if they are text, and otherwise in base64, each under its own name.
pub fn data(name: &str, bytes: &[u8]) -> (String, Value) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), json!(text)),
        Err(_) => (format!("{name}Base64"), json!(base64(bytes))),
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let number = (0..3).fold(0, |number, at| number << 8 | u32::from(three.get(at).copied().unwrap_or(0)));
        for digit in 0..4 {
            let shown = digit <= three.len();
            text.push(if shown { char::from(DIGITS[(number >> (18 - 6 * digit) & 63) as usize]) } else { '=' });
        }
    }
    text
}

pub fn version(version: &Version) -> Value {
    json!({
        "conward": version.conward,
        "conmon": version.conmon,
        "commit": version.commit,
        "protocol": version.protocol,
        "pid": version.pid,
        "startedAt": time(version.started_at),
    })
}

pub fn state(state: &State) -> Value {
    json!({
        "id": state.id,
        "name": text(&state.name),
        "bundle": state.bundle,
        "runtime": state.runtime,
        "phase": state.phase.word(),
        "pid": positive(state.pid),
        "monitorPid": state.monitor_pid,
        "startedAt": time(state.started_at),
        "terminal": state.terminal,
        "stdin": state.stdin,
        "rows": state.rows,
        "columns": state.columns,
        "streams": state.streams.iter().map(stream).collect::<Vec<_>>(),
        "sinks": state.sinks.iter().map(sink).collect::<Vec<_>>(),
        "clients": state.clients.iter().map(peer).collect::<Vec<_>>(),
        "execs": state.execs.iter().map(|exec| json!({
            "id": exec.id,
            "pid": positive(exec.pid),
            "startedAt": time(exec.started_at),
            "terminal": exec.terminal,
            "captured": exec.captured,
            "command": exec.command,
        })).collect::<Vec<_>>(),
        "connections": state.connections,
        "memory": {
            "private": state.memory.private,
            "resident": state.memory.resident,
            "heap": state.memory.heap,
        },
        "descriptors": state.descriptors,
        "errors": state.errors,
        "oomKills": if state.oom_kills < 0 { Value::Null } else { json!(state.oom_kills) },
        "attachSocket": text(&state.attach_socket),
        "exitFile": text(&state.exit_file),
        "processLabel": text(&state.process_label),
    })
}

fn stream(stream: &StreamState) -> Value {
    json!({
        "stream": stream.stream.word(),
        "bytes": stream.bytes,
        "records": stream.records,
        "lost": stream.lost,
        "gaps": stream.gaps,
        "open": stream.open,
        "policy": policy(stream.policy),
    })
}

fn policy(policy: LogPolicy) -> Value {
    match policy {
        LogPolicy::Pass => json!("pass"),
        LogPolicy::Limit { bytes_per_second, burst, action } => json!({
            "bytesPerSecond": bytes_per_second,
            "burst": burst,
            "action": match action { Action::BackPressure => "backPressure", Action::Drop => "drop" },
        }),
    }
}

fn sink(sink: &Sink) -> Value {
    json!({
        "driver": sink.driver,
        "path": text(&sink.path),
        "inode": sink.inode,
        "size": sink.size,
        "rotations": sink.rotations,
        "error": text(&sink.error),
    })
}

fn peer(peer: &Peer) -> Value {
    json!({
        "kind": peer.kind.word(),
        "pid": positive(peer.pid),
        "behind": peer.behind,
        "waitingFor": peer.waiting_for,
        "types": peer.types,
    })
}

pub fn exit(exit: &Exit) -> Value {
    let total = |total: Total| json!({ "bytes": total.bytes, "lost": total.lost });
    let only = |reason, value: i32| if exit.reason == reason { json!(value) } else { Value::Null };
    json!({
        "reason": exit.reason.word(),
        "status": exit.status,
        "exitCode": only(ExitReason::Exited, exit.exit_code),
        "signal": only(ExitReason::Signalled, exit.signal),
        "oomKilled": match exit.oom_killed {
            Verdict::Yes => json!(true),
            Verdict::No => json!(false),
            Verdict::Unknown | Verdict::Unrecognised => Value::Null,
        },
        "startedAt": time(exit.started_at),
        "finishedAt": time(exit.finished_at),
        "stdout": total(exit.stdout),
        "stderr": total(exit.stderr),
        "pid": positive(exit.pid),
    })
}

pub fn end(end: &End) -> Value {
    json!({
        "end": end.reason.word(),
        "exit": end.exit.as_ref().map(exit),
        "stdout": end.stdout,
        "stderr": end.stderr,
        "lost": end.lost,
    })
}

pub fn exec_result(result: &ExecResult) -> Value {
    let mut value = json!({
        "id": result.id,
        "exit": exit(&result.exit),
        "error": text(&result.error),
        "truncated": result.truncated,
        "held": result.held,
    });
    if let Some(fields) = value.as_object_mut() {
        fields.extend([data("stdout", &result.stdout), data("stderr", &result.stderr)]);
    }
    value
}

pub fn switch(switch: &LogSwitch) -> Value {
    json!({
        "driver": switch.driver,
        "path": switch.path,
        "inode": switch.inode,
        "stdout": switch.stdout,
        "stderr": switch.stderr,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_told_apart() {
        assert_eq!(data("data", b"a\n"), ("data".to_owned(), json!("a\n")));
        assert_eq!(data("data", b"\xff"), ("dataBase64".to_owned(), json!("/w==")));
        for (bytes, text) in [(&b"f"[..], "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"foob", "Zm9vYg==")] {
            assert_eq!(base64(bytes), text);
        }
    }
}
