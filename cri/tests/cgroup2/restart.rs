//! A server that is killed, and the next one.

use std::fs;

use k8s_cri::v1::*;

use crate::cgroups::{self, Parent};
use crate::host::{Host, go, waiting};
use crate::oom::{GREEDY, small};
use crate::suite::{Case, Outcome, check, same, until};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "restart/adopts",
            "after kill -9 the next one knows who runs, and how others have ended meanwhile",
            adopts,
        ),
        Case::new("restart/removes", "after kill -9 the next one removes what the one before has made", removes),
    ]
}

fn adopts(host: &mut Host) -> Outcome {
    let parent = Parent::new("podadopts")?;
    let pod = host.pod(&parent.path)?;
    let runs = host.run(&pod, "runs", &waiting("exit 4"), small())?;
    let ends = host.plain(&pod, "ends", &waiting("exit 21"))?;
    let greedy = host.run(&pod, "greedy", &waiting(&format!("exec {GREEDY}")), small())?;
    let mut pids = Vec::new();
    for container in [&runs, &ends, &greedy] {
        host.says(container, "up")?;
        pids.push(host.pid(container)?);
    }
    host.kill()?;
    for pid in &pids[1..] {
        go(*pid)?;
        until(&format!("the end of {pid}"), || Ok((!fs::exists(format!("/proc/{pid}"))?).then_some(())))?;
    }
    host.serve()?;
    same("the end of one", host.ended(&ends)?, (21, "Error".to_owned()))?;
    same("the end of a greedy one", host.ended(&greedy)?, (137, "OOMKilled".to_owned()))?;
    check(host.is(&runs, ContainerState::ContainerRunning)?, "the one that runs is not running")?;
    same("its process", host.pid(&runs)?, pids[0])?;
    let resources = LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..LinuxContainerResources::default() };
    let container_id = runs.clone();
    let request = UpdateContainerResourcesRequest { container_id, linux: Some(resources), ..Default::default() };
    host.ask(async |client| client.update_container_resources(request).await)?;
    same("its new limit", cgroups::read(&host.cgroup(&runs)?, "memory.max")?, (48 << 20).to_string())?;
    go(pids[0])?;
    same("its end", host.ended(&runs)?, (4, "Error".to_owned()))?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

fn removes(host: &mut Host) -> Outcome {
    let parent = Parent::new("podremoves")?;
    let below = host.pod(&parent.path)?;
    let own = host.pod_of_one("")?;
    for pod in [&below, &own] {
        host.plain(pod, "main", "sleep 3000 & exec sleep 3001")?;
    }
    host.kill()?;
    host.serve()?;
    host.remove_pod(&below.id)?;
    host.remove_pod(&own.id)?;
    let of_own = format!("/conward/{}", own.id);
    check(!cgroups::dir(&of_own).exists(), format!("{of_own} is there after the pod"))?;
    parent.remove()
}
