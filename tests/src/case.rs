//! One end-to-end test: a fresh lab, the body, and a message that helps when it fails.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::Result;

use crate::lab::{Lab, Plan};

/// This machine cannot run the test. The only reason for which a test is skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    what: String,
}

impl Unsupported {
    /// `what` completes "this machine …".
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Unsupported {}

/// Variable with the path of the file that collects the skipped tests, one `NAME: REASON` a line.
pub const SKIPS_VARIABLE: &str = "WEAVE_TEST_SKIPS";

impl Plan {
    /// Runs `body` on a fresh lab. [`Unsupported`] skips the test, visibly.
    ///
    /// # Panics
    /// If the body fails; what the hosts say is printed first.
    pub fn test(self, name: &str, body: impl FnOnce(&Lab) -> Result<()>) {
        let lab = match self.build(name) {
            Ok(lab) => lab,
            Err(error) => return settle(name, Err(error)),
        };
        match catch_unwind(AssertUnwindSafe(|| body(&lab))) {
            Ok(result) => {
                if result.is_err() {
                    eprintln!("{}", lab.diagnose());
                }
                drop(lab);
                settle(name, result);
            }
            Err(panic) => {
                eprintln!("{}", lab.diagnose());
                drop(lab);
                resume_unwind(panic);
            }
        }
    }
}

fn settle(name: &str, result: Result<()>) {
    let Err(error) = result else { return };
    let Some(unsupported) = error.downcast_ref::<Unsupported>() else {
        panic!("{name}: {error:?}");
    };
    skip(name, unsupported);
}

/// Says that a test is skipped, on the terminal and in the file of [`SKIPS_VARIABLE`].
pub fn skip(name: &str, reason: &Unsupported) {
    // Not eprintln: the test harness would swallow it.
    let _nobody_listens = writeln!(std::io::stderr(), "SKIPPED {name}: {reason}");
    if let Some(path) = std::env::var_os(SKIPS_VARIABLE) {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let _reported_above = file.and_then(|mut file| writeln!(file, "{name}: {reason}"));
    }
}
