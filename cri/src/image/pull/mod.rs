//! Pulls from registries: manifest, configuration, and the layers that are not there yet.
//!
//! A layer goes to a file named by its digest, is checked, and is then unpacked. When the connection breaks the next
//! one asks for the rest; so does the next pull, after a kill too. Pulls of the same name by the same user are one.

mod failure;
mod manifest;
mod part;
mod remote;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared, try_join_all};
use oci_client::Reference;
use oci_client::manifest::OciDescriptor;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::task::spawn_blocking;

use super::auth::Credentials;
use super::load::parse_config;
use super::store::{Record, Store};
use super::unpack::unpack;
use super::{Image, files, name};
use crate::config;
use crate::error::{Context, Error, Result};

use failure::{Failure, Step, bad};
use manifest::{Manifest, RUNNABLE};
use remote::Remote;

/// What is being pulled.
#[derive(Debug)]
pub(super) struct Pulls {
    running: Mutex<HashMap<Key, WeakShared<Pull>>>,
    /// One download of a layer at a time, whatever image it is for.
    layers: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    slots: Semaphore,
}

/// Who does not have the same credentials must not get at an image by somebody else's.
type Key = (String, Option<Credentials>);
type Pull = BoxFuture<'static, Result<Image>>;

impl Pulls {
    pub fn new(settings: &config::Images) -> Pulls {
        Pulls {
            running: Mutex::default(),
            layers: Mutex::default(),
            slots: Semaphore::new(settings.parallel_layers.max(1)),
        }
    }

    fn layer(&self, digest: &str) -> Arc<AsyncMutex<()>> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(layers.entry(digest.to_owned()).or_default())
    }
}

impl Store {
    /// Pulls an image by tag or digest, as what the credentials or else the configured file say. A pull that nobody
    /// waits for any more stops; what it has downloaded is used by the next.
    pub async fn pull(&self, reference: &str, credentials: Option<Credentials>) -> Result<Image> {
        let parsed = name::parse(reference)?;
        let key = (name::whole(&parsed), credentials);
        self.join(key, parsed).await
    }

    fn join(&self, key: Key, reference: Reference) -> Shared<Pull> {
        let mut running = self.pulls().running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, pull| pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        if let Some(pull) = running.get(&key).and_then(WeakShared::upgrade) {
            return pull;
        }
        let (store, credentials) = (self.clone(), key.1.clone());
        let pull = async move { store.fetch(&reference, credentials).await }.boxed().shared();
        if let Some(weak) = pull.downgrade() {
            running.insert(key, weak);
        }
        pull
    }

    async fn fetch(&self, reference: &Reference, credentials: Option<Credentials>) -> Result<Image> {
        let started = Instant::now();
        let name = name::whole(reference);
        tracing::info!(image = name, "pulling");
        let remote = Arc::new(Remote::new(self.settings(), reference, credentials)?);
        let fetched = self.fetch_from(&remote).await.map_err(|error| error.naming(&name))?;
        tracing::info!(image = name, id = fetched.id, took = ?started.elapsed(), "pulled");
        Ok(fetched)
    }

    async fn fetch_from(&self, remote: &Arc<Remote>) -> Step<Image> {
        let reference = &remote.reference;
        let documents = remote.manifest().await?;
        let manifest: Manifest = serde_json::from_slice(&documents.manifest).map_err(bad("manifest"))?;
        let described = manifest.config.ok_or_else(|| Failure::fatal("it has no configuration: not an image"))?;
        if !RUNNABLE.contains(&described.media_type.as_str()) {
            return Err(Failure::fatal(format!("{} is not an image to run", described.media_type)));
        }
        let id = described.digest.clone();
        files::hex(&id)?;
        let of_list = documents.list.iter().map(|list| files::digest(list));
        let hold = self.hold(of_list.chain([id.clone(), files::digest(&documents.manifest)]))?;
        let text = match self.blob(&id) {
            Some(text) => text,
            None => remote.document(&described).await?,
        };
        let config = parse_config(&text)?;
        let layers = config.rootfs().diff_ids().clone();
        if layers.len() != manifest.layers.len() {
            return Err(Failure::fatal("manifest and configuration have not the same number of layers"));
        }
        let hold_layers = self.hold(layers.iter().cloned())?;
        let fetches =
            manifest.layers.iter().zip(&layers).map(|(layer, diff_id)| self.fetch_layer(remote, layer, diff_id));
        try_join_all(fetches).await?;
        let store = self.clone();
        let record = Record {
            tags: reference.digest().is_none().then(|| name::whole(reference)).into_iter().collect(),
            digests: documents.digests(reference),
            layers,
            id,
            ..Record::default()
        };
        spawn_blocking(move || {
            let _holds = (hold, hold_layers);
            let list = documents.list.iter();
            let all = [&text, &documents.manifest].into_iter().chain(list);
            let blobs = all.map(|data| store.put_blob(data)).collect::<Result<_>>()?;
            store.put(Record { blobs, ..record })
        })
        .await
        .map_err(|error| Failure::fatal(error.to_string()))?
        .map_err(Failure::from)
    }

    async fn fetch_layer(&self, remote: &Arc<Remote>, layer: &OciDescriptor, diff_id: &str) -> Step<()> {
        files::hex(diff_id)?;
        let hex = files::hex(&layer.digest)?;
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let lock = self.pulls().layer(&layer.digest);
        let alone = lock.lock_owned().await;
        // Somebody else's pull may have brought it while we waited.
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let _slot = self.pulls().slots.acquire().await.map_err(|error| Failure::fatal(error.to_string()))?;
        let path = self.dir().join("partial").join(hex);
        remote.download(layer, &path).await?;
        let (store, digest, diff_id) = (self.clone(), layer.digest.clone(), diff_id.to_owned());
        // Unpacking goes on when nobody waits for it any more, and the next pull must not come in between.
        let unpack = move || {
            let _alone = alone;
            store.unpack_layer(&path, &digest, &diff_id)
        };
        spawn_blocking(unpack).await.map_err(|error| Failure::fatal(error.to_string()))?.map_err(Failure::from)
    }

    fn unpack_layer(&self, path: &Path, digest: &str, diff_id: &str) -> Result<()> {
        let started = Instant::now();
        let file = File::open(path).context(|| format!("Failed to open {}", path.display()))?;
        let draft = self.draft()?;
        let unpacked = unpack(file, &draft.tree()).context(|| format!("Layer {digest}"));
        // Whether it is good or bad, it is of no more use.
        files::remove_file(path)?;
        if unpacked? != diff_id {
            return Err(Error::failed(format!("Layer {digest} does not unpack to {diff_id}")));
        }
        self.keep(draft, diff_id)?;
        tracing::info!(layer = digest, took = ?started.elapsed(), "layer unpacked");
        Ok(())
    }
}
