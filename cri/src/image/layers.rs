//! Layers on disk: `layers/HEX/fs`, beside it `done` with what the tree takes. A layer is made under a temporary name
//! and renamed when it is on the disk; one without its mark is garbage.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::files::{self, Size};
use super::load::Broken;
use super::store::Store;
use super::unpack;
use crate::error::{Context, Result};

const TREE: &str = "fs";
const DONE: &str = "done";

/// A layer that is being made; gone again if it is dropped before it is kept.
pub(super) struct Draft {
    dir: PathBuf,
}

impl Draft {
    /// Where the tree goes.
    pub fn tree(&self) -> PathBuf {
        self.dir.join(TREE)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Store {
    /// The tree of a layer.
    pub(super) fn layer(&self, diff_id: &str) -> Result<PathBuf> {
        Ok(self.layer_dir(diff_id)?.join(TREE))
    }

    fn layer_dir(&self, diff_id: &str) -> Result<PathBuf> {
        Ok(self.dir().join("layers").join(files::hex(diff_id)?))
    }

    pub(super) fn has_layer(&self, diff_id: &str) -> bool {
        self.state().layers.contains_key(diff_id)
    }

    pub(super) fn draft(&self) -> Result<Draft> {
        let draft = Draft { dir: self.temp("layer") };
        let tree = draft.tree();
        files::make_dir(&tree)?;
        // What the root of a layer that says nothing about it is, whatever our umask.
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o755))
            .context(|| format!("Failed to make {}", tree.display()))?;
        Ok(draft)
    }

    /// Makes a finished tree the layer of that name, unless somebody was faster.
    pub(super) fn keep(&self, draft: Draft, diff_id: &str) -> Result<()> {
        let path = self.layer_dir(diff_id)?;
        let size = files::measure(&draft.dir);
        let mark = serde_json::to_vec(&size).context(|| "Failed to describe layer")?;
        fs::write(draft.dir.join(DONE), mark).context(|| format!("Failed to write {}", draft.dir.display()))?;
        unpack::sync(&draft.dir)?;
        let mut state = self.change()?;
        if state.layers.contains_key(diff_id) {
            return Ok(());
        }
        fs::rename(&draft.dir, &path).context(|| format!("Failed to make {}", path.display()))?;
        files::sync_parent(&path)?;
        state.layers.insert(diff_id.to_owned(), size);
        Ok(())
    }

    /// Takes a layer's name away; the tree goes to the temporary directory, to be removed without a lock.
    pub(super) fn discard(&self, diff_id: &str) -> Result<PathBuf> {
        let (path, temp) = (self.layer_dir(diff_id)?, self.temp("gone"));
        fs::rename(&path, &temp).context(|| format!("Failed to remove {}", path.display()))?;
        Ok(temp)
    }
}

/// The layers that are there and whole.
pub(super) fn load(dir: &Path, broken: Broken) -> Result<HashMap<String, Size>> {
    let mut layers = HashMap::new();
    for name in files::names(dir)? {
        let path = dir.join(&name);
        let mark = fs::read(path.join(DONE)).ok().and_then(|mark| serde_json::from_slice(&mark).ok());
        match mark {
            Some(size) if path.join(TREE).is_dir() => {
                layers.insert(format!("sha256:{name}"), size);
            }
            _ if broken == Broken::Ignore => {}
            _ => {
                tracing::warn!(layer = name, "removing a layer that is not whole");
                files::remove_tree(&path)?;
            }
        }
    }
    Ok(layers)
}
