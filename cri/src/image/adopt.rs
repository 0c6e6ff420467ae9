//! containers/storage as a second source: what podman, buildah or skopeo put there can be used without a pull.
//!
//! Its store is only read. Its locks (fcntl, shared, of open file descriptions) are held for as long as two JSON files
//! are read, for podman waits for them even to list. Files become ours by hard links: overlayfs never writes to a lower
//! file, and their store never writes to a committed layer. Directories are made anew.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use serde::Deserialize;

use super::load::parse_config;
use super::lock;
use super::store::{Record, Store};
use super::{Image, Source, User, files, name};
use crate::error::{Context, Error, Result};

/// The containers/storage of this host.
#[derive(Debug)]
pub(super) struct Foreign {
    root: PathBuf,
    seen: Mutex<Option<(Token, Arc<Vec<Image>>)>>,
}

/// Changes whenever somebody writes to their store: what the two lock files say, and which JSON files there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Token(Vec<u8>);

/// Their two lists, read at one moment.
#[derive(Debug, Default)]
struct Lists {
    images: Vec<TheirImage>,
    layers: HashMap<String, TheirLayer>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct TheirImage {
    id: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    layer: String,
    #[serde(default)]
    big_data_names: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct TheirLayer {
    id: String,
    parent: String,
    diff_digest: String,
    diff_size: u64,
    flags: HashMap<String, serde_json::Value>,
    uidmap: Vec<serde_json::Value>,
    gidmap: Vec<serde_json::Value>,
}

/// How long a list waits for their lock, and an adoption. A pull of theirs may hold it for long; their files are
/// replaced as a whole, so that reading without the lock gives something older, not something broken.
const LIST_PATIENCE: Duration = Duration::from_millis(20);
const ADOPT_PATIENCE: Duration = Duration::from_secs(5);

impl Foreign {
    /// Nothing to look at with an empty path.
    pub fn at(root: &Path) -> Option<Foreign> {
        (!root.as_os_str().is_empty()).then(|| Foreign { root: root.to_owned(), seen: Mutex::new(None) })
    }

    /// The images that are there now; their files are only read when something has changed.
    pub fn images(&self) -> Arc<Vec<Image>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let token = self.token();
        if let Some((known, images)) = &*seen
            && *known == token
        {
            return Arc::clone(images);
        }
        let images = match self.lists(LIST_PATIENCE) {
            Ok(lists) => lists.images.iter().filter_map(|image| self.image(&lists, image)).collect(),
            Err(error) => {
                tracing::warn!(%error, "cannot read the images of containers/storage");
                Vec::new()
            }
        };
        let images = Arc::new(images);
        *seen = Some((token, Arc::clone(&images)));
        images
    }

    fn token(&self) -> Token {
        let mut token = Vec::new();
        for kind in ["images", "layers"] {
            let dir = self.root.join(format!("overlay-{kind}"));
            token.extend(fs::read(dir.join(format!("{kind}.lock"))).unwrap_or_default());
            if let Ok(data) = fs::metadata(dir.join(format!("{kind}.json"))) {
                for part in [data.ino().cast_signed(), data.mtime(), data.mtime_nsec(), data.size().cast_signed()] {
                    token.extend(part.to_ne_bytes());
                }
            }
        }
        Token(token)
    }

    /// In the order in which they take the locks themselves.
    fn lists(&self, patience: Duration) -> Result<Lists> {
        let (images, layers) = (self.root.join("overlay-images"), self.root.join("overlay-layers"));
        if !images.is_dir() {
            self.note_driver();
            return Ok(Lists::default());
        }
        let locks = [share(&layers.join("layers.lock"), patience), share(&images.join("images.lock"), patience)];
        let read = |path: PathBuf| match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(b"[]".to_vec()),
            other => other.context(|| format!("Failed to read {}", path.display())),
        };
        let of_images = read(images.join("images.json"))?;
        let of_layers = read(layers.join("layers.json"))?;
        let of_volatile = read(layers.join("volatile-layers.json"))?;
        drop(locks);
        let doing = || format!("Bad list in {}", self.root.display());
        let mut list: Vec<TheirLayer> = serde_json::from_slice(&of_layers).context(doing)?;
        list.extend(serde_json::from_slice::<Vec<TheirLayer>>(&of_volatile).context(doing)?);
        Ok(Lists {
            images: serde_json::from_slice(&of_images).context(doing)?,
            layers: list.into_iter().map(|layer| (layer.id.clone(), layer)).collect(),
        })
    }

    fn note_driver(&self) {
        for driver in ["vfs", "btrfs", "zfs", "aufs", "devicemapper"] {
            if self.root.join(format!("{driver}-images")).is_dir() {
                let root = self.root.display();
                tracing::warn!(%root, driver, "images of containers/storage are not used: only the overlay driver is");
            }
        }
    }

    fn image(&self, lists: &Lists, theirs: &TheirImage) -> Option<Image> {
        let config = self.config(theirs).and_then(|text| parse_config(&text));
        let config = config.map_err(|error| tracing::debug!(image = theirs.id, %error, "not an image to run")).ok()?;
        let (mut tags, mut digests) = (Vec::new(), Vec::new());
        for text in &theirs.names {
            let Ok(reference) = name::parse(text) else { continue };
            let (whole, digest) =
                (name::whole(&reference), format!("{}@{}", name::repository(&reference), theirs.digest));
            if reference.digest().is_none() {
                tags.push(whole);
            } else if whole != digest {
                digests.push(whole);
            }
            if !theirs.digest.is_empty() && !digests.contains(&digest) {
                digests.push(digest);
            }
        }
        let size = chain(lists, theirs).map(|chain| chain.iter().map(|layer| layer.diff_size).sum()).unwrap_or(0);
        Some(Image {
            id: format!("sha256:{}", theirs.id),
            digests,
            tags,
            size: size.max(1),
            user: User::of(&config),
            layers: config.rootfs().diff_ids().clone(),
            config,
            // To remove it is not for the kubelet.
            pinned: true,
            source: Source::ContainersStorage,
        })
    }

    fn config(&self, image: &TheirImage) -> Result<Vec<u8>> {
        self.document(image, &format!("sha256:{}", image.id))
    }

    fn document(&self, image: &TheirImage, key: &str) -> Result<Vec<u8>> {
        let plain = key.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.'));
        let file = if plain { key.to_owned() } else { format!("={}", STANDARD.encode(key)) };
        let path = self.root.join("overlay-images").join(&image.id).join(file);
        fs::read(&path).context(|| format!("Failed to read {}", path.display()))
    }

    fn tree(&self, layer: &TheirLayer) -> PathBuf {
        self.root.join("overlay").join(&layer.id).join("diff")
    }
}

impl Store {
    /// Makes an image of containers/storage ours; one that is ours already stays as it is.
    pub fn adopt(&self, id: &str) -> Result<Image> {
        if let Some(image) = self.find(id).filter(|image| image.source == Source::Own) {
            return Ok(image);
        }
        let foreign = self.foreign().ok_or_else(|| Error::missing("image", id))?;
        let lists = foreign.lists(ADOPT_PATIENCE)?;
        let before = foreign.token();
        let hex = id.strip_prefix("sha256:").unwrap_or(id);
        let theirs = lists.images.iter().find(|image| image.id == hex).ok_or_else(|| Error::missing("image", id))?;
        let doing = || format!("Failed to adopt image {id} from {}", foreign.root.display());
        let seen = foreign.image(&lists, theirs).ok_or_else(|| Error::failed(format!("{}: not an image", doing())))?;
        let layers = sources(foreign, &lists, theirs, &seen).context(doing)?;
        let hold = self.hold(seen.layers.iter().cloned().chain(Some(seen.id.clone())))?;
        let started = Instant::now();
        let mut drafts = Vec::new();
        let mut made: Vec<&str> = Vec::new();
        for (layer, tree, inode) in &layers {
            if self.has_layer(&layer.diff_digest) || made.contains(&layer.diff_digest.as_str()) {
                continue;
            }
            made.push(&layer.diff_digest);
            let draft = self.draft()?;
            copy_tree(tree, &draft.tree()).context(doing)?;
            drafts.push((draft, layer, tree, *inode));
        }
        let mut blobs = vec![seen.id.clone()];
        let config = foreign.config(theirs).context(doing)?;
        let manifests: Vec<Vec<u8>> = theirs
            .big_data_names
            .iter()
            .filter(|key| *key == "manifest" || key.starts_with("manifest-"))
            .filter_map(|key| foreign.document(theirs, key).ok())
            .collect();
        if foreign.token() != before {
            // Only now it counts what is left of the sources.
            let now = foreign.lists(ADOPT_PATIENCE)?;
            for (_, layer, tree, inode) in &drafts {
                let whole = now.layers.get(&layer.id).is_some_and(|layer| !incomplete(layer));
                if !whole || inode_of(tree) != Some(*inode) {
                    let text = format!("layer {} was removed meanwhile", layer.id);
                    return Err(Error::failed(text)).context(doing);
                }
            }
        }
        if files::digest(&config) != seen.id {
            return Err(Error::failed("its configuration does not have its digest")).context(doing);
        }
        let hold_manifests = self.hold(manifests.iter().map(|manifest| files::digest(manifest)))?;
        self.put_blob(&config)?;
        for manifest in manifests {
            let digest = self.put_blob(&manifest)?;
            if !blobs.contains(&digest) {
                blobs.push(digest);
            }
        }
        let count = drafts.len();
        for (draft, layer, ..) in drafts {
            self.keep(draft, &layer.diff_digest)?;
        }
        let image = self.put(Record {
            id: seen.id,
            tags: seen.tags,
            digests: seen.digests,
            layers: seen.layers,
            blobs,
            adopted: true,
            pinned: false,
        })?;
        drop((hold, hold_manifests));
        tracing::info!(image = image.id, layers = count, took = ?started.elapsed(), "adopted from containers/storage");
        Ok(image)
    }
}

fn incomplete(layer: &TheirLayer) -> bool {
    layer.flags.get("incomplete").is_some_and(|flag| *flag != serde_json::Value::Bool(false))
}

fn inode_of(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|data| (data.dev(), data.ino()))
}

/// The layers of an image, the lowest first.
fn chain<'a>(lists: &'a Lists, image: &TheirImage) -> Result<Vec<&'a TheirLayer>> {
    let mut chain = Vec::new();
    let mut id = &image.layer;
    while !id.is_empty() {
        let layer = lists.layers.get(id).ok_or_else(|| Error::failed(format!("layer {id} is missing")))?;
        chain.push(layer);
        if chain.len() > lists.layers.len() {
            return Err(Error::failed("its layers form a ring"));
        }
        id = &layer.parent;
    }
    chain.reverse();
    Ok(chain)
}

type Origin<'a> = (&'a TheirLayer, PathBuf, (u64, u64));

/// The layers to link, with their trees, if they are plain.
fn sources<'a>(foreign: &Foreign, lists: &'a Lists, image: &TheirImage, seen: &Image) -> Result<Vec<Origin<'a>>> {
    let chain = chain(lists, image)?;
    if !chain.iter().map(|layer| &layer.diff_digest).eq(&seen.layers) {
        return Err(Error::failed("its layers are not those that its configuration names"));
    }
    let plain = |layer: &'a TheirLayer| {
        let refuse = |why: &str| Err(Error::failed(format!("layer {} {why}", layer.id)));
        let tree = foreign.tree(layer);
        files::hex(&layer.diff_digest)?;
        if incomplete(layer) {
            return refuse("is not complete");
        }
        if !layer.uidmap.is_empty() || !layer.gidmap.is_empty() {
            return refuse("has mapped owners");
        }
        if tree.with_file_name("composefs-data").exists() {
            return refuse("is a composefs");
        }
        if rustix::fs::lgetxattr(&tree, "user.containers.override_stat", &mut [0_u8; 64]).is_ok() {
            return refuse("has its owners and modes in attributes (force_mask)");
        }
        match inode_of(&tree) {
            Some(inode) => Ok((layer, tree, inode)),
            None => refuse("has no tree"),
        }
    };
    chain.into_iter().map(plain).collect()
}

/// A shared lock, or none if it cannot be had in time.
fn share(path: &Path, patience: Duration) -> Option<File> {
    let file = File::open(path).ok()?;
    match lock::share_file(&file, patience) {
        Ok(()) => Some(file),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "reading without the lock");
            None
        }
    }
}

/// The same tree: directories anew, all else by links, or by copies where links cannot be.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let mut copies = HashMap::new();
    let mut dirs = vec![PathBuf::new()];
    let mut made = Vec::new();
    while let Some(below) = dirs.pop() {
        let dir = from.join(&below);
        for entry in fs::read_dir(&dir).context(|| format!("Failed to list {}", dir.display()))? {
            let entry = entry.context(|| format!("Failed to list {}", dir.display()))?;
            let below = below.join(entry.file_name());
            let (old, new) = (from.join(&below), to.join(&below));
            let doing = || format!("Failed to link {}", old.display());
            if entry.file_type().context(doing)?.is_dir() {
                fs::create_dir(&new).context(doing)?;
                dirs.push(below);
            } else {
                link(&old, &new, &mut copies).context(doing)?;
            }
        }
        made.push(below);
    }
    // Inner directories first, so that the times stay.
    for below in made.iter().rev() {
        attributes(&from.join(below), &to.join(below))
            .context(|| format!("Failed to copy attributes of {}", from.join(below).display()))?;
    }
    Ok(())
}

/// What has been copied, so that names of one file stay so.
type Copies = HashMap<(u64, u64), PathBuf>;

fn link(old: &Path, new: &Path, copies: &mut Copies) -> std::io::Result<()> {
    match rustix::fs::linkat(CWD, old, CWD, new, AtFlags::empty()) {
        Err(Errno::XDEV | Errno::MLINK | Errno::PERM) => copy(old, new, copies),
        other => Ok(other?),
    }
}

fn copy(old: &Path, new: &Path, copies: &mut Copies) -> std::io::Result<()> {
    let data = fs::symlink_metadata(old)?;
    if let Some(first) = copies.get(&(data.dev(), data.ino())) {
        return fs::hard_link(first, new);
    }
    if data.nlink() > 1 {
        copies.insert((data.dev(), data.ino()), new.to_owned());
    }
    let kind = data.file_type();
    if kind.is_file() {
        let (mut from, mut to) = (File::open(old)?, File::options().write(true).create_new(true).open(new)?);
        if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
            from.rewind()?;
            std::io::copy(&mut from.by_ref(), &mut to)?;
        }
    } else if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(old)?, new)?;
    } else {
        let (kind, device) = match () {
            () if kind.is_char_device() => (FileType::CharacterDevice, data.rdev()),
            () if kind.is_block_device() => (FileType::BlockDevice, data.rdev()),
            () if kind.is_fifo() => (FileType::Fifo, 0),
            () => (FileType::Socket, 0),
        };
        rustix::fs::mknodat(CWD, new, kind, Mode::from_raw_mode(data.mode() & 0o7777), device)?;
    }
    attributes(old, new)
}

/// Owner, attributes, mode and times. Labels are left to the mount.
fn attributes(old: &Path, new: &Path) -> std::io::Result<()> {
    let data = fs::symlink_metadata(old)?;
    let (uid, gid) = (Uid::from_raw(data.uid()), Gid::from_raw(data.gid()));
    rustix::fs::chownat(CWD, new, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    for name in xattrs(old)? {
        if name == "security.selinux" {
            continue;
        }
        let mut value = Vec::with_capacity(1 << 16);
        rustix::fs::lgetxattr(old, name.as_str(), spare_capacity(&mut value))?;
        rustix::fs::lsetxattr(new, name.as_str(), &value, XattrFlags::empty())?;
    }
    if !data.is_symlink() {
        rustix::fs::chmodat(CWD, new, Mode::from_raw_mode(data.mode() & 0o7777), AtFlags::empty())?;
    }
    let time = |seconds: i64, nanoseconds: i64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(data.atime(), data.atime_nsec()),
        last_modification: time(data.mtime(), data.mtime_nsec()),
    };
    Ok(rustix::fs::utimensat(CWD, new, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn xattrs(path: &Path) -> std::io::Result<Vec<String>> {
    let mut list = Vec::with_capacity(1 << 16);
    match rustix::fs::llistxattr(path, spare_capacity(&mut list)) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        other => other?,
    };
    let names = list.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_everything_that_links_would_have() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        fs::create_dir(&old).unwrap();
        fs::create_dir(&new).unwrap();
        fs::write(old.join("a"), "text").unwrap();
        std::os::unix::fs::chown(old.join("a"), Some(7), Some(8)).unwrap();
        fs::set_permissions(old.join("a"), std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
        rustix::fs::lsetxattr(old.join("a"), "trusted.x", b"y", XattrFlags::empty()).unwrap();
        fs::hard_link(old.join("a"), old.join("b")).unwrap();
        rustix::fs::mknodat(CWD, old.join("w"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        let mut copies = Copies::new();
        for name in ["a", "b", "w"] {
            copy(&old.join(name), &new.join(name), &mut copies).unwrap();
        }
        let (was, is) = (fs::metadata(old.join("a")).unwrap(), fs::metadata(new.join("a")).unwrap());
        assert_ne!(was.ino(), is.ino());
        assert_eq!((is.mode(), is.uid(), is.gid(), is.mtime_nsec()), (was.mode(), 7, 8, was.mtime_nsec()));
        assert_eq!(is.ino(), fs::metadata(new.join("b")).unwrap().ino());
        assert_eq!(fs::read(new.join("b")).unwrap(), b"text");
        assert_eq!(xattrs(&new.join("a")).unwrap(), ["trusted.x"]);
        let whiteout = fs::metadata(new.join("w")).unwrap();
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    }
}
