//! The server on a host that has cgroup v2 and nothing else, with every controller, in a virtual machine of its own.
//!
//! `RUSTFLAGS= cargo test --package conward-cri --test cgroup2 -- [FILTER…] [--list]`. The machine is made by
//! `cgroup2-vm`, a program beside this repository; it gets this program with the server, and runs the cases in there,
//! with every OCI runtime that the machine has. `CGROUP2_VM` names it, `CGROUP2_VM_DIR` where it keeps what it makes;
//! with `CGROUP2_VM_PACKAGES=runc`, and a directory of its own for such a machine, runc is there beside crun.
//!
//! Where there is no such machine, the cases are skipped and say so. The machine has no network, so its pods are on the
//! host's.

mod cgroups;
mod exec;
mod host;
mod life;
mod limits;
mod machine;
mod oom;
mod restart;
#[path = "../../../tests/support/rig.rs"]
mod rig;
mod stats;
mod suite;

use std::process::ExitCode;

use suite::Case;

fn main() -> ExitCode {
    let cases: Vec<Case> =
        [life::cases(), limits::cases(), stats::cases(), oom::cases(), exec::cases(), restart::cases()]
            .into_iter()
            .flatten()
            .collect();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let chosen = suite::chosen(cases, &words);
    // Words may be meant for the monitor's tests, to which make gives them, too.
    if chosen.is_empty() || words.iter().any(|word| word == "--list") {
        return suite::list(&chosen);
    }
    if let Some(programs) = machine::here() {
        return suite::run(&programs, &chosen);
    }
    match machine::run(&words) {
        Ok(code) => code,
        Err(reason) => suite::without(&reason, &chosen),
    }
}
