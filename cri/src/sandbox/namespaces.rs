use std::path::{Path, PathBuf};
use crate::error::Result;
pub const PIN_WORD: &str = "__pin";
pub fn pin_main(_: impl Iterator<Item = std::ffi::OsString>) -> std::process::ExitCode { todo!() }
#[derive(Debug)]
pub struct PinRequest { pub dir: PathBuf, pub net: bool, pub ipc: bool, pub uts: bool, pub pid: bool, pub user: Option<UserMaps>, pub hostname: String, pub sysctls: std::collections::BTreeMap<String, String> }
#[derive(Debug)]
pub struct UserMaps { pub uids: IdMap, pub gids: IdMap }
#[derive(Debug)]
pub struct IdMap { pub host: u32, pub container: u32, pub length: u32 }
pub fn pin(_: &PinRequest) -> Result<()> { todo!() }
pub fn release(_: &Path) -> Result<()> { todo!() }
pub fn alive(_: &Path) -> bool { todo!() }
pub fn user_namespaces() -> bool { todo!() }
