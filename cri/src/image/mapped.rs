//! Mounts of containers in user namespaces: images and volumes with the ids that the namespace has.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::files;
use super::rootfs::{self, Mount, Upper, detach};
use super::store::Store;
use crate::error::{Context, Error, Result};
use crate::idmap::{self, Users};

impl Store {
    /// Mounts a file or directory of the host for a container, as the container's user namespace sees it.
    pub fn mount_mapped(&self, source: &Path, container: &str, target: &Path, users: &Users) -> Result<()> {
        let dir = self.container_dir(container)?;
        self.claim(&dir, container, &[], target)?;
        detach(target)?;
        let doing = || format!("Failed to mount {} at {}", source.display(), target.display());
        if source.is_dir() {
            files::make_dir(target)?;
        } else {
            files::make_dir(target.parent().unwrap_or(target))?;
            fs::write(target, "").context(doing)?;
        }
        idmap::attach(&users.view(source)?, target).context(doing)
    }

    /// Whether images can be mounted with the ids of a user namespace: tries it, in a directory that is made and removed.
    pub fn maps_ids(&self, users: &Users, dir: &Path) -> Result<()> {
        let (temp, target) = (self.temp("trial"), dir.join("root"));
        // An overlay without a writable layer wants two below it.
        let lowers = ["a", "b"].map(|name| temp.join(name));
        let how = Mount { read_only: true, ..Mount::default() };
        detach(&target)?;
        let made = lowers.iter().chain([&target]).try_for_each(|dir| files::make_dir(dir));
        let tried = made.and_then(|()| overlay(&lowers, None, &target, &how, users));
        detach(&target)?;
        files::remove_tree(&temp)?;
        tried
    }
}

/// An overlay of layers whose files have the ids of a user namespace. Until 6.15 overlayfs takes no mount that is attached
/// nowhere, so they are mounted over themselves, in a mount namespace that a thread has for itself: whatever ends it,
/// nothing of them is left.
pub(super) fn overlay(
    lowers: &[PathBuf],
    upper: Option<&Upper>,
    target: &Path,
    how: &Mount,
    users: &Users,
) -> Result<()> {
    let work = || -> Result<()> {
        let home = File::open("/proc/thread-self/ns/mnt").context(|| "Failed to open the mount namespace")?;
        unshare(CloneFlags::CLONE_NEWNS).context(|| "Failed to make a mount namespace")?;
        let alone = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, alone, None::<&str>).context(|| "Failed to be alone")?;
        for lower in lowers {
            let view = users.view(lower)?;
            idmap::attach(&view, lower).context(|| format!("Failed to mount {}", lower.display()))?;
        }
        rootfs::overlay(lowers, upper, target, how).context(|| "overlay")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
        let whole = open_tree(CWD, target, flags).context(|| "Failed to take the mount along")?;
        setns(home, CloneFlags::CLONE_NEWNS).context(|| "Failed to return")?;
        idmap::attach(&whole, target).context(|| "Failed to attach")
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mapped".to_owned()).spawn_scoped(scope, work);
        let done = thread.context(|| "Failed to start a thread")?.join();
        done.unwrap_or_else(|_| Err(Error::failed("The thread that mounts broke off")))
    })
}
