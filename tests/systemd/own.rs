//! conward's own messages in the journal.

use std::time::{Duration, Instant};

use crate::bundle::{Container, ID};
use crate::rig::{Box, has};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, contains, same};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("own/quiet", "own", "nothing to say when all is well", quiet),
        Case::new("own/fields", "own", "a warning is found by the container's name and ID", fields),
        Case::new("own/syslog", "own", "with --syslog it is there once", syslog),
        Case::new("own/journald-stopped", "own", "a journald that stands still costs messages, not time", stopped),
    ]
}

const OWN: &str = "SYSLOG_IDENTIFIER=conward";
/// Ends when it is told to.
const SCRIPT: &str = "echo up; until [ -e /tmp/end ]; do sleep 0.1; done; echo last words";
/// A program that cannot take the monitor's place, which is worth a warning.
const NOT_A_PROGRAM: &str =
    "cp /usr/bin/conward /opt/x/good; echo >/opt/x/new; chmod +x /opt/x/new; mv /opt/x/new /usr/bin/conward";

fn quiet(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let container = Container::start(&machine, SCRIPT, "", "")?;
    let pid = container.pid()?;
    same(
        "descriptors to journald",
        machine.ok(&format!("ls -l /proc/{pid}/fd | grep -c journal || true"))?.as_str(),
        "0",
    )?;
    machine.ok("touch /opt/rootfs/tmp/end")?;
    container.end()?;
    same("own messages", machine.entries(OWN)?.len(), 0)
}

fn warn(machine: &Box, container: &Container) -> Outcome {
    machine.ok(&format!("kill -USR2 {}", container.pid()?)).map(drop)
}

fn fields(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let container = Container::start(&machine, SCRIPT, "", "--log-tag the-tag")?;
    let pid = container.pid()?;
    machine.ok(NOT_A_PROGRAM)?;
    warn(&machine, &container)?;
    machine.until("the warning", &format!("journalctl --sync; journalctl -q {OWN} | grep -q ."))?;
    let entries = machine.entries(OWN)?;
    same("entries", entries.len(), 1)?;
    for (name, value) in [
        ("PRIORITY", "4"),
        ("CONWARD_ID", ID),
        ("CONTAINER_ID", &ID[..12]),
        ("CONTAINER_NAME", "web"),
        ("CONTAINER_TAG", "the-tag"),
        ("_PID", &pid),
    ] {
        has(&entries[0], name, value)?;
    }
    contains("MESSAGE", entries[0]["MESSAGE"].as_str().unwrap_or_default(), "Failed to replace the monitor")?;
    machine.ok("touch /opt/rootfs/tmp/end")?;
    container.end()
}

fn syslog(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let container = Container::start(&machine, SCRIPT, "", "--syslog")?;
    machine.ok(NOT_A_PROGRAM)?;
    warn(&machine, &container)?;
    let text = "Failed to replace the monitor";
    machine.until("the warning", &format!("journalctl --sync; journalctl -q _COMM=conward | grep -q '{text}'"))?;
    let lines = machine.ok(&format!("journalctl -q -o cat _COMM=conward | grep '{text}'"))?;
    same("lines", lines.lines().count(), 1)?;
    contains("the line", &lines, "conmon 01234567890123456789 <w>: ")
        .or_else(|_| contains("the line", &lines, "<w>: "))?;
    machine.ok("touch /opt/rootfs/tmp/end")?;
    container.end()
}

fn stopped(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let script = format!("{FILL}; {SCRIPT}");
    let container = Container::start(&machine, &script, "", "")?;
    machine.ok(NOT_A_PROGRAM)?;
    let journald = "J=$(systemctl show -p MainPID --value systemd-journald)";
    machine.ok(&format!(
        "{journald}; (sleep 25; kill -CONT $J) >/dev/null 2>&1 & kill -STOP $J
         touch /opt/rootfs/tmp/fill; until [ -e /opt/rootfs/tmp/full ]; do sleep 0.1; done; sleep 0.5"
    ))?;
    let begin = Instant::now();
    for _ in 0..3 {
        warn(&machine, &container)?;
        std::thread::sleep(Duration::from_millis(200));
    }
    check(begin.elapsed() < Duration::from_secs(5), format!("it took {:?}", begin.elapsed()))?;
    machine.ok(&format!("{journald}; kill -CONT $J; journalctl --sync"))?;
    warn(&machine, &container)?;
    machine.until("the warning", &format!("journalctl --sync; journalctl -q {OWN} | grep -q ."))?;
    let entries = machine.entries(OWN)?;
    same("entries", entries.len(), 1)?;
    has(&entries[0], "CONWARD_DROPPED", "3")?;
    machine.ok("touch /opt/rootfs/tmp/end")?;
    container.end()?;
    same("exit code", container.record()?["exitCode"].as_i64(), Some(0))
}

/// Says more than journald's queue holds, when it is told to.
const FILL: &str = "until [ -e /tmp/fill ]; do sleep 0.1; done; seq 1 5000; touch /tmp/full";
