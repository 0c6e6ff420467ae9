//! The rooms of the `conward` monitor; `main.rs` is the program.
//!
//! Data flows one way: `stdio` reads the container, `log` writes it down, `attach` passes it on.
//! Requests become a `Command` that the one owner, `monitor`, applies.

pub mod control;
pub mod diag;
pub mod log;
pub mod notify;
pub mod oom;
pub mod options;
pub mod stream;
pub mod sys_time;
