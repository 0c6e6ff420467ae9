//! A person at a terminal.

use super::{
    Verdict,
    bed::{Bed, IMAGE, PARK, PATIENCE},
    check,
    output::same_bytes,
    processes::eventually,
};

pub fn typing(bed: &Bed) -> Verdict {
    let mut tty = bed.terminal(&["run", "-it", "--name", "t", IMAGE, "sh"])?;
    tty.wait_for("# ")?;
    tty.keys("echo sum-$((40+2)); test -t 0 && echo terminal-$?\n")?;
    tty.wait_for("sum-42\r\n")?;
    tty.wait_for("terminal-0\r\n")?;
    tty.keys("exit 3\n")?;
    tty.end(3)?;
    let log = bed.ok(&["logs", "t"])?;
    check!(log.contains("sum-42\r\n"), "the log lacks what was on the screen: {log:?}");
    Ok(())
}

pub fn resizing(bed: &Bed) -> Verdict {
    let script = "stty size; trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done";
    let tty = &mut bed.terminal(&["run", "-it", "--name", "t", IMAGE, "sh", "-c", script])?;
    // podman sends the size before it starts the container: the very first instruction sees it.
    let first = tty.wait_for("ready")?;
    check!(first.contains("24 80"), "the first instruction saw another size: {first:?}");
    for (rows, columns) in [(40, 100), (10, 200), (50, 132)] {
        tty.resize(rows, columns)?;
        tty.wait_for(&format!("{rows} {columns}"))?;
    }
    bed.ok(&["kill", "t"])?;
    Ok(())
}

pub fn interrupt(bed: &Bed) -> Verdict {
    let script = "trap 'echo interrupted; exit 8' INT; echo ready; while :; do sleep 0.1; done";
    let mut tty = bed.terminal(&["run", "-it", "--rm", IMAGE, "sh", "-c", script])?;
    tty.wait_for("ready")?;
    tty.keys("\x03")?;
    tty.wait_for("interrupted")?;
    tty.end(8)?;
    Ok(())
}

/// Byte for byte, though the container ends at once; the terminal makes CR LF of each LF.
pub fn large_output(bed: &Bed) -> Verdict {
    let expected: String = (1..=50_000).map(|n| format!("{n}\r\n")).collect();
    let screen = bed.terminal(&["run", "-it", "--name", "t", IMAGE, "seq", "1", "50000"])?.end(0)?;
    same_bytes("the screen", expected.as_bytes(), screen.as_bytes())?;
    let log = bed.podman(&["logs", "t"]).run()?.expect(0)?;
    same_bytes("the log", expected.as_bytes(), &log.out)
}

pub fn detach_and_attach_again(bed: &Bed) -> Verdict {
    let mut tty = bed.terminal(&["run", "-it", "--name", "t", IMAGE, "sh"])?;
    tty.wait_for("# ")?;
    tty.keys("word=kept\n")?;
    tty.wait_for("# ")?;
    tty.press(DETACH)?;
    tty.end(0)?;
    for round in 1..=3 {
        let running = bed.ok(&["ps", "--format", "{{.Names}}"])?;
        check!(running == "t", "after detaching {round} times: running {running:?}");
        let mut tty = bed.terminal(&["attach", "t"])?;
        tty.keys(&format!("echo {round}-$word-again\n"))?;
        tty.wait_for(&format!("{round}-kept-again\r\n"))?;
        tty.press(DETACH)?;
        tty.end(0)?;
    }
    let mut tty = bed.terminal(&["attach", "t"])?;
    tty.keys("exit 5\n")?;
    // podman 4.3's attach has no code of its own.
    tty.end(0)?;
    let code = bed.ok(&["wait", "t"])?;
    check!(code == "5", "the container ended with {code}");
    Ok(())
}

pub fn own_detach_keys(bed: &Bed) -> Verdict {
    bed.ok(&["run", "-dit", "--name", "t", IMAGE, "sh"])?;
    let mut tty = bed.terminal(&["attach", "--detach-keys", "ctrl-x,y", "t"])?;
    // The usual keys now are the container's, and half of the sequence is no sequence.
    tty.press(DETACH)?;
    tty.press("\x18z\n")?;
    tty.keys("\n\necho not-$((1+1))-detached\n")?;
    tty.wait_for("not-2-detached")?;
    tty.press("\x18y")?;
    tty.end(0)?;
    let state = bed.inspect("t", "{{.State.Status}}")?;
    check!(state == "running", "after detaching: {state}");
    Ok(())
}

pub fn exec_typing(bed: &Bed) -> Verdict {
    bed.start("e", PARK)?;
    let mut tty = bed.terminal(&["exec", "-it", "e", "sh", "-c", "stty size; exec sh"])?;
    tty.wait_for("24 80\r\n")?;
    tty.wait_for("# ")?;
    tty.keys("trap 'echo size: $(stty size)' WINCH; echo sum-$((40+2))\n")?;
    tty.wait_for("sum-42\r\n")?;
    tty.resize(33, 99)?;
    let resized = eventually(bed.left(PATIENCE), || {
        // The shell runs its trap when it has read a line.
        tty.keys("stty size\n").is_ok() && tty.soon("33 99")
    });
    check!(resized, "the new size did not reach the exec'd shell: {:?}", tty.screen());
    tty.keys("exit 6\n")?;
    tty.end(6)?;
    Ok(())
}

pub fn exec_detach(bed: &Bed) -> Verdict {
    bed.start("e", PARK)?;
    let script = "echo ready; until [ -e /tmp/end ]; do sleep 0.1; done; echo finished >/tmp/result";
    let mut tty = bed.terminal(&["exec", "-it", "e", "sh", "-c", script])?;
    tty.wait_for("ready")?;
    tty.press(DETACH)?;
    // podman 4.3 ends, but waits five seconds for the exit code of what it has left, and complains.
    tty.gone()?;
    bed.ok(&["exec", "e", "touch", "/tmp/end"])?;
    let done = eventually(bed.left(PATIENCE), || bed.ok(&["exec", "e", "cat", "/tmp/result"]).is_ok());
    check!(done, "the exec'd process did not go on after detaching");
    Ok(())
}

/// ctrl-p, ctrl-q
const DETACH: &str = "\x10\x11";
