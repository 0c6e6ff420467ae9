//! The command line: what was typed ([`Args`]) and what it means ([`Options`]).

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::diag::Level;

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
    /// In create and restore the working directory by default; `None` only in exec without `-b`.
    pub bundle: Option<PathBuf>,
    /// The `-b` text as typed, for the symlink's target; equals `bundle` when not given.
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
    /// `--history-held-max`: bytes of rotated, unlinked log that are kept for clients that are behind.
    pub history_held_max: u64,
}

impl Options {
    /// True if the container uses the caller's own stdio: nothing is captured and nobody can attach.
    pub fn passthrough(&self) -> bool {
        self.log_drivers.contains(&LogDriver::Passthrough)
    }
}
