//! The command line: what was typed ([`Args`]) and what it means ([`Options`]).
//!
//! Callers match the refusals by text and try options one at a time, so the checks below keep conmon's order and
//! words.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

use crate::args::{self, Args, Charset, Typed};
use crate::diag::Level;
use crate::usage;

pub use crate::args::Refusal;

mod argv;
mod log;

use log::{log_drivers, positive};

/// What the command line asks for.
#[derive(Clone, Debug)]
pub enum Parsed {
    /// Supervise; the texts are warnings, without prefix, for `diag::say` once it knows the wanted level.
    Run(Box<Options>, Vec<String>),
    /// Say whether the state in this descriptor could be resumed.
    CheckState(Box<Options>, RawFd),
    /// Go on with the state in this descriptor.
    Resume(Box<Options>, RawFd),
    /// Text for stdout, exit status 0.
    Help(String),
    /// Text for stdout, exit status 0.
    Version(String),
}

/// Parses and checks the words after the program name, up to where the log files are opened. Looks at the file system
/// only to see that the runtime may be executed and what the working directory is.
#[inline(never)]
pub fn parse(
    words: impl Iterator<Item = OsString>,
    env: &impl Fn(&str) -> Option<OsString>,
) -> Result<Parsed, Refusal> {
    let args = match args::read(words, Charset::of(env))? {
        Typed::Help => return Ok(Parsed::Help(usage::help())),
        Typed::Args(args) if args.version => return Ok(Parsed::Version(usage::version())),
        Typed::Args(args) => *args,
    };
    let (resume, check) = (args.resume, args.check_state);
    let mut cwd = std::env::current_dir();
    if resume.or(check).is_some() && cwd.is_err() {
        // It was removed; a container that runs does not end over that.
        cwd = Ok(PathBuf::from("."));
    }
    let options = Box::new(Options::check(args, env, cwd)?);
    let warnings = options.warnings();
    Ok(match (resume, check) {
        (Some(state), _) => Parsed::Resume(options, state),
        (None, Some(state)) => Parsed::CheckState(options, state),
        (None, None) => Parsed::Run(options, warnings),
    })
}

/// What the monitor was started to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `runtime create`.
    Create,
    /// `runtime restore` from this checkpoint image.
    Restore { image: PathBuf },
    /// `runtime exec` with this OCI process file; `attach` waits for a second start message.
    Exec { process: PathBuf, attach: bool },
}

/// Where output goes (`--log-path DRIVER[:PATH]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogDriver {
    K8sFile(PathBuf),
    JsonFile(PathBuf),
    Journald,
    Passthrough,
    None,
}

/// Where the Cap'n Proto service is (`--rpc-socket`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RpcSocket {
    /// `conward.sock` in the bundle.
    InBundle,
    At(PathBuf),
    /// Nowhere.
    None,
}

impl RpcSocket {
    fn of(typed: Option<OsString>) -> Result<RpcSocket, Refusal> {
        match typed {
            None => Ok(RpcSocket::InBundle),
            Some(text) if text == "none" => Ok(RpcSocket::None),
            Some(text) if Path::new(&text).is_absolute() => Ok(RpcSocket::At(text.into())),
            Some(_) => Err(Refusal::early("rpc-socket must be an absolute path or none")),
        }
    }
}

/// Limits and manners of the log files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPolicy {
    /// `--log-size-max`: bytes per file; `None` is no limit.
    pub size_max: Option<u64>,
    /// `--log-global-size-max`: bytes over all files; `None` is no limit.
    pub global_size_max: Option<u64>,
    /// `--log-rotate`: keep backups instead of replacing the file.
    pub rotate: bool,
    /// `--log-max-files`: number of backups kept with `rotate`.
    pub max_files: u32,
    /// `--log-allowlist-dir`: if not empty, log files must lie below one of these.
    pub allowlist: Vec<PathBuf>,
    /// Not `--no-sync-log`: fsync the log at the end.
    pub sync: bool,
    /// `--log-line-max`: content bytes per record; longer lines are cut into `P` records.
    pub line_max: usize,
    /// `--log-utc`: stamps in UTC instead of local time.
    pub utc: bool,
    /// `--log-file-mode`: permission bits of a log file that is created.
    pub file_mode: u32,
}

/// Identity for journald entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalIdentity {
    pub tag: Option<OsString>,
    /// Each `LABEL=VALUE`, checked.
    pub labels: Vec<OsString>,
    /// Not `--no-container-partial-message`.
    pub mark_partial: bool,
    /// A line that begins with `<N>`, N from 0 to 7, gets PRIORITY N; the environment can turn this off.
    pub parse_priority: bool,
}

/// The checked command line; immutable after start.
#[derive(Clone, Debug)]
pub struct Options {
    pub mode: Mode,
    /// 0 or 1: `--api-version` is a flag.
    pub api_version: u8,
    pub cid: OsString,
    pub cuuid: Option<OsString>,
    pub name: Option<OsString>,
    /// As typed, because it is the target text of the socket symlink. In create and restore the working directory by
    /// default; `None` only in exec without `-b`.
    pub bundle: Option<PathBuf>,
    /// Given to the runtime; `<cwd>/pidfile-<cid>` by default.
    pub container_pidfile: PathBuf,
    pub conmon_pidfile: Option<PathBuf>,
    pub runtime: PathBuf,
    pub runtime_args: Vec<OsString>,
    pub runtime_opts: Vec<OsString>,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub systemd_cgroup: bool,
    pub replace_listen_pid: bool,
    pub terminal: bool,
    pub stdin: bool,
    pub leave_stdin_open: bool,
    pub full_attach: bool,
    pub socket_dir: PathBuf,
    pub exit_dir: Option<PathBuf>,
    pub persist_dir: Option<PathBuf>,
    pub exit_command: Option<PathBuf>,
    pub exit_command_args: Vec<OsString>,
    pub exit_delay: Duration,
    pub timeout: Option<Duration>,
    /// `--sync`: stay in the started process.
    pub foreground: bool,
    pub sdnotify_socket: Option<OsString>,
    pub log_drivers: Vec<LogDriver>,
    pub log: LogPolicy,
    pub journal: JournalIdentity,
    pub log_level: Level,
    pub syslog: bool,
    /// `--attach-stall-timeout`: disconnect a client that takes nothing for so long, where there is no readable log.
    pub attach_stall_timeout: Option<Duration>,
    /// `--rpc-socket`: where the service is.
    pub rpc_socket: RpcSocket,
    /// `--history-held-max`: bytes of rotated, unlinked log that are kept for clients that are behind.
    pub history_held_max: u64,
}

impl Options {
    /// Checks in the order of conmon, whose test suite gives one more option at a time and expects the next complaint.
    fn check(
        args: Args,
        env: &impl Fn(&str) -> Option<OsString>,
        cwd: io::Result<PathBuf>,
    ) -> Result<Options, Refusal> {
        let log = LogPolicy::check(&args)?;
        let attach_stall_timeout = not_negative("attach-stall-timeout", args.attach_stall_timeout)?;
        let history_held_max = not_negative("history-held-max", args.history_held_max)?;
        let cid = args.cid.ok_or_else(|| Refusal::early("Container ID not provided. Use --cid"))?;
        let log_level = level(args.log_level.as_deref())?;
        check_combination(args.exec, args.exec_attach, args.restore.is_some(), args.api_version)?;
        if args.cuuid.is_none() && (!args.exec || args.api_version) {
            return Err(Refusal::late("Container UUID not provided. Use --cuuid"));
        }
        let handed_over = args.resume.or(args.check_state).is_some();
        let runtime = runtime(args.runtime, handed_over)?;
        let mode = mode(args.exec, args.exec_attach, args.exec_process_spec, args.restore)?;
        let cwd = cwd.map_err(|_| Refusal::late("Failed to get working directory"))?;
        let exit_delay = exit_delay(args.exit_delay)?;
        let log_drivers = log_drivers(&args.log_paths)?;

        let bundle = match (args.bundle, &mode) {
            (Some(bundle), _) => Some(PathBuf::from(bundle)),
            (None, Mode::Exec { .. }) => None,
            (None, _) => Some(cwd.clone()),
        };
        let default_pidfile = || {
            let mut name = OsString::from("pidfile-");
            name.push(&cid);
            cwd.join(name)
        };
        let quiet = env("CONWARD_JOURNALD_PRIORITY").is_some_and(|value| value == "off");
        Ok(Options {
            mode,
            api_version: u8::from(args.api_version),
            container_pidfile: args.container_pidfile.map_or_else(default_pidfile, PathBuf::from),
            cid,
            cuuid: args.cuuid,
            name: args.name,
            bundle,
            conmon_pidfile: args.conmon_pidfile.map(PathBuf::from),
            runtime,
            runtime_args: args.runtime_args,
            runtime_opts: args.runtime_opts,
            no_pivot: args.no_pivot,
            no_new_keyring: args.no_new_keyring,
            systemd_cgroup: args.systemd_cgroup,
            replace_listen_pid: args.replace_listen_pid,
            terminal: args.terminal,
            stdin: args.stdin,
            leave_stdin_open: args.leave_stdin_open,
            full_attach: args.full_attach,
            socket_dir: args.socket_dir.map_or_else(|| PathBuf::from(SOCKET_DIR), PathBuf::from),
            exit_dir: not_empty(args.exit_dir).map(PathBuf::from),
            persist_dir: not_empty(args.persist_dir).map(PathBuf::from),
            exit_command: not_empty(args.exit_command).map(PathBuf::from),
            exit_command_args: args.exit_command_args,
            exit_delay,
            timeout: seconds(args.timeout),
            foreground: args.sync,
            sdnotify_socket: not_empty(args.sdnotify_socket),
            log_drivers,
            log,
            journal: JournalIdentity {
                tag: args.log_tag,
                labels: args.log_labels,
                mark_partial: !args.no_partial_message,
                parse_priority: !quiet,
            },
            log_level,
            syslog: args.syslog,
            attach_stall_timeout: seconds(attach_stall_timeout),
            rpc_socket: RpcSocket::of(args.rpc_socket)?,
            history_held_max: history_held_max.map_or(HISTORY_HELD_MAX, i64::unsigned_abs),
        })
    }

    /// The checks that conmon makes after it has opened the log files: which driver takes a tag and labels.
    pub fn check_log(&self) -> Result<(), Refusal> {
        if self.log_drivers.contains(&LogDriver::Journald) {
            return self.journal.check(&self.cid);
        }
        let files = self.log_drivers.iter().filter_map(LogDriver::file_driver);
        for driver in files {
            if self.journal.tag.is_some() {
                return Err(Refusal::late(format!("{driver} doesn't support --log-tag")));
            }
            if !self.journal.labels.is_empty() {
                return Err(Refusal::late(format!("{driver} doesn't support --log-label")));
            }
        }
        Ok(())
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.journal.mark_partial && !self.log_drivers.contains(&LogDriver::Journald) {
            warnings.push("--no-container-partial-message has no effect without journald log driver".to_owned());
        }
        warnings
    }

    /// True if the container uses the caller's own stdio: nothing is captured and nobody can attach.
    pub fn passthrough(&self) -> bool {
        self.log_drivers.contains(&LogDriver::Passthrough)
    }
}

fn level(name: Option<&OsStr>) -> Result<Level, Refusal> {
    let Some(name) = name else { return Ok(Level::default()) };
    let name = name.to_string_lossy();
    Level::parse(&name).ok_or_else(|| Refusal::late(format!("No such log level {name}")))
}

fn check_combination(exec: bool, attach: bool, restore: bool, api: bool) -> Result<(), Refusal> {
    if restore && exec {
        return Err(Refusal::late("Cannot use 'exec' and 'restore' at the same time"));
    }
    if attach && !exec {
        return Err(Refusal::late("Attach can only be specified with exec"));
    }
    if attach && !api {
        return Err(Refusal::late("Attach can only be specified for a non-legacy exec session"));
    }
    Ok(())
}

/// A monitor that takes over does not need the runtime any more.
fn runtime(path: Option<OsString>, handed_over: bool) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(path.ok_or_else(|| Refusal::late("Runtime path not provided. Use --runtime"))?);
    // access(2), so that a directory passes as it does with conmon; its tests use one.
    match access(&path, AccessFlags::X_OK) {
        _ if handed_over => Ok(path),
        Ok(()) => Ok(path),
        Err(errno) => {
            Err(Refusal::late(format!("Runtime path {} is not valid {}", path.display(), strerror(&errno.into()))))
        }
    }
}

/// The C library's words for an error, as conmon prints them: without the number that the standard library adds.
pub fn strerror(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn mode(exec: bool, attach: bool, process: Option<OsString>, restore: Option<OsString>) -> Result<Mode, Refusal> {
    match (exec, process, restore) {
        (true, Some(process), _) => Ok(Mode::Exec { process: process.into(), attach }),
        (true, None, _) => Err(Refusal::late("Exec process spec path not provided. Use --exec-process-spec")),
        (false, _, Some(image)) => Ok(Mode::Restore { image: image.into() }),
        (false, _, None) => Ok(Mode::Create),
    }
}

fn exit_delay(typed: Option<i32>) -> Result<Duration, Refusal> {
    let text = "Delay before invoking exit command must be greater than or equal to 0";
    let delay = u64::try_from(typed.unwrap_or(0)).map_err(|_| Refusal::late(text))?;
    Ok(Duration::from_secs(delay))
}

fn not_negative<N: PartialOrd + Default + Copy + std::fmt::Display>(
    name: &str,
    typed: Option<N>,
) -> Result<Option<N>, Refusal> {
    match typed {
        Some(number) if number < N::default() => {
            Err(Refusal::early(format!("{name} must be non-negative, got {number}")))
        }
        typed => Ok(typed),
    }
}

fn seconds(typed: Option<i32>) -> Option<Duration> {
    positive(typed.map(i64::from)).map(Duration::from_secs)
}

/// An empty name of something optional means that it is not wanted; taken as a path it would mean the working directory.
fn not_empty(value: Option<OsString>) -> Option<OsString> {
    value.filter(|value| !value.is_empty())
}

/// conmon's default, from the days when CRI-O was its only caller.
const SOCKET_DIR: &str = "/var/run/crio";

/// 64 MiB.
const HISTORY_HELD_MAX: u64 = 64 << 20;

#[cfg(test)]
mod tests;
