//! Why a pull fails, and whether another attempt is worth it.

use oci_client::errors::{OciDistributionError, OciErrorCode};

use crate::error::{Error, with_causes};

pub type Step<T> = std::result::Result<T, Failure>;

/// Why a step failed, and whether it is worth another attempt.
#[derive(Debug)]
pub struct Failure {
    pub text: String,
    pub kind: FailureKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    Fatal,
    Missing,
    /// The registry is not there, or is in trouble.
    Unavailable,
}

impl Failure {
    pub fn fatal(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), kind: FailureKind::Fatal }
    }

    pub fn unavailable(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), kind: FailureKind::Unavailable }
    }

    pub fn naming(self, image: &str) -> Error {
        let text = format!("Failed to pull {image}: {}", self.text);
        match self.kind {
            FailureKind::Fatal => Error::Failed(text),
            FailureKind::Missing => Error::missing("image", format!("{image}: {}:", self.text)),
            // What the kubelet shows instead of ErrImagePull. It looks at the beginning of the text, which is that of
            // the status only if the code is Unknown.
            FailureKind::Unavailable => Error::Failed(format!("RegistryUnavailable: {text}")),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::fatal(error.to_string())
    }
}

impl From<OciDistributionError> for Failure {
    fn from(error: OciDistributionError) -> Failure {
        let text = with_causes(&error);
        let kind = match &error {
            OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => FailureKind::Unavailable,
            OciDistributionError::ServerError { code, .. } if *code >= 500 || *code == 429 => FailureKind::Unavailable,
            OciDistributionError::ServerError { code: 404, .. } => FailureKind::Missing,
            OciDistributionError::RegistryError { envelope, .. } => {
                let has = |code: OciErrorCode| envelope.errors.iter().any(|error| error.code == code);
                if has(OciErrorCode::Toomanyrequests) {
                    FailureKind::Unavailable
                } else if has(OciErrorCode::ManifestUnknown) || has(OciErrorCode::NameUnknown) {
                    FailureKind::Missing
                } else {
                    FailureKind::Fatal
                }
            }
            _ => FailureKind::Fatal,
        };
        Failure { text, kind }
    }
}

pub fn bad<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::fatal(format!("Bad {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_knows_a_registry_that_is_away() {
        let error = Failure::unavailable("connection refused").naming("quay.io/x:1").to_string();
        assert!(error.starts_with("RegistryUnavailable: ") && error.contains("quay.io/x:1"), "{error}");
    }
}
