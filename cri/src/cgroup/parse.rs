//! The forms in which cgroup files are written. What is not of the form is not there.

use super::figures::{Io, Waits};

/// A file with one number; `max` and what is negative are none.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A word of a file that has only one line, as a number.
pub fn word(text: &str, at: usize) -> Option<u64> {
    text.split_whitespace().nth(at)?.parse().ok()
}

/// `KEY NUMBER` in each line.
pub fn row(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `MAJOR:MINOR OPERATION NUMBER` in each line, with others between them.
pub fn rows(text: &str) -> Vec<(u32, u32, String, u64)> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = device(words.next()?)?;
        Some((major, minor, words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `MAJOR:MINOR KEY=NUMBER...` in each line. A device that nothing was done with may be there without any.
pub fn transfers(text: &str) -> Vec<Io> {
    let parse = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let (major, minor) = device(name)?;
        let mut io = Io { major, minor, ..Io::default() };
        let idle = io.clone();
        for (key, value) in rest.split_whitespace().filter_map(|pair| pair.split_once('=')) {
            let field = match key {
                "rbytes" => &mut io.read_bytes,
                "wbytes" => &mut io.written_bytes,
                "rios" => &mut io.reads,
                "wios" => &mut io.writes,
                _ => continue,
            };
            *field = value.parse().ok()?;
        }
        (io != idle).then_some(io)
    };
    text.lines().filter_map(parse).collect()
}

/// `some ... total=MICROSECONDS` and a line `full` like it (Linux, accounting/psi.rst).
pub fn pressure(text: &str) -> Option<Waits> {
    let total = |kind: &str| {
        let line = text.lines().find(|line| line.split(' ').next() == Some(kind))?;
        let micros: u64 = line.split_whitespace().find_map(|pair| pair.strip_prefix("total="))?.parse().ok()?;
        Some(micros.saturating_mul(1000))
    };
    Some(Waits { some: total("some")?, full: total("full").unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole() {
        let text = "total_rss_huge 5\ntotal_rss 7\n";
        assert_eq!((row(text, "total_rss"), row(text, "total"), row(text, "rss")), (Some(7), None, None));
    }

    #[test]
    fn what_is_no_number_is_not_there() {
        assert_eq!((number("max\n"), number("-1\n"), number(""), number("12\n")), (None, None, None, Some(12)));
        assert_eq!((word("max 100000\n", 0), word("max 100000\n", 1)), (None, Some(100_000)));
        assert_eq!(pressure("nonsense"), None);
        assert_eq!(rows("x y z\n8:0 Read\n8:0 Read 5"), [(8, 0, "Read".to_owned(), 5)]);
    }
}
