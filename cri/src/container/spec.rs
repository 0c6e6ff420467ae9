//! A container's config.json (OCI runtime-spec 1.0.2, config.md and config-linux.md), out of the request, the image and
//! what was looked up before. Nothing here looks at the system.

use std::path::PathBuf;

use k8s_cri::v1::{
    ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, Mount, MountPropagation, NamespaceMode,
    SecurityProfile, security_profile::ProfileType,
};
use oci_spec::image::ImageConfiguration;
use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// What had to be looked up.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub oci_version: String,
    pub rootfs: PathBuf,
    pub hostname: String,
    /// In the driver's notation.
    pub cgroups_path: String,
    /// Namespaces to join, by the runtime-spec's names; what is not here is the host's or, for pid and mount, new.
    pub namespaces: Vec<(&'static str, Option<PathBuf>)>,
    /// The pod's files: target in the container, and source.
    pub files: Vec<(&'static str, PathBuf)>,
    /// The pod's /dev/shm, or the host's.
    pub shm: Option<PathBuf>,
    pub user: User,
    /// Capabilities that this program has itself.
    pub bounding: Vec<String>,
    /// The filter for `RuntimeDefault`.
    pub seccomp: Option<Value>,
    /// Devices of the host, for privileged containers.
    pub devices: Vec<Device>,
    /// No lower than what this program has.
    pub oom_score_adj: i64,
}

/// Who the first process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub path: String,
    /// `c` or `b`.
    pub kind: char,
    pub major: u64,
    pub minor: u64,
    pub permissions: String,
}

/// What containers of the usual engines may do.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The whole document.
pub fn config(config: &ContainerConfig, image: &ImageConfiguration, facts: &Facts) -> Result<Value> {
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let resources = linux.resources.unwrap_or_default();
    Ok(json!({
        "ociVersion": facts.oci_version,
        "process": process(config, image, &context, facts, resources.oom_score_adj)?,
        "root": { "path": facts.rootfs, "readonly": context.readonly_rootfs },
        "hostname": facts.hostname,
        "mounts": mounts(config, &context, facts)?,
        "annotations": config.annotations,
        "linux": {
            "namespaces": namespaces(facts),
            "cgroupsPath": facts.cgroups_path,
            "resources": resources_of(&resources, &context, facts)?,
            "devices": devices(&context, facts),
            "maskedPaths": if context.privileged { json!([]) } else { json!(context.masked_paths) },
            "readonlyPaths": if context.privileged { json!([]) } else { json!(context.readonly_paths) },
            "seccomp": seccomp(&context, facts)?,
            "rootfsPropagation": propagation(&config.mounts),
        },
    }))
}

fn process(
    config: &ContainerConfig,
    image: &ImageConfiguration,
    context: &LinuxContainerSecurityContext,
    facts: &Facts,
    oom_score_adj: i64,
) -> Result<Value> {
    let own = image.config().clone().unwrap_or_default();
    let (entrypoint, cmd) = (own.entrypoint().clone().unwrap_or_default(), own.cmd().clone().unwrap_or_default());
    // A command takes the place of both, arguments that of the image's own.
    let args: Vec<String> = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => [config.command.clone(), config.args.clone()].concat(),
        (true, false) => [entrypoint, config.args.clone()].concat(),
        (true, true) => [entrypoint, cmd].concat(),
    };
    if args.is_empty() {
        return Err(Error::invalid("Neither config.command nor the image says what to run"));
    }
    let cwd = [config.working_dir.clone(), own.working_dir().clone().unwrap_or_default(), "/".to_owned()];
    let capabilities = capabilities(context, facts)?;
    Ok(json!({
        "terminal": config.tty,
        "args": args,
        "env": environment(config, own.env().clone().unwrap_or_default()),
        "cwd": cwd.into_iter().find(|cwd| !cwd.is_empty()),
        "user": { "uid": facts.user.uid, "gid": facts.user.gid, "additionalGids": facts.user.groups },
        "capabilities": capabilities,
        "noNewPrivileges": context.no_new_privs && !context.privileged,
        "oomScoreAdj": oom_score_adj.max(facts.oom_score_adj),
    }))
}

/// The image's, then the request's in their place or behind them.
fn environment(config: &ContainerConfig, image: Vec<String>) -> Vec<String> {
    let mut env = image;
    if !env.iter().any(|one| one.starts_with("PATH=")) {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    if config.tty && !env.iter().any(|one| one.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    for pair in &config.envs {
        let (prefix, whole) = (format!("{}=", pair.key), format!("{}={}", pair.key, pair.value));
        match env.iter_mut().find(|one| one.starts_with(&prefix)) {
            Some(one) => *one = whole,
            None => env.push(whole),
        }
    }
    env
}

fn capabilities(context: &LinuxContainerSecurityContext, facts: &Facts) -> Result<Value> {
    let asked = context.capabilities.clone().unwrap_or_default();
    let whole = |name: &String| {
        let name = name.to_uppercase();
        if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
    };
    let (add, drop): (Vec<_>, Vec<_>) =
        (asked.add_capabilities.iter().map(whole).collect(), asked.drop_capabilities.iter().map(whole).collect());
    let everything = context.privileged || add.iter().any(|name| name == "ALL");
    let nothing = drop.iter().any(|name| name == "ALL") && !context.privileged;
    let kept = |name: &String| {
        let base = everything || !nothing && CAPABILITIES.contains(&name.as_str());
        (base || add.contains(name)) && (context.privileged || !drop.contains(name))
    };
    let set: Vec<&String> = facts.bounding.iter().filter(|name| kept(name)).collect();
    let ambient: Vec<String> = asked.add_ambient_capabilities.iter().map(whole).collect();
    if let Some(name) = ambient.iter().find(|name| !set.contains(name)) {
        return Err(Error::invalid(format!("Ambient capability {name} is not among the container's capabilities")));
    }
    // For anybody but root only ambient ones count.
    let inheritable = if ambient.is_empty() { json!([]) } else { json!(ambient) };
    Ok(json!({ "bounding": set, "effective": set, "permitted": set, "inheritable": inheritable, "ambient": ambient }))
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

fn mounts(config: &ContainerConfig, context: &LinuxContainerSecurityContext, facts: &Facts) -> Result<Vec<Value>> {
    let sys = if context.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", sys] }),
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", sys] }),
    ];
    let shm = facts.shm.as_ref().map_or(PathBuf::from("/dev/shm"), PathBuf::clone);
    mounts.push(json!({ "destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rbind", "rw", "nosuid", "nodev", "noexec"] }));
    for (target, source) in &facts.files {
        let mode = if context.readonly_rootfs { "ro" } else { "rw" };
        mounts.push(json!({ "destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate", mode, "nosuid", "nodev", "noexec"] }));
    }
    for mount in &config.mounts {
        let own = bind(mount)?;
        // What is asked for takes the place of what everybody gets.
        mounts.retain(|other| other["destination"] != own["destination"]);
        mounts.push(own);
    }
    Ok(mounts)
}

fn bind(mount: &Mount) -> Result<Value> {
    let target = &mount.container_path;
    let refuse = |why: &str| Err(Error::invalid(format!("Mount {target:?}: {why}")));
    if target.is_empty() {
        return refuse("container_path is empty");
    }
    if mount.image.as_ref().is_some_and(|image| !image.image.is_empty()) {
        return Err(Error::Unsupported(format!("Mount {target}: image volumes are not implemented")));
    }
    if mount.host_path.is_empty() {
        return refuse("host_path is empty");
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(Error::Unsupported(format!("Mount {target}: id mappings are not implemented")));
    }
    let (propagation, private) = match MountPropagation::try_from(mount.propagation) {
        Ok(MountPropagation::PropagationPrivate) => ("rprivate", true),
        Ok(MountPropagation::PropagationHostToContainer) => ("rslave", false),
        Ok(MountPropagation::PropagationBidirectional) => ("rshared", false),
        Err(_) => return refuse("propagation is unknown"),
    };
    let mode = match (mount.recursive_read_only, mount.readonly) {
        (true, false) => return refuse("recursive_read_only without readonly"),
        (true, true) if !private => return refuse("recursive_read_only with propagation"),
        (true, true) => "rro",
        (false, true) => "ro",
        (false, false) => "rw",
    };
    Ok(
        json!({ "destination": target, "type": "bind", "source": mount.host_path, "options": ["rbind", propagation, mode] }),
    )
}

/// The root must pass on what one of the mounts wants to hear or tell.
fn propagation(mounts: &[Mount]) -> &'static str {
    let any = |wanted: MountPropagation| mounts.iter().any(|mount| mount.propagation == wanted as i32);
    match (any(MountPropagation::PropagationBidirectional), any(MountPropagation::PropagationHostToContainer)) {
        (true, _) => "rshared",
        (false, true) => "rslave",
        (false, false) => "rprivate",
    }
}

fn devices(context: &LinuxContainerSecurityContext, facts: &Facts) -> Vec<Value> {
    let all = facts.devices.iter().filter(|_| context.privileged);
    all.map(|device| {
        json!({ "path": device.path, "type": device.kind.to_string(), "major": device.major, "minor": device.minor })
    })
    .collect()
}

fn resources_of(
    resources: &LinuxContainerResources,
    context: &LinuxContainerSecurityContext,
    facts: &Facts,
) -> Result<Value> {
    let mut all = oci_resources(resources)?;
    let mut rules = vec![json!({ "allow": context.privileged, "access": "rwm" })];
    for device in facts.devices.iter().filter(|_| !context.privileged) {
        rules.push(json!({
            "allow": true, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
            "access": device.permissions,
        }));
    }
    all["devices"] = Value::Array(rules);
    Ok(all)
}

/// Resources as the runtime-spec has them; what is zero or empty is not said.
fn oci_resources(resources: &LinuxContainerResources) -> Result<Value> {
    let mut all = json!({});
    let mut set = |room: &str, key: &str, value: Value| all[room][key] = value;
    for (room, key, value) in [
        ("cpu", "shares", resources.cpu_shares),
        ("cpu", "quota", resources.cpu_quota),
        ("cpu", "period", resources.cpu_period),
        ("memory", "limit", resources.memory_limit_in_bytes),
        ("memory", "swap", resources.memory_swap_limit_in_bytes),
    ] {
        if value < -1 {
            return Err(Error::invalid(format!("resources: {room} {key} is {value}")));
        }
        if value != 0 {
            set(room, key, json!(value));
        }
    }
    for (key, value) in [("cpus", &resources.cpuset_cpus), ("mems", &resources.cpuset_mems)] {
        if !value.is_empty() {
            set("cpu", key, json!(value));
        }
    }
    if !resources.hugepage_limits.is_empty() {
        let limits = resources.hugepage_limits.iter();
        let limits = limits.map(|limit| json!({ "pageSize": limit.page_size, "limit": limit.limit })).collect();
        all["hugepageLimits"] = Value::Array(limits);
    }
    if !resources.unified.is_empty() {
        all["unified"] = json!(resources.unified);
    }
    Ok(all)
}

fn seccomp(context: &LinuxContainerSecurityContext, facts: &Facts) -> Result<Option<Value>> {
    if context.privileged {
        return Ok(None);
    }
    let profile = context
        .seccomp
        .clone()
        .unwrap_or(SecurityProfile { profile_type: ProfileType::Unconfined as i32, localhost_ref: String::new() });
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(facts.seccomp.clone()),
        Ok(ProfileType::Unconfined) => Ok(None),
        Ok(ProfileType::Localhost) => {
            let path = profile.localhost_ref;
            crate::state::read(path.as_ref()).map(Some).map_err(|error| Error::invalid(format!("seccomp: {error}")))
        }
        Err(_) => Err(Error::invalid("security_context.seccomp has an unknown type")),
    }
}

/// Whether a container's own namespace of this kind is wanted.
pub fn wants_own(mode: i32) -> bool {
    mode == NamespaceMode::Container as i32
}

/// What resources are after an update, and the object for the runtime.
pub fn updated(
    before: Option<&LinuxContainerResources>,
    change: &LinuxContainerResources,
) -> Result<(LinuxContainerResources, Vec<u8>)> {
    let mut after = before.cloned().unwrap_or_default();
    let keep = |old: &mut i64, new: i64| {
        if new != 0 {
            *old = new;
        }
    };
    keep(&mut after.cpu_period, change.cpu_period);
    keep(&mut after.cpu_quota, change.cpu_quota);
    keep(&mut after.cpu_shares, change.cpu_shares);
    keep(&mut after.memory_limit_in_bytes, change.memory_limit_in_bytes);
    keep(&mut after.memory_swap_limit_in_bytes, change.memory_swap_limit_in_bytes);
    keep(&mut after.oom_score_adj, change.oom_score_adj);
    for (old, new) in [(&mut after.cpuset_cpus, &change.cpuset_cpus), (&mut after.cpuset_mems, &change.cpuset_mems)] {
        if !new.is_empty() {
            old.clone_from(new);
        }
    }
    if !change.hugepage_limits.is_empty() {
        after.hugepage_limits.clone_from(&change.hugepage_limits);
    }
    after.unified.extend(change.unified.clone());
    let oci = serde_json::to_vec(&oci_resources(&after)?).context(|| "Failed to write resources")?;
    Ok((after, oci))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let before = LinuxContainerResources { cpu_shares: 100, memory_limit_in_bytes: 1, ..Default::default() };
        let change = LinuxContainerResources { memory_limit_in_bytes: 2, ..Default::default() };
        let (after, oci) = updated(Some(&before), &change).unwrap();
        assert_eq!((after.cpu_shares, after.memory_limit_in_bytes), (100, 2));
        let oci: Value = serde_json::from_slice(&oci).unwrap();
        assert_eq!(oci, json!({ "cpu": { "shares": 100 }, "memory": { "limit": 2 } }));
    }

    #[test]
    fn recursive_read_only_has_its_conditions() {
        let mount = |readonly, propagation: MountPropagation| Mount {
            container_path: "/x".into(),
            host_path: "/y".into(),
            readonly,
            recursive_read_only: true,
            propagation: propagation as i32,
            ..Mount::default()
        };
        assert!(bind(&mount(true, MountPropagation::PropagationPrivate)).is_ok());
        for bad in [
            mount(false, MountPropagation::PropagationPrivate),
            mount(true, MountPropagation::PropagationHostToContainer),
        ] {
            assert!(matches!(bind(&bad), Err(Error::Invalid(text)) if text.contains("/x")));
        }
    }

    #[test]
    fn capabilities_are_added_dropped_and_bounded() {
        let facts = Facts {
            bounding: ["CAP_KILL", "CAP_CHOWN", "CAP_SYS_ADMIN"].map(str::to_owned).into(),
            ..Facts::default()
        };
        let set = |add: &[&str], drop: &[&str]| {
            let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
            let asked = k8s_cri::v1::Capability {
                add_capabilities: words(add),
                drop_capabilities: words(drop),
                ..Default::default()
            };
            let context = LinuxContainerSecurityContext { capabilities: Some(asked), ..Default::default() };
            capabilities(&context, &facts).unwrap()["effective"].clone()
        };
        assert_eq!(set(&[], &[]), json!(["CAP_KILL", "CAP_CHOWN"]));
        assert_eq!(set(&["sys_admin", "NET_ADMIN"], &["KILL"]), json!(["CAP_CHOWN", "CAP_SYS_ADMIN"]));
        assert_eq!(set(&["KILL"], &["ALL"]), json!(["CAP_KILL"]));
    }
}
