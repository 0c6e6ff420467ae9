//! Pod networks by CNI (spec 1.0.0 and older versions): configurations, plugins, results on disk.
//!
//! A network is a chain of plugins. ADD calls them in order, each with the result of the one before; DEL calls them in
//! reverse with the last result. What a pod was attached with is written down before the first plugin is called, so that
//! whatever happens then, the same plugins are told to undo it.

mod conf;
mod plugin;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{self, Config};
use crate::error::{Context, Error, Result};
use crate::sandbox::dns::Dns;
use crate::state;

use conf::Chain;
use plugin::Call;

/// What the network is told about a pod.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// The pinned network namespace.
    pub netns: PathBuf,
    pub ports: Vec<PortMapping>,
    pub dns: Dns,
    pub annotations: BTreeMap<String, String>,
}

/// One port of the host that leads to the pod (CNI conventions, portMappings).
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    pub container_port: u16,
    pub host_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty", default)]
    pub host_ip: String,
}

/// The networks that pods are attached to.
#[derive(Debug)]
pub struct Network {
    settings: config::Network,
    /// Attachments, one file each.
    cache: PathBuf,
    /// The subnet of the built-in bridge, as the kubelet may have changed it.
    subnet: RwLock<String>,
    /// Remembers that subnet: the kubelet need not tell it again to a server that was restarted.
    subnet_file: PathBuf,
}

/// How a pod was attached: everything that undoing it takes.
#[derive(Debug, Deserialize, Serialize)]
struct Attachment {
    chain: Chain,
    netns: PathBuf,
    args: String,
    capabilities: BTreeMap<String, Value>,
    /// Of the last plugin that was done.
    result: Option<Value>,
}

/// The interface within the pod.
pub const INTERFACE: &str = "eth0";

impl Network {
    pub fn new(config: &Config) -> Result<Network> {
        let cache = config.root.join("network");
        std::fs::create_dir_all(&cache).context(|| format!("Failed to make {}", cache.display()))?;
        let subnet_file = config.root.join("pod-cidr.json");
        let subnet =
            if subnet_file.exists() { state::read(&subnet_file)? } else { config.network.bridge_subnet.clone() };
        Ok(Network { settings: config.network.clone(), cache, subnet: RwLock::new(subnet), subnet_file })
    }

    /// Says why pods could not be attached now.
    pub fn ready(&self) -> Result<()> {
        let (chain, loopback) = (self.chain()?, conf::loopback());
        let mut plugins = loopback.plugins.iter().chain(&chain.plugins);
        plugins.try_for_each(|plugin| plugin::find(&self.settings.plugin_dirs, &plugin.kind).map(drop))
    }

    /// Attaches a pod; answers with its addresses. What was done is undone when a plugin fails.
    pub async fn add(&self, pod: &PodNetwork) -> Result<Vec<IpAddr>> {
        // A plugin that is not there could not undo anything either.
        self.ready()?;
        let chain = self.chain()?;
        let capabilities = capabilities(pod);
        let mut attachment =
            Attachment { chain, netns: pod.netns.clone(), args: args(pod), capabilities, result: None };
        state::write(&self.file(&pod.id), &attachment)?;
        self.loopback(&pod.id, &attachment).await?;
        for plugin in attachment.chain.plugins.clone() {
            let call = self.call("ADD", &pod.id, &attachment);
            match plugin::run(&call, &plugin, attachment.result.as_ref()).await {
                Ok(result) => attachment.result = result.or(attachment.result),
                Err(error) => {
                    if let Err(error) = self.undo(&pod.id, &attachment).await {
                        tracing::warn!(pod = pod.id, "{error}");
                    }
                    return Err(error);
                }
            }
            state::write(&self.file(&pod.id), &attachment)?;
        }
        addresses(attachment.result.as_ref())
    }

    /// Waits for plugins that a server has called which was killed meanwhile: what they still do must not come after its
    /// undoing.
    pub async fn settle(&self) -> Result<()> {
        let files = state::entries(&self.cache)?;
        let pods: Vec<String> = files.iter().filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect();
        let end = tokio::time::Instant::now() + Duration::from_secs(self.settings.plugin_timeout);
        while !pods.is_empty() && plugin::working_for(&pods) && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Detaches a pod; one that is not attached is fine.
    pub async fn del(&self, pod: &PodNetwork) -> Result<()> {
        let file = self.file(&pod.id);
        if !file.exists() {
            return Ok(());
        }
        let attachment: Attachment = state::read(&file)?;
        self.undo(&pod.id, &attachment).await?;
        std::fs::remove_file(&file).context(|| format!("Failed to remove {}", file.display()))
    }

    /// The kubelet's addresses for this node; only the built-in bridge follows them.
    pub fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        let first = cidr.split(',').next().unwrap_or(cidr).trim();
        let valid = first.split_once('/').is_some_and(|(address, bits)| {
            address.parse::<IpAddr>().is_ok_and(|address| {
                bits.parse::<u8>().is_ok_and(|bits| bits <= if address.is_ipv4() { 32 } else { 128 })
            })
        });
        if !valid {
            return Err(Error::invalid(format!("Bad pod CIDR {cidr:?}")));
        }
        let mut subnet = self.subnet.write().unwrap_or_else(PoisonError::into_inner);
        if *subnet != first {
            state::write(&self.subnet_file, &first)?;
            first.clone_into(&mut subnet);
        }
        Ok(())
    }

    /// For people: which network it is.
    pub fn info(&self) -> Value {
        match self.chain() {
            Ok(chain) => {
                json!({ "name": chain.name, "plugins": chain.plugins.iter().map(|plugin| &plugin.kind).collect::<Vec<_>>() })
            }
            Err(error) => json!({ "error": error.to_string() }),
        }
    }

    fn chain(&self) -> Result<Chain> {
        let subnet = self.subnet.read().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(conf::first(&self.settings.conf_dir)?.unwrap_or_else(|| conf::built_in(&subnet)))
    }

    /// Brings up `lo`, by the plugin that is there for it.
    async fn loopback(&self, id: &str, attachment: &Attachment) -> Result<()> {
        let chain = conf::loopback();
        let call = Call { interface: "lo", chain: &chain, ..self.call("ADD", id, attachment) };
        for plugin in &chain.plugins {
            plugin::run(&call, plugin, None).await?;
        }
        Ok(())
    }

    async fn undo(&self, id: &str, attachment: &Attachment) -> Result<()> {
        for plugin in attachment.chain.plugins.iter().rev() {
            let call = self.call("DEL", id, attachment);
            plugin::run(&call, plugin, attachment.result.as_ref()).await?;
        }
        Ok(())
    }

    fn call<'a>(&'a self, command: &'a str, id: &'a str, attachment: &'a Attachment) -> Call<'a> {
        Call {
            command,
            container: id,
            // Where the namespace is gone, plugins are told so by an empty name (spec, DEL).
            netns: Some(attachment.netns.as_path()).filter(|path| path.exists()),
            interface: INTERFACE,
            args: &attachment.args,
            capabilities: &attachment.capabilities,
            chain: &attachment.chain,
            dirs: &self.settings.plugin_dirs,
            patience: Duration::from_secs(self.settings.plugin_timeout),
        }
    }

    fn file(&self, id: &str) -> PathBuf {
        self.cache.join(Path::new(id).with_extension("json"))
    }
}

fn args(pod: &PodNetwork) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        pod.namespace, pod.name, pod.id, pod.uid
    )
}

/// What plugins get that declare the capability (CNI conventions, dynamic plugin fields).
fn capabilities(pod: &PodNetwork) -> BTreeMap<String, Value> {
    let mut capabilities = BTreeMap::new();
    if !pod.ports.is_empty() {
        capabilities.insert("portMappings".to_owned(), json!(pod.ports));
    }
    if pod.dns != Dns::default() {
        let dns = json!({ "servers": pod.dns.servers, "searches": pod.dns.searches, "options": pod.dns.options });
        capabilities.insert("dns".to_owned(), dns);
    }
    capabilities
}

/// The addresses of the interface in the pod, IPv4 first.
fn addresses(result: Option<&Value>) -> Result<Vec<IpAddr>> {
    let ips = result.and_then(|result| result["ips"].as_array()).map(Vec::as_slice).unwrap_or_default();
    let mut found = Vec::new();
    for ip in ips {
        let text = ip["address"].as_str().unwrap_or_default();
        let address = text.split('/').next().unwrap_or_default().parse();
        found.push(address.context(|| format!("The network's plugins answered with the address {text:?}"))?);
    }
    match found.is_empty() {
        true => Err(Error::failed("The network's plugins gave the pod no address")),
        false => Ok(found),
    }
}
