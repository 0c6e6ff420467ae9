//! conward-cri as a service: systemd makes the cgroups of containers, and neither they nor their monitors notice that the
//! server is restarted.

use std::fs;
use std::path::PathBuf;

use crate::rig::Box;
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, contains, same};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "cri/service",
            "1",
            "The unit that comes with it: ready, restarted under a pod, replaced when it hangs, stopped",
            service,
        ),
        Case::new(
            "cri/slices",
            "1",
            "A kubelet's path of slices: the container's scope is in the last of them",
            slices,
        ),
    ]
}

const UNIT: &str = "conward-cri.service";
const CHECK: &str = "/opt/x/conward-cri check --host-network --keep";

/// What the box cannot give is not asked for: its disk is an overlay, and its root lacks CAP_SYS_RESOURCE on some hosts.
const DROP_IN: &str = "[Service]
ExecStart=
ExecStart=/opt/x/conward-cri serve --root /run/conward-root
WatchdogSec=6
OOMScoreAdjust=0
LimitNOFILE=1024:4096
LimitNPROC=1024:4096
LimitCORE=0
";

/// A box in which the server runs, with an image.
fn serving(monitor: &Monitor) -> Outcome<Box> {
    let programs = programs(monitor)?;
    let machine = Box::boot(monitor)?;
    for (name, program) in programs {
        fs::copy(&program, machine.dir.join(name))?;
    }
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/systemd/conward-cri.service");
    fs::copy(unit, machine.dir.join(UNIT))?;
    fs::write(machine.dir.join("drop-in.conf"), DROP_IN)?;
    machine.ok(&format!(
        "mkdir -p /etc/systemd/system/{UNIT}.d
         cp /opt/x/{UNIT} /etc/systemd/system/
         cp /opt/x/drop-in.conf /etc/systemd/system/{UNIT}.d/
         systemctl daemon-reload
         /opt/x/conward-cri import --root /run/conward-root localhost/conward/busybox:latest busybox
         systemctl start {UNIT}"
    ))?;
    // By its own word: Type=notify.
    machine.is(UNIT, "active/running")?;
    Ok(machine)
}

/// The server is built by itself (cri/Cargo.toml), with or without optimization.
fn programs(monitor: &Monitor) -> Outcome<Vec<(&'static str, PathBuf)>> {
    let target = monitor.program.parent().and_then(|dir| dir.parent()).ok_or("the monitor is nowhere")?;
    let built = |name: &'static str| {
        let found = ["release", "debug"].map(|profile| target.join(profile).join(name)).into_iter();
        let newest =
            found.filter(|path| path.is_file()).max_by_key(|path| path.metadata().and_then(|it| it.modified()).ok());
        let why = || Fail::Skip(format!("no {name}: RUSTFLAGS= cargo build --package conward-cri"));
        Ok((name, newest.ok_or_else(why)?))
    };
    ["conward-cri", "conward-hold", "conward-start"].into_iter().map(built).collect()
}

/// Runs a pod that stays; its id, and that of its container.
fn pod(machine: &Box, words: &str) -> Outcome<(String, String)> {
    let said = machine.ok(&format!("{CHECK} {words}"))?;
    let lost = || format!("no pod and container in: {said}");
    let container = said.lines().find_map(|line| line.strip_prefix("container ")?.split(' ').next());
    let pod = said.lines().last();
    Ok((pod.ok_or_else(lost)?.to_owned(), container.ok_or_else(lost)?.to_owned()))
}

fn service(monitor: &Monitor) -> Outcome {
    let machine = serving(monitor)?;
    let (pod, container) = pod(&machine, "")?;
    let scope = format!("conward-{container}.scope");
    machine.is(&scope, "active/running")?;
    same("the scope's place", machine.property(&scope, "ControlGroup")?, format!("/system.slice/{scope}"))?;
    let monitor = machine.ok("pgrep -x conward")?;
    let place = machine.ok(&format!("sed -n 's/^0:://p' /proc/{monitor}/cgroup"))?;
    check(place.ends_with(UNIT), format!("the monitor is in {place}"))?;
    let server = machine.property(UNIT, "MainPID")?;
    machine.ok(&format!("systemctl restart {UNIT}"))?;
    machine.is(UNIT, "active/running")?;
    check(machine.property(UNIT, "MainPID")? != server, "the server is the same after its restart")?;
    same("the monitor after the restart", machine.ok("pgrep -x conward")?, monitor.clone())?;
    machine.is(&scope, "active/running")?;
    let hangs = machine.property(UNIT, "MainPID")?;
    machine.ok(&format!("kill -STOP {hangs}"))?;
    machine.until(
        "a server that answers after one that hung",
        &format!("test $(systemctl show -P MainPID {UNIT}) != {hangs} && systemctl is-active {UNIT}"),
    )?;
    same("the monitor after that", machine.ok("pgrep -x conward")?, monitor)?;
    machine.is(&scope, "active/running")?;
    let said = machine.ok(&format!("/opt/x/conward-cri check --remove {pod}"))?;
    contains("removal", &said, "is removed")?;
    machine.until("the scope's end", &format!("! systemctl is-active {scope} && ! pgrep -x conward"))?;
    machine.ok(&format!("systemctl stop {UNIT}"))?;
    machine.is(UNIT, "inactive/dead")?;
    same("result", machine.property(UNIT, "Result")?, "success".to_owned())?;
    machine.until("nothing to be mounted", "! grep -q /run/conward/ /proc/self/mountinfo")
}

fn slices(monitor: &Monitor) -> Outcome {
    let machine = serving(monitor)?;
    let slice = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice";
    let (pod, container) = pod(&machine, &format!("--cgroup-parent {slice}"))?;
    let scope = format!("conward-{container}.scope");
    same("the scope's place", machine.property(&scope, "ControlGroup")?, format!("{slice}/{scope}"))?;
    machine.ok(&format!("/opt/x/conward-cri check --remove {pod}"))?;
    machine.until("the scope's end", &format!("! systemctl is-active {scope}"))?;
    // systemd's own, and empty: the kubelet's to stop.
    same(
        "processes in the slice",
        machine.ok(&format!("cat /sys/fs/cgroup{slice}/cgroup.procs || true"))?,
        String::new(),
    )
}
