//! The deadlines in the state that an upgrade hands over, as the time that is left.

use std::time::{Duration, Instant};

use super::{ALL, Timer, Timers};
use crate::upgrade::state::StateError;
use crate::upgrade::state_capnp::timers;

impl Timers {
    pub fn save(&self, to: timers::Builder<'_>) {
        let now = Instant::now();
        let left = |timer: &Timer| Some((*timer, self.0[*timer as usize]?.saturating_duration_since(now)));
        let set: Vec<(Timer, Duration)> = ALL.iter().filter_map(left).collect();
        let mut list = to.init_left(u32::try_from(set.len()).unwrap_or(0));
        for (index, (timer, left)) in (0..).zip(set) {
            let mut to = list.reborrow().get(index);
            to.set_kind(match timer {
                Timer::Timeout => timers::Kind::Timeout,
                Timer::Killed => timers::Kind::Killed,
                Timer::Trim => timers::Kind::Trim,
                Timer::Stall => timers::Kind::Stall,
                Timer::Refill => timers::Kind::Refill,
            });
            to.set_left(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        }
    }

    pub fn restore(from: timers::Reader<'_>) -> Result<Timers, StateError> {
        let list = from.get_left()?;
        if list.len() as usize > ALL.len() {
            return Err(StateError::Value("timers"));
        }
        let mut timers = Timers::default();
        for one in list {
            let timer = match one.get_kind()? {
                timers::Kind::Timeout => Timer::Timeout,
                timers::Kind::Killed => Timer::Killed,
                timers::Kind::Trim => Timer::Trim,
                timers::Kind::Stall => Timer::Stall,
                timers::Kind::Refill => Timer::Refill,
            };
            timers.set(timer, Duration::from_millis(one.get_left()));
        }
        Ok(timers)
    }
}

#[cfg(test)]
mod tests {
    use capnp::message::Builder;

    use super::*;

    #[test]
    fn the_time_that_is_left_is_handed_over() {
        let mut before = Timers::default();
        before.set(Timer::Timeout, Duration::from_secs(100));
        before.set(Timer::Stall, Duration::from_secs(50));
        let mut message = Builder::new_default();
        before.save(message.init_root());
        let after = Timers::restore(message.get_root_as_reader().unwrap()).unwrap();
        assert!(after.is_set(Timer::Timeout) && !after.is_set(Timer::Killed) && !after.is_set(Timer::Trim));
        let next = after.next().unwrap().as_secs();
        assert!((49..=50).contains(&next), "{next}");
    }
}
