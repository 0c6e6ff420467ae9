//! conward under a real systemd, and beside a real journald: units that podman prints, the unit that comes with
//! conward, and the contract of the journal. Each case boots a box of its own (`rig`).
//!
//! `cargo test --release --test systemd -- [FILTER…] [--list]`. Where no box can be made, the cases are skipped and say
//! so. `SYSTEMD_BOX` names the program that makes them.

#[path = "../support/mod.rs"]
mod support;

mod bundle;
mod cgroup;
mod cri;
mod journal;
mod own;
mod podman;
mod rig;
mod unit;

use std::process::ExitCode;

use support::suite::{Case, say};

fn main() -> ExitCode {
    let asked = |word: &str| std::env::args().any(|arg| arg == word);
    if !rig::is_ready() && !asked("--list") && !asked("--one") {
        say(&format!("cannot run the table: {}", rig::build_and_go_on()));
        return ExitCode::FAILURE;
    }
    let parts = [cgroup::cases(), cri::cases(), podman::cases(), unit::cases(), journal::cases(), own::cases()];
    support::suite::main(&parts.into_iter().flatten().map(Case::native).collect::<Vec<_>>())
}
