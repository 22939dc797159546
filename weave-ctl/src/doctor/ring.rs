//! The address ring: conflicts, owners that are gone, votes that do not come about.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Fix, View, list, seconds};
use crate::api::report::{Ipam, IpamConflict};

/// Texts of originals that end a connection over the ring (control.md 1.7, 1.8).
const CONFLICT_TEXTS: [&str; 6] = [
    "IP allocation was seeded by different peers",
    "Incompatible IP allocation ranges",
    "Received ring was seeded differently",
    "Received range differs from ours",
    "which I think I own",
    "incoming message says",
];

/// Does a neighbour refuse us because of the ring?
pub(super) fn is_conflict(error: &str) -> bool {
    CONFLICT_TEXTS.iter().any(|text| error.contains(text))
}

pub(super) fn check(view: &View<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(ipam) = &view.report.ipam {
        conflicts(view, ipam, &mut found);
        owners(view, ipam, &mut found);
        vote(ipam, &mut found);
    }
    found
}

fn conflicts(view: &View<'_>, ipam: &Ipam, found: &mut Vec<Finding>) {
    let told: BTreeSet<&str> = ipam.conflicts.iter().map(|c| c.peer.as_str()).collect();
    let adopt = whom_to_adopt(view, ipam);
    for conflict in &ipam.conflicts {
        let nick = match conflict.nickname.as_str() {
            "" => view.names.of(&conflict.peer),
            nick => nick.to_owned(),
        };
        let mut finding = Finding::problem(
            "ring-conflict",
            format!(
                "with {nick} for {}: {}",
                seconds(conflict.since_seconds),
                conflict.text
            ),
        )
        .why("the two sides allocate from one range without knowing of each other: addresses may be doubled");
        if !conflict.remedy.is_empty() {
            finding = finding.run(conflict.remedy.clone());
        }
        finding = match adopt {
            Some(peer) if peer == conflict.peer => {
                let peer = peer.to_owned();
                finding
                    .run("weave-ctl doctor --fix, here")
                    .fix(Fix::Adopt { peer })
            }
            // One repair mends all conflicts of a host.
            Some(_) => finding,
            None => finding.run(format!("weave-ctl doctor --fix, on {nick}")),
        };
        found.push(finding);
    }
    for connection in &view.report.router.connections {
        let Some(attempt) = &connection.attempt else {
            continue;
        };
        let known = connection
            .remote
            .as_ref()
            .is_some_and(|remote| told.contains(remote.name.as_str()));
        if is_conflict(&attempt.error) && !known {
            found.push(
                Finding::problem(
                    "ring-conflict",
                    format!("with {}: {}", connection.address, attempt.error),
                )
                .why("a peer with another address ring does not stay connected")
                .run("see docs/repair.md: one side takes over the ring of the other"),
            );
        }
    }
}

/// The side with fewer peers gives way; in a tie, the peer with the higher name. An original cannot
/// give way by a command, so we do.
fn whom_to_adopt<'a>(view: &View<'_>, ipam: &'a Ipam) -> Option<&'a str> {
    let against: BTreeSet<&str> = ipam.conflicts.iter().map(|c| c.peer.as_str()).collect();
    let remotes = || {
        view.report
            .router
            .connections
            .iter()
            .filter_map(|c| c.remote.as_ref())
    };
    let with = remotes()
        .filter(|remote| !against.contains(remote.name.as_str()))
        .count();
    let is_original = |conflict: &&IpamConflict| {
        remotes().any(|remote| remote.name == conflict.peer && remote.implementation.is_none())
    };
    let first = ipam.conflicts.iter().min_by(|a, b| a.peer.cmp(&b.peer))?;
    if let Some(original) = ipam.conflicts.iter().find(is_original) {
        return Some(&original.peer);
    }
    let ours = with + 1;
    let we_yield = against.len() > ours || (against.len() == ours && view.report.router.name > first.peer);
    we_yield.then_some(first.peer.as_str())
}

fn owners(view: &View<'_>, ipam: &Ipam, found: &mut Vec<Finding>) {
    let mut gone: BTreeMap<&str, (u64, Option<u64>)> = BTreeMap::new();
    for entry in ipam.entries.iter().filter(|entry| !entry.is_known_peer) {
        let (size, since) = gone.entry(&entry.peer).or_default();
        *size += entry.size;
        *since = (*since).max(entry.unreachable_seconds);
    }
    if gone.is_empty() {
        return;
    }
    let remove = |name: &str| format!("weave rmpeer {}", view.names.argument(name));
    let total = ipam.range_num_ips.max(1);
    if gone.len() == owners_in_all(ipam) {
        let names: Vec<String> = gone.keys().map(|name| view.names.of(name)).collect();
        let mut finding = Finding::problem(
            "all-owners-unreachable",
            format!(
                "all addresses belong to peers that nobody here reaches: {}",
                list(&names)
            ),
        )
        .why("nothing can be allocated on this host")
        .run("weave connect ADDRESS, if one of them is only not connected");
        for name in gone.keys() {
            finding = finding.run(format!(
                "{}, on exactly one host, if it will not come back",
                remove(name)
            ));
        }
        found.push(finding);
        return;
    }
    for (name, (size, since)) in gone {
        let since = since.map(|s| format!(" for {}", seconds(s))).unwrap_or_default();
        found.push(
            Finding::warning(
                "owner-unreachable",
                format!(
                    "{} has not been reachable{since}, and owns {size} addresses ({:.1}% of the range)",
                    view.names.of(name),
                    size as f64 * 100.0 / total as f64
                ),
            )
            .why("what it owns can be used by nobody else until it returns or is removed")
            .run(format!(
                "{}, on exactly one host, if it will not come back",
                remove(name)
            ))
            .run("or launch with --reclaim-after DURATION, which does so by itself"),
        );
    }
}

fn owners_in_all(ipam: &Ipam) -> usize {
    let owners: BTreeSet<&str> = ipam.entries.iter().map(|entry| entry.peer.as_str()).collect();
    owners.len()
}

fn vote(ipam: &Ipam, found: &mut Vec<Finding>) {
    let Some(paxos) = &ipam.paxos else { return };
    if !paxos.elector {
        found.push(
            Finding::warning(
                "no-ring",
                "this peer is an observer, and no other peer has divided the range yet",
            )
            .why("nothing can be allocated anywhere")
            .run("connect this host to one that may vote, or launch one without --ipalloc-init observer")
            .passing(),
        );
        return;
    }
    if paxos.known_nodes < paxos.quorum {
        found.push(
            Finding::problem(
                "no-quorum",
                format!(
                    "the range is not divided yet: {} peers must agree, and {} are known",
                    paxos.quorum, paxos.known_nodes
                ),
            )
            .why("nothing can be allocated until they do")
            .run("launch or connect the missing peers (weave status connections tells why one is not connected)")
            .run(
                "or, if the cluster has fewer: weave stop, and launch with --ipalloc-init consensus=COUNT of its real size",
            )
            .passing(),
        );
        return;
    }
    found.push(
        Finding::note(
            "voting",
            format!(
                "{} peers are agreeing on how to divide the range",
                paxos.known_nodes
            ),
        )
        .why("until they have, nothing is allocated")
        .passing(),
    );
}
