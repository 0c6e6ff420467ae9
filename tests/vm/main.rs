//! Limits and the OOM killer on cgroup v2, with a real runtime, in a virtual machine of its own.
//!
//! `cargo test --release --test vm -- [FILTER…] [--list]`. The machine is made by `cgroup2-vm`, a program beside this
//! repository; it gets this program, which runs the cases in there. `CGROUP2_VM` names it, `CGROUP2_VM_DIR` where it
//! keeps what it makes. Where there is no such machine, the cases are skipped and say so. `VM_HERE=1` runs them on this
//! machine, if it has cgroup v2 with a memory controller.

#[path = "../support/mod.rs"]
mod support;

mod confined;
mod many;
mod oom;
mod rig;

use std::process::ExitCode;

use support::suite::Case;

fn main() -> ExitCode {
    if let Some(code) = support::roles::dispatch() {
        return code;
    }
    let cases: Vec<Case> = [oom::cases(), many::cases(), confined::cases()].into_iter().flatten().collect();
    let asked = |word: &str| std::env::args().any(|arg| arg == word);
    if rig::is_here() || asked("--list") || asked("--one") {
        return support::suite::main(&cases);
    }
    match rig::run() {
        Ok(code) => code,
        Err(reason) => rig::without(&reason, &cases),
    }
}
