//! The rooms of the `conward` monitor; `main.rs` is the program.
//!
//! Data flows one way: `stdio` reads the container, `log` writes it down, `attach` passes it on.
//! Requests become a `Command` that the one owner, `monitor`, applies.

pub mod args;
pub mod attach;
pub mod command;
pub mod console;
pub mod control;
pub mod daemon;
pub mod diag;
pub mod error;
pub mod exec;
pub mod exit;
pub mod finish;
pub mod kill;
pub mod log;
pub mod monitor;
pub mod notify;
pub mod oom;
pub mod options;
pub mod parent;
pub mod policy;
pub mod rpc;
pub mod runtime;
pub mod session;
pub mod source;
pub mod stdio;
pub mod stream;
pub mod sys;
pub mod timers;
pub mod upgrade;
pub mod usage;
