//! One thing that is wrong.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work.
    Problem,
    /// It works, but worse than it could, or not for long.
    Warning,
    /// Good to know; nothing needs to be done.
    Note,
}

/// A repair that can hurt nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum Fix {
    /// Give up our address ring and take that of this peer.
    Adopt {
        /// Its peer name.
        peer: String,
    },
    /// Forget a target.
    Forget {
        /// As given to launch or connect.
        target: String,
    },
    /// Try a target again that was given up.
    Reconnect {
        /// As given to launch or connect.
        target: String,
    },
    /// Take an interface out of the bridge and put it back, at which the daemon attaches its program.
    Replug {
        /// The interface.
        port: String,
    },
    /// Remove a file that a daemon has left behind.
    Remove {
        /// The file.
        path: String,
    },
}

/// One thing that is wrong: what is seen, why it matters, what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable, for scripts.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is seen, with names and numbers.
    pub what: String,
    /// Why it matters.
    pub why: &'static str,
    /// What to run or to do, one step each.
    pub run: Vec<String>,
    /// What `--fix` does about it, one step each.
    pub safe_fix: Vec<Fix>,
    /// A cluster in motion shows the same for a moment: to be looked at twice.
    #[serde(skip)]
    pub passing: bool,
}

impl Finding {
    fn new(severity: Severity, id: &'static str, what: String) -> Self {
        Self {
            id,
            severity,
            what,
            why: "",
            run: Vec::new(),
            safe_fix: Vec::new(),
            passing: false,
        }
    }

    pub(super) fn problem(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(Severity::Problem, id, what.into())
    }

    pub(super) fn warning(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(Severity::Warning, id, what.into())
    }

    pub(super) fn note(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(Severity::Note, id, what.into())
    }

    pub(super) fn why(self, why: &'static str) -> Self {
        Self { why, ..self }
    }

    pub(super) fn run(mut self, step: impl Into<String>) -> Self {
        self.run.push(step.into());
        self
    }

    pub(super) fn fix(mut self, fix: Fix) -> Self {
        self.safe_fix.push(fix);
        self
    }

    pub(super) fn passing(self) -> Self {
        Self {
            passing: true,
            ..self
        }
    }
}
