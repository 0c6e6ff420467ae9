//! Nothing is lost and nothing stalls: every byte that a container wrote, under load and when things go wrong.
//!
//! `cargo test --release --test loss -- [FILTER…] [--list]`; with `SOAK=1` the sizes are those of the specification.

#[path = "../support/mod.rs"]
mod support;

mod caps;
mod clients;
mod disk;
mod flow;
mod history;
mod outside;
mod reading;
mod rig;
mod rpc;
mod service;
mod upgrade;
mod volume;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.first().is_some_and(|name| name.ends_with(flow::WRITER)) {
        return match flow::writer(&args[1..]) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(98),
        };
    }
    if let Some(code) = rpc::reader(&args) {
        return code;
    }
    if let Some(code) = upgrade::candidate(&args) {
        return code;
    }
    if let Some(code) = support::roles::dispatch() {
        return code;
    }
    let parts = [
        volume::cases(),
        disk::cases(),
        caps::cases(),
        clients::cases(),
        service::cases(),
        history::cases(),
        outside::cases(),
        upgrade::cases(),
    ];
    support::suite::main(&parts.into_iter().flatten().map(support::suite::Case::native).collect::<Vec<_>>())
}
