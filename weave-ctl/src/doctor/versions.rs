//! Which programs make up the cluster.

use std::collections::BTreeMap;

use super::{Finding, View, list};

pub(super) fn check(view: &View<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut originals = Vec::new();
    let mut others: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    if view.report.process.is_none() {
        return found;
    }
    let ours = format!("weave-ctl {}", view.report.version);
    for remote in view.remotes() {
        let name = view.names.of(&remote.name);
        match remote.implementation.as_deref() {
            None => originals.push(name),
            Some(theirs) if theirs != ours => others.entry(theirs).or_default().push(name),
            Some(_) => {}
        }
    }
    if !originals.is_empty() {
        found.push(
            Finding::note("original-peers", format!("{} run Weave Net 2", list(&originals))).why(
                "with them a dead path is noticed after a minute, the MTU is 1376, and full states are sent",
            ),
        );
    }
    for (version, names) in others {
        found.push(
            Finding::note(
                "version-mix",
                format!("{} run {version}, this host {ours}", list(&names)),
            )
            .why("fine while hosts are updated one by one; do not leave it so"),
        );
    }
    found
}
