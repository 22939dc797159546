//! How a command ends when it does not succeed (cli.md 1.2, 1.3).

use std::io::IsTerminal as _;

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
        let text = self.shown(std::io::stderr().is_terminal());
        if !text.is_empty() {
            super::note(text.trim_end_matches('\n'));
        }
    }

    /// At a terminal the reason would scroll away above the usage text.
    fn shown(&self, terminal: bool) -> String {
        match self.text.strip_suffix(usage::TEXT).map(str::trim_end) {
            Some(reason) if terminal && !reason.is_empty() => {
                format!("{reason}\n\n'weave help' lists the commands, 'weave <command> --help' explains one.")
            }
            _ => self.text.clone(),
        }
    }
}

impl From<crate::net::NetError> for Failure {
    fn from(error: crate::net::NetError) -> Self {
        Self::new(1, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_whole_for_scripts() {
        let failure = Failure::usage("no such thing\n\n");
        assert_eq!(failure.shown(false), failure.text);
        let short = failure.shown(true);
        assert!(short.starts_with("no such thing\n\n'weave help'"), "{short}");
        assert_eq!(Failure::usage("").shown(true), usage::TEXT);
        assert_eq!(Failure::new(1, "why").shown(true), "why");
    }
}
