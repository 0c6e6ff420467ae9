//! The whole monitor in the state that an upgrade hands over, and how a new program goes on with it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::RawFd;

use mio::Interest;
use nix::sys::signalfd::SignalFd;

use super::{Launch, Monitor, Parts, TRIM_AFTER};
use crate::attach::Attach;
use crate::control::{Fifo, Kind};
use crate::exit::ExitFiles;
use crate::log::Log;
use crate::notify::Relay;
use crate::oom::{OomWatch, Verdict, Wake};
use crate::options::Options;
use crate::parent::Reports;
use crate::session::Session;
use crate::source::Source;
use crate::stdio::Input;
use crate::stream::Stream;
use crate::sys;
use crate::timers::{Timer, Timers};
use crate::upgrade::state::{Given, StateError, Taken, VERSION};
use crate::upgrade::state_capnp::{launch, state};

/// What a state says, taken over; nothing is registered yet.
#[derive(Debug)]
pub struct Saved {
    pub name: CString,
    pub inherited: Vec<RawFd>,
    session: Session,
    log: Log,
    attach: Option<Attach>,
    ctl: Option<Fifo>,
    winsz: Option<Fifo>,
    notify: Option<Relay>,
    oom: Option<OomWatch>,
    verdict: Verdict,
    reports: Reports,
    exit_files: ExitFiles,
    timers: Timers,
    launch: Launch,
}

impl Monitor<'_> {
    /// Saves a monitor whose session runs; `name` is the process's.
    #[inline(never)]
    pub fn save(&self, name: &CStr, mut to: state::Builder<'_>, given: &mut Given) {
        to.set_version(VERSION);
        to.set_name(name.to_bytes());
        self.session.save(to.reborrow().init_session(), given);
        self.log.save(to.reborrow().init_log(), given);
        if let Some(attach) = &self.attach {
            attach.save(to.reborrow().init_attach(), given);
        }
        if let Some(ctl) = &self.ctl {
            ctl.save(to.reborrow().init_ctl(), given);
        }
        if let Some(winsz) = &self.winsz {
            winsz.save(to.reborrow().init_winsz(), given);
        }
        if let Some(notify) = &self.notify {
            notify.save(to.reborrow().init_notify(), given);
        }
        if let Some(oom) = &self.oom {
            oom.save(to.reborrow().init_oom(), given);
        }
        self.verdict.save(to.reborrow().init_verdict());
        self.reports.save(to.reborrow().init_reports(), given);
        self.exit_files.save(to.reborrow());
        self.timers.save(to.reborrow().init_timers());
        self.launch.save(to.reborrow().init_launch());
        let mut inherited = to.init_inherited(u32::try_from(self.inherited.len()).unwrap_or(0));
        for (index, number) in (0..).zip(&self.inherited) {
            inherited.set(index, *number);
        }
    }
}

impl Launch {
    fn save(&self, mut to: launch::Builder<'_>) {
        to.set_mask(sys::mask_bits(&self.mask));
        if let Some(score) = &self.oom_score_adj {
            to.set_has_oom_score_adj(true);
            to.set_oom_score_adj(score.to_bytes());
        }
    }

    fn restore(from: launch::Reader<'_>) -> Result<Launch, StateError> {
        let score = from.get_has_oom_score_adj().then(|| c_string(from.get_oom_score_adj()?, "oomScoreAdj"));
        Ok(Launch {
            theirs: [None, None, None],
            mask: sys::mask_of(from.get_mask()),
            oom_score_adj: score.transpose()?,
            listen_pid: std::env::var_os("LISTEN_PID"),
        })
    }
}

fn c_string(bytes: &[u8], field: &'static str) -> Result<CString, StateError> {
    CString::new(bytes).map_err(|_| StateError::Value(field))
}

impl Saved {
    /// Takes over all parts of a state.
    #[inline(never)]
    pub fn read(from: state::Reader<'_>, options: &Options, taken: &mut Taken) -> Result<Saved, StateError> {
        let bundle = options.bundle.as_deref();
        let attach = from.has_attach().then(|| {
            let bundle = bundle.ok_or(StateError::Value("attach"))?;
            Attach::restore(bundle, from.get_attach()?, taken)
        });
        let attach = attach.transpose()?;
        let ctl = from.has_ctl().then(|| Fifo::restore(Kind::Ctl, from.get_ctl()?, taken)).transpose()?;
        let winsz = from.has_winsz().then(|| Fifo::restore(Kind::Winsz, from.get_winsz()?, taken)).transpose()?;
        let notify = from.has_notify().then(|| {
            let host = options.sdnotify_socket.as_deref().ok_or(StateError::Value("notify"))?;
            Relay::restore(host, from.get_notify()?, taken)
        });
        let notify = notify.transpose()?;
        let oom = from.has_oom().then(|| OomWatch::restore(from.get_oom()?, taken)).transpose()?;
        let mut exit_files = ExitFiles::new(options);
        exit_files.restore(from.get_exit_files()?)?;
        Ok(Saved {
            name: c_string(from.get_name()?, "name")?,
            session: Session::restore(from.get_session()?, taken)?,
            log: Log::restore(from.get_log()?, options, taken)?,
            attach,
            ctl,
            winsz,
            notify,
            oom,
            verdict: Verdict::restore(from.get_verdict()?)?,
            reports: Reports::restore(options, from.get_reports()?, taken)?,
            exit_files,
            timers: Timers::restore(from.get_timers()?)?,
            launch: Launch::restore(from.get_launch()?)?,
            inherited: from.get_inherited()?.iter().filter(|number| *number > 2).collect(),
        })
    }
}

impl<'a> Monitor<'a> {
    /// Goes on with what another program has handed over. Whatever happened meanwhile is found by looking.
    #[inline(never)]
    pub fn resume(options: &'a Options, saved: Saved, signals: SignalFd) -> io::Result<Box<Monitor<'a>>> {
        let parts = Parts { log: saved.log, notify: saved.notify, reports: saved.reports, start: None, signals };
        let mut monitor = Monitor::new(options, saved.session, parts, saved.launch)?;
        monitor.attach = saved.attach;
        (monitor.ctl, monitor.winsz) = (saved.ctl, saved.winsz);
        (monitor.oom, monitor.verdict) = (saved.oom, saved.verdict);
        (monitor.exit_files, monitor.timers) = (saved.exit_files, saved.timers);
        monitor.inherited = saved.inherited;
        monitor.watch_parts();
        monitor.wake_all();
        // What reading the state took is given back as after any other load.
        monitor.timers.set(Timer::Trim, TRIM_AFTER);
        Ok(monitor)
    }

    /// Registers what [`Monitor::new`] does not know; a part that cannot be watched is given up.
    fn watch_parts(&mut self) {
        let watched = [
            self.attach.as_ref().map(|attach| self.watch(attach, Source::Listener, Interest::READABLE)),
            self.ctl.as_ref().map(|ctl| self.watch(ctl, Source::Ctl, Interest::READABLE)),
            self.winsz.as_ref().map(|winsz| self.watch(winsz, Source::Winsz, Interest::READABLE)),
            self.oom.as_ref().map(|oom| self.watch(&oom.fd(), Source::Oom, interest(oom.wake()))),
            self.pending_input().map(|fd| self.watch(fd, Source::Input, Interest::WRITABLE)),
            self.stranger().map(|pidfd| self.watch(pidfd, Source::Process, Interest::READABLE)),
        ];
        for error in watched.into_iter().flatten().filter_map(Result::err) {
            crate::warn!("Failed to watch after an upgrade: {error}");
        }
    }

    fn pending_input(&self) -> Option<&std::os::fd::OwnedFd> {
        match &self.session.input {
            Input::Open { fd, pending } if !pending.is_empty() => Some(fd),
            _ => None,
        }
    }

    /// The pidfd of a process that is no child of ours.
    fn stranger(&self) -> Option<&std::os::fd::OwnedFd> {
        let process = self.session.process.as_ref().filter(|process| !sys::is_child(process.pid))?;
        process.pidfd.as_ref()
    }

    /// Every source gets its turn once: an event before the exec will not come again. (But a process that is no child
    /// is gone when its pidfd says so, and only then.)
    fn wake_all(&mut self) {
        self.wake(Source::Listener);
        for stream in Stream::ALL {
            self.wake(Source::Output(stream));
        }
        for source in [Source::Signals, Source::Input, Source::Ctl, Source::Winsz, Source::Notify, Source::Oom] {
            self.wake(source);
        }
        let clients = self.attach.as_mut().map(|attach| attach.watch_all(self.poll.registry())).unwrap_or_default();
        for id in clients {
            self.wake(Source::Client(id));
        }
    }
}

fn interest(wake: Wake) -> Interest {
    match wake {
        Wake::Priority => Interest::PRIORITY,
        Wake::Readable => Interest::READABLE,
    }
}
