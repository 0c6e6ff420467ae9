//! Commands in a container: they are in its cgroup, and their time can be limited.

use tonic::Code;

use crate::cgroups::{self, Parent};
use crate::host::{Host, go, waiting};
use crate::oom::{GREEDY, small};
use crate::suite::{Case, Outcome, check, same, until};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("exec/cgroup", "a command is in the container's cgroup", cgroup),
        Case::new(
            "exec/delegated",
            "in a container that has divided its cgroup among others, as a systemd does",
            delegated,
        ),
        Case::new(
            "exec/timeout",
            "a command that takes too long is killed with its descendants in any session, and nobody else",
            timeout,
        ),
    ]
}

fn cgroup(host: &mut Host) -> Outcome {
    let parent = Parent::new("podexec")?;
    let pod = host.pod(&parent.path)?;
    let container = host.plain(&pod, "main", "exec sleep 1000")?;
    let own = host.cgroup(&container)?;
    host.exec(&container, "sleep 77 </dev/null >/dev/null 2>&1 &")?;
    let inside = cgroups::read(&own, "cgroup.procs")?;
    same("processes of the container", inside.lines().count(), 2)?;
    same("the command's view", host.exec(&container, "cat /proc/self/cgroup")?, "0::/".to_owned())?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

fn delegated(host: &mut Host) -> Outcome {
    let parent = Parent::new("poddelegated")?;
    let pod = host.privileged_pod(&parent.path)?;
    // A cgroup that has controllers for others has no processes.
    let script = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup) && mkdir init && echo 0 >init/cgroup.procs && \
                  echo +memory +pids >cgroup.subtree_control || exit 1";
    let script = format!("{script}; {}", waiting(&format!("exec {GREEDY}")));
    let container = host.run(&pod, "main", &script, small())?;
    host.says(&container, "up")?;
    let whole = format!("{}/{container}", parent.path);
    same("the first process", host.cgroup(&container)?, format!("{whole}/init"))?;
    host.exec(&container, "sleep 77 </dev/null >/dev/null 2>&1 &")?;
    let sleeper = host.exec(&container, "ps -o pid,args | grep 'sleep 7[7]' | wc -l")?;
    same("what the command has left", sleeper.as_str(), "1")?;
    let inside = cgroups::all()?.into_iter().filter(|path| path.starts_with(&whole));
    let counts: Vec<usize> =
        inside.map(|path| Ok(cgroups::read(&path, "cgroup.procs")?.lines().count())).collect::<Outcome<_>>()?;
    check(counts.iter().sum::<usize>() >= 2, format!("processes of the container's cgroups: {counts:?}"))?;
    go(host.pid(&container)?)?;
    same("the end", host.ended(&container)?, (137, "OOMKilled".to_owned()))?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

fn timeout(host: &mut Host) -> Outcome {
    let parent = Parent::new("podtimeout")?;
    let pod = host.pod(&parent.path)?;
    let container = host.plain(&pod, "main", "sleep 6666 & exec sleep 1000")?;
    let request = Host::exec_request(&container, "sleep 7777 & setsid sleep 8888 & sleep 9999", 4);
    let said = host.refused(Code::DeadlineExceeded, async |client| client.exec_sync(request).await)?;
    check(said.contains("timed out"), format!("the error: {said}"))?;
    let cgroup = host.cgroup(&container)?;
    until("the end of what the command has started", || {
        Ok((cgroups::read(&cgroup, "cgroup.procs")?.lines().count() == 2).then_some(()))
    })?;
    let left = host.exec(&container, "ps -o args")?;
    check(!["7777", "8888", "9999"].iter().any(|word| left.contains(word)), format!("left of it: {left}"))?;
    check(left.contains("sleep 6666") && left.contains("sleep 1000"), format!("left of the container: {left}"))?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}
