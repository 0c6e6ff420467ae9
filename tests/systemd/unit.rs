//! The unit that comes with conward, `contrib/systemd/conward@.service`, with a bundle and no podman.

use std::fs;
use std::path::Path;

use crate::bundle::{make, record};
use crate::podman::CONTAINER;
use crate::rig::{Box, SHARED, says};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, contains, same};

const UNIT: &str = "conward@web";

pub fn cases() -> Vec<Case> {
    let what = "starts, survives reloads, stops, restarts on failure";
    let mut cases: Vec<Case> = ["mixed", "none", "control-group"]
        .map(|mode| Case::new(&format!("unit/{mode}"), "9", what, move |monitor| life(monitor, mode)))
        .into();
    cases.extend([
        Case::new("unit/exit-code", "9", "the container's exit code reaches systemd", exit_code),
        Case::new("unit/deaf", "9", "a container that ignores the signal is killed, and that is recorded", deaf),
        Case::new("unit/monitor-killed", "9", "without its monitor no container is left, and it starts anew", killed),
        Case::new("unit/cannot-start", "9", "what the runtime refuses is a failed start", cannot_start),
        Case::new("unit/shutdown", "9", "one signal, the last words and a record when the machine goes down", shutdown),
    ]);
    cases
}

/// Installs the unit, with a drop-in, and the bundle `web`; its log is in the bundle too.
fn install(machine: &Box, script: &str, more: &str) -> Outcome {
    let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd");
    for name in ["conward@.service", "conward-killmode-none.conf"] {
        fs::copy(contrib.join(name), machine.dir.join(name))?;
    }
    let bundle = make(machine, "web", script)?;
    let etc = "/etc/systemd/system";
    fs::write(machine.dir.join("more.conf"), more)?;
    machine
        .ok(&format!(
            "set -e; cp {SHARED}/conward@.service {etc}; mkdir -p {etc}/{UNIT}.service.d /var/lib/conward
         ln -s {bundle} /var/lib/conward/web; cp {SHARED}/more.conf {etc}/{UNIT}.service.d; systemctl daemon-reload"
        ))
        .map(drop)
}

fn kill_mode(mode: &str) -> Outcome<String> {
    let variant = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd/conward-killmode-none.conf");
    Ok(match mode {
        "mixed" => String::new(),
        "none" => fs::read_to_string(variant)?,
        mode => format!("[Service]\nKillMode={mode}\n"),
    })
}

/// What the container said, from the journal.
fn said(machine: &Box) -> Outcome<String> {
    let messages = machine.ok("journalctl --sync; journalctl -q -o cat CONTAINER_NAME=web")?;
    Ok(messages.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join(","))
}

fn life(monitor: &Monitor, mode: &str) -> Outcome {
    let machine = Box::boot(monitor)?;
    install(&machine, CONTAINER, &kill_mode(mode)?)?;
    same("KillMode", machine.property(UNIT, "KillMode")?.as_str(), mode)?;
    machine.ok(&format!("systemctl start {UNIT}"))?;
    machine.is(UNIT, "active/running")?;
    let main = machine.property(UNIT, "MainPID")?;
    same("its program", machine.ok(&format!("readlink /proc/{main}/exe"))?.as_str(), "/usr/bin/conward")?;
    for reload in ["daemon-reload", "daemon-reexec"] {
        machine.ok(&format!("systemctl {reload}"))?;
        machine.is(UNIT, "active/running")?;
        same(reload, machine.property(UNIT, "MainPID")?, main.clone())?;
    }
    machine.ok("touch /opt/rootfs/tmp/fail")?;
    let again = format!("[ $(systemctl show -p NRestarts --value {UNIT}) = 1 ] && systemctl -q is-active {UNIT}");
    machine.until("a restart", &again)?;
    machine.is(UNIT, "active/running")?;
    machine.ok(&format!("systemctl stop {UNIT}"))?;
    machine.is(UNIT, "inactive/dead")?;
    same("Result", machine.property(UNIT, "Result")?.as_str(), "success")?;
    same("the container", said(&machine)?.as_str(), "up,up,signal,last words")?;
    let record = record(&machine, "web")?;
    same("the record", record["exitCode"].as_i64(), Some(0))?;
    machine.nothing_left()
}

fn exit_code(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    install(&machine, "exit 9", "[Service]\nRestart=no\n")?;
    machine.ok(&format!("systemctl start {UNIT} || true"))?;
    machine.until("the unit to fail", &format!("systemctl -q is-failed {UNIT}"))?;
    same("Result", machine.property(UNIT, "Result")?.as_str(), "exit-code")?;
    same("ExecMainStatus", machine.property(UNIT, "ExecMainStatus")?.as_str(), "9")?;
    machine.nothing_left()
}

/// ExecStop waits for ten seconds; here for one.
fn deaf(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    install(&machine, "trap '' TERM; echo up; while :; do sleep 0.1; done", "")?;
    machine.ok(&format!(
        "sed -i 's/timeout 10/timeout 1/' /etc/systemd/system/conward@.service; systemctl daemon-reload; \
        systemctl start {UNIT}; systemctl stop {UNIT}"
    ))?;
    let record = record(&machine, "web")?;
    same("the record", record["signal"].as_i64(), Some(9))?;
    same("ExecMainStatus", machine.property(UNIT, "ExecMainStatus")?.as_str(), "137")?;
    machine.nothing_left()
}

fn killed(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    install(&machine, CONTAINER, "")?;
    machine.ok(&format!("systemctl start {UNIT}"))?;
    let main = machine.property(UNIT, "MainPID")?;
    machine.ok(&format!("kill -KILL {main}"))?;
    let again = format!("[ $(systemctl show -p NRestarts --value {UNIT}) = 1 ] && systemctl -q is-active {UNIT}");
    machine.until("a restart", &again)?;
    same("containers", machine.ok("pgrep -fc '[t]rap '")?.as_str(), "1")?;
    machine.ok(&format!("systemctl stop {UNIT}"))?;
    machine.is(UNIT, "inactive/dead")?;
    machine.nothing_left()
}

fn cannot_start(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    install(&machine, "exit 0", "[Service]\nRestart=no\n")?;
    machine.ok("sed -i 's|\"sh\"|\"/not/there\"|' /opt/x/web/config.json")?;
    machine.ok(&format!("! systemctl start {UNIT}"))?;
    machine.is(UNIT, "failed/failed")?;
    contains(
        "the journal",
        &machine.ok("journalctl --sync; journalctl -o cat SYSLOG_IDENTIFIER=conward")?,
        "/not/there",
    )?;
    machine.nothing_left()
}

fn shutdown(monitor: &Monitor) -> Outcome {
    let mut machine = Box::boot(monitor)?;
    install(&machine, CONTAINER, "")?;
    let log = format!("s|--log-path journald|--log-path k8s-file:{SHARED}/web/log|");
    machine.ok(&format!(
        "sed -i '{log}' /etc/systemd/system/conward@.service; systemctl daemon-reload; \
        systemctl start {UNIT}"
    ))?;
    machine.until("the container to speak", &format!("grep -q up {SHARED}/web/log"))?;
    machine.power_off()?;
    let text = fs::read_to_string(machine.dir.join("web/log"))?;
    same("signals", text.matches("stdout F signal").count(), 1)?;
    says(&machine.dir.join("web/log"), "last words")?;
    same("the record", record(&machine, "web")?["exitCode"].as_i64(), Some(0))
}
