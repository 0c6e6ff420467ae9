//! The log: every sink gets every chunk, independently of the others.

pub mod journald;
pub mod json;
pub mod stamp;
