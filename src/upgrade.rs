//! Replacing the running monitor by another program, with the same pid, children, pipes and clients.
//!
//! The candidate is run first as `--check-state FD` and must accept the state; then it is executed with `--resume FD` in
//! place of this program. It is one open file both times, so that it cannot be exchanged in between. Up to the exec
//! anything that fails leaves everything as it was; after it there is no way back, so `--resume` refuses nothing that
//! the check did not.

pub mod candidate;
pub mod state;
#[rustfmt::skip]
#[allow(clippy::all, clippy::pedantic, missing_debug_implementations, unused, reason = "tools/schema made it")]
pub mod state_capnp;

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use capnp::message::Builder;
use nix::sys::prctl;

use crate::daemon;
use crate::finish::finish;
use crate::monitor::Monitor;
use crate::options::Options;
use crate::session::Phase;
use crate::sys;
use candidate::{Candidate, Refused};
use state::{Given, StateError, Taken};

/// What a program says to [`check`], and nothing else does.
pub const ACCEPTED: &str = "conward: state accepted";

/// Why the monitor was not replaced; it goes on as before.
#[derive(Debug)]
pub enum UpgradeError {
    /// The container is not known yet, or has ended.
    NotRunning(Phase),
    /// An exec that cannot be handed over is under way.
    Busy(String),
    /// The state could not be written.
    State(StateError),
    /// The candidate could not be found or opened.
    Candidate(PathBuf, io::Error),
    /// The candidate did not accept the state.
    Check(PathBuf, Refused),
    /// The candidate accepted the state, and could not be executed.
    Exec(PathBuf, io::Error),
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failed to replace the monitor: ")?;
        match self {
            UpgradeError::NotRunning(phase) => write!(f, "the container does not run (phase {phase:?})"),
            UpgradeError::Busy(why) => f.write_str(why),
            UpgradeError::State(error) => error.fmt(f),
            UpgradeError::Candidate(path, error) => write!(f, "failed to open {}: {error}", path.display()),
            UpgradeError::Check(path, refused) => write!(f, "check by {}: {refused}", path.display()),
            UpgradeError::Exec(path, error) => write!(f, "failed to execute {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for UpgradeError {}

/// A program that accepted the state of a moment ago.
#[derive(Debug)]
pub struct Checked {
    path: PathBuf,
    candidate: Candidate,
}

/// Asks the program at `path`, or what is now at the path that this one was started from, whether it could take over.
#[inline(never)]
pub fn prepare(monitor: &Monitor<'_>, path: Option<&Path>) -> Result<Checked, UpgradeError> {
    let path = path.map_or_else(candidate::default_path, |path| Ok(path.to_path_buf()));
    let path = path.map_err(|error| UpgradeError::Candidate("/proc/self/exe".into(), error))?;
    let candidate = Candidate::open(&path).map_err(|error| UpgradeError::Candidate(path.clone(), error))?;
    let checked = Checked { path, candidate };
    ask(monitor, &checked)?;
    Ok(checked)
}

/// Replaces this program by a checked one, which is asked again: the state has changed since. Returns only if that is
/// refused. To be called between turns.
#[inline(never)]
pub fn replace(monitor: &mut Monitor<'_>, checked: &Checked) -> Result<Infallible, UpgradeError> {
    ask(monitor, checked)?;
    // Their connections end with this program.
    monitor.send_seats_away();
    let (memory, given) = write(monitor).map_err(UpgradeError::State)?;
    given.numbers().iter().for_each(|number| sys::set_close_on_exec(*number, false));
    let error = checked.candidate.execute(&memory);
    given.numbers().iter().for_each(|number| sys::set_close_on_exec(*number, true));
    Err(UpgradeError::Exec(checked.path.clone(), error))
}

fn ask(monitor: &Monitor<'_>, checked: &Checked) -> Result<(), UpgradeError> {
    let session = &monitor.session;
    if session.phase != Phase::Running || session.runtime.is_some() || session.console.is_some() {
        return Err(UpgradeError::NotRunning(session.phase));
    }
    if let Some(why) = monitor.execs.hold_up() {
        return Err(UpgradeError::Busy(why));
    }
    let (memory, _) = write(monitor).map_err(UpgradeError::State)?;
    let answer = checked.candidate.check(&memory, &monitor.launch.mask);
    answer.map_err(|refused| UpgradeError::Check(checked.path.clone(), refused))
}

/// The state in sealed memory, and the descriptors that it names.
#[inline(never)]
fn write(monitor: &Monitor<'_>) -> Result<(File, Given), StateError> {
    let (mut message, mut given) = (Builder::new_default(), Given::default());
    let name = prctl::get_name().unwrap_or_default();
    monitor.save(&name, message.init_root(), &mut given);
    Ok((state::seal(&message)?, given))
}

/// The candidate's answer: reads the state that a running monitor offers, and touches nothing.
#[inline(never)]
pub fn check(options: &Options, memory: RawFd) -> Result<(), String> {
    let memory = open(memory).map_err(|error| error.to_string())?;
    let mut taken = Taken::stand_ins().map_err(|error| format!("Failed to open /dev/null: {error}"))?;
    state::read(&memory, options, &mut taken).map(drop).map_err(|error| error.to_string())
}

/// Goes on in place of the program that executed us; the exit status at the end.
#[inline(never)]
pub fn resume(options: &Options, memory: RawFd) -> Result<u8, String> {
    let mut monitor = take_over(options, memory)?;
    sys::release_memory();
    monitor.run();
    let inherited = std::mem::take(&mut monitor.inherited);
    Ok(finish(monitor, &inherited))
}

#[inline(never)]
fn take_over(options: &Options, memory: RawFd) -> Result<Box<Monitor<'_>>, String> {
    sys::ignore_sigpipe();
    daemon::confine();
    let memory = open(memory).map_err(|error| error.to_string())?;
    let saved = state::read(&memory, options, &mut Taken::ours()).map_err(|error| error.to_string())?;
    drop(memory);
    // An exec by descriptor is named after its number.
    let _ = prctl::set_name(&saved.name);
    let signals = daemon::block_signals().map_err(|error| format!("Failed to set up signals: {error}"))?;
    Monitor::resume(options, saved, signals).map_err(|error| format!("Failed to set up the event loop: {error}"))
}

fn open(memory: RawFd) -> Result<File, StateError> {
    if memory < 3 {
        return Err(StateError::Descriptor(memory));
    }
    sys::adopt(memory).map(File::from).map_err(|error| StateError::Closed(memory, error))
}

/// The words that this program was started with, without what an upgrade put in front; `before` takes its place.
fn words(before: [&str; 2]) -> io::Result<Vec<CString>> {
    spliced(std::env::args_os().collect(), before).iter().map(|word| sys::c_string(word)).collect()
}

fn spliced(mut words: Vec<OsString>, before: [&str; 2]) -> Vec<OsString> {
    if words.get(1).is_some_and(|word| word == "--resume") {
        words.drain(1..3.min(words.len()));
    }
    // In front, where no `--` of the caller ends the options before.
    let first = 1.min(words.len());
    words.splice(first..first, before.map(OsString::from));
    words
}

fn number(memory: &File) -> String {
    memory.as_raw_fd().to_string()
}

#[cfg(test)]
mod tests;
