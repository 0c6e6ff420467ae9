//! The process that a person starts: it starts the one that measures, and whatever becomes of that (finished, panicked,
//! interrupted) ends every process that is left and removes the scratch directory.

use std::{
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
    time::Duration,
};

use nix::sys::{
    prctl::set_child_subreaper,
    signal::{SigSet, Signal},
};

use super::{
    WORKER,
    measures::MEASURES,
    options::{Options, USAGE},
    processes::end_descendants,
};

pub fn main(words: &[String]) -> ExitCode {
    let options = match Options::parse(words) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if options.help {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    if options.list {
        MEASURES.iter().for_each(|measure| println!("{:<10} {}", measure.name, measure.what));
        return ExitCode::SUCCESS;
    }
    supervise(words, options.realtime).unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn supervise(words: &[String], realtime: bool) -> std::io::Result<ExitCode> {
    let scratch = tempfile::Builder::new().prefix("sbs-").tempdir()?;
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect();
    // Blocked before there is a child, so that none is missed; the worker unblocks them.
    signals.thread_block()?;
    // What the worker leaves behind becomes our child.
    set_child_subreaper(true)?;
    let mut worker = worker(scratch.path(), words, realtime)?;
    let code = wait(&mut worker, &signals)?;
    end_descendants(Duration::from_secs(10));
    scratch.close()?;
    Ok(code)
}

fn worker(scratch: &Path, words: &[String], realtime: bool) -> std::io::Result<Child> {
    let own = std::env::current_exe()?;
    let mut command = if realtime { Command::new("chrt") } else { Command::new(&own) };
    if realtime {
        command.args(["--rr", "1"]).arg(&own);
    }
    command.arg(WORKER).arg(scratch).args(words).spawn()
}

/// Waits for the end of the worker, or for a signal that ends all.
fn wait(worker: &mut Child, signals: &SigSet) -> std::io::Result<ExitCode> {
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => {
                if let Some(status) = worker.try_wait()? {
                    return Ok(code(status));
                }
            }
            signal => {
                eprintln!("\nended by {signal}, cleaning up");
                return Ok(ExitCode::from((128 + signal as i32).to_le_bytes()[0]));
            }
        }
    }
}

fn code(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCode::from(code.to_le_bytes()[0]),
        (None, signal) => {
            eprintln!("\nthe benchmark was ended by signal {}", signal.unwrap_or(0));
            ExitCode::FAILURE
        }
    }
}
