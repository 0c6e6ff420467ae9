//! SPDY/3.1 as the kubelet, crictl and kubectl up to 1.30 speak it: one upgraded connection with a few streams.

pub mod connection;
pub mod frames;

pub use connection::{Connection, Output, Patience, Stream};
