//! conwardctl at a terminal, with podman's containers.

use std::{thread, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    Verdict,
    bed::{Bed, IMAGE, PARK, PATIENCE},
    check,
    processes::eventually,
    tty::Tty,
};

const SHELL: &[&str] = &["run", "-dit", "--name", "t", IMAGE, "sh"];
/// ctrl-p, ctrl-q
const DETACH: &str = "\x10\x11";
/// What is said when a terminal is left.
const LEFT: &str = "which goes on";

pub fn attach_and_detach(bed: &Bed) -> Verdict {
    let id = bed.ok(SHELL)?;
    let mut tty = Tty::of(bed, bed.ctl(&["attach", &id])?)?;
    tty.keys("word=kept; echo sum-$((40+2))\n")?;
    tty.wait_for("sum-42\r\n")?;
    tty.resize(33, 99)?;
    let resized = eventually(bed.left(PATIENCE), || tty.keys("stty size\n").is_ok() && tty.soon("33 99"));
    check!(resized, "the new size did not reach the container: {:?}", tty.screen());
    tty.press(DETACH)?;
    let screen = tty.end(0)?;
    check!(screen.contains(LEFT), "nothing is said on leaving: {screen:?}");
    let mut tty = Tty::of(bed, bed.ctl(&["attach", "--history=all", &id])?)?;
    tty.wait_for("sum-42\r\n")?;
    tty.keys("echo word-$word\n")?;
    tty.wait_for("word-kept\r\n")?;
    tty.press(DETACH)?;
    tty.end(0)?;
    Ok(())
}

/// There is nothing to type into: its output is shown all the same.
pub fn attach_without_stdin(bed: &Bed) -> Verdict {
    let script = "echo first; until [ -e /tmp/end ]; do sleep 0.1; done; echo last; exit 4";
    let id = bed.ok(&["run", "-d", "--name", "t", IMAGE, "sh", "-c", script])?;
    let mut tty = Tty::of(bed, bed.ctl(&["attach", "--history=all", &id])?)?;
    tty.wait_for("first\r\n")?;
    bed.end("t")?;
    tty.wait_for("last\r\n")?;
    tty.end(4)?;
    Ok(())
}

pub fn attached_over_the_end(bed: &Bed) -> Verdict {
    let id = bed.ok(SHELL)?;
    let mut tty = Tty::of(bed, bed.ctl(&["attach", &id])?)?;
    tty.keys("echo last-$((1+1)); exit 9\n")?;
    let screen = tty.end(9)?;
    check!(screen.contains("last-2\r\n"), "the last words are missing: {screen:?}");
    check!(!screen.contains(LEFT), "nobody left: {screen:?}");
    Ok(())
}

pub fn attached_over_an_upgrade(bed: &Bed) -> Verdict {
    let id = bed.ok(SHELL)?;
    let mut tty = Tty::of(bed, bed.ctl(&["attach", &id])?)?;
    tty.keys("echo before-$((1+1))\n")?;
    tty.wait_for("before-2\r\n")?;
    let told = bed.ctl(&["upgrade", &id])?.ok()?;
    check!(told.contains("upgraded"), "{told}");
    tty.keys("echo after-$((1+1))\n")?;
    let between = tty.wait_for("after-2\r\n")?;
    check!(!between.contains("before-2"), "something is shown twice: {between:?}");
    tty.keys("exit 6\n")?;
    tty.end(6)?;
    Ok(())
}

/// The terminal is as it was, also after an end by a signal.
pub fn killed_in_a_terminal(bed: &Bed) -> Verdict {
    let id = bed.ok(SHELL)?;
    let ctl = bed.ctl(&["attach", &id])?;
    let script = "trap : TERM; \"$@\"; echo status-$?; stty -a | grep -o '[-]*icanon'";
    let mut tty = Tty::of(bed, ctl.under("/bin/sh", &["-c", script, "sh"]))?;
    tty.keys("echo in-$((1+1))\n")?;
    tty.wait_for("in-2\r\n")?;
    let shell = tty.pid();
    let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap_or_default();
    let pid = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
    check!(pid.is_some(), "the shell has no child: {children:?}");
    let sent = pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
    check!(sent == Some(Ok(())), "cannot signal {pid:?}: {sent:?}");
    tty.wait_for("status-143\r\n")?;
    tty.wait_for("icanon\r\n")?;
    let screen = tty.end(0)?;
    check!(!screen.contains("-icanon"), "the terminal is still raw: {screen:?}");
    check!(screen.contains(LEFT), "nothing is said on leaving: {screen:?}");
    Ok(())
}

pub fn exec_in_a_terminal(bed: &Bed) -> Verdict {
    let id = bed.ok(&["run", "-d", "--name", "t", IMAGE, "sh", "-c", PARK])?;
    let mut tty = Tty::of(bed, bed.ctl(&["exec", "-it", &id, "sh"])?)?;
    tty.wait_for("# ")?;
    tty.keys("echo sum-$((40+2)); test -t 0 && echo terminal-$?\n")?;
    tty.wait_for("sum-42\r\n")?;
    tty.wait_for("terminal-0\r\n")?;
    tty.resize(33, 99)?;
    let resized = eventually(bed.left(PATIENCE), || tty.keys("stty size\n").is_ok() && tty.soon("33 99"));
    check!(resized, "the new size did not reach the shell: {:?}", tty.screen());
    tty.keys("sleep 100\n")?;
    // The shell is to have read the line, or the key would clear it.
    thread::sleep(Duration::from_millis(300));
    tty.keys("\x03")?;
    tty.keys("echo interrupted-$?\n")?;
    tty.wait_for("interrupted-130\r\n")?;
    tty.keys("exit 7\n")?;
    tty.end(7)?;
    Ok(())
}

pub fn exec_codes(bed: &Bed) -> Verdict {
    let id = bed.ok(&["run", "-d", "--name", "t", IMAGE, "sh", "-c", PARK])?;
    let exec = |command: &[&str]| bed.ctl(&[&["exec", &id[..]], command].concat())?.run();
    exec(&["sh", "-c", "echo out; echo err >&2; exit 3"])?.expect(3)?.says("out\n")?.complains("err")?;
    exec(&["sh", "-c", "kill -KILL $$"])?.expect(137)?;
    exec(&["/etc"])?.expect(126)?.complains("permission denied")?;
    let done = exec(&["no-such-program"])?.expect(127)?.complains("executable file not found")?;
    let text = done.text();
    check!(!text.contains("level=") && !text.contains("\"msg\""), "a log record instead of its message: {text}");
    let timed = bed.ctl(&["exec", "--timeout", "0.3", &id, "sleep", "60"])?.run()?;
    timed.expect(124)?;
    let piped = bed.ctl(&["exec", "-i", &id, "sh", "-c", "cat; exit 2"])?.input(b"typed").run()?;
    piped.expect(2)?.says("typed")?;
    Ok(())
}

/// Containers of this monitor and of a plain conmon, side by side.
pub fn listed(bed: &Bed) -> Verdict {
    let id = bed.ok(&["run", "-d", "--name", "mine", IMAGE, "sh", "-c", PARK])?;
    let listed = bed.ctl(&["ps"])?.ok()?;
    let row = listed.lines().find(|line| line.starts_with(&id[..12]));
    let Some(row) = row else { return Err(super::Stop::Failed(format!("{id} is not in the list:\n{listed}"))) };
    check!(row.contains(" mine ") && row.contains(" running "), "the row: {row}");
    // Columns of numbers end where their headings do.
    let heading = listed.lines().next().unwrap_or_default();
    for name in ["PID", "MONITOR", "UP", "OUTPUT", "EXECS"] {
        let end = heading.find(name).map_or(0, |at| at + name.len());
        let cells = listed.lines().skip(1);
        for line in cells.filter(|line| line.is_ascii()) {
            let after = line.as_bytes().get(end).copied().unwrap_or(b' ');
            let last = line.as_bytes().get(end - 1).copied().unwrap_or(b' ');
            check!(after == b' ' && last != b' ', "{name} does not line up:\n{listed}");
        }
    }
    let top = bed.ctl(&["top", "--once", "--interval", "0.2"])?.ok()?;
    check!(top.contains(&id[..12]), "{id} is not in the table:\n{top}");
    Ok(())
}

pub fn followed_over_an_upgrade(bed: &Bed) -> Verdict {
    let script = "n=0; until [ -e /tmp/end ]; do n=$((n+1)); echo line-$n; sleep 0.05; done; echo lines-$n";
    let id = bed.ok(&["run", "-d", "--name", "t", IMAGE, "sh", "-c", script])?;
    let mut tty = Tty::of(bed, bed.ctl(&["logs", "-f", &id])?)?;
    tty.wait_for("line-3\r\n")?;
    for _ in 0..2 {
        bed.ctl(&["upgrade", &id])?.ok()?;
    }
    bed.end("t")?;
    let screen = tty.end(0)?;
    let count = screen.lines().filter(|line| line.starts_with("line-")).count();
    let expected: String =
        (1..=count).map(|n| format!("line-{n}\r\n")).collect::<String>() + &format!("lines-{count}\r\n");
    check!(screen == expected, "lines are missing, doubled or torn: {screen:?}");
    Ok(())
}

pub fn waited_for(bed: &Bed) -> Verdict {
    let script = "trap 'exit 5' USR1; while :; do sleep 0.1; done";
    let id = bed.ok(&["run", "-d", "--name", "t", IMAGE, "sh", "-c", script])?;
    let mut tty = Tty::of(bed, bed.ctl(&["wait", &id])?)?;
    bed.ctl(&["reopen-log", &id])?.ok()?;
    bed.ctl(&["signal", "-s", "USR1", &id])?.ok()?;
    tty.wait_for("5\r\n")?;
    tty.end(0)?;
    let gone = bed.ctl(&["logs", &id])?.run()?;
    gone.expect(1)?.complains("give the path of its log file")?;
    Ok(())
}
