//! A small Kubernetes CRI server: pods and containers by OCI runtimes, CNI plugins and overlayfs, with one conward
//! monitor per container.
//!
//! `server` decodes requests, calls `sandbox`, `container` and `image`, and encodes the answers. These use `network`,
//! `runtime`, `monitor` and `state`; `streaming` carries exec, attach and port-forward. One [`daemon::Daemon`] owns all.

pub mod cgroup;
pub mod check;
pub mod config;
pub mod container;
pub mod daemon;
pub mod error;
pub mod events;
pub mod idmap;
pub mod image;
pub mod metrics;
pub mod monitor;
pub mod names;
pub mod network;
pub mod runtime;
pub mod sandbox;
pub mod serve;
pub mod server;
pub mod state;
pub mod streaming;
mod sys;
