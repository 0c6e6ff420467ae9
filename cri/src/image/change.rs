//! Changes of the store, and what no change may take away: `lock` has the rules for several processes.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};

use super::files;
use super::load::Broken;
use super::lock::{Lock, Part};
use super::store::{State, Store};
use crate::error::Result;

/// Keeps layers and blobs from being collected while an image is put together.
#[derive(Debug)]
pub(super) struct Hold {
    store: Store,
    digests: Vec<String>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.store.memory();
        for digest in &self.digests {
            if let Some(count) = state.held.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(digest);
                }
            }
        }
        if state.held.is_empty() {
            self.store.shared.lock.release(Part::Hold);
        }
    }
}

/// The right to change the store, on the disk and then in memory.
#[derive(Debug)]
pub(super) struct Change<'a> {
    state: MutexGuard<'a, State>,
    lock: &'a Lock,
}

impl Deref for Change<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Change<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.lock.release(Part::Change);
    }
}

impl Store {
    /// No process removes these until the hold is dropped.
    pub(super) fn hold(&self, digests: impl IntoIterator<Item = String>) -> Result<Hold> {
        let digests: Vec<String> = digests.into_iter().collect();
        let mut state = self.memory();
        if state.held.is_empty() {
            self.shared.lock.share(Part::Hold)?;
        }
        for digest in &digests {
            *state.held.entry(digest.clone()).or_default() += 1;
        }
        drop(state);
        Ok(Hold { store: self.clone(), digests })
    }

    /// Removes the layers and blobs that nobody names, unless another process is putting an image together: what it
    /// needs is known to it alone.
    pub(super) fn collect(&self) -> Result<()> {
        let mut state = self.change()?;
        let lock = &self.shared.lock;
        if !lock.try_take(Part::Hold) {
            tracing::info!("another process makes an image; what nobody uses stays until the next time");
            return Ok(());
        }
        let mut gone = Vec::new();
        let collected = self.take_out(&mut state, &mut gone);
        if state.held.is_empty() {
            lock.release(Part::Hold);
        } else {
            lock.share(Part::Hold)?;
        }
        drop(state);
        collected?;
        gone.iter().try_for_each(|path| files::remove_tree(path))
    }

    fn take_out(&self, state: &mut State, gone: &mut Vec<PathBuf>) -> Result<()> {
        let used: BTreeSet<String> = {
            let images = state.images.values().flat_map(|kept| kept.record.layers.iter().chain(&kept.record.blobs));
            let containers = state.containers.values().flatten();
            images.chain(containers).chain(state.held.keys()).cloned().collect()
        };
        let layers: Vec<String> = state.layers.keys().filter(|id| !used.contains(*id)).cloned().collect();
        for layer in layers {
            gone.push(self.discard(&layer)?);
            state.layers.remove(&layer);
        }
        let blobs: Vec<String> = state.blobs.keys().filter(|digest| !used.contains(*digest)).cloned().collect();
        for blob in blobs {
            files::remove_file(&self.blob_path(&blob)?)?;
            state.blobs.remove(&blob);
        }
        Ok(())
    }

    /// What is there now, whoever put it there.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.memory();
        if state.number != self.shared.lock.number() {
            let read = self.shared.lock.share(Part::Change).and_then(|()| {
                let read = self.read_again(&mut state);
                self.shared.lock.release(Part::Change);
                read
            });
            if let Err(error) = read {
                tracing::error!(%error, "Failed to see what another process has changed in the store");
            }
        }
        state
    }

    /// The same, and nobody else changes it before this is dropped.
    pub(super) fn change(&self) -> Result<Change<'_>> {
        let state = self.memory();
        self.shared.lock.take(Part::Change)?;
        let mut change = Change { state, lock: &self.shared.lock };
        if change.number != change.lock.number() {
            self.read_again(&mut change)?;
        }
        change.number = change.lock.count_up()?;
        Ok(change)
    }

    fn read_again(&self, state: &mut State) -> Result<()> {
        let number = self.shared.lock.number();
        let read = State::load(self.dir(), self.writable(), Broken::Ignore)?;
        *state = State { number, held: std::mem::take(&mut state.held), ..read };
        Ok(())
    }

    /// What this process knows, which may be old.
    pub(super) fn memory(&self) -> MutexGuard<'_, State> {
        // Every change leaves it whole, so a panic elsewhere is no reason to stop.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
