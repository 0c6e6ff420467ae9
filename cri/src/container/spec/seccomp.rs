//! Seccomp profiles in the format of docker and podman, made into what the runtime-spec knows.
//!
//! Such a profile has conditions: rules for containers with or without a capability, for some architectures, from some
//! kernel on; and instead of a list of architectures it has a map of each to those that it runs besides. A profile
//! without any of this is already an OCI object and is passed on as it is.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// What the conditions of a profile look at, besides capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// As the Rust compiler calls it.
    pub arch: &'static str,
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
}

impl Default for Machine {
    fn default() -> Machine {
        Machine { arch: std::env::consts::ARCH, kernel: (0, 0) }
    }
}

/// The profile of this program: see tools/seccomp.
pub const BUILT_IN: &str = include_str!("seccomp.json");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    arch_map: Option<Vec<Family>>,
    architectures: Option<Vec<String>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Family {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    /// Of old profiles; one or the other.
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Value>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// The runtime-spec's `linux.seccomp` for a container that has these capabilities. `name` is what errors call the profile.
pub fn resolve(name: &str, text: &str, caps: &[String], machine: &Machine) -> Result<Value> {
    let refuse = |why: String| Error::invalid(format!("Seccomp profile {name}: {why}"));
    let whole: Value = serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
    let profile: Profile = Profile::deserialize(&whole).map_err(|error| refuse(error.to_string()))?;
    if !profile.has_conditions() {
        return Ok(whole);
    }
    profile.resolve(caps, machine).map_err(refuse)
}

impl Profile {
    fn has_conditions(&self) -> bool {
        self.arch_map.is_some()
            || self
                .syscalls
                .iter()
                .flatten()
                .any(|rule| rule.name.is_some() || rule.includes.is_some() || rule.excludes.is_some())
    }

    fn resolve(self, caps: &[String], machine: &Machine) -> std::result::Result<Value, String> {
        let (native, arch) = names_of(machine.arch);
        let named = self.architectures.unwrap_or_default();
        let families = self.arch_map.unwrap_or_default();
        if !named.is_empty() && !families.is_empty() {
            return Err("architectures and archMap exclude each other".to_owned());
        }
        let family = families.into_iter().find(|family| family.architecture == arch);
        let family =
            family.map(|family| [vec![family.architecture], family.sub_architectures.unwrap_or_default()].concat());
        let mut syscalls: Vec<Value> = Vec::new();
        for rule in self.syscalls.unwrap_or_default() {
            if rule.holds(caps, native, machine.kernel)? {
                add(&mut syscalls, &rule.object()?);
            }
        }
        let mut out = json!({ "defaultAction": self.default_action, "syscalls": syscalls });
        let architectures = family.unwrap_or(named);
        for (key, value) in [
            ("architectures", json!(Some(architectures).filter(|all| !all.is_empty()))),
            ("defaultErrnoRet", json!(self.default_errno_ret)),
            ("flags", json!(self.flags)),
            ("listenerPath", json!(self.listener_path)),
            ("listenerMetadata", json!(self.listener_metadata)),
        ] {
            if !value.is_null() {
                out[key] = value;
            }
        }
        Ok(out)
    }
}

impl Rule {
    fn holds(&self, caps: &[String], arch: &str, kernel: (u32, u32)) -> std::result::Result<bool, String> {
        let (yes, no) = (self.includes.as_ref(), self.excludes.as_ref());
        let has = |name: &String| caps.contains(name);
        let lacks_one = yes.is_some_and(|all| all.caps.iter().flatten().any(|name| !has(name)));
        let has_one = no.is_some_and(|all| all.caps.iter().flatten().any(has));
        let here = |all: &Vec<String>| all.iter().any(|name| name == arch);
        let elsewhere = yes.and_then(|all| all.arches.as_ref()).is_some_and(|all| !all.is_empty() && !here(all));
        let excluded = no.and_then(|all| all.arches.as_ref()).is_some_and(here);
        let too_old = match yes.and_then(|all| all.min_kernel.as_deref()) {
            Some(least) => kernel < version(least)?,
            None => false,
        };
        let too_new = match no.and_then(|all| all.min_kernel.as_deref()) {
            Some(least) => kernel >= version(least)?,
            None => false,
        };
        Ok(!(lacks_one || has_one || elsewhere || excluded || too_old || too_new))
    }

    fn object(self) -> std::result::Result<Value, String> {
        let names = match (self.name, self.names.unwrap_or_default()) {
            (Some(name), names) if names.is_empty() => vec![name],
            (Some(name), _) => return Err(format!("name {name} and names exclude each other")),
            (None, names) if names.is_empty() => return Err("a rule names no system call".to_owned()),
            (None, names) => names,
        };
        let mut out = json!({ "names": names, "action": self.action });
        if let Some(number) = self.errno_ret {
            out["errnoRet"] = number.into();
        }
        if let Some(args) = self.args.filter(|args| !args.is_empty()) {
            out["args"] = args.into();
        }
        Ok(out)
    }
}

/// Puts rules that differ only in names together, and says nothing twice: two conditions may both hold.
fn add(syscalls: &mut Vec<Value>, rule: &Value) {
    let like = |other: &Value| ["action", "errnoRet", "args"].iter().all(|key| other.get(key) == rule.get(key));
    let Some(same) = syscalls.iter_mut().find(|other| like(other)).and_then(|other| other["names"].as_array_mut())
    else {
        syscalls.push(rule.clone());
        return;
    };
    for name in rule["names"].as_array().into_iter().flatten() {
        if !same.contains(name) {
            same.push(name.clone());
        }
    }
}

/// How profiles name an architecture in conditions, and how in their map.
fn names_of(arch: &str) -> (&str, &str) {
    match arch {
        "x86_64" => ("amd64", "SCMP_ARCH_X86_64"),
        "x86" => ("x86", "SCMP_ARCH_X86"),
        "aarch64" => ("arm64", "SCMP_ARCH_AARCH64"),
        "arm" => ("arm", "SCMP_ARCH_ARM"),
        "powerpc64" => ("ppc64le", "SCMP_ARCH_PPC64LE"),
        "s390x" => ("s390x", "SCMP_ARCH_S390X"),
        "riscv64" => ("riscv64", "SCMP_ARCH_RISCV64"),
        "loongarch64" => ("loong64", "SCMP_ARCH_LOONGARCH64"),
        other => (other, ""),
    }
}

/// Major and minor out of `5.10` or `6.1.0-13-amd64`.
pub fn version(text: &str) -> std::result::Result<(u32, u32), String> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(format!("{text:?} is no version of a kernel")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Machine = Machine { arch: "x86_64", kernel: (6, 1) };

    fn built_in(caps: &[&str], machine: &Machine) -> Value {
        let caps: Vec<String> = caps.iter().map(|&name| name.to_owned()).collect();
        resolve("built-in", BUILT_IN, &caps, machine).unwrap()
    }

    /// What becomes of a call without arguments that are looked at.
    fn verdict(profile: &Value, name: &str) -> Option<(String, u64)> {
        let rules = profile["syscalls"].as_array().unwrap().iter();
        let mut named = rules.filter(|rule| rule["names"].as_array().unwrap().contains(&json!(name)));
        let rule = named.find(|rule| rule.get("args").is_none())?;
        Some((rule["action"].as_str().unwrap().to_owned(), rule["errnoRet"].as_u64().unwrap_or(0)))
    }

    #[test]
    fn the_built_in_profile_follows_capabilities() {
        let (allow, refuse) = (Some(("SCMP_ACT_ALLOW".to_owned(), 0)), Some(("SCMP_ACT_ERRNO".to_owned(), 1)));
        let plain = built_in(&["CAP_CHOWN"], &NEW);
        assert_eq!(plain["architectures"], json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]));
        assert_eq!((&plain["defaultAction"], &plain["defaultErrnoRet"]), (&json!("SCMP_ACT_ERRNO"), &json!(38)));
        let admin = built_in(&["CAP_SYS_ADMIN", "CAP_SYSLOG"], &NEW);
        for name in ["mount", "unshare", "setns", "bpf", "syslog"] {
            assert_eq!((verdict(&plain, name), verdict(&admin, name)), (refuse.clone(), allow.clone()), "{name}");
        }
        for name in ["read", "execve", "ptrace", "arch_prctl"] {
            assert_eq!(verdict(&plain, name), allow, "{name}");
        }
        for name in ["keyctl", "io_uring_setup", "kexec_load"] {
            assert_eq!(verdict(&admin, name), refuse, "{name}");
        }
        assert_eq!(verdict(&plain, "clone3"), Some(("SCMP_ACT_ERRNO".to_owned(), 38)));
        assert_eq!((verdict(&plain, "clone"), verdict(&admin, "clone")), (None, allow));
    }

    #[test]
    fn no_rule_is_said_twice() {
        let profile = built_in(&["CAP_SYS_ADMIN", "CAP_SYSLOG", "CAP_BPF", "CAP_PERFMON"], &NEW);
        let mut seen = Vec::new();
        for rule in profile["syscalls"].as_array().unwrap() {
            for name in rule["names"].as_array().unwrap() {
                let one = (name, rule.get("args"));
                assert!(!seen.contains(&one), "{one:?}");
                seen.push(one);
            }
        }
    }

    #[test]
    fn the_built_in_profile_follows_machines() {
        let old = built_in(&[], &Machine { arch: "x86_64", kernel: (4, 7) });
        assert_eq!(verdict(&old, "ptrace"), None);
        let arm = built_in(&[], &Machine { arch: "aarch64", kernel: (6, 1) });
        assert_eq!(arm["architectures"], json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]));
        assert_eq!(verdict(&arm, "arch_prctl"), None);
        let flags = |profile: &Value| {
            let rules = profile["syscalls"].as_array().unwrap();
            let mut clones = rules.iter().filter(|rule| rule["names"] == json!(["clone"]));
            clones.next().unwrap()["args"][0]["index"].clone()
        };
        let s390x = built_in(&[], &Machine { arch: "s390x", kernel: (6, 1) });
        assert_eq!((flags(&arm), flags(&s390x)), (json!(0), json!(1)));
    }

    #[test]
    fn an_oci_profile_is_passed_as_it_is() {
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"x":1,
                       "syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#;
        assert_eq!(resolve("p", text, &[], &NEW).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn old_and_odd_profiles_are_understood() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"defaultErrno":"ENOSYS","archMap":null,
            "flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[
            {"name":"read","action":"SCMP_ACT_ALLOW","args":null,"includes":{},"excludes":{}},
            {"names":["bdflush"],"action":"SCMP_ACT_ERRNO","errnoRet":1,"errno":"EPERM","excludes":{"minKernel":"5.0"}}]}"#;
        assert_eq!(
            resolve("p", text, &[], &NEW).unwrap(),
            json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                    "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_ALLOW" }] })
        );
    }

    #[test]
    fn errors_name_the_profile() {
        for (text, why) in [
            ("{", "EOF"),
            ("{}", "defaultAction"),
            (r#"{"defaultAction":"x","architectures":["a"],"archMap":[{"architecture":"b"}]}"#, "exclude"),
            (r#"{"defaultAction":"x","syscalls":[{"action":"y","includes":{}}]}"#, "no system call"),
            (r#"{"defaultAction":"x","syscalls":[{"name":"a","action":"y","includes":{"minKernel":"new"}}]}"#, "new"),
        ] {
            let error = resolve("/some/profile", text, &[], &NEW).unwrap_err().to_string();
            assert!(error.contains("/some/profile") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn kernels_have_versions() {
        assert_eq!((version("6.18.44-fc"), version("4.8")), (Ok((6, 18)), Ok((4, 8))));
        assert!(version("x").is_err());
    }
}
