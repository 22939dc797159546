//! What is wrong on this host and in its cluster, and what to do about it. Pure: from the daemon's report
//! and from what the command saw on the host to a list of findings, one file for each kind of check.

mod clocks;
mod connections;
mod daemon;
pub mod facts;
pub mod finding;
mod host;
mod mtu;
mod names;
mod overlays;
mod ring;
mod space;
#[cfg(test)]
mod tests;
pub mod text;
mod topology;
mod versions;

pub use facts::HostFacts;
pub use finding::{Finding, Fix, Severity};

use crate::api::report::{Remote, Report};
use names::Names;

/// What the checks look at.
struct View<'a> {
    report: &'a Report,
    facts: &'a HostFacts,
    names: Names,
}

impl<'a> View<'a> {
    /// The other ends of our connections.
    fn remotes(&self) -> impl Iterator<Item = &'a Remote> + use<'a> {
        let connections = self.report.router.connections.iter();
        connections.filter_map(|connection| connection.remote.as_ref())
    }
}

/// Everything that was found, the worst first. Without a report (no daemon) only the host is checked.
#[must_use]
pub fn findings(report: Option<&Report>, facts: &HostFacts) -> Vec<Finding> {
    let mut found = daemon::check(report, facts);
    found.extend(host::check(report, facts));
    if let Some(report) = report {
        let names = Names::new(report);
        let view = View { report, facts, names };
        for check in [
            ring::check,
            space::check,
            names::check,
            connections::check,
            overlays::check,
            topology::check,
            clocks::check,
            mtu::check,
            versions::check,
        ] {
            found.extend(check(&view));
        }
    }
    found.sort_by_key(|finding| finding.severity);
    found
}

/// `a, b and 3 more`: a list for people that stays short.
fn list(items: &[String]) -> String {
    const SHOWN: usize = 5;
    match items.len().checked_sub(SHOWN) {
        None | Some(0) => items.join(", "),
        Some(more) => {
            let shown = items.get(..SHOWN).unwrap_or_default();
            format!("{} and {more} more", shown.join(", "))
        }
    }
}

/// A time for people.
fn seconds(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}
