//! The few deadlines that a monitor can have; with none, it sleeps until something happens.

mod saved;

use std::time::{Duration, Instant};

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The container's time is up (`--timeout`).
    Timeout,
    /// The container was killed and should have ended by now.
    Killed,
    /// Memory that a load needed can be given back.
    Trim,
    /// Attach clients that take nothing are looked at (`--attach-stall-timeout`).
    Stall,
    /// What reached its limit may go on: a stream to log, clients of the service to come.
    Refill,
}

const ALL: [Timer; 5] = [Timer::Timeout, Timer::Killed, Timer::Trim, Timer::Stall, Timer::Refill];

/// One deadline per [`Timer`].
#[derive(Debug, Default)]
pub struct Timers([Option<Instant>; ALL.len()]);

impl Timers {
    pub fn set(&mut self, timer: Timer, after: Duration) {
        self.0[timer as usize] = Instant::now().checked_add(after);
    }

    /// As [`Timers::set`], unless it is due before.
    pub fn set_sooner(&mut self, timer: Timer, after: Duration) {
        let at = Instant::now().checked_add(after);
        let slot = &mut self.0[timer as usize];
        *slot = slot.iter().copied().chain(at).min();
    }

    pub fn is_set(&self, timer: Timer) -> bool {
        self.0[timer as usize].is_some()
    }

    /// Time until the nearest deadline.
    pub fn next(&self) -> Option<Duration> {
        let nearest = self.0.iter().flatten().min()?;
        Some(nearest.saturating_duration_since(Instant::now()))
    }

    /// Takes one timer that is due.
    pub fn due(&mut self) -> Option<Timer> {
        if self.0.iter().all(Option::is_none) {
            return None;
        }
        let now = Instant::now();
        let timer = ALL.into_iter().find(|timer| self.0[*timer as usize].is_some_and(|at| at <= now))?;
        self.0[timer as usize] = None;
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_due_once() {
        let mut timers = Timers::default();
        assert_eq!((timers.next(), timers.due()), (None, None));
        timers.set(Timer::Trim, Duration::from_secs(1000));
        timers.set(Timer::Timeout, Duration::ZERO);
        assert_eq!(timers.next(), Some(Duration::ZERO));
        assert_eq!((timers.due(), timers.due()), (Some(Timer::Timeout), None));
        assert!(timers.is_set(Timer::Trim) && !timers.is_set(Timer::Timeout));
    }
}
