//! What the store's directories say: read at the start, and again when another process has changed them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use oci_spec::image::ImageConfiguration;

use super::store::{Kept, Record, State};
use super::{files, layers, rootfs};
use crate::error::{Context, Error, Result};

/// What to do about something that is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// It is garbage: nobody else has the store open.
    Remove,
    /// Somebody else may be at it.
    Ignore,
}

impl State {
    /// The caller has the lock for changes, or is alone.
    pub fn load(dir: &Path, writable: &Path, broken: Broken) -> Result<State> {
        let mut state = State::default();
        state.layers = layers::load(&dir.join("layers"), broken)?;
        state.blobs = blobs(&dir.join("blobs"))?;
        state.containers = rootfs::load(writable, broken)?;
        state.images = records(dir, &state, broken)?;
        Ok(state)
    }
}

fn blobs(dir: &Path) -> Result<HashMap<String, u64>> {
    let mut blobs = HashMap::new();
    for name in files::names(dir)? {
        if let Ok(data) = fs::metadata(dir.join(&name)) {
            blobs.insert(format!("sha256:{name}"), data.len());
        }
    }
    Ok(blobs)
}

/// The images that are whole.
fn records(dir: &Path, state: &State, broken: Broken) -> Result<BTreeMap<String, Kept>> {
    let mut found: Vec<(SystemTime, Kept)> = Vec::new();
    for name in files::names(&dir.join("records"))? {
        let path = dir.join("records").join(&name);
        match record(dir, &path, state) {
            Ok(kept) => {
                let changed = fs::metadata(&path).and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((changed, kept));
            }
            Err(error) => {
                tracing::warn!(image = name, %error, "an image that is not whole");
                if broken == Broken::Remove {
                    files::remove_file(&path)?;
                }
            }
        }
    }
    // The latest to be given a tag has it.
    found.sort_by_key(|(changed, _)| std::cmp::Reverse(*changed));
    let mut taken = BTreeSet::new();
    for (_, kept) in &mut found {
        kept.record.tags.retain(|tag| taken.insert(tag.clone()));
    }
    Ok(found.into_iter().map(|(_, kept)| (kept.record.id.clone(), kept)).collect())
}

fn record(dir: &Path, path: &Path, state: &State) -> Result<Kept> {
    let text = fs::read(path).context(|| "read")?;
    let record: Record = serde_json::from_slice(&text).context(|| "parse")?;
    if let Some(missing) = record.layers.iter().find(|layer| !state.layers.contains_key(*layer)) {
        return Err(Error::failed(format!("layer {missing} is missing")));
    }
    Ok(Kept { config: config(dir, &record.id)?, record })
}

/// The configuration of an image, from its file.
pub(super) fn config(dir: &Path, id: &str) -> Result<Arc<ImageConfiguration>> {
    let path = dir.join("blobs").join(files::hex(id)?);
    let text = fs::read(&path).context(|| format!("Failed to read {}", path.display()))?;
    parse_config(&text).context(|| format!("Bad configuration of image {id}"))
}

/// A configuration without its history, which is long and says nothing about running.
pub(super) fn parse_config(text: &[u8]) -> Result<Arc<ImageConfiguration>> {
    let mut config: ImageConfiguration = serde_json::from_slice(text).context(|| "configuration")?;
    config.set_history(None);
    Ok(Arc::new(config))
}

/// Downloads that nobody has gone on with for a day.
pub(super) fn forget_old(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_none_or(|age| age > Duration::from_secs(24 * 60 * 60)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
