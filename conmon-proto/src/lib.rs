//! The service that a `conward` monitor offers, for programs that use it.
//!
//! The schema is `schema/conward.capnp`; `tools/schema` makes the types from it.

// Made by a program, for a program.
#[allow(clippy::all, clippy::pedantic, missing_debug_implementations)]
#[rustfmt::skip]
pub mod conward_capnp;
