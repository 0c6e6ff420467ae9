//! Where containers are while they live, and that nothing is left of them.

use std::fs;

use k8s_cri::v1::*;
use tonic::Code;

use crate::cgroups::{self, Parent};
use crate::host::Host;
use crate::suite::{Case, Fail, Outcome, check, same, until};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("life/driver", "cgroupfs is the driver, and everything is ready", driver),
        Case::new("life/parent", "a container in the kubelet's cgroup, which is empty and the kubelet's again", parent),
        Case::new("life/own", "without a parent the pod has a cgroup of its own, which goes with it", own),
        Case::new("life/namespace", "a container sees its cgroup as the root, and cannot change it", namespace),
        Case::new("life/nested", "cgroups that a container has made go with it, and who is in them", nested),
        Case::new(
            "life/shared-pids",
            "a pid namespace for the whole pod: all see each other, and one end is one end",
            shared,
        ),
        Case::new("life/no-users", "where files cannot be shown with other ids, user namespaces are refused", no_users),
        Case::new(
            "life/stop-kills-all",
            "what a container has started ends with it, also in a shared pid namespace",
            strays,
        ),
    ]
}

fn driver(host: &mut Host) -> Outcome {
    let answer = host.ask(async |client| client.runtime_config(RuntimeConfigRequest::default()).await)?;
    let driver = answer.linux.ok_or("no configuration for Linux")?.cgroup_driver;
    same("driver", driver, CgroupDriver::Cgroupfs as i32)?;
    let answer = host.ask(async |client| client.status(StatusRequest { verbose: true }).await)?;
    let conditions = answer.status.unwrap_or_default().conditions;
    let ready = conditions.iter().find(|condition| condition.r#type == "RuntimeReady").map(|one| one.status);
    same("RuntimeReady", ready, Some(true))
}

fn parent(host: &mut Host) -> Outcome {
    let parent = Parent::new("podlife")?;
    let pod = host.pod(&parent.path)?;
    let container = host.plain(&pod, "main", "echo up; exec sleep 1000")?;
    host.says(&container, "up")?;
    let own = format!("{}/{container}", parent.path);
    same("the container's cgroup", host.cgroup(&container)?, own.clone())?;
    let monitor = cgroups::of(host.monitor(&container)?)?;
    check(!monitor.starts_with("/kubepods"), format!("the monitor is in {monitor}, which has the pod's limits"))?;
    host.stop(&container, 0)?;
    same("exit code", host.ended(&container)?.0, 137)?;
    check(!cgroups::dir(&own).exists(), format!("{own} is there after the stop"))?;
    host.remove(&container)?;
    let second = host.plain(&pod, "second", "exit 7")?;
    same("the second's end", host.ended(&second)?, (7, "Error".to_owned()))?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

fn own(host: &mut Host) -> Outcome {
    let pod = host.pod("")?;
    let of_pod = format!("/conward/{}", pod.id);
    let container = host.plain(&pod, "main", "exec sleep 1000")?;
    same("the container's cgroup", host.cgroup(&container)?, format!("{of_pod}/{container}"))?;
    host.stop(&container, 0)?;
    host.remove(&container)?;
    let left = fs::read_dir(cgroups::dir(&of_pod)).into_iter().flatten().flatten();
    let left: Vec<_> = left.filter(|entry| entry.path().is_dir()).collect();
    check(left.is_empty(), format!("left of the container: {left:?}"))?;
    host.remove_pod(&pod.id)?;
    check(!cgroups::dir(&of_pod).exists(), format!("{of_pod} is there after the pod"))
}

fn namespace(host: &mut Host) -> Outcome {
    let parent = Parent::new("podview")?;
    let pod = host.pod(&parent.path)?;
    let limits = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..LinuxContainerResources::default() };
    let container = host.run(&pod, "main", "exec sleep 1000", limits)?;
    same("its own view", host.exec(&container, "cat /proc/self/cgroup")?, "0::/".to_owned())?;
    let limit = host.exec(&container, "cat /sys/fs/cgroup/memory.max")?;
    same("its limit, from inside", limit, (64 << 20).to_string())?;
    host.exec(&container, "! mkdir /sys/fs/cgroup/x 2>/dev/null")?;
    host.exec(&container, "! echo max 2>/dev/null >/sys/fs/cgroup/memory.max")?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

fn nested(host: &mut Host) -> Outcome {
    let parent = Parent::new("podnested")?;
    let pod = host.privileged_pod(&parent.path)?;
    // A privileged container has the host's view.
    let script = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup) && mkdir -p inner/most || exit 1; sleep 1001 & \
                  echo $! >inner/most/cgroup.procs && echo up; exec sleep 1000";
    let container = host.plain(&pod, "main", script)?;
    host.says(&container, "up")?;
    let inner = format!("{}/inner/most", host.cgroup(&container)?);
    let inside: i32 = cgroups::read(&inner, "cgroup.procs")?.parse()?;
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = host.ask(async |client| client.pod_sandbox_stats(request).await)?.stats.unwrap_or_default();
    let count = stats.linux.unwrap_or_default().process.unwrap_or_default().process_count.unwrap_or_default().value;
    same("processes", count, 2)?;
    host.stop(&container, 0)?;
    host.remove(&container)?;
    check(!fs::exists(format!("/proc/{inside}"))?, format!("process {inside} is there after the removal"))?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

fn shared(host: &mut Host) -> Outcome {
    let parent = Parent::new("podshared")?;
    let pod = host.pod_of_one(&parent.path)?;
    let first = host.plain(&pod, "first", "exec sleep 1111")?;
    let second = host.plain(&pod, "second", "exec sleep 2222")?;
    let namespace = |container| -> Outcome<_> { Ok(fs::read_link(format!("/proc/{}/ns/pid", host.pid(container)?))?) };
    same("pid namespaces", namespace(&first)?, namespace(&second)?)?;
    let seen = host.exec(&second, "ps -o args")?;
    check(seen.contains("sleep 1111") && seen.contains("sleep 2222"), format!("both see each other: {seen}"))?;
    for container in [&first, &second] {
        same("cgroup", host.cgroup(container)?, format!("{}/{container}", parent.path))?;
    }
    host.stop(&first, 0)?;
    same("the first's end", host.ended(&first)?.0, 137)?;
    check(host.is(&second, ContainerState::ContainerRunning)?, "the second ended with the first")?;
    let seen = host.exec(&second, "ps -o args")?;
    check(!seen.contains("sleep 1111"), format!("left of the first: {seen}"))?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

/// The machine's file systems are such. What a pod with a user namespace does is with the cases of `every_rpc`.
fn no_users(host: &mut Host) -> Outcome {
    let status = host.ask(async |client| client.status(StatusRequest::default()).await)?;
    let has = status.runtime_handlers.iter().any(|handler| handler.features.is_some_and(|has| has.user_namespaces));
    if has {
        return Err(Fail::Skip("this kernel shows them".to_owned()));
    }
    let map = IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };
    let users = UserNamespace { mode: NamespaceMode::Pod as i32, uids: vec![map], gids: vec![map] };
    let options = NamespaceOption { userns_options: Some(users), ..NamespaceOption::default() };
    let metadata = PodSandboxMetadata { name: "users".into(), uid: "u".into(), namespace: "n".into(), attempt: 0 };
    let context =
        LinuxSandboxSecurityContext { namespace_options: Some(options), ..LinuxSandboxSecurityContext::default() };
    let linux = LinuxPodSandboxConfig { security_context: Some(context), ..LinuxPodSandboxConfig::default() };
    let config = PodSandboxConfig { metadata: Some(metadata), linux: Some(linux), ..PodSandboxConfig::default() };
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: host.handler.clone() };
    let said = host.refused(Code::Unimplemented, async |client| client.run_pod_sandbox(request).await)?;
    check(said.contains("User namespaces"), format!("it says {said}"))?;
    let pods = host.ask(async |client| client.list_pod_sandbox(ListPodSandboxRequest::default()).await)?;
    same("pods", pods.items.len(), 0)
}

fn strays(host: &mut Host) -> Outcome {
    for together in [false, true] {
        let parent = Parent::new("podstrays")?;
        let pod = if together { host.pod_of_one(&parent.path)? } else { host.pod(&parent.path)? };
        let stray = "setsid sh -c 'trap \"\" TERM; sleep 5555 & wait; sleep 5556' </dev/null >/dev/null 2>&1 &";
        let container = host.plain(&pod, "main", &format!("{stray} echo up; exec sleep 1000"))?;
        host.says(&container, "up")?;
        let cgroup = host.cgroup(&container)?;
        let inside = until("three processes", || {
            let inside = cgroups::read(&cgroup, "cgroup.procs")?;
            Ok((inside.lines().count() == 3).then_some(inside))
        })?;
        host.stop(&container, 1)?;
        let own =
            |pid: &&str| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&cgroup));
        let left: Vec<&str> = inside.lines().filter(own).collect();
        check(left.is_empty(), format!("processes {left:?} are there after the stop; one namespace: {together}"))?;
        host.remove_pod(&pod.id)?;
        parent.remove()?;
    }
    Ok(())
}
