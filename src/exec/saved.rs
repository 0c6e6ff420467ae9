//! Execs in the state that an upgrade hands over: those that run and whose output is captured, and results.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use conmon_proto::conward_capnp::{exec_result, exit};

use super::{Due, Exec, Outcome, Process, Sink, Spec};
use crate::exit::{End, Summary, Total};
use crate::rpc;
use crate::session::Session;
use crate::upgrade::state::{Given, StateError, Taken, count};
use crate::upgrade::state_capnp::exec;

impl Exec {
    pub fn save(&self, mut to: exec::Builder<'_>, given: &mut Given) {
        to.set_id(self.id);
        self.session.save(to.reborrow().init_session(), given);
        to.set_terminal(self.spec.terminal);
        to.set_stdin(self.spec.stdin);
        to.set_detached(self.spec.detached);
        to.set_command(&*self.command());
        to.set_output_max(self.spec.output_max as u64);
        if let Some((at, _)) = self.due {
            let left = at.saturating_duration_since(Instant::now()).as_millis();
            to.set_time_left(u64::try_from(left).unwrap_or(u64::MAX).max(1));
        }
        match &self.sink {
            Sink::Capture { streams, truncated, .. } => {
                to.set_stdout(&streams[0]);
                to.set_stderr(&streams[1]);
                to.set_truncated(*truncated);
            }
            Sink::Remote(_) | Sink::Nowhere => to.set_forgotten(true),
        }
    }

    pub fn restore(from: exec::Reader<'_>, taken: &mut Taken) -> Result<Exec, StateError> {
        let session = Session::restore(from.get_session()?, taken)?;
        let max = usize::try_from(count(from.get_output_max(), "outputMax")?).unwrap_or(usize::MAX);
        let streams = [from.get_stdout()?.to_vec(), from.get_stderr()?.to_vec()];
        let sink = match from.get_forgotten() {
            true => Sink::Nowhere,
            false => Sink::Capture { streams, max, truncated: from.get_truncated() },
        };
        // Only for people: it runs already.
        let process = Process::Named(from.get_command()?.to_str().map_err(capnp::Error::from)?.to_owned());
        let spec = Spec {
            process,
            terminal: from.get_terminal(),
            stdin: from.get_stdin(),
            window: None,
            timeout: None,
            output_max: max,
            detached: from.get_detached(),
        };
        // A process that was killed because its time was up is known by its end.
        let due = if session.end.is_some() { Due::Killed } else { Due::Timeout };
        let left = Some(from.get_time_left()).filter(|left| *left > 0).map(Duration::from_millis);
        let due = left.and_then(|left| Instant::now().checked_add(left)).map(|at| (at, due));
        let (waiters, pidfile, object) = (Vec::new(), PathBuf::new(), None);
        let (held, settled, rest) = (false, false, None);
        Ok(Exec { id: from.get_id(), session, sink, spec, due, waiters, held, settled, rest, pidfile, object })
    }
}

impl Outcome {
    /// A message of the service's own schema.
    pub fn save(&self) -> Vec<u8> {
        let mut message = capnp::message::Builder::new_default();
        rpc::fill::outcome(message.init_root(), self);
        capnp::serialize::write_message_to_words(&message)
    }

    pub fn restore(mut from: &[u8]) -> Result<Outcome, StateError> {
        let mut limits = capnp::message::ReaderOptions::new();
        limits.traversal_limit_in_words(Some(from.len() / 8 + 64)).nesting_limit(8);
        // Bytes within a message begin at a word.
        let message = capnp::serialize::read_message(&mut from, limits)?;
        let from: exec_result::Reader<'_> = message.get_root()?;
        Ok(Outcome {
            id: from.get_id(),
            exit: summary(from.get_exit()?)?,
            error: from.get_error()?.as_bytes().to_vec(),
            captured: [from.get_stdout()?.to_vec(), from.get_stderr()?.to_vec()],
            truncated: from.get_truncated(),
            held: from.get_held(),
        })
    }
}

fn summary(from: exit::Reader<'_>) -> Result<Summary, StateError> {
    let total = |total: conmon_proto::conward_capnp::total::Reader<'_>| Total {
        bytes: total.get_bytes(),
        lost: total.get_lost(),
    };
    let time = |nanos: i64| SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    Ok(Summary {
        end: match from.get_reason()? {
            exit::Reason::NeverStarted => None,
            exit::Reason::Exited => Some(End::Exited(from.get_exit_code())),
            exit::Reason::Signalled => Some(End::Signaled(from.get_signal())),
            exit::Reason::TimedOut => Some(End::TimedOut),
            exit::Reason::Unknown => Some(End::Unknown),
        },
        oom_killed: match from.get_oom_killed()? {
            exit::Verdict::Unknown => None,
            exit::Verdict::No => Some(false),
            exit::Verdict::Yes => Some(true),
        },
        pid: from.get_pid(),
        started: time(from.get_started_at()),
        finished: time(from.get_finished_at()),
        totals: [total(from.get_stdout()?), total(from.get_stderr()?)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_handed_over() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123);
        for end in [None, Some(End::Exited(3)), Some(End::Signaled(9)), Some(End::TimedOut), Some(End::Unknown)] {
            let totals = [Total { bytes: 5, lost: 0 }, Total { bytes: 1 << 40, lost: 2 }];
            let exit = Summary { end, oom_killed: Some(true), pid: 7, started: at, finished: at, totals };
            let captured = [b"out\0".to_vec(), Vec::new()];
            let before = Outcome { id: 4, exit, error: b"why".to_vec(), captured, truncated: true, held: false };
            assert_eq!(Outcome::restore(&before.save()).unwrap(), before);
        }
        assert!(Outcome::restore(b"nonsense").is_err());
    }
}
