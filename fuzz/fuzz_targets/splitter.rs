//! Log splitter: any bytes in any chunking give a log that a CRI reader turns back into the same bytes.
#![no_main]

use conward::log::history::{Parsed, record};
use conward::log::k8s::{Header, split};
use conward::log::stamp::{Moment, cri as stamp};
use conward_fuzz::{Dice, cri};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut dice = Dice(data);
    let line_max = 1 + dice.below(80);
    let mut number = || i64::from_le_bytes(std::array::from_fn(|_| dice.byte()));
    let (seconds, offset) = (number(), number());
    let nanos = seconds.unsigned_abs() % 1_000_000_000;
    let stamp = stamp(Moment { seconds, nanos: nanos as u32 }, offset);

    let (mut log, mut said) = (Vec::new(), [Vec::new(), Vec::new()]);
    for (stream, chunk) in dice.chunks() {
        said[stream.index()].extend_from_slice(chunk);
        let header = Header::new(&stamp, stream);
        for (content, full) in split(chunk, line_max) {
            assert!(content.len() <= line_max && !content.contains(&b'\n'));
            let start = log.len();
            log.resize(start + Header::record_len(content), 0);
            header.put(&mut log[start..], content, full);
        }
    }
    let records = cri::records(&log).expect("a well-formed log");
    assert_eq!(cri::content(&records, "stdout"), said[0]);
    assert_eq!(cri::content(&records, "stderr"), said[1]);

    // The monitor's own reader sees the same records.
    let mut rest = &log[..];
    for expected in records {
        let Parsed::Record(found) = record(rest) else { panic!("{:?}", record(rest)) };
        assert_eq!(found.stream.name(), expected.stream);
        assert_eq!(found.payload.strip_suffix(b"\n").unwrap_or(found.payload), expected.content);
        assert_eq!(found.payload.ends_with(b"\n"), expected.full);
        rest = &rest[found.len..];
    }
    assert_eq!(record(rest), Parsed::Incomplete);
});
