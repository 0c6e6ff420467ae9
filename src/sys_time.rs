//! The local time zone, from the C library.

use std::mem::MaybeUninit;

/// Seconds that local time is ahead of UTC at `seconds` after the epoch, by `TZ` or `/etc/localtime`.
/// `None` if the C library cannot say (the year does not fit).
pub fn local_offset(seconds: i64) -> Option<i64> {
    let mut fields = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are to live, aligned values for the length of the call. The function reads `TZ`,
    // and nothing in this program changes the environment once it runs.
    let result = unsafe { libc::localtime_r(&raw const seconds, fields.as_mut_ptr()) };
    if result.is_null() {
        return None;
    }
    // SAFETY: a result that is not null means that every field has been filled in.
    Some(unsafe { fields.assume_init() }.tm_gmtoff)
}
