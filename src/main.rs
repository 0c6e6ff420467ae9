//! The program: parse, set up, run, exit status.
//!
//! It has a C `main`: what the standard library does before a Rust one (a guard for the stack, an alternate signal
//! stack, a look at `/proc/self/maps`) costs a tenth of a start and memory in every monitor, and is for programs with
//! threads and deep recursion.

#![no_main]

use std::ffi::{OsStr, c_char, c_int};
use std::io::Write;

use conward::daemon::{self, Environment};
use conward::log::Log;
use conward::options::{self, Options, Parsed};
use conward::{diag, error, sys, upgrade, warn};

const SUCCESS: c_int = 0;
const FAILURE: c_int = 1;

/// The standard library takes the arguments from the C library by itself, so they are not looked at here.
// SAFETY: the one function that the C library calls by this name, with its signature.
#[unsafe(no_mangle)]
pub extern "C" fn main(_count: c_int, _words: *const *const c_char) -> c_int {
    sys::keep_heap_small();
    let _ = conward::rpc::STARTED.set(std::time::SystemTime::now());
    sys::fill_stdio();
    let environment = Environment::read();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    match options::parse(std::env::args_os().skip(1), &|name| std::env::var_os(name)) {
        Ok(Parsed::Run(options, warnings)) => run(&options, &warnings, environment),
        Ok(Parsed::CheckState(options, state)) => match upgrade::check(&options, state) {
            Ok(()) => print(&format!("{}\n", upgrade::ACCEPTED)),
            Err(reason) => complain(&reason),
        },
        Ok(Parsed::Resume(options, state)) => resume(&options, state),
        Ok(Parsed::Help(text) | Parsed::Version(text)) => print(&text),
        Err(refusal) => complain(&refusal.line()),
    }
}

#[inline(never)]
fn run(options: &Options, warnings: &[String], environment: Environment) -> c_int {
    begin(options);
    let log = match Log::open(options) {
        Ok(log) => log,
        Err(error) => return complain(&format!("[conmon:e]: Failed to open log file {}", options::strerror(&error))),
    };
    if let Err(refusal) = options.check_log() {
        return complain(&refusal.line());
    }
    warnings.iter().for_each(|warning| warn!("{warning}"));
    status(daemon::run(options, log, environment))
}

#[inline(never)]
fn resume(options: &Options, state: c_int) -> c_int {
    begin(options);
    if !options.passthrough() {
        diag::detach();
    }
    status(upgrade::resume(options, state))
}

fn status(end: Result<u8, String>) -> c_int {
    match end {
        Ok(status) => c_int::from(status),
        Err(reason) => {
            error!("{reason}");
            FAILURE
        }
    }
}

/// From now on what is said has a sender.
fn begin(options: &Options) {
    let (cid, name) = (options.cid.to_string_lossy(), options.name.as_deref().map(OsStr::to_string_lossy));
    let tag = options.journal.tag.as_deref().map(OsStr::to_string_lossy);
    let whose = diag::Whose { cid: &cid, name: name.as_deref(), tag: tag.as_deref() };
    diag::init(options.log_level, options.syslog, whose);
}

fn print(text: &str) -> c_int {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => SUCCESS,
        Err(_) => FAILURE,
    }
}

fn complain(line: &str) -> c_int {
    // If stderr is gone, the exit status says it alone.
    let _ = writeln!(std::io::stderr(), "{line}");
    FAILURE
}
