//! `ctl` and `winsz`: what is obeyed, what is rejected.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

use crate::support::pipes::Kind;
use crate::support::scene::Scene;
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, procs, same};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("ctl/files", "6", "FIFOs of mode 0640 with a reader, before the report", files),
        Case::new("ctl/split-write", "6", "a line in two writes is joined", split),
        Case::new("ctl/winsz", "6", "lines on winsz are obeyed", winsz),
        Case::new("ctl/no-tty", "11 B3", "resizes for a container without a terminal stop nothing", no_tty)
            .defect("B3"),
        Case::new("ctl/after-output", "6", "still read after a lot of output", after_output),
    ];
    for (id, clause, input, size, mark) in ROWS {
        let what = format!("{:?}: the size is {size}", input.chars().take(30).collect::<String>());
        let case = Case::new(&format!("ctl/{id}"), clause, &what, move |monitor: &Monitor| row(monitor, input, size));
        cases.push(match mark {
            "" => case,
            mark if mark.starts_with('B') => case.defect(mark),
            mark => case.since(mark),
        });
    }
    cases
}

/// (id, clause, what is written to `ctl`, the size afterwards, first conmon that does so or its defect).
const ROWS: [(&str, &str, &str, &str, &str); 31] = [
    ("resize", "6", "1 10 20\n", "10 20", ""),
    ("leading-blanks", "6", "   1 10 20\n", "10 20", ""),
    ("many-blanks", "6", "1    10   20\n", "10 20", ""),
    ("tabs", "6", "1\t10\t20\n", "10 20", ""),
    ("plus-signs", "6", "+1 +10 +20\n", "10 20", ""),
    ("leading-zeros", "6", "1 0010 0020\n", "10 20", ""),
    ("extra-words", "6", "1 2 2 3\n", "2 2", ""),
    ("trailing-junk", "6", "1 13 23abc\n", "13 23", ""),
    ("maximum", "6", "1 1000 1000\n", "1000 1000", ""),
    ("zero", "6", "1 5 0\n", "5 0", ""),
    ("two-lines", "6", "1 5 6\n1 7 8\n", "7 8", "2.2"),
    ("negative-height", "6", "1 -2 2\n", "0 0", "2.2"),
    ("negative-width", "6", "1 2 -2\n", "0 0", "2.2"),
    ("two-words", "6", "1 2\n", "0 0", ""),
    ("one-word", "6", "1\n", "0 0", ""),
    ("word", "6", "foo\n", "0 0", ""),
    ("number", "6", "999\n", "0 0", ""),
    ("unknown-type", "6", "999 2 2\n", "0 0", ""),
    ("type-zero", "6", "0 2 2\n", "0 0", ""),
    ("floating-point", "6", "1 10.5 20.3\n", "0 0", ""),
    ("hexadecimal", "6", "1 0x10 0x20\n", "0 0", ""),
    ("height-too-large", "6", "1 1001 20\n", "0 0", "2.2"),
    ("width-too-large", "6", "1 20 1001\n", "0 0", "2.2"),
    ("both-too-large", "6", "1 99999 99999\n", "0 0", "2.2"),
    ("overflow", "11", "1 4294967306 4294967306\n", "0 0", "2.2"),
    ("empty-line", "6", "\n", "0 0", ""),
    ("wrapping", "6", "1 4294967306 20\n", "0 0", "B4"),
    ("valid-after-invalid", "11 B4", "foo\n1 7 8\n", "7 8", "B4"),
    ("valid-after-unknown", "11 B4", "7 1 1\n1 7 8\n", "7 8", "B4"),
    ("too-long", "6", TOO_LONG, "0 0", ""),
    ("valid-after-too-long", "11 B4", THEN_VALID, "7 8", "B4"),
];

macro_rules! blanks {
    () => {
        "                                                                                "
    };
}

const TOO_LONG: &str = concat!("1 2 ", blanks!(), blanks!(), blanks!(), "2\n");
const THEN_VALID: &str = concat!("1 2 ", blanks!(), blanks!(), blanks!(), "2\n1 7 8\n");

/// A terminal whose size is asked on every go.
fn scene(monitor: &Monitor) -> Outcome<Scene> {
    let mut scene = Scene::create(monitor)?;
    scene.flag("-t").script("echo ready; go; echo \"size $(stty size)\"")?;
    Ok(scene)
}

fn row(monitor: &Monitor, input: &str, size: &str) -> Outcome {
    let live = scene(monitor)?.start()?;
    live.log_has("ready")?;
    live.ctl(input)?;
    // Nothing answers a line that is rejected: the monitor has had its chance when it has gone back to sleep.
    settle(&live)?;
    live.go()?;
    live.end()?;
    live.log_has(&format!("size {size}\r"))
}

/// Waits until the daemon has consumed the FIFO and sleeps in its loop.
fn settle(live: &crate::support::scene::Live) -> Outcome {
    let pid = live.pid()?;
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(30));
        crate::support::wait::until_true("the daemon to sleep", || procs::state(pid) == Some('S'))?;
    }
    Ok(())
}

fn files(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let mut live = scene.script("go")?.sync_pipe(Kind::Pipe)?.start()?;
    live.sync()?.report()?;
    for name in ["ctl", "winsz"] {
        let meta = fs::metadata(live.dir.join("b").join(name))?;
        check(meta.file_type().is_fifo(), format!("{name} must be a FIFO"))?;
        same("mode", meta.mode() & 0o7777, 0o640)?;
        let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC;
        nix::fcntl::open(&live.dir.join("b").join(name), flags, nix::sys::stat::Mode::empty())
            .map_err(|error| format!("{name} must have a reader when the report has come: {error}"))?;
    }
    live.go()?;
    live.end().map(drop)
}

fn split(monitor: &Monitor) -> Outcome {
    let live = scene(monitor)?.start()?;
    live.log_has("ready")?;
    live.ctl("1 1")?;
    settle(&live)?;
    live.ctl("5 25\n")?;
    settle(&live)?;
    live.go()?;
    live.end()?;
    live.log_has("size 15 25\r")
}

fn winsz(monitor: &Monitor) -> Outcome {
    let live = scene(monitor)?.start()?;
    live.log_has("ready")?;
    live.fifo("winsz", "12 34\n")?;
    settle(&live)?;
    live.go()?;
    live.end()?;
    live.log_has("size 12 34\r")
}

fn no_tty(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.script("echo ready; go; exit 3")?.start()?;
    live.log_has("ready")?;
    // conmon writes each of them to a FIFO of 64 KiB that nobody reads.
    let lines = "1 100 100\n".repeat(300);
    for _ in 0..40 {
        live.ctl(&lines)?;
        settle_quickly();
    }
    live.go()?;
    same("exit file", live.exit_file()?, "3".to_owned())
}

fn settle_quickly() {
    std::thread::sleep(Duration::from_millis(10));
}

fn after_output(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.flag("-t").script("seq 20000; echo ready; go; echo \"size $(stty size)\"")?;
    let live = scene.start()?;
    live.log_has("ready")?;
    live.ctl("1 10 20\n")?;
    settle(&live)?;
    live.go()?;
    live.end()?;
    live.log_has("size 10 20\r")
}
