//! The way to a monitor's service, and a loop for what is said there.

use std::path::PathBuf;

use super::amount::patience;
use super::scene::Live;
use super::wait;
use super::{Fail, Outcome};

impl From<conmon_proto::Error> for Fail {
    fn from(error: conmon_proto::Error) -> Fail {
        Fail::Wrong(format!("a call failed: {error}"))
    }
}

/// Where a monitor listens.
pub fn socket(live: &Live) -> PathBuf {
    live.dir.join("b/conward.sock")
}

/// Connects as soon as the socket is there.
pub async fn connect(live: &Live) -> Outcome<conmon_proto::Client> {
    let path = socket(live);
    wait::until("the service's socket", wait::SOON, || Ok(path.exists().then_some(())))?;
    Ok(conmon_proto::connect(&path).await?)
}

/// Runs a client on this thread, for a bounded time.
pub fn talk<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let bounded = async { tokio::time::timeout(patience(), work).await };
    tokio::task::LocalSet::new()
        .block_on(&runtime, bounded)
        .map_err(|_| Fail::Wrong("a client had no answer in time".to_owned()))?
}
