//! The attach socket: where it is, what its packets look like, when stdin ends, who waits for whom.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

use crate::support::attach::{Client, STDERR, STDOUT};
use crate::support::scene::{CID, Scene};
use crate::support::suite::{Case, Monitor};
use crate::support::wait::{self, SOON};
use crate::support::{Outcome, check, procs, same, same_bytes};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("attach/socket-file", "5.1", "seqpacket, mode 0700, in the bundle, through the symlink", socket_file),
        Case::new("attach/full-attach", "5.1", "--full-attach: no symlink; --socket-dir-path is ignored", full_attach),
        Case::new("attach/long-path", "5.1", "a bundle path of more than 108 bytes", long_path),
        Case::new("attach/stale-files", "5.1", "a stale socket, FIFO and symlink are replaced", stale),
        Case::new("attach/streams", "5.2", "stream bytes 2 and 3, bytes as written", streams),
        Case::new("attach/packet-size", "5.2", "no packet is longer than 8193 bytes", packet_size),
        Case::new("attach/no-replay", "5.2", "live bytes only", no_replay),
        Case::new("attach/input", "5.3", "input reaches the container, byte for byte", |m| input(m, 32768)),
        Case::new("attach/input-64k", "11 B6", "packets of 64 KiB are not cut", |m| input(m, 65536)).defect("B6"),
        Case::new("attach/input-slow-reader", "5.4", "640 KiB through a sleeping reader, then EOF", slow_reader),
        Case::new("attach/no-stdin", "5.3", "without -i input is dropped, output goes on", no_stdin),
        Case::new("attach/stdin-is-null", "3.3", "without -i stdin is /dev/null", stdin_is_null),
        Case::new("attach/half-close", "5.5", "half-close: stdin ends, output still comes", half_close),
        Case::new("attach/close-ends-stdin", "5.5", "a client that leaves ends stdin", close_ends),
        Case::new("attach/leave-stdin-open", "5.5", "--leave-stdin-open: the next client may write", leave_open),
        Case::new("attach/two-clients", "5.2", "two clients see the same", two_clients),
        Case::new("attach/end-after-log", "3.9", "at EOF the log is complete and the socket file gone", end_after_log),
        Case::new("attach/removed-at-end", "3.9", "attach goes, ctl and winsz stay", removed),
        Case::new("attach/symlink-removed", "3.9", "the symlink goes at the end", |monitor| {
            let (live, _) = Scene::create(monitor)?.run()?;
            check(fs::symlink_metadata(live.dir.join("s").join(CID)).is_err(), "the symlink must be gone")
        })
        .since("2.2"),
        Case::new("attach/drained", "3.9", "700 000 bytes and an immediate end: the client gets all", drained),
        Case::new("attach/slow-client", "5.6", "a client that reads late gets every byte", slow_client),
        Case::new("attach/stalled-client", "11 B1", "a client that never reads stops neither log nor exit", stalled)
            .defect("B1"),
        Case::new("attach/client-dies", "5.5", "a client that dies does not harm the others", client_dies),
        Case::new("attach/closed-stdin-is-quiet", "11 B2", "input for a closed stdin costs no CPU", busy_loop)
            .defect("B2"),
        Case::new("attach/leavers-are-closed", "11 B5", "30 clients come and go: no descriptor stays", leavers)
            .defect("B5"),
        Case::new("attach/first-leaver", "11 B7", "stdin ends with the last client, not the first", first_leaver)
            .defect_at_times("B7"),
        Case::new("attach/before-the-runtime", "3", "socket and FIFOs are there when the runtime is called", early),
        Case::new("attach/during-a-read", "5.2", "who connects before something is written gets it", during_a_read)
            .native(),
        Case::new("attach/storm", "5.1", "60 clients connect and leave while output runs", storm),
    ]
}

/// A container that waits, then prints, then waits.
fn talker(monitor: &Monitor, print: &str) -> Outcome<Scene> {
    let mut scene = Scene::create(monitor)?;
    scene.script(&format!("go; {print}"))?;
    Ok(scene)
}

fn socket_file(monitor: &Monitor) -> Outcome {
    let live = talker(monitor, "echo hi")?.start()?;
    live.container()?;
    let link = live.dir.join("s").join(CID);
    same("target of the symlink", fs::read_link(&link)?, live.dir.join("b"))?;
    let meta = fs::metadata(live.dir.join("b/attach"))?;
    check(meta.file_type().is_socket(), "attach must be a socket")?;
    same("mode", meta.mode() & 0o7777, 0o700)?;
    let client = Client::connect(&link.join("attach"))?;
    live.go()?;
    same("output", client.to_end(STDOUT)?, b"hi\n".to_vec())
}

fn full_attach(monitor: &Monitor) -> Outcome {
    let mut scene = talker(monitor, "echo hi")?;
    let live = scene.flag("--full-attach").set("--socket-dir-path", "/not/there").start()?;
    let client = live.attach()?;
    live.go()?;
    same("output", client.to_end(STDOUT)?, b"hi\n".to_vec())?;
    same("files in s", fs::read_dir(live.dir.join("s"))?.count(), 0)
}

fn long_path(monitor: &Monitor) -> Outcome {
    let mut scene = talker(monitor, "echo hi")?;
    let long = scene.dir.join("d".repeat(100)).join("e".repeat(100));
    let live = scene.bundle(&long)?.flag("--full-attach").start()?;
    let client = live.attach()?;
    live.ctl("2 0 0\n")?;
    live.go()?;
    same("output", client.to_end(STDOUT)?, b"hi\n".to_vec())?;
    live.end()?;
    check(!long.join("attach").exists(), "the socket file must be gone")
}

fn stale(monitor: &Monitor) -> Outcome {
    let mut scene = talker(monitor, "echo hi")?;
    for name in ["b/attach", "b/ctl", "b/winsz"] {
        fs::write(scene.dir.join(name), "stale")?;
    }
    std::os::unix::fs::symlink("/nowhere", scene.dir.join("s").join(CID))?;
    let live = scene.start()?;
    live.container()?;
    let client = Client::connect(&live.dir.join("s").join(CID).join("attach"))?;
    for name in ["ctl", "winsz"] {
        check(fs::metadata(live.dir.join("b").join(name))?.file_type().is_fifo(), format!("{name} must be a FIFO"))?;
    }
    live.go()?;
    same("output", client.to_end(STDOUT)?, b"hi\n".to_vec())
}

fn streams(monitor: &Monitor) -> Outcome {
    let live = talker(monitor, "printf 'a\\000\\377b'; printf 'err\\n' >&2")?.start()?;
    let (one, two) = (live.attach()?, live.attach()?);
    live.go()?;
    same("stdout", one.to_end(STDOUT)?, b"a\0\xffb".to_vec())?;
    same("stderr", two.to_end(STDERR)?, b"err\n".to_vec())
}

fn packet_size(monitor: &Monitor) -> Outcome {
    let live = talker(monitor, "head -c 300000 /dev/zero")?.start()?;
    let client = live.attach()?;
    live.go()?;
    let mut count = 0;
    while let Some((stream, data)) = client.packet()? {
        same("stream", stream, STDOUT)?;
        check((1..=8192).contains(&data.len()), format!("{} bytes in one packet", data.len()))?;
        count += data.len();
    }
    same("bytes", count, 300_000)
}

fn no_replay(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.script("echo early; go; echo late")?.start()?;
    live.log_has("early")?;
    let client = live.attach()?;
    live.go()?;
    same("output", client.to_end(STDOUT)?, b"late\n".to_vec())
}

/// Bytes that show where something is missing or doubled.
fn pattern(size: usize) -> Vec<u8> {
    (0..size.div_ceil(8)).flat_map(|n| format!("{n:07}\n").into_bytes()).take(size).collect()
}

fn input(monitor: &Monitor, packet: usize) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.flag("-i").script("cat > \"$D/got\"")?.start()?;
    let bytes = pattern(4 * packet);
    let client = live.attach()?;
    for part in bytes.chunks(packet) {
        client.send(part)?;
    }
    client.half_close()?;
    same("status", live.end()?, 0)?;
    same_bytes("what the container read", &fs::read(live.dir.join("b/got"))?, &bytes)
}

fn slow_reader(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.flag("-i").script("sleep 0.5; cat > \"$D/got\"")?.start()?;
    let bytes = pattern(640 * 1024);
    let client = live.attach()?;
    for part in bytes.chunks(32768) {
        client.send(part)?;
    }
    client.half_close()?;
    same("status", live.end()?, 0)?;
    same_bytes("what the container read", &fs::read(live.dir.join("b/got"))?, &bytes)
}

fn no_stdin(monitor: &Monitor) -> Outcome {
    let live = talker(monitor, "echo on")?.start()?;
    let client = live.attach()?;
    client.send(b"nobody reads this\n")?;
    live.go()?;
    same("output", client.to_end(STDOUT)?, b"on\n".to_vec())?;
    same("status", live.end()?, 0)
}

fn stdin_is_null(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (live, status) = scene.script("cat; readlink /proc/self/fd/0; exit 4")?.run()?;
    same("status", status, 4)?;
    live.log_has("stdout F /dev/null")
}

fn half_close(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.flag("-i").script("cat; echo after; exit 3")?.start()?;
    let client = live.attach()?;
    client.send(b"one\n")?;
    client.half_close()?;
    same("output", client.to_end(STDOUT)?, b"one\nafter\n".to_vec())?;
    same("status", live.end()?, 3)
}

fn close_ends(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.flag("-i").script("cat; exit 3")?.start()?;
    let client = live.attach()?;
    client.send(b"one\n")?;
    client.expect("one")?;
    drop(client);
    same("status", live.end()?, 3)
}

fn leave_open(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let script = "while read x; do echo \"<$x>\"; [ \"$x\" = end ] && exit 5; done; exit 6";
    let live = scene.flag("-i").flag("--leave-stdin-open").script(script)?.start()?;
    for word in ["one", "two"] {
        let client = live.attach()?;
        client.send(format!("{word}\n").as_bytes())?;
        client.expect(&format!("<{word}>"))?;
        client.half_close()?;
    }
    let last = live.attach()?;
    last.send(b"end\n")?;
    same("status", live.end()?, 5)
}

fn two_clients(monitor: &Monitor) -> Outcome {
    let live = talker(monitor, "seq 20000")?.start()?;
    let clients = [live.attach()?, live.attach()?];
    live.go()?;
    let expected: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    std::thread::scope(|scope| {
        let readers = clients.iter().map(|client| scope.spawn(|| client.to_end(STDOUT))).collect::<Vec<_>>();
        for reader in readers {
            let bytes = reader.join().map_err(|_| "a reader panicked")??;
            same_bytes("what a client got", &bytes, expected.as_bytes())?;
        }
        Ok(())
    })
}

fn end_after_log(monitor: &Monitor) -> Outcome {
    let live = talker(monitor, "seq 5000")?.start()?;
    let client = live.attach()?;
    live.go()?;
    client.to_end(STDOUT)?;
    let log = crate::support::crilog::bytes_of(&live.log()?, "stdout");
    let expected: String = (1..=5000).map(|n| format!("{n}\n")).collect();
    same_bytes("the log at the client's EOF", &log, expected.as_bytes())?;
    // conmon wins this only by being faster than us.
    wait::until_true("the socket file to be gone", || !live.dir.join("b/attach").exists())
}

fn removed(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (live, _) = scene.run()?;
    check(!live.dir.join("b/attach").exists(), "attach must be gone")?;
    check(live.dir.join("b/ctl").exists() && live.dir.join("b/winsz").exists(), "ctl and winsz stay")
}

fn drained(monitor: &Monitor) -> Outcome {
    let live = talker(monitor, "head -c 700000 /dev/zero | tr '\\0' z")?.start()?;
    let client = live.attach()?;
    live.go()?;
    same_bytes("what the client got", &client.to_end(STDOUT)?, &vec![b'z'; 700_000])
}

fn slow_client(monitor: &Monitor) -> Outcome {
    let live = talker(monitor, "seq 250000")?.start()?;
    let client = live.attach()?;
    live.go()?;
    std::thread::sleep(Duration::from_millis(700));
    let expected: String = (1..=250_000).map(|n| format!("{n}\n")).collect();
    same_bytes("what the slow client got", &client.to_end(STDOUT)?, expected.as_bytes())
}

fn stalled(monitor: &Monitor) -> Outcome {
    let live = talker(monitor, "head -c 8000000 /dev/zero | tr '\\0' w; exit 7")?.start()?;
    let client = live.attach()?;
    live.go()?;
    same("exit file, while a client does not read", live.exit_file()?, "7".to_owned())?;
    let log = crate::support::crilog::bytes_of(&live.log()?, "stdout");
    same("bytes in the log", log.len(), 8_000_000)?;
    drop(client);
    live.end().map(drop)
}

fn client_dies(monitor: &Monitor) -> Outcome {
    let live = talker(monitor, "seq 1000; go; seq 1000")?.start()?;
    let (dies, lives) = (live.attach()?, live.attach()?);
    live.go()?;
    lives.bytes(STDOUT, 3893)?;
    drop(dies);
    live.go()?;
    same("bytes after the other's death", lives.to_end(STDOUT)?.len(), 3893)?;
    same("status", live.end()?, 0)
}

fn busy_loop(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.flag("-i").script("exec 0<&-; echo closed; go")?.start()?;
    live.log_has("closed")?;
    let client = live.attach()?;
    // More than the pipe takes, so that something is pending when the container closes its end.
    for _ in 0..8 {
        client.send(&[b'x'; 32000])?;
    }
    let before = procs::cpu_ticks(live.pid()?)?;
    std::thread::sleep(Duration::from_millis(1000));
    let ticks = procs::cpu_ticks(live.pid()?)? - before;
    check(ticks <= 10, format!("{ticks} clock ticks of CPU in a second in which nothing happens"))?;
    live.go()?;
    live.end().map(drop)
}

fn leavers(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.script("echo ready; go")?.start()?;
    live.log_has("ready")?;
    let pid = live.pid()?;
    let before = procs::descriptors(pid)?.len();
    for _ in 0..30 {
        drop(live.attach()?);
    }
    let count = || procs::descriptors(pid).map_or(usize::MAX, |fds| fds.len());
    wait::until(&format!("the daemon to be back at {before} descriptors"), Duration::from_secs(3), || {
        Ok((count() <= before).then_some(()))
    })?;
    live.go()?;
    live.end().map(drop)
}

fn first_leaver(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.flag("-i").script("while read x; do echo \"<$x>\"; done; exit 3")?.start()?;
    let (first, second) = (live.attach()?, live.attach()?);
    first.send(b"one\n")?;
    second.expect("<one>")?;
    drop(first);
    // Time to notice that it left; nothing outside shows it.
    std::thread::sleep(Duration::from_millis(200));
    second.send(b"two\n")?;
    second.expect("<two>")?;
    second.half_close()?;
    same("status", live.end()?, 3)
}

fn early(monitor: &Monitor) -> Outcome {
    let (live, _) = Scene::create(monitor)?.run()?;
    let seen = live.seen()?;
    let names: Vec<&str> = seen["bundle"].as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect();
    for name in ["attach", "ctl", "winsz"] {
        check(names.contains(&name), format!("no {name} in the bundle: {names:?}"))?;
    }
    Ok(())
}

/// The monitor knows that there is output and has not read it yet, as whenever the processor is taken from it there.
fn during_a_read(monitor: &Monitor) -> Outcome {
    let live = talker(monitor, "echo one; : >$D/one; go; echo two; : >$D/two; go")?.start()?;
    let pipe = fs::read_link(format!("/proc/{}/fd/1", live.container()?))?;
    let held = procs::Held::seize(live.pid()?)?;
    held.go_on()?;
    live.go()?;
    held.at_read(&pipe)?;
    wait::for_file(&live.dir.join("b/one"))?;
    let client = live.attach()?;
    live.go()?;
    wait::for_file(&live.dir.join("b/two"))?;
    drop(held);
    client.expect("two")?;
    live.go()?;
    same("status", live.end()?, 0)
}

fn storm(monitor: &Monitor) -> Outcome {
    let live =
        talker(monitor, "i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); sleep 0.002; done; exit 2")?.start()?;
    live.container()?;
    live.go()?;
    for number in 0..60 {
        let client = live.attach()?;
        if number % 3 == 0 {
            client.packet_within(SOON)?;
        }
    }
    same("status", live.end()?, 2)?;
    let expected: String = (0..400).map(|n| format!("{n}\n")).collect();
    same_bytes("the log", &crate::support::crilog::bytes_of(&live.log()?, "stdout"), expected.as_bytes())
}
