//! A box: Debian with a real systemd, booted for one case, in namespaces of its own. It is made by `systemd-box`, a
//! program beside this repository, and shares nothing with this machine's systemd.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::rig::Rig;
use crate::support::suite::Monitor;
use crate::support::{Fail, Outcome, check, contains, wait};

/// The program that makes boxes.
const RIG: Rig = Rig { name: "systemd-box", program: PROGRAM, cache: CACHE, place: "conward-box" };
const PROGRAM: &str = "SYSTEMD_BOX";
const CACHE: &str = "SYSTEMD_BOX_DIR";
/// Says why there is no box; empty if there is one.
const READY: &str = "SYSTEMD_BOX_READY";
/// Where the box sees the directory of the case.
pub const SHARED: &str = "/opt/x";

/// Builds what all boxes are made of, before any case's time begins, and runs the table once more: the cases hear of it
/// through the environment.
pub fn build_and_go_on() -> std::io::Error {
    let mut again = Command::new("/proc/self/exe");
    again.args(std::env::args_os().skip(1));
    match RIG.prepare() {
        Ok((program, cache)) => again.env(PROGRAM, program).env(CACHE, cache).env(READY, ""),
        Err(reason) => again.env(READY, reason),
    };
    again.exec()
}

/// True if that has been done.
pub fn is_ready() -> bool {
    std::env::var_os(READY).is_some()
}

/// A box that is up. Dropped, it is powered off.
#[derive(Debug)]
pub struct Box {
    program: PathBuf,
    name: String,
    /// Seen in the box as [`SHARED`], and there when the box has gone.
    pub dir: PathBuf,
    up: bool,
}

impl Box {
    /// Boots one with conward in it, as itself and as podman's conmon.
    pub fn boot(monitor: &Monitor) -> Outcome<Box> {
        match std::env::var(READY) {
            Ok(reason) if reason.is_empty() => {}
            Ok(reason) => return Err(Fail::Skip(reason)),
            Err(_) => return Err(Fail::Skip("a case is run by its table".to_owned())),
        }
        let program = std::env::var_os(PROGRAM).map(PathBuf::from).ok_or("no path to systemd-box")?;
        let dir = monitor.fresh_dir()?;
        for name in ["conward", "conmon"] {
            fs::copy(&monitor.program, dir.join(name))?;
        }
        let name = format!("conward-{}", std::process::id());
        let mut machine = Box { program, name, dir, up: true };
        let bind = format!("{}:{SHARED}", machine.dir.display());
        let booted = machine.call(&["up", "--bind-rw", &bind])?;
        if !booted.status.success() {
            machine.up = false;
            return Err(Fail::Skip(format!("no box boots here: {}", text(&booted.stderr))));
        }
        machine.ok(SET_UP)?;
        Ok(machine)
    }

    /// Runs a shell script in it.
    pub fn sh(&self, script: &str) -> Outcome<Output> {
        self.call(&["run", "--", "sh", "-c", script])
    }

    /// Runs a script that must succeed; what it said on stdout, trimmed.
    pub fn ok(&self, script: &str) -> Outcome<String> {
        let output = self.sh(script)?;
        let said = || format!("`{script}`: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
        check(output.status.success(), said())?;
        Ok(text(&output.stdout).trim_end().to_owned())
    }

    /// Waits until a script succeeds.
    pub fn until(&self, what: &str, script: &str) -> Outcome {
        wait::until(what, Duration::from_secs(20), || Ok(self.sh(script)?.status.success().then_some(())))
    }

    /// Powers it off, as a machine is.
    pub fn power_off(&mut self) -> Outcome {
        self.up = false;
        let output = self.call(&["down"])?;
        check(output.status.success(), text(&output.stderr))?;
        check(output.stderr.is_empty(), format!("not a clean shutdown: {}", text(&output.stderr)))
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> Outcome<String> {
        self.ok(&format!("systemctl show -p {name} --value '{unit}'"))
    }

    /// Whether a unit is as it should be: `ActiveState/SubState`.
    pub fn is(&self, unit: &str, state: &str) -> Outcome {
        let seen = self.ok(&format!("systemctl show -p ActiveState,SubState --value '{unit}' | paste -sd/"))?;
        let why = || self.ok(&format!("systemctl status --no-pager -l '{unit}' || true")).unwrap_or_default();
        check(
            seen == state,
            format!("{unit}: expected {state}, saw {seen}\n{}", if seen == state { String::new() } else { why() }),
        )
    }

    /// The entries of the journal that fit, one JSON object each.
    pub fn entries(&self, matches: &str) -> Outcome<Vec<serde_json::Value>> {
        let lines = self.ok(&format!("journalctl --sync; journalctl -q --all -o json {matches}"))?;
        lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// No monitor, no container and no cgroup of theirs is left.
    pub fn nothing_left(&self) -> Outcome {
        self.until("monitors and containers to be gone", NOTHING_LEFT).map_err(|_| {
            let left = self.ok("ps axo pid,args; find /sys/fs/cgroup -type d").unwrap_or_default();
            Fail::Wrong(format!("something is left:\n{left}"))
        })
    }

    fn call(&self, words: &[&str]) -> Outcome<Output> {
        let mut command = Command::new(&self.program);
        Ok(command.args(words).env("SYSTEMD_BOX_NAME", &self.name).stdin(Stdio::null()).output()?)
    }
}

impl Drop for Box {
    fn drop(&mut self) {
        if self.up {
            // The case has its result already.
            let _ = self.call(&["down"]);
        }
    }
}

/// The value of a field of an entry; one that is no text comes as numbers.
pub fn field(entry: &serde_json::Value, name: &str) -> Option<Vec<u8>> {
    match &entry[name] {
        serde_json::Value::String(text) => Some(text.clone().into_bytes()),
        serde_json::Value::Array(bytes) => {
            bytes.iter().map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok())).collect()
        }
        _ => None,
    }
}

/// Checks the value of a field.
pub fn has(entry: &serde_json::Value, name: &str, value: &str) -> Outcome {
    let seen = field(entry, name).map(|bytes| text(&bytes));
    check(seen.as_deref() == Some(value), format!("{name}: expected {value:?}, saw {seen:?} in {entry}"))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Checks that a file that the case shares with the box says this.
pub fn says(path: &Path, part: &str) -> Outcome {
    contains(&path.display().to_string(), &fs::read_to_string(path)?, part)
}

/// podman uses conward, and what this machine may not give is not asked for.
const SET_UP: &str = r#"
cp /opt/x/conward /usr/bin/conward
cat >/etc/containers/containers.conf <<'END'
[containers]
pids_limit = 0
default_ulimits = ["nofile=1024:4096", "nproc=1024:4096"]
[engine]
conmon_path = ["/opt/x/conmon"]
END
"#;

const NOTHING_LEFT: &str = "! pgrep -x 'conmon|conward' && ! pgrep -f '[t]rap ' && \
    test -z \"$(find /sys/fs/cgroup -type d -name '*libpod*' -o -type d -name 'conward@*' -o -type d -name 'web.service')\"";
