//! The session in the state that an upgrade hands over.

use std::time::{Duration, SystemTime};

use super::{Phase, Process, Session};
use crate::exit::End;
use crate::stdio::{Input, Output};
use crate::stream::Stream;
use crate::upgrade::state::{Given, StateError, Taken, count};
use crate::upgrade::state_capnp::session;

impl Session {
    /// Saves a session that runs; in other phases there is more than this.
    pub fn save(&self, mut to: session::Builder<'_>, given: &mut Given) {
        if let Some(process) = &self.process {
            let since = process.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            to.set_pid(process.pid);
            to.set_pidfd(given.give_if(process.pidfd.as_ref()));
            to.set_started_seconds(since.as_secs());
            to.set_started_nanos(since.subsec_nanos());
        }
        let [stdout, stderr] = &self.outputs;
        if let Some(output) = stdout {
            output.save(to.reborrow().init_stdout(), given);
        }
        if let Some(output) = stderr {
            output.save(to.reborrow().init_stderr(), given);
        }
        self.input.save(to.reborrow().init_input(), given);
        to.set_terminal(given.give_if(self.terminal.as_ref()));
        if let Some((rows, columns)) = self.window {
            to.set_has_window(true);
            to.set_rows(rows);
            to.set_columns(columns);
        }
        let typed: Vec<u8> = self.typed.iter().flat_map(|(bytes, _)| bytes).copied().collect();
        to.set_typed(&typed);
        to.set_closing(self.closing);
        to.set_timed_out(self.end == Some(End::TimedOut));
        to.set_closed_stdout(self.closed_bytes[0]);
        to.set_closed_stderr(self.closed_bytes[1]);
    }

    pub fn restore(from: session::Reader<'_>, taken: &mut Taken) -> Result<Session, StateError> {
        let stdout = from.has_stdout().then(|| Output::restore(Stream::Stdout, from.get_stdout()?, taken));
        let stderr = from.has_stderr().then(|| Output::restore(Stream::Stderr, from.get_stderr()?, taken));
        let outputs = [stdout.transpose()?, stderr.transpose()?];
        let mut session = Session::new(Input::restore(from.get_input()?, taken)?, outputs);
        session.phase = Phase::Running;
        session.process = Some(process(from, taken)?);
        session.terminal = taken.take_if(from.get_terminal())?;
        session.window = from.get_has_window().then(|| (from.get_rows(), from.get_columns()));
        session.end = from.get_timed_out().then_some(End::TimedOut);
        let typed = from.get_typed()?;
        if !typed.is_empty() {
            session.typed.push_back((typed.to_vec(), None));
        }
        session.closing = from.get_closing();
        session.closed_bytes =
            [count(from.get_closed_stdout(), "closedStdout")?, count(from.get_closed_stderr(), "closedStderr")?];
        Ok(session)
    }
}

fn process(from: session::Reader<'_>, taken: &mut Taken) -> Result<Process, StateError> {
    let pid = from.get_pid();
    if pid <= 0 {
        return Err(StateError::Value("pid"));
    }
    let nanos = Some(from.get_started_nanos()).filter(|nanos| *nanos < 1_000_000_000);
    let since = Duration::new(from.get_started_seconds(), nanos.ok_or(StateError::Value("startedNanos"))?);
    let started = SystemTime::UNIX_EPOCH.checked_add(since).ok_or(StateError::Value("startedSeconds"))?;
    Ok(Process { pid, pidfd: taken.take_if(from.get_pidfd())?, started })
}
