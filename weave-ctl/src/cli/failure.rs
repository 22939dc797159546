//! How a command ends when it does not succeed (cli.md 1.2, 1.3).

use super::usage;

/// Exit status and what to say on standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Exit status.
    pub code: u8,
    /// Printed on standard error, with a newline; nothing if empty.
    pub text: String,
}

/// What a command gives.
pub type Outcome = Result<(), Failure>;

impl Failure {
    /// With a text.
    pub fn new(code: u8, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// Without a word.
    #[must_use]
    pub fn silent(code: u8) -> Self {
        Self::new(code, "")
    }

    /// Wrong arguments: the reason, if any, with its line end, and then the whole usage text.
    #[must_use]
    pub fn usage(reason: &str) -> Self {
        Self::new(1, format!("{reason}{}", usage::TEXT))
    }

    pub(super) fn print(&self) {
        if !self.text.is_empty() {
            super::note(self.text.trim_end_matches('\n'));
        }
    }
}

impl From<crate::net::NetError> for Failure {
    fn from(error: crate::net::NetError) -> Self {
        Self::new(1, error.to_string())
    }
}
