//! Time stamps of log records.
//!
//! Date, time and offset are worked out once per second and kept; a stamp then costs nine digits.
//!
//! ```text
//! 2026-11-22T01:56:44.196214039+00:00    k8s-file: local time, numeric offset, never Z
//! 2026-11-22T01:56:44.196214039Z         json-file: UTC
//! ```

use std::time::{SystemTime, UNIX_EPOCH};

use crate::sys;

/// Length of a k8s-file stamp.
pub const CRI_LEN: usize = 35;
/// Length of a json-file stamp.
pub const NANO_UTC_LEN: usize = 30;

/// A point in time, so that all sinks can share one look at the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Seconds after the epoch.
    pub seconds: i64,
    /// 0 to 999 999 999.
    pub nanos: u32,
}

impl Moment {
    /// Now, by the wall clock; a clock that stands before 1970 counts as 1970.
    pub fn now() -> Moment {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
    }
}

/// Makes stamps; keeps the part that does not change within a second.
#[derive(Debug)]
pub struct Stamper {
    utc: bool,
    cri: Kept<CRI_LEN>,
    nano_utc: Kept<NANO_UTC_LEN>,
}

/// A stamp that is right up to the nanoseconds for one second.
#[derive(Debug)]
struct Kept<const N: usize> {
    second: Option<i64>,
    text: [u8; N],
}

impl Stamper {
    /// `utc`: k8s-file stamps are in UTC instead of local time.
    pub const fn new(utc: bool) -> Stamper {
        Stamper {
            utc,
            cri: Kept { second: None, text: [0; CRI_LEN] },
            nano_utc: Kept { second: None, text: [0; NANO_UTC_LEN] },
        }
    }

    /// The k8s-file stamp of now.
    pub fn cri(&mut self) -> &[u8; CRI_LEN] {
        self.cri_at(Moment::now())
    }

    /// The k8s-file stamp of `at`.
    pub fn cri_at(&mut self, at: Moment) -> &[u8; CRI_LEN] {
        let kept = &mut self.cri;
        if kept.second == Some(at.seconds) {
            put_nanos(&mut kept.text, at.nanos);
        } else {
            // The offset is asked for again every second: it changes at some second of the year.
            let offset = if self.utc { 0 } else { sys::local_offset(at.seconds).unwrap_or(0) };
            *kept = Kept { second: Some(at.seconds), text: cri(at, offset) };
        }
        &kept.text
    }

    /// The json-file stamp of now.
    pub fn rfc3339_nano_utc(&mut self) -> &[u8; NANO_UTC_LEN] {
        self.rfc3339_nano_utc_at(Moment::now())
    }

    /// The json-file stamp of `at`.
    pub fn rfc3339_nano_utc_at(&mut self, at: Moment) -> &[u8; NANO_UTC_LEN] {
        let kept = &mut self.nano_utc;
        if kept.second == Some(at.seconds) {
            put_nanos(&mut kept.text, at.nanos);
        } else {
            *kept = Kept { second: Some(at.seconds), text: nano_utc(at) };
        }
        &kept.text
    }
}

/// `YYYY-MM-DDTHH:MM:SS.nnnnnnnnn±hh:mm` with `offset` in seconds east of UTC.
///
/// An offset has whole minutes here, so odd seconds of historic zones are cut off, from the offset and from the
/// time alike: the stamp still means the same moment.
pub fn cri(at: Moment, offset: i64) -> [u8; CRI_LEN] {
    let mut text = *b"0000-00-00T00:00:00.000000000+00:00";
    let minutes = (offset / 60).clamp(-MINUTES_MAX, MINUTES_MAX);
    put_date_time(&mut text, at.seconds.saturating_add(minutes * 60));
    put_nanos(&mut text, at.nanos);
    if minutes < 0 {
        text[29] = b'-';
    }
    put_digits(&mut text[30..32], minutes.unsigned_abs() / 60);
    put_digits(&mut text[33..35], minutes.unsigned_abs() % 60);
    text
}

/// `YYYY-MM-DDTHH:MM:SS.nnnnnnnnnZ`.
pub fn nano_utc(at: Moment) -> [u8; NANO_UTC_LEN] {
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    put_date_time(&mut text, at.seconds);
    put_nanos(&mut text, at.nanos);
    text
}

/// Fills in `YYYY`, `MM`, `DD`, `HH`, `MM`, `SS`; times that need another number of digits become the nearest
/// that does not.
fn put_date_time(text: &mut [u8], seconds: i64) {
    let seconds = seconds.clamp(FIRST_SECOND, LAST_SECOND);
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let second = seconds.rem_euclid(86_400).unsigned_abs();
    put_digits(&mut text[0..4], year);
    put_digits(&mut text[5..7], month);
    put_digits(&mut text[8..10], day);
    put_digits(&mut text[11..13], second / 3600);
    put_digits(&mut text[14..16], second / 60 % 60);
    put_digits(&mut text[17..19], second % 60);
}

fn put_nanos(text: &mut [u8], nanos: u32) {
    put_digits(&mut text[20..29], u64::from(nanos));
}

fn put_digits(text: &mut [u8], mut value: u64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of `days` after 1970-01-01, in the Gregorian calendar; not before the year 1.
///
/// Years are counted from March here, so that the leap day is the last day of its year and the month lengths
/// 31 30 31 30 31 | 31 30 31 30 31 | 31 … follow a straight line of 153 days in five months.
fn civil(days: i64) -> (u64, u64, u64) {
    let days = (days + DAYS_MARCH_0_TO_EPOCH).unsigned_abs();
    let (era, day) = (days / DAYS_400_YEARS, days % DAYS_400_YEARS);
    // Without its leap days the rest divides evenly; the last day of the fourth and of the 400th year is one.
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5;
    let (carry, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
    (era * 400 + year + carry, month, day + 1)
}

/// From 0000-03-01 to 1970-01-01.
const DAYS_MARCH_0_TO_EPOCH: i64 = 719_468;
const DAYS_400_YEARS: u64 = 146_097;
/// 0001-01-01T00:00:00 and 9999-12-31T23:59:59.
const FIRST_SECOND: i64 = -62_135_596_800;
const LAST_SECOND: i64 = 253_402_300_799;
/// RFC 3339 knows no offset of a day or more; readers refuse the whole line.
const MINUTES_MAX: i64 = 23 * 60 + 59;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn known_moments() {
        let table = [
            (0, 0, 0, "1970-01-01T00:00:00.000000000+00:00"),
            (1_795_312_604, 196_214_039, 0, "2026-11-22T01:56:44.196214039+00:00"),
            (1_795_312_604, 999_999_999, 7200, "2026-11-22T03:56:44.999999999+02:00"),
            (1_795_312_604, 1, -(3 * 3600 + 30 * 60), "2026-11-21T22:26:44.000000001-03:30"),
            (1_795_312_604, 1, 5 * 3600 + 45 * 60, "2026-11-22T07:41:44.000000001+05:45"),
            (1_709_164_799, 0, 0, "2024-02-28T23:59:59.000000000+00:00"),
            (1_709_164_800, 0, 0, "2024-02-29T00:00:00.000000000+00:00"),
            (1_709_251_200, 0, 0, "2024-03-01T00:00:00.000000000+00:00"),
            (4_107_542_400, 0, 0, "2100-03-01T00:00:00.000000000+00:00"),
            (4_294_967_296, 0, 0, "2106-02-07T06:28:16.000000000+00:00"),
            (-1, 0, 0, "1969-12-31T23:59:59.000000000+00:00"),
            (0, 0, -3600, "1969-12-31T23:00:00.000000000-01:00"),
            // Amsterdam before 1937: 19 min 32 s; the 32 s are in neither part.
            (0, 0, 1172, "1970-01-01T00:19:00.000000000+00:19"),
            (0, 0, -1172, "1969-12-31T23:41:00.000000000-00:19"),
            (0, 0, -59, "1970-01-01T00:00:00.000000000+00:00"),
            (LAST_SECOND, 999_999_999, 0, "9999-12-31T23:59:59.999999999+00:00"),
            (LAST_SECOND + 1, 0, 0, "9999-12-31T23:59:59.000000000+00:00"),
            (i64::MAX, 0, i64::MAX, "9999-12-31T23:59:59.000000000+23:59"),
            (FIRST_SECOND, 0, 0, "0001-01-01T00:00:00.000000000+00:00"),
            (i64::MIN, 0, i64::MIN, "0001-01-01T00:00:00.000000000-23:59"),
        ];
        for (seconds, nanos, offset, want) in table {
            assert_eq!(text(&cri(Moment { seconds, nanos }, offset)), want, "{seconds} {offset}");
        }
        let at = Moment { seconds: 1_795_312_604, nanos: 196_214_039 };
        assert_eq!(text(&nano_utc(at)), "2026-11-22T01:56:44.196214039Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1, 1, 1);
        for days in FIRST_SECOND / 86_400..=LAST_SECOND / 86_400 {
            assert_eq!(civil(days), (year, month, day));
            let leap = year % 4 == 0 && year % 100 != 0 || year % 400 == 0;
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
        assert_eq!((year, month, day), (10_000, 1, 1));
    }

    #[test]
    fn a_kept_stamp_equals_a_fresh_one() {
        let mut stamper = Stamper::new(true);
        let seconds = [5, 5, 5, 6, 6, 5, 86_399, 86_400, 86_400, i64::MAX, i64::MIN, 5];
        for (index, seconds) in seconds.into_iter().enumerate() {
            let at = Moment { seconds, nanos: [0, 999_999_999, 7, 123_456_789][index % 4] };
            assert_eq!(text(stamper.cri_at(at)), text(&cri(at, 0)));
            assert_eq!(text(stamper.rfc3339_nano_utc_at(at)), text(&nano_utc(at)));
        }
    }

    #[test]
    fn now_is_now() {
        let mut stamper = Stamper::new(true);
        let before = cri(Moment::now(), 0);
        let stamp = *stamper.cri();
        let nano = *stamper.rfc3339_nano_utc();
        let after = cri(Moment::now(), 0);
        // Stamps of equal form sort like their moments.
        assert!(before <= stamp && stamp <= after);
        assert!(stamp[..29] <= nano[..29] && nano[..29] <= after[..29]);
    }

    /// The time zone belongs to the process, so each row runs this test again in a process of its own.
    #[test]
    fn local_time_follows_tz() {
        const SECONDS: &str = "CONWARD_TEST_STAMP_SECONDS";
        const WANT: &str = "CONWARD_TEST_STAMP_WANT";
        if let (Ok(seconds), Ok(want)) = (std::env::var(SECONDS), std::env::var(WANT)) {
            let at = Moment { seconds: seconds.parse().unwrap(), nanos: 5 };
            assert_eq!(text(Stamper::new(false).cri_at(at)), want);
            assert!(text(Stamper::new(true).cri_at(at)).ends_with("+00:00"));
            return;
        }
        let europe = "CET-1CEST,M3.5.0,M10.5.0/3";
        let table = [
            ("UTC0", "1795312604", "2026-11-22T01:56:44.000000005+00:00"),
            ("XXX-5:45", "1795312604", "2026-11-22T07:41:44.000000005+05:45"),
            ("XXX3:30", "1795312604", "2026-11-21T22:26:44.000000005-03:30"),
            (europe, "1774745999", "2026-03-29T01:59:59.000000005+01:00"),
            (europe, "1774746000", "2026-03-29T03:00:00.000000005+02:00"),
            (europe, "1792889999", "2026-10-25T02:59:59.000000005+02:00"),
            (europe, "1792890000", "2026-10-25T02:00:00.000000005+01:00"),
            (europe, "9223372036854775807", "9999-12-31T23:59:59.000000005+00:00"),
        ];
        for (zone, seconds, want) in table {
            let run = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "log::stamp::tests::local_time_follows_tz"])
                .envs([("TZ", zone), (SECONDS, seconds), (WANT, want)])
                .output()
                .unwrap();
            let out = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success() && out.contains("1 passed"), "{zone} {seconds}: {out}");
        }
    }
}
