//! `podman exec` without a terminal.

use std::{fs::File, os::fd::OwnedFd};

use super::{
    Verdict,
    bed::{Bed, IMAGE, PARK, PATIENCE},
    check,
    output::same_bytes,
    processes::{eventually, listed},
    rig::failed,
    run::{PROMPT, random},
};

pub fn codes(bed: &Bed) -> Verdict {
    bed.start("e", PARK)?;
    let exec = |command: &[&str]| bed.podman(&[&["exec", "e"], command].concat()).run();
    exec(&["true"])?.expect(0)?.says("")?;
    exec(&["sh", "-c", "exit 1"])?.expect(1)?;
    exec(&["/etc"])?.expect(126)?.complains("permission denied")?;
    exec(&["no-such-program"])?.expect(127)?.complains("executable file not found")?;
    exec(&["sh", "-c", "kill -KILL $$"])?.expect(137)?;
    exec(&["sh", "-c", "kill -TERM $$"])?.expect(143)?;
    bed.podman(&["exec", "nobody", "true"]).run()?.expect(125)?;
    one_monitor(bed)
}

pub fn detached(bed: &Bed) -> Verdict {
    bed.start("e", PARK)?;
    let script = "echo begun >/tmp/mark; until [ -e /tmp/end ]; do sleep 0.1; done; exit 5";
    let id = bed.ok(&["exec", "-d", "e", "sh", "-c", script])?;
    check!(id.len() == 64, "`exec -d` prints the session: {id:?}");
    let begun = eventually(bed.left(PATIENCE), || bed.ok(&["exec", "e", "cat", "/tmp/mark"]).is_ok());
    check!(begun, "the detached process did not begin");
    bed.ok(&["exec", "e", "touch", "/tmp/end"])?;
    one_monitor(bed)
}

pub fn piped_megabytes(bed: &Bed) -> Verdict {
    bed.start("e", PARK)?;
    let bytes = random(4 << 20)?;
    let here = bed.host(&bed.rig.busybox, &["sha512sum"]).input(&bytes).ok()?;
    bed.podman(&["exec", "-i", "e", "sha512sum"]).input(&bytes).run()?.expect(0)?.says(&(here + "\n"))?;
    let echoed = bed.podman(&["exec", "-i", "e", "cat"]).input(&bytes).run()?.expect(0)?;
    same_bytes("4 MiB through `podman exec -i cat`", &bytes, &echoed.out)
}

pub fn streams_stay_apart(bed: &Bed) -> Verdict {
    bed.start("e", PARK)?;
    let script = "seq 1 20000; seq 1 20000 | sed s/^/e/ >&2";
    let done = bed.podman(&["exec", "e", "sh", "-c", script]).run()?.expect(0)?;
    let out: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    let err: String = (1..=20_000).map(|n| format!("e{n}\n")).collect();
    same_bytes("stdout", out.as_bytes(), &done.out)?;
    same_bytes("stderr", err.as_bytes(), &done.err)
}

pub fn ten_at_once(bed: &Bed) -> Verdict {
    bed.start("e", PARK)?;
    let mut running = Vec::new();
    for n in 0..10 {
        let script = format!("echo {n}; sleep 0.5; exit {n}");
        running.push(bed.podman(&["exec", "e", "sh", "-c", &script]).start()?);
    }
    for (n, exec) in (0..).zip(running) {
        exec.finish()?.expect(n)?.says(&format!("{n}\n"))?;
    }
    one_monitor(bed)
}

pub fn ends_with_the_container(bed: &Bed) -> Verdict {
    bed.start("e", PARK)?;
    let exec = bed.podman(&["exec", "e", "sh", "-c", "echo ready; sleep 100"]).start()?;
    exec.wait_for("ready")?;
    bed.ok(&["kill", "e"])?;
    let done = exec.finish()?.expect(137)?;
    check!(done.took < PROMPT, "the exec outlived its container: {}", done.story());
    bed.without_monitors()
}

pub fn preserved_descriptors(bed: &Bed) -> Verdict {
    bed.start("e", PARK)?;
    let file = bed.write("third", "from the third\n")?;
    let fd = File::open(&file).map(OwnedFd::from).map_err(|e| failed(&file, &e))?;
    let exec = bed.podman(&["exec", "--preserve-fds", "1", "e", "sh", "-c", "cat <&3"]).third(fd, false);
    exec.run()?.expect(0)?.says("from the third\n")?;
    Ok(())
}

/// What an exec'd process leaves behind holds its pipes, but not its caller.
pub fn leftover_holds_stdout(bed: &Bed) -> Verdict {
    bed.start("e", PARK)?;
    let done =
        bed.podman(&["exec", "e", "sh", "-c", "sleep 300 & echo done; exit 4"]).run()?.expect(4)?.says("done\n")?;
    check!(done.took < PROMPT, "the exec waited for what it left behind: {}", done.story());
    one_monitor(bed)
}

/// A check is an exec of which podman wants the output and the code.
pub fn health_check(bed: &Bed) -> Verdict {
    let check = "echo looked; test -e /tmp/well";
    let run = [
        "run",
        "-d",
        "--name",
        "h",
        "--health-cmd",
        check,
        "--health-retries",
        "1",
        "--health-interval",
        "disable",
        IMAGE,
    ];
    bed.ok(&run)?;
    bed.podman(&["healthcheck", "run", "h"]).run()?.expect(1)?;
    let health = bed.inspect("h", "{{.State.Health.Status}} {{.State.Health.FailingStreak}}")?;
    check!(health == "unhealthy 1", "before: {health}");
    bed.ok(&["exec", "h", "touch", "/tmp/well"])?;
    bed.podman(&["healthcheck", "run", "h"]).run()?.expect(0)?;
    let health = bed.inspect("h", "{{.State.Health.Status}} {{.State.Health.FailingStreak}}")?;
    check!(health == "healthy 0", "after: {health}");
    let codes = bed.inspect("h", "{{range .State.Health.Log}}{{.ExitCode}} {{.Output}};{{end}}")?;
    check!(codes.matches("looked").count() == 2, "output of the two checks: {codes:?}");
    one_monitor(bed)
}

/// The container's own monitor stays, those of the execs do not.
fn one_monitor(bed: &Bed) -> Verdict {
    let one = eventually(bed.left(PATIENCE), || bed.monitors().len() == 1);
    check!(one, "one container and no exec, but these monitors:{}", listed(&bed.monitors()));
    Ok(())
}
