//! The address ring: conflicts, owners that are gone, votes that do not come about.

use std::cmp::Ordering;
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
        lost(ipam, &mut found);
        owners(view, ipam, &mut found);
        vote(ipam, &mut found);
    }
    found
}

/// A range cannot be adopted: the two sides were launched differently.
fn is_about_range(conflict: &IpamConflict) -> bool {
    conflict.text.contains("IP allocation ranges")
}

fn conflicts(view: &View<'_>, ipam: &Ipam, found: &mut Vec<Finding>) {
    let adopt = whom_to_adopt(view, ipam);
    for conflict in &ipam.conflicts {
        let nick = match conflict.nickname.as_str() {
            "" => view.names.of(&conflict.peer),
            nick => nick.to_owned(),
        };
        let finding = Finding::problem(
            "ring-conflict",
            format!(
                "with {nick} for {}: {}",
                seconds(conflict.since_seconds),
                conflict.text
            ),
        )
        .why("the two sides allocate without knowing of each other: addresses may be given out twice");
        found.push(match adopt {
            _ if is_about_range(conflict) => finding.run(conflict.remedy.clone()),
            Some(peer) if peer == conflict.peer => {
                let peer = peer.to_owned();
                finding
                    .run("weave-ctl doctor --fix, here")
                    .fix(Fix::Adopt { peer })
            }
            // One repair mends all conflicts of a host.
            Some(_) => finding,
            None if view.is_original(&conflict.peer) => finding
                .run(format!(
                    "on {nick}, which runs Weave Net 2: weave reset, then launch it again"
                ))
                .run(format!(
                    "or, on each host of this side, to give up its ring and keep the addresses in use: \
                    curl -X POST '127.0.0.1:6784/ipam/adopt?peer={}'",
                    conflict.peer
                )),
            None => finding.run(format!("weave-ctl doctor --fix, on {nick}")),
        });
    }
    let told: BTreeSet<&str> = ipam.conflicts.iter().map(|c| c.peer.as_str()).collect();
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

/// Another peer took the range over while this one was away.
fn lost(ipam: &Ipam, found: &mut Vec<Finding>) {
    for lost in &ipam.lost {
        let (ident, address) = (&lost.ident, &lost.address);
        let owner = format!("{}({})", lost.peer, lost.nickname);
        found.push(
            Finding::problem(
                "address-lost",
                format!("{address} of {ident} belongs to {owner} now, and is in use there"),
            )
            .why("two containers have one address")
            .run(format!("weave detach {ident} && weave attach {ident}")),
        );
    }
}

impl View<'_> {
    /// Does this neighbour run the original program?
    fn is_original(&self, peer: &str) -> bool {
        self.remotes()
            .any(|remote| remote.name == peer && remote.implementation.is_none())
    }
}

/// The side with fewer peers gives way; in a tie the one that can, or else the one with the higher name: an
/// original has no command for it.
fn whom_to_adopt<'a>(view: &View<'_>, ipam: &'a Ipam) -> Option<&'a str> {
    let rings = ipam.conflicts.iter().filter(|conflict| !is_about_range(conflict));
    let against: BTreeSet<&str> = rings.map(|conflict| conflict.peer.as_str()).collect();
    let first = *against.first()?;
    let ours = 1 + view
        .remotes()
        .filter(|remote| !against.contains(remote.name.as_str()))
        .count();
    let we_yield = match against.len().cmp(&ours) {
        Ordering::Less => false,
        Ordering::Greater => true,
        Ordering::Equal => view.is_original(first) || view.report.router.name.as_str() > first,
    };
    we_yield.then_some(first)
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
