use std::sync::Arc;
use super::Pod;
use crate::daemon::Daemon;
use crate::error::Result;
pub struct Stats;
pub async fn stats(_: &Arc<Daemon>, _: &Arc<Pod>) -> Result<Stats> { todo!() }
