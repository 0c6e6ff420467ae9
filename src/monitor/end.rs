//! Signals, deadlines, and how the container's process ends.

use std::path::Path;
use std::time::Duration;

use mio::Interest;
use nix::sys::signal::Signal;

use super::{KEPT, Monitor, ROUNDS, TRIM_AFTER, watch};
use crate::exit::End;
use crate::kill;
use crate::oom::{OomWatch, Wake};
use crate::options::Mode;
use crate::session::{CONTAINER, Id};
use crate::source::Source;
use crate::stdio::Turn;
use crate::stream::Stream;
use crate::sys;
use crate::timers::Timer;

/// How long a killed process may take to end before its exit is recorded without it.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

impl Monitor<'_> {
    pub(super) fn take_signals(&mut self) -> Turn {
        for _ in 0..ROUNDS {
            let Ok(Some(info)) = self.signals.read_signal() else { return Turn::Wait };
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            match Signal::try_from(number) {
                Ok(Signal::SIGCHLD) => self.reap(),
                Ok(Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) => self.session.signal(number),
                Ok(Signal::SIGUSR2) => self.replace = true,
                // A monitor outlives the session that it was started from.
                _ => crate::debug!("Ignored signal {number}"),
            }
        }
        Turn::Again
    }

    #[inline(never)]
    pub(super) fn reap(&mut self) {
        while let Ok(Some((pid, status))) = sys::ended_child() {
            if self.session.process.as_ref().is_some_and(|process| process.pid == pid) {
                // The cgroup may vanish as soon as the last process is reaped.
                self.check_oom();
            }
            sys::reap(pid);
            if self.session.child_ended(pid, status) {
                self.runtime_ended(status);
            }
            if !self.execs.running.is_empty() {
                self.exec_child_ended(pid, status);
            }
        }
    }

    /// A process that is no child of ours is gone, and nobody will tell us how it ended.
    pub(super) fn process_gone(&mut self, id: Id) -> Turn {
        if id == CONTAINER {
            self.check_oom();
        }
        self.stranger_ended(id);
        if id != CONTAINER {
            self.settle_exec(id);
        }
        Turn::Wait
    }

    pub(super) fn stranger_ended(&mut self, id: Id) {
        if let Some(session) = self.session(id).filter(|session| !session.phase.is_over()) {
            session.ended(End::Unknown);
        }
    }

    pub(super) fn expire(&mut self, timer: Timer) {
        match timer {
            Timer::Timeout => self.time_is_up(),
            Timer::Killed => self.session.ended(End::TimedOut),
            Timer::Trim => self.trim(),
            Timer::Stall => self.drop_stalled(),
            Timer::Refill => {
                Stream::ALL.into_iter().for_each(|stream| self.wake(Source::Output(CONTAINER, stream)));
                self.wake(Source::Service);
            }
        }
    }

    #[inline(never)]
    pub(super) fn time_is_up(&mut self) {
        let Some(process) = &self.session.process else { return };
        if self.session.end.is_none() {
            let whole_cgroup = !matches!(self.options.mode, Mode::Exec { .. });
            kill::tree(process, whole_cgroup);
            self.session.end = Some(End::TimedOut);
            self.timers.set(Timer::Killed, KILL_PATIENCE);
        }
    }

    #[inline(never)]
    pub(super) fn trim(&mut self) {
        if std::mem::take(&mut self.busy) {
            self.timers.set(Timer::Trim, TRIM_AFTER);
            return;
        }
        self.read_buffer.release(KEPT);
        self.out_buffer.release(KEPT);
        for output in self.session.outputs.iter_mut().flatten() {
            output.trim();
        }
        // The last, so that what has just been freed goes back as well.
        sys::release_memory();
    }

    #[inline(never)]
    pub(super) fn drop_stalled(&mut self) {
        let Some(limit) = self.options.attach_stall_timeout else { return };
        let stalled = self.attach.as_ref().map(|attach| attach.stalled(limit)).unwrap_or_default();
        for id in stalled {
            crate::warn!("Disconnected an attach client that took nothing for {} s", limit.as_secs());
            self.disconnect(id);
        }
        self.watch_stalls();
    }

    #[inline(never)]
    pub(super) fn watch_oom(&mut self, pid: i32) {
        match OomWatch::open(pid, Path::new("/")) {
            Ok(None) => {}
            Ok(Some(oom)) => {
                let interest = match oom.wake() {
                    Wake::Priority => Interest::PRIORITY,
                    Wake::Readable => Interest::READABLE,
                };
                if let Err(error) = watch(self.poll.registry(), &oom.fd(), Source::Oom, interest) {
                    crate::warn!("Failed to watch for OOM events of process {pid}: {error}");
                }
                self.oom = Some(oom);
            }
            Err(error) => crate::warn!("Failed to set up OOM detection of process {pid}: {error}"),
        }
    }

    pub(super) fn check_oom(&mut self) -> Turn {
        if let Some(watch) = &mut self.oom {
            self.verdict = watch.check();
        }
        Turn::Wait
    }
}
