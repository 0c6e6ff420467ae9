//! The whole monitor in the state that an upgrade hands over, and how a new program goes on with it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::RawFd;

use mio::Interest;
use nix::sys::signalfd::SignalFd;

use super::execs::{EXECS_MAX, Execs, RESULTS_MAX};
use super::{Launch, Monitor, Parts, TRIM_AFTER, watch};
use crate::attach::Attach;
use crate::console;
use crate::control::{Fifo, Kind};
use crate::exec::{Exec, Outcome};
use crate::exit::ExitFiles;
use crate::log::Log;
use crate::notify::Relay;
use crate::oom::{OomWatch, Verdict, Wake};
use crate::options::Options;
use crate::parent::Reports;
use crate::policy::Meter;
use crate::rpc::Service;
use crate::session::{CONTAINER, Session};
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
    service: Option<Service>,
    meters: [Meter; 2],
    execs: Execs,
}

impl Monitor<'_> {
    /// Saves a monitor whose session runs; `name` is the process's.
    #[inline(never)]
    pub fn save(&self, name: &CStr, mut to: state::Builder<'_>, given: &mut Given) {
        to.set_version(VERSION);
        to.set_name(name.to_bytes());
        self.session.save(to.reborrow().init_session(), given);
        self.log.save(to.reborrow().init_log(), given);
        if let Some(attach) = self.attach.as_ref().filter(|attach| attach.listener().is_some()) {
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
        to.set_service(self.service.as_ref().map_or(0, |service| given.give(service)));
        let mut policies = to.reborrow().init_policies(2);
        for (index, meter) in (0..).zip(&self.meters) {
            meter.save(policies.reborrow().get(index));
        }
        self.execs.save(to.reborrow(), given);
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
            console_base: console::base(std::env::var_os("TMPDIR").as_deref()),
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
            service: Service::restore(options, from.get_service(), taken)?,
            meters: restore_meters(from)?,
            execs: Execs::restore(from, taken)?,
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
        (monitor.service, monitor.meters, monitor.execs) = (saved.service, saved.meters, saved.execs);
        monitor.watch_parts();
        monitor.wake_all();
        // What reading the state took is given back as after any other load.
        monitor.timers.set(Timer::Trim, TRIM_AFTER);
        Ok(monitor)
    }

    /// Registers what [`Monitor::new`] does not know; a part that cannot be watched is given up.
    fn watch_parts(&mut self) {
        let registry = self.poll.registry();
        let watched = [
            self.service.as_ref().map(|service| watch(registry, service, Source::Service, Interest::READABLE)),
            self.attach
                .as_ref()
                .and_then(Attach::listener)
                .map(|fd| watch(registry, &fd, Source::Listener, Interest::READABLE)),
            self.ctl.as_ref().map(|ctl| watch(registry, ctl, Source::Ctl, Interest::READABLE)),
            self.winsz.as_ref().map(|winsz| watch(registry, winsz, Source::Winsz, Interest::READABLE)),
            self.oom.as_ref().map(|oom| watch(registry, &oom.fd(), Source::Oom, interest(oom.wake()))),
            self.pending_input().map(|fd| watch(registry, fd, Source::Input(CONTAINER), Interest::WRITABLE)),
            self.stranger().map(|pidfd| watch(registry, pidfd, Source::Process(CONTAINER), Interest::READABLE)),
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
            self.wake(Source::Output(CONTAINER, stream));
        }
        for source in [
            Source::Signals,
            Source::Input(CONTAINER),
            Source::Service,
            Source::Ctl,
            Source::Winsz,
            Source::Notify,
            Source::Oom,
        ] {
            self.wake(source);
        }
        let clients = self.attach.as_mut().map(|attach| attach.watch_all(self.poll.registry())).unwrap_or_default();
        for id in clients {
            self.wake(Source::Client(id));
        }
        self.resume_execs();
    }
}

impl Execs {
    fn save(&self, mut to: state::Builder<'_>, given: &mut Given) {
        to.set_last_exec(self.last);
        let mut running = to.reborrow().init_execs(u32::try_from(self.running.len()).unwrap_or(0));
        for (index, exec) in (0..).zip(&self.running) {
            exec.save(running.reborrow().get(index), given);
        }
        let mut results = to.init_results(u32::try_from(self.results.len()).unwrap_or(0));
        for (index, outcome) in (0..).zip(&self.results) {
            results.set(index, &outcome.save());
        }
    }

    fn restore(from: state::Reader<'_>, taken: &mut Taken) -> Result<Execs, StateError> {
        let (running, results) = (from.get_execs()?, from.get_results()?);
        if running.len() as usize > EXECS_MAX || results.len() as usize > RESULTS_MAX + EXECS_MAX {
            return Err(StateError::Value("execs"));
        }
        Ok(Execs {
            running: running.iter().map(|exec| Exec::restore(exec, taken)).collect::<Result<_, _>>()?,
            results: results.iter().map(|one| Outcome::restore(one?)).collect::<Result<_, StateError>>()?,
            last: from.get_last_exec(),
            claimed: Vec::new(),
        })
    }
}

fn restore_meters(from: state::Reader<'_>) -> Result<[Meter; 2], StateError> {
    let policies = from.get_policies()?;
    let mut meters: [Meter; 2] = Default::default();
    for (meter, policy) in meters.iter_mut().zip(policies) {
        *meter = Meter::restore(policy);
    }
    Ok(meters)
}

fn interest(wake: Wake) -> Interest {
    match wake {
        Wake::Priority => Interest::PRIORITY,
        Wake::Readable => Interest::READABLE,
    }
}
