//! The one owner and its loop.
//!
//! An event marks its source as ready; a ready source gets a bounded turn and answers whether there is more. With
//! nothing ready the loop sleeps until an event or the nearest deadline. Nothing in here may end the monitor once the
//! runtime has been started: a part that fails is given up, and the container's bytes go on.
//!
//! What only some monitors do is below: `input` gives the container what clients type, `execs` are further processes,
//! `service` obeys what comes over Cap'n Proto.
//!
//! What runs rarely is kept out of line: the loop's frame is memory that every idle monitor has.

mod execs;
mod input;
pub mod saved;
mod service;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::read;

use crate::attach::Attach;
use crate::console::{self, Received as FromConsole};
use crate::control::{Drained, Fifo, Kind};
use crate::exit::{End, ExitFiles};
use crate::kill;
use crate::log::Log;
use crate::notify::Relay;
use crate::oom::{OomWatch, Verdict, Wake};
use crate::options::{Mode, Options};
use crate::parent::{Reports, set_nonblocking};
use crate::policy::{Action, Meter, Policy};
use crate::rpc::{Answer, Service};
use crate::runtime;
use crate::session::{CONTAINER, Id, Phase, Session};
use crate::source::Source;
use crate::stdio::{Input, Output, Turn};
use crate::stream::Stream;
use crate::sys::{self, Arena, Status};
use crate::timers::{Timer, Timers};
use crate::upgrade;

/// Everything that one monitor is.
#[derive(Debug)]
pub struct Monitor<'a> {
    pub options: &'a Options,
    pub session: Session,
    pub log: Log,
    pub attach: Option<Attach>,
    pub ctl: Option<Fifo>,
    pub winsz: Option<Fifo>,
    pub notify: Option<Relay>,
    pub oom: Option<OomWatch>,
    pub verdict: Verdict,
    pub reports: Reports,
    /// The start pipe of an exec that waits for its second message.
    pub start: Option<OwnedFd>,
    /// What the runtime gets as stdio and what it is started with.
    pub launch: Launch,
    /// The Cap'n Proto service, unless it is not wanted.
    pub service: Option<Service>,
    /// Who waits for the container's end.
    pub waiters: Vec<Answer>,
    pub execs: execs::Execs,
    /// How much each stream may log.
    pub meters: [Meter; 2],
    pub exit_files: ExitFiles,
    /// Why the session failed, for the report.
    pub failure: Vec<u8>,
    pub poll: Poll,
    pub signals: SignalFd,
    pub timers: Timers,
    pub read_buffer: Arena,
    pub out_buffer: Arena,
    ready: VecDeque<Source>,
    /// More than a page of the buffers was used since the last look.
    busy: bool,
    /// Descriptors that the caller had left open, to be closed at the end.
    pub inherited: Vec<RawFd>,
    /// Somebody asked for another program in our place.
    replace: bool,
    /// What a client asked to be replaced by; it is done when the answer is on its way.
    replacement: Option<upgrade::Checked>,
}

/// What starting the runtime takes.
#[derive(Debug)]
pub struct Launch {
    pub theirs: [Option<OwnedFd>; 3],
    pub mask: libc::sigset_t,
    pub oom_score_adj: Option<std::ffi::CString>,
    pub listen_pid: Option<std::ffi::OsString>,
    /// Where directories for console sockets are made.
    pub console_base: PathBuf,
}

/// What a monitor is made of besides the session; see [`Monitor::new`].
#[derive(Debug)]
pub struct Parts {
    pub log: Log,
    pub notify: Option<Relay>,
    pub reports: Reports,
    pub start: Option<OwnedFd>,
    pub signals: SignalFd,
}

/// Bytes that one read can take; also the longest packet that a client can send.
pub const READ_BUFFER: usize = 96 * 1024;

/// Formatted records that one write can hold.
const OUT_BUFFER: usize = 96 * 1024;

/// What stays of the buffers in an idle monitor.
const KEPT: usize = 4096;

/// Quiet after a load before its memory is given back.
const TRIM_AFTER: Duration = Duration::from_secs(1);

/// How long a killed process may take to end before its exit is recorded without it.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// Turns of one source per loop that are bounded by counting.
const ROUNDS: usize = 32;

impl<'a> Monitor<'a> {
    /// Puts the parts together and registers them.
    #[inline(never)]
    pub fn new(options: &'a Options, session: Session, parts: Parts, launch: Launch) -> io::Result<Box<Monitor<'a>>> {
        let monitor = Box::new(Monitor {
            options,
            session,
            log: parts.log,
            attach: None,
            ctl: None,
            winsz: None,
            notify: parts.notify,
            oom: None,
            verdict: Verdict::Unknown,
            reports: parts.reports,
            start: parts.start,
            launch,
            service: None,
            waiters: Vec::new(),
            execs: execs::Execs::default(),
            meters: Default::default(),
            exit_files: ExitFiles::new(options),
            failure: Vec::new(),
            poll: Poll::new()?,
            signals: parts.signals,
            timers: Timers::default(),
            read_buffer: Arena::new(READ_BUFFER)?,
            out_buffer: Arena::new(OUT_BUFFER)?,
            ready: VecDeque::new(),
            busy: false,
            inherited: Vec::new(),
            replace: false,
            replacement: None,
        });
        monitor.register_all()?;
        Ok(monitor)
    }

    fn register_all(&self) -> io::Result<()> {
        let registry = self.poll.registry();
        watch(registry, &self.signals, Source::Signals, Interest::READABLE)?;
        for output in self.session.outputs.iter().flatten() {
            watch(registry, output, Source::Output(CONTAINER, output.stream), Interest::READABLE)?;
        }
        if let Some(console) = &self.session.console {
            watch(registry, console, Source::Console(CONTAINER), Interest::READABLE)?;
        }
        if let Some(notify) = &self.notify {
            watch(registry, notify, Source::Notify, Interest::READABLE)?;
        }
        Ok(())
    }

    /// The container's process or an exec.
    fn session(&mut self, id: Id) -> Option<&mut Session> {
        match id {
            CONTAINER => Some(&mut self.session),
            id => self.execs.get(id).map(|exec| &mut exec.session),
        }
    }

    /// Runs until the supervised process has ended or could not be started.
    pub fn run(&mut self) {
        let mut events = Events::with_capacity(64);
        if self.session.phase == Phase::Held {
            self.begin();
        } else {
            // After an upgrade: whatever became of the signals, children that have ended are found.
            self.reap();
        }
        while !self.session.phase.is_over() {
            let before = self.session.phase;
            self.step(&mut events, None);
            if before == Phase::Starting && self.session.phase == Phase::Running {
                sys::release_memory();
                sys::forget_program();
            }
            if std::mem::take(&mut self.replace) || self.replacement.is_some() {
                self.replace();
            }
        }
    }

    #[inline(never)]
    fn replace(&mut self) {
        let checked = match self.replacement.take() {
            Some(checked) => Ok(checked),
            None => upgrade::prepare(self, None),
        };
        let Err(refusal) = checked.and_then(|checked| upgrade::replace(self, &checked));
        crate::warn!("{refusal}");
        // What it took is given back.
        self.timers.set(Timer::Trim, TRIM_AFTER);
    }

    /// Sleeps until something happens, but not longer than `limit`, and does what it asks for.
    pub fn step(&mut self, events: &mut Events, limit: Option<Duration>) {
        let deadlines = [self.timers.next(), self.execs.next(), limit];
        let next = deadlines.into_iter().flatten().min();
        let timeout = if self.ready.is_empty() { next } else { Some(Duration::ZERO) };
        if let Err(error) = self.poll.poll(events, timeout)
            && error.kind() != io::ErrorKind::Interrupted
        {
            crate::warn!("Failed to wait for events: {error}");
        }
        for event in &*events {
            if let Some(source) = Source::of(event.token()) {
                self.mark(source, event.is_read_closed(), event.is_write_closed());
            }
        }
        self.turn();
        self.serve();
    }

    fn mark(&mut self, source: Source, read_closed: bool, write_closed: bool) {
        match source {
            Source::Output(CONTAINER, stream) => {
                if let Some(output) = &mut self.session.outputs[stream.index()] {
                    output.hung_up |= read_closed;
                }
            }
            Source::Link(id) => {
                if let Some(service) = &self.service {
                    service.wake(id);
                }
                return;
            }
            Source::Client(id) => {
                if let Some(client) = self.attach.as_mut().and_then(|attach| attach.client(id)) {
                    client.readable = true;
                    client.left |= write_closed;
                }
            }
            _ => {}
        }
        self.wake(source);
    }

    fn wake(&mut self, source: Source) {
        if self.ready.contains(&source) {
            return;
        }
        // Who connected before some output was read is to get it.
        if source == Source::Listener { self.ready.push_front(source) } else { self.ready.push_back(source) }
    }

    /// One round: every ready source once, then what is due.
    fn turn(&mut self) {
        for _ in 0..self.ready.len() {
            if let Some(source) = self.ready.pop_front()
                && self.handle(source) == Turn::Again
            {
                self.wake(source);
            }
        }
        while let Some(timer) = self.timers.due() {
            self.expire(timer);
        }
        if !self.execs.running.is_empty() {
            self.expire_execs();
        }
    }

    fn handle(&mut self, source: Source) -> Turn {
        match source {
            Source::Signals => self.take_signals(),
            Source::Start => self.start_message(),
            Source::Output(CONTAINER, stream) => self.pump(stream),
            Source::Output(id, stream) => self.pump_exec(id, stream),
            Source::Input(id) => self.flush_input(id),
            Source::Console(id) => self.advance_console(id),
            Source::Listener => self.accept(),
            Source::Client(id) => self.serve_client(id),
            Source::Ctl => self.read_commands(|monitor| &mut monitor.ctl),
            Source::Winsz => self.read_commands(|monitor| &mut monitor.winsz),
            Source::Notify => self.notify.as_mut().map_or(Turn::Wait, |relay| drained(relay.relay())),
            Source::Oom => self.check_oom(),
            Source::Process(id) => self.process_gone(id),
            Source::Service => self.accept_service(),
            // Woken when it was marked.
            Source::Link(_) => Turn::Wait,
        }
    }

    // ------------------------------------------------------------ beginning

    /// Starts the runtime, or waits for the message that says so.
    ///
    /// With `--exec-attach` clients come first. Otherwise nobody can come before the pid is reported, and the doors are
    /// opened while the runtime is at work.
    #[inline(never)]
    fn begin(&mut self) {
        let clients_first = matches!(self.options.mode, Mode::Exec { attach: true, .. });
        if clients_first {
            if let Err(reason) = self.open_doors() {
                self.reports.not_ready(reason.as_bytes());
                return self.fail(Vec::new());
            }
            if self.attach.is_some() {
                self.reports.ready();
            }
        }
        match &self.start {
            Some(start) if watch(self.poll.registry(), start, Source::Start, Interest::READABLE).is_ok() => {}
            // No pipe, or not something one can wait for, such as a file: it has said all it will.
            _ => self.start_runtime(),
        }
        if !clients_first && let Err(reason) = self.open_doors() {
            self.session.signal(libc::SIGKILL);
            self.fail(reason.into_bytes());
        }
    }

    /// Makes what the outside reaches us by: the attach socket and the FIFOs.
    fn open_doors(&mut self) -> Result<(), String> {
        self.open_service()?;
        let Some(bundle) = self.options.bundle.as_deref().filter(|_| !self.options.passthrough()) else {
            return Ok(());
        };
        let attach = Attach::create(self.options, bundle)?;
        let ctl = Fifo::create(bundle, "ctl", Kind::Ctl).map_err(|error| error.to_string())?;
        let winsz = Fifo::create(bundle, "winsz", Kind::Winsz).map_err(|error| error.to_string())?;
        let registry = self.poll.registry();
        let listened =
            attach.listener().map_or(Ok(()), |fd| watch(registry, &fd, Source::Listener, Interest::READABLE));
        listened
            .and_then(|()| watch(registry, &ctl, Source::Ctl, Interest::READABLE))
            .and_then(|()| watch(registry, &winsz, Source::Winsz, Interest::READABLE))
            .map_err(|error| format!("Failed to watch attach socket and FIFOs in {}: {error}", bundle.display()))?;
        (self.attach, self.ctl, self.winsz) = (Some(attach), Some(ctl), Some(winsz));
        Ok(())
    }

    #[inline(never)]
    fn start_message(&mut self) -> Turn {
        if let Some(start) = self.start.take() {
            // The content means nothing, and neither does end of file.
            let _ = read(&start, &mut self.read_buffer.bytes()[..8192]);
            unwatch(self.poll.registry(), &start);
            self.start_runtime();
        }
        Turn::Wait
    }

    /// After this line we may no longer die: there may be a container that depends on us.
    fn start_runtime(&mut self) {
        let path = self.session.console.as_ref().map(console::Console::path);
        self.session.phase = Phase::Starting;
        let words = self.options.runtime_argv(path.as_deref());
        let started = runtime::own_listen_pid(self.options, self.launch.listen_pid.as_deref()).and_then(|own| {
            let inherit = runtime::Inherit {
                mask: &self.launch.mask,
                oom_score_adj: self.launch.oom_score_adj.as_deref(),
                own_listen_pid: own,
            };
            runtime::start(&words, &self.launch.theirs, &inherit)
        });
        match started {
            Ok(pid) => self.session.runtime = Some(pid),
            Err(error) => {
                let runtime = self.options.runtime.display();
                self.fail(format!("failed to start runtime {runtime}: {error}").into_bytes());
            }
        }
        self.launch.theirs = [None, None, None];
        if self.options.passthrough() {
            detach_stdio();
        }
    }

    #[inline(never)]
    fn runtime_ended(&mut self, status: Status) {
        if self.options.terminal && self.session.terminal.is_none() && !self.session.phase.is_over() {
            while self.session.console.is_some() && self.advance_console(CONTAINER) == Turn::Again {}
        }
        if self.session.phase.is_over() {
            return;
        }
        match self.started_pid(status) {
            Ok(pid) => self.started(pid),
            Err(reason) => self.fail_with_complaint(&reason),
        }
    }

    /// The pid that the runtime left, or why there is none.
    fn started_pid(&self, status: Status) -> Result<i32, String> {
        let exec = matches!(self.options.mode, Mode::Exec { .. });
        let runtime = self.options.runtime.display();
        let outcome = format!("runtime {runtime} {status}");
        let well = status == Status::Exited(0);
        if !well && !exec {
            return Err(outcome);
        }
        let path = &self.options.container_pidfile;
        let pid = runtime::read_pidfile(path)
            .map_err(|error| format!("{outcome}; failed to read container pidfile {}: {error}", path.display()))?;
        let pid = pid.ok_or_else(|| format!("{outcome}; container pidfile {} has no pid in it", path.display()))?;
        if self.options.terminal && self.session.terminal.is_none() {
            return Err("Runtime did not set up terminal".into());
        }
        Ok(pid)
    }

    #[inline(never)]
    fn started(&mut self, pid: i32) {
        self.session.adopt(pid);
        self.session.complaint.clear();
        self.watch_oom(pid);
        self.reports.started(pid);
        if let Some(limit) = self.options.timeout {
            self.timers.set(Timer::Timeout, limit);
        }
        self.exit_files.prepare();
        self.watch_stranger(CONTAINER);
        for stream in Stream::ALL {
            self.wake(Source::Output(CONTAINER, stream));
        }
    }

    /// A process that is no child of ours, whose end nobody tells us.
    fn watch_stranger(&mut self, id: Id) {
        let Some(process) = self.session(id).and_then(|session| session.process.as_ref()) else { return };
        let pid = process.pid;
        let Some(pidfd) = process.pidfd.as_ref().filter(|_| !sys::is_child(pid)).map(raw) else { return };
        let (token, interest) = (Source::Process(id).token(), Interest::READABLE);
        if let Err(error) = self.poll.registry().register(&mut SourceFd(&pidfd), token, interest) {
            crate::warn!("Failed to watch process {pid}: {error}");
        }
    }

    /// What the runtime said is the best reason; our own is for when it said nothing.
    #[inline(never)]
    fn fail_with_complaint(&mut self, reason: &str) {
        self.session.collect_complaint();
        let complaint = self.session.complaint.bytes();
        let message = match (self.options.passthrough(), complaint.is_empty(), self.session.terminal.is_none()) {
            (true, ..) => Vec::new(),
            (_, true, _) => reason.as_bytes().to_vec(),
            (_, false, true) if self.options.terminal && reason.starts_with("Runtime did not") => {
                [reason.as_bytes(), b": ", complaint].concat()
            }
            _ => complaint.to_vec(),
        };
        crate::error!("Failed to start container: {reason}: {}", String::from_utf8_lossy(complaint).trim_end());
        self.fail(message);
    }

    fn fail(&mut self, message: Vec<u8>) {
        self.session.phase = Phase::Failed;
        self.failure = message;
    }

    // ------------------------------------------------------------ output and input

    fn pump(&mut self, stream: Stream) -> Turn {
        if !self.session.may_pass(stream.index()) || self.held_up(stream) {
            return Turn::Wait;
        }
        let limit = self.meters[stream.index()].room(Instant::now());
        let drops = matches!(self.meters[stream.index()].policy, Policy::Limit { action: Action::Drop, .. });
        if limit == Some(0) && !drops {
            self.timers.set(Timer::Refill, self.meters[stream.index()].refill());
            return Turn::Wait;
        }
        let starting = self.session.phase == Phase::Starting;
        let piece = self.log.begin_turn();
        let Some(output) = &mut self.session.outputs[stream.index()] else { return Turn::Wait };
        let (complaint, attach, log) = (&mut self.session.complaint, &mut self.attach, &mut self.log);
        let (registry, out) = (self.poll.registry(), self.out_buffer.bytes());
        let (before, meter) = (output.offset, &mut self.meters[stream.index()]);
        let room = limit.filter(|_| !drops).map_or(READ_BUFFER, |room| usize::try_from(room).unwrap_or(READ_BUFFER));
        let buffer = self.read_buffer.bytes();
        let room = room.min(piece).min(buffer.len()).max(output.ahead().len() + 1);
        let (mut left, mut at) = (limit.unwrap_or(u64::MAX), before);
        let turn = output.pump(&mut buffer[..room], |stream, chunk| {
            if starting && stream == Stream::Stderr {
                complaint.add(chunk);
            }
            let size = chunk.len() as u64;
            let recorded =
                if drops && size > left { log.leave_out(stream, chunk) } else { log.write(out, stream, chunk) };
            left = left.saturating_sub(size);
            meter.pass(size);
            let offset = at;
            at += size;
            let more = (drops || left > 0) && !log.is_tired();
            let Some(attach) = attach.as_mut().filter(|attach| !attach.is_empty()) else { return more };
            attach.offer(registry, stream, offset, chunk, recorded);
            !attach.holds_up(stream) && more
        });
        self.busy |= output.offset - before > KEPT as u64;
        if turn == Turn::Closed {
            self.unwatch_output(stream);
            self.session.close_output(stream.index());
        }
        self.after_output();
        if turn == Turn::Closed || self.held_up(stream) { Turn::Wait } else { turn }
    }

    fn held_up(&self, stream: Stream) -> bool {
        self.attach.as_ref().is_some_and(|attach| attach.holds_up(stream))
    }

    fn unwatch_output(&self, stream: Stream) {
        if let Some(output) = &self.session.outputs[stream.index()] {
            unwatch(self.poll.registry(), output);
        }
    }

    /// Lets go of log files that nobody needs, and sees to deadlines that output can bring about.
    fn after_output(&mut self) {
        if let (Some(attach), Some(k8s)) = (&self.attach, &mut self.log.k8s) {
            k8s.file.release_before(attach.oldest_needed().unwrap_or(u64::MAX));
        }
        if self.busy && !self.timers.is_set(Timer::Trim) {
            self.busy = false;
            self.timers.set(Timer::Trim, TRIM_AFTER);
        }
        self.watch_stalls();
    }

    // ------------------------------------------------------------ clients

    #[inline(never)]
    pub fn accept(&mut self) -> Turn {
        let Some(attach) = &mut self.attach else { return Turn::Wait };
        let mut turn = Turn::Again;
        for _ in 0..ROUNDS {
            turn = attach.accept(self.poll.registry());
            if turn == Turn::Wait {
                break;
            }
        }
        self.log.hold(!attach.is_empty());
        self.wake_typing_clients();
        turn
    }

    #[inline(never)]
    fn serve_client(&mut self, id: u32) -> Turn {
        let Some(attach) = &mut self.attach else { return Turn::Wait };
        let log = self.log.k8s.as_ref().map(|k8s| &k8s.file);
        let held = Stream::ALL.map(|stream| attach.holds_up(stream));
        let output = attach.serve(self.poll.registry(), id, log, self.read_buffer.bytes());
        if output == Turn::Closed
            && let Some(client) = attach.client(id)
        {
            client.deafen();
        }
        for stream in Stream::ALL {
            if held[stream.index()] && !self.held_up(stream) {
                self.wake(Source::Output(CONTAINER, stream));
            }
        }
        let input = self.receive(id);
        if output == Turn::Again || input == Turn::Again { Turn::Again } else { Turn::Wait }
    }

    fn client_gone(&mut self, id: u32) {
        let Some(attach) = &mut self.attach else { return };
        let held = Stream::ALL.map(|stream| attach.holds_up(stream));
        attach.remove(id);
        self.log.hold(!attach.is_empty());
        // Whoever could not be accepted for want of descriptors waits without a further event.
        self.wake(Source::Listener);
        self.after_output();
        for stream in Stream::ALL {
            if held[stream.index()] {
                self.wake(Source::Output(CONTAINER, stream));
            }
        }
    }

    fn watch_stalls(&mut self) {
        if let Some(limit) = self.options.attach_stall_timeout
            && !self.timers.is_set(Timer::Stall)
            && self.attach.as_ref().is_some_and(Attach::any_stalled)
        {
            self.timers.set(Timer::Stall, limit);
        }
    }

    // ------------------------------------------------------------ terminal

    #[inline(never)]
    fn advance_console(&mut self, id: Id) -> Turn {
        let Some(console) = self.session(id).and_then(|session| session.console.as_mut()) else { return Turn::Wait };
        let before = raw(console);
        let received = console.advance();
        let after = raw(console);
        match received {
            Ok(FromConsole::Nothing) => Turn::Wait,
            Ok(FromConsole::Connected) => {
                let registry = self.poll.registry();
                let _ = registry.deregister(&mut SourceFd(&before));
                let token = Source::Console(id).token();
                match registry.register(&mut SourceFd(&after), token, Interest::READABLE) {
                    Ok(()) => Turn::Again,
                    Err(error) => self.console_failed(id, &format!("Failed to watch console socket: {error}")),
                }
            }
            Ok(FromConsole::Terminal(terminal)) => {
                self.drop_console(id);
                match self.take_terminal(id, terminal) {
                    Ok(()) => Turn::Wait,
                    Err(error) => self.console_failed(id, &format!("Failed to set up terminal: {error}")),
                }
            }
            Err(error) => {
                self.drop_console(id);
                self.console_failed(id, &format!("Failed to receive terminal from runtime: {error}"))
            }
        }
    }

    fn drop_console(&mut self, id: Id) {
        if let Some(console) = self.session(id).and_then(|session| session.console.take()) {
            unwatch(self.poll.registry(), &console);
        }
    }

    fn console_failed(&mut self, id: Id, reason: &str) -> Turn {
        match id {
            CONTAINER => self.fail_with_complaint(reason),
            id => self.fail_exec(id, reason),
        }
        Turn::Wait
    }

    fn take_terminal(&mut self, id: Id, terminal: OwnedFd) -> io::Result<()> {
        console::prepare(&terminal);
        set_nonblocking(terminal.as_fd())?;
        let output = Output::new(Stream::Stdout, terminal.try_clone()?, true, false);
        watch(self.poll.registry(), &output, Source::Output(id, Stream::Stdout), Interest::READABLE)?;
        let Some(session) = self.session(id) else { return Ok(()) };
        session.outputs[Stream::Stdout.index()] = Some(output);
        session.input = Input::open(terminal.try_clone()?);
        session.terminal = Some(terminal);
        if let Some((rows, cols)) = session.window {
            session.resize(rows, cols);
        }
        self.advance_input(id);
        Ok(())
    }

    // ------------------------------------------------------------ requests

    #[inline(never)]
    fn read_commands(&mut self, fifo: impl Fn(&mut Self) -> &mut Option<Fifo>) -> Turn {
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

    // ------------------------------------------------------------ signals, time, the end

    fn take_signals(&mut self) -> Turn {
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
    fn reap(&mut self) {
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
    fn process_gone(&mut self, id: Id) -> Turn {
        if id == CONTAINER {
            self.check_oom();
        }
        if let Some(session) = self.session(id).filter(|session| !session.phase.is_over()) {
            session.ended(End::Unknown);
        }
        if id != CONTAINER {
            self.settle_exec(id);
        }
        Turn::Wait
    }

    fn expire(&mut self, timer: Timer) {
        match timer {
            Timer::Timeout => self.time_is_up(),
            Timer::Killed => self.session.ended(End::TimedOut),
            Timer::Trim => self.trim(),
            Timer::Stall => self.drop_stalled(),
            Timer::Refill => Stream::ALL.into_iter().for_each(|stream| self.wake(Source::Output(CONTAINER, stream))),
        }
    }

    #[inline(never)]
    fn time_is_up(&mut self) {
        let Some(process) = &self.session.process else { return };
        if self.session.end.is_none() {
            let whole_cgroup = !matches!(self.options.mode, Mode::Exec { .. });
            kill::tree(process, whole_cgroup);
            self.session.end = Some(End::TimedOut);
            self.timers.set(Timer::Killed, KILL_PATIENCE);
        }
    }

    #[inline(never)]
    fn trim(&mut self) {
        if std::mem::take(&mut self.busy) {
            self.timers.set(Timer::Trim, TRIM_AFTER);
            return;
        }
        sys::release_memory();
        self.read_buffer.release(KEPT);
        self.out_buffer.release(KEPT);
        for output in self.session.outputs.iter_mut().flatten() {
            output.trim();
        }
    }

    #[inline(never)]
    fn drop_stalled(&mut self) {
        let Some(limit) = self.options.attach_stall_timeout else { return };
        let stalled = self.attach.as_ref().map(|attach| attach.stalled(limit)).unwrap_or_default();
        for id in stalled {
            crate::warn!("Disconnected an attach client that took nothing for {} s", limit.as_secs());
            let Some(client) = self.attach.as_mut().and_then(|attach| attach.client(id)) else { continue };
            client.deafen();
            self.wake(Source::Output(CONTAINER, Stream::Stdout));
            self.wake(Source::Output(CONTAINER, Stream::Stderr));
        }
        self.watch_stalls();
    }

    // ------------------------------------------------------------ OOM

    #[inline(never)]
    fn watch_oom(&mut self, pid: i32) {
        match OomWatch::open(pid, std::path::Path::new("/")) {
            Ok(None) => {}
            Ok(Some(watch)) => {
                let interest = match watch.wake() {
                    Wake::Priority => Interest::PRIORITY,
                    Wake::Readable => Interest::READABLE,
                };
                if let Err(error) = self::watch(self.poll.registry(), &watch.fd(), Source::Oom, interest) {
                    crate::warn!("Failed to watch for OOM events of process {pid}: {error}");
                }
                self.oom = Some(watch);
            }
            Err(error) => crate::warn!("Failed to set up OOM detection of process {pid}: {error}"),
        }
    }

    fn check_oom(&mut self) -> Turn {
        if let Some(watch) = &mut self.oom {
            self.verdict = watch.check();
        }
        Turn::Wait
    }
}

fn watch(registry: &Registry, fd: &impl AsFd, source: Source, interest: Interest) -> io::Result<()> {
    registry.register(&mut SourceFd(&raw(fd)), source.token(), interest)
}

fn unwatch(registry: &Registry, fd: &impl AsFd) {
    let _ = registry.deregister(&mut SourceFd(&raw(fd)));
}

fn drained(drained: Drained) -> Turn {
    match drained {
        Drained::Again => Turn::Again,
        Drained::Wait => Turn::Wait,
    }
}

fn raw(fd: &impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}

/// Lets go of the caller's stdin, stdout and stderr, which it may be waiting to see closed.
pub fn detach_stdio() {
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty());
    let Ok(null) = null else { return crate::warn!("Failed to open /dev/null") };
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::unistd::dup2_stderr(&null);
    crate::diag::detach();
}
