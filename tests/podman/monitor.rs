//! The monitor as podman sees it: its pid, its files, its sudden death, and what it reports about the end.

use std::fs;

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use super::{
    Stop, Verdict,
    bed::{Bed, IMAGE},
    check, inside,
    processes::listed,
    rig::found,
};

pub fn is_shown(bed: &Bed) -> Verdict {
    let (own, theirs) = (bed.path("monitor.pid"), bed.path("container.pid"));
    bed.ok(&["run", "-d", "--name", "m", "--conmon-pidfile", &own, "--pidfile", &theirs, IMAGE])?;
    let monitors = bed.monitors();
    check!(monitors.len() == 1, "one container, but these monitors:{}", listed(&monitors));
    let monitor = monitors[0].pid.to_string();
    let shown = bed.inspect("m", "{{.State.ConmonPid}} {{.ConmonPidFile}} {{.PidFile}}")?;
    check!(shown == format!("{monitor} {own} {theirs}"), "inspect says {shown}, the monitor is {monitor}");
    // Digits alone: callers parse the raw bytes.
    let written = String::from_utf8_lossy(&bed.read(&own)?).into_owned();
    check!(written == monitor, "{own} holds {written:?}, the monitor is {monitor}");
    let container = bed.inspect("m", "{{.State.Pid}}")?;
    let listed = bed.ok(&["ps", "--format", "{{.Pid}}"])?;
    let written = String::from_utf8_lossy(&bed.read(&theirs)?).trim().to_string();
    check!(
        container == listed && container == written,
        "container pid: inspect {container}, ps {listed}, file {written}"
    );
    let status = fs::read_to_string(format!("/proc/{container}/status")).unwrap_or_default();
    check!(
        status.contains(&format!("PPid:\t{monitor}\n")),
        "the container's parent is not the monitor {monitor}: {status}"
    );
    let name = fs::read_to_string(format!("/proc/{monitor}/comm")).unwrap_or_default();
    check!(name == "conmon\n", "people know it as conmon, but its name is {name:?}");
    let score = |pid: &str| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
    check!(
        score(&container) == score("self"),
        "oom_score_adj of the container {}, of the caller {}",
        score(&container),
        score("self")
    );
    let info = bed.ok(&["info", "--format", "{{.Host.Conmon.Path}} {{.Host.Conmon.Version}}"])?;
    let expected = format!("{} conmon version ", bed.rig.monitor.display());
    check!(info.starts_with(&expected), "podman info: {info:?}, expected {expected:?}…");
    Ok(())
}

/// Nothing brings a killed monitor back, but podman must be able to say so and to clean up.
pub fn killed(bed: &Bed) -> Verdict {
    // One process alone, which is dead as soon as it is killed: podman looks once, and then believes that it lives.
    bed.start("m", "exec sleep 600")?;
    let pid = bed.inspect("m", "{{.State.ConmonPid}}")?;
    let pid: i32 = pid.parse().map_err(|_| Stop::Failed(format!("no pid: {pid:?}")))?;
    let killed = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    killed.map_err(|e| Stop::Failed(format!("kill -9 {pid}: {e}")))?;
    bed.without_monitors()?;
    bed.abrupt.set(true);
    bed.podman(&["exec", "m", "echo", "alive"]).run()?.expect(0)?.says("alive\n")?;
    bed.podman(&["attach", "m"]).run()?.expect(125)?.complains("connection refused")?;
    // podman waits five seconds for an exit record that nobody can write. It looks for the process only once, which may be
    // too soon, or just when that goes; the next call sees it.
    let mut lost = bed.podman(&["kill", "m"]).run()?;
    for _ in 0..5 {
        if lost.status.code() != Some(0) && !lost.story().contains("state improper") {
            break;
        }
        lost = bed.podman(&["kill", "m"]).run()?;
    }
    lost.expect(125)?.complains(&format!("timed out waiting for file {}", bed.path("tmp/exits")))?;
    let state = bed.inspect("m", "{{.State.Running}} {{.State.ExitCode}}")?;
    check!(state == "false -1", "podman believes this about a container that nobody watched: {state}");
    bed.ok(&["rm", "-f", "-t", "0", "m"])?;
    // And the store still works.
    bed.podman(&["run", "--rm", "--name", "m", IMAGE, "echo", "again"]).run()?.expect(0)?.says("again\n")?;
    Ok(())
}

pub fn out_of_memory(bed: &Bed) -> Verdict {
    bed.only_ours("before 2.1.13 it notes it in its working directory, where podman does not look")?;
    let limited = ["run", "--memory", "24m", "--name"];
    let helper = bed.helper()?;
    let small = bed.podman(&[&limited[..], &["small", IMAGE, "true"]].concat()).run()?;
    if small.status.code() != Some(0) {
        return Err(Stop::Skipped(format!("no memory limits here: {}", small.text())));
    }
    let hog = ["hog", "-v", &helper, IMAGE, inside::PATH, inside::WORD, "hog", "200"];
    bed.podman(&[&limited[..], &hog].concat()).run()?.expect(137)?;
    let seen = |name| bed.inspect(name, "{{.State.OOMKilled}} {{.State.ExitCode}}");
    let (small, hog) = (seen("small")?, seen("hog")?);
    check!(small == "false 0" && hog == "true 137", "out of memory: small {small}, hog {hog}");
    Ok(())
}

pub fn checkpoint(bed: &Bed) -> Verdict {
    found("criu")?;
    bed.start("c", "i=0; while :; do i=$((i+1)); echo count $i; sleep 0.1; done")?;
    bed.logged("c", "count 5\n")?;
    bed.ok(&["container", "checkpoint", "c"])?;
    bed.without_monitors()?;
    let before = bed.ok(&["logs", "c"])?.lines().count();
    bed.ok(&["container", "restore", "c"])?;
    bed.logged("c", &format!("count {}\n", before + 5))?;
    Ok(())
}
