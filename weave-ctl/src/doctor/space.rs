//! Addresses: what waits for some, and how many are left.

use super::{Finding, View, list, seconds};
use crate::api::report::Ipam;

/// Requests may wait this long before that is worth a word, in seconds.
const PATIENCE: u64 = 5;

pub(super) fn check(view: &View<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(ipam) = &view.report.ipam {
        pending(ipam, &mut found);
        room(ipam, &mut found);
    }
    found
}

fn pending(ipam: &Ipam, found: &mut Vec<Finding>) {
    let waiting = ipam.pending_allocates.len() + ipam.pending_claims.len();
    let young = ipam.pending_seconds.is_some_and(|age| age < PATIENCE);
    if waiting == 0 || young || ipam.paxos.is_some() {
        return;
    }
    let claims = ipam.pending_claims.iter().map(|claim| {
        format!(
            "{} for {}/{}",
            claim.ident, claim.cidr.addr, claim.cidr.prefix_len
        )
    });
    let who: Vec<String> = ipam.pending_allocates.iter().cloned().chain(claims).collect();
    let age = ipam.pending_seconds.map(|age| format!(" for {}", seconds(age)));
    found.push(
        Finding::problem(
            "allocation-pending",
            format!(
                "{waiting} requests have been waiting{}: {}",
                age.unwrap_or_default(),
                list(&who)
            ),
        )
        .why("containers are being started without an address, or not at all")
        .run("repair what else is found here: owners out of reach, conflicts, a full range")
        .run("a claim waits for the owner of its address: see 'weave status ipam'")
        .passing(),
    );
}

/// Free addresses of all owners within reach, if all entries tell.
fn reachable_free(ipam: &Ipam) -> Option<u64> {
    let within = ipam.entries.iter().filter(|entry| entry.is_known_peer);
    within.map(|entry| Some(entry.free?.min(entry.size))).sum()
}

fn room(ipam: &Ipam, found: &mut Vec<Finding>) {
    let Some(free) = reachable_free(ipam).filter(|_| !ipam.entries.is_empty()) else {
        return;
    };
    let total = ipam.range_num_ips;
    if free.saturating_mul(10) >= total {
        return;
    }
    let what = format!("{free} of {total} addresses are free with peers within reach");
    let finding = match free {
        0 => Finding::problem("space-exhausted", what),
        _ => Finding::warning("space-nearly-exhausted", what),
    };
    found.push(
        finding
            .why("when there are none, new containers wait for ever")
            .run("weave ps shows who has addresses here; remove what is not needed")
            .run("weave rmpeer NAME gives back what a peer owned that will not return")
            .run("a larger --ipalloc-range means a new range on all hosts at once"),
    );
}
