//! Why something could not be set up.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What was being done, to what, and the system's answer.
#[derive(Debug)]
pub struct Error {
    doing: &'static str,
    path: PathBuf,
    cause: io::Error,
}

impl Error {
    /// For `map_err`: an error of `doing` something to `path`.
    pub fn at<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
        move |cause| Error { doing, path: path.to_path_buf(), cause: cause.into() }
    }

    pub fn kind(&self) -> io::ErrorKind {
        self.cause.kind()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.doing, self.path.display(), self.cause)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn an_error_says_what_where_and_why() {
        let error = Error::at("open", Path::new("/bundle/ctl"))(Errno::EACCES);
        assert_eq!(error.to_string(), "cannot open /bundle/ctl: Permission denied (os error 13)");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
