//! Errors about the command line that only show after it was parsed.

use std::fmt;

/// The error that the command line is wrong. The exit status of the command is 2.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// An error with the message `message`.
pub(crate) fn usage_error(message: String) -> anyhow::Error {
    UsageError(message).into()
}
