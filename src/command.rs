//! Everything that the outside can ask of the monitor, and what it hears back.
//!
//! The FIFOs and the service translate what comes in into a [`Command`]; the one owner obeys.

use std::fmt;
use std::path::PathBuf;

use crate::attach::Request;
use crate::exec::{Outcome, Spec};
use crate::exit::Summary;
use crate::policy::Policy;
use crate::rpc::{Inspection, Remote};
use crate::session::Id;
use crate::stream::Stream;

/// A request.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Sets the size of a session's terminal.
    Resize {
        session: Id,
        rows: u16,
        cols: u16,
    },
    /// Opens the logs again, or rotates them.
    ReopenLog,
    /// Sends a signal to a session's process.
    Signal {
        session: Id,
        number: i32,
    },
    /// Gives input to a session; answered when it has been taken.
    Input {
        session: Id,
        bytes: Vec<u8>,
    },
    /// A session's stdin ends, behind what has been given to it.
    CloseInput {
        session: Id,
    },
    /// Limits what a stream may log.
    SetPolicy {
        stream: Stream,
        policy: Policy,
    },
    Inspect,
    /// Answered when the container's end is recorded.
    Wait,
    /// Sends the container's output to a client of the service.
    Attach(Request),
    /// A client of the service goes, or its connection does.
    Detach(u32),
    /// Runs one more process in the container.
    Exec(Box<Spec>, Option<Remote>),
    /// Answered when that process has ended.
    ExecWait(Id),
    /// The result of an exec that is over.
    ExecResult(Id),
    /// Whoever started an exec has gone.
    Abandon(Id),
    /// Replaces the running program.
    Upgrade {
        program: Option<PathBuf>,
        check_only: bool,
    },
}

/// What comes of a request.
#[derive(Debug)]
pub enum Reply {
    Done,
    Inspected(Box<Inspection>),
    /// Where each log goes on.
    Reopened(Vec<Switch>),
    /// The number of the new client.
    Attached(u32),
    /// The number of the new session.
    Started(Id),
    /// How the container ended, and whether that is on the disk.
    Ended(Summary, bool),
    Result(Box<Outcome>),
}

impl Reply {
    /// What takes back what nobody heard of.
    pub fn undo(&self) -> Option<Command> {
        match self {
            Reply::Attached(client) => Some(Command::Detach(*client)),
            Reply::Started(id) => Some(Command::Abandon(*id)),
            _ => None,
        }
    }
}

/// A log file that output goes to from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    pub driver: &'static str,
    pub path: PathBuf,
    pub inode: u64,
    /// Offsets of the first bytes of each stream that are in it.
    pub offsets: [u64; 2],
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    /// What was being done to what, and why not.
    pub text: String,
    /// errno(3), or 0.
    pub errno: i32,
}

/// Kinds of refusals (`schema/conward.capnp`, `Refusal.Code`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It was tried and failed.
    Failed,
    /// The request contradicts itself or is out of range.
    Invalid,
    NotRunning,
    NoTerminal,
    NoStdin,
    NoHistory,
    NotFound,
    TooMany,
    Busy,
}

impl Refusal {
    pub fn new(code: Code, text: impl Into<String>) -> Refusal {
        Refusal { code, text: text.into(), errno: 0 }
    }

    /// An operation that failed with an error of the system.
    pub fn failed(what: impl fmt::Display, error: &std::io::Error) -> Refusal {
        Refusal { code: Code::Failed, text: format!("{what}: {error}"), errno: error.raw_os_error().unwrap_or(0) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {}

/// The answer to one request.
pub type Answered = Result<Reply, Refusal>;
