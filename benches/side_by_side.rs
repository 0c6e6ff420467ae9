//! Side by side: the same work for Debian's conmon and for conward, as a Markdown table of medians and ratios.
//!
//! Containers come from an OCI runtime that costs next to nothing (this program in another role: it forks a process and
//! writes the pid file), so that what is compared is the monitor. The two take turns in random order, round by round, and
//! each ratio is the median over the rounds: on a noisy machine trust the ratios more than the figures.
//!
//! ```text
//! cargo bench --bench side_by_side -- [--quick] [--only LIST] [--rounds N] [--realtime] [--json FILE] [--list]
//! CONMON=/path CONWARD=/path          the two programs (default: conmon of the PATH, and the one built here)
//! ```
#![allow(clippy::print_stdout)] // The table goes to stdout.

#[path = "side_by_side/suite.rs"]
mod suite;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("create" | "exec") => suite::runtime::main(&words),
        Some(suite::WORKER) => suite::work(&words[1..]),
        _ => suite::supervisor::main(&words),
    }
}
