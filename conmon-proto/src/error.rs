//! Why a call was not done.

use std::fmt;
use std::io;

use crate::conward_capnp::refusal;
use crate::types::{enums, text};

enums! {
    /// What kind of refusal it is.
    Code from refusal::Code {
        Failed = "failed",
        Invalid = "invalid",
        NotRunning = "notRunning",
        NoTerminal = "noTerminal",
        NoStdin = "noStdin",
        NoHistory = "noHistory",
        NotFound = "notFound",
        TooMany = "tooMany",
        Busy = "busy",
    }
}

/// The monitor's answer when it does not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    /// For people: what was being done to what, and why not.
    pub text: String,
    /// errno(3) of the operation that failed, 0 if there was none.
    pub errno: i32,
}

impl Refusal {
    pub(crate) fn read(from: refusal::Reader<'_>) -> capnp::Result<Refusal> {
        Ok(Refusal { code: from.get_code().into(), text: text(from.get_text()?), errno: from.get_errno() })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text.is_empty() {
            true => write!(f, "refused: {}", self.code),
            false => f.write_str(&self.text),
        }
    }
}

/// Why a call has no result.
#[derive(Debug)]
pub enum Error {
    /// The monitor says no.
    Refused(Refusal),
    /// The connection ended or the monitor broke the protocol.
    Connection(capnp::Error),
    /// There is no connection.
    Connect(std::path::PathBuf, io::Error),
}

impl Error {
    /// Whether the other side went away, which an upgrade of the monitor also looks like.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, Error::Connection(error) if error.kind == capnp::ErrorKind::Disconnected)
    }

    /// The refusal, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Error::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl From<capnp::Error> for Error {
    fn from(error: capnp::Error) -> Error {
        Error::Connection(error)
    }
}

impl From<capnp::NotInSchema> for Error {
    fn from(error: capnp::NotInSchema) -> Error {
        Error::Connection(error.into())
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::Refused(refusal)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused(refusal) => refusal.fmt(f),
            Error::Connection(error) => write!(f, "the connection to the monitor ended: {}", error.extra),
            Error::Connect(path, error) => write!(f, "cannot connect to {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Refused(_) => None,
            Error::Connection(error) => Some(error),
            Error::Connect(_, error) => Some(error),
        }
    }
}
