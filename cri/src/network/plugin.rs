//! Calling one CNI plugin: its configuration on stdin, the rest in the environment, the result on stdout (CNI spec,
//! section 2).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::conf::{Chain, Plugin};
use crate::error::{Context, Error, Result};

/// What all plugins of a chain are told.
#[derive(Debug)]
pub struct Call<'a> {
    /// `ADD` or `DEL`.
    pub command: &'a str,
    pub container: &'a str,
    /// None if it is gone.
    pub netns: Option<&'a Path>,
    pub interface: &'a str,
    pub args: &'a str,
    pub capabilities: &'a BTreeMap<String, Value>,
    pub chain: &'a Chain,
    pub dirs: &'a [PathBuf],
    pub patience: Duration,
}

/// The program of a plugin.
pub fn find(dirs: &[PathBuf], kind: &str) -> Result<PathBuf> {
    dirs.iter().map(|dir| dir.join(kind)).find(|path| path.is_file()).ok_or_else(|| {
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        Error::failed(format!("CNI plugin {kind} is not in {}", dirs.join(", ")))
    })
}

/// A plugin works for one of these pods, called by a server that was killed meanwhile.
pub fn working_for(pods: &[String]) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    entries.flatten().any(|entry| {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let pod = environment.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"CNI_CONTAINERID="));
        pod.is_some_and(|pod| pods.iter().any(|known| known.as_bytes() == pod))
    })
}

/// Calls a plugin; answers with its result, if it has one.
pub async fn run(call: &Call<'_>, plugin: &Plugin, previous: Option<&Value>) -> Result<Option<Value>> {
    let failed = || format!("CNI plugin {} failed to {} pod {}", plugin.kind, call.command, call.container);
    let program = find(call.dirs, &plugin.kind)?;
    let path = std::env::join_paths(call.dirs).context(failed)?;
    let mut child = Command::new(&program)
        .env("CNI_COMMAND", call.command)
        .env("CNI_CONTAINERID", call.container)
        .env("CNI_NETNS", call.netns.unwrap_or(Path::new("")))
        .env("CNI_IFNAME", call.interface)
        .env("CNI_ARGS", call.args)
        .env("CNI_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context(failed)?;
    let input = serde_json::to_vec(&conf(call, plugin, previous)).context(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read fails by what it says.
        let _ = stdin.write_all(&input).await;
    }
    let output = tokio::time::timeout(call.patience, child.wait_with_output()).await;
    let output = output.map_err(|_| Error::Deadline(format!("{}: no end after {:?}", failed(), call.patience)))?;
    let output = output.context(failed)?;
    if !output.status.success() {
        return Err(Error::failed(format!("{}: {}", failed(), said(&output.stdout, &output.stderr))));
    }
    match call.command {
        "ADD" if !output.stdout.is_empty() => serde_json::from_slice(&output.stdout).context(failed).map(Some),
        _ => Ok(None),
    }
}

/// The plugin's part of the configuration, with what the chain adds to it.
fn conf(call: &Call<'_>, plugin: &Plugin, previous: Option<&Value>) -> Value {
    let mut conf = plugin.conf.clone();
    conf["name"] = json!(call.chain.name);
    conf["cniVersion"] = json!(call.chain.version);
    if let Some(previous) = previous {
        conf["prevResult"] = previous.clone();
    }
    let wanted = |name: &str| plugin.conf["capabilities"][name].as_bool() == Some(true);
    let given: serde_json::Map<String, Value> = call
        .capabilities
        .iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !given.is_empty() {
        conf["runtimeConfig"] = Value::Object(given);
    }
    if let Some(conf) = conf.as_object_mut() {
        // For whoever calls plugins, and not for the plugin.
        conf.remove("capabilities");
    }
    conf
}

/// The error object's text (CNI spec, section 5), or whatever else was said.
fn said(stdout: &[u8], stderr: &[u8]) -> String {
    let error: Option<Value> = serde_json::from_slice(stdout).ok();
    let text = |key: &str| error.as_ref().and_then(|error| error[key].as_str()).unwrap_or_default().to_owned();
    let (message, details) = (text("msg"), text("details"));
    match (message.is_empty(), details.is_empty()) {
        (false, true) => message,
        (false, false) => format!("{message}: {details}"),
        _ => {
            let all = [stderr, stdout].concat();
            String::from_utf8_lossy(&all).trim().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_the_capabilities_that_it_has() {
        let chain = super::super::conf::built_in("10.1.0.0/16");
        let capabilities = BTreeMap::from([("portMappings".to_owned(), json!([1])), ("dns".to_owned(), json!({}))]);
        let call = Call {
            command: "ADD",
            container: "c",
            netns: None,
            interface: "eth0",
            args: "",
            capabilities: &capabilities,
            chain: &chain,
            dirs: &[],
            patience: Duration::from_secs(1),
        };
        let bridge = conf(&call, &chain.plugins[0], None);
        assert_eq!((&bridge["runtimeConfig"], &bridge["name"]), (&Value::Null, &json!("conward")));
        let portmap = conf(&call, &chain.plugins[1], Some(&json!({ "ips": [] })));
        assert_eq!(portmap["runtimeConfig"], json!({ "portMappings": [1] }));
        assert_eq!((&portmap["prevResult"]["ips"], portmap.get("capabilities")), (&json!([]), None));
    }

    #[test]
    fn errors_have_the_plugins_own_words() {
        assert_eq!(said(br#"{"code": 7, "msg": "no", "details": "because"}"#, b"x"), "no: because");
        assert_eq!(said(b"", b"panic\n"), "panic");
    }
}
