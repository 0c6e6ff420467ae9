//! Runtime messages: whatever a runtime says on stderr becomes one JSON line that callers can read.
#![no_main]

use conward::parent::{Key, REPORT_MAX, report};
use libfuzzer_sys::fuzz_target;

const KEYS: [(Key, &str); 3] = [(Key::Data, "data"), (Key::Pid, "pid"), (Key::ExitCode, "exit_code")];

fuzz_target!(|data: &[u8]| {
    let Some((&[key, repeat, value @ ..], said)) = data.split_first_chunk::<6>() else { return };
    let (key, name) = KEYS[usize::from(key) % KEYS.len()];
    let value = i32::from_le_bytes(value);
    // Repeated, a short input also fills the line to its limit.
    let message = said.repeat(usize::from(repeat));

    let line = report(key, value, &message);
    assert!(line.len() <= REPORT_MAX, "{} bytes", line.len());
    assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(line.len() - 1), "one newline, at the end");
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&line).expect("valid JSON");
    assert_eq!(object[name], value);
    let text = String::from_utf8_lossy(&message);
    match object.get("message") {
        None => assert!(text.is_empty(), "a message is left out only if there is none"),
        Some(kept) => {
            let kept = kept.as_str().expect("a string");
            assert!(text.ends_with(kept), "the message's end is kept");
            // The longest escape has six bytes: less room than that is no reason to cut.
            assert!(kept.len() == text.len() || line.len() > REPORT_MAX - 6, "cut without need");
        }
    }
    assert_eq!(object.len(), 1 + usize::from(!text.is_empty()));
});
