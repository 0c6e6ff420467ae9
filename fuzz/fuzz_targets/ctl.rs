//! ctl lines: each means what C's `scanf` reads in it, however the reads cut them; nothing else is obeyed.
#![no_main]

use std::ffi::{CString, c_int};

use conward::command::Command;
use conward::control::{Kind, Lines, Rejected, Why};
use conward::session::CONTAINER;
use conward_fuzz::Dice;
use libfuzzer_sys::fuzz_target;

type Answer = Result<Command, Rejected>;

/// Bytes without a newline that are too many.
const LINE_MAX: usize = 199;

fuzz_target!(|data: &[u8]| {
    let mut dice = Dice(data);
    let kind = [Kind::Ctl, Kind::Winsz][dice.below(2)];
    let repeat = 1 + dice.below(3) * 20;
    let chunks: Vec<Vec<u8>> = dice.chunks().into_iter().map(|(_, chunk)| chunk.repeat(repeat)).collect();
    let text = chunks.concat();

    let whole = feed(kind, &[&text]);
    let cut: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
    assert_eq!(feed(kind, &cut), whole, "the cuts change the meaning");

    // A last line without its newline says nothing yet, unless it is too long already.
    let mut lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
    lines.pop_if(|last| last.len() < LINE_MAX);
    assert_eq!(whole.len(), lines.len(), "one answer per line");
    for (line, answer) in lines.into_iter().zip(&whole) {
        check(kind, line, answer);
    }
});

fn feed(kind: Kind, chunks: &[&[u8]]) -> Vec<Answer> {
    let (mut lines, mut answers) = (Lines::new(kind), Vec::new());
    for chunk in chunks {
        lines.feed(chunk, |answer| answers.push(answer));
    }
    answers
}

fn check(kind: Kind, line: &[u8], answer: &Answer) {
    if let Err(rejected) = answer {
        let text = rejected.to_string();
        assert!(text.len() < 1000 && !text.chars().any(char::is_control), "{text:?}");
    }
    let why = answer.as_ref().map_err(|rejected| rejected.why);
    if line.len() >= LINE_MAX {
        assert_eq!(why, Err(Why::TooLong));
        return;
    }
    if why == Err(Why::Huge) {
        let runs = line.split(|byte| !byte.is_ascii_digit());
        let digits = runs.map(|run| run.iter().skip_while(|&&digit| digit == b'0').count());
        assert!(digits.max() >= Some(10), "no number here is out of range");
        return;
    }
    let numbers = scan(line);
    let (what, rest) = match kind {
        Kind::Ctl => (numbers.first().copied().unwrap_or(0), numbers.get(1..).unwrap_or_default()),
        Kind::Winsz => (1, &numbers[..]),
    };
    let expected = match *rest {
        [rows, cols, ..] => command(what, rows, cols),
        _ => Err(Why::Missing),
    };
    assert_eq!(why, expected.as_ref().map_err(|why| *why), "{:?}", String::from_utf8_lossy(line));
}

fn command(what: c_int, rows: c_int, cols: c_int) -> Result<Command, Why> {
    let size = |number: c_int| u16::try_from(number).ok().filter(|&size| size <= 1000).ok_or(Why::Size(number.into()));
    match what {
        1 => Ok(Command::Resize { session: CONTAINER, rows: size(rows)?, cols: size(cols)? }),
        2 => size(rows).and(size(cols)).map(|_| Command::ReopenLog),
        _ => Err(Why::Type(what.into())),
    }
}

/// What the C library makes of the line, which conmon asks.
fn scan(line: &[u8]) -> Vec<c_int> {
    let text = line.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = CString::new(text).expect("no NUL in it");
    let mut numbers: [c_int; 3] = [0; 3];
    let [a, b, c] = &mut numbers;
    // SAFETY: both strings end with NUL, and each `%d` has its int to write to.
    let count = unsafe { libc::sscanf(text.as_ptr(), c"%d %d %d".as_ptr(), &raw mut *a, &raw mut *b, &raw mut *c) };
    numbers[..usize::try_from(count).unwrap_or(0)].to_vec()
}
