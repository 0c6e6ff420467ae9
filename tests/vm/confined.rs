//! What only a machine with every capability can show.

use std::fs;

use nix::unistd::Pid;

use crate::oom::PATIENCE;
use crate::support::scene::Scene;
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, procs, same};

pub fn cases() -> Vec<Case> {
    let what = "-1000 for the monitor, the caller's for runtime, container and exit command";
    vec![Case::new("confined/oom-score", "3.5", what, scores).native()]
}

fn scores(monitor: &Monitor) -> Outcome {
    fs::write("/proc/self/oom_score_adj", "77")?;
    let mut scene = Scene::create(monitor)?;
    scene.script("go")?.exit_command(&[]);
    let live = scene.start()?;
    let container = live.container()?;
    same("the monitor's", score(live.pid()?)?.as_str(), "-1000")?;
    same("the runtime's", live.seen()?["oom_score_adj"].as_str(), Some("77"))?;
    same("the container's", score(container)?.as_str(), "77")?;
    live.go()?;
    procs::ended("the monitor", live.pid()?, PATIENCE)?;
    same("the exit command's", live.after()?["oom_score_adj"].as_str(), Some("77"))
}

fn score(pid: Pid) -> Outcome<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().to_owned())
}
