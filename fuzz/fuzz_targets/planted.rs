//! A target with a bug, planted to prove that the job finds one: four bytes that nobody guesses in 15 seconds
//! (one in 2³²), but that libFuzzer learns from watching the comparison.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((magic, _)) = data.split_first_chunk::<4>() {
        assert_ne!(u32::from_be_bytes(*magic), 0x0dd_b1a5e, "the planted bug");
    }
});
