//! What every whole-program test needs: a scratch directory, a monitor started the way a caller starts it, a small
//! OCI runtime, and a table of cases that can be run side by side.
//!
//! A test program that uses it is built with `harness = false` and calls [`roles::dispatch`] first: the fake runtime,
//! the container's first process and the exit command are the test program itself, called by another name.
#![allow(dead_code, reason = "each test program uses the part that it needs")]

pub mod amount;
pub mod attach;
pub mod container;
pub mod crilog;
pub mod journal;
pub mod pipes;
pub mod procs;
pub mod rig;
pub mod roles;
pub mod scene;
pub mod service;
pub mod suite;
pub mod wait;

/// What a case ends with.
pub type Outcome<T = ()> = Result<T, Fail>;

/// Why a case did not pass.
#[derive(Debug)]
pub enum Fail {
    /// What was expected and what was seen.
    Wrong(String),
    /// What this machine lacks.
    Skip(String),
}

impl From<String> for Fail {
    fn from(text: String) -> Fail {
        Fail::Wrong(text)
    }
}

impl From<&str> for Fail {
    fn from(text: &str) -> Fail {
        Fail::Wrong(text.to_owned())
    }
}

impl From<std::io::Error> for Fail {
    fn from(error: std::io::Error) -> Fail {
        Fail::Wrong(format!("the test itself: {error}"))
    }
}

impl From<nix::Error> for Fail {
    fn from(error: nix::Error) -> Fail {
        Fail::Wrong(format!("the test itself: {error}"))
    }
}

impl From<serde_json::Error> for Fail {
    fn from(error: serde_json::Error) -> Fail {
        Fail::Wrong(format!("not JSON: {error}"))
    }
}

/// Fails with both values when they differ.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, seen: T, expected: T) -> Outcome {
    match seen == expected {
        true => Ok(()),
        false => Err(Fail::Wrong(format!("{what}: expected {}, saw {}", brief(&expected), brief(&seen)))),
    }
}

/// Fails with `what` when `truth` does not hold.
pub fn check(truth: bool, what: impl Into<String>) -> Outcome {
    match truth {
        true => Ok(()),
        false => Err(Fail::Wrong(what.into())),
    }
}

/// Fails unless `text` contains `part`.
pub fn contains(what: &str, text: &str, part: &str) -> Outcome {
    check(text.contains(part), format!("{what}: expected it to contain {part:?}, saw {}", brief(&text)))
}

/// Fails with the first difference when two streams of bytes differ.
pub fn same_bytes(what: &str, seen: &[u8], expected: &[u8]) -> Outcome {
    if seen == expected {
        return Ok(());
    }
    let at = seen.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let near = |bytes: &[u8]| {
        let part = &bytes[at.min(bytes.len())..(at + 40).min(bytes.len())];
        part.escape_ascii().to_string()
    };
    Err(Fail::Wrong(format!(
        "{what}: {} bytes expected, {} seen; from byte {at} on expected \"{}\", saw \"{}\"",
        expected.len(),
        seen.len(),
        near(expected),
        near(seen),
    )))
}

/// A value as text that does not drown a report.
fn brief(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    match text.char_indices().nth(600) {
        Some((at, _)) => format!("{}… ({} characters)", &text[..at], text.len()),
        None => text,
    }
}
