//! How a command ends when it does not end well: what is said, and the exit status.

use std::fmt;
use std::io::{self, Write};

/// An exit status, or why there is none of the command's own.
pub type Done = Result<u8, Fail>;

/// All went well.
pub const OK: u8 = 0;

/// What was asked for was not done.
const FAILED: u8 = 1;

/// The command line makes no sense.
const USAGE: u8 = 2;

/// What `attach` and `exec` return for anything that is not their process's own status.
pub const OURS: u8 = 125;

/// Why a command ends early.
#[derive(Debug)]
pub struct Fail {
    pub status: u8,
    text: Option<String>,
    /// The status says something of its own.
    exact: bool,
}

impl Fail {
    pub fn new(text: impl fmt::Display) -> Fail {
        Fail { status: FAILED, text: Some(text.to_string()), exact: false }
    }

    pub fn usage(text: impl fmt::Display) -> Fail {
        Fail { status: USAGE, text: Some(text.to_string()), exact: false }
    }

    /// An end that needs no words.
    pub fn quiet(status: u8) -> Fail {
        Fail { status, text: None, exact: true }
    }

    pub fn with_status(self, status: u8) -> Fail {
        Fail { status, ..self }
    }

    /// For commands whose exit status is that of a process: everything else is 125.
    pub fn ours(self) -> Fail {
        if self.exact { self } else { self.with_status(OURS) }
    }

    /// The status is to stay as it is.
    pub fn exactly(self) -> Fail {
        Fail { exact: true, ..self }
    }

    /// Says it on stderr, and what the exit status is.
    pub fn tell(self) -> u8 {
        if let Some(text) = &self.text {
            // If stderr is gone, the exit status says it alone.
            let _ = writeln!(io::stderr(), "conwardctl: {text}");
        }
        self.status
    }

    pub fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }
}

impl From<conmon_proto::Error> for Fail {
    fn from(error: conmon_proto::Error) -> Fail {
        Fail::new(error)
    }
}

/// An error of standard output. A reader who has seen enough is no error.
impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Fail {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Fail::quiet(OK),
            _ => Fail::new(format!("cannot write to standard output: {error}")),
        }
    }
}
