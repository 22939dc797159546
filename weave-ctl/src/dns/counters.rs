//! How many queries became what.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::answer::Verdict;

/// Counted since the start, by all parts of the server.
#[derive(Debug, Default)]
pub struct Counters {
    local: AtomicU64,
    missing: AtomicU64,
    reverse: AtomicU64,
    malformed: AtomicU64,
    forwarded: AtomicU64,
    cached: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

/// The counters at one moment. Each query is in exactly one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Counts {
    /// Answered: a name of ours.
    pub local: u64,
    /// Answered: no such name of ours.
    pub missing: u64,
    /// Answered: the name of an address of ours.
    pub reverse: u64,
    /// Answered: the query made no sense.
    pub malformed: u64,
    /// Answered by an upstream server.
    pub forwarded: u64,
    /// Answered with what an upstream server said before.
    pub cached: u64,
    /// No upstream server had an answer.
    pub failed: u64,
    /// Not answered: no query, or too many at once.
    pub dropped: u64,
}

impl Counts {
    /// All of them with their names.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 8] {
        [
            ("local", self.local),
            ("missing", self.missing),
            ("reverse", self.reverse),
            ("malformed", self.malformed),
            ("forwarded", self.forwarded),
            ("cached", self.cached),
            ("failed", self.failed),
            ("dropped", self.dropped),
        ]
    }
}

/// How a query that others had to answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// They did.
    Forwarded,
    /// They had before.
    Cached,
    /// They did not.
    Failed,
    /// Nobody was asked.
    Dropped,
}

impl Counters {
    /// Counts a query that was not passed on.
    pub fn count(&self, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Local => &self.local,
            Verdict::Missing => &self.missing,
            Verdict::Reverse => &self.reverse,
            Verdict::Malformed => &self.malformed,
            Verdict::Ignore => &self.dropped,
            // Counted when it has come back.
            Verdict::Forward => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a query that was.
    pub fn passed(&self, how: Passed) {
        let counter = match how {
            Passed::Forwarded => &self.forwarded,
            Passed::Cached => &self.cached,
            Passed::Failed => &self.failed,
            Passed::Dropped => &self.dropped,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The present values.
    pub fn counts(&self) -> Counts {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            local: value(&self.local),
            missing: value(&self.missing),
            reverse: value(&self.reverse),
            malformed: value(&self.malformed),
            forwarded: value(&self.forwarded),
            cached: value(&self.cached),
            failed: value(&self.failed),
            dropped: value(&self.dropped),
        }
    }
}
