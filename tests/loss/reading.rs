//! A strict reader of CRI logs of any size, which shares no code with the monitor and keeps one record in memory.
//!
//! A record is `STAMP STREAM TAG CONTENT\n`; the stamp has 35 characters, the streams' names have 6, the tag is `F` or
//! `P` (Kubernetes, "CRI container log format").

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::flow::{Expect, Pattern};
use crate::support::{Fail, Outcome, check, same};

/// Compares logs with what the container wrote.
#[derive(Debug)]
pub struct Reader {
    /// stdout and stderr; what is not expected at all must not be there.
    streams: [Option<Expect>; 2],
    /// Bytes that notes declare as lost.
    pub gaps: [u64; 2],
    /// How many notes there are.
    pub notes: u64,
    pub records: u64,
}

impl Reader {
    pub fn new(stdout: Pattern) -> Reader {
        Reader::from(stdout, 0)
    }

    /// A reader of a log that begins in the middle of the stream.
    pub fn from(stdout: Pattern, at: u64) -> Reader {
        Reader { streams: [Some(Expect::new(stdout, at)), None], gaps: [0; 2], notes: 0, records: 0 }
    }

    /// Both streams have output.
    pub fn both(stdout: Pattern, stderr: Pattern) -> Reader {
        let mut reader = Reader::new(stdout);
        reader.streams[1] = Some(Expect::new(stderr, 0));
        reader
    }

    /// The place in stdout that has been reached.
    pub fn stdout(&self) -> u64 {
        self.streams[0].as_ref().map_or(0, |expect| expect.at)
    }

    pub fn stderr(&self) -> u64 {
        self.streams[1].as_ref().map_or(0, |expect| expect.at)
    }

    /// Reads one file to its end and removes it.
    pub fn eat(&mut self, path: &Path) -> Outcome {
        self.read(path)?;
        Ok(fs::remove_file(path)?)
    }

    /// Reads one file to its end.
    pub fn read(&mut self, path: &Path) -> Outcome {
        let name = path.file_name().map_or(PathBuf::new(), PathBuf::from);
        let at = |offset: u64, why: String| Fail::Wrong(format!("{} at {offset}: {why}", name.display()));
        let file = File::open(path).map_err(|error| Fail::Wrong(format!("{}: {error}", path.display())))?;
        let mut file = BufReader::with_capacity(1 << 20, file);
        let (mut line, mut offset) = (Vec::new(), 0);
        loop {
            line.clear();
            let count = file.read_until(b'\n', &mut line)?;
            if count == 0 {
                return Ok(());
            }
            match self.record(&line) {
                Ok(()) => offset += count as u64,
                Err(Fail::Wrong(why)) => return Err(at(offset, why)),
                Err(other) => return Err(other),
            }
        }
    }

    fn record(&mut self, line: &[u8]) -> Outcome {
        let Some((head, content)) = line.split_at_checked(HEAD).filter(|_| line.ends_with(b"\n")) else {
            return Err(format!("torn record \"{}\"", line[..line.len().min(80)].escape_ascii()).into());
        };
        let full = head.ends_with(b" F ");
        let index = match &head[35..43] {
            b" stdout " => 0,
            b" stderr " => 1,
            _ => return Err(format!("bad stream in \"{}\"", head.escape_ascii()).into()),
        };
        if !is_stamp(&head[..35]) || head[42] != b' ' || !(full || head.ends_with(b" P ")) {
            return Err(format!("bad head \"{}\"", head.escape_ascii()).into());
        }
        self.records += 1;
        if index == 1 && content.starts_with(NOTE.as_bytes()) {
            return self.note(content);
        }
        let Some(expect) = &mut self.streams[index] else {
            return Err(format!("unexpected output \"{}\"", content.escape_ascii()).into());
        };
        expect.take(if full { content } else { &content[..content.len() - 1] })
    }

    /// `conward: lost N bytes of stdout and M bytes of stderr: REASON`
    fn note(&mut self, content: &[u8]) -> Outcome {
        let text = String::from_utf8_lossy(content);
        let words: Vec<&str> = text[NOTE.len()..].split(' ').collect();
        let numbers = (words.first().and_then(|w| w.parse().ok()), words.get(5).and_then(|w| w.parse().ok()));
        let (Some(stdout), Some(stderr)) = numbers else { return Err(format!("malformed note {text:?}").into()) };
        check(stdout + stderr > 0, format!("a note on nothing: {text:?}"))?;
        for (index, lost) in [stdout, stderr].into_iter().enumerate() {
            self.gaps[index] += lost;
            match &mut self.streams[index] {
                Some(expect) => expect.skip(lost),
                None => same("bytes lost of a stream without output", lost, 0)?,
            }
        }
        self.notes += 1;
        Ok(())
    }

    /// Everything up to `stdout` was there, nothing is missing.
    pub fn complete(&self, stdout: u64) -> Outcome {
        same("bytes of stdout in the log", self.stdout(), stdout)?;
        same("notes on losses", self.notes, 0)
    }
}

/// Bytes of payload in a log, by its records' heads alone.
pub fn payload(path: &Path) -> Outcome<u64> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let (mut line, mut sum) = (Vec::new(), 0);
    while file.read_until(b'\n', &mut line)? > 0 {
        let partial = line.get(HEAD - 2) == Some(&b'P');
        sum += (line.len() - HEAD - usize::from(partial)) as u64;
        line.clear();
    }
    Ok(sum)
}

const HEAD: usize = 35 + 8 + 2;
const NOTE: &str = "conward: lost ";

/// `dddd-dd-ddTdd:dd:dd.ddddddddd+dd:dd`, the sign either way.
fn is_stamp(stamp: &[u8]) -> bool {
    stamp.iter().zip(b"dddd-dd-ddTdd:dd:dd.dddddddddsdd:dd").all(|(byte, form)| match form {
        b'd' => byte.is_ascii_digit(),
        b's' => matches!(byte, b'+' | b'-'),
        fixed => byte == fixed,
    })
}
