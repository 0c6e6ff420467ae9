//! Runtime messages: what stands in a pidfile, and stderr in any pieces.
#![no_main]

use conward::runtime::{COMPLAINT_MAX, Complaint, parse_pid};
use conward_fuzz::Dice;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The leading decimal digits, as far as they are a pid: the sum is kept small, the rest of the rule is plain.
    let digits = data.iter().take_while(|byte| byte.is_ascii_digit());
    let number = digits.fold(0_u64, |sum, digit| (sum * 10 + u64::from(digit - b'0')).min(1 << 40));
    let expected = i32::try_from(number).ok().filter(|pid| *pid > 0);
    assert_eq!(parse_pid(data), expected);

    let mut dice = Dice(data);
    let repeat = 1 + dice.below(64);
    let (mut complaint, mut said) = (Complaint::default(), Vec::new());
    for (_, chunk) in dice.chunks() {
        let chunk = chunk.repeat(repeat);
        complaint.add(&chunk);
        said.extend(chunk);
        assert_eq!(complaint.bytes(), &said[said.len().saturating_sub(COMPLAINT_MAX)..], "the end is kept");
    }
});
