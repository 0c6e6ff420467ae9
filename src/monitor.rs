//! The one owner and its loop.
//!
//! An event marks its source as ready; a ready source gets a bounded turn and answers whether there is more. With
//! nothing ready the loop sleeps until an event or the nearest deadline. Nothing in here may end the monitor once the
//! runtime has been started: a part that fails is given up, and the container's bytes go on.
//!
//! What it does is below, by the time in a container's life: `start`, `output` and `input`, `execs`, requests from FIFOs
//! and from the `service`, the `end`; `saved` is how it goes on in another program.
//!
//! What runs rarely is kept out of line: the loop's frame is memory that every idle monitor has.

mod end;
mod execs;
mod input;
mod output;
pub mod saved;
mod service;
mod start;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry};
use nix::sys::signalfd::SignalFd;

use crate::attach::Attach;
use crate::control::{Drained, Fifo};
use crate::exit::ExitFiles;
use crate::log::Log;
use crate::notify::Relay;
use crate::oom::{OomWatch, Verdict};
use crate::options::Options;
use crate::parent::Reports;
use crate::policy::{Action, Meter, Policy};
use crate::rpc::{Answer, Service};
use crate::session::{CONTAINER, Id, Phase, Session};
use crate::source::Source;
use crate::stdio::Turn;
use crate::sys::{self, Arena};
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
    /// The container's end is on record: whoever waits for it need not.
    published: Option<bool>,
    pub execs: execs::Execs,
    /// How much each stream may log.
    pub meters: [Meter; 2],
    /// How many connections to the service are taken.
    arrivals: Meter,
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

/// Connections to the service per second and at once: a storm of them is to cost the container next to nothing.
const ARRIVALS: Policy = Policy::Limit { rate: 1000, burst: 64, action: Action::BackPressure };

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
            published: None,
            execs: execs::Execs::default(),
            meters: Default::default(),
            arrivals: Meter::new(ARRIVALS),
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
