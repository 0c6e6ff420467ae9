//! The unit that `podman generate systemd` prints for a container that exists: `Type=forking`, `PIDFile=`, and conward
//! as podman's monitor.

use std::fs;

use crate::rig::{Box, SHARED};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, contains, same};

pub fn cases() -> Vec<Case> {
    let what = "starts, survives reloads, stops, restarts on failure";
    let mut cases: Vec<Case> = [("as-printed", None), ("none", Some("none")), ("mixed", Some("mixed"))]
        .into_iter()
        .chain([("control-group", Some("control-group"))])
        .map(|(id, mode)| Case::new(&format!("podman/{id}"), "9", what, move |monitor| life(monitor, mode)))
        .collect();
    cases.push(Case::new("podman/exit-code", "9", "the container's exit code reaches systemd", exit_code));
    cases.push(Case::new("podman/shutdown", "9", "the last words when the machine goes down", |m| shutdown(m, false)));
    let what = "and one signal, with the drop-in that docs/systemd.md gives";
    cases.push(Case::new("podman/shutdown-in-order", "9", what, |m| shutdown(m, true)));
    cases
}

/// Counts its signals, and waits a moment for a second one before it goes.
pub const CONTAINER: &str = "trap 'echo signal; ending=1' TERM; echo up; n=0; while :; do sleep 0.1; \
    [ -z \"$ending\" ] || n=$((n+1)); [ $n -lt 4 ] || { echo last words; exit 0; }; \
    [ ! -e /tmp/fail ] || { rm /tmp/fail; exit 9; }; done";

/// Creates the container and its unit `web.service`, with a KillMode as older podmans print it.
fn unit(machine: &Box, mode: Option<&str>, options: &str) -> Outcome {
    fs::write(machine.dir.join("container"), CONTAINER)?;
    let create = format!(
        "podman create --net none --name web {options} --rootfs /opt/rootfs sh -c \"$(cat {SHARED}/container)\" >/dev/null"
    );
    machine.ok(&create)?;
    let printed = machine.ok("podman generate systemd web")?;
    contains("the unit", &printed, "\nType=forking")?;
    contains("the unit", &printed, "\nPIDFile=")?;
    let unit = match mode {
        Some(mode) => printed.replacen("\nType=forking", &format!("\nKillMode={mode}\nType=forking"), 1),
        None => printed,
    };
    fs::write(machine.dir.join("unit"), unit)?;
    machine.ok(&format!("cp {SHARED}/unit /etc/systemd/system/web.service; systemctl daemon-reload"))?;
    if let Some(mode) = mode {
        same("KillMode", machine.property("web", "KillMode")?.as_str(), mode)?;
    }
    Ok(())
}

fn life(monitor: &Monitor, mode: Option<&str>) -> Outcome {
    let machine = Box::boot(monitor)?;
    unit(&machine, mode, "")?;
    machine.ok("systemctl start web")?;
    machine.is("web", "active/running")?;
    let main = machine.property("web", "MainPID")?;
    same("podman's monitor", machine.ok("podman inspect web --format '{{.State.ConmonPid}}'")?, main.clone())?;
    same("its program", machine.ok(&format!("readlink /proc/{main}/exe"))?, format!("{SHARED}/conmon"))?;
    for reload in ["daemon-reload", "daemon-reexec"] {
        machine.ok(&format!("systemctl {reload}"))?;
        machine.is("web", "active/running")?;
        same(reload, machine.property("web", "MainPID")?, main.clone())?;
    }
    fails_and_restarts(&machine)?;
    machine.ok("systemctl stop web")?;
    machine.is("web", "inactive/dead")?;
    same("Result", machine.property("web", "Result")?.as_str(), "success")?;
    same("the log", machine.ok("podman logs web")?.as_str(), "up\nup\nsignal\nlast words")?;
    same("podman's exit code", machine.ok("podman inspect web --format '{{.State.ExitCode}}'")?.as_str(), "0")?;
    machine.nothing_left()
}

/// `Restart=on-failure` is what podman prints.
fn fails_and_restarts(machine: &Box) -> Outcome {
    machine.ok("touch /opt/rootfs/tmp/fail")?;
    machine.until("a restart", "[ $(systemctl show -p NRestarts --value web) = 1 ] && systemctl -q is-active web")?;
    machine.until("the new container to speak", "[ \"$(podman logs web)\" = \"$(printf 'up\\nup')\" ]")?;
    machine.is("web", "active/running")?;
    contains("the journal", &machine.ok("journalctl --sync; journalctl -o cat -u web")?, "code=exited, status=9")
}

fn exit_code(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    unit(&machine, None, "")?;
    machine.ok("mkdir /etc/systemd/system/web.service.d; cd /etc/systemd/system/web.service.d; \
        printf '[Service]\\nRestart=no\\n' >restart.conf; systemctl daemon-reload; systemctl start web")?;
    machine.ok("touch /opt/rootfs/tmp/fail")?;
    machine.until("the unit to fail", "systemctl -q is-failed web")?;
    same("Result", machine.property("web", "Result")?.as_str(), "exit-code")?;
    same("ExecMainStatus", machine.property("web", "ExecMainStatus")?.as_str(), "9")?;
    machine.nothing_left()
}

/// Without an order systemd stops the container's scope by itself, beside podman.
fn shutdown(monitor: &Monitor, in_order: bool) -> Outcome {
    let mut machine = Box::boot(monitor)?;
    unit(&machine, None, &format!("--log-driver k8s-file --log-opt path={SHARED}/log"))?;
    if in_order {
        machine.ok("mkdir /etc/systemd/system/web.service.d; cd /etc/systemd/system/web.service.d
             printf '[Unit]\nAfter=libpod-%s.scope\n' $(podman inspect web --format '{{.Id}}') >order.conf
             systemctl daemon-reload")?;
    }
    machine.ok("systemctl start web")?;
    machine.until("the container to speak", &format!("grep -q up {SHARED}/log"))?;
    machine.power_off()?;
    let log = fs::read_to_string(machine.dir.join("log"))?;
    let signals = log.matches("stdout F signal").count();
    check(if in_order { signals == 1 } else { (1..=2).contains(&signals) }, format!("{signals} signals: {log}"))?;
    contains("the log", &log, "last words")
}
