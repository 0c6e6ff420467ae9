//! Who fell to the OOM killer, and what the status says of it.

use k8s_cri::v1::LinuxContainerResources;

use crate::cgroups::Parent;
use crate::host::{Host, go};
use crate::stats::{metric, metrics_of};
use crate::suite::{Case, Outcome, check, same};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("oom/init", "the first process is killed: 137 and OOMKilled", init),
        Case::new("oom/child", "only a child is killed: the container goes on, and its end is its own", child),
        Case::new(
            "oom/group",
            "with memory.oom.group, as the kubelet asks for it, a child's end is everybody's",
            group,
        ),
        Case::new("oom/pod", "the pod's limit is met, and the container has none: OOMKilled", pod),
        Case::new("oom/none", "a kill without a shortage, at the same limit: 137 and not OOMKilled", none),
    ]
}

/// Small enough to be full at once, large enough for a runtime to start in.
const MEMORY: i64 = 24 << 20;
/// More than that in one buffer.
pub const GREEDY: &str = "dd if=/dev/zero of=/dev/null bs=64M count=1";

pub fn small() -> LinuxContainerResources {
    LinuxContainerResources { memory_limit_in_bytes: MEMORY, ..LinuxContainerResources::default() }
}

fn killed() -> (i32, String) {
    (137, "OOMKilled".to_owned())
}

fn init(host: &mut Host) -> Outcome {
    let parent = Parent::new("podoom")?;
    let pod = host.pod(&parent.path)?;
    let container = host.run(&pod, "main", &format!("exec {GREEDY}"), small())?;
    same("the end", host.ended(&container)?, killed())?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

fn child(host: &mut Host) -> Outcome {
    let pod = host.pod("")?;
    let script = format!("{GREEDY}; echo child $?; until [ -e /go ]; do sleep 0.1; done; exit 0");
    let container = host.run(&pod, "main", &script, small())?;
    host.says(&container, "child 137")?;
    same("events in the metrics", metric(&metrics_of(host, &pod)?.1, "container_oom_events_total")?, 1)?;
    go(host.pid(&container)?)?;
    same("the end", host.ended(&container)?, (0, "Completed".to_owned()))
}

fn group(host: &mut Host) -> Outcome {
    let pod = host.pod("")?;
    let mut resources = small();
    resources.unified.insert("memory.oom.group".into(), "1".into());
    let container = host.run(&pod, "main", &format!("{GREEDY}; echo survived; exec sleep 1000"), resources)?;
    same("the end", host.ended(&container)?, killed())?;
    check(!host.said(&container)?.contains("survived"), "somebody survived")
}

fn pod(host: &mut Host) -> Outcome {
    let parent = Parent::new("podfull")?;
    parent.write("memory.max", &MEMORY.to_string())?;
    parent.write("memory.swap.max", "0")?;
    let pod = host.pod(&parent.path)?;
    let container = host.plain(&pod, "main", &format!("exec {GREEDY}"))?;
    same("the end", host.ended(&container)?, killed())?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

fn none(host: &mut Host) -> Outcome {
    let pod = host.pod("")?;
    let container = host.run(&pod, "main", "exec sleep 1000", small())?;
    host.stop(&container, 0)?;
    same("the end", host.ended(&container)?, (137, "Error".to_owned()))
}
