//! The Prometheus text of control.md 3.5, and what the original does not measure, made from the report.

mod page;
mod process;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use page::Page;

use super::report::{Connection, FastDatapath, Gossip, Ipam, Remote, Report, State};

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

/// The metrics as text.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut page = Page::default();
    process::process(&mut page);
    router(&mut page, report);
    neighbours(&mut page, report);
    fallbacks(&mut page, report);
    if let Some(dns) = &report.dns {
        let us = &report.router.name;
        let ours = || dns.entries.iter().filter(|e| e.tombstone == 0 && e.origin == *us);
        let count = dns.own_live.unwrap_or_else(|| ours().count());
        page.gauge("weave_dns_entries", "Number of DNS entries.", count);
        let queries = dns.queries.iter().map(|(outcome, n)| (outcome.as_str(), *n));
        let help = "DNS queries by what became of them.";
        page.labelled(("weave_dns_queries_total", help, COUNTER), "outcome", queries);
    }
    if let Some(fastdp) = &report.fast_datapath {
        fast_datapath(&mut page, fastdp);
    }
    if let Some(sleeve) = &report.sleeve {
        let help = "Number of packets seen by sleeve.";
        let counters = sleeve.counters.iter().map(|(verdict, n)| (verdict.as_str(), *n));
        page.labelled(("weave_sleeve_packets_total", help, COUNTER), "verdict", counters);
    }
    if let Some(gossip_report) = &report.gossip {
        gossip(&mut page, gossip_report);
    }
    if let Some(ipam_report) = &report.ipam {
        ipam(&mut page, ipam_report);
    }
    page.text
}

fn router(page: &mut Page, report: &Report) {
    let router = &report.router;
    page.single(
        "weave_connection_terminations_total",
        "Number of peer-to-peer connections terminated.",
        COUNTER,
        router.termination_count,
    );
    // Per state and overlay: how many are encrypted, how many are not.
    let mut counts: BTreeMap<(State, &str), [u64; 2]> = BTreeMap::new();
    for connection in &router.connections {
        let attr = |name: &str| connection.attrs.as_ref().and_then(|a| a.get(name));
        let overlay = attr("name").and_then(|v| v.as_str()).unwrap_or("unknown");
        let encrypted = attr("encrypted")
            .and_then(serde_json::Value::as_bool)
            .unwrap_or(false);
        counts.entry((connection.state, overlay)).or_default()[usize::from(encrypted)] += 1;
    }
    if counts.is_empty() {
        return;
    }
    page.family("weave_connections", "Number of peer-to-peer connections.", GAUGE);
    for ((state, overlay), [clear, encrypted]) in counts {
        for (encryption, count) in [("", clear), ("yes", encrypted)] {
            let labels = [
                ("encryption", encryption),
                ("state", state.as_str()),
                ("type", overlay),
            ];
            page.sample("weave_connections", &labels, count);
        }
    }
}

/// Connections that have a neighbour at the other end.
fn remotes(report: &Report) -> impl Iterator<Item = (&Connection, &Remote)> + Clone {
    let connections = report.router.connections.iter();
    connections.filter_map(|c| Some((c, c.remote.as_ref()?)))
}

/// What goes to and comes from each neighbour, and how far away it is.
fn neighbours(page: &mut Page, report: &Report) {
    type Pick = fn(&super::report::Traffic) -> [u64; 2];
    let families: [(&str, &str, Pick); 2] = [
        (
            "weave_peer_bytes_total",
            "Bytes received from and sent to neighbours, UDP payload.",
            |t| [t.bytes_in, t.bytes_out],
        ),
        (
            "weave_peer_packets_total",
            "UDP packets received from and sent to neighbours.",
            |t| [t.packets_in, t.packets_out],
        ),
    ];
    for (name, help, pick) in families {
        let samples = remotes(report).flat_map(|(_, remote)| {
            remote.traffic.iter().flat_map(move |(overlay, traffic)| {
                let [received, sent] = pick(traffic);
                [("in", received), ("out", sent)].map(|(direction, n)| {
                    let labels = vec![
                        ("direction", direction),
                        ("nickname", remote.nick_name.as_str()),
                        ("overlay", overlay.as_str()),
                        ("peer", remote.name.as_str()),
                    ];
                    (labels, n)
                })
            })
        });
        page.samples((name, help, COUNTER), samples);
    }
    let round_trips = remotes(report).filter_map(|(_, remote)| {
        let micros = remote.round_trip_micros?;
        let labels = vec![
            ("nickname", remote.nick_name.as_str()),
            ("peer", remote.name.as_str()),
        ];
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        Some((labels, micros as f64 / 1e6))
    });
    let help = "Time to a neighbour and back over TCP, as of its latest message.";
    page.samples(("weave_peer_round_trip_seconds", help, GAUGE), round_trips);
}

/// Connections that are not on the fast path, each with its reason.
fn fallbacks(page: &mut Page, report: &Report) {
    let text = |c: &'_ Connection, name: &str| -> Option<String> {
        Some(c.attrs.as_ref()?.get(name)?.as_str()?.to_owned())
    };
    let found: Vec<_> = report
        .router
        .connections
        .iter()
        .filter_map(|c| Some((c, text(c, "name")?, text(c, "reason")?)))
        .collect();
    let samples = found.iter().map(|(c, overlay, reason)| {
        let mut labels = vec![("address", c.address.as_str())];
        if let Some(remote) = &c.remote {
            labels.push(("nickname", &remote.nick_name));
            labels.push(("peer", &remote.name));
        }
        labels.extend([("reason", reason.as_str()), ("type", overlay.as_str())]);
        (labels, 1)
    });
    let help = "Connections that are not on the fast path, and why.";
    page.samples(("weave_connection_fallback", help, GAUGE), samples);
}

fn fast_datapath(page: &mut Page, fastdp: &FastDatapath) {
    let help = "Number of packets seen by the fast path.";
    let counters = fastdp.counters.iter().map(|(verdict, n)| (verdict.as_str(), *n));
    page.labelled(("weave_fastdp_packets_total", help, COUNTER), "verdict", counters);
    let maps = || fastdp.maps.iter();
    let help = "Entries of the maps of the BPF programs.";
    let entries = maps().map(|map| (map.name.as_str(), map.entries));
    page.labelled(("weave_bpf_map_entries", help, GAUGE), "map", entries);
    let help = "Room for entries in the maps of the BPF programs.";
    let most = maps().map(|map| (map.name.as_str(), map.most));
    page.labelled(("weave_bpf_map_max_entries", help, GAUGE), "map", most);
}

fn gossip(page: &mut Page, gossip: &Gossip) {
    type Pick = fn(&super::report::Volume) -> u64;
    let units: [(&str, &str, Pick); 2] = [
        ("bytes", "Bytes of gossip", |v| v.bytes),
        ("messages", "Gossip messages", |v| v.messages),
    ];
    for (unit, what, pick) in units {
        let sent = gossip.channels.iter().flat_map(|(name, channel)| {
            let labels = move |kind| vec![("channel", name.as_str()), ("kind", kind)];
            let kinds = channel.sent.iter();
            kinds.map(move |(kind, volume)| (labels(kind), pick(volume)))
        });
        let (name, help) = (format!("weave_gossip_sent_{unit}_total"), format!("{what} sent."));
        page.samples((&name, &help, COUNTER), sent);
        let received = gossip.channels.iter();
        let received = received.map(|(name, channel)| (name.as_str(), pick(&channel.received)));
        let name = format!("weave_gossip_received_{unit}_total");
        page.labelled(
            (&name, &format!("{what} received."), COUNTER),
            "channel",
            received,
        );
    }
    let skipped = gossip.channels.iter();
    let skipped = skipped.map(|(name, channel)| (name.as_str(), channel.skipped));
    let help = "Gossip messages that made no sense.";
    page.labelled(("weave_gossip_skipped_total", help, COUNTER), "channel", skipped);
    let refused = gossip.refused.iter().map(|(reason, n)| (reason.as_str(), *n));
    let help = "Gossip refused or dropped, in messages or, where the reason says so, entries.";
    page.labelled(("weave_gossip_refused_total", help, COUNTER), "reason", refused);
}

fn ipam(page: &mut Page, ipam: &Ipam) {
    let unreachable = || ipam.entries.iter().filter(|e| !e.is_known_peer);
    let peers: BTreeSet<&str> = unreachable().map(|e| e.peer.as_str()).collect();
    let addresses: u64 = unreachable().map(|e| e.size).sum();
    #[allow(clippy::cast_precision_loss)] // a percentage
    let percent = addresses as f64 * 100.0 / ipam.range_num_ips.max(1) as f64;
    page.gauge(
        "weave_ipam_pending_allocates",
        "Number of pending allocates.",
        ipam.pending_allocates.len(),
    );
    page.gauge(
        "weave_ipam_pending_claims",
        "Number of pending claims.",
        ipam.pending_claims.len(),
    );
    page.gauge(
        "weave_ipam_unreachable_count",
        "Number of unreachable peers.",
        peers.len(),
    );
    page.gauge(
        "weave_ipam_unreachable_percentage",
        "Percentage of IP addresses owned  by unreachable peers.",
        percent,
    );
    page.family("weave_ips", "Number of IP addresses.", "gauge");
    page.sample("weave_ips", &[("state", "local-used")], ipam.active_ips);
    owners(page, ipam);
    page.gauge(
        "weave_max_ips",
        "Size of IP address space used by allocator.",
        ipam.range_num_ips,
    );
}

/// Who owns how much of the ring.
fn owners(page: &mut Page, ipam: &Ipam) {
    let mut owned: BTreeMap<&str, (&str, bool, u64)> = BTreeMap::new();
    for entry in &ipam.entries {
        let (nickname, known) = (entry.nickname.as_str(), entry.is_known_peer);
        owned.entry(&entry.peer).or_insert((nickname, known, 0)).2 += entry.size;
    }
    let samples = owned.into_iter().map(|(peer, (nickname, known, addresses))| {
        let reachable = if known { "yes" } else { "no" };
        let labels = vec![("nickname", nickname), ("peer", peer), ("reachable", reachable)];
        (labels, addresses)
    });
    let help = "Addresses of the range that each peer owns.";
    page.samples(("weave_ipam_owned_ips", help, GAUGE), samples);
}
