//! How values look to people.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// A number of bytes in few characters: `0`, `999`, `1.5K`, `20M`.
pub fn bytes(count: u64) -> String {
    if count < 1024 {
        return count.to_string();
    }
    let mut whole = count;
    let mut tenths = 0;
    for unit in ["K", "M", "G", "T", "P", "E"] {
        tenths = (whole % 1024) * 10 / 1024;
        whole /= 1024;
        if whole < 10 {
            return format!("{whole}.{tenths}{unit}");
        }
        if whole < 1024 {
            return format!("{whole}{unit}");
        }
    }
    format!("{whole}.{tenths}E")
}

/// Reads a number of bytes with an optional K, M or G.
pub fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Nanoseconds since 1970, now.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

const SECOND: i64 = 1_000_000_000;

/// How long ago something was: `5s`, `3m`, `2h`, `40d`; a dash for a time that is none.
pub fn age(since: i64, now: i64) -> String {
    let seconds = now.saturating_sub(since).max(0) / SECOND;
    match seconds {
        _ if since <= 0 => "-".to_owned(),
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// RFC 3339 in UTC with nanoseconds, as in exit.json; a dash for a time that is none.
pub fn time(nanoseconds: i64) -> String {
    if nanoseconds <= 0 {
        return "-".to_owned();
    }
    let (seconds, fraction) = (nanoseconds / SECOND, nanoseconds % SECOND);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// The date so many days after 1970-01-01. Years begin in March here, so that the leap day is the last one.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, over) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + over, month, day)
}

/// The beginning of an ID, as engines show it.
pub fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// Text of others must not steer a terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Columns as wide as their widest cell, two blanks apart. A heading that begins with `>` is of a column of numbers.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].trim_start_matches('>').len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let titles: Vec<String> = headings.iter().map(|heading| heading.trim_start_matches('>').to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for ((cell, heading), &width) in row.iter().zip(headings).zip(&widths) {
            // Writing to a string does not fail.
            let _ = match heading.starts_with('>') {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [(0, "0"), (1023, "1023"), (1024, "1.0K"), (1536, "1.5K"), (10 << 10, "10K"), (20 << 20, "20M")];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(u64::MAX), "15E");
        assert_eq!(size("64k"), Some(65536));
        assert_eq!(size("7"), Some(7));
        assert_eq!((size(""), size("K"), size("99999999999G"), size("-1")), (None, None, None, None));
    }

    #[test]
    fn times_are_dates() {
        assert_eq!(time(1_709_210_096_000_000_007), "2024-02-29T12:34:56.000000007Z");
        assert_eq!(time(946_684_799_999_999_999), "1999-12-31T23:59:59.999999999Z");
        assert_eq!(time(0), "-");
        assert_eq!(age(1, 90 * SECOND), "1m");
        assert_eq!(age(SECOND, SECOND), "0s");
        assert_eq!(age(0, SECOND), "-");
        assert_eq!(age(SECOND, 49 * 3600 * SECOND), "2d");
    }

    #[test]
    fn a_table_has_columns() {
        let rows = [vec!["a".to_owned(), "5".to_owned()], vec!["long".to_owned(), "1000".to_owned()]];
        assert_eq!(table(&["ID", ">N"], &rows), "ID       N\na        5\nlong  1000\n");
        assert_eq!(plain("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
