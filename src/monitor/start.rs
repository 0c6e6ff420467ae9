//! From a monitor that is set up to a container that runs: the doors, the runtime, what it says, the terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use mio::Interest;
use mio::unix::SourceFd;
use nix::unistd::read;

use super::{Monitor, raw, unwatch, watch};
use crate::attach::Attach;
use crate::console::{self, Received};
use crate::control::{Fifo, Kind};
use crate::options::Mode;
use crate::parent::{detach_stdio, set_nonblocking};
use crate::runtime;
use crate::session::{CONTAINER, Id, Phase};
use crate::source::Source;
use crate::stdio::{Input, Output, Turn};
use crate::stream::Stream;
use crate::sys::{self, Status};
use crate::timers::Timer;

impl Monitor<'_> {
    /// Opens the doors and starts the runtime, or waits for the message that says so.
    #[inline(never)]
    pub(super) fn begin(&mut self) {
        let clients_first = matches!(self.options.mode, Mode::Exec { attach: true, .. });
        match self.open_doors() {
            Ok(()) if clients_first && self.attach.is_some() => self.reports.ready(),
            Ok(()) => {}
            Err(reason) if clients_first => {
                self.reports.not_ready(reason.as_bytes());
                return self.fail(Vec::new());
            }
            Err(reason) => return self.fail(reason.into_bytes()),
        }
        match &self.start {
            Some(start) if watch(self.poll.registry(), start, Source::Start, Interest::READABLE).is_ok() => {}
            // No pipe, or not something one can wait for, such as a file: it has said all it will.
            _ => self.start_runtime(),
        }
    }

    /// Makes what the outside reaches us by: the attach socket and the FIFOs.
    pub(super) fn open_doors(&mut self) -> Result<(), String> {
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
    pub(super) fn start_message(&mut self) -> Turn {
        if let Some(start) = self.start.take() {
            // The content means nothing, and neither does end of file.
            let _ = read(&start, &mut self.read_buffer.bytes()[..8192]);
            unwatch(self.poll.registry(), &start);
            self.start_runtime();
        }
        Turn::Wait
    }

    /// After this line we may no longer die: there may be a container that depends on us.
    pub(super) fn start_runtime(&mut self) {
        let path = self.session.console.as_ref().map(console::Console::path);
        self.session.phase = Phase::Starting;
        let words = self.options.runtime_argv(path.as_deref());
        let started = runtime::own_listen_pid(self.options, self.launch.listen_pid.as_deref()).and_then(|own| {
            let inherit = runtime::Inherit {
                mask: &self.launch.mask,
                file: None,
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
    pub(super) fn runtime_ended(&mut self, status: Status) {
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
    pub(super) fn started_pid(&self, status: Status) -> Result<i32, String> {
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
    pub(super) fn started(&mut self, pid: i32) {
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
    pub(super) fn watch_stranger(&mut self, id: Id) {
        let Some(process) = self.session(id).and_then(|session| session.process.as_ref()) else { return };
        let pid = process.pid;
        if process.pidfd.is_none() && !sys::is_child(pid) && sys::pidfd_open(pid).is_err_and(is_gone) {
            // Somebody else has reaped it before we knew of it.
            return self.stranger_ended(id);
        }
        let Some(process) = self.session(id).and_then(|session| session.process.as_ref()) else { return };
        let Some(pidfd) = process.pidfd.as_ref().filter(|_| !sys::is_child(pid)).map(raw) else { return };
        let (token, interest) = (Source::Process(id).token(), Interest::READABLE);
        if let Err(error) = self.poll.registry().register(&mut SourceFd(&pidfd), token, interest) {
            crate::warn!("Failed to watch process {pid}: {error}");
        }
    }

    /// What the runtime said is the best reason; our own is for when it said nothing.
    #[inline(never)]
    pub(super) fn fail_with_complaint(&mut self, reason: &str) {
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

    pub(super) fn fail(&mut self, message: Vec<u8>) {
        self.session.phase = Phase::Failed;
        self.failure = message;
    }

    #[inline(never)]
    pub(super) fn advance_console(&mut self, id: Id) -> Turn {
        let Some(console) = self.session(id).and_then(|session| session.console.as_mut()) else { return Turn::Wait };
        let before = raw(console);
        let received = console.advance();
        let after = raw(console);
        match received {
            Ok(Received::Nothing) => Turn::Wait,
            Ok(Received::Connected) => {
                let registry = self.poll.registry();
                let _ = registry.deregister(&mut SourceFd(&before));
                let token = Source::Console(id).token();
                match registry.register(&mut SourceFd(&after), token, Interest::READABLE) {
                    Ok(()) => Turn::Again,
                    Err(error) => self.console_failed(id, &format!("Failed to watch console socket: {error}")),
                }
            }
            Ok(Received::Terminal(terminal)) => {
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

    pub(super) fn drop_console(&mut self, id: Id) {
        if let Some(console) = self.session(id).and_then(|session| session.console.take()) {
            unwatch(self.poll.registry(), &console);
        }
    }

    pub(super) fn console_failed(&mut self, id: Id, reason: &str) -> Turn {
        match id {
            CONTAINER => self.fail_with_complaint(reason),
            id => self.fail_exec(id, reason),
        }
        Turn::Wait
    }

    pub(super) fn take_terminal(&mut self, id: Id, terminal: OwnedFd) -> io::Result<()> {
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
}

fn is_gone(error: io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESRCH)
}
