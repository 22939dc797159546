//! Peers whose frames do not take the fast path.

use std::collections::BTreeMap;

use super::connections::udp;
use super::{Finding, View, list, seconds};
use crate::api::report::Remote;

/// Until then a connection may still be finding its way, in seconds.
const SETTLED: u64 = 5;
/// What the daemon says where the user wants no fast path (see `Overlays::no_fastdp`).
const UNWANTED: &str = "--no-fastdp";

pub(super) fn check(view: &View<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let report = view.report;
    let missing = report.fast_datapath.as_ref().filter(|fast| !fast.program.loaded);
    match missing.map(|fast| fast.program.version.as_str()) {
        Some(UNWANTED) => found.push(
            Finding::note("fast-path-off", "this host was launched with --no-fastdp")
                .why("its frames go through userspace"),
        ),
        Some(why) => found.push(
            Finding::warning("no-fast-path", format!("this host has no fast path: {why}"))
                .why("all its frames go through userspace, at a fraction of the speed")
                .run("mend that, then: weave stop && weave launch --resume ..."),
        ),
        None => {}
    }
    if let Some(why) = report.sleeve.as_ref().and_then(|sleeve| sleeve.trouble.as_ref()) {
        found.push(
            Finding::warning("no-sleeve", format!("this host has no sleeve: {why}"))
                .why("a peer that the fast path does not reach is cut off")
                .run("mend that, then: weave stop && weave launch --resume ..."),
        );
    }
    // On a host without a fast path nothing more is to be said of each peer.
    if missing.is_some() {
        return found;
    }
    let mut stuck: BTreeMap<&str, Vec<&Remote>> = BTreeMap::new();
    for remote in view.remotes() {
        if remote.overlay == "sleeve" && remote.overlay_seconds >= SETTLED {
            let reason = remote.fallback.as_deref().unwrap_or("reason unknown");
            stuck.entry(reason).or_default().push(remote);
        }
    }
    for (reason, remotes) in stuck {
        found.push(on_sleeve(view, reason, &remotes));
    }
    found
}

fn on_sleeve(view: &View<'_>, reason: &str, remotes: &[&Remote]) -> Finding {
    let names: Vec<String> = remotes
        .iter()
        .map(|remote| {
            let time = seconds(remote.overlay_seconds);
            format!("{} (for {time})", view.names.of(&remote.name))
        })
        .collect();
    let what = format!("on sleeve to {}: {reason}", list(&names));
    let expected = reason.contains("cannot encrypt") || reason.contains("does not offer fastdp");
    if expected {
        return Finding::note("on-sleeve", what)
            .why("as the two ends were launched, there is no fast path between them");
    }
    let finding = Finding::warning("stuck-on-sleeve", what)
        .why("frames to them go through userspace, at a fraction of the speed");
    let finding = match reason.contains("too narrow") {
        true => finding.run("weave launch --mtu auto on all hosts, or a larger MTU on the way"),
        false => finding.run(udp(view.report.router.port)),
    };
    finding.run("the fast path is tried again by itself: nothing needs a restart")
}
