//! Log drivers and `podman logs`.

use std::path::Path;

use super::{
    Stop, Verdict,
    bed::{Bed, IMAGE},
    check,
    output::same_bytes,
    run::random,
};

pub fn k8s_file(bed: &Bed) -> Verdict {
    written_as_records(bed, "k8s-file")
}

/// podman has no driver of this name: it asks the monitor for a k8s-file.
pub fn json_file(bed: &Bed) -> Verdict {
    written_as_records(bed, "json-file")
}

fn written_as_records(bed: &Bed, driver: &str) -> Verdict {
    let script = "echo out; echo err >&2; echo; printf last";
    bed.ok(&["run", "--log-driver", driver, "--name", "l", IMAGE, "sh", "-c", script])?;
    let records = records(bed, "l")?;
    let of = |stream: &str| -> Vec<String> {
        let mine = records.iter().filter(|r| r.stream == stream);
        mine.map(|r| format!("{} {}", r.tag, String::from_utf8_lossy(&r.content))).collect()
    };
    check!(of("stdout") == ["F out", "F ", "P last"], "stdout in the log: {:?}", of("stdout"));
    check!(of("stderr") == ["F err"], "stderr in the log: {:?}", of("stderr"));
    let logs = bed.podman(&["logs", "l"]).run()?.expect(0)?;
    same_bytes("podman logs, stderr", b"err\n", &logs.err)?;
    check!(logs.text() == "out\n\nlast", "podman logs: {}", logs.story());
    Ok(())
}

pub fn none(bed: &Bed) -> Verdict {
    let run =
        bed.podman(&["run", "--log-driver", "none", "--name", "l", IMAGE, "sh", "-c", "echo seen; exit 2"]).run()?;
    run.expect(2)?.says("seen\n")?;
    bed.podman(&["logs", "l"]).run()?.expect(125)?.complains("'none' log driver")?;
    Ok(())
}

/// The container has podman's own descriptors; there is nothing to attach to and nothing to log.
pub fn passthrough(bed: &Bed) -> Verdict {
    let script = "cat; echo err >&2; exit 2";
    let run = bed.podman(&["run", "-i", "--log-driver", "passthrough", "--name", "l", IMAGE, "sh", "-c", script]);
    let done = run.input(b"through\n").run()?.expect(2)?.says("through\n")?;
    same_bytes("stderr", b"err\n", &done.err)?;
    bed.podman(&["logs", "l"]).run()?.expect(125)?;
    let parked = bed.podman(&[
        "run",
        "-d",
        "--log-driver",
        "passthrough",
        "--name",
        "p",
        IMAGE,
        "sh",
        "-c",
        "sleep 0.5; echo late",
    ]);
    // Not to the end of its stdout: the container itself holds that one, which is the point.
    let parked = parked.start()?;
    parked.wait_for("late")?;
    parked.finish()?.expect(0)?;
    Ok(())
}

pub fn journald(bed: &Bed) -> Verdict {
    if !Path::new("/run/systemd/journal/socket").exists() {
        return Err(Stop::Skipped("no journald on this machine".into()));
    }
    bed.ok(&["run", "--log-driver", "journald", "--name", "l", IMAGE, "sh", "-c", "echo to the journal; printf last"])?;
    bed.logged("l", "to the journal\nlast")?;
    Ok(())
}

pub fn follow(bed: &Bed) -> Verdict {
    let script = "i=0; until [ -e /tmp/end ]; do i=$((i+1)); echo line $i; sleep 0.05; done; seq 1 10000; echo last";
    bed.start("l", script)?;
    let follower = bed.podman(&["logs", "-f", "l"]).start()?;
    follower.wait_for("line 3\n")?;
    follower.wait_for("line 6\n")?;
    bed.end("l")?;
    // It ends by itself, because the container does.
    let followed = follower.finish()?.expect(0)?;
    let all = bed.podman(&["logs", "l"]).run()?.expect(0)?;
    check!(all.text().ends_with("10000\nlast"), "the log's end is missing: {}", all.story());
    same_bytes("podman logs -f", &all.out, &followed.out)
}

pub fn tail_and_stamps(bed: &Bed) -> Verdict {
    bed.ok(&["run", "--name", "l", IMAGE, "seq", "1", "100"])?;
    bed.podman(&["logs", "--tail", "3", "l"]).run()?.expect(0)?.says("98\n99\n100\n")?;
    let stamped = bed.ok(&["logs", "--timestamps", "--tail", "2", "l"])?;
    for line in stamped.lines() {
        let stamp = line.split(' ').next().unwrap_or_default();
        check!(stamp.len() >= 20 && stamp.contains('T'), "no time stamp: {line:?}");
    }
    bed.podman(&["logs", "--since", "1h", "--tail", "1", "l"]).run()?.expect(0)?.says("100\n")?;
    bed.podman(&["logs", "--until", "2001-01-01T00:00:00Z", "l"]).run()?.expect(0)?.says("")?;
    Ok(())
}

pub fn max_size(bed: &Bed) -> Verdict {
    let run = ["run", "--name", "l", "--log-opt", "max-size=10kb", IMAGE, "seq", "1", "5000"];
    let shown = bed.podman(&run).run()?.expect(0)?;
    let expected: String = (1..=5000).map(|n| format!("{n}\n")).collect();
    same_bytes("attached output, which has no limit", expected.as_bytes(), &shown.out)?;
    let size = bed.read(log_path(bed, "l")?)?.len();
    check!(size <= 10_240, "the log has {size} bytes, allowed are 10 kB");
    check!(size > 50, "the log has {size} bytes only");
    bed.podman(&["logs", "--tail", "1", "l"]).run()?.expect(0)?.says("5000\n")?;
    Ok(())
}

/// A reader joins the pieces of a line, in whatever pieces it came.
pub fn partial_and_long(bed: &Bed) -> Verdict {
    let script = "printf part; sleep 0.3; echo ial; head -c 100000 /dev/zero | tr '\\0' x; echo; printf end";
    let shown = bed.podman(&["run", "--name", "l", IMAGE, "sh", "-c", script]).run()?.expect(0)?;
    let expected = format!("partial\n{}\nend", "x".repeat(100_000));
    same_bytes("attached output", expected.as_bytes(), &shown.out)?;
    same_bytes("joined records", expected.as_bytes(), &joined(&records(bed, "l")?))?;
    let logs = bed.podman(&["logs", "l"]).run()?.expect(0)?;
    let logs = logs.out.strip_suffix(b"\n").unwrap_or(&logs.out);
    same_bytes("podman logs", expected.as_bytes(), logs)
}

/// Bytes that are no text: the records give back exactly them.
pub fn binary(bed: &Bed) -> Verdict {
    let bytes = random(300_000)?;
    bed.podman(&["run", "-i", "--name", "l", IMAGE, "cat"]).input(&bytes).run()?.expect(0)?;
    same_bytes("joined records", &bytes, &joined(&records(bed, "l")?))
}

/// One line of a k8s-file: `TIME STREAM TAG CONTENT`.
struct Record {
    stream: String,
    tag: char,
    content: Vec<u8>,
}

fn records(bed: &Bed, name: &str) -> Verdict<Vec<Record>> {
    let log = bed.read(log_path(bed, name)?)?;
    check!(log.ends_with(b"\n"), "the log does not end with a newline");
    log[..log.len() - 1].split(|b| *b == b'\n').map(record).collect()
}

fn record(line: &[u8]) -> Verdict<Record> {
    let mut parts = line.splitn(4, |b| *b == b' ').map(|part| String::from_utf8_lossy(part).into_owned());
    let [stamp, stream, tag] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let whole = || String::from_utf8_lossy(&line[..line.len().min(120)]).into_owned();
    // 2026-01-31T12:34:56.123456789+00:00
    let shape: String = stamp.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let good = ["0000-00-00T00:00:00.000000000+00:00", "0000-00-00T00:00:00.000000000-00:00"].contains(&shape.as_str());
    check!(good, "bad time stamp in {:?}", whole());
    check!(["stdout", "stderr"].contains(&stream.as_str()), "bad stream in {:?}", whole());
    check!(["F", "P"].contains(&tag.as_str()), "bad tag in {:?}", whole());
    let head = stamp.len() + stream.len() + 4;
    let content = line.get(head..).ok_or_else(|| Stop::Failed(format!("no content in {:?}", whole())))?;
    Ok(Record { stream, tag: if tag == "F" { 'F' } else { 'P' }, content: content.to_vec() })
}

fn joined(records: &[Record]) -> Vec<u8> {
    let piece = |r: &Record| [r.content.as_slice(), if r.tag == 'F' { b"\n" } else { b"" }].concat();
    records.iter().flat_map(piece).collect()
}

fn log_path(bed: &Bed, name: &str) -> Verdict<String> {
    bed.inspect(name, "{{.HostConfig.LogConfig.Path}}")
}
