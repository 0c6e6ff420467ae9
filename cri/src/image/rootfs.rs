//! Root file systems: the layers of an image with a writable layer per container on top, as one overlay mount.
//!
//! `<root>/containers-rw/ID/{upper,work}` and `mounts.json`, which is written before anything is mounted: what it names
//! can be unmounted and removed by whoever comes after a kill.

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use serde::{Deserialize, Serialize};

use super::files::{self, Size};
use super::load::Broken;
use super::store::Store;
use super::{Image, Source, mapped};
use crate::error::{Context, Error, Result};
use crate::idmap::{self, Users};

/// How an image is mounted.
#[derive(Clone, Debug, Default)]
pub struct Mount {
    /// Without a writable layer: for volumes made of images.
    pub read_only: bool,
    /// SELinux: the context of every file.
    pub label: Option<String>,
    /// The user namespace whose ids the files are to have.
    pub users: Option<Users>,
}

/// What is below a container, as its file has it.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Mounts {
    layers: Vec<String>,
    targets: Vec<PathBuf>,
}

const FILE: &str = "mounts.json";

impl Store {
    /// Mounts an image for a container at a directory, which is made if it is missing; an image that is not ours is
    /// adopted first. Repeating it mounts anew over the same writable layer.
    pub fn mount(&self, image: &Image, container: &str, target: &Path, how: &Mount) -> Result<()> {
        let doing = || format!("Failed to mount image {} at {}", image.id, target.display());
        let adopted;
        let image = match image.source {
            Source::Own => image,
            Source::ContainersStorage => {
                adopted = self.adopt(&image.id)?;
                &adopted
            }
        };
        let dir = self.container_dir(container)?;
        self.claim(&dir, container, &image.layers, target)?;
        files::make_dir(target)?;
        detach(target)?;
        let mut lowers = self.lowers(&image.layers)?;
        let empty = dir.join("empty");
        if lowers.is_empty() || (how.read_only && lowers.len() < 2) {
            // An overlay without a writable layer wants two below it.
            files::make_dir(&empty)?;
            lowers.push(empty.clone());
            if lowers.len() < 2 && how.read_only {
                let other = dir.join("empty2");
                files::make_dir(&other)?;
                lowers.push(other);
            }
        }
        let upper = if how.read_only { None } else { Some(writable(&dir, lowers.first(), how.users.as_ref())?) };
        if let Some(users) = &how.users {
            return mapped::overlay(&lowers, upper.as_ref(), target, how, users).context(doing);
        }
        match overlay(&lowers, upper.as_ref(), target, how) {
            Err(Errno::INVAL) if !how.read_only && on_overlay(&dir) => Err(Error::failed(format!(
                "{}: {} is on an overlay file system, which cannot be below another's writable layer: set `root` to a \
                 directory on another",
                doing(),
                dir.display()
            ))),
            mounted => mounted.context(doing),
        }
    }

    /// Unmounts the root file system of a container and its volumes; what is not mounted is so already.
    pub fn unmount(&self, container: &str) -> Result<()> {
        let dir = self.container_dir(container)?;
        let _state = self.memory();
        let mounts = read(&dir);
        // The last first: one may be within another.
        for target in mounts.targets.iter().rev() {
            detach(target)?;
        }
        if mounts.targets.is_empty() {
            return Ok(());
        }
        self.record(&dir, &Mounts { targets: Vec::new(), ..mounts })
    }

    /// Removes the writable layer of a container with all that is still mounted of it; repeatable.
    pub fn remove_rw(&self, container: &str) -> Result<()> {
        self.sweep(&self.retire_rw(container)?)
    }

    /// Removes what was retired, which may take long.
    pub fn sweep(&self, retired: &Path) -> Result<()> {
        files::remove_tree(retired)
    }

    /// The short part of [`Store::remove_rw`]: answers with what is to be swept, which a later start would do otherwise.
    pub fn retire_rw(&self, container: &str) -> Result<PathBuf> {
        let dir = self.container_dir(container)?;
        for target in read(&dir).targets.iter().rev() {
            detach(target)?;
        }
        let gone = self.writable().join(format!(".gone-{container}"));
        if dir.exists() {
            files::remove_tree(&gone)?;
            fs::rename(&dir, &gone).context(|| format!("Failed to remove {}", dir.display()))?;
        }
        self.change()?.containers.remove(container);
        self.collect()?;
        Ok(gone)
    }

    /// The containers that have a writable layer or a mount.
    pub fn rw_ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.state().containers.keys().cloned().collect();
        ids.sort();
        ids
    }

    /// Bytes and inodes of what a container has written; walks its tree.
    pub fn rw_usage(&self, container: &str) -> Result<(u64, u64)> {
        let Size { bytes, inodes } = files::measure(&self.container_dir(container)?.join("upper"));
        Ok((bytes, inodes))
    }

    /// Where the writable layer of a container is.
    pub fn upper(&self, container: &str) -> Result<PathBuf> {
        Ok(self.container_dir(container)?.join("upper"))
    }

    pub(super) fn container_dir(&self, container: &str) -> Result<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if container.is_empty() || container.starts_with('.') || !container.bytes().all(plain) {
            return Err(Error::Invalid(format!("Bad container id {container:?}")));
        }
        Ok(self.writable().join(container))
    }

    /// Writes down what is about to be mounted. From here on the layers stay.
    pub(super) fn claim(&self, dir: &Path, container: &str, layers: &[String], target: &Path) -> Result<()> {
        let mut state = self.change()?;
        if let Some(missing) = layers.iter().find(|layer| !state.layers.contains_key(*layer)) {
            return Err(Error::failed(format!("Layer {missing} for {} is not there any more", target.display())));
        }
        files::make_dir(dir)?;
        let mut mounts = read(dir);
        mounts.layers.extend(layers.iter().cloned());
        mounts.layers.sort();
        mounts.layers.dedup();
        if !mounts.targets.iter().any(|known| known == target) {
            mounts.targets.push(target.to_owned());
        }
        self.record(dir, &mounts)?;
        state.containers.insert(container.to_owned(), mounts.layers);
        Ok(())
    }

    fn record(&self, dir: &Path, mounts: &Mounts) -> Result<()> {
        let text = serde_json::to_vec(mounts).context(|| "Failed to describe mounts")?;
        // A loss of power ends the mounts, and the processes that need the layers.
        files::write_for_now(&dir.join(".mounts.json"), &dir.join(FILE), &text)
    }

    /// The trees of layers, the topmost first. A layer that an image has twice counts where it is higher: overlayfs
    /// takes a tree once, and below itself it adds nothing.
    fn lowers(&self, layers: &[String]) -> Result<Vec<PathBuf>> {
        let mut lowers = Vec::with_capacity(layers.len());
        for layer in layers.iter().rev() {
            let tree = self.layer(layer)?;
            if !lowers.contains(&tree) {
                lowers.push(tree);
            }
        }
        Ok(lowers)
    }
}

/// The containers that are there, with their layers.
pub(super) fn load(dir: &Path, broken: Broken) -> Result<HashMap<String, Vec<String>>> {
    let mut containers = HashMap::new();
    for name in files::names(dir)? {
        if name.starts_with(".gone-") {
            if broken == Broken::Remove {
                files::remove_tree(&dir.join(&name))?;
            }
        } else {
            let layers = read(&dir.join(&name)).layers;
            containers.insert(name, layers);
        }
    }
    Ok(containers)
}

/// Without a file nothing was mounted yet.
fn read(dir: &Path) -> Mounts {
    fs::read(dir.join(FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn writable(dir: &Path, top: Option<&PathBuf>, users: Option<&Users>) -> Result<(PathBuf, PathBuf)> {
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    let fresh = !upper.exists();
    files::make_dir(&work)?;
    if fresh {
        // The root of the mount is that of the writable layer, and has to look like the image's.
        let made = dir.join(".upper");
        files::make_dir(&made)?;
        let doing = || format!("Failed to make {}", upper.display());
        if let Some(top) = top {
            let data = fs::metadata(top).context(doing)?;
            let (uid, gid) = match users {
                None => (Some(data.uid()), Some(data.gid())),
                Some(Users { maps, .. }) => (maps.uids.host(data.uid()), maps.gids.host(data.gid())),
            };
            std::os::unix::fs::chown(&made, uid, gid).context(doing)?;
            fs::set_permissions(&made, fs::Permissions::from_mode(data.mode() & 0o7777)).context(doing)?;
        }
        fs::rename(&made, &upper).context(doing)?;
    }
    Ok((upper, work))
}

/// Unmounts whatever is mounted at a path, however often.
pub fn detach(target: &Path) -> Result<()> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(error).context(|| format!("Failed to unmount {}", target.display())),
        }
    }
}

pub(super) type Upper = (PathBuf, PathBuf);

fn on_overlay(dir: &Path) -> bool {
    use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
    statfs(dir).is_ok_and(|fs| fs.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
}

pub(super) fn overlay(lowers: &[PathBuf], upper: Option<&Upper>, target: &Path, how: &Mount) -> rustix::io::Result<()> {
    match layered(lowers, upper, target, how) {
        // Kernels before 6.5 do not take layers one by one, those before 5.2 have no such calls.
        Err(Errno::INVAL | Errno::NOSYS) => classic(lowers, upper, target, how),
        other => other,
    }
}

/// One parameter per layer: neither their number nor the length of their paths has to fit into a page.
fn layered(lowers: &[PathBuf], upper: Option<&Upper>, target: &Path, how: &Mount) -> rustix::io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "conward")?;
    for lower in lowers {
        fsconfig_set_string(&context, "lowerdir+", lower)?;
    }
    if let Some((upper, work)) = upper {
        fsconfig_set_string(&context, "upperdir", upper)?;
        fsconfig_set_string(&context, "workdir", work)?;
    } else {
        fsconfig_set_flag(&context, "ro")?;
    }
    if let Some(label) = &how.label {
        fsconfig_set_string(&context, "context", label)?;
    }
    fsconfig_create(&context)?;
    let attributes = if how.read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    idmap::attach(&mount, target)
}

/// All options in one page; the layers by the numbers of open directories, which are short.
fn classic(lowers: &[PathBuf], upper: Option<&Upper>, target: &Path, how: &Mount) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open: Vec<OwnedFd> =
        lowers.iter().map(|lower| rustix::fs::open(lower, flags, Mode::empty())).collect::<rustix::io::Result<_>>()?;
    let names: Vec<String> = open.iter().map(|dir| format!("/proc/self/fd/{}", dir.as_raw_fd())).collect();
    let mut options = format!("lowerdir={}", names.join(":"));
    if let Some((upper, work)) = upper {
        options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
    }
    if let Some(label) = &how.label {
        options += &format!(",context=\"{label}\"");
    }
    let flags = if how.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("conward", target, "overlay", flags, Some(options.as_c_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What older kernels get, on a newer one.
    #[test]
    fn options_in_one_page() {
        let dir = tempfile::tempdir().unwrap();
        let lowers: Vec<PathBuf> = (0..100).map(|n| dir.path().join(format!("a-rather-long-name-{n}"))).collect();
        for lower in &lowers {
            fs::create_dir(lower).unwrap();
            fs::write(lower.join("top"), lower.to_str().unwrap()).unwrap();
        }
        let upper = writable(dir.path(), lowers.first(), None).unwrap();
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        classic(&lowers, Some(&upper), &target, &Mount::default()).unwrap();
        let top = fs::read_to_string(target.join("top")).unwrap();
        fs::write(target.join("new"), "x").unwrap();
        detach(&target).unwrap();
        detach(&target).unwrap();
        assert_eq!(top, lowers[0].to_str().unwrap());
        assert!(dir.path().join("upper/new").exists() && !target.join("new").exists());
    }
}
