//! A container's config.json (OCI runtime-spec 1.0.2, config.md and config-linux.md), out of the request, the image and
//! what was looked up before. Nothing here looks at the system.

pub mod mounts;
mod process;
pub mod resources;
pub mod seccomp;
pub mod security;
pub mod users;

use std::path::PathBuf;

use k8s_cri::v1::ContainerConfig;
use oci_spec::image::ImageConfiguration;
use serde_json::{Value, json};

use crate::error::Result;
use crate::idmap::{IdMap, UserMaps};

pub use mounts::{Peers, Source};
pub use resources::{Cgroups, updated};
pub use security::Labels;
pub use users::User;

/// What had to be looked up.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub oci_version: String,
    pub rootfs: PathBuf,
    /// To be set in the container's own uts namespace; empty where that is the host's.
    pub hostname: String,
    /// What it is called in there, also on the host's.
    pub host_name: String,
    /// In the driver's notation.
    pub cgroups_path: String,
    /// Namespaces to join, by the runtime-spec's names; what is not here is the host's or, for pid and mount, new.
    pub namespaces: Vec<(&'static str, Option<PathBuf>)>,
    /// The ids of the pod's user namespace, if it has one.
    pub users: Option<UserMaps>,
    /// The pod's files: target in the container, and source.
    pub files: Vec<(&'static str, PathBuf)>,
    /// The pod's /dev/shm, or the host's.
    pub shm: Option<PathBuf>,
    /// Of the request's mounts, in their order.
    pub sources: Vec<Source>,
    /// The runtime knows `rro`.
    pub recursive_read_only: bool,
    pub user: User,
    /// Capabilities that this program has itself.
    pub bounding: Vec<String>,
    /// Name and text of the profile that the request wants.
    pub seccomp: Option<(String, String)>,
    pub machine: seccomp::Machine,
    /// AppArmor profiles that are loaded; none where the kernel has no AppArmor.
    pub apparmor: Option<Vec<String>>,
    pub labels: Labels,
    /// Those of the request; for a privileged container the host's, too.
    pub devices: Vec<Device>,
    pub cgroups: Cgroups,
    /// What this program cannot go below.
    pub least_oom_score_adj: Option<i64>,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// In the container.
    pub path: String,
    /// `c` or `b`.
    pub kind: char,
    pub major: u64,
    pub minor: u64,
    /// For the cgroup: of `r`, `w`, `m`.
    pub permissions: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// The whole document.
pub fn config(config: &ContainerConfig, image: &ImageConfiguration, facts: &Facts) -> Result<Value> {
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let resources = linux.resources.unwrap_or_default();
    let capabilities = security::capabilities(&context, &facts.bounding)?;
    let (masked, read_only) = security::paths(config.linux.as_ref());
    let mut whole = json!({
        "ociVersion": facts.oci_version,
        "process": process::process(config, image, &context, &capabilities, facts)?,
        "root": { "path": facts.rootfs, "readonly": context.readonly_rootfs },
        "hostname": facts.hostname,
        "mounts": mounts::mounts(config, &context, facts)?,
        "annotations": annotations(config),
        "linux": {
            "namespaces": namespaces(facts),
            "cgroupsPath": facts.cgroups_path,
            "resources": resources::resources(&resources, &context, &facts.devices, facts.cgroups)?,
            "devices": devices(facts),
            "maskedPaths": masked,
            "readonlyPaths": read_only,
            "rootfsPropagation": mounts::propagation(&config.mounts),
        },
    });
    if let Some((name, text)) = &facts.seccomp {
        whole["linux"]["seccomp"] = seccomp::resolve(name, text, &capabilities.all, &facts.machine)?;
    }
    if let Some(maps) = facts.users {
        let mapping = |map: IdMap| json!([{ "containerID": 0, "hostID": map.host, "size": map.length }]);
        whole["linux"]["uidMappings"] = mapping(maps.uids);
        whole["linux"]["gidMappings"] = mapping(maps.gids);
    }
    if let Some(label) = &facts.labels.files {
        whole["linux"]["mountLabel"] = label.clone().into();
    }
    Ok(whole)
}

/// Annotations are for people and for hooks. Those that change what runtimes do would be a way around all that is
/// checked here.
fn annotations(config: &ContainerConfig) -> Value {
    let commands = ["run.oci.", "org.systemd.property.", "org.criu."];
    let harmless = |key: &str| !commands.iter().any(|prefix| key.starts_with(prefix));
    config.annotations.iter().filter(|(key, _)| harmless(key)).map(|(key, value)| (key.clone(), json!(value))).collect()
}

fn namespaces(facts: &Facts) -> Vec<Value> {
    let mut all = vec![json!({ "type": "mount" })];
    for (kind, path) in &facts.namespaces {
        all.push(match path {
            Some(path) => json!({ "type": kind, "path": path }),
            None => json!({ "type": kind }),
        });
    }
    all
}

fn devices(facts: &Facts) -> Vec<Value> {
    let node = |device: &Device| {
        json!({
            "path": device.path, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
            "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
        })
    };
    facts.devices.iter().map(node).collect()
}

#[cfg(test)]
mod tests;
