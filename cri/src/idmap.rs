//! User namespaces of pods: their ids, and mounts that show a file system's ids as a namespace has them
//! (user_namespaces(7), mount_setattr(2)).
//!
//! A file of root in an image is the host's root's. Seen through an id-mapped mount it is that of the namespace's root,
//! and what this one writes is root's on the disk. Layers and volumes stay as they are, and serve pods of any mapping.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use k8s_cri::v1::{IdMapping, NamespaceMode, NamespaceOption};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::sys;

/// Ids from 0 on in a namespace, and where they begin on the host.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct IdMap {
    pub host: u32,
    pub length: u32,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct UserMaps {
    pub uids: IdMap,
    pub gids: IdMap,
}

/// A user namespace that exists.
#[derive(Clone, Debug)]
pub struct Users {
    /// The file that it is mounted on.
    pub namespace: PathBuf,
    pub maps: UserMaps,
}

impl IdMap {
    /// One mapping of ids that begin with root: what the kubelet asks for, and all that is taken.
    fn of(maps: &[IdMapping], field: &str) -> Result<IdMap> {
        let refuse = |why: &str| Err(Error::invalid(format!("{field} {why}")));
        let [map] = maps else { return refuse("must be one mapping") };
        match map {
            map if map.length == 0 => refuse("is empty"),
            map if map.container_id != 0 => refuse("must begin with container_id 0, since containers have a root"),
            map if map.host_id.checked_add(map.length).is_none() => refuse("has more ids than there are"),
            map => Ok(IdMap { host: map.host_id, length: map.length }),
        }
    }

    /// What an id of the namespace is on the host.
    pub fn host(self, id: u32) -> Option<u32> {
        (id < self.length).then(|| self.host + id)
    }

    /// As `/proc/PID/uid_map` takes it.
    fn line(self) -> String {
        format!("0 {} {}\n", self.host, self.length)
    }
}

impl UserMaps {
    /// What a pod or container asks for; nothing is the host's ids.
    pub fn asked(modes: &NamespaceOption) -> Result<Option<UserMaps>> {
        let Some(user) = &modes.userns_options else { return Ok(None) };
        match NamespaceMode::try_from(user.mode) {
            Ok(NamespaceMode::Node) => return Ok(None),
            Ok(NamespaceMode::Pod) => {}
            _ => return Err(Error::invalid("userns_options.mode must be POD or NODE")),
        }
        UserMaps::of(&user.uids, &user.gids, "userns_options").map(Some)
    }

    /// Both kinds, by the messages of the CRI; `whose` names them in errors.
    pub fn of(uids: &[IdMapping], gids: &[IdMapping], whose: &str) -> Result<UserMaps> {
        let uids = IdMap::of(uids, &format!("{whose}: uids"))?;
        Ok(UserMaps { uids, gids: IdMap::of(gids, &format!("{whose}: gids"))? })
    }

    /// Root of the namespace, on the host.
    pub fn root(self) -> (u32, u32) {
        (self.uids.host, self.gids.host)
    }

    /// Gives the user namespace that a process has just made its ids.
    pub fn install(self, pid: u32) -> Result<()> {
        for (name, map) in [("uid_map", self.uids), ("gid_map", self.gids)] {
            let line = map.line();
            fs::write(format!("/proc/{pid}/{name}"), &line)
                .context(|| format!("Failed to map ids {:?} of a user namespace", line.trim()))?;
        }
        Ok(())
    }
}

impl Users {
    /// A tree as the namespace sees it, with all that is mounted in it: a mount that is attached nowhere yet.
    pub fn view(&self, tree: &Path) -> Result<OwnedFd> {
        let doing = || format!("Failed to show {} with other ids", tree.display());
        let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE;
        let view = open_tree(CWD, tree, flags).context(doing)?;
        let namespace =
            File::open(&self.namespace).context(|| format!("Failed to open {}", self.namespace.display()))?;
        sys::map_ids(&view, &namespace).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Error::failed(format!("{}: its file system cannot do that", doing())),
            _ => Error::failed(format!("{}: {error}", doing())),
        })?;
        Ok(view)
    }
}

/// Attaches a mount that is attached nowhere.
pub fn attach(mount: &OwnedFd, target: &Path) -> rustix::io::Result<()> {
    move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::UserNamespace;

    use super::*;

    fn asked(mode: NamespaceMode, uids: &[(u32, u32, u32)]) -> Result<Option<UserMaps>> {
        let map = |&(host_id, container_id, length): &_| IdMapping { host_id, container_id, length };
        let maps: Vec<IdMapping> = uids.iter().map(map).collect();
        let user = UserNamespace { mode: mode as i32, uids: maps.clone(), gids: maps };
        UserMaps::asked(&NamespaceOption { userns_options: Some(user), ..Default::default() })
    }

    #[test]
    fn one_mapping_from_root_on_is_taken() {
        assert_eq!(UserMaps::asked(&NamespaceOption::default()), Ok(None));
        assert_eq!(asked(NamespaceMode::Node, &[]), Ok(None));
        let maps = asked(NamespaceMode::Pod, &[(100_000, 0, 65_536)]).unwrap().unwrap();
        assert_eq!(maps.root(), (100_000, 100_000));
        assert_eq!((maps.uids.host(7), maps.uids.host(65_536)), (Some(100_007), None));
        assert_eq!(maps.uids.line(), "0 100000 65536\n");
        for bad in [
            &[][..],
            &[(100_000, 0, 1), (200_000, 1, 1)],
            &[(100_000, 0, 0)],
            &[(100_000, 1000, 1000)],
            &[(u32::MAX, 0, 1)],
        ] {
            let error = asked(NamespaceMode::Pod, bad).unwrap_err();
            assert!(matches!(&error, Error::Invalid(text) if text.contains("uids")), "{bad:?}: {error}");
        }
        assert!(asked(NamespaceMode::Container, &[(100_000, 0, 1)]).is_err());
        assert!(asked(NamespaceMode::Target, &[(100_000, 0, 1)]).is_err());
    }
}
