//! The one owner and its loop.
//!
//! An event marks its source as ready; a ready source gets a bounded turn and answers whether there is more. With
//! nothing ready the loop sleeps until an event or the nearest deadline. Nothing in here may end the monitor once the
//! runtime has been started: a part that fails is given up, and the container's bytes go on.
//!
//! What runs rarely is kept out of line: the loop's frame is memory that every idle monitor has.

pub mod saved;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::read;

use crate::attach::{Attach, Received};
use crate::console::{self, Received as FromConsole};
use crate::control::{Command, Drained, Fifo, Kind};
use crate::exit::{End, ExitFiles};
use crate::kill;
use crate::log::Log;
use crate::notify::Relay;
use crate::oom::{OomWatch, Verdict, Wake};
use crate::options::{Mode, Options};
use crate::parent::{Reports, set_nonblocking};
use crate::runtime;
use crate::session::{Phase, Session};
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
}

/// What starting the runtime takes.
#[derive(Debug)]
pub struct Launch {
    pub theirs: [Option<OwnedFd>; 3],
    pub mask: libc::sigset_t,
    pub oom_score_adj: Option<std::ffi::CString>,
    pub listen_pid: Option<std::ffi::OsString>,
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
        });
        monitor.register_all()?;
        Ok(monitor)
    }

    fn register_all(&self) -> io::Result<()> {
        self.watch(&self.signals, Source::Signals, Interest::READABLE)?;
        for output in self.session.outputs.iter().flatten() {
            self.watch(output, Source::Output(output.stream), Interest::READABLE)?;
        }
        if let Some(console) = &self.session.console {
            self.watch(console, Source::Console, Interest::READABLE)?;
        }
        if let Some(notify) = &self.notify {
            self.watch(notify, Source::Notify, Interest::READABLE)?;
        }
        Ok(())
    }

    fn watch(&self, fd: &impl AsFd, source: Source, interest: Interest) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&raw(fd)), source.token(), interest)
    }

    fn unwatch(&self, fd: &impl AsFd) {
        let _ = self.poll.registry().deregister(&mut SourceFd(&raw(fd)));
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
        while !matches!(self.session.phase, Phase::Ended | Phase::Failed) {
            let timeout = if self.ready.is_empty() { self.timers.next() } else { Some(Duration::ZERO) };
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                crate::warn!("Failed to wait for events: {error}");
            }
            for event in &events {
                if let Some(source) = Source::of(event.token()) {
                    self.mark(source, event.is_read_closed(), event.is_write_closed());
                }
            }
            let before = self.session.phase;
            self.turn();
            if before == Phase::Starting && self.session.phase == Phase::Running {
                sys::release_memory();
            }
            if std::mem::take(&mut self.replace) {
                self.replace();
            }
        }
    }

    #[inline(never)]
    fn replace(&mut self) {
        let Err(refusal) = upgrade::replace(self, None);
        crate::warn!("{refusal}");
        // What it took is given back.
        self.timers.set(Timer::Trim, TRIM_AFTER);
    }

    fn mark(&mut self, source: Source, read_closed: bool, write_closed: bool) {
        match source {
            Source::Output(stream) => {
                if let Some(output) = &mut self.session.outputs[stream.index()] {
                    output.hung_up |= read_closed;
                }
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
    }

    fn handle(&mut self, source: Source) -> Turn {
        match source {
            Source::Signals => self.take_signals(),
            Source::Start => self.start_message(),
            Source::Output(stream) => self.pump(stream),
            Source::Input => self.flush_input(),
            Source::Console => self.advance_console(),
            Source::Listener => self.accept(),
            Source::Client(id) => self.serve_client(id),
            Source::Ctl => self.read_commands(|monitor| &mut monitor.ctl),
            Source::Winsz => self.read_commands(|monitor| &mut monitor.winsz),
            Source::Notify => self.notify.as_mut().map_or(Turn::Wait, |relay| drained(relay.relay())),
            Source::Oom => self.check_oom(),
            Source::Process => self.process_gone(),
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
            Some(start) if self.watch(start, Source::Start, Interest::READABLE).is_ok() => {}
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
        let Some(bundle) = self.options.bundle.as_deref().filter(|_| !self.options.passthrough()) else {
            return Ok(());
        };
        let attach = Attach::create(self.options, bundle)?;
        let ctl = Fifo::create(bundle, "ctl", Kind::Ctl).map_err(|error| error.to_string())?;
        let winsz = Fifo::create(bundle, "winsz", Kind::Winsz).map_err(|error| error.to_string())?;
        self.watch(&attach, Source::Listener, Interest::READABLE)
            .and_then(|()| self.watch(&ctl, Source::Ctl, Interest::READABLE))
            .and_then(|()| self.watch(&winsz, Source::Winsz, Interest::READABLE))
            .map_err(|error| format!("Failed to watch attach socket and FIFOs in {}: {error}", bundle.display()))?;
        (self.attach, self.ctl, self.winsz) = (Some(attach), Some(ctl), Some(winsz));
        Ok(())
    }

    #[inline(never)]
    fn start_message(&mut self) -> Turn {
        if let Some(start) = self.start.take() {
            // The content means nothing, and neither does end of file.
            let _ = read(&start, &mut self.read_buffer.bytes()[..8192]);
            self.unwatch(&start);
            self.start_runtime();
        }
        Turn::Wait
    }

    /// After this line we may no longer die: there may be a container that depends on us.
    fn start_runtime(&mut self) {
        let path = self.session.console.as_ref().map(console::Console::path);
        let inherit = runtime::Inherit {
            mask: &self.launch.mask,
            oom_score_adj: self.launch.oom_score_adj.as_deref(),
            listen_pid: self.launch.listen_pid.clone(),
        };
        self.session.phase = Phase::Starting;
        match runtime::start(self.options, path.as_deref(), &self.launch.theirs, &inherit) {
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
            while self.session.console.is_some() && self.advance_console() == Turn::Again {}
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
        let outcome = match status {
            Status::Exited(code) => format!("runtime {runtime} exited with status {code}"),
            Status::Signaled(signal) => format!("runtime {runtime} was killed by signal {signal}"),
        };
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
        let pidfd = self.session.process.as_ref().and_then(|process| process.pidfd.as_ref());
        if let Some(pidfd) = pidfd
            && !sys::is_child(pid)
            && let Err(error) = self.watch(pidfd, Source::Process, Interest::READABLE)
        {
            crate::warn!("Failed to watch process {pid}: {error}");
        }
        for stream in Stream::ALL {
            self.wake(Source::Output(stream));
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
        let starting = self.session.phase == Phase::Starting;
        let Some(output) = &mut self.session.outputs[stream.index()] else { return Turn::Wait };
        let (complaint, attach, log) = (&mut self.session.complaint, &mut self.attach, &mut self.log);
        let (registry, out) = (self.poll.registry(), self.out_buffer.bytes());
        let before = output.offset;
        let turn = output.pump(self.read_buffer.bytes(), |stream, chunk| {
            if starting && stream == Stream::Stderr {
                complaint.add(chunk);
            }
            let recorded = log.write(out, stream, chunk);
            let Some(attach) = attach.as_mut().filter(|attach| !attach.is_empty()) else { return true };
            attach.offer(registry, stream, chunk, recorded);
            !attach.holds_up(stream)
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
            self.unwatch(output);
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

    fn flush_input(&mut self) -> Turn {
        let before = self.session.input.ready();
        if self.session.input.flush() && !before {
            if let Input::Open { fd, .. } = &self.session.input {
                self.unwatch(fd);
            }
            self.wake_typing_clients();
        }
        Turn::Wait
    }

    fn wake_typing_clients(&mut self) {
        let waiting: Vec<u32> = self.attach.iter().flat_map(|attach| attach.readable().collect::<Vec<_>>()).collect();
        for id in waiting {
            self.wake(Source::Client(id));
        }
    }

    /// Gives input to the container, and asks to hear when it takes more if it did not take all.
    fn give_input(&mut self, count: usize) {
        self.session.input.write(&self.read_buffer.bytes()[..count]);
        self.busy |= count > KEPT;
        if !self.session.input.ready()
            && let Input::Open { fd, .. } = &self.session.input
            && let Err(error) = self.watch(fd, Source::Input, Interest::WRITABLE)
        {
            crate::warn!("Failed to watch the container's input: {error}");
        }
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
                self.wake(Source::Output(stream));
            }
        }
        let input = self.receive(id);
        if output == Turn::Again || input == Turn::Again { Turn::Again } else { Turn::Wait }
    }

    /// Passes a client's input on, a few packets a turn, while the container takes it.
    fn receive(&mut self, id: u32) -> Turn {
        for _ in 0..ROUNDS {
            let Some(client) = self.attach.as_mut().and_then(|attach| attach.client(id)) else { return Turn::Wait };
            if !client.readable || !self.session.input.ready() {
                return Turn::Wait;
            }
            match client.receive(self.read_buffer.bytes()) {
                Received::Bytes(count) => self.give_input(count),
                Received::Nothing => return Turn::Wait,
                Received::End => {
                    self.stopped_typing(id);
                    return Turn::Wait;
                }
            }
        }
        Turn::Again
    }

    /// A client shut down its sending side or left: the container's stdin ends with the last one who types.
    fn stopped_typing(&mut self, id: u32) {
        let others = self.attach.as_ref().is_some_and(|attach| attach.others_type(id));
        if self.options.stdin && !self.options.leave_stdin_open && !others {
            if let Input::Open { fd, .. } = &self.session.input {
                self.unwatch(fd);
            }
            self.session.input.close();
            self.wake_typing_clients();
        }
        if self.attach.as_mut().and_then(|attach| attach.client(id)).is_some_and(|client| client.has_left()) {
            self.client_gone(id);
        }
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
                self.wake(Source::Output(stream));
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
    fn advance_console(&mut self) -> Turn {
        let Some(console) = &mut self.session.console else { return Turn::Wait };
        let before = raw(console);
        match console.advance() {
            Ok(FromConsole::Nothing) => Turn::Wait,
            Ok(FromConsole::Connected) => {
                let _ = self.poll.registry().deregister(&mut SourceFd(&before));
                self.watch_console()
            }
            Ok(FromConsole::Terminal(terminal)) => {
                self.unwatch_console();
                self.session.console = None;
                if let Err(error) = self.take_terminal(terminal) {
                    self.fail(format!("Failed to set up terminal: {error}").into_bytes());
                }
                Turn::Wait
            }
            Err(error) => {
                self.unwatch_console();
                self.session.console = None;
                self.fail_with_complaint(&format!("Failed to receive terminal from runtime: {error}"));
                Turn::Wait
            }
        }
    }

    fn watch_console(&mut self) -> Turn {
        let Some(console) = &self.session.console else { return Turn::Wait };
        match self.watch(console, Source::Console, Interest::READABLE) {
            Ok(()) => Turn::Again,
            Err(error) => {
                self.fail(format!("Failed to watch console socket: {error}").into_bytes());
                Turn::Wait
            }
        }
    }

    fn unwatch_console(&self) {
        if let Some(console) = &self.session.console {
            self.unwatch(console);
        }
    }

    fn take_terminal(&mut self, terminal: OwnedFd) -> io::Result<()> {
        console::prepare(&terminal);
        set_nonblocking(terminal.as_fd())?;
        let output = Output::new(Stream::Stdout, terminal.try_clone()?, true, false);
        self.watch(&output, Source::Output(Stream::Stdout), Interest::READABLE)?;
        self.session.outputs[Stream::Stdout.index()] = Some(output);
        self.session.input = Input::open(terminal.try_clone()?);
        self.session.terminal = Some(terminal);
        if let Some((rows, cols)) = self.session.window {
            self.session.resize(rows, cols);
        }
        self.wake_typing_clients();
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
            self.apply(command);
        }
        turn.map_or(Turn::Wait, drained)
    }

    /// The one place where what the outside asks for is done.
    pub fn apply(&mut self, command: Command) {
        match command {
            Command::Resize { rows, cols } if self.options.terminal => self.session.resize(rows, cols),
            Command::Resize { .. } => crate::debug!("Ignored a resize: the container has no terminal"),
            Command::ReopenLog => {
                // Failure was said already, and the old file is kept.
                let _ = self.log.reopen();
            }
        }
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
        }
    }

    /// A process that is no child of ours is gone, and nobody will tell us how it ended.
    fn process_gone(&mut self) -> Turn {
        self.check_oom();
        self.session.ended(End::Unknown);
        Turn::Wait
    }

    fn expire(&mut self, timer: Timer) {
        match timer {
            Timer::Timeout => self.time_is_up(),
            Timer::Killed => self.session.ended(End::TimedOut),
            Timer::Trim => self.trim(),
            Timer::Stall => self.drop_stalled(),
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
            self.wake(Source::Output(Stream::Stdout));
            self.wake(Source::Output(Stream::Stderr));
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
                if let Err(error) = self.watch(&watch.fd(), Source::Oom, interest) {
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

impl Phase {
    fn is_over(self) -> bool {
        matches!(self, Phase::Ended | Phase::Failed)
    }
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
}
