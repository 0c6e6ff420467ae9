//! The service of a running monitor: every call, execs of all kinds, bulk in both directions, and clients that mean ill.
//!
//! `cargo test --release --test service -- [FILTER…] [--list]`; with `SOAK=1` the sizes are those of the specification.

#[path = "../support/mod.rs"]
mod support;

mod bulk;
mod calls;
mod disconnect;
mod exec;
mod hostile;
mod many;
mod peer;
mod policy;
mod rig;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = support::roles::dispatch() {
        return code;
    }
    let parts = [
        calls::cases(),
        exec::cases(),
        disconnect::cases(),
        many::cases(),
        bulk::cases(),
        policy::cases(),
        hostile::cases(),
    ];
    support::suite::main(&parts.into_iter().flatten().map(support::suite::Case::native).collect::<Vec<_>>())
}
