//! Configuration: TOML with drop-ins over embedded defaults, so that nothing has to be written on a fresh machine.
//!
//! `/etc/conward/cri.toml`, then `/etc/conward/cri.toml.d/*.toml` by name; a later table is merged into an earlier one,
//! any other later value takes the place of the earlier.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// Where the configuration is when the command line does not say otherwise.
pub const FILE: &str = "/etc/conward/cri.toml";

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The CRI's socket; mode 0660.
    pub socket: PathBuf,
    /// What survives a reboot: images, pods, containers.
    pub root: PathBuf,
    /// What does not: mounts, namespaces, bundles, sockets.
    pub run: PathBuf,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter per module.
    pub log_level: String,
    /// `text` or `json`.
    pub log_format: LogFormat,
    /// Where to serve Prometheus metrics, `127.0.0.1:9090`; empty: nowhere.
    pub metrics_address: String,
    /// The monitor; empty: `conward` beside this program or in PATH.
    pub monitor: PathBuf,
    /// The handler of pods that name none; empty: the first of crun and runc that is there.
    pub default_runtime: String,
    /// Runtime handlers by name; without any, crun and runc where they are found.
    pub runtimes: BTreeMap<String, Runtime>,
    pub cgroup_driver: CgroupDriver,
    /// A seccomp profile for `RuntimeDefault`, in the format of docker and podman; empty: the built-in one.
    pub seccomp_profile: PathBuf,
    pub images: Images,
    pub network: Network,
    pub streaming: Streaming,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// `systemd` where systemd is process 1, else `cgroupfs`.
    #[default]
    Auto,
    Cgroupfs,
    Systemd,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// The OCI runtime: a path, or a name in PATH.
    pub path: PathBuf,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// Image names, with `*` at the end for prefixes, which the kubelet must not remove.
    pub pinned: Vec<String>,
    /// Registries (host or host:port) that speak plain HTTP.
    pub insecure_registries: Vec<String>,
    /// A directory with `HOST[:PORT]/ca.crt` for registries with certificates of their own.
    pub certs_dir: PathBuf,
    /// Layers pulled at a time.
    pub parallel_layers: usize,
    /// Seconds without progress after which a pull is given up.
    pub progress_timeout: u64,
    /// Credentials for requests that bring none, in the format of docker and podman; empty: none.
    pub auth_file: PathBuf,
    /// containers/storage of this host, whose images are adopted by hard links; empty: not looked at.
    pub containers_storage: PathBuf,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// CNI configurations (.conf, .conflist, .json); the first by name is used. Without any: a built-in bridge.
    pub conf_dir: PathBuf,
    /// CNI plugins.
    pub plugin_dirs: Vec<PathBuf>,
    /// IPv4 addresses of pods on the built-in bridge.
    pub bridge_subnet: String,
    /// Seconds that one plugin may take.
    pub plugin_timeout: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Streaming {
    /// Where exec, attach and port-forward are served; port 0: any.
    pub address: SocketAddr,
    /// Seconds after which a stream without traffic is closed; 0: never.
    pub idle_timeout: u64,
    /// Seconds that a URL can be used for, once.
    pub token_lifetime: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            socket: "/run/conward/conward-cri.sock".into(),
            root: "/var/lib/conward".into(),
            run: "/run/conward".into(),
            log_level: "info".into(),
            log_format: LogFormat::Text,
            metrics_address: String::new(),
            monitor: PathBuf::new(),
            default_runtime: String::new(),
            runtimes: BTreeMap::new(),
            cgroup_driver: CgroupDriver::Auto,
            seccomp_profile: PathBuf::new(),
            images: Images::default(),
            network: Network::default(),
            streaming: Streaming::default(),
        }
    }
}

impl Default for Images {
    fn default() -> Images {
        Images {
            pinned: Vec::new(),
            insecure_registries: Vec::new(),
            certs_dir: "/etc/containers/certs.d".into(),
            parallel_layers: 3,
            progress_timeout: 60,
            auth_file: PathBuf::new(),
            containers_storage: "/var/lib/containers/storage".into(),
        }
    }
}

impl Default for Network {
    fn default() -> Network {
        Network {
            conf_dir: "/etc/cni/net.d".into(),
            plugin_dirs: ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"].map(PathBuf::from).into(),
            bridge_subnet: "10.85.0.0/16".into(),
            plugin_timeout: 60,
        }
    }
}

impl Default for Streaming {
    fn default() -> Streaming {
        Streaming { address: SocketAddr::from(([127, 0, 0, 1], 0)), idle_timeout: 4 * 60 * 60, token_lifetime: 60 }
    }
}

impl Config {
    /// Reads a file and its drop-ins; a file that was not asked for by name may be missing.
    pub fn load(file: Option<&Path>) -> Result<Config> {
        let named = file.is_some();
        let file = file.unwrap_or(Path::new(FILE));
        let mut merged = toml::Table::new();
        if named || file.exists() {
            merge(&mut merged, read(file)?);
        }
        for drop_in in drop_ins(file)? {
            merge(&mut merged, read(&drop_in)?);
        }
        merged.try_into().context(|| format!("Bad configuration in {} or its drop-ins", file.display()))
    }

    /// The whole configuration as a file would have it.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).context(|| "Failed to write configuration")
    }
}

fn read(file: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(file).context(|| format!("Failed to read {}", file.display()))?;
    let table: toml::Table = text.parse().map_err(|error| Error::Invalid(format!("{}: {error}", file.display())))?;
    // Said here, where the name of the file is known.
    Config::deserialize(table.clone()).map_err(|error| Error::Invalid(format!("{}: {error}", file.display())))?;
    Ok(table)
}

fn drop_ins(file: &Path) -> Result<Vec<PathBuf>> {
    let mut dir = file.as_os_str().to_owned();
    dir.push(".d");
    let dir = Path::new(&dir);
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut files = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .context(|| format!("Failed to list {}", dir.display()))?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    Ok(files)
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_survive_being_printed() {
        let text = Config::default().to_toml().unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
    }

    #[test]
    fn drop_ins_are_merged_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cri.toml");
        std::fs::create_dir(dir.path().join("cri.toml.d")).unwrap();
        std::fs::write(&file, "log_level = 'debug'\n[runtimes.crun]\npath = 'crun'\n[images]\nparallel_layers = 1\n")
            .unwrap();
        std::fs::write(dir.path().join("cri.toml.d/20.toml"), "[images]\nparallel_layers = 7\n").unwrap();
        std::fs::write(dir.path().join("cri.toml.d/10.toml"), "[images]\nparallel_layers = 5\n").unwrap();
        std::fs::write(dir.path().join("cri.toml.d/30.toml"), "[runtimes.runc]\npath = '/usr/bin/runc'\n").unwrap();
        let config = Config::load(Some(&file)).unwrap();
        assert_eq!((config.log_level.as_str(), config.images.parallel_layers), ("debug", 7));
        assert_eq!(config.runtimes.keys().collect::<Vec<_>>(), ["crun", "runc"]);
    }

    #[test]
    fn an_unknown_option_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cri.toml");
        std::fs::write(&file, "sokcet = '/x'\n").unwrap();
        let text = Config::load(Some(&file)).unwrap_err().to_string();
        assert!(text.contains("cri.toml") && text.contains("sokcet"), "{text}");
    }
}
