//! Images: what is there, where it comes from, and the root file systems made of it.
//!
//! The store is our own (`store`, `layers`): layers by DiffID, shared between images. They come from registries
//! (`pull`), from the containers/storage of this host (`adopt`) or from a directory (`import`), and are joined with a
//! writable layer per container into a root file system (`rootfs`).

mod adopt;
mod auth;
mod change;
mod files;
mod import;
mod layers;
mod load;
mod lock;
mod mapped;
mod name;
mod pull;
mod reference;
mod rootfs;
mod store;
mod unpack;

use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;

pub use auth::Credentials;
pub use import::{BUSYBOX, Content, busybox, plain};
pub use rootfs::{Mount, detach};
pub use store::Store;

/// An image as clients see it.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:` and the digest of the configuration.
    pub id: String,
    /// `REPOSITORY@DIGEST`, that of the manifest list before that of the manifest.
    pub digests: Vec<String>,
    /// `REPOSITORY:TAG`.
    pub tags: Vec<String>,
    /// Bytes that the layers take when unpacked.
    pub size: u64,
    /// What to run and how; without the history.
    pub config: Arc<ImageConfiguration>,
    /// Whom to run as, without the group.
    pub user: Option<User>,
    /// DiffIDs, the lowest first.
    pub layers: Vec<String>,
    /// Not to be removed to make room.
    pub pinned: bool,
    pub source: Source,
}

/// The user that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    Uid(u32),
    Name(String),
}

/// Whose image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Its layers are in our store.
    Own,
    /// It is in the containers/storage of this host, and becomes ours when it is used.
    ContainersStorage,
}

/// What images take of their file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub path: PathBuf,
    pub bytes: u64,
    pub inodes: u64,
}

impl User {
    fn of(config: &ImageConfiguration) -> Option<User> {
        let user = config.config().as_ref()?.user().as_deref()?;
        let user = user.split(':').next().unwrap_or_default();
        match user.parse() {
            _ if user.is_empty() => None,
            Ok(uid) => Some(User::Uid(uid)),
            Err(_) => Some(User::Name(user.to_owned())),
        }
    }
}
