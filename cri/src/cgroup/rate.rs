//! How much CPU is used right now, out of two readings of a counter.

use std::sync::{Mutex, PoisonError};

/// The last reading that is old enough for a rate, and the last rate.
#[derive(Debug, Default)]
pub struct Rate(Mutex<Option<Sample>>);

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Nanoseconds since 1970.
    at: i64,
    /// Nanoseconds of CPU.
    total: u64,
    rate: Option<u64>,
}

/// Readings that are closer together say nothing: the counters of some kernels go in steps of milliseconds. So clients
/// that ask at the same time see the same rate.
const APART: i64 = 500_000_000;

impl Rate {
    /// Takes a reading; answers with nanoseconds of CPU per second since an earlier one, nothing at the first.
    pub fn take(&self, at: i64, total: u64) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = *last else {
            *last = Some(Sample { at, total, rate: None });
            return None;
        };
        let passed = at.saturating_sub(before.at);
        // A counter that goes back is another's: the cgroup was made anew.
        if total < before.total {
            *last = Some(Sample { at, total, rate: None });
            return None;
        }
        if passed < APART {
            return before.rate;
        }
        let used = u128::from(total - before.total) * 1_000_000_000;
        let rate = u128::try_from(passed).ok().and_then(|passed| u64::try_from(used / passed).ok());
        *last = Some(Sample { at, total, rate });
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_readings_that_are_apart() {
        let rate = Rate::default();
        let second = 1_000_000_000;
        assert_eq!(rate.take(second, 100), None);
        assert_eq!(rate.take(second + 1000, 900), None);
        assert_eq!(rate.take(3 * second, 500_000_100), Some(250_000_000));
        assert_eq!(rate.take(3 * second + 1, 500_000_200), Some(250_000_000));
        assert_eq!(rate.take(4 * second, 5), None);
        assert_eq!(rate.take(5 * second, 5), Some(0));
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let rate = Rate::default();
        assert_eq!((rate.take(5_000_000_000, 10), rate.take(1, 20)), (None, None));
    }
}
