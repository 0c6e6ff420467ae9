//! x
use crate::support::suite::Case;
pub fn cases() -> Vec<Case> { vec![] }
