//! Resources: what may be asked for, as the runtime-spec has it, and what they are after an update.

use k8s_cri::v1::{HugepageLimit, LinuxContainerResources, LinuxContainerSecurityContext};
use serde_json::{Value, json};

use super::Device;
use crate::error::{Context, Error, Result};

/// What this host's cgroups can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// Version 2 and nothing else.
    pub unified: bool,
    /// Swap is counted.
    pub swap: bool,
    pub hugepages: bool,
    /// Version 2 counts reservations of huge pages, too, with a limit of their own.
    pub reserved: bool,
}

/// A container's resources with what it may do with devices.
pub fn resources(
    resources: &LinuxContainerResources,
    context: &LinuxContainerSecurityContext,
    devices: &[Device],
    cgroups: Cgroups,
) -> Result<Value> {
    let mut all = object(resources, cgroups)?;
    if resources.cpu_quota == -1 {
        leave_quota(&mut all);
    }
    let mut rules = vec![json!({ "allow": context.privileged, "access": "rwm" })];
    for device in devices.iter().filter(|_| !context.privileged) {
        rules.push(json!({
            "allow": true, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
            "access": device.permissions,
        }));
    }
    all["devices"] = Value::Array(rules);
    Ok(all)
}

/// Where there is no limit nothing needs to be said of it, and crun before 1.9 fails to with cgroup v1.
fn leave_quota(all: &mut Value) {
    if let Some(cpu) = all.get_mut("cpu").and_then(Value::as_object_mut) {
        cpu.remove("quota");
    }
}

fn check(resources: &LinuxContainerResources, cgroups: Cgroups) -> Result<()> {
    let refuse = |what: &str, value: &dyn std::fmt::Display, why: &str| {
        Err(Error::invalid(format!("resources.{what} is {value}, {why}")))
    };
    let (memory, swap) = (resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes);
    match resources {
        it if it.cpu_shares < 0 => return refuse("cpu_shares", &it.cpu_shares, "less than nothing"),
        it if it.cpu_period != 0 && !(1000..=1_000_000).contains(&it.cpu_period) => {
            return refuse("cpu_period", &it.cpu_period, "the kernel takes 1000 to 1000000 microseconds");
        }
        it if it.cpu_quota < -1 || (1..1000).contains(&it.cpu_quota) => {
            return refuse(
                "cpu_quota",
                &it.cpu_quota,
                "the kernel takes 1000 microseconds or more, and -1 for no limit",
            );
        }
        it if !(-1000..=1000).contains(&it.oom_score_adj) => {
            return refuse("oom_score_adj", &it.oom_score_adj, "the kernel takes -1000 to 1000");
        }
        _ if memory < -1 => return refuse("memory_limit_in_bytes", &memory, "less than nothing"),
        _ if swap < -1 => return refuse("memory_swap_limit_in_bytes", &swap, "less than nothing"),
        _ if swap > 0 && memory > swap => {
            return refuse("memory_swap_limit_in_bytes", &swap, "less than that of memory, which it contains");
        }
        _ => {}
    }
    for (what, value) in [("cpuset_cpus", &resources.cpuset_cpus), ("cpuset_mems", &resources.cpuset_mems)] {
        if !value.is_empty() && !is_list(value) {
            return refuse(what, value, "no list of numbers and ranges");
        }
    }
    for key in resources.unified.keys() {
        if !cgroups.unified {
            return refuse("unified", key, "and this host has cgroup v1");
        }
        if key.contains('/') || !key.contains('.') {
            return refuse("unified", key, "no file of a cgroup");
        }
    }
    Ok(())
}

/// `0-3,7`
fn is_list(text: &str) -> bool {
    let number = |word: &str| word.parse::<u32>();
    text.split(',').all(|part| match part.split_once('-') {
        Some((from, to)) => matches!((number(from), number(to)), (Ok(from), Ok(to)) if from <= to),
        None => number(part).is_ok(),
    })
}

/// Resources as the runtime-spec has them; what is zero or empty is not said, and nothing is said of pids: the pod's
/// cgroup limits them.
pub fn object(resources: &LinuxContainerResources, cgroups: Cgroups) -> Result<Value> {
    check(resources, cgroups)?;
    let mut all = json!({});
    let mut set = |room: &str, key: &str, value: Value| all[room][key] = value;
    for (room, key, value) in [
        ("cpu", "shares", resources.cpu_shares),
        ("cpu", "quota", resources.cpu_quota),
        ("cpu", "period", resources.cpu_period),
        ("memory", "limit", resources.memory_limit_in_bytes),
        ("memory", "swap", swap(resources, cgroups)),
    ] {
        if value != 0 {
            set(room, key, json!(value));
        }
    }
    for (key, value) in [("cpus", &resources.cpuset_cpus), ("mems", &resources.cpuset_mems)] {
        if !value.is_empty() {
            set("cpu", key, json!(value));
        }
    }
    // The kubelet names every size of the host, also where the kernel counts none of them.
    if cgroups.hugepages && !resources.hugepage_limits.is_empty() {
        let limits = resources.hugepage_limits.iter();
        let limits = limits.map(|limit| json!({ "pageSize": limit.page_size, "limit": limit.limit })).collect();
        all["hugepageLimits"] = Value::Array(limits);
    }
    if !resources.unified.is_empty() {
        all["unified"] = json!(resources.unified);
    }
    Ok(all)
}

/// Memory and swap together. Without a word a container has no swap: its limit of memory is to mean what it says.
fn swap(resources: &LinuxContainerResources, cgroups: Cgroups) -> i64 {
    match resources.memory_swap_limit_in_bytes {
        _ if !cgroups.swap => 0,
        0 => resources.memory_limit_in_bytes,
        swap => swap,
    }
}

/// What resources are after an update, and the object for the runtime.
///
/// `oom_score_adj` stays: it belongs to processes, and no runtime changes it afterwards.
pub fn updated(
    before: Option<&LinuxContainerResources>,
    change: &LinuxContainerResources,
    cgroups: Cgroups,
) -> Result<(LinuxContainerResources, Vec<u8>)> {
    check(change, cgroups)?;
    let mut after = before.cloned().unwrap_or_default();
    let no_swap = after.memory_swap_limit_in_bytes == after.memory_limit_in_bytes;
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
    if no_swap && change.memory_swap_limit_in_bytes == 0 {
        after.memory_swap_limit_in_bytes = after.memory_limit_in_bytes;
    }
    for (old, new) in [(&mut after.cpuset_cpus, &change.cpuset_cpus), (&mut after.cpuset_mems, &change.cpuset_mems)] {
        if !new.is_empty() {
            old.clone_from(new);
        }
    }
    if !change.hugepage_limits.is_empty() {
        after.hugepage_limits.clone_from(&change.hugepage_limits);
    }
    after.unified.extend(change.unified.clone());
    let mut oci = object(&after, cgroups)?;
    if after.cpu_quota == -1 && before.is_none_or(|before| before.cpu_quota <= 0) {
        leave_quota(&mut oci);
    }
    if cgroups.unified && cgroups.hugepages {
        let known = before.map_or(&[] as &[_], |before| &before.hugepage_limits);
        name_huge_pages(
            &mut oci,
            after.hugepage_limits.iter().filter(|limit| !known.contains(limit)),
            cgroups.reserved,
        );
    }
    let oci = serde_json::to_vec(&oci).context(|| "Failed to write resources")?;
    Ok((after, oci))
}

/// Limits of huge pages once more, as files: runc passes over the others in an update. Only those that change, since the
/// kubelet repeats all of them whatever it updates.
fn name_huge_pages<'a>(all: &mut Value, changed: impl Iterator<Item = &'a HugepageLimit>, reserved: bool) {
    for limit in changed {
        for kind in if reserved { &["max", "rsvd.max"][..] } else { &["max"] } {
            let value = &mut all["unified"][format!("hugetlb.{}.{kind}", limit.page_size)];
            if value.is_null() {
                *value = json!(limit.limit.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Cgroups = Cgroups { unified: true, swap: true, hugepages: true, reserved: true };
    const NONE: Cgroups = Cgroups { unified: false, swap: false, hugepages: false, reserved: false };

    fn memory(limit: i64, swap: i64) -> LinuxContainerResources {
        LinuxContainerResources { memory_limit_in_bytes: limit, memory_swap_limit_in_bytes: swap, ..Default::default() }
    }

    #[test]
    fn swap_is_memory_where_nothing_is_said() {
        for (asked, cgroups, expected) in [
            (memory(0, 0), ALL, json!({})),
            (memory(5, 0), ALL, json!({ "memory": { "limit": 5, "swap": 5 } })),
            (memory(5, 8), ALL, json!({ "memory": { "limit": 5, "swap": 8 } })),
            (memory(5, -1), ALL, json!({ "memory": { "limit": 5, "swap": -1 } })),
            (memory(5, 8), NONE, json!({ "memory": { "limit": 5 } })),
        ] {
            assert_eq!(object(&asked, cgroups).unwrap(), expected);
        }
    }

    #[test]
    fn no_quota_is_not_said_at_first() {
        let asked = LinuxContainerResources { cpu_quota: -1, ..Default::default() };
        let new = resources(&asked, &LinuxContainerSecurityContext::default(), &[], ALL).unwrap();
        assert_eq!(new["cpu"], json!({}));
        let limited = LinuxContainerResources { cpu_quota: 5000, ..Default::default() };
        let sent = |before| -> Value { serde_json::from_slice(&updated(before, &asked, ALL).unwrap().1).unwrap() };
        assert_eq!(sent(Some(&asked))["cpu"], json!({}));
        assert_eq!(sent(Some(&limited))["cpu"], json!({ "quota": -1 }));
    }

    #[test]
    fn what_the_host_does_not_count_is_passed_over() {
        let asked = LinuxContainerResources {
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            ..Default::default()
        };
        let limits = json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }] });
        assert_eq!((object(&asked, ALL).unwrap(), object(&asked, NONE).unwrap()), (limits, json!({})));
    }

    #[test]
    fn nonsense_is_refused() {
        type R = LinuxContainerResources;
        for (bad, word) in [
            (R { cpu_shares: -1, ..R::default() }, "cpu_shares"),
            (R { cpu_period: 10, ..R::default() }, "cpu_period"),
            (R { cpu_quota: 999, ..R::default() }, "cpu_quota"),
            (R { cpu_quota: -2, ..R::default() }, "cpu_quota"),
            (R { oom_score_adj: 1001, ..R::default() }, "oom_score_adj"),
            (R { cpuset_cpus: "0-".into(), ..R::default() }, "cpuset_cpus"),
            (R { cpuset_mems: "3-1".into(), ..R::default() }, "cpuset_mems"),
            (R { unified: [("../x.y".to_owned(), String::new())].into(), ..R::default() }, "unified"),
            (memory(-2, 0), "memory_limit"),
            (memory(8, 5), "memory_swap"),
        ] {
            let error = object(&bad, ALL).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let unified = R { unified: [("memory.high".to_owned(), "1".to_owned())].into(), ..R::default() };
        assert_eq!(object(&unified, ALL).unwrap(), json!({ "unified": { "memory.high": "1" } }));
        assert!(object(&unified, NONE).unwrap_err().to_string().contains("cgroup v1"));
        assert!(is_list("0,2-4") && !is_list("") && !is_list("a"));
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let before = LinuxContainerResources { cpu_shares: 100, oom_score_adj: 7, ..memory(1, 0) };
        let change = LinuxContainerResources { oom_score_adj: 9, ..memory(2, 0) };
        let (after, oci) = updated(Some(&before), &change, NONE).unwrap();
        assert_eq!((after.cpu_shares, after.memory_limit_in_bytes, after.oom_score_adj), (100, 2, 7));
        let oci: Value = serde_json::from_slice(&oci).unwrap();
        assert_eq!(oci, json!({ "cpu": { "shares": 100 }, "memory": { "limit": 2 } }));
    }

    #[test]
    fn changed_huge_pages_are_named_as_files() {
        let with = |sizes: &[(&str, u64)]| LinuxContainerResources {
            hugepage_limits: sizes
                .iter()
                .map(|(size, limit)| HugepageLimit { page_size: (*size).into(), limit: *limit })
                .collect(),
            ..Default::default()
        };
        let before = with(&[("2MB", 4), ("1GB", 0)]);
        let sent = |change, cgroups| -> Value {
            serde_json::from_slice(&updated(Some(&before), &change, cgroups).unwrap().1).unwrap()
        };
        let files = json!({ "hugetlb.2MB.max": "8", "hugetlb.2MB.rsvd.max": "8" });
        assert_eq!(sent(with(&[("2MB", 8), ("1GB", 0)]), ALL)["unified"], files);
        let older = Cgroups { reserved: false, ..ALL };
        assert_eq!(sent(with(&[("2MB", 8)]), older)["unified"], json!({ "hugetlb.2MB.max": "8" }));
        assert_eq!(sent(before.clone(), ALL)["unified"], Value::Null);
        assert_eq!(sent(with(&[("2MB", 8)]), NONE), json!({}));
        let mut own = with(&[("2MB", 8)]);
        own.unified.insert("hugetlb.2MB.max".into(), "9".into());
        let files = json!({ "hugetlb.2MB.max": "9", "hugetlb.2MB.rsvd.max": "8" });
        assert_eq!(sent(own, ALL)["unified"], files);
    }

    #[test]
    fn no_swap_stays_none() {
        let swap = |before, change| updated(Some(&before), &change, ALL).unwrap().0.memory_swap_limit_in_bytes;
        assert_eq!((swap(memory(5, 5), memory(9, 0)), swap(memory(5, 12), memory(9, 0))), (9, 12));
        assert!(updated(Some(&memory(5, 6)), &memory(9, 0), ALL).is_err());
    }
}
