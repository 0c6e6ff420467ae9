//! The k8s-file log: form, splitting, caps, reopening, rotation; and what happens when it cannot be written.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::support::crilog::{self, bytes_of};
use crate::support::journal::{own_mounts, tmpfs};
use crate::support::scene::{Live, Scene};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, same, same_bytes, wait};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("log/mode", "7.2", "mode 0640", mode).since("2.1.13"),
        Case::new("log/kept-content", "7.2", "existing content is kept", kept),
        Case::new("log/record-form", "7.3", "strict form, local time with numeric offset", form),
        Case::new("log/time-zone", "7.3", "TZ decides the offset", time_zone),
        Case::new("log/one-stamp-per-read", "7.3", "lines of one write share a stamp", one_stamp),
        Case::new("log/partial-then-rest", "7.3", "part, later ial: P then F", partial_then_rest),
        Case::new("log/long-line", "7.3", "20000 bytes and a later newline read back as they were", long_line),
        Case::new("log/megabyte-line", "7.3", "one line of 1 MB reads back as it was", |m| read_back(m, one_line)),
        Case::new("log/binary", "7.3", "all byte values read back as they were", |m| read_back(m, binary)),
        Case::new("log/many-lines", "7.3", "60 000 short lines read back as they were", |m| read_back(m, short_lines)),
        Case::new("log/size-10", "7.4", "--log-size-max 10: only the last line survives", size_10),
        Case::new("log/size-8192", "7.4", "--log-size-max 8192: never much larger, last line there, no .1", size_8192),
        Case::new("log/size-counts-existing", "7.4", "existing content counts", size_existing).since("2.2"),
        Case::new("log/global-cap", "7.5", "--log-global-size-max: later records are dropped", global_cap),
        Case::new("log/global-cap-attach", "7.5", "clients get everything all the same", global_cap_attach),
        Case::new("log/reopen-after-rename", "7.6", "rename, ctl 2 0 0: nothing lost, new file", reopen_after_rename),
        Case::new("log/reopen-after-delete", "10 rotate logs", "works when the file was deleted", reopen_after_delete),
        Case::new("log/reopen-event", "7.6", "an inotify event for the path although the file is there", reopen_event),
        Case::new("log/reopen-sizes-checked", "6", "2 1001 1 is rejected", reopen_rejected).since("2.2"),
        Case::new("log/reopen-without-file", "7.6", "no k8s-file: no effect", reopen_nothing),
        Case::new(
            "log/reopen-keeps-content",
            "11 B23",
            "content that was not renamed away is not destroyed",
            reopen_keeps,
        )
        .defect("B23"),
        Case::new("log/append-after-reopen", "11 B22", "truncated from outside after a reopen: no hole", append)
            .defect("B22"),
        Case::new(
            "log/reopen-dir-missing",
            "11 B21",
            "reopen with the directory gone: the daemon lives on",
            dir_missing,
        )
        .defect("B21"),
        Case::new("log/rotate", "7.7", "--log-rotate, ctl 2: before in .1, after in the file", rotate).since("2.2"),
        Case::new("log/rotate-by-size", "7.7", "--log-rotate --log-max-files 3: three backups", rotate_by_size)
            .since("2.2"),
        Case::new("log/rotate-keeps-one", "11 B26", "--log-max-files 1 keeps one backup", rotate_one).since("2.2"),
        Case::new("log/rotate-stale-new", "11 B25", "a stale .new does not block rotation", rotate_stale).since("2.2"),
        Case::new("log/rotate-missing-path", "11 B24", "kubelet's rename and ctl 2: plain reopen", rotate_missing)
            .since("2.2"),
        Case::new("log/disk-full", "11 B20", "a full disk: container runs, logging resumes", disk_full).defect("B20"),
        Case::new("log/json-file", "native", "--log-path json-file:PATH is a driver", json_file).native(),
    ];
    let rows: [(&str, &str, &[&str]); 6] = [
        ("line", "printf 'a\\n'", &["stdout F a"]),
        ("empty-line", "printf '\\n'", &["stdout F "]),
        ("no-newline", "printf hello", &["stdout P hello"]),
        ("two-lines", "printf 'a\\nb\\n'", &["stdout F a", "stdout F b"]),
        ("carriage-return", "printf 'a\\r\\n'", &["stdout F a\\r"]),
        ("nul", "printf 'a\\000b\\n'", &["stdout F a\\x00b"]),
    ];
    for (id, script, expected) in rows {
        cases.push(Case::new(&format!("log/content-{id}"), "7.3", script, move |monitor: &Monitor| {
            let (live, _) = Scene::create(monitor)?.script(script)?.run()?;
            same("log", live.plain_log()?, expected.iter().map(|text| (*text).to_owned()).collect())
        }));
    }
    cases
}

fn mode(monitor: &Monitor) -> Outcome {
    let (live, _) = Scene::create(monitor)?.run()?;
    same("mode", fs::metadata(live.dir.join("log"))?.mode() & 0o7777, 0o640)
}

fn kept(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let old = "2026-11-22T01:56:44.196214039+00:00 stdout F old\n";
    fs::write(scene.dir.join("log"), old)?;
    let (live, _) = scene.script("echo new")?.run()?;
    same("log", live.plain_log()?, vec!["stdout F old".to_owned(), "stdout F new".to_owned()])
}

fn form(monitor: &Monitor) -> Outcome {
    let (live, _) = Scene::create(monitor)?.env("TZ", "UTC0").script("echo a; echo b >&2; printf c")?.run()?;
    let log = live.log()?;
    same("records", log.len(), 3)?;
    log.iter().try_for_each(|record| check(record.stamp.ends_with("+00:00"), format!("stamp {}", record.stamp)))
}

fn time_zone(monitor: &Monitor) -> Outcome {
    let (live, _) = Scene::create(monitor)?.env("TZ", "XYZ-5:30").script("echo a")?.run()?;
    let log = live.log()?;
    same("offset of the stamp", log.first().map(|record| &record.stamp[29..]), Some("+05:30"))
}

fn one_stamp(monitor: &Monitor) -> Outcome {
    let (live, _) = Scene::create(monitor)?.script("printf 'a\\nb\\nc\\n'")?.run()?;
    let log = live.log()?;
    same("records", log.len(), 3)?;
    check(log.iter().all(|record| record.stamp == log[0].stamp), "lines of one read share their stamp")
}

fn partial_then_rest(monitor: &Monitor) -> Outcome {
    let live = Scene::create(monitor)?.script("printf part; go; printf 'ial\\n'")?.start()?;
    live.log_has("stdout P part\n")?;
    live.go()?;
    live.end()?;
    same("log", live.plain_log()?, vec!["stdout P part".to_owned(), "stdout F ial".to_owned()])
}

fn long_line(monitor: &Monitor) -> Outcome {
    let live = Scene::create(monitor)?.script("head -c 20000 /dev/zero | tr '\\0' x; go; echo")?.start()?;
    wait::until("20000 bytes in the log", wait::SOON, || {
        Ok(crilog::parse(&live.log_bytes()).is_ok_and(|log| bytes_of(&log, "stdout").len() == 20000).then_some(()))
    })?;
    live.go()?;
    live.end()?;
    let log = live.log()?;
    same("tag of the last record", log.last().map(|record| (record.full, record.content.len())), Some((true, 0)))?;
    check(log[..log.len() - 1].iter().all(|record| !record.full), "all but the last record are P")?;
    let mut expected = vec![b'x'; 20000];
    expected.push(b'\n');
    same_bytes("stdout in the log", &bytes_of(&log, "stdout"), &expected)
}

fn one_line() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..125_000).flat_map(|n| format!("{n:08}").into_bytes()).collect();
    bytes.push(b'\n');
    bytes
}

fn binary() -> Vec<u8> {
    (0..=255).cycle().take(100_000).chain(0..=9).collect()
}

fn short_lines() -> Vec<u8> {
    (0..60_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect()
}

/// The container prints a file to both streams; the log must give both back.
fn read_back(monitor: &Monitor, bytes: fn() -> Vec<u8>) -> Outcome {
    let bytes = bytes();
    let mut scene = Scene::create(monitor)?;
    fs::write(scene.dir.join("b/data"), &bytes)?;
    let (live, _) = scene.script("cat \"$D/data\" & cat \"$D/data\" >&2; wait")?.run()?;
    let log = live.log()?;
    same_bytes("stdout in the log", &bytes_of(&log, "stdout"), &bytes)?;
    same_bytes("stderr in the log", &bytes_of(&log, "stderr"), &bytes)
}

fn size_10(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (live, _) = scene.set("--log-size-max", "10").script("echo one; echo two; echo three")?.run()?;
    same("log", live.plain_log()?, vec!["stdout F three".to_owned()])
}

fn size_8192(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.set("--log-size-max", "8192").script("i=0; while [ $i -lt 250 ]; do echo \"line $i\"; i=$((i+1)); done")?;
    let (live, _) = scene.run()?;
    check(live.log_bytes().len() <= 8192, format!("{} bytes in the log", live.log_bytes().len()))?;
    let log = live.plain_log()?;
    check(log.len() < 250, format!("{} records", log.len()))?;
    same("last record", log.last().map(String::as_str), Some("stdout F line 249"))?;
    check(!live.dir.join("log.1").exists(), "no backup without --log-rotate")
}

fn size_existing(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    fs::write(scene.dir.join("log"), "2026-11-22T01:56:44.196214039+00:00 stdout F old\n".repeat(20))?;
    let (live, _) = scene.set("--log-size-max", "1000").script("echo new")?.run()?;
    same("log", live.plain_log()?, vec!["stdout F new".to_owned()])
}

fn global_cap(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let (live, _) = scene.set("--log-global-size-max", "2000").script("seq 1000")?.run()?;
    let size = live.log_bytes().len();
    check((1900..2100).contains(&size), format!("{size} bytes in the log, one record more than 2000 at most"))?;
    live.log().map(drop)
}

fn global_cap_attach(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.set("--log-global-size-max", "2000").script("go; seq 10000")?.start()?;
    let client = live.attach()?;
    live.go()?;
    same("bytes at the client", client.to_end(crate::support::attach::STDOUT)?.len(), 48894)
}

/// Prints `before`, waits, prints `after`.
fn two_parts(monitor: &Monitor, change: impl FnOnce(&mut Scene)) -> Outcome<Live> {
    let mut scene = Scene::create(monitor)?;
    scene.script("echo before; go; echo after; go")?;
    change(&mut scene);
    let live = scene.start()?;
    live.log_has("before")?;
    Ok(live)
}

/// Lets it print its second part and end.
fn second_part(live: &Live) -> Outcome {
    live.go()?;
    wait::until_true("\"after\" in one of the logs", || {
        fs::read_dir(&live.dir).into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let log = name.starts_with("log") || name.starts_with("old");
            log && fs::read(entry.path()).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("F after"))
        })
    })?;
    live.go()?;
    live.end().map(drop)
}

fn log_in(path: &Path) -> Outcome<Vec<String>> {
    Ok(crilog::plain(&crilog::parse(&fs::read(path)?)?))
}

fn reopen_after_rename(monitor: &Monitor) -> Outcome {
    let live = two_parts(monitor, |_| {})?;
    fs::rename(live.dir.join("log"), live.dir.join("old"))?;
    live.ctl("2 0 0\n")?;
    wait::until_true("the new log", || live.dir.join("log").exists())?;
    second_part(&live)?;
    same("old log", log_in(&live.dir.join("old"))?, vec!["stdout F before".to_owned()])?;
    same("new log", live.plain_log()?, vec!["stdout F after".to_owned()])?;
    check(!live.dir.join("log.tmp").exists(), "no temporary file stays")
}

fn reopen_after_delete(monitor: &Monitor) -> Outcome {
    let live = two_parts(monitor, |_| {})?;
    fs::remove_file(live.dir.join("log"))?;
    live.ctl("2 1 1\n")?;
    wait::until_true("the new log", || live.dir.join("log").exists())?;
    second_part(&live)?;
    same("new log", live.plain_log()?, vec!["stdout F after".to_owned()])
}

fn reopen_event(monitor: &Monitor) -> Outcome {
    let live = two_parts(monitor, |_| {})?;
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let kinds = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MODIFY;
    inotify.add_watch(&live.dir, kinds)?;
    live.ctl("2 0 0\n")?;
    wait::until("an event for the log", wait::SOON, || {
        let events = inotify.read_events().unwrap_or_default();
        Ok(events.iter().any(|event| event.name.as_deref() == Some("log".as_ref())).then_some(()))
    })?;
    second_part(&live)
}

fn reopen_rejected(monitor: &Monitor) -> Outcome {
    let live = two_parts(monitor, |_| {})?;
    fs::rename(live.dir.join("log"), live.dir.join("old"))?;
    live.ctl("2 1001 1\n")?;
    wait::never("a new log", Duration::from_millis(300), || live.dir.join("log").exists())?;
    second_part(&live)
}

fn reopen_nothing(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.set("-l", "none").script("go; exit 3")?.start()?;
    live.ctl("2 0 0\n")?;
    live.go()?;
    same("status", live.end()?, 3)
}

fn reopen_keeps(monitor: &Monitor) -> Outcome {
    let live = two_parts(monitor, |_| {})?;
    let before = fs::metadata(live.dir.join("log"))?.ino();
    live.ctl("2 0 0\n")?;
    second_part(&live)?;
    let somewhere = fs::read_dir(&live.dir)?.flatten().any(|entry| {
        entry.file_name().to_string_lossy().starts_with("log")
            && fs::read(entry.path()).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("F before"))
    });
    check(somewhere, format!("what was written before the reopen is in no file (inode was {before})"))
}

fn append(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let live = scene.script("echo first; go; echo second; go; echo third")?.start()?;
    live.log_has("first")?;
    fs::rename(live.dir.join("log"), live.dir.join("old"))?;
    live.ctl("2 0 0\n")?;
    wait::until_true("the new log", || live.dir.join("log").exists())?;
    live.go()?;
    live.log_has("second")?;
    fs::File::options().write(true).open(live.dir.join("log"))?.set_len(0)?;
    live.go()?;
    live.end()?;
    same("log", live.plain_log()?, vec!["stdout F third".to_owned()])
}

fn dir_missing(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let dir = scene.dir.join("logs");
    fs::create_dir(&dir)?;
    let live = scene.set("-l", dir.join("log")).script("echo before; go; echo after; exit 3")?.start()?;
    wait::until_true("output", || fs::read(dir.join("log")).is_ok_and(|bytes| !bytes.is_empty()))?;
    fs::rename(&dir, live.dir.join("away"))?;
    live.ctl("2 0 0\n")?;
    std::thread::sleep(Duration::from_millis(200));
    live.go()?;
    same("status", live.end()?, 3)?;
    same("exit file", live.exit_file()?, "3".to_owned())
}

fn rotate(monitor: &Monitor) -> Outcome {
    let live = two_parts(monitor, |scene| drop(scene.flag("--log-rotate").set("--log-max-files", "2").args()))?;
    live.ctl("2 1 1\n")?;
    wait::until_true("the backup", || live.dir.join("log.1").exists())?;
    second_part(&live)?;
    same("backup", log_in(&live.dir.join("log.1"))?, vec!["stdout F before".to_owned()])?;
    same("log", live.plain_log()?, vec!["stdout F after".to_owned()])
}

/// Rotates every few lines; gives the numbers of the backups that are left.
fn rotated(monitor: &Monitor, files: &str) -> Outcome<(Live, Vec<u32>)> {
    let mut scene = Scene::create(monitor)?;
    scene.flag("--log-rotate").set("--log-max-files", files).set("--log-size-max", "500").script("seq 100 199")?;
    let (live, _) = scene.run()?;
    let mut numbers = Vec::new();
    for entry in fs::read_dir(&live.dir)?.flatten() {
        if let Some(number) = entry.file_name().to_string_lossy().strip_prefix("log.") {
            numbers.push(number.parse().map_err(|_| format!("left behind: log.{number}"))?);
        }
    }
    numbers.sort_unstable();
    Ok((live, numbers))
}

fn rotate_by_size(monitor: &Monitor) -> Outcome {
    let (live, numbers) = rotated(monitor, "3")?;
    same("backups", numbers, vec![1, 2, 3])?;
    let mut lines = Vec::new();
    for name in ["log.3", "log.2", "log.1", "log"] {
        let path = live.dir.join(name);
        check(fs::metadata(&path)?.len() <= 500, format!("{name} is larger than 500 bytes"))?;
        lines.extend(log_in(&path)?);
    }
    let first = 200 - lines.len();
    let expected: Vec<String> = (first..200).map(|n| format!("stdout F {n}")).collect();
    same("all files from the oldest to the newest", lines, expected)
}

fn rotate_one(monitor: &Monitor) -> Outcome {
    same("backups", rotated(monitor, "1")?.1, vec![1])
}

fn rotate_stale(monitor: &Monitor) -> Outcome {
    let live = two_parts(monitor, |scene| {
        let _ = fs::write(scene.dir.join("log.new"), "stale");
        scene.flag("--log-rotate").set("--log-max-files", "2");
    })?;
    live.ctl("2 0 0\n")?;
    wait::until_true("the backup", || live.dir.join("log.1").exists())?;
    second_part(&live)?;
    same("log", live.plain_log()?, vec!["stdout F after".to_owned()])
}

fn rotate_missing(monitor: &Monitor) -> Outcome {
    let live = two_parts(monitor, |scene| drop(scene.flag("--log-rotate").args()))?;
    fs::rename(live.dir.join("log"), live.dir.join("old"))?;
    live.ctl("2 0 0\n")?;
    wait::until_true("the new log", || live.dir.join("log").exists())?;
    second_part(&live)?;
    same("log", live.plain_log()?, vec!["stdout F after".to_owned()])
}

/// A small file system fills up while the container prints, and has room again before it prints its last line.
fn disk_full(monitor: &Monitor) -> Outcome {
    own_mounts()?;
    let mut scene = Scene::create(monitor)?;
    let disk = scene.dir.join("disk");
    fs::create_dir(&disk)?;
    tmpfs(&disk.to_string_lossy(), "size=4352k")?;
    fs::write(disk.join("ballast"), vec![0; 4 << 20])?;
    scene.set("-l", disk.join("log"));
    let live = scene.script("seq 100000; : > \"$D/printed\"; go; echo last; exit 3")?.start()?;
    wait::for_file(&live.dir.join("b/printed"))?;
    fs::remove_file(disk.join("ballast"))?;
    // Room again: whatever is retried is retried within this time.
    std::thread::sleep(Duration::from_millis(500));
    live.go()?;
    same("status", live.end()?, 3)?;
    let bytes = fs::read(disk.join("log"))?;
    let log = crilog::plain(&crilog::parse(&bytes)?);
    same("last record", log.last().map(String::as_str), Some("stdout F last"))
}

fn json_file(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let path = scene.dir.join("json");
    scene.set("-l", format!("json-file:{}", path.display())).script("echo hi; echo oops >&2")?.run()?;
    let text = fs::read_to_string(path)?;
    let mut lines = Vec::new();
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line)?;
        check(value["time"].as_str().is_some_and(|time| time.ends_with('Z')), format!("time in {line}"))?;
        lines.push(format!("{} {}", value["stream"], value["log"]));
    }
    lines.sort();
    same("records", lines, vec!["\"stderr\" \"oops\\n\"".to_owned(), "\"stdout\" \"hi\\n\"".to_owned()])
}
