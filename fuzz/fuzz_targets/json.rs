//! json-file: each line of any bytes becomes one line of JSON that says the same, as far as text can.
#![no_main]

use conward::log::json::encode;
use conward_fuzz::Dice;
use libfuzzer_sys::fuzz_target;

const STAMP: &str = "2026-11-22T01:56:44.196214039Z";

fuzz_target!(|data: &[u8]| {
    let mut out = Vec::new();
    let chunks = Dice(data).chunks();
    for (stream, chunk) in &chunks {
        encode(&mut out, chunk, *stream, STAMP.as_bytes());
    }
    assert!(out.is_empty() || out.ends_with(b"\n"));
    let lines: Vec<&[u8]> = out.split_inclusive(|&byte| byte == b'\n').collect();
    assert_eq!(lines.len(), chunks.len(), "one line per record");
    for (line, (stream, chunk)) in lines.iter().zip(chunks) {
        let record: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(line).expect("valid JSON");
        assert_eq!(record["log"], *String::from_utf8_lossy(chunk));
        assert_eq!(record["stream"], stream.name());
        assert_eq!(record["time"], STAMP);
        assert_eq!(record.len(), 3);
    }
});
