//! What a container may do: capabilities, seccomp, AppArmor, SELinux, and what of /proc and /sys it sees.

use std::path::PathBuf;

use k8s_cri::v1::{
    LinuxContainerConfig, LinuxContainerSecurityContext, NamespaceMode, SeLinuxOption, SecurityProfile,
    security_profile::ProfileType,
};
use serde_json::{Value, json};

use super::Facts;
use crate::error::{Error, Result};

/// What containers of the usual engines may do.
const USUAL: [&str; 14] = [
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

/// As the kernel numbers them (capabilities(7)).
#[rustfmt::skip]
pub const NAMES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE",
    "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
    "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
];

/// Hidden from containers: it tells of the host, or changes it.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The sets of a process. What this program lacks itself cannot be given and is left out without a word, as hosts
/// without it exist and every pod would fail there; a name that no kernel has is a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub all: Vec<String>,
    /// What stays with programs of anybody but root.
    pub ambient: Vec<String>,
}

pub fn capabilities(context: &LinuxContainerSecurityContext, bounding: &[String]) -> Result<Capabilities> {
    let asked = context.capabilities.clone().unwrap_or_default();
    let (add, drop, ambient) =
        (names(&asked.add_capabilities)?, names(&asked.drop_capabilities)?, names(&asked.add_ambient_capabilities)?);
    let all = |list: &[String]| list.iter().any(|name| name == "ALL");
    if all(&ambient) {
        return Err(Error::invalid("capabilities.add_ambient_capabilities: ALL is not for ambient ones"));
    }
    let base = |name: &String| match (context.privileged, all(&drop), all(&add)) {
        (true, _, _) => true,
        (_, true, _) => false,
        (_, _, true) => true,
        _ => USUAL.contains(&name.as_str()),
    };
    // Named to be dropped goes before everything; ALL only before what is there anyway.
    let kept = |name: &&String| {
        let dropped = drop.contains(name) && !context.privileged;
        !dropped && (base(name) || add.contains(name) || ambient.contains(name))
    };
    let all: Vec<String> = bounding.iter().filter(kept).cloned().collect();
    let ambient = ambient.into_iter().filter(|name| all.contains(name)).collect();
    Ok(Capabilities { all, ambient })
}

impl Capabilities {
    pub fn object(&self) -> Value {
        // Anything inheritable that is not ambient is what files of the image could turn against it.
        let (all, ambient) = (&self.all, &self.ambient);
        json!({ "bounding": all, "effective": all, "permitted": all, "inheritable": ambient, "ambient": ambient })
    }
}

fn names(words: &[String]) -> Result<Vec<String>> {
    let whole = |word: &String| {
        let name = word.to_uppercase();
        let short = name.strip_prefix("CAP_").unwrap_or(&name);
        match short {
            "ALL" => Ok(short.to_owned()),
            short if NAMES.contains(&short) => Ok(format!("CAP_{short}")),
            _ => Err(Error::invalid(format!("Unknown capability {word:?}"))),
        }
    };
    words.iter().map(whole).collect()
}

/// Where a seccomp profile comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Nothing,
    /// The configured profile, or the built-in one.
    Default,
    File(PathBuf),
}

/// No profile is no filter, as Kubernetes has it.
pub fn seccomp(context: &LinuxContainerSecurityContext) -> Result<Wanted> {
    if context.privileged {
        return Ok(Wanted::Nothing);
    }
    let Some(profile) = profile(context.seccomp.as_ref(), old_seccomp(context), "seccomp")? else {
        return Ok(Wanted::Nothing);
    };
    Ok(match profile {
        Profile::Default => Wanted::Default,
        Profile::Unconfined => Wanted::Nothing,
        Profile::Localhost(name) if name.starts_with('/') => Wanted::File(name.into()),
        Profile::Localhost(name) => {
            return Err(Error::invalid(format!("Seccomp profile {name:?} must be an absolute path")));
        }
    })
}

/// The name of a profile that the kernel has; none where the kernel has no AppArmor.
pub fn apparmor(context: &LinuxContainerSecurityContext, facts: &Facts) -> Result<Option<String>> {
    let wanted = profile(context.apparmor.as_ref(), old_apparmor(context), "apparmor")?;
    let loaded = |name: &str| facts.apparmor.as_ref().is_some_and(|all| all.iter().any(|one| one == name));
    match wanted {
        Some(Profile::Unconfined) => Ok(facts.apparmor.as_ref().map(|_| "unconfined".to_owned())),
        Some(Profile::Localhost(name)) if loaded(&name) => Ok(Some(name)),
        Some(Profile::Localhost(name)) if facts.apparmor.is_some() => {
            Err(Error::invalid(format!("AppArmor profile {name:?} is not loaded")))
        }
        Some(Profile::Localhost(name)) => {
            Err(Error::invalid(format!("AppArmor profile {name:?}: the kernel of this host has no AppArmor")))
        }
        None | Some(Profile::Default) if context.privileged => Ok(None),
        None | Some(Profile::Default) => Ok(Some(APPARMOR.to_owned()).filter(|name| loaded(name))),
    }
}

/// What `RuntimeDefault` is where an administrator has loaded a profile of this name; elsewhere there is none.
const APPARMOR: &str = "conward-default";

enum Profile {
    Default,
    Unconfined,
    Localhost(String),
}

/// The field of today, or else that of old clients: to overlook the latter would leave them without what they ask for.
fn profile(new: Option<&SecurityProfile>, old: &str, field: &str) -> Result<Option<Profile>> {
    let local = |name: &str| match name.strip_prefix("localhost/").unwrap_or(name) {
        "" => Err(Error::invalid(format!("security_context.{field} names no profile"))),
        name => Ok(Profile::Localhost(name.to_owned())),
    };
    let unknown = || Error::invalid(format!("security_context.{field} has an unknown type"));
    let Some(new) = new else {
        return Ok(Some(match old {
            "" => return Ok(None),
            "runtime/default" | "docker/default" => Profile::Default,
            "unconfined" => Profile::Unconfined,
            name if name.starts_with("localhost/") => local(name)?,
            _ => return Err(unknown()),
        }));
    };
    Ok(Some(match ProfileType::try_from(new.profile_type).map_err(|_| unknown())? {
        ProfileType::RuntimeDefault => Profile::Default,
        ProfileType::Unconfined => Profile::Unconfined,
        ProfileType::Localhost => local(&new.localhost_ref)?,
    }))
}

#[allow(deprecated)]
fn old_seccomp(context: &LinuxContainerSecurityContext) -> &str {
    &context.seccomp_profile_path
}

#[allow(deprecated)]
fn old_apparmor(context: &LinuxContainerSecurityContext) -> &str {
    &context.apparmor_profile
}

/// SELinux labels of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    pub process: Option<String>,
    pub files: Option<String>,
}

/// Labels where the kernel has SELinux. Elsewhere options are passed over, as the kubelet expects: the same pod goes to
/// nodes with and without. Categories, when the request has none, are those of the pod.
pub fn labels(context: &LinuxContainerSecurityContext, enabled: bool, pod: &str) -> Labels {
    if !enabled {
        return Labels::default();
    }
    let options = context.selinux_options.clone().unwrap_or_default();
    let SeLinuxOption { user, role, r#type, level } = options;
    let or = |word: String, usual: &str| if word.is_empty() { usual.to_owned() } else { word };
    let (user, role) = (or(user, "system_u"), or(role, "system_r"));
    let kind = or(r#type, if context.privileged { "spc_t" } else { "container_t" });
    let level = or(level, &if context.privileged { "s0".to_owned() } else { categories(pod) });
    let files = (!context.privileged).then(|| format!("{user}:object_r:container_file_t:{level}"));
    Labels { process: Some(format!("{user}:{role}:{kind}:{level}")), files }
}

/// Two of 1024 categories by the pod's id, which is random.
fn categories(pod: &str) -> String {
    let part = |at: usize| pod.get(at..at + 4).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0);
    let (one, other) = (part(0) % 1024, part(4) % 1023);
    let other = if other >= one { other + 1 } else { other };
    format!("s0:c{},c{}", one.min(other), one.max(other))
}

/// Masked and read-only paths. Without a security context, and when it says nothing, a container gets the usual ones.
///
/// The kubelet says nothing for `procMount: Unmasked`, too, but that needs a user namespace, and there nothing is kept.
pub fn paths(linux: Option<&LinuxContainerConfig>) -> (Value, Value) {
    let context = linux.and_then(|linux| linux.security_context.clone()).unwrap_or_default();
    if context.privileged {
        return (json!([]), json!([]));
    }
    let user = context.namespace_options.as_ref().and_then(|modes| modes.userns_options.clone());
    let own_users = user.is_some_and(|user| user.mode == NamespaceMode::Pod as i32);
    match context.masked_paths.is_empty() && context.readonly_paths.is_empty() && !own_users {
        true => (json!(MASKED), json!(READ_ONLY)),
        false => (json!(context.masked_paths), json!(context.readonly_paths)),
    }
}

#[cfg(test)]
#[path = "security_tests.rs"]
mod tests;
