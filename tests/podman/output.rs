//! What a command left: status and bytes, and sentences about them.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use super::{Verdict, check};

/// A command that has ended.
#[derive(Debug)]
pub struct Done {
    pub line: String,
    pub status: ExitStatus,
    pub out: Vec<u8>,
    pub err: Vec<u8>,
    pub took: Duration,
}

impl Done {
    pub fn expect(self, code: i32) -> Verdict<Self> {
        check!(self.status.code() == Some(code), "expected exit code {code}: {}", self.story());
        Ok(self)
    }

    /// Stdout must be exactly this.
    pub fn says(self, text: &str) -> Verdict<Self> {
        check!(self.out == text.as_bytes(), "expected stdout {text:?}: {}", self.story());
        Ok(self)
    }

    /// Stderr must contain this; letter case does not matter.
    pub fn complains(self, text: &str) -> Verdict<Self> {
        let err = String::from_utf8_lossy(&self.err).to_lowercase();
        check!(err.contains(&text.to_lowercase()), "expected {text:?} on stderr: {}", self.story());
        Ok(self)
    }

    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.out);
        text.strip_suffix('\n').unwrap_or(&text).to_string()
    }

    /// Everything there is to know, in one line.
    pub fn story(&self) -> String {
        let end = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("signal {signal:?}"),
        };
        format!(
            "`{}`: {end} after {:.1?}, stdout {}, stderr {}",
            self.line,
            self.took,
            brief(&self.out),
            brief(&self.err)
        )
    }
}

/// Two byte strings that should be equal, and the place where they are not.
pub fn same_bytes(what: &str, expected: &[u8], seen: &[u8]) -> Verdict {
    let Some(at) = first_difference(expected, seen) else { return Ok(()) };
    let near = |b: &[u8]| String::from_utf8_lossy(&b[at.min(b.len())..(at + 40).min(b.len())]).into_owned();
    check!(
        false,
        "{what}: {} bytes expected, {} seen, first difference at {at}: expected {:?}…, seen {:?}…",
        expected.len(),
        seen.len(),
        near(expected),
        near(seen)
    );
    Ok(())
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let at = a.iter().zip(b).position(|(x, y)| x != y);
    at.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len())))
}

/// The command as a person would type it, without the options that every podman call has.
pub fn shown(program: &str, args: &[String]) -> String {
    let quoted = args.iter().map(|a| if a.contains([' ', '\n', '$']) { format!("'{a}'") } else { a.clone() });
    let name = program.rsplit('/').next().unwrap_or(program);
    let line = std::iter::once(name.to_string()).chain(quoted).collect::<Vec<_>>().join(" ");
    brief_text(&line, 300)
}

/// Bytes for a message: the beginning and the end where there are many.
fn brief(bytes: &[u8]) -> String {
    format!("{:?}", brief_text(&String::from_utf8_lossy(bytes), 1200))
}

fn brief_text(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_string();
    }
    let head: String = text.chars().take(most / 2).collect();
    let tail: Vec<char> = text.chars().rev().take(most / 2).collect();
    format!("{head} […{} bytes…] {}", text.len() - most, tail.into_iter().rev().collect::<String>())
}
