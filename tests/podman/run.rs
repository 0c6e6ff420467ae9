//! `podman run`, `create` and `start` without a terminal.

use std::{fs, fs::File, io::Read, os::fd::OwnedFd, time::Duration};

use nix::sys::signal::Signal;

use super::{
    Verdict,
    bed::{Bed, IMAGE, PARK, PATIENCE},
    check,
    output::same_bytes,
    processes::eventually,
    rig::{failed, found},
};

pub fn output_and_codes(bed: &Bed) -> Verdict {
    let both = bed.podman(&["run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7"]).run()?;
    same_bytes("stderr", b"err\n", &both.err)?;
    both.expect(7)?.says("out\n")?;
    bed.podman(&["run", "--rm", IMAGE, "true"]).run()?.expect(0)?.says("")?;
    bed.podman(&["run", "--no-such-option", IMAGE]).run()?.expect(125)?;
    Ok(())
}

/// What the runtime says must come out of podman, which makes 126 and 127 of it.
pub fn runtime_refuses(bed: &Bed) -> Verdict {
    bed.podman(&["run", "--rm", IMAGE, "/etc"]).run()?.expect(126)?.complains("permission denied")?;
    bed.podman(&["run", "--rm", IMAGE, "no-such-program"])
        .run()?
        .expect(127)?
        .complains("executable file not found")?;
    let log = format!("path={}/nowhere/log", bed.dir.display());
    let refused = bed.podman(&["run", "--rm", "--log-opt", &log, IMAGE, "true"]).run()?;
    check!(refused.status.code() != Some(0), "a log that cannot be opened: {}", refused.story());
    refused.complains("Failed to open log file")?;
    bed.without_monitors()
}

/// The first process of a pid namespace is immune to most signals, hence the host's.
pub fn signalled(bed: &Bed) -> Verdict {
    for (signal, code) in [("TERM", 143), ("ABRT", 134), ("KILL", 137)] {
        let script = format!("kill -{signal} $$; sleep 5");
        bed.podman(&["run", "--rm", "--pid", "host", IMAGE, "sh", "-c", &script]).run()?.expect(code)?;
    }
    Ok(())
}

pub fn piped_both_ways(bed: &Bed) -> Verdict {
    let bytes = random(1_500_000)?;
    let echoed = bed.podman(&["run", "--rm", "-i", IMAGE, "cat"]).input(&bytes).run()?.expect(0)?;
    same_bytes("1.5 MB through `podman run -i cat`", &bytes, &echoed.out)
}

pub fn piped_digest(bed: &Bed) -> Verdict {
    let bytes = random(1_500_000)?;
    let here = bed.host(&bed.rig.busybox, &["sha512sum"]).input(&bytes).ok()?;
    bed.podman(&["run", "--rm", "-i", IMAGE, "sha512sum"]).input(&bytes).run()?.expect(0)?.says(&(here + "\n"))?;
    Ok(())
}

/// The same bytes to the client and to the log, although the container ends right after the last one.
pub fn large_output(bed: &Bed) -> Verdict {
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    let shown = bed.podman(&["run", "--name", "big", IMAGE, "seq", "1", "200000"]).run()?.expect(0)?;
    same_bytes("attached output", expected.as_bytes(), &shown.out)?;
    let logged = bed.podman(&["logs", "big"]).run()?.expect(0)?;
    same_bytes("podman logs", expected.as_bytes(), &logged.out)
}

pub fn detached(bed: &Bed) -> Verdict {
    let id = bed.ok(&["run", "-d", "--name", "d", IMAGE, "sh", "-c", &format!("echo up; {PARK}")])?;
    check!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "not an ID: {id:?}");
    bed.logged("d", "up")?;
    let listed = bed.ok(&["ps", "--no-trunc", "--format", "{{.ID}} {{.Status}}"])?;
    check!(listed.starts_with(&format!("{id} Up ")), "podman ps: {listed:?}");
    check!(bed.monitors().len() == 1, "one container, but {} monitors", bed.monitors().len());
    bed.ok(&["stop", "d"])?;
    let code = bed.inspect("d", "{{.State.Status}} {{.State.ExitCode}}")?;
    check!(code == "exited 0", "after stop: {code}");
    Ok(())
}

/// `--rm`: the monitor's exit command removes the container, also where nobody waits for it.
pub fn removed(bed: &Bed) -> Verdict {
    bed.podman(&["run", "--rm", IMAGE, "sh", "-c", "exit 3"]).run()?.expect(3)?;
    let all = bed.ok(&["ps", "-aq"])?;
    check!(all.is_empty(), "`run --rm` in the foreground left {all}");
    bed.ok(&["run", "-d", "--rm", "--name", "brief", IMAGE, "sleep", "0.3"])?;
    let gone = eventually(PATIENCE, || bed.ok(&["ps", "-aq"]).is_ok_and(|all| all.is_empty()));
    check!(gone, "`run -d --rm` left {:?}", bed.ok(&["ps", "-a"]));
    let stores = fs::read_dir(bed.path("root/overlay-containers"))
        .map_or(0, |dir| dir.flatten().filter(|e| e.path().is_dir()).count());
    check!(stores == 0, "{stores} container directories are left");
    bed.without_monitors()
}

/// With catatonit where there is one; otherwise a shell script plays the part of the first process.
pub fn init(bed: &Bed) -> Verdict {
    let script =
        bed.write("init", "#!/bin/sh\n[ \"$1\" = -- ] && shift\n\"$@\" &\ntrap \"kill -TERM $!\" TERM\nwait $!\n")?;
    bed.host("chmod", &["755", &script]).ok()?;
    let init = found("catatonit").map_or(script, |path| path.display().to_string());
    let run = ["run", "--rm", "--init", "--init-path", &init, IMAGE];
    let seen =
        bed.podman(&[&run[..], &["sh", "-c", "echo $$; cat /proc/1/cmdline; exit 5"]].concat()).run()?.expect(5)?;
    check!(!seen.text().starts_with("1\n"), "the command is process 1 in spite of --init: {}", seen.story());
    check!(seen.text().contains("podman-init"), "process 1 is not podman's init: {}", seen.story());
    Ok(())
}

pub fn start_attached(bed: &Bed) -> Verdict {
    bed.ok(&["create", "-i", "--name", "c", IMAGE, "sh", "-c", "cat; exit 4"])?;
    for _ in 0..2 {
        bed.podman(&["start", "-a", "-i", "c"]).input(b"one\ntwo\n").run()?.expect(4)?.says("one\ntwo\n")?;
    }
    let log = bed.ok(&["logs", "c"])?;
    check!(log == "one\ntwo\none\ntwo", "the log of both runs: {log:?}");
    Ok(())
}

pub fn signals_are_proxied(bed: &Bed) -> Verdict {
    let script = "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let run = bed.podman(&["run", "--rm", IMAGE, "sh", "-c", script]).start()?;
    run.wait_for("ready")?;
    run.signal(Signal::SIGTERM)?;
    run.finish()?.expect(9)?.says("ready\ncaught\n")?;
    Ok(())
}

/// A container that is not root may open its own output again, by name.
pub fn user_reopens_stdout(bed: &Bed) -> Verdict {
    let script = "id -u; echo again >/dev/stdout; echo wrong >/dev/stderr";
    let done = bed.podman(&["run", "--rm", "--user", "1000", IMAGE, "sh", "-c", script]).run()?;
    same_bytes("stderr", b"wrong\n", &done.err)?;
    done.expect(0)?.says("1000\nagain\n")?;
    Ok(())
}

pub fn preserved_descriptors(bed: &Bed) -> Verdict {
    let file = bed.write("third", "from the third\n")?;
    let open = || File::open(&file).map(OwnedFd::from).map_err(|e| failed(&file, &e));
    let script = "cat <&3; ls /proc/self/fd | wc -l";
    let seen =
        bed.podman(&["run", "--rm", "--preserve-fds", "1", IMAGE, "sh", "-c", script]).third(open()?, false).run()?;
    // 0, 1, 2, ours, and the directory that ls has open: nothing of the monitor's leaks in.
    seen.expect(0)?.says("from the third\n5\n")?;
    let without =
        bed.podman(&["run", "--rm", IMAGE, "sh", "-c", "ls /proc/self/fd | wc -l"]).third(open()?, false).run()?;
    without.expect(0)?.says("4\n")?;
    Ok(())
}

/// Bytes that no pattern of a bug can reproduce.
pub fn random(count: u64) -> Verdict<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open("/dev/urandom").and_then(|file| file.take(count).read_to_end(&mut bytes));
    read.map_err(|e| failed("/dev/urandom", &e))?;
    Ok(bytes)
}

/// Long enough for a loaded machine, short enough to be called prompt beside `sleep 100`.
pub const PROMPT: Duration = Duration::from_secs(20);
