//! Obeying what is asked: the one place where requests from FIFOs and from the service are done.

use std::path::PathBuf;
use std::time::Instant;

use mio::Interest;

use super::{Monitor, drained, watch};
use crate::attach::{Request, Seat};
use crate::command::{Code, Command, Refusal, Reply, Switch};
use crate::control::Fifo;
use crate::exec::Sink;
use crate::exit::{End, Summary};
use crate::options::RpcSocket;
use crate::policy::{Meter, Policy};
use crate::rpc::{self, Answer, Ask, Closing, Service, Target};
use crate::session::{CONTAINER, Id, Phase};
use crate::source::Source;
use crate::stdio::{Input, Turn};
use crate::stream::Stream;
use crate::sys::Status;
use crate::timers::Timer;
use crate::upgrade::{self, UpgradeError};
use conmon_proto::conward_capnp::end;

/// Who waits for the end at once.
const WAITERS_MAX: usize = 1024;

/// Rounds of asking and answering in one turn.
const ROUNDS: usize = 16;

impl Monitor<'_> {
    /// Opens the socket of the service.
    #[inline(never)]
    pub(super) fn open_service(&mut self) -> Result<(), String> {
        let Some(path) = rpc::service_path(self.options) else { return Ok(()) };
        let service = Service::bind(&path).and_then(|service| {
            watch(self.poll.registry(), &service, Source::Service, Interest::READABLE)?;
            Ok(service)
        });
        match service {
            Ok(service) => self.service = Some(service),
            Err(error) if self.options.rpc_socket != RpcSocket::InBundle => {
                return Err(format!("Failed to make the socket of the service {}: {error}", path.display()));
            }
            // A container without it is better than none.
            Err(error) => crate::warn!("Failed to make the socket of the service {}: {error}", path.display()),
        }
        Ok(())
    }

    #[inline(never)]
    pub fn accept_service(&mut self) -> Turn {
        let Some(service) = &mut self.service else { return Turn::Wait };
        // Beyond that they wait in the kernel, where they cost the container nothing.
        let room = self.arrivals.room(Instant::now()).and_then(|room| usize::try_from(room).ok());
        let room = room.unwrap_or(ROUNDS).min(ROUNDS);
        for _ in 0..room {
            if service.accept(self.poll.registry()) == Turn::Wait {
                return Turn::Wait;
            }
            self.arrivals.pass(1);
        }
        if room == 0 {
            self.timers.set_sooner(Timer::Refill, self.arrivals.refill());
            return Turn::Wait;
        }
        Turn::Again
    }

    /// Lets connections work, and answers what they ask for, until nothing is left or the turn is over.
    pub fn serve(&mut self) {
        let Some(service) = self.service.as_ref().filter(|service| service.is_used()) else { return };
        service.refill();
        // Who is merely connected costs nothing.
        if service.is_awake() || service.has_news() {
            self.serve_rounds();
        }
    }

    #[inline(never)]
    fn serve_rounds(&mut self) {
        let before = self.service.as_ref().map_or(0, Service::connections);
        for _ in 0..ROUNDS {
            let Some(service) = &mut self.service else { return };
            let ended = service.run();
            let (asked, happened) = (service.asked(), service.happened());
            let idle = asked.is_empty() && happened.is_empty() && !service.is_awake();
            for ask in asked {
                self.obey(ask);
            }
            for target in happened {
                match target {
                    Target::Client(id) => self.seat_changed(id),
                    Target::Exec(id) => self.exec_remote_changed(id),
                }
            }
            if ended {
                self.drop_streams();
            }
            if idle {
                break;
            }
        }
        self.busy = true;
        self.after_output();
        let captured = self.execs.captured();
        let Some(service) = &mut self.service else { return };
        service.guard(captured);
        // Whoever could not be accepted for want of descriptors waits without a further event.
        if service.is_awake() || service.is_hungry() || service.connections() < before {
            self.wake(Source::Service);
        }
    }

    // ------------------------------------------------------------ requests

    #[inline(never)]
    pub(super) fn read_commands(&mut self, fifo: impl Fn(&mut Self) -> &mut Option<Fifo>) -> Turn {
        let mut commands = Vec::new();
        let Some(open) = fifo(self) else { return Turn::Wait };
        let turn = open.read(|line| match line {
            Ok(command) => commands.push(command),
            Err(rejected) => crate::warn!("{rejected}"),
        });
        for command in commands {
            if let Err(refusal) = self.apply(command) {
                crate::debug!("Refused a request: {refusal}");
            }
        }
        turn.map_or(Turn::Wait, drained)
    }

    /// Does what is asked, or sees to it that it is answered later.
    fn obey(&mut self, ask: Ask) {
        let Ask { command, answer } = ask;
        match (command, answer) {
            (Command::Input { session, bytes }, answer) => self.type_input(session, bytes, answer),
            (Command::Wait, Some(answer)) => self.await_end(answer),
            (Command::ExecWait(id), Some(answer)) => self.await_exec(id, answer),
            (command, answer) => {
                let done = self.apply(command);
                let unheard = answer.and_then(|answer| answer.send(done).err());
                if let Some(Ok(reply)) = unheard
                    && let Some(command) = reply.undo()
                {
                    let _ = self.apply(command);
                }
            }
        }
    }

    /// Does what can be done at once.
    pub fn apply(&mut self, command: Command) -> Result<Reply, Refusal> {
        match command {
            Command::Resize { session, rows, cols } => self.resize(session, rows, cols),
            Command::ReopenLog => self.reopen_log(),
            Command::Signal { session, number } => self.signal(session, number),
            Command::CloseInput { session } => self.close_input(session),
            Command::SetPolicy { stream, policy } => self.set_policy(stream, policy),
            Command::Inspect => Ok(Reply::Inspected(Box::new(rpc::inspect(self)))),
            Command::Attach(request) => self.attach(request),
            Command::Detach(client) => {
                self.detach(client);
                Ok(Reply::Done)
            }
            Command::Exec(spec, remote) => self.start_exec(*spec, remote).map(Reply::Started),
            Command::ExecResult(id) => self.exec_result(id),
            Command::Abandon(id) => {
                self.abandon_exec(id);
                Ok(Reply::Done)
            }
            Command::Upgrade { program, check_only } => self.upgrade(program, check_only),
            Command::Input { .. } | Command::Wait | Command::ExecWait(_) => {
                Err(Refusal::new(Code::Invalid, "nobody waits for the answer"))
            }
        }
    }

    fn resize(&mut self, id: Id, rows: u16, cols: u16) -> Result<Reply, Refusal> {
        let terminal = match id {
            CONTAINER => self.options.terminal && !self.options.passthrough(),
            id => self.execs.get(id).is_some_and(|exec| exec.spec.terminal),
        };
        if !terminal {
            return Err(Refusal::new(Code::NoTerminal, "it has no terminal"));
        }
        if let Some(session) = self.session(id) {
            session.resize(rows, cols);
        }
        Ok(Reply::Done)
    }

    fn reopen_log(&mut self) -> Result<Reply, Refusal> {
        let path = self.log.named_files().next().map(|(_, file)| file.path().display().to_string());
        self.log.reopen().map_err(|error| {
            Refusal::failed(format_args!("cannot reopen log {}", path.as_deref().unwrap_or("file")), &error)
        })?;
        let offsets = self.session.totals([0; 2]).map(|total| total.bytes);
        let switch = |(driver, file): (&'static str, &crate::log::file::LogFile)| Switch {
            driver,
            path: PathBuf::from(file.path()),
            inode: file.inode(),
            offsets: if driver == "k8s-file" { file.end().offsets } else { offsets },
        };
        Ok(Reply::Reopened(self.log.named_files().map(switch).collect()))
    }

    fn signal(&mut self, id: Id, number: i32) -> Result<Reply, Refusal> {
        if !(1..=64).contains(&number) {
            return Err(Refusal::new(Code::Invalid, format!("no signal has number {number}")));
        }
        let Some(session) = self.session(id).filter(|session| !session.phase.is_over()) else {
            return Err(Refusal::new(Code::NotRunning, "the process has ended"));
        };
        if session.phase == Phase::Held {
            return Err(Refusal::new(Code::NotRunning, "nothing has been started yet"));
        }
        session.signal(number);
        Ok(Reply::Done)
    }

    /// The candidate is checked now; it takes over when the answer is on its way.
    fn upgrade(&mut self, program: Option<PathBuf>, check_only: bool) -> Result<Reply, Refusal> {
        let checked = upgrade::prepare(self, program.as_deref()).map_err(|error| {
            let code = if matches!(error, UpgradeError::NotRunning(_) | UpgradeError::Busy(_)) {
                Code::Busy
            } else {
                Code::Failed
            };
            Refusal::new(code, error.to_string())
        })?;
        if !check_only {
            self.replacement = Some(checked);
        }
        Ok(Reply::Done)
    }

    fn set_policy(&mut self, stream: Stream, policy: Policy) -> Result<Reply, Refusal> {
        self.meters[stream.index()] = Meter::new(policy);
        self.wake(Source::Output(CONTAINER, stream));
        Ok(Reply::Done)
    }

    fn await_end(&mut self, answer: Answer) {
        if let Some(durable) = self.published {
            let _ = answer.send(Ok(Reply::Ended(self.summary(), durable)));
            return;
        }
        self.waiters.retain(|waiter| !waiter.is_canceled());
        if self.waiters.len() >= WAITERS_MAX {
            let refusal = Refusal::new(Code::TooMany, format!("{WAITERS_MAX} wait already"));
            let _ = answer.send(Err(refusal));
            return;
        }
        self.waiters.push(answer);
    }

    // ------------------------------------------------------------ clients of the output

    fn attach(&mut self, request: Request) -> Result<Reply, Refusal> {
        if self.options.passthrough() {
            return Err(Refusal::new(Code::Invalid, "the container has its caller's own stdio (passthrough)"));
        }
        if request.types && matches!(self.session.input, Input::Closed) {
            return Err(Refusal::new(Code::NoStdin, "the container has no stdin, or it is closed"));
        }
        let search = match &self.log.k8s {
            Some(k8s) => request.search(&k8s.file),
            None if request.history == crate::attach::History::None => None,
            None => return Err(Refusal::new(Code::NoHistory, "there is no k8s-file log that could be read back")),
        };
        if let Some((rows, cols)) = request.size {
            let _ = self.resize(CONTAINER, rows, cols);
        }
        let offsets = self.session.totals([0; 2]).map(|total| total.bytes);
        let attach = self.attach.get_or_insert_with(crate::attach::Attach::bare);
        let id = attach.seat(Seat::new(request, offsets), search).map_err(|why| Refusal::new(Code::TooMany, why))?;
        self.log.hold(true);
        self.wake(Source::Client(id));
        Ok(Reply::Attached(id))
    }

    /// Serves a client no longer. One of the service hears how far it came, should it ever listen again.
    pub(super) fn disconnect(&mut self, id: u32) {
        let Some(client) = self.attach.as_mut().and_then(|attach| attach.client(id)) else { return };
        if client.seat().is_some() {
            return self.detach(id);
        }
        client.deafen();
        for stream in Stream::ALL {
            self.wake(Source::Output(CONTAINER, stream));
        }
    }

    /// The client's attachment, or its connection, is gone.
    fn detach(&mut self, id: u32) {
        let Some(seat) = self.attach.as_mut().and_then(|attach| attach.client(id)).and_then(|client| client.seat())
        else {
            return;
        };
        seat.remote.end(&Closing {
            reason: end::Reason::Detached,
            exit: None,
            offsets: seat.offsets(),
            lost: seat.lost,
        });
        if seat.types && !seat.leave_stdin_open {
            self.end_of_typing(id);
        }
        self.client_gone(id);
    }

    /// A client has room again, or cannot be reached any more.
    fn seat_changed(&mut self, id: u32) {
        let phase = self
            .attach
            .as_mut()
            .and_then(|attach| attach.client(id))
            .and_then(|client| Some(client.seat()?.remote.phase()));
        match phase {
            Some(rpc::Phase::Broken) => self.detach(id),
            Some(rpc::Phase::Done) => self.client_gone(id),
            Some(rpc::Phase::Open) => self.wake(Source::Client(id)),
            Some(rpc::Phase::Ending) | None => {}
        }
    }

    // ------------------------------------------------------------ execs

    /// A child has ended that may be an exec's process or runtime.
    #[inline(never)]
    pub(super) fn exec_child_ended(&mut self, pid: i32, status: Status) {
        let ids: Vec<Id> = self.execs.running.iter().map(|exec| exec.id).collect();
        for id in ids {
            let Some(exec) = self.execs.get(id) else { continue };
            let before = exec.session.phase;
            if exec.session.child_ended(pid, status) {
                self.exec_runtime_ended(id, status);
            } else if before != exec.session.phase {
                self.settle_exec(id);
            }
        }
    }

    // ------------------------------------------------------------ the end

    /// How the container ended.
    pub fn summary(&self) -> Summary {
        let process = self.session.process.as_ref();
        let end = process.map(|_| self.session.end.unwrap_or(End::Unknown));
        Summary {
            end,
            oom_killed: self.verdict.killed(end == Some(End::Signaled(libc::SIGKILL))),
            pid: process.map_or(0, |process| process.pid),
            started: process.map_or(self.session.finished, |process| process.started),
            finished: self.session.finished,
            totals: self.session.totals(self.log.lost()),
        }
    }

    /// Tells everybody who waits how it ended.
    pub fn answer_waiters(&mut self, durable: bool) {
        self.published = Some(durable);
        let summary = self.summary();
        for waiter in std::mem::take(&mut self.waiters) {
            let _ = waiter.send(Ok(Reply::Ended(summary, durable)));
        }
    }

    /// True while an exec has not told its result.
    pub fn is_executing(&self) -> bool {
        self.execs.running.iter().any(|exec| !exec.settled)
    }

    /// True while a client of the service has something to take.
    pub fn is_owed(&self) -> bool {
        if !self.service.as_ref().is_some_and(Service::is_used) {
            return false;
        }
        let seats = self.attach.as_ref().is_some_and(|attach| !attach.seated().is_empty());
        let remote = self.execs.running.iter().any(|exec| matches!(exec.sink, Sink::Remote(_)));
        let service = self.service.as_ref().is_some_and(|service| service.is_stuck() || service.is_awake());
        seats || remote || service || self.is_executing()
    }

    /// Tells clients of the service to come again, before another program takes over.
    pub fn send_seats_away(&mut self) {
        let Some(attach) = &mut self.attach else { return };
        for id in attach.seated() {
            let Some(seat) = attach.client(id).and_then(|client| client.seat()) else { continue };
            let (offsets, lost) = (seat.offsets(), seat.lost);
            seat.remote.end(&Closing { reason: end::Reason::Upgrade, exit: None, offsets, lost });
        }
        for _ in 0..ROUNDS {
            self.service.as_mut().map(Service::run);
        }
    }

    /// Ends the stream of every client of the service that has everything.
    pub fn end_seats(&mut self) {
        let exit = Some(self.summary());
        let Some(attach) = &mut self.attach else { return };
        for id in attach.seated() {
            let Some(client) = attach.client(id).filter(|client| !client.is_behind()) else { continue };
            let Some(seat) = client.seat() else { continue };
            let (offsets, lost) = (seat.offsets(), seat.lost);
            seat.remote.end(&Closing { reason: end::Reason::Ended, exit, offsets, lost });
        }
    }
}
