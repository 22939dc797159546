//! The texts of `/status` and its pages (cli.md 4.12), made from the report.

use std::fmt::Write as _;

use super::fastdp_report::drops;
use super::report::{Connection, Dns, FastDatapath, Ipam, Report, Sleeve, State, VersionCheck};

/// A page under `/status/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// `/status`
    Summary,
    /// `/status/targets`
    Targets,
    /// `/status/connections`
    Connections,
    /// `/status/peers`
    Peers,
    /// `/status/dns`
    Dns,
    /// `/status/ipam`
    Ipam,
}

/// Attribute of a connection: why it is not on the fast path.
const REASON: &str = "reason";

impl Page {
    /// All, with their paths.
    pub const ALL: [(&'static str, Page); 6] = [
        ("/status", Page::Summary),
        ("/status/targets", Page::Targets),
        ("/status/connections", Page::Connections),
        ("/status/peers", Page::Peers),
        ("/status/dns", Page::Dns),
        ("/status/ipam", Page::Ipam),
    ];

    /// The text; `None` when it is about a disabled component.
    #[must_use]
    pub fn render(self, report: &Report) -> Option<String> {
        Some(match self {
            Page::Summary => summary(report),
            Page::Targets => report.router.targets.iter().map(|t| format!("{t}\n")).collect(),
            Page::Connections => connections(report),
            Page::Peers => peers(report),
            Page::Dns => dns(report.dns.as_ref()?),
            Page::Ipam => ipam(report.ipam.as_ref()?, &report.router.name),
        })
    }
}

fn line(out: &mut String, label: &str, value: &str) {
    let _ = writeln!(out, "{label:>15}: {value}");
}

fn list(items: &[String]) -> String {
    if items.is_empty() {
        "none".to_owned()
    } else {
        items.join(", ")
    }
}

/// `N kind` of those that are not zero.
fn counts<'a>(counts: impl IntoIterator<Item = (usize, &'a str)>) -> Option<String> {
    let shown: Vec<String> = counts
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, kind)| format!("{n} {kind}"))
        .collect();
    (!shown.is_empty()).then(|| shown.join(", "))
}

fn summary(report: &Report) -> String {
    let mut out = String::new();
    let version = format!("{} ({})", report.version, version_check(&report.version_check));
    line(&mut out, "Version", &version);
    router(&mut out, report);
    if let Some(ipam) = &report.ipam {
        out.push('\n');
        line(&mut out, "Service", "ipam");
        line(&mut out, "Status", &ipam_status(ipam));
        line(&mut out, "Range", &ipam.range);
        line(&mut out, "DefaultSubnet", &ipam.default_subnet);
        if let Some(seconds) = ipam.reclaim_after_seconds {
            line(&mut out, "ReclaimAfter", &format!("{seconds}s"));
        }
    }
    if let Some(dns) = &report.dns {
        let live = dns.entries.iter().filter(|e| e.tombstone == 0).count();
        out.push('\n');
        line(&mut out, "Service", "dns");
        line(&mut out, "Domain", &dns.domain);
        line(&mut out, "Upstream", &list(&dns.upstream));
        line(&mut out, "TTL", &dns.ttl.to_string());
        line(&mut out, "Entries", &live.to_string());
    }
    if let Some(fastdp) = &report.fast_datapath {
        out.push('\n');
        fast_datapath(&mut out, fastdp);
    }
    if let Some(sleeve) = &report.sleeve {
        out.push('\n');
        sleeve_service(&mut out, sleeve, &report.router.connections);
    }
    out
}

fn router(out: &mut String, report: &Report) {
    let router = &report.router;
    let on = |on: bool| if on { "enabled" } else { "disabled" };
    let versions = if router.protocol_min_version == router.protocol_max_version {
        format!("{} {}", router.protocol, router.protocol_min_version)
    } else {
        format!(
            "{} {}..{}",
            router.protocol, router.protocol_min_version, router.protocol_max_version
        )
    };
    let with_state = |state| router.connections.iter().filter(|c| c.state == state).count();
    let by_state = counts(State::ALL.map(|s| (with_state(s), s.as_str())));
    let (established, pending): (Vec<_>, Vec<_>) = router
        .peers
        .iter()
        .flat_map(|p| &p.connections)
        .partition(|c| c.established);
    let of_peers = counts([(established.len(), "established"), (pending.len(), "pending")]);

    out.push('\n');
    line(out, "Service", "router");
    line(out, "Protocol", &versions);
    line(out, "Name", &format!("{}({})", router.name, router.nick_name));
    line(out, "Encryption", on(router.encryption));
    line(out, "PeerDiscovery", on(router.peer_discovery));
    line(out, "Targets", &router.targets.len().to_string());
    let by_state = by_state.map_or(String::new(), |c| format!(" ({c})"));
    line(
        out,
        "Connections",
        &format!("{}{by_state}", router.connections.len()),
    );
    let of_peers = of_peers.map_or(String::new(), |c| format!(" (with {c} connections)"));
    line(out, "Peers", &format!("{}{of_peers}", router.peers.len()));
    line(out, "TrustedSubnets", &list(&router.trusted_subnets));
}

fn because(value: &str, reason: &str) -> String {
    if reason.is_empty() {
        value.to_owned()
    } else {
        format!("{value} ({reason})")
    }
}

/// How many packets were dropped, and why.
fn drops_line(out: &mut String, drops: &[(&str, u64)]) {
    let total: u64 = drops.iter().map(|(_, n)| n).sum();
    let reasons: Vec<String> = drops.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
    line(out, "Drops", &because(&total.to_string(), &reasons.join(", ")));
}

fn sleeve_service(out: &mut String, sleeve: &Sleeve, connections: &[Connection]) {
    line(out, "Service", "sleeve");
    line(out, "Status", sleeve.trouble.as_deref().unwrap_or("ready"));
    let name = |c: &Connection| {
        c.attrs
            .as_ref()
            .and_then(|a| a.get("name")?.as_str().map(str::to_owned))
    };
    let carries = connections
        .iter()
        .filter(|c| name(c).as_deref() == Some("sleeve"))
        .count();
    line(
        out,
        "Carries",
        &format!("{carries} of {} connections", connections.len()),
    );
    let drops: Vec<(&str, u64)> = drops(&sleeve.counters).collect();
    drops_line(out, &drops);
}

fn fast_datapath(out: &mut String, fastdp: &FastDatapath) {
    let underlay: Vec<String> = fastdp
        .underlay
        .iter()
        .map(|u| format!("{} (mtu {})", u.name, u.mtu))
        .collect();
    let drops: Vec<(&str, u64)> = fastdp.drops().collect();
    let program = if fastdp.program.loaded {
        "loaded"
    } else {
        "not loaded"
    };

    line(out, "Service", "fastdp");
    line(out, "Program", &because(program, &fastdp.program.version));
    if fastdp.program.loaded {
        line(out, "Attach", &fastdp.attach);
        line(out, "XDP", &because(&fastdp.xdp.mode, &fastdp.xdp.reason));
    }
    line(
        out,
        "MTU",
        &because(&fastdp.mtu.bytes.to_string(), &fastdp.mtu.reason),
    );
    if !fastdp.program.loaded {
        return;
    }
    line(out, "Underlay", &list(&underlay));
    line(out, "NextHops", &fastdp.next_hops.len().to_string());
    drops_line(out, &drops);
}

fn version_check(check: &VersionCheck) -> String {
    // 2006-01-02T15:04:05Z -> 2006/01/02 15:04:05
    let next: String = check
        .next_check_at
        .chars()
        .take(19)
        .map(|c| match c {
            '-' => '/',
            'T' => ' ',
            c => c,
        })
        .collect();
    if !check.enabled {
        "version check update disabled".to_owned()
    } else if !check.success {
        format!("failed to check latest version - see logs; next check at {next}")
    } else if check.new_version.is_empty() {
        format!("up to date; next check at {next}")
    } else {
        format!("version {} available - please upgrade!", check.new_version)
    }
}

/// control.md 1.16.
fn ipam_status(ipam: &Ipam) -> String {
    if !ipam.entries.is_empty() {
        return if ipam.entries.iter().all(|e| !e.is_known_peer) {
            "all IP ranges owned by unreachable peers - use 'rmpeer' if they are dead"
        } else if ipam.withheld {
            "waiting for a majority of ring owners: no new addresses, as others may take over ours (--reclaim-after)"
        } else if !ipam.pending_allocates.is_empty() {
            "waiting for IP(s) to become available"
        } else {
            "ready"
        }
        .to_owned();
    }
    match &ipam.paxos {
        Some(p) if p.elector => format!(
            "awaiting consensus (quorum: {}, known: {})",
            p.quorum, p.known_nodes
        ),
        Some(_) => "priming".to_owned(),
        None => "idle".to_owned(),
    }
}

fn arrow(outbound: bool) -> &'static str {
    if outbound { "->" } else { "<-" }
}

fn connections(report: &Report) -> String {
    let mut out = String::new();
    for c in &report.router.connections {
        let attrs: String = c
            .attrs
            .iter()
            .flatten()
            .filter(|(key, _)| !["name", REASON].contains(&key.as_str()))
            .map(|(key, value)| match value.as_str() {
                Some(text) => format!("{key}={text}"),
                None => format!("{key}={value}"),
            })
            .collect();
        let (arrow, state) = (arrow(c.outbound), c.state.as_str());
        // Not in the original, so it stands apart.
        let reason = c.attrs.as_ref().and_then(|attrs| attrs.get(REASON)?.as_str());
        let reason = reason.map_or(String::new(), |reason| format!(" reason=\"{reason}\""));
        let _ = writeln!(
            out,
            "{arrow} {:<21} {state:<11} {} {attrs}{reason}",
            c.address, c.info
        );
    }
    out
}

fn peers(report: &Report) -> String {
    let mut out = String::new();
    for peer in &report.router.peers {
        let _ = writeln!(out, "{}({})", peer.name, peer.nick_name);
        for c in &peer.connections {
            let other = format!("{}({})", c.name, c.nick_name);
            let state = if c.established { "established" } else { "pending" };
            let _ = writeln!(
                out,
                "   {} {:<21} {other:<37} {state}",
                arrow(c.outbound),
                c.address
            );
        }
    }
    out
}

fn dns(dns: &Dns) -> String {
    let mut out = String::new();
    let suffix = format!(".{}", dns.domain);
    for entry in dns.entries.iter().filter(|e| e.tombstone == 0) {
        let name = entry.hostname.strip_suffix(&suffix).unwrap_or(&entry.hostname);
        let id: String = entry.container_id.chars().take(12).collect();
        let _ = writeln!(out, "{name:<12} {:<15} {id:>12} {}", entry.address, entry.origin);
    }
    out
}

/// What one peer owns of the ring.
struct Share<'a> {
    peer: &'a str,
    nickname: &'a str,
    known: bool,
    addresses: u64,
}

fn ipam(ipam: &Ipam, ours: &str) -> String {
    let mut shares: Vec<Share<'_>> = Vec::new();
    for entry in &ipam.entries {
        match shares.iter_mut().find(|s| s.peer == entry.peer) {
            Some(share) => share.addresses += entry.size,
            None => shares.push(Share {
                peer: &entry.peer,
                nickname: &entry.nickname,
                known: entry.is_known_peer,
                addresses: entry.size,
            }),
        }
    }
    shares.sort_by_key(|s| (s.peer != ours, s.peer));
    let mut out = String::new();
    for share in shares {
        #[allow(clippy::cast_precision_loss)] // a percentage with one decimal
        let percent = share.addresses as f64 * 100.0 / ipam.range_num_ips.max(1) as f64;
        let note = if share.peer == ours {
            format!("({} active)", ipam.active_ips)
        } else if share.known {
            String::new()
        } else {
            "- unreachable!".to_owned()
        };
        let owner = format!("{}({})", share.peer, share.nickname);
        let _ = writeln!(
            out,
            "{owner:<37} {:>8} IPs ({percent:04.1}% of total) {note}",
            share.addresses
        );
    }
    for conflict in &ipam.conflicts {
        let owner = format!("{}({})", conflict.peer, conflict.nickname);
        let _ = writeln!(
            out,
            "{owner:<37} conflict: {} - {}",
            conflict.text, conflict.remedy
        );
    }
    for lost in &ipam.lost {
        let owner = format!("{}({})", lost.peer, lost.nickname);
        let (address, ident) = (&lost.address, &lost.ident);
        let _ = writeln!(
            out,
            "{owner:<37} has {address}, which {ident} here uses as well - detach and attach {ident}"
        );
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::golden;
    use super::super::report::{NextHop, Overlay, Paxos, Program, RingEntry, Underlay, Xdp};
    use super::*;

    /// Lists without a defined order are compared as sorted lines.
    fn sorted(text: &str) -> Vec<&str> {
        let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn texts_are_the_originals() {
        for scenario in golden::SCENARIOS {
            let report = golden::report(scenario);
            for (path, page) in Page::ALL {
                let file = format!("{scenario}{}.txt", path.replace('/', "_"));
                let ours = page.render(&report).unwrap();
                let theirs = golden::text(&file);
                assert_eq!(sorted(&ours), sorted(&theirs), "{file}");
                if page == Page::Summary {
                    assert_eq!(ours, theirs, "{file}");
                }
            }
        }
    }

    #[test]
    fn own_line_of_the_ring_is_first() {
        let report = golden::report("04-three-dns.h2");
        let text = Page::Ipam.render(&report).unwrap();
        assert!(text.starts_with("7a:00:00:00:00:02(host2)"), "{text}");
        assert!(text.contains("(06.2% of total) \n"), "{text}");
    }

    #[test]
    fn disabled_components_have_no_page() {
        let report = Report::default();
        assert_eq!(Page::Dns.render(&report), None);
        assert_eq!(Page::Ipam.render(&report), None);
        assert!(!summary(&report).contains("ipam"));
    }

    #[test]
    fn version_check_texts() {
        let mut check = VersionCheck::default();
        assert_eq!(version_check(&check), "version check update disabled");
        check.enabled = true;
        check.next_check_at = "2026-11-21T19:40:42.190269105Z".to_owned();
        assert_eq!(
            version_check(&check),
            "failed to check latest version - see logs; next check at 2026/11/21 19:40:42"
        );
        check.success = true;
        assert_eq!(
            version_check(&check),
            "up to date; next check at 2026/11/21 19:40:42"
        );
        check.new_version = "9.9".to_owned();
        assert_eq!(version_check(&check), "version 9.9 available - please upgrade!");
    }

    #[test]
    fn ring_states() {
        let mut ipam = Ipam::default();
        assert_eq!(ipam_status(&ipam), "idle");
        ipam.paxos = Some(Paxos::default());
        assert_eq!(ipam_status(&ipam), "priming");
        ipam.entries.push(RingEntry::default());
        ipam.pending_allocates.push("c 10.0.0.0/8".to_owned());
        assert!(ipam_status(&ipam).starts_with("all IP ranges owned by unreachable peers"));
        ipam.entries.push(RingEntry {
            is_known_peer: true,
            ..RingEntry::default()
        });
        assert_eq!(ipam_status(&ipam), "waiting for IP(s) to become available");
        ipam.pending_allocates.clear();
        assert_eq!(ipam_status(&ipam), "ready");
    }

    #[test]
    fn fast_path_block() {
        let report = Report {
            fast_datapath: Some(FastDatapath {
                attach: "tcx".to_owned(),
                program: Program {
                    loaded: true,
                    version: "3.0.0".to_owned(),
                },
                xdp: Xdp {
                    mode: "off".to_owned(),
                    reason: "auto: native XDP on veth turns the peer's offloads off".to_owned(),
                },
                mtu: Overlay {
                    bytes: 1416,
                    reason: "auto: underlay 1500".to_owned(),
                },
                underlay: vec![Underlay {
                    name: "eth0".to_owned(),
                    mtu: 1500,
                }],
                next_hops: vec![NextHop::default()],
                counters: [("drop_no_peer", 3), ("drop_ttl", 0), ("encap", 7)]
                    .map(|(k, v)| (k.to_owned(), v))
                    .into(),
            }),
            ..Report::default()
        };
        let text = summary(&report);
        let block = text.split("\n\n").last().unwrap();
        assert_eq!(
            block,
            "        Service: fastdp
        Program: loaded (3.0.0)
         Attach: tcx
            XDP: off (auto: native XDP on veth turns the peer's offloads off)
            MTU: 1416 (auto: underlay 1500)
       Underlay: eth0 (mtu 1500)
       NextHops: 1
          Drops: 3 (no_peer 3)
"
        );
    }
}
