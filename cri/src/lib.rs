//! A small Kubernetes CRI server: pods and containers by OCI runtimes, CNI plugins and overlayfs, with one conward
//! monitor per container.

pub mod config;
pub mod container;
pub mod error;
pub mod monitor;
pub mod names;
pub mod state;
pub mod image;
pub mod network;
pub mod sandbox;
pub mod streaming;
