//! Who is connected to whom, as all peers tell.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, View, list};
use crate::api::report::{Peer, State};

pub(super) fn check(view: &View<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    one_sided(view, &mut found);
    limit(view, &mut found);
    strangers(view, &mut found);
    found
}

/// Connections that only one end has, or that only one end calls established.
fn one_sided(view: &View<'_>, found: &mut Vec<Finding>) {
    let peers = &view.report.router.peers;
    let link = |from: &Peer, to: &str| {
        from.connections
            .iter()
            .find(|c| c.name == to)
            .map(|c| c.established)
    };
    let mut one_ended = Vec::new();
    let mut half = Vec::new();
    let by_name: BTreeMap<&str, &Peer> = peers.iter().map(|peer| (peer.name.as_str(), peer)).collect();
    for peer in peers {
        for connection in &peer.connections {
            let Some(other) = by_name.get(connection.name.as_str()) else {
                continue;
            };
            let (from, to) = (view.names.of(&peer.name), view.names.of(&other.name));
            match (connection.established, link(other, &peer.name)) {
                (_, None) => one_ended.push(format!("{from} says so of {to}")),
                (true, Some(false)) => half.push(format!("at {from}, not yet at {to}")),
                _ => {}
            }
        }
    }
    if !one_ended.is_empty() {
        found.push(
            Finding::warning(
                "one-sided-connection",
                format!("connected according to one end only: {}", list(&one_ended)),
            )
            .why("no frames take such a connection; it is gone, or the news of it has not come yet")
            .run("if it stays: weave status connections, on both ends")
            .passing(),
        );
    }
    if !half.is_empty() {
        found.push(
            Finding::warning(
                "half-established",
                format!("established at one end only: {}", list(&half)),
            )
            .why("packets get through in one direction only, so no frames take this connection")
            .run(super::connections::udp(view.report.router.port))
            .passing(),
        );
    }
}

fn limit(view: &View<'_>, found: &mut Vec<Finding>) {
    let Some(process) = &view.report.process else {
        return;
    };
    let connections = view.report.router.connections.iter();
    let count = connections
        .filter(|c| matches!(c.state, State::Established | State::Pending))
        .count() as u64;
    if process.connection_limit > 0 && count >= process.connection_limit {
        found.push(
            Finding::warning(
                "connection-limit",
                format!("{count} connections of at most {}", process.connection_limit),
            )
            .why("no further peer can connect; frames for others take a way through neighbours")
            .run("weave launch --conn-limit COUNT (0: any number)"),
        );
    }
}

/// Peers that we know of and are not connected to.
fn strangers(view: &View<'_>, found: &mut Vec<Finding>) {
    let router = &view.report.router;
    let neighbours: BTreeSet<&str> = view.remotes().map(|remote| remote.name.as_str()).collect();
    let via: BTreeMap<&str, &str> = router
        .unicast_routes
        .iter()
        .map(|route| (route.dest.as_str(), route.via.as_str()))
        .collect();
    let (mut relayed, mut cut_off) = (Vec::new(), Vec::new());
    for peer in router.peers.iter().filter(|peer| peer.name != router.name) {
        if !via.contains_key(peer.name.as_str()) {
            cut_off.push(view.names.of(&peer.name));
        } else if !neighbours.contains(peer.name.as_str()) {
            let over = via
                .get(peer.name.as_str())
                .map(|via| view.names.of(via))
                .unwrap_or_default();
            let error = error_to(view, &peer.name).map(|error| format!(": {error}"));
            relayed.push(format!(
                "{} (through {over}){}",
                view.names.of(&peer.name),
                error.unwrap_or_default()
            ));
        }
    }
    if !cut_off.is_empty() {
        found.push(
            Finding::problem("no-route", format!("no way for frames to {}", list(&cut_off)))
                .why("containers here do not reach containers there")
                .run("weave status connections, here and there: it tells why a connection is not established")
                .passing(),
        );
    }
    if router.peer_discovery && !relayed.is_empty() {
        found.push(
            Finding::warning(
                "partial-mesh",
                format!("not directly connected to {}", list(&relayed)),
            )
            .why("frames take a way through another host, which costs time there and here")
            .run(format!("let TCP {} through between these hosts", router.port))
            .run("if the hosts cannot reach each other by design: launch with --no-discovery")
            .passing(),
        );
    }
}

/// Why an attempt to reach that peer failed, found by the addresses that others know it by.
fn error_to(view: &View<'_>, name: &str) -> Option<String> {
    let router = &view.report.router;
    let host = |address: &str| address.rsplit_once(':').map(|(host, _)| host.to_owned());
    let known: BTreeSet<String> = router
        .peers
        .iter()
        .flat_map(|peer| &peer.connections)
        .filter(|connection| connection.name == name)
        .filter_map(|connection| host(&connection.address))
        .collect();
    let mut attempts = router.connections.iter().filter(|c| c.attempt.is_some());
    let attempt = attempts.find(|c| host(&c.address).is_some_and(|host| known.contains(&host)))?;
    Some(attempt.attempt.as_ref()?.error.clone())
}
