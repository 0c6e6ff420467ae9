//! RemoveContainer.

use std::sync::Arc;
use std::time::Duration;

use super::{Container, end, stop, volumes};
use crate::daemon::{Daemon, whole};
use crate::error::Result;
use crate::events::Kind;
use crate::image::Store;
use crate::state;

/// Ends a container if need be, and removes all that was its own but the log. One that is not there is fine.
pub async fn remove(daemon: &Arc<Daemon>, id: &str) -> Result<()> {
    let Some(container) = daemon.containers.find(id) else { return Ok(()) };
    let daemon = Arc::clone(daemon);
    whole(async move { remove_it(&daemon, &container).await }).await
}

async fn remove_it(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    stop::end_process(daemon, container, Duration::ZERO).await?;
    let _turn = container.turn.lock().await;
    if daemon.containers.find(container.id()).is_none() {
        return Ok(());
    }
    end::clean(daemon, container).await?;
    forget(daemon, container).await?;
    daemon.events.tell(Kind::Deleted, container.id(), &container.record.pod);
    Ok(())
}

/// Removes the files of a container that has nothing else any more.
pub async fn forget(daemon: &Daemon, container: &Container) -> Result<()> {
    let (id, dirs) = (container.id().to_owned(), container.dirs().clone());
    let work = move |images: &Store| {
        volumes::release(&dirs)?;
        state::remove_dir(&dirs.run)?;
        let retired = images.retire_rw(&id)?;
        // The last, since everything else is found through it.
        state::remove_dir(&dirs.root)?;
        Ok(retired)
    };
    let retired = daemon.images_blocking(work).await?;
    daemon.containers.remove(container.id());
    daemon.container_names.release(&container.name());
    // Nobody waits for gigabytes that a container has written.
    let images = Arc::clone(&daemon.images);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = images.sweep(&retired) {
            tracing::warn!("{error}");
        }
    });
    Ok(())
}
