//! OCI bundles in a box, and containers that conward runs from them without podman and without a unit.

use std::fs;

use serde_json::{Value, json};

use crate::rig::{Box, SHARED};
use crate::support::{Fail, Outcome};

/// Writes a bundle whose shell runs a script, below the shared directory; its path in the box.
pub fn make(machine: &Box, name: &str, script: &str) -> Outcome<String> {
    let dir = machine.dir.join(name);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("config.json"), config(script).to_string())?;
    Ok(format!("{SHARED}/{name}"))
}

/// The same in a cgroup, in the notation of the runtime's cgroup manager.
pub fn make_in(machine: &Box, name: &str, script: &str, cgroups_path: &str) -> Outcome<String> {
    let bundle = make(machine, name, script)?;
    let mut config = config(script);
    config["linux"]["cgroupsPath"] = json!(cgroups_path);
    fs::write(machine.dir.join(name).join("config.json"), config.to_string())?;
    Ok(bundle)
}

fn config(script: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": "/opt/rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]},
    })
}

/// A container ID as long as podman's.
pub const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A container whose output goes to the journal.
#[derive(Debug)]
pub struct Container<'a> {
    machine: &'a Box,
    bundle: String,
}

impl<'a> Container<'a> {
    /// Starts it; `options` are more words for conward, `before` stands in front of them all.
    pub fn start(machine: &'a Box, script: &str, before: &str, options: &str) -> Outcome<Container<'a>> {
        let bundle = make(machine, "bundle", script)?;
        machine.ok(&format!(
            "{before} conward --cid {ID} --cuuid {ID} --name web --runtime /usr/bin/crun \
             --runtime-arg --cgroup-manager=disabled --bundle {bundle} --full-attach --log-path journald \
             --conmon-pidfile {bundle}/conmon.pid --persist-dir {bundle} {options}
             for i in $(seq 100); do crun start {ID} 2>/dev/null && exit; sleep 0.05; done; exec crun start {ID}"
        ))?;
        Ok(Container { machine, bundle })
    }

    /// Waits for its end; the seconds that it took from its start, as conward knows them.
    pub fn end(&self) -> Outcome {
        let gone = format!("! kill -0 $(cat {}/conmon.pid)", self.bundle);
        self.machine.until("the monitor's end", &gone)
    }

    pub fn pid(&self) -> Outcome<String> {
        self.machine.ok(&format!("cat {}/conmon.pid", self.bundle))
    }

    /// `exit.json`.
    pub fn record(&self) -> Outcome<Value> {
        record(self.machine, "bundle")
    }

    /// What the container wrote to stdout and what of that was lost.
    pub fn stdout(&self) -> Outcome<(u64, u64)> {
        let record = self.record()?;
        let number = |key: &str| record["stdout"][key].as_u64().ok_or(Fail::Wrong(format!("no {key}: {record}")));
        Ok((number("bytes")?, number("lost")?))
    }
}

/// `exit.json` of a bundle in the shared directory.
pub fn record(machine: &Box, name: &str) -> Outcome<Value> {
    Ok(serde_json::from_slice(&fs::read(machine.dir.join(name).join("exit.json"))?)?)
}
