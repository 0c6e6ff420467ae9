//! `podman attach` without a terminal. In 4.3 it always ends with code 0 and a newline of its own.

use std::path::Path;

use nix::sys::signal::Signal;

use super::{
    Verdict,
    bed::{Bed, IMAGE},
    check,
    output::same_bytes,
    run::PROMPT,
};

/// Ticks until somebody makes /tmp/end, so that a client can see that it is attached.
const TICKS: &str = "until [ -e /tmp/end ]; do echo tick; sleep 0.1; done";

pub fn follows(bed: &Bed) -> Verdict {
    bed.start("a", &format!("{TICKS}; echo last; exit 6"))?;
    let client = bed.podman(&["attach", "--no-stdin", "a"]).start()?;
    client.wait_for("tick\ntick\n")?;
    bed.end("a")?;
    let done = client.finish()?.expect(0)?;
    check!(done.text().ends_with("tick\nlast\n"), "the end is missing: {}", done.story());
    let code = bed.ok(&["wait", "a"])?;
    check!(code == "6", "the container ended with {code}");
    Ok(())
}

/// In a terminal, because there the end of a client's input is not the end of the container's.
pub fn no_stdin(bed: &Bed) -> Verdict {
    let script = format!("({TICKS}) & read word; echo got $word; touch /tmp/end; exit 3");
    bed.ok(&["run", "-d", "-i", "-t", "--name", "a", IMAGE, "sh", "-c", &script])?;
    let watcher = bed.podman(&["attach", "--no-stdin", "a"]).input(b"wrong\n").start()?;
    watcher.wait_for("tick\r\ntick\r\n")?;
    let mut typist = bed.terminal(&["attach", "a"])?;
    typist.wait_for("tick\r\n")?;
    typist.keys("right\n")?;
    typist.wait_for("got right\r\n")?;
    typist.end(0)?;
    let watched = watcher.finish()?.expect(0)?;
    check!(watched.text().contains("got right\r\n"), "{}", watched.story());
    let code = bed.ok(&["wait", "a"])?;
    check!(code == "3", "the container ended with {code}");
    Ok(())
}

/// The same without one: what the client does not read does not reach the container.
pub fn no_stdin_piped(bed: &Bed) -> Verdict {
    bed.ok(&["run", "-d", "-i", "--name", "a", IMAGE, "sh", "-c", "sed 's/^/got /'"])?;
    bed.podman(&["attach", "--no-stdin", "a"]).input(b"wrong\n").run()?.expect(0)?.says("\n")?;
    let log = bed.ok(&["logs", "a"])?;
    check!(log.is_empty(), "the container read {log:?}");
    Ok(())
}

pub fn two_clients(bed: &Bed) -> Verdict {
    bed.start("a", &format!("{TICKS}; echo begin; seq 1 50000"))?;
    let clients =
        [bed.podman(&["attach", "--no-stdin", "a"]).start()?, bed.podman(&["attach", "--no-stdin", "a"]).start()?];
    for client in &clients {
        client.wait_for("tick\n")?;
    }
    bed.end("a")?;
    let expected: String = (1..=50_000).map(|n| format!("{n}\n")).collect::<String>() + "\n";
    for client in clients {
        let text = client.finish()?.expect(0)?.out;
        let text = String::from_utf8_lossy(&text).into_owned();
        let (_, numbers) = text.split_once("begin\n").unwrap_or_default();
        same_bytes("what one of two clients saw", expected.as_bytes(), numbers.as_bytes())?;
    }
    Ok(())
}

/// A client that takes nothing stops neither the container nor `podman wait`, and misses nothing once it goes on.
pub fn stopped_client(bed: &Bed) -> Verdict {
    bed.only_ours("it waits for its slowest client")?;
    bed.start("a", &format!("{TICKS}; echo begin; seq 1 {MANY}; exit 6"))?;
    let client = bed.podman(&["attach", "--no-stdin", "a"]).start()?;
    client.wait_for("tick\n")?;
    client.signal(Signal::SIGSTOP)?;
    bed.end("a")?;
    let code = bed.podman(&["wait", "a"]).within(PROMPT).run()?.expect(0)?;
    check!(code.text() == "6", "the container ended with {}", code.text());
    client.signal(Signal::SIGCONT)?;
    let text = String::from_utf8_lossy(&client.finish()?.expect(0)?.out).into_owned();
    let (_, numbers) = text.split_once("begin\n").unwrap_or_default();
    let expected: String = (1..=MANY).map(|n| format!("{n}\n")).collect::<String>() + "\n";
    same_bytes("what the client saw that was stopped", expected.as_bytes(), numbers.as_bytes())
}

/// The end of the client's stdin is the end of the container's, and output still comes back.
pub fn piped_stdin(bed: &Bed) -> Verdict {
    bed.ok(&["run", "-d", "-i", "--name", "a", IMAGE, "sh", "-c", "wc -c; sleep 0.3; echo after"])?;
    let done = bed.podman(&["attach", "a"]).input(&[b'x'; 300_000]).run()?;
    done.expect(0)?.says("300000\nafter\n\n")?;
    Ok(())
}

pub fn refused_after_the_end(bed: &Bed) -> Verdict {
    bed.start("a", "exit 0")?;
    bed.ok(&["wait", "a"])?;
    bed.without_monitors()?;
    bed.podman(&["attach", "a"]).run()?.expect(125)?.complains("can only attach to")?;
    let socket = bed.inspect("a", "{{.StaticDir}}/attach")?;
    check!(Path::new(&socket).parent().is_some_and(Path::is_dir), "no directory for {socket}");
    check!(!Path::new(&socket).exists(), "the attach socket is still there: {socket}");
    Ok(())
}

/// Numbered lines, about 14 MB: more than all sockets and queues on the way can hold.
const MANY: usize = 2_000_000;
