//! The service that a `conward` monitor offers, for programs that use it.
//!
//! The schema is `schema/conward.capnp`; `tools/schema` makes the types from it. With the feature `client` there is a
//! typed client in plain Rust over any stream, with `tokio` also [`connect`].

// Made by a program, for a program.
#[allow(clippy::all, clippy::pedantic, missing_debug_implementations)]
#[rustfmt::skip]
pub mod conward_capnp;

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod error;
#[cfg(feature = "client")]
mod output;
#[cfg(feature = "client")]
mod request;
#[cfg(feature = "tokio")]
mod socket;
#[cfg(feature = "client")]
mod types;

#[cfg(feature = "client")]
pub use client::{Attachment, Client, Driver, Exec};
#[cfg(feature = "client")]
pub use error::{Code, Error, Refusal};
#[cfg(feature = "client")]
pub use output::{Event, Events, Output, output};
#[cfg(feature = "client")]
pub use request::{Action, AttachRequest, ExecSpec, History, LogPolicy, OnDisconnect};
#[cfg(feature = "tokio")]
pub use socket::connect;
#[cfg(feature = "client")]
pub use types::*;
