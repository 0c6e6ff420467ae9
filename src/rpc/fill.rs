//! From our own types to those of the schema.

use std::time::{SystemTime, UNIX_EPOCH};

use conmon_proto::conward_capnp::{self as wire, exec_result, exit, log_policy, log_switch, refusal, total};

use crate::command::{Code, Refusal, Switch};
use crate::exec::Outcome;
use crate::exit::{End, Summary, Total};
use crate::policy::{Action, Policy};
use crate::stream::Stream;

pub const fn stream(stream: Stream) -> wire::Stream {
    match stream {
        Stream::Stdout => wire::Stream::Stdout,
        Stream::Stderr => wire::Stream::Stderr,
    }
}

pub fn refusal(mut to: refusal::Builder<'_>, from: &Refusal) {
    to.set_code(match from.code {
        Code::Failed => refusal::Code::Failed,
        Code::Invalid => refusal::Code::Invalid,
        Code::NotRunning => refusal::Code::NotRunning,
        Code::NoTerminal => refusal::Code::NoTerminal,
        Code::NoStdin => refusal::Code::NoStdin,
        Code::NoHistory => refusal::Code::NoHistory,
        Code::NotFound => refusal::Code::NotFound,
        Code::TooMany => refusal::Code::TooMany,
        Code::Busy => refusal::Code::Busy,
    });
    to.set_text(&from.text);
    to.set_errno(from.errno);
}

/// Nanoseconds since 1970.
pub fn nanos(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or(0)
}

pub fn exit(mut to: exit::Builder<'_>, from: &Summary) {
    to.set_status(from.end.map_or(-1, End::status));
    let (reason, code, signal) = match from.end {
        None => (exit::Reason::NeverStarted, 0, 0),
        Some(End::Exited(code)) => (exit::Reason::Exited, code, 0),
        Some(End::Signaled(signal)) => (exit::Reason::Signalled, 0, signal),
        Some(End::TimedOut) => (exit::Reason::TimedOut, 0, 0),
        Some(End::Unknown) => (exit::Reason::Unknown, 0, 0),
    };
    to.set_reason(reason);
    to.set_exit_code(code);
    to.set_signal(signal);
    to.set_oom_killed(match from.oom_killed {
        None => exit::Verdict::Unknown,
        Some(false) => exit::Verdict::No,
        Some(true) => exit::Verdict::Yes,
    });
    to.set_pid(from.pid);
    to.set_started_at(nanos(from.started));
    to.set_finished_at(nanos(from.finished));
    sum(to.reborrow().init_stdout(), &from.totals[0]);
    sum(to.init_stderr(), &from.totals[1]);
}

fn sum(mut to: total::Builder<'_>, from: &Total) {
    to.set_bytes(from.bytes);
    to.set_lost(from.lost);
}

pub fn outcome(mut to: exec_result::Builder<'_>, from: &Outcome) {
    to.set_id(from.id);
    exit(to.reborrow().init_exit(), &from.exit);
    to.set_error(&*String::from_utf8_lossy(&from.error));
    to.set_stdout(&from.captured[0]);
    to.set_stderr(&from.captured[1]);
    to.set_truncated(from.truncated);
    to.set_held(from.held);
}

pub fn switch(mut to: log_switch::Builder<'_>, from: &Switch) {
    to.set_driver(from.driver);
    to.set_path(&*from.path.to_string_lossy());
    to.set_inode(from.inode);
    to.set_stdout(from.offsets[0]);
    to.set_stderr(from.offsets[1]);
}

pub fn policy(mut to: log_policy::Builder<'_>, from: Policy) {
    match from {
        Policy::Pass => to.set_pass(()),
        Policy::Limit { rate, burst, action } => {
            let mut limit = to.init_limit();
            limit.set_bytes_per_second(rate);
            limit.set_burst(burst);
            limit.set_action(match action {
                Action::BackPressure => log_policy::Action::BackPressure,
                Action::Drop => log_policy::Action::Drop,
            });
        }
    }
}
