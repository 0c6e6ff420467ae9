use std::sync::Arc;
use super::{Container, Record};
use crate::daemon::Daemon;
use crate::error::Result;
use crate::image::Image;
use crate::sandbox::Pod;
pub fn stop_signal(_: &Image) -> i32 { 15 }
pub fn lay_out(_: &Arc<Daemon>, _: &Arc<Pod>, _: &Arc<Container>, _: &Image) -> Result<Record> { todo!() }
