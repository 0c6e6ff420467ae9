//! What a container's config.json needs to know of this host, the pod and the image, and laying the bundle out with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_cri::v1::{LinuxContainerSecurityContext, MountPropagation, NamespaceMode};

use super::spec::security::{self, Wanted};
use super::spec::{self, Facts, Labels, Source, User, mounts, seccomp, users};
use super::{Container, Record, cdi, devices, host, relabel, volumes};
use crate::cgroup;
use crate::daemon::Daemon;
use crate::error::{Context, Error, Result};
use crate::idmap::UserMaps;
use crate::image::{Image, Mount};
use crate::sandbox::Pod;
use crate::state;

/// SIGTERM, where the image does not say otherwise.
const STOP_SIGNAL: i32 = 15;

/// What asks a container of this image to end.
pub fn stop_signal(image: &Image) -> i32 {
    let named = image.config.config().as_ref().and_then(|config| config.stop_signal().clone()).unwrap_or_default();
    match signal(&named) {
        Some(number) => number,
        None if named.is_empty() => STOP_SIGNAL,
        None => {
            tracing::warn!(image = image.id, "Unknown stop signal {named:?}, taking {STOP_SIGNAL}");
            STOP_SIGNAL
        }
    }
}

/// The first and last real-time signals that C libraries leave to programs.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// A signal by number or name, with or without `SIG`; `RTMIN+n` and `RTMAX-n`, too.
fn signal(word: &str) -> Option<i32> {
    let upper = word.trim().to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text[1..].parse::<i32>().ok() };
    let number = if let Ok(number) = name.parse::<i32>() {
        Some(number)
    } else if let Some(more) = name.strip_prefix("RTMIN").filter(|more| more.is_empty() || more.starts_with('+')) {
        offset(more).map(|more| RTMIN.saturating_add(more))
    } else if let Some(less) = name.strip_prefix("RTMAX").filter(|less| less.is_empty() || less.starts_with('-')) {
        offset(less).map(|less| RTMAX.saturating_sub(less)).filter(|number| *number >= RTMIN)
    } else {
        let alias = match name {
            "CLD" => "CHLD",
            "POLL" => "IO",
            name => name,
        };
        format!("SIG{alias}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
    };
    number.filter(|number| (1..=RTMAX).contains(number))
}

/// Refuses what cannot be, before anything is made.
pub fn check(pod: &Pod, config: &k8s_cri::v1::ContainerConfig) -> Result<()> {
    let context = context(config);
    let linux = pod.record.config.linux.as_ref();
    let pod_is = linux.and_then(|linux| linux.security_context.as_ref()).is_some_and(|context| context.privileged);
    if context.privileged && !pod_is {
        return Err(Error::invalid(format!("A privileged container needs a privileged pod, and {} is none", pod.id())));
    }
    check_users(pod, &context, &config.mounts)?;
    config.mounts.iter().try_for_each(mounts::check)
}

/// All containers of a pod, and what is mounted in them, have the ids of the pod.
fn check_users(pod: &Pod, context: &LinuxContainerSecurityContext, mounts: &[k8s_cri::v1::Mount]) -> Result<()> {
    let pods = pod.users()?.map(|users| users.maps);
    if let Some(modes) = &context.namespace_options {
        if modes.userns_options.is_some() && UserMaps::asked(modes)? != pods {
            return Err(Error::invalid(format!("userns_options are not those of pod {}", pod.id())));
        }
        if pods.is_some() && modes.pid == NamespaceMode::Node as i32 {
            return Err(Error::invalid("A container with a user namespace cannot have the pid namespace of the host"));
        }
    }
    for mount in mounts.iter().filter(|mount| !(mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty())) {
        let whose = format!("Mount {}", mount.container_path);
        if Some(UserMaps::of(&mount.uid_mappings, &mount.gid_mappings, &whose)?) != pods {
            return Err(Error::invalid(format!("{whose}: its id mappings are not those of pod {}", pod.id())));
        }
        if mount.propagation == MountPropagation::PropagationBidirectional as i32 {
            return Err(Error::invalid(format!(
                "{whose}: Bidirectional propagation and id mappings exclude each other"
            )));
        }
    }
    Ok(())
}

fn context(config: &k8s_cri::v1::ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// Mounts the file system, writes config.json, and says what was found out about the user.
pub fn lay_out(daemon: &Arc<Daemon>, pod: &Arc<Pod>, container: &Arc<Container>, image: &Image) -> Result<Record> {
    let (config, rootfs) = (&container.record.config, container.dirs().rootfs());
    let context = context(config);
    let labels = security::labels(&context, host::selinux(), pod.id());
    let users = pod.users()?;
    state::own_dir(container.bundle(), users.as_ref().map(|users| users.maps))?;
    let how = Mount { read_only: false, label: labels.files.clone(), users: users.clone() };
    daemon.images.mount(image, container.id(), &rootfs, &how)?;
    let config = &volumes::mount(&daemon.images, container, users.as_ref())?;
    let user = user(&context, image, &rootfs)?;
    let handler = daemon.handlers.named(&container.record.handler)?;
    let own = host::Capabilities::own()?;
    let host_name = name(pod)?;
    let facts = Facts {
        oci_version: handler.oci_version.clone(),
        // Only a namespace of the pod's own has a name to set.
        hostname: if pod.on_host_network() { String::new() } else { host_name.clone() },
        host_name,
        cgroups_path: cgroups_path(&pod.record.cgroup_parent, container.id(), daemon.systemd),
        namespaces: namespaces(daemon, pod, &context)?,
        users: users.map(|users| users.maps),
        files: files(pod),
        shm: own_ipc(pod).then(|| pod.run_dir().join("shm")),
        sources: sources(config, &labels)?,
        recursive_read_only: handler.recursive_read_only,
        user: user.clone(),
        least_oom_score_adj: own.least_oom_score_adj(),
        bounding: own.bounding,
        seccomp: seccomp(daemon, &context)?,
        machine: host::machine()?,
        apparmor: host::apparmor(),
        labels,
        devices: devices::devices(config, context.privileged)?,
        cgroups: host::cgroups(),
        rootfs,
    };
    let mut whole = spec::config(config, &image.config, &facts)?;
    volumes::restrict(container, &mut whole);
    cdi::edit(&mut whole, config, &cdi::DIRS)?;
    state::write(&container.bundle().join("config.json"), &whole)?;
    let mut record = container.record.clone();
    (record.uid, record.gid) = (i64::from(user.uid), i64::from(user.gid));
    record.groups = user.groups.iter().map(|group| i64::from(*group)).collect();
    Ok(record)
}

/// The host's sides of the request's mounts, labelled where it asks for that and the container has a label.
fn sources(config: &k8s_cri::v1::ContainerConfig, labels: &Labels) -> Result<Vec<Source>> {
    let one = |mount: &k8s_cri::v1::Mount| {
        let source = host::source(&mount.host_path)?;
        if let Some(label) = labels.files.as_ref().filter(|_| mount.selinux_relabel) {
            relabel::relabel(&source.path, label)?;
        }
        Ok(source)
    };
    config.mounts.iter().map(one).collect()
}

/// Name and text of the profile that a request wants.
fn seccomp(daemon: &Daemon, context: &LinuxContainerSecurityContext) -> Result<Option<(String, String)>> {
    let configured = &daemon.config.seccomp_profile;
    let file = match security::seccomp(context)? {
        Wanted::Nothing => return Ok(None),
        Wanted::Default if configured.as_os_str().is_empty() => {
            return Ok(Some(("built in".to_owned(), seccomp::BUILT_IN.to_owned())));
        }
        Wanted::Default => configured.clone(),
        Wanted::File(path) => path,
    };
    let name = file.display().to_string();
    let text = fs::read_to_string(&file).map_err(|error| Error::invalid(format!("Seccomp profile {name}: {error}")))?;
    Ok(Some((name, text)))
}

/// Who the first process is.
fn user(context: &LinuxContainerSecurityContext, image: &Image, rootfs: &Path) -> Result<User> {
    let own = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let (passwd, group) = (host::inside(rootfs, "etc/passwd")?, host::inside(rootfs, "etc/group")?);
    users::user(context, own.trim(), users::Files { passwd: &passwd, group: &group })
}

/// What the container's host is called: the pod's own name, or on the host's network the host's.
fn name(pod: &Pod) -> Result<String> {
    if !pod.on_host_network() {
        return hostname(pod);
    }
    let name = nix::unistd::gethostname().context(|| "Failed to ask for the name of this host")?;
    Ok(name.to_string_lossy().into_owned())
}

fn hostname(pod: &Pod) -> Result<String> {
    let text = fs::read_to_string(pod.run_dir().join("hostname")).context(|| "Failed to read the pod's hostname")?;
    Ok(text.trim().to_owned())
}

/// As runtimes take it: a path, or, where systemd makes cgroups, `SLICE:PREFIX:NAME` with the slice's name alone, which
/// says where it is. Kubelets give the path of the slice.
fn cgroups_path(parent: &str, id: &str, systemd: bool) -> String {
    if !systemd {
        return format!("{parent}/{id}");
    }
    let slice = parent.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    format!("{slice}:conward:{id}")
}

fn own_ipc(pod: &Pod) -> bool {
    pod.namespaces().ipc != NamespaceMode::Node as i32
}

fn namespaces(
    daemon: &Daemon,
    pod: &Pod,
    context: &LinuxContainerSecurityContext,
) -> Result<Vec<(&'static str, Option<PathBuf>)>> {
    let ns = pod.run_dir().join("ns");
    let mut all = Vec::new();
    if let Some(users) = pod.users()? {
        all.push(("user", Some(users.namespace)));
    }
    if !pod.on_host_network() {
        all.push(("network", Some(ns.join("net"))));
        all.push(("uts", Some(ns.join("uts"))));
    }
    if own_ipc(pod) {
        all.push(("ipc", Some(ns.join("ipc"))));
    }
    // With cgroup v1 the view of the hierarchies would be that of the host all the same.
    if cgroup::unified() && !context.privileged {
        all.push(("cgroup", None));
    }
    let modes = context.namespace_options.clone().unwrap_or_else(|| pod.namespaces());
    match NamespaceMode::try_from(modes.pid) {
        Ok(NamespaceMode::Pod) => all.push(("pid", Some(ns.join("pid")))),
        Ok(NamespaceMode::Container) => all.push(("pid", None)),
        Ok(NamespaceMode::Node) => {}
        Ok(NamespaceMode::Target) => {
            let target = daemon.container(&modes.target_id)?;
            if target.record.pod != pod.id() {
                return Err(Error::invalid(format!(
                    "namespace_options.target_id {} is of another pod",
                    modes.target_id
                )));
            }
            let pid = target.running()?.pid;
            all.push(("pid", Some(PathBuf::from(format!("/proc/{pid}/ns/pid")))));
        }
        Err(_) => return Err(Error::invalid(format!("namespace_options.pid is {}", modes.pid))),
    }
    Ok(all)
}

fn files(pod: &Pod) -> Vec<(&'static str, PathBuf)> {
    ["resolv.conf", "hostname", "hosts"]
        .into_iter()
        .zip(["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"])
        .map(|(name, target)| (target, pod.run_dir().join(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (word, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("37", Some(37)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGPOLL", Some(29)),
            ("SIGCLD", Some(17)),
            ("", None),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("SIGRTMIN-1", None),
            ("SIGRTMIN+31", None),
            ("SIGRTMAX-99", None),
            ("SIGNOTHING", None),
        ] {
            assert_eq!(signal(word), number, "{word}");
        }
    }

    #[test]
    fn runtimes_take_the_name_of_a_slice() {
        let path = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice";
        assert_eq!(cgroups_path(path, "c", true), "kubepods-burstable-podx.slice:conward:c");
        assert_eq!(cgroups_path("system.slice", "c", true), "system.slice:conward:c");
        assert_eq!(cgroups_path("/kubepods/podx", "c", false), "/kubepods/podx/c");
    }
}
