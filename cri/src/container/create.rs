//! CreateContainer.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_cri::v1::ContainerConfig;

use super::{Container, Dirs, Phase, Record, end, facts, remove};
use crate::cgroup;
use crate::daemon::Daemon;
use crate::error::{Context, Error, Result};
use crate::events::Kind;
use crate::image::Image;
use crate::monitor::{self, Launch};
use crate::sandbox::{self, Pod};
use crate::state;

/// Makes a container in a pod; answers with its id. The same name again joins or is refused.
pub async fn create(daemon: &Arc<Daemon>, pod: &str, config: ContainerConfig) -> Result<String> {
    let pod = daemon.pod(pod)?;
    let metadata = config.metadata.as_ref().ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    if metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name is empty"));
    }
    let name = super::name(pod.id(), &config);
    let work = {
        let daemon = Arc::clone(daemon);
        async move { make(&daemon, &pod, config).await }
    };
    daemon.container_names.make(name, work).await
}

async fn make(daemon: &Arc<Daemon>, pod: &Arc<Pod>, config: ContainerConfig) -> Result<String> {
    let _making = pod.making.read().await;
    ready(pod)?;
    facts::check(pod, &config)?;
    let _ahead = cgroup::ahead();
    let reference = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
    let image = daemon.images_blocking(move |images| take(images, &reference)).await?;
    let id = state::new_id()?;
    let record = Record {
        pod: pod.id().to_owned(),
        image_id: image.id.clone(),
        image_ref: image.digests.first().cloned().unwrap_or_else(|| image.id.clone()),
        handler: pod.record.handler.clone(),
        created_at: state::now(),
        log_path: log_path(pod, &config)?,
        stop_signal: facts::stop_signal(&image),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        id: id.clone(),
        config,
    };
    let container = Arc::new(Container::begin(record, Dirs::new(&daemon.config, &id))?);
    match set_up(daemon, pod, &container, &image).await {
        Ok(record) => {
            let container = Arc::new(container.with_record(record));
            daemon.containers.insert(&id, Arc::clone(&container));
            end::watch(daemon, Arc::clone(&container));
            daemon.events.tell(Kind::Created, &id, pod.id());
            // Now that who stops the pod finds it: somebody may have done so before.
            if let Err(error) = ready(pod) {
                remove::remove(daemon, &id).await?;
                return Err(error);
            }
            Ok(id)
        }
        Err(error) => {
            if let Err(error) = undo(daemon, &container).await {
                tracing::error!(container = id, "Failed to clean up after a container that could not be made: {error}");
            }
            Err(error)
        }
    }
}

/// A pod may be stopped while containers are made in it.
fn ready(pod: &Pod) -> Result<()> {
    match pod.state().phase {
        sandbox::Phase::Ready => Ok(()),
        _ => Err(Error::Precondition(format!("Pod {} is not ready", pod.id()))),
    }
}

/// The image that a container is made of.
fn take(images: &crate::image::Store, reference: &str) -> Result<Image> {
    images.find(reference).ok_or_else(|| Error::missing("image", reference))
}

/// Unmakes a container that was never finished.
pub async fn undo(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    end::destroy(daemon, container).await?;
    remove::forget(daemon, container).await
}

fn log_path(pod: &Pod, config: &ContainerConfig) -> Result<Option<PathBuf>> {
    let directory = &pod.record.config.log_directory;
    if directory.is_empty() || config.log_path.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(directory).join(&config.log_path);
    let parent = path.parent().unwrap_or(&path);
    std::fs::create_dir_all(parent).context(|| format!("Failed to make {}", parent.display()))?;
    Ok(Some(path))
}

async fn set_up(daemon: &Arc<Daemon>, pod: &Arc<Pod>, container: &Arc<Container>, image: &Image) -> Result<Record> {
    let handler = daemon.handlers.named(&container.record.handler)?.clone();
    let (own, pod_too, container_too, image) =
        (Arc::clone(daemon), Arc::clone(pod), Arc::clone(container), image.clone());
    let laid_out = daemon.blocking(move |_| facts::lay_out(&own, &pod_too, &container_too, &image));
    let container_too = Arc::clone(container);
    // Both to their end: nothing may go on under who unmakes it.
    let (kept, laid_out) = tokio::join!(daemon.blocking(move |_| container_too.keep()), laid_out);
    let record = kept.and(laid_out)?;
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let pod_metadata = pod.record.config.metadata.clone().unwrap_or_default();
    let name = format!("{}_{}_{}", metadata.name, pod_metadata.name, pod_metadata.namespace);
    let launch = Launch {
        program: &daemon.monitor,
        id: container.id(),
        name: &name,
        runtime: &handler.path,
        runtime_args: &handler.args,
        bundle: container.bundle(),
        log: record.log_path.as_deref(),
        persist_dir: &container.dirs().root,
        terminal: record.config.tty,
        stdin: record.config.stdin,
    };
    let (container_too, record_too) = (Arc::clone(container), record.clone());
    // The disk has time while the runtime works.
    let found = daemon.blocking(move |_| container_too.found(&record_too));
    let (pid, found) = tokio::join!(monitor::launch(&launch), found);
    let pid = found.and(pid)?;
    container.change(|state| {
        state.phase = Phase::Created;
        state.pid = pid;
    })?;
    Ok(record)
}
