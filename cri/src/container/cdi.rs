//! Container Device Interface (cncf-tags/container-device-interface, SPEC.md): devices that a vendor describes in files,
//! named in the request as `vendor.com/class=name`, and what they change in config.json.
//!
//! Files are JSON. One that is YAML and not JSON is passed over and named when a device is not found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_cri::v1::ContainerConfig;
use serde::Deserialize;
use serde_json::{Value, json};

use super::devices;
use crate::error::{Error, Result};

/// Where files are; a later directory goes before an earlier one.
pub const DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Annotations with this prefix name devices, too, by commas: the way before requests had a field for them.
const ANNOTATION: &str = "cdi.k8s.io/";

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    /// Of every device in the file, once.
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    #[serde(rename = "additionalGids", alias = "additionalGIDs")]
    additional_gids: Vec<u32>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    host_path: Option<String>,
    permissions: Option<String>,
    file_mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    options: Option<Vec<String>>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    hook_name: String,
    path: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<i64>,
}

/// Changes config.json for the devices that a request names.
pub fn edit(whole: &mut Value, config: &ContainerConfig, dirs: &[&str]) -> Result<()> {
    let names = names(config);
    if names.is_empty() {
        return Ok(());
    }
    let registry = Registry::read(dirs);
    let mut done: Vec<&Path> = Vec::new();
    for name in &names {
        let (file, all, own) = registry.find(name)?;
        if !done.contains(&file) {
            apply(whole, all, name)?;
            done.push(file);
        }
        apply(whole, own, name)?;
    }
    if let Some(mounts) = whole["mounts"].as_array_mut() {
        mounts
            .sort_by_key(|mount| mount["destination"].as_str().map_or(0, |path| Path::new(path).components().count()));
    }
    Ok(())
}

fn names(config: &ContainerConfig) -> Vec<String> {
    let mut annotated: Vec<_> = config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    annotated.sort();
    let annotated = annotated.into_iter().flat_map(|(_, value)| value.split(',')).map(|name| name.trim().to_owned());
    let mut names: Vec<String> = Vec::new();
    for name in config.cdi_devices.iter().map(|device| device.name.clone()).chain(annotated) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[derive(Default)]
struct Registry {
    /// By directory, then file.
    specs: Vec<BTreeMap<PathBuf, Spec>>,
    /// With the reason.
    unread: Vec<String>,
}

impl Registry {
    fn read(dirs: &[&str]) -> Registry {
        let mut registry = Registry::default();
        for dir in dirs {
            let mut specs = BTreeMap::new();
            let entries = fs::read_dir(dir).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
            for path in entries.into_iter().map(|entry| entry.path()) {
                if !path.extension().is_some_and(|kind| kind == "json" || kind == "yaml" || kind == "yml") {
                    continue;
                }
                match fs::read(&path).map_err(|error| error.to_string()).and_then(|text| parse(&text)) {
                    Ok(spec) => _ = specs.insert(path, spec),
                    Err(why) => registry.unread.push(format!("{}: {why}", path.display())),
                }
            }
            registry.specs.push(specs);
        }
        registry
    }

    /// The file, what it says for all of its devices, and for this one.
    fn find(&self, name: &str) -> Result<(&Path, &Edits, &Edits)> {
        let Some((kind, device)) =
            name.split_once('=').filter(|(kind, device)| kind.contains('/') && !device.is_empty())
        else {
            return Err(Error::invalid(format!("CDI device {name:?} is not like vendor.com/class=name")));
        };
        for specs in self.specs.iter().rev() {
            let of_kind = specs.iter().filter(|(_, spec)| spec.kind == kind);
            let mut found = of_kind.flat_map(|(file, spec)| {
                let same = spec.devices.iter().filter(|one| one.name == device);
                same.map(move |one| (file.as_path(), &spec.container_edits, &one.container_edits))
            });
            match (found.next(), found.next()) {
                (Some(first), None) => return Ok(first),
                (Some(first), Some(second)) => {
                    let (one, other) = (first.0.display(), second.0.display());
                    return Err(Error::failed(format!("CDI device {name} is both in {one} and {other}")));
                }
                (None, _) => {}
            }
        }
        let unread =
            if self.unread.is_empty() { String::new() } else { format!("; unread: {}", self.unread.join(", ")) };
        Err(Error::invalid(format!("CDI device {name} is in no file of the host{unread}")))
    }
}

fn parse(text: &[u8]) -> std::result::Result<Spec, String> {
    let whole: Value = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
    Spec::deserialize(whole).map_err(|error| error.to_string())
}

fn apply(whole: &mut Value, edits: &Edits, name: &str) -> Result<()> {
    for pair in &edits.env {
        put(&mut whole["process"]["env"], json!(pair), |old| {
            old.as_str().and_then(|old| old.split('=').next()) == pair.split('=').next()
        });
    }
    for node in &edits.device_nodes {
        add_node(whole, node, name)?;
    }
    for mount in &edits.mounts {
        let options = mount.options.clone().unwrap_or_else(|| ["rbind", "nosuid", "nodev"].map(str::to_owned).into());
        let (target, kind) = (&mount.container_path, mount.kind.as_deref().unwrap_or("bind"));
        let new = json!({ "destination": target, "type": kind, "source": mount.host_path, "options": options });
        put(&mut whole["mounts"], new, |old| old["destination"] == *target);
    }
    for hook in &edits.hooks {
        let when = hook.hook_name.as_str();
        let known = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        if !known.contains(&when) {
            return Err(Error::failed(format!("CDI device {name} has an unknown kind of hook, {when:?}")));
        }
        let mut new = json!({ "path": hook.path, "args": hook.args, "env": hook.env });
        if let Some(timeout) = hook.timeout {
            new["timeout"] = timeout.into();
        }
        put(&mut whole["hooks"][when], new, |_| false);
    }
    for gid in &edits.additional_gids {
        put(&mut whole["process"]["user"]["additionalGids"], json!(gid), |old| old == gid);
    }
    Ok(())
}

/// Puts something behind a list, instead of what is the same.
fn put(list: &mut Value, new: Value, same: impl Fn(&Value) -> bool) {
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.retain(|old| !same(old));
        list.push(new);
    }
}

fn add_node(whole: &mut Value, node: &Node, name: &str) -> Result<()> {
    let host = node.host_path.as_deref().unwrap_or(&node.path);
    let permissions = node.permissions.as_deref().unwrap_or("rwm");
    let found = devices::node(Path::new(host), Path::new(&node.path), permissions)?;
    let found = found.ok_or_else(|| Error::failed(format!("CDI device {name}: {host} is no device")))?;
    // Whoever the container runs as is to be able to use it.
    let user = &whole["process"]["user"];
    let own = |field: &str, file: u32| match user[field].as_u64() {
        Some(id) if id > 0 => json!(id),
        _ => json!(file),
    };
    let kind = found.kind.to_string();
    let new = json!({
        "path": found.path, "type": kind, "major": found.major, "minor": found.minor,
        "fileMode": node.file_mode.unwrap_or(found.mode),
        "uid": node.uid.map_or_else(|| own("uid", found.uid), |uid| json!(uid)),
        "gid": node.gid.map_or_else(|| own("gid", found.gid), |gid| json!(gid)),
    });
    put(&mut whole["linux"]["devices"], new, |old| old["path"] == node.path);
    let rule = json!({
        "allow": true, "type": kind, "major": found.major, "minor": found.minor, "access": permissions,
    });
    put(&mut whole["linux"]["resources"]["devices"], rule.clone(), |old| *old == rule);
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::CdiDevice;

    use super::*;

    const FILE: &str = r#"{
        "cdiVersion": "0.6.0", "kind": "example.com/class",
        "devices": [
            { "name": "one", "containerEdits": { "env": ["A=2"], "deviceNodes": [{ "path": "/dev/one", "hostPath": "/dev/null" }] } },
            { "name": "two", "containerEdits": { "mounts": [{ "hostPath": "/lib", "containerPath": "/x" }], "additionalGids": [7],
              "hooks": [{ "hookName": "createContainer", "path": "/bin/true", "args": ["true"] }] } }
        ],
        "containerEdits": { "env": ["ALL=1"] }
    }"#;

    fn request(names: &[&str], annotation: &str) -> ContainerConfig {
        let cdi_devices = names.iter().map(|&name| CdiDevice { name: name.to_owned() }).collect();
        let annotations = [("cdi.k8s.io/x".to_owned(), annotation.to_owned())].into();
        ContainerConfig { cdi_devices, annotations, ..Default::default() }
    }

    fn plain() -> Value {
        json!({
            "process": { "env": ["A=1", "AB=1"], "user": { "uid": 5, "gid": 0 } },
            "mounts": [{ "destination": "/x/y" }],
            "linux": { "devices": [], "resources": { "devices": [{ "allow": false }] } },
        })
    }

    #[test]
    fn devices_change_the_document() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.json"), FILE).unwrap();
        let dirs = ["/no/such/directory", dir.path().to_str().unwrap()];
        let mut whole = plain();
        edit(&mut whole, &request(&["example.com/class=one"], "example.com/class=two, example.com/class=one"), &dirs)
            .unwrap();
        let node = json!({
            "path": "/dev/one", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 5, "gid": 0,
        });
        let rule = json!({ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" });
        assert_eq!(
            whole,
            json!({
                "process": { "env": ["AB=1", "ALL=1", "A=2"], "user": { "uid": 5, "gid": 0, "additionalGids": [7] } },
                "mounts": [
                    { "destination": "/x", "type": "bind", "source": "/lib", "options": ["rbind", "nosuid", "nodev"] },
                    { "destination": "/x/y" },
                ],
                "hooks": { "createContainer": [{ "path": "/bin/true", "args": ["true"], "env": [] }] },
                "linux": { "devices": [node], "resources": { "devices": [{ "allow": false }, rule] } },
            })
        );
        let mut untouched = plain();
        edit(&mut untouched, &ContainerConfig::default(), &dirs).unwrap();
        assert_eq!(untouched, plain());
    }

    #[test]
    fn later_directories_go_before_earlier_ones() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dirs = [first.path().to_str().unwrap(), second.path().to_str().unwrap()];
        fs::write(first.path().join("a.json"), FILE).unwrap();
        fs::write(second.path().join("b.json"), FILE.replace("A=2", "A=3")).unwrap();
        let one = request(&["example.com/class=one"], "");
        let mut whole = plain();
        edit(&mut whole, &one, &dirs).unwrap();
        assert!(whole["process"]["env"].as_array().unwrap().contains(&json!("A=3")));
        fs::write(second.path().join("c.json"), FILE).unwrap();
        assert!(edit(&mut plain(), &one, &dirs).unwrap_err().to_string().contains("c.json"));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), "kind: example.com/class\n").unwrap();
        for (name, word) in
            [("example.com/class=one", "a.yaml"), ("one", "not like"), ("example.com/class=", "not like")]
        {
            let error = edit(&mut plain(), &request(&[name], ""), &[dir.path().to_str().unwrap()]).unwrap_err();
            assert!(matches!(&error, Error::Invalid(text) if text.contains(word)), "{error}");
        }
    }
}
