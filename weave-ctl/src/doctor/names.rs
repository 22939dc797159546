//! How peers are called, and names that are not unique.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Fix, View, list, seconds};
use crate::api::report::Report;

/// Nicknames of all peers that the report mentions.
pub(super) struct Names {
    nick: BTreeMap<String, String>,
    shared: BTreeMap<String, BTreeSet<String>>,
}

impl Names {
    pub(super) fn new(report: &Report) -> Self {
        let peers = report.router.peers.iter().map(|p| (&p.name, &p.nick_name));
        let owners = report.ipam.iter().flat_map(|ipam| &ipam.entries);
        let owners = owners.map(|entry| (&entry.peer, &entry.nickname));
        // What the router says of a peer is fresher than what the ring says.
        let nick: BTreeMap<String, String> = owners
            .chain(peers)
            .filter(|(_, nick)| !nick.is_empty())
            .map(|(name, nick)| (name.clone(), nick.clone()))
            .collect();
        let mut shared: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, nick) in &nick {
            shared.entry(nick.clone()).or_default().insert(name.clone());
        }
        shared.retain(|_, names| names.len() > 1);
        Self { nick, shared }
    }

    /// For people: the nickname if it is clear who is meant, else the name as well.
    pub(super) fn of(&self, name: &str) -> String {
        match self.nick.get(name) {
            Some(nick) if self.shared.contains_key(nick) => format!("{nick} ({name})"),
            Some(nick) => nick.clone(),
            None => name.to_owned(),
        }
    }

    /// For commands: what `rmpeer` understands without doubt.
    pub(super) fn argument(&self, name: &str) -> String {
        let plain = |nick: &&String| {
            nick.chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        match self.nick.get(name).filter(plain) {
            Some(nick) if !self.shared.contains_key(nick) => nick.clone(),
            _ => name.to_owned(),
        }
    }
}

pub(super) fn check(view: &View<'_>) -> Vec<Finding> {
    let router = &view.report.router;
    let mut found = Vec::new();
    for collision in &router.collisions {
        let nick = match collision.nick_name.as_str() {
            "" => "another peer",
            nick => nick,
        };
        let at = match collision.address.as_str() {
            "" => String::new(),
            address => format!(" at {address}"),
        };
        let mut what = format!(
            "{nick}{at} had the same peer name as this host {} ago",
            seconds(collision.seconds_ago)
        );
        if !collision.outcome.is_empty() {
            what.push_str(&format!(": {}", collision.outcome));
        }
        found.push(match collision.outcome.contains("by itself") {
            true => Finding::note("name-collision", what)
                .why("such hosts are clones of one another; nothing is left to do"),
            false => collided(what),
        });
    }
    for connection in &router.connections {
        let Some(attempt) = &connection.attempt else {
            continue;
        };
        if !attempt.error.contains("peer names collision") || !router.collisions.is_empty() {
            continue;
        }
        let mut finding = collided(format!("{}: {}", connection.address, attempt.error));
        if attempt.retry_seconds.is_none()
            && let Some(target) = view.target(&connection.address)
        {
            finding = finding.fix(Fix::Reconnect { target });
        }
        found.push(finding);
    }
    for (nick, names) in &view.names.shared {
        let names: Vec<String> = names.iter().cloned().collect();
        found.push(
            Finding::warning(
                "duplicate-nickname",
                format!(
                    "the nickname {nick} belongs to {} peers: {}",
                    names.len(),
                    list(&names)
                ),
            )
            .why("a command that is given the nickname may mean the wrong one")
            .run("give 'weave rmpeer' the internal name")
            .run("weave launch --nickname OTHER ... on all of these hosts but one"),
        );
    }
    let mut ids: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    // Zero may also stand for a peer that has none.
    for peer in router.peers.iter().filter(|peer| peer.short_id != 0) {
        ids.entry(peer.short_id)
            .or_default()
            .push(view.names.of(&peer.name));
    }
    for (id, peers) in ids.into_iter().filter(|(_, peers)| peers.len() > 1) {
        found.push(
            Finding::warning(
                "short-id-conflict",
                format!("{} have the same short ID {id}", list(&peers)),
            )
            .why("frames on the fast path may reach the wrong one of them")
            .run("wait: one of them chooses another by itself within seconds; if it stays, restart one of them")
            .passing(),
        );
    }
    found
}

fn collided(what: String) -> Finding {
    Finding::problem("name-collision", what)
        .why("two peers with one name cannot be in one cluster: neither connects to the other")
        .run("on one of the two (a clone of the other?): weave reset --force && weave launch --name NEW_NAME ...")
}
