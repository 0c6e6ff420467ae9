//! Attach frames, first half: bytes that claim to be a CRI log. What a strict reader accepts, the monitor's reader
//! accepts with the same meaning; the rest it refuses or reads within bounds.
#![no_main]

use conward::log::history::{Parsed, record};
use conward_fuzz::cri;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    loop {
        let line = rest.iter().position(|&byte| byte == b'\n').map(|end| &rest[..=end]);
        let strict = line.and_then(|line| cri::records(line).ok());
        match (record(rest), line) {
            (Parsed::Incomplete, line) => {
                assert_eq!(line, None);
                return;
            }
            (Parsed::Malformed, line) => {
                assert!(line.is_some());
                assert_eq!(strict, None, "refused a good record");
                return;
            }
            (Parsed::Record(found), Some(line)) => {
                assert_eq!(found.len, line.len());
                let end = if found.payload.ends_with(b"\n") { line } else { &line[..line.len() - 1] };
                assert!(end.ends_with(found.payload), "the payload is the record's end");
                if let Some([expected]) = strict.as_deref() {
                    assert_eq!(found.stream.name(), expected.stream);
                    assert_eq!(
                        found.payload,
                        if expected.full { [expected.content, b"\n"].concat() } else { expected.content.to_vec() }
                    );
                }
                rest = &rest[found.len..];
            }
            (Parsed::Record(_), None) => panic!("a record without an end"),
        }
    }
});
