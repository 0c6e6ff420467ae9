//! Everything that one server is: configuration, stores, tables, handles.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::config::Config;
use crate::container::{self, Container};
use crate::error::{Context, Error, Result};
use crate::events::Events;
use crate::idmap::{IdMap, UserMaps, Users};
use crate::image::Store;
use crate::metrics::Calls;
use crate::monitor::Monitors;
use crate::names::Names;
use crate::network::Network;
use crate::runtime::{self, Handlers};
use crate::sandbox::namespaces::{self, PinRequest};
use crate::sandbox::{self, Pod};
use crate::state::{self, Table};
use crate::streaming::Streaming;

/// Does something to its end, also when the client that asked for it goes away: half of a change is worse than all or
/// nothing of it.
pub async fn whole<T, W>(work: W) -> Result<T>
where
    T: Send + 'static,
    W: Future<Output = Result<T>> + Send + 'static,
{
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|error| Err(Error::failed(format!("Work broke off: {error}"))))
}

#[derive(Debug)]
pub struct Daemon {
    pub config: Config,
    /// The program that stays with containers.
    pub monitor: PathBuf,
    pub handlers: Handlers,
    /// Cgroups are made by systemd.
    pub systemd: bool,
    /// Pods can have user namespaces.
    pub user_namespaces: bool,
    pub images: Arc<Store>,
    pub network: Network,
    pub monitors: Monitors,
    pub pods: Table<Pod>,
    pub containers: Table<Container>,
    pub pod_names: Arc<Names>,
    pub container_names: Arc<Names>,
    pub events: Events,
    pub calls: Arc<Calls>,
    /// Set once, when it listens.
    pub streaming: OnceLock<Streaming>,
}

/// Where everything is. The ways to containers are open for the roots of user namespaces; what is at their ends is not
/// for everybody.
fn directories(config: &Config) -> Result<()> {
    let make = |dir: PathBuf, mode: u32| {
        let doing = || format!("Failed to make {}", dir.display());
        std::fs::create_dir_all(&dir).context(doing)?;
        std::fs::set_permissions(&dir, Permissions::from_mode(mode)).context(doing)
    };
    // One that is there keeps its mode: it is the administrator's.
    std::fs::create_dir_all(&config.run).context(|| format!("Failed to make {}", config.run.display()))?;
    for kind in ["pods", "containers"] {
        make(config.run.join(kind), 0o711)?;
        make(config.root.join(kind), 0o700)?;
    }
    Ok(())
}

/// Whether pods can have user namespaces here: tries it, with a namespace and an image of nothing.
fn user_namespaces(config: &Config, images: &Store) -> bool {
    let dir = config.run.join("trial");
    let map = IdMap { host: 100_000, length: 1 };
    let maps = UserMaps { uids: map, gids: map };
    let tried = (|| {
        open_way(&config.run)?;
        // Of a server that was killed.
        namespaces::release(&dir)?;
        namespaces::pin(&PinRequest { dir: dir.clone(), user: Some(maps), ..PinRequest::default() })?;
        images.maps_ids(&Users { namespace: dir.join("ns/user"), maps }, &dir)
    })();
    if let Err(error) = &tried {
        tracing::info!("Pods cannot have user namespaces here: {error}");
    }
    if let Err(error) = namespaces::release(&dir).and_then(|()| state::remove_dir(&dir)) {
        tracing::warn!("{error}");
    }
    tried.is_ok()
}

/// The root of a user namespace, who is nobody here, has to find the way to the containers.
fn open_way(run: &Path) -> Result<()> {
    for above in run.ancestors() {
        let data = std::fs::metadata(above).context(|| format!("Failed to look at {}", above.display()))?;
        if data.mode() & 0o001 == 0 {
            return Err(Error::failed(format!("{} cannot be walked through by others", above.display())));
        }
    }
    Ok(())
}

impl Daemon {
    /// Opens the stores and takes over what is there: pods, containers, monitors.
    pub async fn open(config: Config) -> Result<Arc<Daemon>> {
        directories(&config)?;
        let images = Arc::new(Store::open(&config)?);
        let systemd = runtime::uses_systemd(config.cgroup_driver);
        let hybrid = !crate::cgroup::unified();
        let daemon = Arc::new(Daemon {
            monitor: runtime::find_monitor(&config)?,
            handlers: Handlers::find(&config, systemd, hybrid).await?,
            systemd,
            user_namespaces: user_namespaces(&config, &images),
            images,
            network: Network::new(&config)?,
            monitors: Monitors::start()?,
            pods: Table::default(),
            containers: Table::default(),
            pod_names: Arc::default(),
            container_names: Arc::default(),
            events: Events::default(),
            calls: Arc::default(),
            streaming: OnceLock::new(),
            config,
        });
        daemon.events.know(&daemon);
        container::restore::restore(&daemon).await?;
        sandbox::restore::restore(&daemon).await?;
        Ok(daemon)
    }

    pub fn pod(&self, id: &str) -> Result<Arc<Pod>> {
        self.pods.find(id).ok_or_else(|| Error::missing("pod", id))
    }

    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers.find(id).ok_or_else(|| Error::missing("container", id))
    }

    /// Where streams are served.
    pub fn streaming(&self) -> Result<&Streaming> {
        self.streaming.get().ok_or_else(|| Error::Unavailable("Streams are not served yet".to_owned()))
    }

    /// All containers of a pod, whatever their state.
    pub fn containers_of(&self, pod: &str) -> Vec<Arc<Container>> {
        let mut all = self.containers.all();
        all.retain(|container| container.record.pod == pod);
        all.sort_by_key(|container| container.record.created_at);
        all
    }

    /// The parent of the cgroups of a pod for which nobody has made one.
    pub fn own_cgroup_parent(&self, pod: &str) -> String {
        if self.systemd { "system.slice".to_owned() } else { format!("/conward/{pod}") }
    }

    /// Does something that waits for disks or children, on a thread for such things.
    pub async fn blocking<T, F>(self: &Arc<Daemon>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Daemon) -> Result<T> + Send + 'static,
    {
        let daemon = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&daemon)).await;
        done.unwrap_or_else(|error| Err(Error::failed(format!("Work broke off: {error}"))))
    }

    /// The same for work that needs only the images.
    pub async fn images_blocking<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Store) -> Result<T> + Send + 'static,
    {
        let images = Arc::clone(&self.images);
        let done = tokio::task::spawn_blocking(move || work(&images)).await;
        done.unwrap_or_else(|error| Err(Error::failed(format!("Work broke off: {error}"))))
    }
}
