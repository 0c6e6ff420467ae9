//! One supervised process: the container's first one, or an exec.
//!
//! Its life is a row of phases. The runtime is our child; what it starts becomes our child too when the runtime ends,
//! since we are its subreaper.

mod saved;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::SystemTime;

use mio::Registry;
use mio::unix::SourceFd;

use crate::console::Console;
use crate::exit::{End, Total};
use crate::rpc::Answer;
use crate::runtime::Complaint;
use crate::stdio::{Input, Output};
use crate::stream::Stream;
use crate::sys::{self, Status};

/// Which session; numbers count up and are not used again.
pub type Id = u32;

/// The container's first process.
pub const CONTAINER: Id = 0;

/// Where a session is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// An exec waits for its second start message; clients and resizes come in already.
    Held,
    /// The runtime runs.
    Starting,
    /// The supervised process runs.
    Running,
    /// It has ended; its last output is still to be drained.
    Ended,
    /// The runtime, or we, could not start it.
    Failed,
}

impl Phase {
    /// The process has ended, or never was.
    pub fn is_over(self) -> bool {
        matches!(self, Phase::Ended | Phase::Failed)
    }
}

/// The supervised process.
#[derive(Debug)]
pub struct Process {
    pub pid: i32,
    /// Means this process even after its pid is reused; `None` if it ended before we could look.
    pub pidfd: Option<OwnedFd>,
    pub started: SystemTime,
}

/// What belongs to one supervised process.
#[derive(Debug)]
pub struct Session {
    pub phase: Phase,
    pub outputs: [Option<Output>; 2],
    pub input: Input,
    /// Input that came over the service and waits for its turn, with who waits for it to be taken.
    pub typed: VecDeque<(Vec<u8>, Option<Answer>)>,
    /// Who waits for what was given last to be taken.
    pub taking: Option<Answer>,
    /// Stdin ends behind what waits.
    pub closing: bool,
    /// The container's terminal, once the runtime has sent it.
    pub terminal: Option<OwnedFd>,
    pub console: Option<Console>,
    /// The latest size asked for, rows and columns.
    pub window: Option<(u16, u16)>,
    pub runtime: Option<i32>,
    /// Children that ended before we knew what they were.
    early: Vec<(i32, Status)>,
    pub process: Option<Process>,
    pub complaint: Complaint,
    /// The last signal that the runtime got, in case that it comes too late for it.
    passed: Option<i32>,
    /// There was too much to read ahead before the runtime ended: what comes is output already.
    pub spilling: bool,
    pub end: Option<End>,
    pub finished: SystemTime,
    /// Bytes of streams that have come to their end.
    closed_bytes: [u64; 2],
}

/// Early children remembered; a runtime has a handful of helpers.
const EARLY_MAX: usize = 1024;

impl Session {
    pub fn new(input: Input, outputs: [Option<Output>; 2]) -> Session {
        Session {
            phase: Phase::Held,
            outputs,
            input,
            typed: VecDeque::new(),
            taking: None,
            closing: false,
            terminal: None,
            console: None,
            window: None,
            runtime: None,
            early: Vec::new(),
            process: None,
            complaint: Complaint::default(),
            passed: None,
            spilling: false,
            end: None,
            finished: SystemTime::UNIX_EPOCH,
            closed_bytes: [0; 2],
        }
    }

    /// Whether output may be passed on now. Before the runtime has ended it is read ahead, because it may be the
    /// runtime's complaint, which belongs in the report and not in the log; unless it is too much for that.
    pub fn may_pass(&mut self, index: usize) -> bool {
        if matches!(self.phase, Phase::Held | Phase::Starting) && !self.spilling {
            self.spilling = self.outputs[index].as_mut().is_some_and(Output::read_ahead);
            return self.spilling;
        }
        true
    }

    /// Collects the end of what the runtime said on stderr.
    pub fn collect_complaint(&mut self) {
        if let Some(stderr) = &self.outputs[Stream::Stderr.index()] {
            self.complaint.add(stderr.ahead());
            self.complaint.collect(stderr.as_fd());
        }
    }

    /// Takes note of a child that ended; true if it was the runtime.
    pub fn child_ended(&mut self, pid: i32, status: Status) -> bool {
        if self.runtime == Some(pid) {
            self.runtime = None;
            return true;
        }
        if self.process.as_ref().is_some_and(|process| process.pid == pid) {
            self.ended(status.into());
        } else if matches!(self.phase, Phase::Held | Phase::Starting) && self.early.len() < EARLY_MAX {
            self.early.push((pid, status));
        }
        false
    }

    /// The runtime told us what to supervise; it may have ended already.
    pub fn adopt(&mut self, pid: i32) {
        self.phase = Phase::Running;
        self.process = Some(Process { pid, pidfd: sys::pidfd_open(pid).ok(), started: SystemTime::now() });
        if let Some((_, status)) = self.early.iter().find(|(early, _)| *early == pid) {
            let status = *status;
            self.ended(status.into());
        }
        self.early = Vec::new();
        // A runtime that went its way in spite of a signal was as good as done.
        if let Some(signal) = self.passed.take() {
            self.signal(signal);
        }
    }

    /// The process has ended; what we did to it before decides what that is called.
    pub fn ended(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.finished = SystemTime::now();
        self.phase = Phase::Ended;
    }

    /// Sends a signal to the process, or to the runtime while that is still at work.
    pub fn signal(&mut self, signal: i32) {
        let pidfd = self.process.as_ref().and_then(|process| process.pidfd.as_ref());
        let sent = match (pidfd, self.runtime) {
            (Some(pidfd), _) => sys::pidfd_signal(pidfd.as_fd(), signal),
            (None, Some(runtime)) => {
                self.passed = Some(signal);
                sys::pidfd_open(runtime).and_then(|pidfd| sys::pidfd_signal(pidfd.as_fd(), signal))
            }
            (None, None) => Ok(()),
        };
        match sent {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => crate::warn!("Failed to pass signal {signal} on: {error}"),
        }
    }

    /// Sets the terminal's size now, or when there is one.
    pub fn resize(&mut self, rows: u16, cols: u16) {
        self.window = Some((rows, cols));
        if let Some(terminal) = &self.terminal
            && let Err(error) = sys::set_window_size(terminal.as_fd(), rows, cols)
        {
            crate::warn!("Failed to set terminal size to {rows} {cols}: {error}");
        }
    }

    /// Forgets a stream that has come to its end.
    pub fn close_output(&mut self, index: usize) {
        if let Some(output) = self.outputs[index].take() {
            self.closed_bytes[index] = output.offset;
        }
    }

    /// Nothing of it is to be heard any more; descriptors that the container shares outlive ours in the event queue.
    pub fn unwatch(&self, registry: &Registry) {
        let outputs = self.outputs.iter().flatten().map(AsFd::as_fd);
        let input = if let Input::Open { fd, .. } = &self.input { Some(fd.as_fd()) } else { None };
        let pidfd = self.process.as_ref().and_then(|process| process.pidfd.as_ref()).map(AsFd::as_fd);
        for fd in outputs.chain(input).chain(pidfd).chain(self.console.as_ref().map(AsFd::as_fd)) {
            let _ = registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
    }

    /// What each stream amounted to.
    pub fn totals(&self, lost: [u64; 2]) -> [Total; 2] {
        [0, 1].map(|index| {
            let bytes = self.outputs[index].as_ref().map_or(self.closed_bytes[index], |output| output.offset);
            Total { bytes, lost: lost[index] }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::new(Input::Closed, [None, None])
    }

    #[test]
    fn a_process_that_ended_before_it_was_known_is_found() {
        let mut session = session();
        session.phase = Phase::Starting;
        session.runtime = Some(10);
        assert!(!session.child_ended(11, Status::Exited(3)));
        assert!(session.child_ended(10, Status::Exited(0)));
        session.adopt(11);
        assert_eq!((session.phase, session.end), (Phase::Ended, Some(End::Exited(3))));
    }

    #[test]
    fn other_children_do_not_end_it() {
        let mut session = session();
        session.phase = Phase::Starting;
        session.adopt(i32::MAX);
        assert!(!session.child_ended(12, Status::Exited(1)));
        assert_eq!((session.phase, session.end), (Phase::Running, None));
        session.child_ended(i32::MAX, Status::Signaled(9));
        assert_eq!(session.end.map(End::status), Some(137));
    }

    #[test]
    fn a_timeout_is_not_overwritten_by_the_kill() {
        let mut session = session();
        session.phase = Phase::Starting;
        session.adopt(i32::MAX);
        session.end = Some(End::TimedOut);
        session.child_ended(i32::MAX, Status::Signaled(9));
        assert_eq!((session.phase, session.end), (Phase::Ended, Some(End::TimedOut)));
    }
}
