//! Pods: a file per verb of the CRI, and what a pod is.
//!
//! A pod is a set of pinned namespaces, an address on the network and a directory. It has no process of its own, unless
//! its containers share a pid namespace.

pub mod dns;
mod interfaces;
mod list;
pub mod namespaces;
mod port_forward;
mod remove;
pub mod restore;
mod run;
pub mod stats;
mod status;
mod stop;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_cri::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig};
use serde::{Deserialize, Serialize};

use crate::cgroup::Rate;
use crate::config::Config;
use crate::error::Result;
use crate::idmap::{UserMaps, Users};
use crate::network::{PodNetwork, PortMapping};

use crate::state::{self, Kept};

pub use dns::Dns;
pub use interfaces::Interface;
pub use list::{Filter, list, matching};
pub use port_forward::netns;
pub use remove::remove;
pub use run::run;
pub use status::status;
pub use stop::{stop, unmake};

/// What does not change after the creation; the request is kept as it came.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Record {
    pub id: String,
    pub config: PodSandboxConfig,
    /// As asked for; empty for the default.
    pub handler: String,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// The parent of its containers' cgroups, in the driver's notation.
    pub cgroup_parent: String,
    /// Nobody else made that cgroup, so it goes with the pod.
    pub owns_cgroup: bool,
}

/// What changes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct State {
    pub phase: Phase,
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub enum Phase {
    /// Being made; after a crash it is unmade.
    #[default]
    Creating,
    Ready,
    NotReady,
}

#[derive(Debug)]
pub struct Pod {
    pub record: Record,
    state: Kept<State>,
    /// One change at a time.
    pub turn: tokio::sync::Mutex<()>,
    /// Read while a container is made in it; to remove it, that has to be over.
    pub making: tokio::sync::RwLock<()>,
    /// What it uses of the CPU.
    rate: Rate,
    dirs: Dirs,
}

/// Where a pod's files are.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// What survives a reboot.
    pub root: PathBuf,
    /// Namespaces, /dev/shm, resolv.conf.
    pub run: PathBuf,
}

impl Dirs {
    pub fn new(config: &Config, id: &str) -> Dirs {
        Dirs { root: config.root.join("pods").join(id), run: config.run.join("pods").join(id) }
    }
}

const RECORD: &str = "pod.json";
const STATE: &str = "state.json";

impl Pod {
    /// Takes note of a pod that is to be made, before anything is made.
    pub fn begin(record: Record, dirs: Dirs) -> Result<Pod> {
        state::own_dir(&dirs.root, None)?;
        state::write(&dirs.root.join(RECORD), &record)?;
        let state = Kept::new(dirs.root.join(STATE), State::default());
        Ok(Pod::new(record, state, dirs))
    }

    fn new(record: Record, state: Kept<State>, dirs: Dirs) -> Pod {
        let (turn, making) = (tokio::sync::Mutex::default(), tokio::sync::RwLock::default());
        Pod { record, state, turn, making, rate: Rate::default(), dirs }
    }

    /// Its record is there. Without, nothing was made yet, or everything else is removed.
    pub fn begun(dirs: &Dirs) -> bool {
        dirs.root.join(RECORD).exists()
    }

    /// Reads a pod's files.
    pub fn load(dirs: Dirs) -> Result<Pod> {
        let record = state::read(&dirs.root.join(RECORD))?;
        // Without a state it is being made, or being removed: either way it is to be unmade.
        let state = Kept::load(dirs.root.join(STATE))?;
        Ok(Pod::new(record, state, dirs))
    }

    pub fn id(&self) -> &str {
        &self.record.id
    }

    pub fn run_dir(&self) -> &Path {
        &self.dirs.run
    }

    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    pub fn state(&self) -> State {
        self.state.get()
    }

    /// See [`Kept::change`].
    pub fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        self.state.change(change)
    }

    /// See [`Kept::learn`].
    pub fn learn(&self, change: impl FnOnce(&mut State)) {
        self.state.learn(change);
    }

    pub fn namespaces(&self) -> NamespaceOption {
        namespaces_of(&self.record.config)
    }

    /// Its user namespace, if it has one of its own.
    pub fn users(&self) -> Result<Option<Users>> {
        let namespace = self.run_dir().join("ns/user");
        Ok(UserMaps::asked(&self.namespaces())?.map(|maps| Users { namespace, maps }))
    }

    /// It uses the host's network.
    pub fn on_host_network(&self) -> bool {
        self.namespaces().network == NamespaceMode::Node as i32
    }

    /// By what no other pod goes.
    pub fn name(&self) -> String {
        name(&self.record.config)
    }

    pub fn labels(&self) -> &HashMap<String, String> {
        &self.record.config.labels
    }
}

fn namespaces_of(config: &PodSandboxConfig) -> NamespaceOption {
    let linux = config.linux.as_ref();
    linux.and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone()).unwrap_or_default()
}

/// By what no other pod goes.
pub fn name(config: &PodSandboxConfig) -> String {
    let metadata = config.metadata.clone().unwrap_or_default();
    format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
}

/// Pods in the order of their creation.
pub fn sorted(mut pods: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    pods.sort_by_key(|pod| pod.record.created_at);
    pods
}

/// What the network is told about a pod.
pub fn network_of(pod: &Pod) -> PodNetwork {
    let config = &pod.record.config;
    let metadata = config.metadata.clone().unwrap_or_default();
    let dns = config.dns_config.clone().unwrap_or_default();
    PodNetwork {
        id: pod.record.id.clone(),
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        netns: pod.run_dir().join("ns/net"),
        ports: config.port_mappings.iter().filter_map(port).collect(),
        dns: Dns { servers: dns.servers, searches: dns.searches, options: dns.options },
        annotations: config.annotations.clone().into_iter().collect(),
    }
}

fn port(mapping: &k8s_cri::v1::PortMapping) -> Option<PortMapping> {
    let protocol = match k8s_cri::v1::Protocol::try_from(mapping.protocol).ok()? {
        k8s_cri::v1::Protocol::Tcp => "tcp",
        k8s_cri::v1::Protocol::Udp => "udp",
        k8s_cri::v1::Protocol::Sctp => "sctp",
    };
    // Only what is to be reachable on the host is mapped.
    let host_port = u16::try_from(mapping.host_port).ok().filter(|port| *port > 0)?;
    Some(PortMapping {
        container_port: u16::try_from(mapping.container_port).ok()?,
        host_port,
        protocol: protocol.to_owned(),
        host_ip: mapping.host_ip.clone(),
    })
}
