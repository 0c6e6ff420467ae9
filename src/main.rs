//! The program: parse, set up, run, exit status.

use std::io::Write;
use std::process::ExitCode;

use conward::daemon::{self, Environment};
use conward::log::Log;
use conward::options::{self, Options, Parsed};
use conward::{diag, error, warn};

fn main() -> ExitCode {
    let environment = Environment::read();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    match options::parse(std::env::args_os().skip(1), &|name| std::env::var_os(name)) {
        Ok(Parsed::Run(options, warnings)) => run(&options, &warnings, environment),
        Ok(Parsed::Help(text) | Parsed::Version(text)) => print(&text),
        Err(refusal) => complain(&refusal.line()),
    }
}

fn run(options: &Options, warnings: &[String], environment: Environment) -> ExitCode {
    diag::init(options.log_level, options.syslog, &ident(options));
    let log = match Log::open(options) {
        Ok(log) => log,
        Err(error) => return complain(&format!("[conmon:e]: Failed to open log file {error}")),
    };
    if let Err(refusal) = options.check_log() {
        return complain(&refusal.line());
    }
    warnings.iter().for_each(|warning| warn!("{warning}"));
    match daemon::run(options, log, environment) {
        Ok(status) => ExitCode::from(status),
        Err(reason) => {
            error!("{reason}");
            ExitCode::FAILURE
        }
    }
}

/// What syslog lines begin with.
fn ident(options: &Options) -> String {
    let cid = options.cid.to_string_lossy();
    match &options.journal.tag {
        Some(tag) => format!("{cid}: {}", tag.to_string_lossy()),
        None => cid.into_owned(),
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(line: &str) -> ExitCode {
    // If stderr is gone, the exit status says it alone.
    let _ = writeln!(std::io::stderr(), "{line}");
    ExitCode::FAILURE
}
