//! Reads a CRI log the way kubelet and podman do, and refuses everything that is not exactly one.
//!
//! `2026-11-22T01:56:44.196214039+00:00 stdout F hi\n`: local time with nine digits and a numeric offset, stream, `F`
//! for a full line or `P` for a part of one, the bytes. Format: Kubernetes' "CRI logging" (kubelet `logs.go`).

use super::{Fail, Outcome};

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub stamp: String,
    pub stream: &'static str,
    pub full: bool,
    pub content: Vec<u8>,
}

/// The records of a log, in order.
pub fn parse(log: &[u8]) -> Outcome<Vec<Record>> {
    let Some(lines) = log.strip_suffix(b"\n") else {
        return if log.is_empty() {
            Ok(Vec::new())
        } else {
            Err(Fail::Wrong("the log does not end in a newline".to_owned()))
        };
    };
    lines.split(|byte| *byte == b'\n').map(record).collect()
}

/// The bytes of one stream: the newline of an `F` record is the container's own, that of a `P` record is not.
pub fn bytes_of(records: &[Record], stream: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records.iter().filter(|record| record.stream == stream) {
        bytes.extend_from_slice(&record.content);
        if record.full {
            bytes.push(b'\n');
        }
    }
    bytes
}

/// The records as `stdout F text` lines, for short comparisons.
pub fn plain(records: &[Record]) -> Vec<String> {
    let tag = |record: &Record| if record.full { 'F' } else { 'P' };
    records.iter().map(|r| format!("{} {} {}", r.stream, tag(r), r.content.escape_ascii())).collect()
}

fn record(line: &[u8]) -> Outcome<Record> {
    let wrong =
        |what: &str| Fail::Wrong(format!("{what} in the log line \"{}\"", line[..line.len().min(120)].escape_ascii()));
    if line.len() < 45 {
        return Err(wrong("too few bytes"));
    }
    let (stamp, rest) = line.split_at(35);
    if !is_stamp(stamp) {
        return Err(wrong("bad stamp"));
    }
    let stream = match &rest[..8] {
        b" stdout " => "stdout",
        b" stderr " => "stderr",
        _ => return Err(wrong("bad stream")),
    };
    let full = match &rest[8..10] {
        b"F " => true,
        b"P " => false,
        _ => return Err(wrong("bad tag")),
    };
    Ok(Record { stamp: String::from_utf8_lossy(stamp).into_owned(), stream, full, content: rest[10..].to_vec() })
}

/// `dddd-dd-ddTdd:dd:dd.ddddddddd+dd:dd`, the sign either way.
fn is_stamp(stamp: &[u8]) -> bool {
    let form = b"dddd-dd-ddTdd:dd:dd.dddddddddsdd:dd";
    stamp.len() == form.len()
        && stamp.iter().zip(form).all(|(byte, form)| match form {
            b'd' => byte.is_ascii_digit(),
            b's' => matches!(byte, b'+' | b'-'),
            fixed => byte == fixed,
        })
}
