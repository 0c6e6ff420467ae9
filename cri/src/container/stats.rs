use std::sync::Arc;
use super::Container;
use crate::daemon::Daemon;
use crate::error::Result;
pub struct Stats;
pub async fn of(_: &Arc<Daemon>, _: &Arc<Container>) -> Result<Stats> { todo!() }
