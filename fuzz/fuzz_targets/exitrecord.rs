//! Exit record: whatever the container is called and however it ended, `exit.json` is JSON that says so.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, UNIX_EPOCH};

use conward::exit::{End, Record, Total};
use conward::oom::Verdict;
use conward_fuzz::Dice;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// 2500-01-01: the clocks of today's kernels end before (ktime_t, 292 years after 1970).
const END_OF_TIME: u64 = 16_725_225_600;

fuzz_target!(|data: &[u8]| {
    let mut dice = Dice(data);
    let mut number = || u64::from_le_bytes(std::array::from_fn(|_| dice.byte()));
    let (started, finished, bytes, lost) = (number(), number(), number(), number());
    let code = i32::from(dice.byte());
    let end = [End::Exited(code), End::Signaled(code % 65), End::TimedOut, End::Unknown][dice.below(4)];
    let at = |number: u64| UNIX_EPOCH + Duration::new(number % END_OF_TIME, (number % 1_000_000_000) as u32);
    let id = OsStr::from_bytes(dice.0);

    let record = Record {
        id,
        mode: "create",
        pid: code,
        end,
        oom: Verdict::None,
        started: at(started),
        finished: at(finished),
        totals: [Total { bytes, lost }, Total { bytes: lost, lost: bytes }],
    };
    let text = record.json();
    assert!(text.ends_with("}\n"));
    let read: Value = serde_json::from_str(&text).expect("valid JSON");
    assert_eq!(read["id"], *id.to_string_lossy());
    assert_eq!(read["status"], end.status());
    assert_eq!(read["exitCode"], if let End::Exited(code) = end { json!(code) } else { Value::Null });
    assert_eq!(read["signal"], if let End::Signaled(signal) = end { json!(signal) } else { Value::Null });
    assert_eq!(read["timedOut"], end == End::TimedOut);
    assert_eq!(read["stdout"], json!({"bytes": bytes, "lost": lost}));
    assert_eq!(read["stderr"], json!({"bytes": lost, "lost": bytes}));
    // Stamps of one length sort as times do.
    let stamp = |name: &str| read[name].as_str().expect("a stamp").to_owned();
    let (start, finish) = (stamp("startedAt"), stamp("finishedAt"));
    assert_eq!((start.len(), finish.len()), (30, 30));
    assert_eq!(start.cmp(&finish), record.started.cmp(&record.finished));
});
