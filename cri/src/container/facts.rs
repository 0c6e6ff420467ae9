//! What a container's config.json needs to know of this host, the pod and the image, and laying the bundle out with it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_cri::v1::{LinuxContainerSecurityContext, NamespaceMode, SupplementalGroupsPolicy};

use super::spec::{self, Device, Facts, User};
use super::{Container, Record, volumes};
use crate::daemon::Daemon;
use crate::error::{Context, Error, Result};
use crate::image::{Image, Mount};
use crate::sandbox::Pod;
use crate::state;

/// SIGTERM, where the image does not say otherwise.
const STOP_SIGNAL: i32 = 15;

/// What asks a container of this image to end.
pub fn stop_signal(image: &Image) -> i32 {
    let named = image.config.config().as_ref().and_then(|config| config.stop_signal().clone()).unwrap_or_default();
    let number = named.parse().ok();
    let whole = if named.starts_with("SIG") { named.clone() } else { format!("SIG{named}") };
    let by_name = whole.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32);
    number.or(by_name).unwrap_or(STOP_SIGNAL)
}

/// Mounts the file system, writes config.json, and says what was found out about the user.
pub fn lay_out(daemon: &Arc<Daemon>, pod: &Arc<Pod>, container: &Arc<Container>, image: &Image) -> Result<Record> {
    let (config, rootfs) = (&container.record.config, container.dirs().rootfs());
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
    fs::create_dir_all(&rootfs).context(|| format!("Failed to make {}", rootfs.display()))?;
    daemon.images.mount(image, container.id(), &rootfs, &Mount { read_only: false, label: None })?;
    let config = &volumes::mount(&daemon.images, container)?;
    for mount in &config.mounts {
        make_source(&mount.host_path)?;
    }
    let user = user(&context, image, &rootfs)?;
    let handler = daemon.handlers.named(&container.record.handler)?;
    let facts = Facts {
        oci_version: handler.oci_version.clone(),
        // Only a namespace of the pod's own has a name to set.
        hostname: if pod.on_host_network() { String::new() } else { hostname(pod)? },
        cgroups_path: cgroups_path(daemon, pod, container.id()),
        namespaces: namespaces(daemon, pod, &context)?,
        files: files(pod),
        shm: own_ipc(pod).then(|| pod.run_dir().join("shm")),
        user: user.clone(),
        bounding: bounding()?,
        seccomp: seccomp(daemon)?,
        devices: devices(config, context.privileged)?,
        oom_score_adj: own_oom_score_adj(),
        rootfs,
    };
    let mut whole = spec::config(config, &image.config, &facts)?;
    volumes::restrict(container, &mut whole);
    state::write(&container.bundle().join("config.json"), &whole)?;
    let mut record = container.record.clone();
    (record.uid, record.gid) = (i64::from(user.uid), i64::from(user.gid));
    record.groups = user.groups.iter().map(|group| i64::from(*group)).collect();
    Ok(record)
}

/// A host path that is not there is made, as other runtimes do.
fn make_source(path: &str) -> Result<()> {
    if path.is_empty() || Path::new(path).exists() {
        return Ok(());
    }
    fs::create_dir_all(path).context(|| format!("Failed to make mount source {path}"))
}

fn hostname(pod: &Pod) -> Result<String> {
    let text = fs::read_to_string(pod.run_dir().join("hostname")).context(|| "Failed to read the pod's hostname")?;
    Ok(text.trim().to_owned())
}

fn cgroups_path(daemon: &Daemon, pod: &Pod, id: &str) -> String {
    let parent = &pod.record.cgroup_parent;
    if daemon.systemd { format!("{}:conward:{id}", parent.trim_start_matches('/')) } else { format!("{parent}/{id}") }
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
    if !pod.on_host_network() {
        all.push(("network", Some(ns.join("net"))));
        all.push(("uts", Some(ns.join("uts"))));
    }
    if own_ipc(pod) {
        all.push(("ipc", Some(ns.join("ipc"))));
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

/// Names of the capabilities in this program's bounding set, as the kernel numbers them (capabilities(7)).
fn bounding() -> Result<Vec<String>> {
    let status = fs::read_to_string("/proc/self/status").context(|| "Failed to read own capabilities")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap_or_default();
    let mask = u64::from_str_radix(mask.trim(), 16).context(|| "Failed to read own capabilities")?;
    Ok(NAMES
        .iter()
        .enumerate()
        .filter(|(bit, _)| mask >> bit & 1 == 1)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect())
}

const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The configured profile; the built-in one is still to be made.
fn seccomp(daemon: &Daemon) -> Result<Option<serde_json::Value>> {
    match daemon.config.seccomp_profile.as_os_str().is_empty() {
        true => Ok(None),
        false => state::read(&daemon.config.seccomp_profile).map(Some),
    }
}

fn own_oom_score_adj() -> i64 {
    let text = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// What was asked for, and for a privileged container everything in /dev.
fn devices(config: &k8s_cri::v1::ContainerConfig, privileged: bool) -> Result<Vec<Device>> {
    let mut found = Vec::new();
    if privileged {
        let entries = fs::read_dir("/dev").context(|| "Failed to list /dev")?;
        let paths = entries.flatten().map(|entry| entry.path());
        found.extend(paths.filter_map(|path| device(&path, &path.to_string_lossy(), "rwm").ok()));
    }
    for asked in &config.devices {
        found.push(device(Path::new(&asked.host_path), &asked.container_path, &asked.permissions)?);
    }
    Ok(found)
}

fn device(host: &Path, inside: &str, permissions: &str) -> Result<Device> {
    let data = fs::metadata(host).context(|| format!("Failed to find device {}", host.display()))?;
    let kind = match data.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return Err(Error::invalid(format!("{} is no device", host.display()))),
    };
    let (major, minor) = (nix::sys::stat::major(data.rdev()), nix::sys::stat::minor(data.rdev()));
    Ok(Device { path: inside.to_owned(), kind, major, minor, permissions: permissions.to_owned() })
}

/// Who the first process is: the request's word, then the image's, then root.
fn user(context: &LinuxContainerSecurityContext, image: &Image, rootfs: &Path) -> Result<User> {
    if context.run_as_group.is_some() && context.run_as_user.is_none() && context.run_as_username.is_empty() {
        return Err(Error::invalid("run_as_group needs run_as_user or run_as_username"));
    }
    let own = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let (own_user, own_group) = own.split_once(':').unwrap_or((own.as_str(), ""));
    let wanted = match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(uid), _) => uid.value.to_string(),
        (None, "") => own_user.to_owned(),
        (None, name) => name.to_owned(),
    };
    let passwd = inside(rootfs, "etc/passwd");
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() > 3 && (fields[0] == wanted || fields[2] == if wanted.is_empty() { "0" } else { &wanted })
    });
    let number = |field: &str| field.parse::<u32>().ok();
    let uid = match (wanted.as_str(), &entry) {
        ("", _) => 0,
        (_, Some(fields)) => number(fields[2]).unwrap_or(0),
        (wanted, None) => {
            number(wanted).ok_or_else(|| Error::invalid(format!("User {wanted} is not in the image's /etc/passwd")))?
        }
    };
    let groups = inside(rootfs, "etc/group");
    let gid = match (&context.run_as_group, own_group) {
        (Some(gid), _) => u32::try_from(gid.value).map_err(|_| Error::invalid("run_as_group is out of range"))?,
        (None, group) if !group.is_empty() && context.run_as_user.is_none() && context.run_as_username.is_empty() => {
            group_id(&groups, group)?
        }
        _ => entry.as_ref().and_then(|fields| number(fields[3])).unwrap_or(0),
    };
    let mut all = vec![gid];
    let strict = context.supplemental_groups_policy == SupplementalGroupsPolicy::Strict as i32;
    if let Some(name) = entry.as_ref().map(|fields| fields[0]).filter(|_| !strict) {
        all.extend(memberships(&groups, name));
    }
    for group in &context.supplemental_groups {
        all.push(u32::try_from(*group).map_err(|_| Error::invalid("supplemental_groups: out of range"))?);
    }
    all.sort_unstable();
    all.dedup();
    Ok(User { uid, gid, groups: all })
}

/// A file of the image, not followed out of it; nothing for one that is not there.
fn inside(rootfs: &Path, path: &str) -> String {
    let path = rootfs.join(path);
    let plain = fs::symlink_metadata(&path).is_ok_and(|data| data.is_file());
    if plain { fs::read_to_string(path).unwrap_or_default() } else { String::new() }
}

fn group_id(groups: &str, name: &str) -> Result<u32> {
    let by_name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    by_name
        .or_else(|| name.parse().ok())
        .ok_or_else(|| Error::invalid(format!("Group {name} is not in the image's /etc/group")))
}

fn memberships(groups: &str, user: &str) -> Vec<u32> {
    let member = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let listed = fields.get(3).is_some_and(|users| users.split(',').any(|one| one == user));
        if listed { fields.get(2).and_then(|gid| gid.parse().ok()) } else { None }
    };
    groups.lines().filter_map(member).collect()
}
