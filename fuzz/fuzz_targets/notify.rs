//! sd-notify filter: only lines that a container may say go through, in order, and filtering again changes nothing.
#![no_main]

use conward::notify::filter;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let passed = filter(data);
    let lines = |bytes: &[u8]| -> Vec<Vec<u8>> {
        bytes.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::to_vec).collect()
    };
    // A C string ends at its NUL.
    let text = data.split(|&byte| byte == 0).next().unwrap_or_default();
    let allowed: Vec<Vec<u8>> = lines(text).into_iter().filter(|line| is_allowed(line)).collect();
    match passed {
        None => assert!(allowed.is_empty(), "{allowed:?} must pass"),
        Some(passed) => {
            assert_eq!(lines(&passed), allowed);
            assert!(passed.len() <= data.len() && !passed.ends_with(b"\n") && !passed.contains(&b'\r'));
            assert_eq!(filter(&passed), Some(passed), "again");
        }
    }
});

fn is_allowed(line: &[u8]) -> bool {
    let Some(sign) = line.iter().position(|&byte| byte == b'=') else { return false };
    let (name, value) = (&line[..sign], &line[sign + 1..]);
    match name {
        b"STATUS" | b"ERRNO" | b"BUSERROR" | b"MONOTONIC_USEC" => true,
        b"READY" | b"RELOADING" | b"STOPPING" => value == b"1",
        b"WATCHDOG" => value == b"1" || value == b"trigger",
        _ => false,
    }
}
