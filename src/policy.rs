//! How much a stream may log: a limit of bytes per second, and what happens to the rest.

use std::time::{Duration, Instant};

use crate::upgrade::state_capnp::policy;

/// What is let through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Everything.
    #[default]
    Pass,
    Limit {
        /// Bytes per second, at least 1.
        rate: u64,
        /// Bytes that may come at once, at least 1.
        burst: u64,
        action: Action,
    },
}

/// What happens beyond the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The container waits.
    BackPressure,
    /// The log goes without it; what is missing is counted.
    Drop,
}

/// The policy of one stream at work: a bucket of bytes that fills with time.
#[derive(Debug, Default)]
pub struct Meter {
    pub policy: Policy,
    /// Bytes that may pass now, as of `since`; below zero, so many were too much.
    level: i128,
    since: Option<Instant>,
}

impl Meter {
    pub fn new(policy: Policy) -> Meter {
        let level = if let Policy::Limit { burst, .. } = policy { burst.into() } else { 0 };
        Meter { policy, level, since: None }
    }

    /// Bytes that may pass at `now`; `None` is no limit.
    pub fn room(&mut self, now: Instant) -> Option<u64> {
        let Policy::Limit { rate, burst, .. } = self.policy else { return None };
        let passed = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let new = u64::try_from(passed.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX);
        if new > 0 || self.since.is_none() {
            self.level = (self.level + i128::from(new)).min(burst.into());
            self.since = Some(now);
        }
        Some(u64::try_from(self.level).unwrap_or(0))
    }

    /// Takes note of bytes that passed.
    pub fn pass(&mut self, bytes: u64) {
        if self.policy != Policy::Pass {
            self.level -= i128::from(bytes);
        }
    }

    /// Time until a worthwhile number of bytes may pass, but not so long that what trickles is late.
    pub fn refill(&self) -> Duration {
        let Policy::Limit { rate, burst, .. } = self.policy else { return Duration::ZERO };
        let nanos = |wanted: i128| wanted.max(1).unsigned_abs() * 1_000_000_000 / u128::from(rate.max(1));
        let worthwhile = nanos(i128::from(burst.min(WORTHWHILE)) - self.level).min(TRICKLE.as_nanos());
        let needed = worthwhile.max(nanos(1 - self.level));
        Duration::from_nanos(u64::try_from(needed).unwrap_or(u64::MAX)).max(Duration::from_millis(1))
    }
}

impl Meter {
    /// For the state that an upgrade hands over; the bucket begins full again.
    pub fn save(&self, mut to: policy::Builder<'_>) {
        if let Policy::Limit { rate, burst, action } = self.policy {
            to.set_rate(rate);
            to.set_burst(burst);
            to.set_drops(action == Action::Drop);
        }
    }

    pub fn restore(from: policy::Reader<'_>) -> Meter {
        let action = if from.get_drops() { Action::Drop } else { Action::BackPressure };
        let (rate, burst) = (from.get_rate(), from.get_burst().max(1));
        Meter::new(if rate == 0 { Policy::Pass } else { Policy::Limit { rate, burst, action } })
    }
}

/// The longest that a byte waits which may pass.
const TRICKLE: Duration = Duration::from_millis(100);

/// Bytes that are worth a wake-up.
const WORTHWHILE: u64 = 4096;

/// How much of a chunk may be logged when `left` bytes may pass: whole lines.
pub fn fitting(chunk: &[u8], left: u64) -> usize {
    match usize::try_from(left) {
        Ok(left) if left < chunk.len() => memchr::memrchr(b'\n', &chunk[..left]).map_or(0, |at| at + 1),
        _ => chunk.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_fit_are_logged_whole() {
        for (left, fits) in [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6), (7, 7), (100, 7)] {
            assert_eq!(fitting(b"ab\ncd\ne", left), fits, "{left}");
        }
    }

    #[test]
    fn what_was_too_much_is_made_up_for() {
        let start = Instant::now();
        let mut meter = Meter::new(Policy::Limit { rate: 1000, burst: 100, action: Action::BackPressure });
        assert_eq!(meter.room(start), Some(100));
        meter.pass(150);
        assert_eq!(meter.room(start + Duration::from_millis(40)), Some(0));
        assert_eq!(meter.refill(), Duration::from_millis(100));
        assert_eq!(meter.room(start + Duration::from_millis(60)), Some(10));
    }

    #[test]
    fn a_bucket_fills_with_time_up_to_its_burst() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut meter = Meter::new(Policy::Limit { rate: 1000, burst: 500, action: Action::Drop });
        assert_eq!(meter.room(at(0)), Some(500));
        meter.pass(500);
        assert_eq!(meter.room(at(0)), Some(0));
        assert_eq!(meter.room(at(100)), Some(100));
        meter.pass(40);
        assert_eq!(meter.room(at(10_000)), Some(500));
        assert_eq!(Meter::new(Policy::Pass).room(at(5)), None);
    }

    #[test]
    fn time_that_brings_less_than_a_byte_is_not_lost() {
        let start = Instant::now();
        let mut meter = Meter::new(Policy::Limit { rate: 10, burst: 10, action: Action::BackPressure });
        assert_eq!(meter.room(start), Some(10));
        meter.pass(10);
        let sum = (1..=100).map(|step| meter.room(start + Duration::from_millis(step * 10))).last();
        assert_eq!(sum, Some(Some(10)));
        assert_eq!(meter.refill(), Duration::from_millis(100));
    }
}
