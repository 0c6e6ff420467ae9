//! The images that are there: one small file per image, and what of layers and documents nobody uses any more.
//!
//! On disk below `<root>/images`: `records/HEX.json`, `blobs/HEX` (manifests and configurations), `layers/`, `partial/`
//! (layers whose download broke off) and `tmp/`. A file appears after what it names, and is removed before it; the rest
//! is found and removed when the store is opened by somebody who is alone with it (`lock`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::adopt::Foreign;
use super::files::{self, Size};
use super::load::{self, Broken};
use super::lock::{Lock, Part};
use super::name::{self, Wanted};
use super::pull::Pulls;
use super::{Image, Source, Usage, User};
use crate::config::{self, Config};
use crate::error::{Context, Error, Result};
use crate::state;

/// The images of this node; clones are the same store.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    dir: PathBuf,
    writable: PathBuf,
    settings: config::Images,
    pub state: Mutex<State>,
    foreign: Option<Foreign>,
    pulls: Pulls,
    pub lock: Lock,
    /// Makes temporary names different, with `own`, which no other process has.
    counter: AtomicU64,
    own: String,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub images: BTreeMap<String, Kept>,
    pub layers: HashMap<String, Size>,
    pub blobs: HashMap<String, u64>,
    /// The number of the lock file when this was read.
    pub number: u64,
    /// What pulls and adoptions have brought, or count on, and no image names yet.
    pub held: HashMap<String, usize>,
    /// Layers below the containers that are there.
    pub containers: HashMap<String, Vec<String>>,
}

#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub record: Record,
    pub config: Arc<ImageConfiguration>,
}

/// An image as its file has it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Record {
    pub id: String,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    pub layers: Vec<String>,
    /// Manifests, and the configuration.
    pub blobs: Vec<String>,
    /// From containers/storage, which goes on deciding what its names mean.
    #[serde(default)]
    pub adopted: bool,
    /// There is nowhere to get it from again.
    #[serde(default)]
    pub pinned: bool,
}

impl Store {
    /// Opens the store, making it if there is none, and removes what a kill or crash left half made.
    pub fn open(config: &Config) -> Result<Store> {
        let (dir, writable) = (config.root.join("images"), config.root.join("containers-rw"));
        for private in [&dir, &writable] {
            files::make_dir(private)?;
            // The trees have programs that run as their owner: not for users of this machine.
            fs::set_permissions(private, fs::Permissions::from_mode(0o700))
                .context(|| format!("Failed to set the mode of {}", private.display()))?;
        }
        let lock = Lock::open(&dir.join("lock"))?;
        let alone = lock.try_take(Part::Open);
        if alone {
            files::remove_tree(&dir.join("tmp"))?;
        } else {
            lock.share(Part::Open)?;
        }
        for part in ["records", "blobs", "layers", "partial", "tmp"] {
            files::make_dir(&dir.join(part))?;
        }
        let mut state = State::default();
        if alone {
            load::forget_old(&dir.join("partial"));
            state = State { number: lock.number(), ..State::load(&dir, &writable, Broken::Remove)? };
            lock.share(Part::Open)?;
        } else {
            // Not the one that is there, so that the first look reads all of it.
            state.number = lock.number().wrapping_sub(1);
        }
        let mut own = state::new_id()?;
        own.truncate(8);
        let shared = Shared {
            pulls: Pulls::new(&config.images),
            foreign: Foreign::at(&config.images.containers_storage),
            settings: config.images.clone(),
            state: Mutex::new(state),
            counter: AtomicU64::new(0),
            own,
            lock,
            dir,
            writable,
        };
        let store = Store { shared: Arc::new(shared) };
        if alone {
            store.collect()?;
        }
        Ok(store)
    }

    /// Every image that has a name, ours and those of containers/storage.
    pub fn list(&self) -> Vec<Image> {
        let named = |image: &Image| !(image.tags.is_empty() && image.digests.is_empty());
        self.everything().into_iter().filter(named).collect()
    }

    /// The image of a name with or without tag, a name with digest, an id, or the beginning of only one id.
    pub fn find(&self, reference: &str) -> Option<Image> {
        pick(self.everything(), reference)
    }

    /// Removes an image with all its names; one that is not there is removed already. Layers that containers or other
    /// images use stay as long as they do. What is only in containers/storage is not ours to remove.
    pub fn remove(&self, reference: &str) -> Result<()> {
        let Some(image) = self.find(reference) else { return Ok(()) };
        if image.source == Source::ContainersStorage {
            return Err(Error::Precondition(format!(
                "Image {reference} is kept by containers/storage in {}: remove it with podman or buildah",
                self.shared.settings.containers_storage.display()
            )));
        }
        self.forget(&image.id)?;
        self.collect()?;
        if self.find(&image.id).is_some() {
            tracing::info!(image = image.id, "our links are removed; containers/storage still has the image");
        }
        Ok(())
    }

    fn forget(&self, id: &str) -> Result<()> {
        let mut state = self.change()?;
        let path = self.record_path(id)?;
        files::remove_file(&path)?;
        files::sync_parent(&path)?;
        state.images.remove(id);
        Ok(())
    }

    /// What our layers and documents take, from figures that are kept.
    pub fn usage(&self) -> Usage {
        let state = self.state();
        let layers = state.layers.values();
        let (bytes, inodes) = layers.fold((0, 0), |sum, size| (sum.0 + size.bytes, sum.1 + size.inodes));
        Usage {
            path: self.shared.dir.clone(),
            bytes: bytes + state.blobs.values().sum::<u64>(),
            inodes: inodes + state.blobs.len() as u64,
        }
    }

    /// The configuration of an image of ours as it was written, with its history.
    pub fn config_text(&self, id: &str) -> Result<String> {
        let path = self.blob_path(id)?;
        fs::read_to_string(&path).context(|| format!("Failed to read {}", path.display()))
    }

    fn everything(&self) -> Vec<Image> {
        let foreign = self.shared.foreign.as_ref().map(Foreign::images).unwrap_or_default();
        let state = self.state();
        let pulled: BTreeSet<&str> = state
            .images
            .values()
            .filter(|kept| !kept.record.adopted)
            .flat_map(|kept| kept.record.tags.iter().map(String::as_str))
            .collect();
        let mut images: BTreeMap<String, Image> =
            state.images.values().map(|kept| (kept.record.id.clone(), self.image(&state, kept))).collect();
        for theirs in foreign.iter() {
            let tags: Vec<String> = theirs.tags.iter().filter(|tag| !pulled.contains(tag.as_str())).cloned().collect();
            // A name that was built or pulled anew over there means the new image.
            for (id, image) in &mut images {
                let adopted = state.images.get(id).is_some_and(|kept| kept.record.adopted);
                image.tags.retain(|tag| !adopted || *id == theirs.id || !tags.contains(tag));
            }
            let image = images.entry(theirs.id.clone()).or_insert_with(|| Image { tags: Vec::new(), ..theirs.clone() });
            add_new(&mut image.tags, tags);
            add_new(&mut image.digests, theirs.digests.clone());
        }
        let mut images: Vec<Image> = images.into_values().collect();
        for image in &mut images {
            image.pinned |= name::pinned(&self.shared.settings.pinned, &image.tags);
        }
        images
    }

    fn image(&self, state: &State, Kept { record, config }: &Kept) -> Image {
        let mut layers: Vec<&String> = record.layers.iter().collect();
        layers.sort();
        layers.dedup();
        let of_layers: u64 = layers.iter().filter_map(|id| state.layers.get(*id)).map(|size| size.bytes).sum();
        let of_blobs: u64 = record.blobs.iter().filter_map(|digest| state.blobs.get(digest)).sum();
        Image {
            id: record.id.clone(),
            digests: record.digests.clone(),
            tags: record.tags.clone(),
            size: of_layers + of_blobs,
            user: User::of(config),
            config: Arc::clone(config),
            layers: record.layers.clone(),
            pinned: record.pinned,
            source: Source::Own,
        }
    }

    /// Makes an image known; its layers and blobs are there and held. Its tags leave the images that had them.
    pub(super) fn put(&self, mut record: Record) -> Result<Image> {
        let config = load::config(&self.shared.dir, &record.id)?;
        let mut state = self.change()?;
        if let Some(missing) = record.layers.iter().find(|layer| !state.layers.contains_key(*layer)) {
            return Err(Error::failed(format!("Layer {missing} of image {} is not there", record.id)));
        }
        if let Some(old) = state.images.get(&record.id).map(|kept| kept.record.clone()) {
            add_new(&mut record.tags, old.tags);
            add_new(&mut record.digests, old.digests);
            add_new(&mut record.blobs, old.blobs);
            record.adopted &= old.adopted;
            record.pinned |= old.pinned;
        }
        if record.adopted {
            let pulled =
                |tag: &String| state.images.values().any(|kept| !kept.record.adopted && kept.record.tags.contains(tag));
            record.tags.retain(|tag| !pulled(tag));
        }
        self.write_record(&record)?;
        let kept = Kept { record, config };
        // After the new one: a crash in between leaves a tag twice, never none; the load takes care of that.
        let others: Vec<Record> = state
            .images
            .values()
            .filter(|other| other.record.id != kept.record.id)
            .filter(|other| other.record.tags.iter().any(|tag| kept.record.tags.contains(tag)))
            .map(|other| other.record.clone())
            .collect();
        for mut other in others {
            other.tags.retain(|tag| !kept.record.tags.contains(tag));
            self.write_record(&other)?;
            if let Some(kept) = state.images.get_mut(&other.id) {
                kept.record = other;
            }
        }
        state.images.insert(kept.record.id.clone(), kept.clone());
        Ok(self.image(&state, &kept))
    }

    fn write_record(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record).context(|| format!("Failed to describe image {}", record.id))?;
        files::write(&self.temp("record"), &self.record_path(&record.id)?, &text)
    }

    /// Keeps a document under its digest.
    pub(super) fn put_blob(&self, data: &[u8]) -> Result<String> {
        let digest = files::digest(data);
        let path = self.blob_path(&digest)?;
        let mut state = self.change()?;
        if !path.exists() {
            files::write(&self.temp("blob"), &path, data)?;
        }
        state.blobs.insert(digest.clone(), data.len() as u64);
        Ok(digest)
    }

    pub(super) fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        fs::read(self.blob_path(digest).ok()?).ok()
    }

    pub(super) fn dir(&self) -> &Path {
        &self.shared.dir
    }

    pub(super) fn writable(&self) -> &Path {
        &self.shared.writable
    }

    pub(super) fn settings(&self) -> &config::Images {
        &self.shared.settings
    }

    pub(super) fn pulls(&self) -> &Pulls {
        &self.shared.pulls
    }

    pub(super) fn foreign(&self) -> Option<&Foreign> {
        self.shared.foreign.as_ref()
    }

    /// A name that nobody else uses, on the file system of the store.
    pub(super) fn temp(&self, what: &str) -> PathBuf {
        let number = self.shared.counter.fetch_add(1, Ordering::Relaxed);
        self.shared.dir.join("tmp").join(format!("{what}-{}-{number}", self.shared.own))
    }

    fn record_path(&self, id: &str) -> Result<PathBuf> {
        Ok(self.shared.dir.join("records").join(format!("{}.json", files::hex(id)?)))
    }

    pub(super) fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        Ok(self.shared.dir.join("blobs").join(files::hex(digest)?))
    }
}

fn pick(images: Vec<Image>, reference: &str) -> Option<Image> {
    let by_id = |id: &str| images.iter().find(|image| image.id == id).cloned();
    match name::wanted(reference) {
        Wanted::Id(id) => by_id(&id),
        Wanted::Names { names, short_id } => {
            let named = |name: &String| {
                images.iter().find(|image| image.tags.contains(name) || image.digests.contains(name)).cloned()
            };
            names.iter().find_map(named).or_else(|| {
                let short = short_id?;
                let mut matches = images.iter().filter(|image| image.id.starts_with(&short));
                matches.next().filter(|_| matches.next().is_none()).cloned()
            })
        }
    }
}

fn add_new(list: &mut Vec<String>, more: Vec<String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}
