//! The same cases against Debian's conmon and against conward, one column each.
//!
//! `cargo test --test compat -- [FILTER…] [--list] [--only conmon|conward]`. `CONMON` and `CONWARD` name other programs.

#[path = "../support/mod.rs"]
mod support;

mod attach;
mod cli;
mod confined;
mod control;
mod exec;
mod journald;
mod lifecycle;
mod log;
mod notify;
mod oomgroup;
mod runtime;
mod tty;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = support::roles::dispatch() {
        return code;
    }
    let cases: Vec<_> = [
        cli::cases(),
        lifecycle::cases(),
        runtime::cases(),
        confined::cases(),
        tty::cases(),
        attach::cases(),
        control::cases(),
        log::cases(),
        journald::cases(),
        notify::cases(),
        exec::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    support::suite::main(&cases)
}
