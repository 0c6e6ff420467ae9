//! What can go wrong, and how a client of the CRI is told: the only place that knows gRPC's codes.

use std::fmt::{self, Display};

use tonic::{Code, Status};

/// An error that says what was being done, to what, and why it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no such thing as `what` `id`.
    NotFound { what: &'static str, id: String },
    /// The request makes no sense, whatever the state.
    Invalid(String),
    /// The name is taken.
    Exists(String),
    /// Not in this state.
    Precondition(String),
    /// Nothing of this kind is done here.
    Unsupported(String),
    /// It took longer than the client wanted to wait.
    Deadline(String),
    /// Something that is needed does not answer.
    Unavailable(String),
    /// Anything else, with the text of the runtime, plugin or system call.
    Failed(String),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn missing(what: &'static str, id: impl Into<String>) -> Error {
        Error::NotFound { what, id: id.into() }
    }

    pub fn failed(text: impl Into<String>) -> Error {
        Error::Failed(text.into())
    }

    pub fn invalid(text: impl Into<String>) -> Error {
        Error::Invalid(text.into())
    }

    fn code(&self) -> Code {
        match self {
            Error::NotFound { .. } => Code::NotFound,
            Error::Invalid(_) => Code::InvalidArgument,
            Error::Exists(_) => Code::AlreadyExists,
            Error::Precondition(_) => Code::FailedPrecondition,
            Error::Unsupported(_) => Code::Unimplemented,
            Error::Deadline(_) => Code::DeadlineExceeded,
            Error::Unavailable(_) => Code::Unavailable,
            Error::Failed(_) => Code::Unknown,
        }
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotFound { what, id } => write!(f, "{what} {id} not found"),
            Error::Invalid(text)
            | Error::Exists(text)
            | Error::Precondition(text)
            | Error::Unsupported(text)
            | Error::Deadline(text)
            | Error::Unavailable(text)
            | Error::Failed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        Status::new(error.code(), error.to_string())
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    fn context<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Error::Failed(format!("{}: {error}", doing())))
    }
}

/// An error with all its causes: the last one says `connection refused`.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_see_code_and_text() {
        let status = Status::from(Error::missing("container", "abc"));
        assert_eq!((status.code(), status.message()), (Code::NotFound, "container abc not found"));
        let error: Result<()> = Err(std::io::Error::other("no space")).context(|| "Failed to write /x");
        assert_eq!(error, Err(Error::failed("Failed to write /x: no space")));
    }
}
