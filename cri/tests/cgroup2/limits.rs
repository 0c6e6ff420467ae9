//! Limits: what was asked for is in the cgroup, at the start and after an update.

use std::collections::HashMap;

use k8s_cri::v1::*;
use tonic::Code;

use crate::cgroups::{self, Parent};
use crate::host::{Host, Pod, go, waiting};
use crate::suite::{Case, Outcome, check, same};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("limits/create", "memory without swap, cpu, cpuset and unified keys are in the cgroup", create),
        Case::new("limits/update", "UpdateContainerResources changes them, and says so in the status", update),
        Case::new("limits/update-running", "a limit of processes that was lowered holds at once", lowered),
        Case::new("limits/swap", "a limit of swap, and one by a unified key, which is the later word", swap),
        Case::new("limits/huge-pages", "huge pages of the size that this host has", huge_pages),
        Case::new(
            "limits/unified-unknown",
            "a key that the kernel does not know is an error and leaves nothing",
            unknown,
        ),
        Case::new("limits/none", "without limits there are none", none),
    ]
}

const MIB: i64 = 1 << 20;

fn unified(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn limited() -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        cpu_period: 50_000,
        cpu_quota: 20_000,
        cpu_shares: 512,
        cpuset_cpus: "0".into(),
        oom_score_adj: 321,
        unified: unified(&[("memory.high", "50331648"), ("pids.max", "33"), ("memory.min", "1048576")]),
        ..LinuxContainerResources::default()
    }
}

/// Compares files of a container's cgroup.
fn files(host: &Host, container: &str, expected: &[(&str, &str)]) -> Outcome {
    let cgroup = host.cgroup(container)?;
    expected.iter().try_for_each(|(file, value)| same(file, cgroups::read(&cgroup, file)?, (*value).to_owned()))
}

fn create(host: &mut Host) -> Outcome {
    let parent = Parent::new("podlimits")?;
    let pod = host.pod(&parent.path)?;
    let container = host.run(&pod, "main", "cat /proc/self/oom_score_adj; exec sleep 1000", limited())?;
    files(
        host,
        &container,
        &[
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("memory.high", "50331648"),
            ("memory.min", "1048576"),
            ("cpu.max", "20000 50000"),
            ("cpuset.cpus", "0"),
            ("pids.max", "33"),
        ],
    )?;
    let weight = weight(host, &container)?;
    check((15..=70).contains(&weight), format!("cpu.weight is {weight}"))?;
    host.says(&container, "321")?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

/// 2 to 262144 shares are a weight of 1 to 10000, by a formula that changes with the runtimes.
fn weight(host: &Host, container: &str) -> Outcome<u64> {
    Ok(cgroups::read(&host.cgroup(container)?, "cpu.weight")?.parse()?)
}

fn change(host: &Host, container: &str, resources: LinuxContainerResources) -> Outcome {
    let request = UpdateContainerResourcesRequest {
        container_id: container.to_owned(),
        linux: Some(resources),
        ..UpdateContainerResourcesRequest::default()
    };
    host.ask(async |client| client.update_container_resources(request).await).map(drop)
}

fn update(host: &mut Host) -> Outcome {
    let parent = Parent::new("podupdate")?;
    let pod = host.pod(&parent.path)?;
    let container = host.run(&pod, "main", "exec sleep 1000", limited())?;
    let before = weight(host, &container)?;
    change(
        host,
        &container,
        LinuxContainerResources {
            memory_limit_in_bytes: 96 * MIB,
            cpu_quota: 30_000,
            cpu_shares: 2048,
            unified: unified(&[("memory.high", "83886080"), ("pids.max", "44")]),
            ..LinuxContainerResources::default()
        },
    )?;
    let changed = [
        ("memory.max", "100663296"),
        ("memory.swap.max", "0"),
        ("memory.high", "83886080"),
        ("memory.min", "1048576"),
        ("cpu.max", "30000 50000"),
        ("pids.max", "44"),
        ("cpuset.cpus", "0"),
    ];
    files(host, &container, &changed)?;
    let after = weight(host, &container)?;
    check(after > before, format!("cpu.weight was {before} and is {after}"))?;
    let resources = host.status(&container)?.resources.and_then(|all| all.linux).ok_or("no resources")?;
    let seen = (resources.memory_limit_in_bytes, resources.cpu_quota, resources.cpu_period, resources.cpu_shares);
    same("the status", seen, (96 * MIB, 30_000, 50_000, 2048))?;
    same("unified keys of the status", resources.unified.get("pids.max").map(String::as_str), Some("44"))?;
    // A quota of -1 takes the limit away again, as a kubelet does that resizes a pod.
    change(host, &container, LinuxContainerResources { cpu_quota: -1, ..LinuxContainerResources::default() })?;
    files(host, &container, &[("cpu.max", "max 50000"), ("memory.max", "100663296"), ("pids.max", "44")])?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

fn lowered(host: &mut Host) -> Outcome {
    let pod = host.pod("")?;
    // Not an exec: a runtime has threads of its own while it is in the container's cgroup.
    let container = host.plain(&pod, "main", &waiting("for n in 1 2 3 4 5 6 7 8; do sleep 3 & done; wait"))?;
    host.says(&container, "up")?;
    change(
        host,
        &container,
        LinuxContainerResources { unified: unified(&[("pids.max", "5")]), ..LinuxContainerResources::default() },
    )?;
    go(host.pid(&container)?)?;
    same("the shell's end", host.ended(&container)?.0, 2)?;
    let said = host.said(&container)?;
    check(said.contains("fork"), format!("eight processes where five may be: {said:?}"))
}

fn swap(host: &mut Host) -> Outcome {
    let pod = host.pod("")?;
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 80 * MIB,
        ..LinuxContainerResources::default()
    };
    let container = host.run(&pod, "both", "exec sleep 1000", resources)?;
    files(host, &container, &[("memory.max", "67108864"), ("memory.swap.max", "16777216")])?;
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        unified: unified(&[("memory.swap.max", "1048576")]),
        ..LinuxContainerResources::default()
    };
    let container = host.run(&pod, "key", "exec sleep 1000", resources)?;
    files(host, &container, &[("memory.max", "67108864"), ("memory.swap.max", "1048576")])?;
    let resources = LinuxContainerResources { memory_limit_in_bytes: 96 * MIB, ..LinuxContainerResources::default() };
    change(host, &container, resources)?;
    files(host, &container, &[("memory.max", "100663296"), ("memory.swap.max", "1048576")])
}

fn huge_pages(host: &mut Host) -> Outcome {
    let pod = host.pod("")?;
    let limits = |limit| LinuxContainerResources {
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit }],
        ..LinuxContainerResources::default()
    };
    let container = host.run(&pod, "main", "exec sleep 1000", limits(4 << 20))?;
    // Older runtimes leave reservations alone here.
    files(host, &container, &[("hugetlb.2MB.max", "4194304")])?;
    change(host, &container, limits(8 << 20))?;
    files(host, &container, &[("hugetlb.2MB.max", "8388608"), ("hugetlb.2MB.rsvd.max", "8388608")])
}

fn unknown(host: &mut Host) -> Outcome {
    let parent = Parent::new("podunknown")?;
    let pod = host.pod(&parent.path)?;
    let with = |key: &str| {
        let resources =
            LinuxContainerResources { unified: unified(&[(key, "1")]), ..LinuxContainerResources::default() };
        Host::wish(&pod, "main", "exec sleep 1000", resources)
    };
    let wish = with("memory.nonsense");
    let said = host.refused(Code::Unknown, async |client| client.create_container(wish).await)?;
    check(said.contains("nonsense"), format!("the error does not name the key: {said}"))?;
    let wish = with("../podunknown/memory.max");
    host.refused(Code::InvalidArgument, async |client| client.create_container(wish).await)?;
    same("processes of the pod", cgroups::read(&parent.path, "pids.current")?, "0".to_owned())?;
    let left: Vec<String> =
        cgroups::all()?.into_iter().filter(|path| path.starts_with(&format!("{}/", parent.path))).collect();
    check(left.is_empty(), format!("left of what was refused: {left:?}"))?;
    let container = host.create(again(&pod))?;
    host.begin(&container)?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

/// The name of the one that was refused is free.
fn again(pod: &Pod) -> CreateContainerRequest {
    Host::wish(pod, "main", "exec sleep 1000", LinuxContainerResources::default())
}

fn none(host: &mut Host) -> Outcome {
    let pod = host.pod("")?;
    let container = host.plain(&pod, "main", "exec sleep 1000")?;
    files(
        host,
        &container,
        &[("memory.max", "max"), ("cpu.max", "max 100000"), ("pids.max", "max"), ("cpuset.cpus", "")],
    )
}
