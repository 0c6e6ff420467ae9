use std::path::{Path, PathBuf};
use crate::error::Result;
#[derive(Debug)]
pub struct Store;
#[derive(Clone, Debug)]
pub struct Image { pub id: String, pub digests: Vec<String>, pub tags: Vec<String>, pub size: u64, pub config: oci_spec::image::ImageConfiguration, pub user: String, pub layers: Vec<String>, pub pinned: bool, pub source: Source }
#[derive(Clone, Copy, Debug)]
pub enum Source { Own }
pub struct Usage1 { pub path: PathBuf, pub bytes: u64, pub inodes: u64 }
pub type Usage = Usage1;
pub struct Usages { pub images: Usage, pub containers: Usage }
#[derive(Debug)]
pub struct Auth { pub username: String, pub password: String, pub auth: String, pub identity_token: String, pub registry_token: String }
impl Store {
    pub fn open(_: &crate::config::Config) -> Result<Store> { todo!() }
    pub fn take(&self, _: &str) -> Result<Image> { todo!() }
    pub fn unmount(&self, _: &str, _: &Path) -> Result<()> { todo!() }
    pub fn remove_rw(&self, _: &str) -> Result<()> { todo!() }
    pub fn find(&self, _: &str) -> Option<Image> { todo!() }
    pub fn list(&self) -> Result<Vec<Image>> { todo!() }
    pub fn remove(&self, _: &str) -> Result<()> { todo!() }
    pub fn usage(&self) -> Result<Usages> { todo!() }
    pub async fn pull(&self, _: &str, _: Option<Auth>) -> Result<Image> { todo!() }
}
pub fn busybox(_: &Store, _: &str) -> Result<Image> { todo!() }
pub fn import_tree(_: &Store, _: &str, _: &Path) -> Result<Image> { todo!() }
