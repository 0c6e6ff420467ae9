//! The execs of a monitor: starting them, their output and input, and how they end.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use mio::Interest;

use super::{Monitor, unwatch, watch};
use crate::attach::spare_from;
use crate::command::{Code, Refusal, Reply};
use crate::console::Console;
use crate::exec::{Due, Exec, Outcome, Sink, Spec};
use crate::exit::End;
use crate::rpc::{self, Answer, CHUNK, Closing, Remote, Target};
use crate::runtime::{self, Inherit, Stdio};
use crate::session::{Id, Phase, Session};
use crate::source::Source;
use crate::stdio::{Input, Output, Taken, Turn};
use crate::stream::Stream;
use crate::sys::Status;
use conmon_proto::conward_capnp::end;

/// Execs at once.
pub(super) const EXECS_MAX: usize = 256;

/// Results that are kept.
pub(super) const RESULTS_MAX: usize = 64;

/// Captured output that waits to be fetched, over all results.
const UNFETCHED_MAX: usize = 16 << 20;

/// What captured output is allowed at most.
const OUTPUT_MAX: usize = 64 << 20;

/// How long output may still come after the process has ended, while somebody else has its pipes.
const GRACE: Duration = Duration::from_millis(50);

/// How long a killed process may take to end before the result is told without it.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// Chunks of one stream in one turn.
const CHUNKS: usize = 32;

/// All execs, running and over.
#[derive(Debug, Default)]
pub struct Execs {
    pub running: Vec<Exec>,
    pub(super) results: VecDeque<Outcome>,
    pub(super) last: Id,
    /// Whose results somebody can still wait for.
    pub(super) claimed: Vec<Id>,
}

impl Execs {
    pub fn get(&mut self, id: Id) -> Option<&mut Exec> {
        self.running.iter_mut().find(|exec| exec.id == id)
    }

    /// Why an upgrade has to wait.
    pub fn hold_up(&self) -> Option<String> {
        let is_plain = |exec: &&Exec| {
            let handed = matches!(exec.sink, Sink::Capture { .. } | Sink::Nowhere);
            handed && exec.session.phase == Phase::Running && exec.session.runtime.is_none()
        };
        let exec = self.running.iter().find(|exec| !is_plain(exec))?;
        Some(format!("exec {} begins, ends, or sends its output to a client: {}", exec.id, exec.command()))
    }

    /// Time until something is due.
    pub fn next(&self) -> Option<Duration> {
        let nearest = self.running.iter().filter_map(|exec| exec.due).map(|(at, _)| at).min()?;
        Some(nearest.saturating_duration_since(Instant::now()))
    }

    /// Where output that is still to come can be read.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let outputs = self.running.iter().flat_map(|exec| exec.session.outputs.iter().flatten());
        outputs.map(|output| output.as_fd().as_raw_fd())
    }

    /// Bytes of output in memory.
    pub fn captured(&self) -> usize {
        let running: usize = self.running.iter().map(|exec| exec.sink.captured()).sum();
        running + self.unfetched()
    }

    fn unfetched(&self) -> usize {
        self.results.iter().flat_map(|outcome| &outcome.captured).map(Vec::len).sum()
    }

    /// Keeps a result; of too many, and of too much output, the oldest goes. The newest one's output stays.
    fn keep(&mut self, outcome: Outcome) {
        self.results.push_back(outcome);
        self.forget_results();
        while self.unfetched() > UNFETCHED_MAX {
            let older = self.results.len() - 1;
            let Some(oldest) = self.results.iter_mut().take(older).find(|outcome| outcome.has_output()) else { break };
            oldest.captured = [Vec::new(), Vec::new()];
            oldest.truncated = true;
        }
    }

    /// Nobody waits for its result any more.
    fn let_go(&mut self, id: Id) {
        self.claimed.retain(|claimed| *claimed != id);
        self.forget_results();
    }

    /// Those whom somebody may still ask for in person are kept longer.
    fn forget_results(&mut self) {
        let claimed = &self.claimed;
        let mut free = self.results.iter().filter(|outcome| !claimed.contains(&outcome.id)).count();
        self.results.retain(|outcome| {
            let goes = free > RESULTS_MAX && !claimed.contains(&outcome.id);
            free -= usize::from(goes);
            !goes
        });
        while self.results.len() > RESULTS_MAX + EXECS_MAX {
            self.results.pop_front();
        }
    }
}

impl Outcome {
    fn has_output(&self) -> bool {
        self.captured.iter().any(|bytes| !bytes.is_empty())
    }
}

impl Monitor<'_> {
    // ------------------------------------------------------------ beginning

    #[inline(never)]
    pub(super) fn start_exec(&mut self, spec: Spec, remote: Option<Remote>) -> Result<Id, Refusal> {
        if self.session.phase != Phase::Running {
            return Err(Refusal::new(Code::NotRunning, "the container is not running"));
        }
        if self.execs.running.len() >= EXECS_MAX {
            return Err(Refusal::new(Code::TooMany, format!("{EXECS_MAX} execs are running")));
        }
        if spec.output_max > OUTPUT_MAX {
            return Err(Refusal::new(Code::Invalid, format!("outputMax is more than {OUTPUT_MAX}")));
        }
        let Some(bundle) = self.options.bundle.as_deref() else {
            return Err(Refusal::new(Code::Failed, "there is no bundle"));
        };
        let failed = |what: &'static str| move |error: std::io::Error| Refusal::failed(what, &error);
        let (session, theirs) = self.exec_session(&spec).map_err(failed("cannot make pipes for an exec"))?;
        if theirs.iter().flatten().any(|fd| fd.as_raw_fd() >= spare_from()) {
            return Err(Refusal::new(Code::TooMany, "there are no descriptors left for one more exec"));
        }
        self.execs.last += 1;
        let id = self.execs.last;
        if let Some(remote) = &remote {
            remote.aim(Target::Exec(id));
        }
        let mut exec = Exec::new(id, spec, session, remote, bundle).map_err(failed("cannot prepare an exec"))?;
        self.watch_exec(&exec).map_err(failed("cannot watch an exec"))?;
        exec.session.phase = Phase::Starting;
        let console = exec.session.console.as_ref().map(Console::path);
        let words = exec.argv(self.options, console.as_deref());
        let inherit = Inherit {
            mask: &self.launch.mask,
            file: exec.object(),
            oom_score_adj: self.launch.oom_score_adj.as_deref(),
            own_listen_pid: false,
        };
        let runtime = self.options.runtime.display();
        let pid = runtime::start(&words, &theirs, &inherit)
            .map_err(|error| Refusal::failed(format_args!("failed to start runtime {runtime}"), &error))?;
        exec.session.runtime = Some(pid);
        if let Some(limit) = exec.spec.timeout {
            exec.expect(Due::Timeout, limit);
        }
        self.execs.claimed.push(id);
        self.execs.running.push(exec);
        Ok(id)
    }

    fn exec_session(&self, spec: &Spec) -> std::io::Result<(Session, [Option<std::os::fd::OwnedFd>; 3])> {
        let mut stdio = Stdio::new(spec.terminal, spec.stdin)?;
        let theirs = std::mem::take(&mut stdio.theirs);
        let output = |stream, fd: Option<_>| fd.map(|fd| Output::new(stream, fd, false, false));
        let outputs = [output(Stream::Stdout, stdio.stdout), output(Stream::Stderr, stdio.stderr)];
        let input = match stdio.stdin {
            Some(fd) => Input::open(fd),
            None if spec.terminal => Input::Expected,
            None => Input::Closed,
        };
        let mut session = Session::new(input, outputs);
        session.window = spec.window;
        if spec.terminal {
            session.console = Some(Console::create(&self.launch.console_base)?);
        }
        Ok((session, theirs))
    }

    fn watch_exec(&self, exec: &Exec) -> std::io::Result<()> {
        let registry = self.poll.registry();
        for output in exec.session.outputs.iter().flatten() {
            watch(registry, output, Source::Output(exec.id, output.stream), Interest::READABLE)?;
        }
        if let Some(console) = &exec.session.console {
            watch(registry, console, Source::Console(exec.id), Interest::READABLE)?;
        }
        Ok(())
    }

    /// Registers the execs that another program has handed over.
    pub(super) fn resume_execs(&mut self) {
        for exec in &self.execs.running {
            if let Err(error) = self.watch_exec(exec) {
                crate::warn!("Failed to watch an exec after an upgrade: {error}");
            }
        }
        let ids: Vec<Id> = self.execs.running.iter().map(|exec| exec.id).collect();
        for id in ids {
            self.watch_stranger(id);
            self.wake_exec(id);
            self.wake(Source::Input(id));
        }
    }

    /// The runtime of an exec has ended.
    #[inline(never)]
    pub(super) fn exec_runtime_ended(&mut self, id: Id, status: Status) {
        let terminal = self.execs.get(id).is_some_and(|exec| exec.spec.terminal && exec.session.terminal.is_none());
        if terminal {
            while self.advance_console(id) == Turn::Again {}
        }
        let runtime = self.options.runtime.display().to_string();
        let Some(exec) = self.execs.get(id).filter(|exec| !exec.session.phase.is_over()) else { return };
        let pid = exec.started_pid();
        exec.forget_files();
        let lacks_terminal = exec.spec.terminal && exec.session.terminal.is_none();
        match pid {
            Ok(Some(_)) if lacks_terminal => self.fail_exec(id, "the runtime did not set up a terminal"),
            Ok(Some(pid)) => self.exec_started(id, pid),
            Ok(None) | Err(_) if exec.session.end == Some(End::TimedOut) => {
                self.fail_exec(id, &format!("runtime {runtime} was killed because the time was up"));
            }
            Ok(None) | Err(_) => self.fail_exec(id, &format!("runtime {runtime} {status}")),
        }
    }

    fn exec_started(&mut self, id: Id, pid: i32) {
        let Some(exec) = self.execs.get(id) else { return };
        exec.session.adopt(pid);
        exec.session.complaint.clear();
        self.watch_stranger(id);
        for stream in Stream::ALL {
            self.wake(Source::Output(id, stream));
        }
        self.settle_exec(id);
    }

    /// What the runtime said is the best reason; ours is for when it said nothing.
    pub(super) fn fail_exec(&mut self, id: Id, reason: &str) {
        let Some(exec) = self.execs.get(id) else { return };
        exec.session.collect_complaint();
        if exec.session.complaint.bytes().is_empty() || exec.session.complaint.bytes().ends_with(b": ") {
            exec.session.complaint.add(reason.as_bytes());
        }
        exec.session.phase = Phase::Failed;
        exec.session.console = None;
        exec.session.input.close();
        self.settle_exec(id);
    }

    // ------------------------------------------------------------ output

    pub(super) fn pump_exec(&mut self, id: Id, stream: Stream) -> Turn {
        let (buffer, registry) = (&mut self.read_buffer.bytes()[..CHUNK], self.poll.registry());
        let Some(exec) = self.execs.running.iter_mut().find(|exec| exec.id == id) else { return Turn::Wait };
        if !exec.session.may_pass(stream.index()) {
            return Turn::Wait;
        }
        self.busy = true;
        for _ in 0..CHUNKS {
            if !exec.sink.has_room() {
                return Turn::Wait;
            }
            let over = exec.session.phase.is_over();
            let Some(output) = &mut exec.session.outputs[stream.index()] else { return Turn::Wait };
            let offset = output.offset;
            let room = exec.rest.map_or(buffer.len(), |rest| rest[stream.index()].min(buffer.len()));
            let taken = if room == 0 { Taken::End } else { output.take(&mut buffer[..room], over) };
            match taken {
                Taken::Bytes(count) => {
                    exec.sink.put(stream, offset, &buffer[..count]);
                    if let Some(rest) = &mut exec.rest {
                        rest[stream.index()] -= count;
                    }
                }
                Taken::Nothing if exec.rest.is_none() => {
                    if over {
                        self.settle_exec(id);
                    }
                    return Turn::Wait;
                }
                Taken::Nothing | Taken::End => {
                    unwatch(registry, output);
                    exec.session.close_output(stream.index());
                    self.settle_exec(id);
                    return Turn::Wait;
                }
            }
        }
        Turn::Again
    }

    // ------------------------------------------------------------ the end

    /// Something of an exec's end has changed: reads what is there, tells the result when all is known, and forgets it
    /// when nobody has anything to take any more.
    #[inline(never)]
    pub(super) fn settle_exec(&mut self, id: Id) {
        let Some(exec) = self.execs.get(id).filter(|exec| exec.session.phase.is_over()) else { return };
        if exec.session.phase == Phase::Failed {
            // What is in the pipes is the runtime's complaint.
            exec.rest = Some([0; 2]);
        }
        if !exec.settled {
            if exec.rest.is_none() && !exec.is_dry() && exec.has_writers() {
                if !matches!(exec.due, Some((_, Due::Grace))) {
                    exec.expect(Due::Grace, GRACE);
                    self.wake_exec(id);
                }
                return;
            }
            if matches!(exec.sink, Sink::Capture { .. }) && !exec.is_dry() && exec.session.phase != Phase::Failed {
                // All of it is there already.
                return self.wake_exec(id);
            }
            self.tell_exec(id);
        }
        self.close_exec(id);
    }

    fn wake_exec(&mut self, id: Id) {
        for stream in Stream::ALL {
            self.wake(Source::Output(id, stream));
        }
    }

    /// The result is known: to those who wait for it, and for those who ask later.
    fn tell_exec(&mut self, id: Id) {
        let Some(exec) = self.execs.get(id) else { return };
        exec.settled = true;
        exec.due = None;
        let mut outcome = exec.outcome();
        let waiters = std::mem::take(&mut exec.waiters);
        for waiter in waiters {
            let mut bare = outcome.clone_bare();
            if !waiter.is_canceled() {
                bare.captured = std::mem::take(&mut outcome.captured);
            }
            let _ = waiter.send(Ok(Reply::Result(Box::new(bare))));
        }
        self.execs.keep(outcome);
    }

    /// Ends the stream to a client behind its last byte; an exec without anything left is forgotten.
    fn close_exec(&mut self, id: Id) {
        let Some(exec) = self.execs.get(id) else { return };
        let failed = exec.session.phase == Phase::Failed;
        match &exec.sink {
            Sink::Remote(remote) => {
                if !failed && !exec.is_dry() && remote.phase() == rpc::Phase::Open {
                    return self.wake_exec(id);
                }
                let summary = exec.summary();
                remote.end(&Closing {
                    reason: if exec.held { end::Reason::Held } else { end::Reason::Ended },
                    exit: Some(summary),
                    offsets: summary.totals.map(|total| total.bytes),
                    lost: 0,
                });
                if remote.phase() == rpc::Phase::Ending {
                    return;
                }
            }
            Sink::Capture { .. } => {}
            Sink::Nowhere if exec.is_dry() || failed => {}
            Sink::Nowhere => return self.wake_exec(id),
        }
        self.forget_exec(id);
    }

    fn forget_exec(&mut self, id: Id) {
        let registry = self.poll.registry();
        if let Some(at) = self.execs.running.iter().position(|exec| exec.id == id) {
            let exec = self.execs.running.swap_remove(at);
            exec.session.unwatch(registry);
        }
        if self.execs.running.is_empty() {
            self.execs.running = Vec::new();
        }
    }

    /// Nobody will be there to see how they end.
    pub fn give_up_execs(&mut self) {
        let open: Vec<Id> = self.execs.running.iter().filter(|exec| !exec.settled).map(|exec| exec.id).collect();
        for id in open {
            let Some(exec) = self.execs.get(id) else { continue };
            if exec.session.process.is_none() {
                self.fail_exec(id, "the container ended before it was started");
                continue;
            }
            exec.session.ended(End::Unknown);
            exec.held = true;
            exec.rest = Some([0; 2]);
            self.settle_exec(id);
        }
    }

    /// Does what is due.
    pub(super) fn expire_execs(&mut self) {
        let now = Instant::now();
        let due: Vec<(Id, Due)> = self
            .execs
            .running
            .iter()
            .filter_map(|exec| exec.due.filter(|(at, _)| *at <= now).map(|(_, due)| (exec.id, due)))
            .collect();
        for (id, due) in due {
            let Some(exec) = self.execs.get(id) else { continue };
            exec.due = None;
            match due {
                // A runtime that hangs ends like one that failed, and says nothing.
                Due::Timeout if exec.session.phase == Phase::Starting => {
                    exec.session.complaint.add(b"the time was up before it had started: ");
                    exec.session.signal(libc::SIGKILL);
                }
                Due::Timeout => {
                    exec.session.end.get_or_insert(End::TimedOut);
                    exec.expect(Due::Killed, KILL_PATIENCE);
                    exec.kill();
                }
                Due::Killed if exec.session.process.is_none() => {
                    self.fail_exec(id, "the time is up, and the runtime did not end when it was killed");
                }
                Due::Killed => {
                    exec.session.ended(End::TimedOut);
                    self.settle_exec(id);
                }
                Due::Grace => {
                    exec.held = true;
                    exec.rest = Some([0, 1].map(|index: usize| {
                        exec.session.outputs[index].as_ref().map_or(0, |output| output.ahead().len() + output.waiting())
                    }));
                    self.settle_exec(id);
                }
            }
        }
    }

    // ------------------------------------------------------------ requests

    /// Answers now, or when it has ended.
    pub(super) fn await_exec(&mut self, id: Id, answer: Answer) {
        if let Some(exec) = self.execs.get(id).filter(|exec| !exec.settled) {
            return exec.waiters.push(answer);
        }
        let _ = answer.send(self.exec_result(id));
    }

    /// The result of an exec that is over; its captured output is handed over once.
    pub(super) fn exec_result(&mut self, id: Id) -> Result<Reply, Refusal> {
        if self.execs.get(id).is_some_and(|exec| !exec.settled) {
            return Err(Refusal::new(Code::Busy, format!("exec {id} is still running")));
        }
        let found = self.execs.results.iter_mut().find(|outcome| outcome.id == id);
        let outcome =
            found.ok_or_else(|| Refusal::new(Code::NotFound, format!("no result of an exec {id} is kept")))?;
        let mut answer = outcome.clone_bare();
        answer.captured = std::mem::take(&mut outcome.captured);
        Ok(Reply::Result(Box::new(answer)))
    }

    /// Whoever asked for it has gone.
    pub(super) fn abandon_exec(&mut self, id: Id) {
        self.execs.let_go(id);
        let Some(exec) = self.execs.get(id) else { return };
        if !exec.spec.detached && !exec.session.phase.is_over() {
            exec.kill();
        }
        if matches!(exec.sink, Sink::Remote(_)) {
            self.exec_remote_changed(id);
        }
    }

    /// Connections have ended, and with them everybody who could have told that their streams are broken.
    #[inline(never)]
    pub(super) fn drop_streams(&mut self) {
        let Some(service) = &self.service else { return };
        let mut cut = Vec::new();
        for exec in &mut self.execs.running {
            if matches!(&exec.sink, Sink::Remote(remote) if !service.has_link(remote.link)) {
                exec.sink = Sink::Nowhere;
                cut.push(exec.id);
            }
        }
        for id in cut {
            self.abandon_exec(id);
            self.exec_remote_changed(id);
        }
    }

    /// A client has room again, has everything, or is gone.
    pub(super) fn exec_remote_changed(&mut self, id: Id) {
        let Some(exec) = self.execs.get(id) else { return };
        if let Sink::Remote(remote) = &exec.sink
            && remote.phase() == rpc::Phase::Broken
        {
            exec.sink = Sink::Nowhere;
            if !exec.spec.detached && !exec.session.phase.is_over() {
                exec.kill();
            }
        }
        self.wake_exec(id);
        self.settle_exec(id);
    }
}

impl Outcome {
    fn clone_bare(&self) -> Outcome {
        Outcome { captured: [Vec::new(), Vec::new()], error: self.error.clone(), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Summary, Total};
    use std::time::SystemTime;

    fn over(id: Id, output: usize) -> Outcome {
        let at = SystemTime::UNIX_EPOCH;
        let totals = [Total { bytes: output as u64, lost: 0 }; 2];
        let exit = Summary { end: None, oom_killed: None, pid: 0, started: at, finished: at, totals };
        let captured = [vec![b'x'; output], Vec::new()];
        Outcome { id, exit, error: Vec::new(), captured, truncated: false, held: false }
    }

    fn ids(execs: &Execs) -> Vec<Id> {
        execs.results.iter().map(|outcome| outcome.id).collect()
    }

    #[test]
    fn the_last_results_are_kept_and_those_that_are_waited_for() {
        let mut execs = Execs { claimed: vec![1, 3], ..Execs::default() };
        (0..70).for_each(|id| execs.keep(over(id, 0)));
        let expected: Vec<Id> = [1, 3].into_iter().chain(6..70).collect();
        assert_eq!(ids(&execs), expected);
        execs.let_go(1);
        assert_eq!(ids(&execs)[..2], [3, 6]);
        execs.claimed.extend(0..1000);
        (70..1000).for_each(|id| execs.keep(over(id, 0)));
        assert_eq!(execs.results.len(), RESULTS_MAX + EXECS_MAX);
    }

    #[test]
    fn kept_output_has_a_bound_and_the_newest_stays() {
        let mut execs = Execs::default();
        [10 << 20, 10 << 20, 40 << 20].into_iter().zip(1..).for_each(|(size, id)| execs.keep(over(id, size)));
        let kept: Vec<_> = execs.results.iter().map(|outcome| (outcome.captured[0].len(), outcome.truncated)).collect();
        assert_eq!(kept, [(0, true), (0, true), (40 << 20, false)]);
        execs.keep(over(4, 1));
        assert_eq!(execs.captured(), 1);
    }
}
