//! json-file: each line of any bytes becomes one line of JSON that says the same, as far as text can.
#![no_main]

use std::fs;

use conward::log::file::LogFile;
use conward::log::json::{JsonFile, encode};
use conward::options::LogPolicy;
use conward::stream::Stream;
use conward_fuzz::Dice;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

const STAMP: &str = "2026-11-22T01:56:44.196214039Z";

fuzz_target!(|data: &[u8]| {
    let mut dice = Dice(data);
    let line_max = 1 + dice.below(100);
    let chunks = dice.chunks();

    let mut out = Vec::new();
    for (stream, chunk) in &chunks {
        encode(&mut out, chunk, *stream, STAMP.as_bytes());
    }
    let encoded = records(&out);
    assert_eq!(encoded.len(), chunks.len(), "one line per record");
    for (record, (stream, chunk)) in encoded.iter().zip(&chunks) {
        assert_eq!(record["log"], *String::from_utf8_lossy(chunk));
        assert_eq!(record["stream"], stream.name());
        assert_eq!(record["time"], STAMP);
    }

    // The driver: cut at newlines and at the limit. Where text is cut within a character, JSON cannot say it.
    let written = write(line_max, &chunks);
    for stream in Stream::ALL {
        let texts = |record: &Map<String, Value>| record["log"].as_str().map(str::to_owned);
        let logged: Vec<String> =
            written.iter().filter(|record| record["stream"] == stream.name()).filter_map(texts).collect();
        let said: Vec<u8> =
            chunks.iter().filter(|(of, _)| *of == stream).flat_map(|(_, chunk)| chunk.iter().copied()).collect();
        assert!(logged.iter().all(|text| !text.trim_end_matches('\n').contains('\n') && !text.ends_with("\n\n")));
        if said.is_ascii() {
            assert_eq!(logged.concat().as_bytes(), said);
        } else {
            let lines = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(lines(logged.concat().as_bytes()), lines(&said));
        }
    }
});

fn records(log: &[u8]) -> Vec<Map<String, Value>> {
    assert!(log.is_empty() || log.ends_with(b"\n"));
    let records = log.split_inclusive(|&byte| byte == b'\n').map(serde_json::from_slice);
    let records: Vec<Map<String, Value>> = records.collect::<Result<_, _>>().expect("valid JSON");
    assert!(records.iter().all(|record| record.len() == 3));
    records
}

fn write(line_max: usize, chunks: &[(Stream, &[u8])]) -> Vec<Map<String, Value>> {
    let dir = tempfile::tempdir().expect("scratch directory");
    let path = dir.path().join("log");
    let policy = LogPolicy {
        size_max: None,
        global_size_max: None,
        rotate: false,
        max_files: 1,
        allowlist: Vec::new(),
        sync: false,
        line_max,
        utc: true,
        file_mode: 0o640,
    };
    let mut file = JsonFile::new(LogFile::open(&path, &policy, 0).expect("scratch log"), line_max);
    for (stream, chunk) in chunks {
        file.write(*stream, chunk);
    }
    file.finish();
    records(&fs::read(path).expect("the log"))
}
