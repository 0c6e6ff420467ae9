//! Any bytes in any chunking give a log that a CRI reader turns back into the same bytes.

#[path = "support/cri.rs"]
mod cri;

use conward::log::file::LogFile;
use conward::log::k8s::{HEADER, Header, K8sFile, split};
use conward::log::stamp::{Moment, Stamper, cri as stamp};
use conward::options::LogPolicy;
use conward::stream::Stream;

const STAMP: &str = "2026-11-22T01:56:44.196214039+00:00";

#[test]
fn the_reader_reads_what_the_format_says() {
    let log = format!("{STAMP} stdout P a b\n{STAMP} stderr F \n{STAMP} stdout F  \r\0\n");
    let records = cri::records(log.as_bytes()).unwrap();
    assert_eq!(records.len(), 3);
    assert_eq!(cri::content(&records, "stdout"), b"a b \r\0\n");
    assert_eq!(cri::content(&records, "stderr"), b"\n");
}

#[test]
fn the_reader_refuses_what_is_not_the_format() {
    let torn = format!("{STAMP} stdout F a");
    let rows = [
        "\n",
        " stdout F a\n",
        "2026-11-22T01:56:44.196214039Z stdout F a\n",
        "2026-11-22T01:56:44.19621403+00:00 stdout F a\n",
        "2026-13-22T01:56:44.196214039+00:00 stdout F a\n",
        "2026-11-22T01:56:44.196214039+00:00 stdin F a\n",
        "2026-11-22T01:56:44.196214039+00:00 stdout X a\n",
        "2026-11-22T01:56:44.196214039+00:00 stdout F\n",
        "2026-11-22T01:56:44.196214039+00:00  stdout F a\n",
        &torn,
    ];
    for row in rows {
        assert!(cri::records(row.as_bytes()).is_err(), "{row:?}");
    }
}

#[test]
fn any_bytes_in_any_chunking_read_back() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..4000 {
        let line_max = random.line_max();
        let (mut log, mut said) = (Vec::new(), [Vec::new(), Vec::new()]);
        for (stream, chunk) in random.output() {
            let at =
                Moment { seconds: random.below(4_000_000_000) as i64, nanos: u32::from(random.byte()) * 3_906_250 };
            let header = Header::new(&stamp(at, random.below(86_400) as i64 - 43_200), stream);
            for (content, full) in split(&chunk, line_max) {
                assert!(content.len() <= line_max);
                let start = log.len();
                log.resize(start + Header::record_len(content), 0);
                header.put(&mut log[start..], content, full);
            }
            said[stream.index()].extend(chunk);
        }
        assert_reads_back(&log, &said, &format!("round {round}, line_max {line_max}"));
    }
}

#[test]
fn any_bytes_read_back_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for round in 0..300 {
        let path = dir.path().join(format!("{round}.log"));
        let line_max = random.line_max();
        let mut log = K8sFile::new(LogFile::open(&path, &policy(line_max), 0).unwrap(), Stamper::new(true), line_max);
        // From room for one record only to room for many.
        let mut out = vec![0; HEADER + line_max + 1 + random.below(4 * line_max)];
        let mut said = [Vec::new(), Vec::new()];
        for (stream, chunk) in random.output() {
            assert!(log.write(&mut out, stream, &chunk).1, "nothing is lost");
            said[stream.index()].extend(chunk);
        }
        log.finish();
        assert_reads_back(&std::fs::read(&path).unwrap(), &said, &format!("round {round}, line_max {line_max}"));
    }
}

#[track_caller]
fn assert_reads_back(log: &[u8], said: &[Vec<u8>; 2], case: &str) {
    let records = cri::records(log).unwrap_or_else(|error| panic!("{case}: {error}"));
    for stream in Stream::ALL {
        assert_eq!(cri::content(&records, stream.name()), said[stream.index()], "{case}, {}", stream.name());
    }
}

fn policy(line_max: usize) -> LogPolicy {
    LogPolicy {
        size_max: None,
        global_size_max: None,
        rotate: false,
        max_files: 1,
        allowlist: Vec::new(),
        sync: false,
        line_max,
        utc: true,
        file_mode: 0o640,
    }
}

/// Xorshift (Marsaglia 2003): a fixed sequence, so that a failure comes again.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    fn byte(&mut self) -> u8 {
        self.below(256).to_le_bytes()[0]
    }

    /// Mostly so small that lines are cut, sometimes a usual limit.
    fn line_max(&mut self) -> usize {
        [1, 2, 1 + self.below(64), 1 + self.below(64), 16_384][self.below(5)]
    }

    /// Chunks of both streams: text full of newlines and of what looks like a record, cut anywhere.
    fn output(&mut self) -> Vec<(Stream, Vec<u8>)> {
        let words: [&[u8]; 8] = [b"\n", b"\n\n", b"\r\n", b"\0", b" ", b"\xff\xfe", b"text", STAMP.as_bytes()];
        let count = self.below(12);
        let mut chunk = || {
            let mut chunk = Vec::new();
            for _ in 0..=self.below(10) {
                match self.below(10) {
                    0 => chunk.push(self.byte()),
                    1 => chunk.extend(b"0123456789".repeat(1 + self.below(30))),
                    _ => chunk.extend(words[self.below(words.len())]),
                }
            }
            (Stream::ALL[self.below(2)], chunk)
        };
        std::iter::repeat_with(&mut chunk).take(count).collect()
    }
}
