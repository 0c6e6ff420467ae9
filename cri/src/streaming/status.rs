//! How a client is told the end of its command: `metav1.Status` as JSON, or the text that older protocols have.

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// What the error stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// `v4` and later.
    Status,
    /// Before: text, and nothing after success.
    Text,
}

impl Language {
    /// What to write after a command has ended with a code, or could not be run.
    pub fn say(self, end: &Result<i32>) -> String {
        match (self, end) {
            (Language::Status, end) => status(end).to_string(),
            (Language::Text, Ok(0)) => String::new(),
            (Language::Text, Ok(code)) => format!("command terminated with exit code {code}"),
            (Language::Text, Err(error)) => error.to_string(),
        }
    }
}

fn status(end: &Result<i32>) -> Value {
    match end {
        Ok(0) => json!({ "metadata": {}, "status": "Success" }),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(error) => {
            let (code, reason) = reason(error);
            let text = error.to_string();
            json!({
                "metadata": {},
                "status": "Failure",
                "message": text,
                "reason": reason,
                "details": { "causes": [{ "message": text }] },
                "code": code,
            })
        }
    }
}

fn reason(error: &Error) -> (u16, &'static str) {
    match error {
        Error::NotFound { .. } => (404, "NotFound"),
        Error::Invalid(_) => (400, "BadRequest"),
        _ => (500, "InternalError"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(end: Result<i32>) -> Value {
        serde_json::from_str(&Language::Status.say(&end)).unwrap()
    }

    #[test]
    fn success_is_said() {
        assert_eq!(value(Ok(0)), json!({ "metadata": {}, "status": "Success" }));
        assert_eq!(Language::Text.say(&Ok(0)), "");
    }

    #[test]
    fn an_exit_code_is_a_cause() {
        let status = value(Ok(137));
        assert_eq!((&status["status"], &status["reason"]), (&json!("Failure"), &json!("NonZeroExitCode")));
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "137" }));
        assert_eq!(Language::Text.say(&Ok(3)), "command terminated with exit code 3");
    }

    #[test]
    fn an_error_keeps_its_text() {
        let status = value(Err(Error::failed("exec failed: \"x\" not found")));
        assert_eq!((&status["code"], &status["reason"]), (&json!(500), &json!("InternalError")));
        assert_eq!(status["message"], json!("exec failed: \"x\" not found"));
        assert_eq!(value(Err(Error::missing("container", "abc")))["code"], json!(404));
    }
}
