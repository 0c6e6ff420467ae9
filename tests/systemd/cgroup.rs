//! systemd's own cgroups: the runtime makes a scope, and the monitor stays outside of it.

use crate::bundle::{ID, make_in, record};
use crate::rig::Box;
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, same};

pub fn cases() -> Vec<Case> {
    let what = "--systemd-cgroup: the container in its scope, the monitor outside, neither left behind";
    vec![Case::new("cgroup/systemd", "1", what, scope)]
}

const SCOPE: &str = "demo-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope";
const SCRIPT: &str = "echo up; until [ -e /tmp/end ]; do sleep 0.1; done; exit 5";

fn scope(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let bundle = make_in(&machine, "bundle", SCRIPT, &format!("machine.slice:demo:{ID}"))?;
    machine.ok(&format!(
        "conward --cid {ID} --cuuid {ID} --name web --runtime /usr/bin/crun --systemd-cgroup --bundle {bundle} \
         --full-attach --log-path k8s-file:{bundle}/log --conmon-pidfile {bundle}/conmon.pid \
         --container-pidfile {bundle}/pid --persist-dir {bundle}
         for i in $(seq 100); do crun start {ID} 2>/dev/null && exit; sleep 0.05; done; exec crun start {ID}"
    ))?;
    machine.is(SCOPE, "active/running")?;
    let cgroup = |file: &str| machine.ok(&format!("sed -n 's/^0:://p' /proc/$(cat {bundle}/{file})/cgroup"));
    let place = machine.property(SCOPE, "ControlGroup")?;
    check(cgroup("pid")?.starts_with(&place), format!("the container is in {}, not in {place}", cgroup("pid")?))?;
    check(!cgroup("conmon.pid")?.starts_with(&place), "the monitor is in the container's scope")?;
    machine.ok("touch /opt/rootfs/tmp/end")?;
    machine.until("the monitor's end", &format!("! kill -0 $(cat {bundle}/conmon.pid)"))?;
    same("status", record(&machine, "bundle")?["exitCode"].as_i64(), Some(5))?;
    machine.ok(&format!("crun delete {ID}"))?;
    machine.until("the scope's end", &format!("! systemctl is-active {SCOPE}"))
}
