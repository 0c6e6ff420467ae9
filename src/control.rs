//! The `ctl` and `winsz` FIFOs: requests as lines of decimal numbers.
//!
//! `ctl` takes `TYPE A B`, where type 1 is a resize to A rows and B columns and type 2 means that the logs are to be
//! opened again (A and B say nothing then, but must be in range as well). `winsz` takes `ROWS COLUMNS`. Numbers are
//! read as `scanf("%d")` reads them: blanks before, an optional sign, and whatever follows the last one is ignored.

mod saved;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, mkfifoat, read, unlinkat};

use crate::command::Command;
use crate::error::Error;
use crate::session::CONTAINER;

/// Which FIFO it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ctl,
    Winsz,
}

/// Whether a source may have more right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// It may: come again without waiting for an event.
    Again,
    /// It has nothing.
    Wait,
}

// ---------------------------------------------------------------- one FIFO

/// One FIFO, held open at both ends: writers always find a reader, and the reader never sees an end.
///
/// It stays when the monitor ends, and goes on working when another monitor has taken its name over (an exec in the
/// same bundle does).
#[derive(Debug)]
pub struct Fifo {
    fd: OwnedFd,
    lines: Lines,
}

impl Fifo {
    /// Makes `dir/name` anew, with mode 0640, in place of what has that name.
    pub fn create(dir: &Path, name: &str, kind: Kind) -> Result<Fifo, Error> {
        let dir_flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir_fd = open(dir, dir_flags, Mode::empty()).map_err(Error::at("open", dir))?;
        // A name of our own first: what is opened is what was made, and nobody ever finds `name` missing.
        let own = format!(".{name}.{}", std::process::id());
        let path = dir.join(&own);
        make(&dir_fd, &own).map_err(Error::at("make the FIFO", &path))?;
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let ready = openat(&dir_fd, own.as_str(), flags, Mode::empty())
            .map_err(Error::at("open the FIFO", &path))
            .and_then(|fd| {
                renameat(&dir_fd, own.as_str(), &dir_fd, name)
                    .map_err(Error::at("put a FIFO in place as", &dir.join(name)))?;
                Ok(Fifo { fd, lines: Lines::new(kind) })
            });
        if ready.is_err() {
            let _ = unlinkat(&dir_fd, own.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        ready
    }

    /// Reads what there is, up to a bound, and passes on what it says.
    pub fn read(&mut self, mut each: impl FnMut(Result<Command, Rejected>)) -> io::Result<Drained> {
        let mut buffer = [0; 4096];
        for _ in 0..READS {
            match read(&self.fd, &mut buffer) {
                // Cannot be: we are a writer ourselves.
                Ok(0) => return Ok(Drained::Wait),
                Ok(count) => self.lines.feed(&buffer[..count], &mut each),
                Err(Errno::EAGAIN) => return Ok(Drained::Wait),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Drained::Again)
    }
}

impl AsFd for Fifo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a FIFO; one of that name that a process with our pid left behind is removed.
fn make(dir: &OwnedFd, name: &str) -> nix::Result<()> {
    let mode = Mode::from_bits_truncate(0o640);
    match mkfifoat(dir, name, mode) {
        Err(Errno::EEXIST) => {
            unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
            mkfifoat(dir, name, mode)
        }
        answer => answer,
    }
}

/// Reads of one turn: a quarter of a full pipe.
const READS: usize = 4;

// ---------------------------------------------------------------- lines

/// Splits the bytes of one FIFO into requests, however the reads cut them.
#[derive(Debug)]
pub struct Lines {
    kind: Kind,
    /// The beginning of a line whose newline has not come yet.
    line: Vec<u8>,
    /// The line was too long: everything up to its newline is ignored.
    discarding: bool,
}

impl Lines {
    pub fn new(kind: Kind) -> Lines {
        Lines { kind, line: Vec::new(), discarding: false }
    }

    /// Takes the next bytes and passes on each line that they complete.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Result<Command, Rejected>)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let newline = memchr::memchr(b'\n', rest);
            let end = newline.unwrap_or(rest.len());
            self.extend(&rest[..end], &mut each);
            if newline.is_some() {
                self.end_line(&mut each);
            }
            rest = rest.get(end + 1..).unwrap_or_default();
        }
    }

    fn extend(&mut self, part: &[u8], each: &mut impl FnMut(Result<Command, Rejected>)) {
        if self.discarding {
            return;
        }
        let room = LINE_MAX - self.line.len();
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        if self.line.len() == LINE_MAX {
            self.discarding = true;
            each(Err(self.reject(Why::TooLong)));
        }
    }

    fn end_line(&mut self, each: &mut impl FnMut(Result<Command, Rejected>)) {
        if !self.discarding {
            each(parse(self.kind, &self.line).map_err(|why| self.reject(why)));
        }
        self.line.clear();
        self.discarding = false;
    }

    fn reject(&self, why: Why) -> Rejected {
        Rejected { kind: self.kind, line: shown(&self.line), why }
    }
}

/// Bytes without a newline that are too many for a line; conmon's buffer.
const LINE_MAX: usize = 199;

fn parse(kind: Kind, line: &[u8]) -> Result<Command, Why> {
    let mut rest = line;
    let mut next = || number(&mut rest);
    let what = match kind {
        Kind::Ctl => next()?,
        Kind::Winsz => RESIZE,
    };
    let (rows, cols) = (next()?, next()?);
    if what != RESIZE && what != REOPEN {
        return Err(Why::Type(what));
    }
    let (rows, cols) = (size(rows)?, size(cols)?);
    Ok(if what == RESIZE { Command::Resize { session: CONTAINER, rows, cols } } else { Command::ReopenLog })
}

const RESIZE: i64 = 1;
const REOPEN: i64 = 2;

/// conmon's limit for rows and columns, sanity rather than need.
const SIZE_MAX: u16 = 1000;

fn size(number: i64) -> Result<u16, Why> {
    u16::try_from(number).ok().filter(|size| *size <= SIZE_MAX).ok_or(Why::Size(number))
}

/// Takes one number off the front.
fn number(rest: &mut &[u8]) -> Result<i64, Why> {
    let blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    let start = rest.iter().position(|byte| !blank(byte)).ok_or(Why::Missing)?;
    let signed = usize::from(matches!(rest[start], b'+' | b'-'));
    let digits = &rest[start + signed..];
    let count = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    if count == 0 {
        return Err(Why::Missing);
    }
    let mut value: i64 = 0;
    for digit in &digits[..count] {
        value = value * 10 + i64::from(digit - b'0');
        if value > i64::from(i32::MAX) {
            return Err(Why::Huge);
        }
    }
    let value = if rest[start] == b'-' { -value } else { value };
    *rest = &digits[count..];
    Ok(value)
}

/// A line that is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub kind: Kind,
    /// The line for people: shortened, with nothing in it that could disturb a terminal.
    pub line: String,
    pub why: Why,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No newline came in time.
    TooLong,
    /// Fewer numbers than it takes.
    Missing,
    /// A number that fits nothing.
    Huge,
    Type(i64),
    /// Rows or columns outside 0 to 1000.
    Size(i64),
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (fifo, wanted) = match self.kind {
            Kind::Ctl => ("ctl", 3),
            Kind::Winsz => ("winsz", 2),
        };
        write!(f, "Ignored a line of the {fifo} FIFO, \"{}\": ", self.line)?;
        match self.why {
            Why::TooLong => write!(f, "no newline in {LINE_MAX} bytes"),
            Why::Missing => write!(f, "not {wanted} whole numbers"),
            Why::Huge => f.write_str("a number is out of range"),
            Why::Type(number) => write!(f, "no message type {number}"),
            Why::Size(number) => write!(f, "size {number} is not between 0 and {SIZE_MAX}"),
        }
    }
}

impl std::error::Error for Rejected {}

fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut shown: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Characters of a rejected line that a message repeats.
const SHOWN_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};

    type Answer = Result<Command, Why>;

    fn feed(lines: &mut Lines, bytes: &[u8]) -> Vec<Answer> {
        let mut answers = Vec::new();
        lines.feed(bytes, |answer| answers.push(answer.map_err(|rejected| rejected.why)));
        answers
    }

    fn resize(rows: u16, cols: u16) -> Answer {
        Ok(Command::Resize { session: CONTAINER, rows, cols })
    }

    const REOPENED: Answer = Ok(Command::ReopenLog);
    const MISSING: Answer = Err(Why::Missing);

    #[test]
    fn ctl_lines() {
        let rows: &[(&[u8], &[Answer])] = &[
            (b"1 10 20\n", &[resize(10, 20)]),
            (b"  \t1   10\t20\r\n", &[resize(10, 20)]),
            (b"\x0b1 +010 +20\n", &[resize(10, 20)]),
            (b"1 0 1000\n", &[resize(0, 1000)]),
            (b"1 2 2 3\n", &[resize(2, 2)]),
            (b"1 13 23abc\n", &[resize(13, 23)]),
            (b"1 13 23.5\n", &[resize(13, 23)]),
            (b"1 -0 1\n", &[resize(0, 1)]),
            (b"2 0 0\n", &[REOPENED]),
            (b"2 1 1\n", &[REOPENED]),
            (b"1 1 2\n1 3 4\n", &[resize(1, 2), resize(3, 4)]),
            (b"1 10.5 20.3\n", &[MISSING]),
            (b"1 0x10 0x20\n", &[MISSING]),
            (b"1 10\0 20\n", &[MISSING]),
            (b"foo\n", &[MISSING]),
            (b"999\n", &[MISSING]),
            (b"\n", &[MISSING]),
            (b"1 + 2\n", &[MISSING]),
            (b"\xff\xfe 1 2\n", &[MISSING]),
            (b"1 19\n29\n", &[MISSING, MISSING]),
            (b"3 1 1\n", &[Err(Why::Type(3))]),
            (b"0 1 1\n", &[Err(Why::Type(0))]),
            (b"-1 1 1\n", &[Err(Why::Type(-1))]),
            (b"1 -1 1\n", &[Err(Why::Size(-1))]),
            (b"1 1 1001\n", &[Err(Why::Size(1001))]),
            (b"2 1001 1\n", &[Err(Why::Size(1001))]),
            (b"2 1 -1\n", &[Err(Why::Size(-1))]),
            (b"1 4294967306 1\n", &[Err(Why::Huge)]),
            (b"1 -2147483648 1\n", &[Err(Why::Huge)]),
            (b"1 1 99999999999999999999999999999999\n", &[Err(Why::Huge)]),
            (b"foo\n1 5 6\n", &[MISSING, resize(5, 6)]),
            (b"1 5 6", &[]),
        ];
        for (bytes, expected) in rows {
            let shown = String::from_utf8_lossy(bytes);
            assert_eq!(feed(&mut Lines::new(Kind::Ctl), bytes), *expected, "{shown:?}");
            let mut bytewise = Lines::new(Kind::Ctl);
            let answers: Vec<_> = bytes.chunks(1).flat_map(|byte| feed(&mut bytewise, byte)).collect();
            assert_eq!(answers, *expected, "byte by byte {shown:?}");
        }
    }

    #[test]
    fn winsz_lines() {
        let rows: &[(&[u8], &[Answer])] = &[
            (b"24 80\n", &[resize(24, 80)]),
            (b"1 24 80\n", &[resize(1, 24)]),
            (b"24\n80 25\n", &[MISSING, resize(80, 25)]),
            (b"1001 1\n", &[Err(Why::Size(1001))]),
        ];
        for (bytes, expected) in rows {
            assert_eq!(feed(&mut Lines::new(Kind::Winsz), bytes), *expected);
        }
    }

    #[test]
    fn a_line_too_long_is_dropped_up_to_its_newline() {
        for (len, fits) in [(198, true), (199, false), (200, false), (100_000, false)] {
            let mut line = b"1 2 3 ".to_vec();
            line.resize(len, b'x');
            line.extend_from_slice(b"\n1 4 5\n");
            for chunk in [1, 7, 198, 199, 200, line.len()] {
                let mut lines = Lines::new(Kind::Ctl);
                let answers: Vec<_> = line.chunks(chunk).flat_map(|bytes| feed(&mut lines, bytes)).collect();
                let first = if fits { resize(2, 3) } else { Err(Why::TooLong) };
                assert_eq!(answers, [first, resize(4, 5)], "{len} bytes by {chunk}");
                assert!(lines.line.capacity() < 1024);
            }
        }
    }

    #[test]
    fn a_rejection_names_the_line() {
        let rows: [(&[u8], &str); 3] = [
            (b"foo\x1b[2J\xff", "\"foo\\u{1b}[2J\u{fffd}\": not 3 whole numbers"),
            (b"1 1001 1", "\"1 1001 1\": size 1001 is not between 0 and 1000"),
            (
                b"a123456789b123456789c123456789d123456789e",
                "\"a123456789b123456789c123456789d123456789…\": not 3 whole numbers",
            ),
        ];
        for (line, expected) in rows {
            let mut said = String::new();
            let mut lines = Lines::new(Kind::Ctl);
            lines.feed(line, |_| ());
            lines.feed(b"\n", |answer| said = answer.unwrap_err().to_string());
            assert_eq!(said, format!("Ignored a line of the ctl FIFO, {expected}"));
        }
    }

    fn read_all(fifo: &mut Fifo) -> (Vec<Command>, Drained) {
        let mut commands = Vec::new();
        let drained = fifo.read(|answer| commands.extend(answer.ok())).unwrap();
        (commands, drained)
    }

    fn writer(path: &Path) -> fs::File {
        fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
    }

    #[test]
    fn writers_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl");
        let mut fifo = Fifo::create(dir.path(), "ctl", Kind::Ctl).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(read_all(&mut fifo), (vec![], Drained::Wait));
        writer(&path).write_all(b"1 10 20\n1 11").unwrap();
        assert_eq!(
            read_all(&mut fifo),
            (vec![Command::Resize { session: CONTAINER, rows: 10, cols: 20 }], Drained::Wait)
        );
        writer(&path).write_all(b" 21\n").unwrap();
        assert_eq!(
            read_all(&mut fifo),
            (vec![Command::Resize { session: CONTAINER, rows: 11, cols: 21 }], Drained::Wait)
        );
        // The last writer's leaving is no event.
        let mut polled = [nix::poll::PollFd::new(fifo.as_fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut polled, 0u8), Ok(0));
        drop(fifo);
        assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
    }

    #[test]
    fn one_turn_is_bounded_and_the_next_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut fifo = Fifo::create(dir.path(), "ctl", Kind::Ctl).unwrap();
        writer(&dir.path().join("ctl")).write_all(&b"2 0 0\n".repeat(4000)).unwrap();
        let (mut total, mut turns) = (0, 0);
        loop {
            let (commands, drained) = read_all(&mut fifo);
            (total, turns) = (total + commands.len(), turns + 1);
            if drained == Drained::Wait {
                break;
            }
        }
        assert_eq!((total, turns), (4000, 2));
    }

    #[test]
    fn a_fifo_outlives_the_loss_of_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl");
        let mut first = Fifo::create(dir.path(), "ctl", Kind::Ctl).unwrap();
        let mut held = writer(&path);
        let mut second = Fifo::create(dir.path(), "ctl", Kind::Ctl).unwrap();
        held.write_all(b"1 1 1\n").unwrap();
        writer(&path).write_all(b"1 2 2\n").unwrap();
        assert_eq!(read_all(&mut first).0, [Command::Resize { session: CONTAINER, rows: 1, cols: 1 }]);
        assert_eq!(read_all(&mut second).0, [Command::Resize { session: CONTAINER, rows: 2, cols: 2 }]);
    }

    #[test]
    fn what_had_the_name_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("winsz");
        let precious = dir.path().join("precious");
        fs::write(&precious, "kept").unwrap();
        let make: [&dyn Fn(); 2] = [&|| fs::write(&path, "old").unwrap(), &|| symlink(&precious, &path).unwrap()];
        for make in make {
            make();
            Fifo::create(dir.path(), "winsz", Kind::Winsz).unwrap();
            assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo());
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
        // The name that a process with our pid had been using when it was killed.
        fs::write(dir.path().join(format!(".winsz.{}", std::process::id())), "").unwrap();
        Fifo::create(dir.path(), "winsz", Kind::Winsz).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "winsz and precious");
    }

    #[test]
    fn errors_name_stage_and_path_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let error = Fifo::create(&missing, "ctl", Kind::Ctl).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot open {}: ", missing.display())), "{error}");
        fs::create_dir(dir.path().join("ctl")).unwrap();
        let before = fs::metadata(dir.path().join("ctl")).unwrap().ino();
        let error = Fifo::create(dir.path(), "ctl", Kind::Ctl).unwrap_err().to_string();
        assert!(error.starts_with("cannot put a FIFO in place as "), "{error}");
        assert!(error.contains("Is a directory"), "{error}");
        assert_eq!(fs::metadata(dir.path().join("ctl")).unwrap().ino(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
