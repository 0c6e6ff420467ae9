//! The monitor's own diagnostics: stderr until it is detached, then the journal; syslog instead of that on request.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::log::JOURNALD;

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

    /// The journal's PRIORITY, which has a number for each level.
    const fn priority(self) -> u8 {
        match self {
            Level::Error => 3,
            Level::Warning => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        }
    }
}

#[derive(Debug)]
struct Diag {
    level: Level,
    syslog: Option<(UnixDatagram, String)>,
    /// Fields that say whose monitor this is, as they are sent.
    whose: Box<str>,
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

/// Whose monitor speaks.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    pub cid: &'a str,
    pub name: Option<&'a str>,
    pub tag: Option<&'a str>,
}

/// Sets level and syslog once. syslog shows the first 20 characters of container ID and tag.
pub fn init(level: Level, syslog: bool, whose: Whose<'_>) {
    let syslog = syslog.then(connect_syslog).flatten().map(|socket| (socket, ident(whose)));
    let _ = DIAG.set(Diag { level, syslog, whose: fields(whose).into() });
}

fn ident(whose: Whose<'_>) -> String {
    let text = match whose.tag {
        Some(tag) => format!("{}: {tag}", whose.cid),
        None => whose.cid.to_owned(),
    };
    text.chars().take(20).collect()
}

/// Fields of the journal by which people look for a container. CONTAINER_ID_FULL is not among them: by that one podman
/// finds what the container itself has said.
fn fields(whose: Whose<'_>) -> String {
    let short: String = whose.cid.chars().take(12).collect();
    let mut text = format!("CONTAINER_ID={}\nCONWARD_ID={}\n", one_line(&short), one_line(whose.cid));
    for (key, value) in [("CONTAINER_NAME", whose.name), ("CONTAINER_TAG", whose.tag)] {
        if let Some(value) = value {
            let _ = writeln!(text, "{key}={}", one_line(value));
        }
    }
    text
}

/// A value that contains a newline would end its field.
fn one_line(value: &str) -> String {
    value.replace('\n', " ")
}

/// stderr has been given up: what is said from now on goes to the journal.
pub fn detach() {
    DETACHED.store(true, Ordering::Relaxed);
}

static DETACHED: AtomicBool = AtomicBool::new(false);

/// Messages that journald did not take; the next one that it takes says how many.
static DROPPED: AtomicU32 = AtomicU32::new(0);

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
    let diag = DIAG.get();
    if level > diag.map_or(Level::Warning, |diag| diag.level) {
        return;
    }
    let syslog = diag.and_then(|diag| diag.syslog.as_ref());
    if DETACHED.load(Ordering::Relaxed) {
        if syslog.is_none() {
            tell_journald(Path::new(JOURNALD), level, message, diag.map_or("", |diag| &diag.whose));
        }
    } else {
        // stderr may be gone; there is nobody left to tell.
        let _ = std::io::stderr().write_all(format!("[conmon:{}]: {message}\n", level.letter()).as_bytes());
    }
    if let Some((socket, ident)) = syslog {
        let (priority, letter) = (level.syslog_priority(), level.letter());
        let pid = std::process::id();
        let line = format!("<{priority}>conmon[{pid}]: conmon {ident} <{letter}>: {message}");
        let _ = socket.send(line.as_bytes());
    }
}

/// Sends one entry. There is something to say so seldom that the socket is not kept, and a journald that is gone, full
/// or stopped is not waited for.
#[inline(never)]
fn tell_journald(path: &Path, level: Level, message: fmt::Arguments<'_>, whose: &str) {
    let dropped = DROPPED.load(Ordering::Relaxed);
    let entry = entry(level, &message.to_string(), whose, dropped);
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(&entry, path)
    });
    match sent {
        Ok(_) => DROPPED.store(0, Ordering::Relaxed),
        Err(_) => DROPPED.store(dropped.saturating_add(1), Ordering::Relaxed),
    }
}

/// An entry in journald's native format (see `log::journald`).
fn entry(level: Level, message: &str, whose: &str, dropped: u32) -> Vec<u8> {
    let message = cut(message);
    let mut entry = b"MESSAGE\n".to_vec();
    entry.extend_from_slice(&(message.len() as u64).to_le_bytes());
    entry.extend_from_slice(message.as_bytes());
    let _ = write!(entry, "\nPRIORITY={}\nSYSLOG_IDENTIFIER=conward\n{whose}", level.priority());
    if dropped > 0 {
        let _ = writeln!(entry, "CONWARD_DROPPED={dropped}");
    }
    entry
}

/// As much of a message as fits into a datagram for certain.
fn cut(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// Longer than any message is meant to be; what a runtime said is 4 KiB at most.
const MESSAGE_MAX: usize = 16 * 1024;

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

#[cfg(test)]
mod tests {
    use super::*;

    const WHOSE: Whose<'_> = Whose { cid: "0123456789abcdef", name: Some("web\nPRIORITY=0"), tag: None };

    /// What comes out at the other end.
    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        let count = socket.recv(&mut bytes).unwrap();
        bytes[..count].escape_ascii().to_string()
    }

    /// One test at a time: the counter of the dropped is everybody's.
    static COUNTER: Mutex<()> = Mutex::new(());

    #[test]
    fn an_entry_says_whose_it_is_and_what_was_dropped() {
        let _alone = COUNTER.lock().unwrap_or_else(PoisonError::into_inner);
        DROPPED.store(0, Ordering::Relaxed);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let whose = fields(WHOSE);
        let tell = |level, text: &str| tell_journald(&path, level, format_args!("{text}"), &whose);
        tell(Level::Error, "nobody is there");
        tell(Level::Error, "nor now");
        let journal = UnixDatagram::bind(&path).unwrap();
        tell(Level::Warning, "two\nlines");
        let who = "CONTAINER_ID=0123456789ab\\nCONWARD_ID=0123456789abcdef\\nCONTAINER_NAME=web PRIORITY=0\\n";
        let expected = format!(
            "MESSAGE\\n\\t\\x00\\x00\\x00\\x00\\x00\\x00\\x00two\\nlines\\nPRIORITY=4\\n\
             SYSLOG_IDENTIFIER=conward\\n{who}CONWARD_DROPPED=2\\n"
        );
        assert_eq!(received(&journal), expected);
        tell(Level::Debug, "x");
        assert!(!received(&journal).contains("DROPPED"));
    }

    #[test]
    fn a_journald_that_stands_still_holds_up_nobody() {
        let _alone = COUNTER.lock().unwrap_or_else(PoisonError::into_inner);
        DROPPED.store(0, Ordering::Relaxed);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _journal = UnixDatagram::bind(&path).unwrap();
        let filler = UnixDatagram::unbound().unwrap();
        filler.set_nonblocking(true).unwrap();
        while filler.send_to(b"x", &path).is_ok() {}
        // Would block for ever.
        tell_journald(&path, Level::Error, format_args!("late"), "");
        assert!(filler.send_to(b"x", &path).is_err(), "there was room after all");
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let text = format!("{}é", "x".repeat(MESSAGE_MAX - 1));
        assert_eq!(cut(&text).len(), MESSAGE_MAX - 1);
        assert_eq!(cut("short"), "short");
    }
}
