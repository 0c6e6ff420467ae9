//! Block devices, and the file system on one.

use std::path::Path;

/// The file system of the writable layers.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// `/dev/NAME`.
    pub device: String,
    pub bytes: u64,
    pub inodes: u64,
    pub free_inodes: u64,
}

/// The name of a block device by its numbers.
pub fn device(major: u32, minor: u32) -> String {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
    let name = link.ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}

impl Disk {
    /// The file system that has a path.
    pub fn of(path: &Path) -> Disk {
        let Ok(stat) = rustix::fs::statvfs(path) else { return Disk::default() };
        let number = rustix::fs::stat(path).map_or(0, |data| data.st_dev);
        Disk {
            device: device(rustix::fs::major(number), rustix::fs::minor(number)),
            bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            free_inodes: stat.f_ffree,
        }
    }
}
