//! From the caller's command to a running monitor: the first process, the fork, and the set-up behind it.
//!
//! The caller waits for the first process and sees its stderr; what fails behind the fork is reported over the sync
//! and attach pipes instead, and never changes the first process's status.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{read, setsid};

use crate::console::{self, Console};
use crate::exit::Slot;
use crate::finish::finish;
use crate::log::Log;
use crate::monitor::{Launch, Monitor, Parts};
use crate::notify::Relay;
use crate::options::{LogDriver, Mode, Options};
use crate::parent::{self, Reports, detach_stdio};
use crate::runtime::Stdio;
use crate::session::Session;
use crate::stdio::{Input, Output};
use crate::stream::Stream;
use crate::sys::{self, Arena, Fork};

/// What the environment says to a monitor.
#[derive(Debug)]
pub struct Environment {
    pub start_pipe: Option<String>,
    pub sync_pipe: Option<String>,
    pub attach_pipe: Option<String>,
    pub listen_pid: Option<OsString>,
    pub tmpdir: Option<OsString>,
    /// Descriptors from 3 that were open when we started, without the pipes above: those have owners.
    pub inherited: Vec<RawFd>,
}

impl Environment {
    /// Takes stock; to be called before anything is opened.
    #[inline(never)]
    pub fn read() -> Environment {
        let inherited = open_descriptors();
        let text = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let mut environment = Environment {
            inherited,
            start_pipe: text("_OCI_STARTPIPE").filter(|value| !value.is_empty() && value != "0"),
            sync_pipe: text("_OCI_SYNCPIPE"),
            attach_pipe: text("_OCI_ATTACHPIPE"),
            listen_pid: std::env::var_os("LISTEN_PID"),
            tmpdir: std::env::var_os("TMPDIR"),
        };
        let pipes = [&environment.start_pipe, &environment.sync_pipe, &environment.attach_pipe];
        let owned: Vec<RawFd> =
            pipes.into_iter().flatten().filter_map(|value| value.trim_start().parse().ok()).collect();
        // A number whose owner closes it is soon another descriptor's.
        environment.inherited.retain(|fd| !owned.contains(fd));
        environment
    }
}

fn open_descriptors() -> Vec<RawFd> {
    // Before the listing's large buffer, so that nothing lives behind that on the heap when it is freed.
    let mut numbers: Vec<RawFd> = Vec::with_capacity(16);
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    numbers.extend(entries.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok()).filter(|fd| *fd > 2));
    // The descriptor of the listing itself is closed by now.
    numbers.retain(|fd| sys::is_open(*fd));
    numbers
}

/// The first process: waits for the caller's go-ahead and forks the monitor, unless it is to be the monitor itself.
/// Returns the exit status, or the line for stderr.
#[inline(never)]
pub fn run(options: &Options, log: Log, environment: Environment) -> Result<u8, String> {
    let start = open_start_pipe(environment.start_pipe.as_deref())?;
    let oom_score_adj = hide_from_oom_killer();
    sys::ignore_sigpipe();
    sys::exit_1_on_sigterm();
    let start = wait_for_start(options, start)?;
    if !options.foreground {
        match sys::fork().map_err(|error| format!("Failed to fork: {error}"))? {
            Fork::Parent(pid) => return write_pidfile(options, pid).map(|()| 0),
            Fork::Child => {}
        }
    }
    stay(options, log, &environment, start, oom_score_adj)
}

/// The monitor's whole life; in a frame of its own, which is all that an idle monitor's stack holds.
#[inline(never)]
fn stay(
    options: &Options,
    log: Log,
    environment: &Environment,
    start: Option<OwnedFd>,
    oom_score_adj: Option<CString>,
) -> Result<u8, String> {
    confine();
    let mut monitor = set_up(options, log, environment, start, oom_score_adj)?;
    monitor.inherited.clone_from(&environment.inherited);
    monitor.run();
    Ok(finish(monitor, &environment.inherited))
}

/// What a monitor can give up without taking it from its children: no process of the same user traces it or reads its
/// memory and descriptors, and it leaves no core with a container's output in it. A program that is executed starts
/// afresh (prctl(2), `PR_SET_DUMPABLE`), so runtime, container and exit command have what they always had. What is
/// inherited, and so not done, is in `docs/threat-model.md`.
pub fn confine() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        crate::debug!("Failed to become undumpable: {error}");
    }
}

fn open_start_pipe(value: Option<&str>) -> Result<Option<OwnedFd>, String> {
    let Some(value) = value else { return Ok(None) };
    parent::adopt(value).map(Some).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => format!("unable to parse _OCI_STARTPIPE {value:?}"),
        _ => format!("unable to make _OCI_STARTPIPE CLOEXEC: {value}: {error}"),
    })
}

/// Returns what the score was, for the runtime and the exit command.
fn hide_from_oom_killer() -> Option<CString> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let before = fs::read_to_string(PATH).ok()?;
    if let Err(error) = fs::write(PATH, "-1000") {
        crate::debug!("Failed to set oom_score_adj to -1000: {error}");
    }
    CString::new(before.trim_end()).ok()
}

/// Blocks until the caller has written or closed: meanwhile it moves us to a cgroup. With `--exec-attach` there is a
/// second message, and the pipe is kept for it.
#[inline(never)]
fn wait_for_start(options: &Options, start: Option<OwnedFd>) -> Result<Option<OwnedFd>, String> {
    let Some(start) = start else { return Ok(None) };
    let mut message = Arena::new(8192).map_err(|error| format!("Failed to get memory: {error}"))?;
    loop {
        match read(&start, message.bytes()) {
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(format!("start-pipe read failed: {error}")),
            Ok(_) => break,
        }
    }
    Ok(matches!(options.mode, Mode::Exec { attach: true, .. }).then_some(start))
}

#[inline(never)]
fn write_pidfile(options: &Options, pid: i32) -> Result<(), String> {
    let Some(path) = &options.conmon_pidfile else { return Ok(()) };
    let name = path.file_name().ok_or_else(|| format!("conmon pidfile {} has no file name", path.display()))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(".".as_ref());
    let written = Slot::new(dir, name).publish(pid.to_string().as_bytes());
    written.map(drop).map_err(|error| format!("Failed to write conmon pidfile {}: {error}", path.display()))
}

// ---------------------------------------------------------------- behind the fork

/// Sets up the monitor. A failure goes to the sync and attach pipes as far as those exist.
#[inline(never)]
fn set_up<'a>(
    options: &'a Options,
    log: Log,
    environment: &Environment,
    start: Option<OwnedFd>,
    oom_score_adj: Option<CString>,
) -> Result<Box<Monitor<'a>>, String> {
    // The notify socket comes first, but its failure can only be told when the pipes are open.
    let notify = bind_notify(options);
    let (sync, attach) = (environment.sync_pipe.as_deref(), environment.attach_pipe.as_deref());
    let mut reports = Reports::open(options, sync, attach)?;
    let prepared = notify.and_then(|notify| {
        let (session, theirs) = prepare(options, environment)?;
        let mask = sys::signal_mask();
        let signals = block_signals().map_err(|error| format!("Failed to set up signals: {error}"))?;
        // Where there is no pipe the runtime inherits our stdio: /dev/null, or the caller's own with passthrough.
        let console_base = console::base(environment.tmpdir.as_deref().map(OsStr::new));
        let launch = Launch { theirs, mask, oom_score_adj, listen_pid: environment.listen_pid.clone(), console_base };
        Ok((notify, session, signals, launch))
    });
    let (notify, session, signals, launch) =
        prepared.inspect_err(|reason: &String| reports.not_ready(reason.as_bytes()))?;
    let parts = Parts { log, notify, reports, start, signals };
    Monitor::new(options, session, parts, launch).map_err(|error| format!("Failed to set up the event loop: {error}"))
}

fn bind_notify(options: &Options) -> Result<Option<Relay>, String> {
    let (Some(host), Some(bundle)) = (&options.sdnotify_socket, &options.bundle) else { return Ok(None) };
    Relay::bind(bundle, host).map(Some).map_err(|error| error.to_string())
}

/// Makes us a daemon with the container's pipes; the session, and the pipe ends of the runtime.
fn prepare(options: &Options, environment: &Environment) -> Result<(Session, [Option<OwnedFd>; 3]), String> {
    if !options.passthrough() {
        detach_stdio();
    }
    // Fails in a process group leader, which is as good.
    let _ = setsid();
    prctl::set_child_subreaper(true).map_err(|error| format!("Failed to set as subreaper: {error}"))?;
    let mut stdio = match options.passthrough() {
        true => Stdio::default(),
        false => {
            Stdio::new(options.terminal, options.stdin).map_err(|error| format!("Failed to make pipes: {error}"))?
        }
    };
    let theirs = std::mem::take(&mut stdio.theirs);
    Ok((session(options, stdio, environment)?, theirs))
}

fn session(options: &Options, stdio: Stdio, environment: &Environment) -> Result<Session, String> {
    let may_grow = options.log_drivers.iter().any(|driver| matches!(driver, LogDriver::K8sFile(_)));
    let output = |stream, fd: Option<OwnedFd>| fd.map(|fd| Output::new(stream, fd, false, may_grow));
    let outputs = [output(Stream::Stdout, stdio.stdout), output(Stream::Stderr, stdio.stderr)];
    let input = match stdio.stdin {
        Some(fd) => Input::open(fd),
        None if options.terminal && !options.passthrough() => Input::Expected,
        None => Input::Closed,
    };
    let mut session = Session::new(input, outputs);
    if options.terminal && !options.passthrough() {
        let base = console::base(environment.tmpdir.as_deref().map(OsStr::new));
        let console = Console::create(&base)
            .map_err(|error| format!("Failed to make console socket in {}: {error}", base.display()))?;
        session.console = Some(console);
    }
    Ok(session)
}

/// All signals that mean something to us arrive over a descriptor.
pub fn block_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        set.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
