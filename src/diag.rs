//! The monitor's own diagnostics: stderr until it is detached, and syslog on request.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, OnceLock, PoisonError};

/// How much is said (`--log-level`); each level includes the ones before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    #[default]
    Warning,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// Parses a level name as conmon does: any case, `fatal` and `panic` mean errors only.
    pub fn parse(name: &str) -> Option<Level> {
        Some(match name.to_ascii_lowercase().as_str() {
            "error" | "fatal" | "panic" => Level::Error,
            "warn" | "warning" => Level::Warning,
            "info" => Level::Info,
            "debug" => Level::Debug,
            "trace" => Level::Trace,
            _ => return None,
        })
    }

    const fn letter(self) -> char {
        match self {
            Level::Error => 'e',
            Level::Warning => 'w',
            Level::Info => 'i',
            Level::Debug | Level::Trace => 'd',
        }
    }

    /// Syslog severity with facility user (RFC 5424, 6.2.1): errors are 3, the rest 6.
    const fn syslog_priority(self) -> u8 {
        match self {
            Level::Error => 8 + 3,
            _ => 8 + 6,
        }
    }
}

#[derive(Debug)]
struct Diag {
    level: Level,
    syslog: Option<(UnixDatagram, String)>,
}

static DIAG: OnceLock<Diag> = OnceLock::new();

/// The last errors and warnings, for who asks later.
static LAST: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Complaints that are remembered.
const LAST_MAX: usize = 8;

/// The last errors and warnings, oldest first.
pub fn last() -> Vec<String> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

fn remember(message: fmt::Arguments<'_>) {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.len() >= LAST_MAX {
        last.pop_front();
    }
    last.push_back(message.to_string());
}

/// Sets level and syslog once. `ident` is the container ID (and tag); syslog shows its first 20 characters.
pub fn init(level: Level, syslog: bool, ident: &str) {
    let syslog = syslog.then(connect_syslog).flatten().map(|socket| (socket, ident.chars().take(20).collect()));
    let _ = DIAG.set(Diag { level, syslog });
}

fn connect_syslog() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    // A full syslog socket must never hold up the container.
    socket.set_nonblocking(true).ok()?;
    socket.connect("/dev/log").ok()?;
    Some(socket)
}

/// Says `message` if `level` is wanted; use the macros `error!`, `warn!`, `info!`, `debug!`.
pub fn say(level: Level, message: fmt::Arguments<'_>) {
    if level <= Level::Warning {
        remember(message);
    }
    let (wanted, syslog) = match DIAG.get() {
        Some(diag) => (diag.level, diag.syslog.as_ref()),
        None => (Level::Warning, None),
    };
    if level > wanted {
        return;
    }
    let letter = level.letter();
    // stderr may be gone; there is nobody left to tell.
    let _ = std::io::stderr().write_all(format!("[conmon:{letter}]: {message}\n").as_bytes());
    if let Some((socket, ident)) = syslog {
        let priority = level.syslog_priority();
        let pid = std::process::id();
        let line = format!("<{priority}>conmon[{pid}]: conmon {ident} <{letter}>: {message}");
        let _ = socket.send(line.as_bytes());
    }
}

#[macro_export]
macro_rules! error { ($($arg:tt)*) => { $crate::diag::say($crate::diag::Level::Error, format_args!($($arg)*)) } }
#[macro_export]
macro_rules! warn { ($($arg:tt)*) => { $crate::diag::say($crate::diag::Level::Warning, format_args!($($arg)*)) } }
#[macro_export]
macro_rules! info { ($($arg:tt)*) => { $crate::diag::say($crate::diag::Level::Info, format_args!($($arg)*)) } }
#[macro_export]
macro_rules! debug { ($($arg:tt)*) => { $crate::diag::say($crate::diag::Level::Debug, format_args!($($arg)*)) } }
#[macro_export]
macro_rules! trace { ($($arg:tt)*) => { $crate::diag::say($crate::diag::Level::Trace, format_args!($($arg)*)) } }
