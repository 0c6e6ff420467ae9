//! What the cases share: sizes, a scene with the writer in it, and what is known at the end.

use std::fs;
use std::path::PathBuf;

use nix::unistd::Pid;

use crate::flow::{Pattern, WRITER};
pub use crate::support::amount::{MIB, patience, size, soak};
use crate::support::scene::{Live, Scene};
use crate::support::suite::Monitor;
use crate::support::wait;
use crate::support::{Outcome, check, procs, same};

pub const LINES: Pattern = Pattern::Lines(100);

/// A scene whose script can call `$W`, the writer.
pub fn scene(monitor: &Monitor, script: &str) -> Outcome<Scene> {
    let mut scene = Scene::create(monitor)?;
    std::os::unix::fs::symlink(std::env::current_exe()?, scene.dir.join(WRITER))?;
    let text = format!("W={}\n{script}", scene.dir.join(WRITER).display());
    scene.script(&text)?;
    Ok(scene)
}

/// The script of a container that writes so much and ends.
pub fn writes(pattern: Pattern, total: u64) -> String {
    format!("exec $W {} 0 {total}", pattern.name())
}

/// A container that writes until [`Steady::stop`], then ends with 5.
pub struct Steady {
    pub live: Live,
    pub log: PathBuf,
}

impl Steady {
    /// Starts it with its log at a place below the scene's directory.
    pub fn start(mut scene: Scene, log: &str) -> Outcome<Steady> {
        let log = scene.dir.join(log);
        let live = scene.set("-l", &log).start()?;
        live.container()?;
        Ok(Steady { live, log })
    }

    /// At a pace that whoever checks it can follow on a busy machine: what is written meanwhile must be checked, too.
    pub fn script(pattern: Pattern) -> String {
        format!("$W {} 0 \"until:$D/stop\" rate:{}; exit 5", pattern.name(), 24 * MIB)
    }

    pub fn size(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |meta| meta.len())
    }

    /// Waits until the log has grown by so much.
    pub fn grows(&self, by: u64) -> Outcome {
        let before = self.size();
        wait::until("the log to grow", patience(), || Ok((self.size() >= before + by).then_some(())))
    }

    pub fn pid(&self) -> Outcome<Pid> {
        self.live.pid()
    }

    /// True while monitor and container run.
    pub fn alive(&self) -> Outcome {
        check(procs::alive(self.live.pid()?), "the monitor must live")?;
        check(procs::alive(self.live.container()?), "the container must run on")
    }

    /// Ends the container and gives the bytes that it wrote.
    pub fn stop(&self) -> Outcome<u64> {
        fs::write(self.live.dir.join("b/stop"), "")?;
        same("status", ended(&self.live)?, 5)?;
        same("exit file", self.live.exit_file()?, "5".to_owned())?;
        let end = fs::read_to_string(self.live.dir.join("b/stop.end"))?;
        Ok(end.parse().map_err(|_| format!("the writer's place is {end:?}"))?)
    }
}

/// Waits for the monitor's end.
pub fn ended(live: &Live) -> Outcome<i32> {
    procs::ended("the monitor", live.pid()?, patience())
}

/// What `exit.json` says of stdout (0) or stderr (1): bytes and bytes lost.
pub fn totals(live: &Live, stream: usize) -> Outcome<(u64, u64)> {
    let record: serde_json::Value = serde_json::from_slice(&fs::read(live.dir.join("b/exit.json"))?)?;
    let total = &record[["stdout", "stderr"][stream]];
    let number = |key: &str| total[key].as_u64().ok_or(format!("no {key} in {record}"));
    Ok((number("bytes")?, number("lost")?))
}

/// Waits for a file that the script makes.
pub fn reached(live: &Live, name: &str) -> Outcome {
    let path = live.dir.join("b").join(name);
    wait::until(&format!("the container to get to {name}"), patience(), || Ok(path.exists().then_some(())))
}
