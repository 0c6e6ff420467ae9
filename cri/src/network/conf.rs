//! Configurations of networks: files with one plugin (.conf, .json) or a chain of them (.conflist).

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// A network: plugins that are called one after the other.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Chain {
    pub name: String,
    pub version: String,
    pub plugins: Vec<Plugin>,
}

/// One plugin with its part of the configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Plugin {
    /// The name of its program.
    pub kind: String,
    pub conf: Value,
}

/// The first configuration by name; none if there is no directory or nothing in it.
pub fn first(dir: &Path) -> Result<Option<Chain>> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(None) };
    let known = |path: &PathBuf| {
        path.extension().is_some_and(|extension| ["conf", "conflist", "json"].iter().any(|known| extension == *known))
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(known).collect();
    files.sort();
    let Some(file) = files.first() else { return Ok(None) };
    let doing = || format!("Failed to read network configuration {}", file.display());
    let text = fs::read(file).context(doing)?;
    let conf: Value = serde_json::from_slice(&text).context(doing)?;
    parse(conf).context(doing).map(Some)
}

/// The network of hosts that have none configured: a bridge of our own, host-local addresses, host ports.
pub fn built_in(subnet: &str) -> Chain {
    let conf = json!({
        "cniVersion": "0.4.0",
        "name": "conward",
        "plugins": [
            {
                "type": "bridge", "bridge": "conward0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                // A kubelet may give the node another subnet.
                "forceAddress": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": subnet }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    parse(conf).unwrap_or_else(|_| Chain { name: "conward".into(), version: "0.4.0".into(), plugins: Vec::new() })
}

/// What every pod has besides its network.
pub fn loopback() -> Chain {
    let conf = json!({ "cniVersion": "0.4.0", "type": "loopback" });
    let plugins = vec![Plugin { kind: "loopback".into(), conf }];
    Chain { name: "loopback".into(), version: "0.4.0".into(), plugins }
}

/// Takes a conf or a conflist apart.
pub fn parse(conf: Value) -> Result<Chain> {
    let text = |value: &Value, key: &str| value[key].as_str().map(str::to_owned);
    let name = text(&conf, "name").filter(|name| !name.is_empty()).ok_or_else(|| Error::invalid("name is missing"))?;
    let version = text(&conf, "cniVersion").unwrap_or_else(|| "0.1.0".to_owned());
    let parts = match conf.get("plugins") {
        None => vec![conf.clone()],
        Some(Value::Array(plugins)) if !plugins.is_empty() => plugins.clone(),
        Some(_) => return Err(Error::invalid("plugins is no list with something in it")),
    };
    let plugin = |conf: Value| match text(&conf, "type").filter(|kind| !kind.is_empty() && !kind.contains('/')) {
        Some(kind) => Ok(Plugin { kind, conf }),
        None => Err(Error::invalid("a plugin has no type, or one with a slash")),
    };
    Ok(Chain { name, version, plugins: parts.into_iter().map(plugin).collect::<Result<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As containerd's documentation has it.
    const LIST: &str = include_str!("../../../docs/examples/10-containerd-net.conflist");

    /// As CRI-O's documentation has it.
    const SINGLE: &str = include_str!("../../../docs/examples/10-crio-bridge.conf");

    #[test]
    fn both_kinds_of_files_are_chains() {
        let kinds = |text: &str| -> (String, String, Vec<String>) {
            let chain = parse(serde_json::from_str(text).unwrap()).unwrap();
            (chain.name, chain.version, chain.plugins.into_iter().map(|plugin| plugin.kind).collect())
        };
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(kinds(LIST), ("containerd-net".into(), "0.4.0".into(), words(&["bridge", "portmap"])));
        assert_eq!(kinds(SINGLE), ("crio".into(), "0.3.1".into(), words(&["bridge"])));
        assert_eq!(built_in("10.1.0.0/16").plugins.len(), 2);
    }

    #[test]
    fn the_first_file_by_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(first(dir.path()).unwrap(), None);
        fs::write(dir.path().join("20-a.conflist"), LIST).unwrap();
        fs::write(dir.path().join("10-b.conf"), SINGLE).unwrap();
        fs::write(dir.path().join("00-readme.txt"), "no").unwrap();
        assert_eq!(first(dir.path()).unwrap().unwrap().name, "crio");
        fs::write(dir.path().join("05-c.json"), "{").unwrap();
        assert!(first(dir.path()).unwrap_err().to_string().contains("05-c.json"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            r#"{"type": "x"}"#,
            r#"{"name": "n"}"#,
            r#"{"name": "n", "plugins": []}"#,
            r#"{"name": "n", "type": "../x"}"#,
        ] {
            assert!(parse(serde_json::from_str(text).unwrap()).is_err(), "{text}");
        }
    }
}
