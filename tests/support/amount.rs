//! How much a case moves: little by default, with `SOAK=1` as much as the specification says.

use std::time::Duration;

pub const MIB: u64 = 1 << 20;

/// True for the long sizes.
pub fn soak() -> bool {
    std::env::var_os("SOAK").is_some_and(|value| value == "1")
}

/// The usual amount or the long one.
pub fn size(usual: u64, long: u64) -> u64 {
    if soak() { long } else { usual }
}

/// How long a load may take; a deadline, not a measure.
pub fn patience() -> Duration {
    Duration::from_secs(size(50, 1500))
}
