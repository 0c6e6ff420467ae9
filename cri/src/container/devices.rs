//! Device nodes of the host: those that a request names, and all of them for privileged containers.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_cri::v1::ContainerConfig;

use super::spec::{Device, mounts};
use crate::error::{Context, Error, Result};

/// What containers have their own of in /dev, and the terminal of whoever started this.
const OWN: [&str; 7] = ["console", "fd", "hugepages", "mqueue", "ptmx", "pts", "shm"];

const EVERYTHING: &str = "rwm";

/// What was asked for, and for a privileged container everything in /dev. A request goes before what is there anyway.
pub fn devices(config: &ContainerConfig, privileged: bool) -> Result<Vec<Device>> {
    let mut found = Vec::new();
    if privileged {
        walk(Path::new("/dev"), Path::new("/dev"), EVERYTHING, &mut found)?;
    }
    for asked in &config.devices {
        for device in named(asked)? {
            found.retain(|other| other.path != device.path);
            found.push(device);
        }
    }
    Ok(found)
}

/// A node, or all nodes in a directory.
fn named(asked: &k8s_cri::v1::Device) -> Result<Vec<Device>> {
    let host = &asked.host_path;
    let permissions = if asked.permissions.is_empty() { EVERYTHING } else { asked.permissions.as_str() };
    if !permissions.chars().all(|letter| EVERYTHING.contains(letter)) {
        return Err(Error::invalid(format!("Device {host}: permissions {permissions:?} are not of r, w and m")));
    }
    if !host.starts_with('/') {
        return Err(Error::invalid(format!("Device {host:?}: host_path is no absolute path")));
    }
    let target = if asked.container_path.is_empty() { host } else { &asked.container_path };
    let target = PathBuf::from(mounts::clean(target));
    let path = fs::canonicalize(host).map_err(|error| Error::invalid(format!("Device {host}: {error}")))?;
    let mut found = Vec::new();
    if path.is_dir() {
        walk(&path, &target, permissions, &mut found)?;
    } else {
        found.extend(node(&path, &target, permissions)?);
    }
    match found.is_empty() {
        true => Err(Error::invalid(format!("Device {host} is no device, and no directory with one"))),
        false => Ok(found),
    }
}

/// Links are not followed: what they lead to is there by its own name, or is none of /dev.
fn walk(dir: &Path, target: &Path, permissions: &str, found: &mut Vec<Device>) -> Result<()> {
    let doing = || format!("Failed to list devices in {}", dir.display());
    let mut entries = fs::read_dir(dir).context(doing)?.collect::<std::io::Result<Vec<_>>>().context(doing)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, target) = (entry.path(), target.join(entry.file_name()));
        let Ok(kind) = entry.file_type() else { continue };
        let own = dir == Path::new("/dev") && OWN.iter().any(|name| entry.file_name() == *name);
        if kind.is_dir() && !own {
            walk(&path, &target, permissions, found)?;
        } else if !own {
            found.extend(node(&path, &target, permissions)?);
        }
    }
    Ok(())
}

/// Nothing for what is no device, or has gone meanwhile.
pub fn node(path: &Path, target: &Path, permissions: &str) -> Result<Option<Device>> {
    let data = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        data => data.context(|| format!("Failed to look at device {}", path.display()))?,
    };
    let kind = match data.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return Ok(None),
    };
    Ok(Some(Device {
        path: target.to_string_lossy().into_owned(),
        kind,
        major: nix::sys::stat::major(data.rdev()),
        minor: nix::sys::stat::minor(data.rdev()),
        permissions: permissions.to_owned(),
        mode: data.permissions().mode() & 0o7777,
        uid: data.uid(),
        gid: data.gid(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(host: &str, target: &str, permissions: &str) -> Result<Vec<Device>> {
        let device = k8s_cri::v1::Device {
            host_path: host.into(),
            container_path: target.into(),
            permissions: permissions.into(),
        };
        devices(&ContainerConfig { devices: vec![device], ..Default::default() }, false)
    }

    #[test]
    fn nodes_and_directories_are_devices() {
        let seen = ask("/dev/null", "/dev/nothing", "r").unwrap();
        let seen = &seen[0];
        assert_eq!((seen.path.as_str(), seen.kind, seen.major, seen.minor), ("/dev/nothing", 'c', 1, 3));
        assert_eq!((seen.permissions.as_str(), seen.mode), ("r", 0o666));
        assert_eq!(ask("/dev/zero", "", "").unwrap()[0].permissions, "rwm");
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert_eq!(ask(link.to_str().unwrap(), "/dev/x", "rw").unwrap()[0].minor, 3);
    }

    #[test]
    fn everything_is_a_lot_and_has_what_was_asked_once() {
        let device = k8s_cri::v1::Device {
            host_path: "/dev/zero".into(),
            container_path: "/dev/null".into(),
            ..Default::default()
        };
        let all = devices(&ContainerConfig { devices: vec![device], ..Default::default() }, true).unwrap();
        let nulls: Vec<_> = all.iter().filter(|device| device.path == "/dev/null").collect();
        assert_eq!((nulls.len(), nulls[0].minor), (1, 5));
        assert!(all.iter().all(|device| !device.path.starts_with("/dev/pts/") && device.path != "/dev/console"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().to_str().unwrap();
        for (host, permissions) in
            [("/etc/passwd", ""), ("/no/such", ""), (dir, ""), ("dev/null", ""), ("/dev/null", "rx")]
        {
            let error = ask(host, "", permissions).unwrap_err();
            assert!(matches!(&error, Error::Invalid(text) if text.contains(host)), "{error}");
        }
    }
}
