//! What only a machine with every capability can show.

use std::fs;

use conmon_proto::ExecSpec;
use nix::unistd::Pid;
use serde_json::json;

use crate::oom::PATIENCE;
use crate::support::container::Container;
use crate::support::scene::Scene;
use crate::support::service::{connect, talk};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, procs, same};

pub fn cases() -> Vec<Case> {
    let what = "-1000 for the monitor, the caller's for runtime, container and exit command";
    vec![
        Case::new("confined/oom-score", "3.5", what, scores).native(),
        Case::new("confined/crun-exec", "3.7", "crun reads a process object that it was handed", object).native(),
    ]
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

fn object(monitor: &Monitor) -> Outcome {
    let mut container = Container::of("crun", monitor, "echo up; exec sleep 600")?;
    let live = container.start(|scene| scene)?;
    live.log_has("up")?;
    let process = json!({"args": ["/bin/sh", "-c", "echo $WHO; ls /proc/self/fd"], "env": ["WHO=object", "PATH=/bin"],
        "cwd": "/", "user": {"uid": 0, "gid": 0}, "terminal": false});
    talk(async {
        let client = connect(&live).await?;
        let spec = ExecSpec { process: process.to_string().into_bytes(), ..ExecSpec::default() };
        let result = client.exec(&spec, None).await?.wait().await?;
        // The last is the listing's own: the object stays with the runtime.
        same(
            "stdout of an exec",
            String::from_utf8_lossy(&result.stdout).into_owned(),
            "object\n0\n1\n2\n3\n".to_owned(),
        )
    })?;
    container.call(&["kill", "ID", "KILL"])?;
    procs::ended("the monitor", live.pid()?, PATIENCE).map(drop)
}

fn score(pid: Pid) -> Outcome<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().to_owned())
}
