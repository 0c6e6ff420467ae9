//! podman with this monitor: what a person does with podman must work when `--conmon` points here.
//!
//! Every case has a podman of its own (store, locks, events, configuration) below one scratch directory, so cases run side
//! by side and touch nothing of the host's. `CONWARD=/usr/bin/conmon` runs the same cases against the original.
//!
//! ```text
//! podman [--list] [WORD…]     cases whose name contains one of the words; KEEP=1 keeps the scratch directory
//! ```
#![allow(clippy::print_stdout)] // A runner reports on stdout.

#[path = "podman/suite.rs"]
mod suite;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some(suite::inside::WORD) => suite::inside::main(&words[1..]),
        _ => suite::runner::main(&words, suite::CASES),
    }
}
