//! Tables: what a request gives, and what a reader sees of a place.

use std::path::Path;

use super::*;
use crate::log::k8s::K8sFile;
use crate::log::stamp::Stamper;
use crate::options::LogPolicy;
use Stream::{Stderr, Stdout};

fn policy() -> LogPolicy {
    LogPolicy {
        size_max: None,
        global_size_max: None,
        rotate: true,
        max_files: 2,
        allowlist: Vec::new(),
        sync: false,
        line_max: 80,
        utc: true,
        file_mode: 0o640,
    }
}

fn open(dir: &Path, policy: &LogPolicy) -> K8sFile {
    K8sFile::new(LogFile::open(&dir.join("log"), policy, 0).unwrap(), Stamper::new(true), policy.line_max)
}

fn write(log: &mut K8sFile, stream: Stream, chunk: &str) -> Option<Mark> {
    let (mark, whole) = log.write(&mut [0; 256], stream, chunk.as_bytes());
    whole.then_some(mark)
}

/// Everything from a place on, as text: `out@0:text`, or `out@0-5` for a gap of five bytes.
fn tell(log: &LogFile, mut place: Place, wanted: [bool; 2]) -> String {
    let name = |stream| if stream == Stdout { "out" } else { "err" };
    let (mut buffer, mut words) = ([0; 256], Vec::new());
    loop {
        match read(log, &place, wanted, &mut buffer, 100) {
            Read::End => return words.join(" ").replace('\n', "$"),
            Read::Gap { stream, offset, lost, next } => {
                words.push(format!("{}@{offset}-{lost}", name(stream)));
                place = next;
            }
            Read::Chunks(chunks, next) => {
                for Chunk { stream, offset, start, end } in chunks {
                    let text = str::from_utf8(&buffer[start..end]).unwrap();
                    words.push(format!("{}@{offset}:{text}", name(stream)));
                }
                place = next;
            }
        }
    }
}

fn find(log: &LogFile, ask: Ask, wanted: [bool; 2]) -> Place {
    let mut search = Search::new(log, ask, wanted);
    loop {
        if let Some(place) = search.step(log, &mut [0; 256]) {
            return place;
        }
    }
}

#[test]
fn a_request_gives_exactly_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), &policy());
    write(&mut log, Stdout, "one\ntw");
    write(&mut log, Stderr, "E1\n");
    log.file.reopen().unwrap();
    write(&mut log, Stdout, "o\n");
    write(&mut log, Stderr, "E2");
    let (both, out, err) = ([true, true], [true, false], [false, true]);
    let all = "out@0:one$tw err@0:E1$ out@6:o$ err@3:E2";
    let rows = [
        (Ask::All, both, all),
        (Ask::All, out, "out@0:one$tw out@6:o$"),
        (Ask::All, err, "err@0:E1$ err@3:E2"),
        (Ask::All, [false; 2], ""),
        (Ask::Bytes(0), both, ""),
        (Ask::Bytes(3), both, "out@7:$ err@3:E2"),
        (Ask::Bytes(6), both, "err@1:1$ out@6:o$ err@3:E2"),
        (Ask::Bytes(3), out, "out@5:w out@6:o$"),
        (Ask::Bytes(99), both, all),
        (Ask::Lines(0), both, ""),
        (Ask::Lines(1), both, "err@3:E2"),
        // The line `two` begins before E1, which is not asked for.
        (Ask::Lines(2), both, "out@4:tw out@6:o$ err@3:E2"),
        (Ask::Lines(3), both, "out@4:tw err@0:E1$ out@6:o$ err@3:E2"),
        (Ask::Lines(2), out, "out@0:one$tw out@6:o$"),
        (Ask::Lines(99), both, all),
        (Ask::From([5, 4]), both, "out@5:w out@6:o$ err@4:2"),
        (Ask::From([8, 0]), both, "err@0:E1$ err@3:E2"),
        (Ask::From([u64::MAX, 0]), out, ""),
        (Ask::From([99, 99]), both, ""),
    ];
    for (ask, wanted, expected) in rows {
        let place = find(&log.file, ask, wanted);
        assert_eq!(tell(&log.file, place, wanted), expected, "{ask:?} {wanted:?}");
    }
}

#[test]
fn what_a_cap_keeps_out_is_a_gap_that_grows() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), &LogPolicy { global_size_max: Some(98), ..policy() });
    assert!(write(&mut log, Stdout, "one\ntwo\n").is_some());
    let end = Place::from(log.file.end());
    assert!(write(&mut log, Stdout, "1\n2\n3\n").is_none());
    assert!(write(&mut log, Stderr, "4\n").is_none());
    assert_eq!(tell(&log.file, end, [true; 2]), "out@8-6 err@0-2");
    assert_eq!(tell(&log.file, find(&log.file, Ask::Bytes(4), [true; 2]), [true; 2]), "out@4:two$ out@8-6 err@0-2");
    let now = Place::from(log.file.end());
    write(&mut log, Stdout, "5\n");
    assert_eq!(tell(&log.file, now, [true; 2]), "out@14-2");
}

#[test]
fn a_removed_file_is_a_gap_and_a_renamed_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), &policy());
    for text in ["one\n", "two\n", "three\n"] {
        write(&mut log, Stdout, text);
        log.file.reopen().unwrap();
    }
    // Two backups: the first file is gone. A caller moves another one.
    std::fs::rename(dir.path().join("log.2"), dir.path().join("log.20260101-000000")).unwrap();
    assert_eq!(tell(&log.file, Place::START, [true; 2]), "out@0-4 out@4:two$ out@8:three$");
    std::fs::remove_file(dir.path().join("log.1")).unwrap();
    log.file.release_before(u64::MAX);
    assert_eq!(tell(&log.file, Place::START, [true; 2]), "out@0-4 out@4:two$ out@8-6");
    // A symlink is not followed, whatever it leads to.
    std::fs::rename(dir.path().join("log.20260101-000000"), dir.path().join("away")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("away"), dir.path().join("log.1")).unwrap();
    log.file.release_before(u64::MAX);
    assert_eq!(tell(&log.file, Place::START, [true; 2]), "out@0-4 out@4-4 out@8-6");
}

#[test]
fn a_file_cut_behind_our_back_loses_no_more_than_was_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), &policy());
    write(&mut log, Stdout, "one\n");
    std::fs::write(dir.path().join("log"), "").unwrap();
    assert_eq!(tell(&log.file, Place::START, [true; 2]), "out@0-4");
    write(&mut log, Stdout, "two\n");
    write(&mut log, Stderr, "and on\n");
    assert_eq!(tell(&log.file, Place::START, [true; 2]), "out@0-4 out@4:two$ err@0:and on$");
    assert_eq!(tell(&log.file, find(&log.file, Ask::Lines(1), [true; 2]), [true; 2]), "err@0:and on$");
}

#[test]
fn bytes_that_are_no_record_are_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), &policy());
    write(&mut log, Stdout, "one\ntwo\nthree\n");
    let path = dir.path().join("log");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("F two", "X two")).unwrap();
    log.file.reopen().unwrap();
    write(&mut log, Stdout, "four\n");
    assert_eq!(tell(&log.file, Place::START, [true; 2]), "out@0:one$ out@4-10 out@14:four$");
}

#[test]
fn a_place_within_a_chunk_survives_the_rotation_that_the_chunk_caused() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), &LogPolicy { size_max: Some(100), ..policy() });
    write(&mut log, Stdout, &"x".repeat(50));
    // No room: the file is rotated first, but the chunk begins where the old one ends.
    let mut place = Place::from(write(&mut log, Stdout, "done, to do").unwrap());
    place.from[0] += 6;
    assert_eq!(tell(&log.file, place, [true; 2]), "out@56:to do");
}
