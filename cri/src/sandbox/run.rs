//! RunPodSandbox.

use std::path::Path;
use std::sync::Arc;

use k8s_cri::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig};

use super::{Dirs, Phase, Pod, Record, dns, namespaces, network_of, remove, stop};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::events::Kind;
use crate::idmap::UserMaps;
use crate::state;

/// Makes a pod; answers with its id when its network is up. The same name again joins or is refused.
pub async fn run(daemon: &Arc<Daemon>, config: PodSandboxConfig, handler: String) -> Result<String> {
    check(&config)?;
    check_users(daemon, &super::namespaces_of(&config))?;
    daemon.handlers.named(&handler)?;
    let name = super::name(&config);
    let work = {
        let daemon = Arc::clone(daemon);
        async move { make(&daemon, config, handler).await }
    };
    daemon.pod_names.make(name, work).await
}

fn check(config: &PodSandboxConfig) -> Result<()> {
    let metadata = config.metadata.as_ref().ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    for (field, value) in [("name", &metadata.name), ("namespace", &metadata.namespace), ("uid", &metadata.uid)] {
        if value.is_empty() {
            return Err(Error::invalid(format!("config.metadata.{field} is empty")));
        }
    }
    Ok(())
}

/// A user namespace owns the others, so that a pod that has one cannot be in those of the host.
fn check_users(daemon: &Daemon, modes: &NamespaceOption) -> Result<()> {
    if UserMaps::asked(modes)?.is_none() {
        return Ok(());
    }
    for (name, mode) in [("network", modes.network), ("pid", modes.pid), ("ipc", modes.ipc)] {
        if mode == NamespaceMode::Node as i32 {
            return Err(Error::invalid(format!(
                "A pod with a user namespace cannot have the {name} namespace of the host"
            )));
        }
    }
    match daemon.user_namespaces {
        true => Ok(()),
        false => {
            Err(Error::Unsupported("User namespaces: this kernel or file system has no id-mapped layers".to_owned()))
        }
    }
}

async fn make(daemon: &Arc<Daemon>, config: PodSandboxConfig, handler: String) -> Result<String> {
    let id = state::new_id()?;
    let asked = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
    let record = Record {
        cgroup_parent: if asked.is_empty() { daemon.own_cgroup_parent(&id) } else { asked.clone() },
        owns_cgroup: asked.is_empty() && !daemon.systemd,
        created_at: state::now(),
        id: id.clone(),
        config,
        handler,
    };
    let pod = Arc::new(Pod::begin(record, Dirs::new(&daemon.config, &id))?);
    if let Err(error) = set_up(daemon, &pod).await {
        if let Err(error) = undo(daemon, &pod).await {
            tracing::error!(pod = id, "Failed to clean up after a pod that could not be made: {error}");
        }
        return Err(error);
    }
    daemon.pods.insert(&id, Arc::clone(&pod));
    daemon.events.tell(Kind::Created, &id, &id);
    daemon.events.tell(Kind::Started, &id, &id);
    Ok(id)
}

/// Unmakes a pod that was never ready.
pub async fn undo(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    stop::unmake(daemon, pod).await?;
    remove::forget(daemon, pod).await
}

async fn set_up(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    let (config, dir) = (pod.record.config.clone(), pod.run_dir().to_owned());
    let modes = pod.namespaces();
    let on_host = pod.on_host_network();
    let request = namespaces::PinRequest {
        dir: dir.clone(),
        net: !on_host,
        ipc: modes.ipc != NamespaceMode::Node as i32,
        uts: !on_host,
        pid: modes.pid == NamespaceMode::Pod as i32,
        user: UserMaps::asked(&modes)?,
        hostname: config.hostname.clone(),
        sysctls: config.linux.as_ref().map(|linux| linux.sysctls.clone().into_iter().collect()).unwrap_or_default(),
    };
    daemon
        .blocking(move |_| {
            state::own_dir(&dir, request.user)?;
            namespaces::pin(&request)?;
            files(&dir, &config, on_host, request.user)
        })
        .await?;
    let addresses = if on_host { Vec::new() } else { daemon.network.add(&network_of(pod)).await? };
    pod.change(|state| {
        state.addresses = addresses;
        state.phase = Phase::Ready;
    })
}

fn files(dir: &Path, config: &PodSandboxConfig, on_host: bool, users: Option<UserMaps>) -> Result<()> {
    let asked = config.dns_config.clone().unwrap_or_default();
    let dns = dns::Dns { servers: asked.servers, searches: asked.searches, options: asked.options };
    dns::write(dir, &dns, &config.hostname, on_host)?;
    dns::give(dir, users)
}
