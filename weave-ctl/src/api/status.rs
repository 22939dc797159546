//! The texts of `/status` and its pages (cli.md 4.12), made from the report.

use std::fmt::Write as _;

use super::fastdp_report::drops;
use super::report::{Connection, Dns, DnsEntry, FastDatapath, Ipam, Report, Sleeve, State, VersionCheck};
use super::units;

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

    /// The text; `None` when it is about a disabled component. `aligned`: for people at a terminal, with columns
    /// as wide as what is in them; otherwise byte for byte as the original has it.
    #[must_use]
    pub fn render(self, report: &Report, aligned: bool) -> Option<String> {
        let connections_page = if aligned { connections_aligned } else { connections };
        Some(match self {
            Page::Summary => summary(report),
            Page::Targets => report.router.targets.iter().map(|t| format!("{t}\n")).collect(),
            Page::Connections => connections_page(report),
            Page::Peers => peers(report, aligned),
            Page::Dns => dns(report.dns.as_ref()?, aligned),
            Page::Ipam => ipam(report.ipam.as_ref()?, &report.router.name, aligned),
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
            line(&mut out, "ReclaimAfter", &units::duration(seconds));
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
    if let Some(proxy) = &report.proxy {
        out.push('\n');
        line(&mut out, "Service", "proxy");
        line(&mut out, "Address", &list(&proxy.addresses));
    }
    if let Some(plugin) = &report.plugin {
        out.push('\n');
        if plugin.config.enable_v2 {
            line(&mut out, "Service", "plugin (v2)");
        } else {
            line(&mut out, "Service", "plugin (legacy)");
            line(&mut out, "DriverName", &plugin.driver_name);
        }
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
    if let Some(renamed) = &router.renamed {
        line(
            out,
            "Renamed",
            renamed.strip_prefix("renamed ").unwrap_or(renamed),
        );
    }
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
    let carries = connections
        .iter()
        .filter(|c| c.overlay() == Some("sleeve"))
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
pub(super) fn ipam_status(ipam: &Ipam) -> String {
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

/// The attributes but for the name and the reason, `key=value` each.
fn attributes(c: &Connection) -> impl Iterator<Item = String> + '_ {
    let shown = |key: &str| !["name", REASON].contains(&key);
    let attrs = c.attrs.iter().flatten().filter(move |(key, _)| shown(key));
    attrs.map(|(key, value)| match value.as_str() {
        Some(text) => format!("{key}={text}"),
        None => format!("{key}={value}"),
    })
}

/// How wide a column is: as wide as in the original, or as what is in it.
fn width<'a>(least: usize, aligned: bool, texts: impl Iterator<Item = &'a str>) -> usize {
    let widest = texts.filter(|_| aligned).map(|text| text.chars().count()).max();
    widest.unwrap_or(0).max(least)
}

/// In columns, with what the original does not tell: time to the peer and back, bytes in and out.
fn connections_aligned(report: &Report) -> String {
    let connections = &report.router.connections;
    let addresses = width(21, true, connections.iter().map(|c| c.address.as_str()));
    let with_attrs = connections.iter().filter(|c| c.attrs.is_some());
    let infos = width(0, true, with_attrs.map(|c| c.info.as_str()));
    let mut out = String::new();
    for c in connections {
        let mut last: Vec<String> = attributes(c).collect();
        if let Some(remote) = &c.remote {
            let micros = remote.round_trip_micros.map(std::time::Duration::from_micros);
            last.extend(micros.map(|time| format!("rtt={}", units::latency(time))));
            if let Some(traffic) = remote.traffic.get(&remote.overlay) {
                last.push(format!("in={}", units::bytes(traffic.bytes_in)));
                last.push(format!("out={}", units::bytes(traffic.bytes_out)));
            }
        }
        let reason = c.attrs.as_ref().and_then(|attrs| attrs.get(REASON)?.as_str());
        last.extend(reason.map(|reason| format!("reason=\"{reason}\"")));
        let row = format!(
            "{} {:<addresses$} {:<11} {:<infos$} {}",
            arrow(c.outbound),
            c.address,
            c.state.as_str(),
            c.info,
            last.join(", ")
        );
        out.push_str(row.trim_end());
        out.push('\n');
    }
    out
}

fn connections(report: &Report) -> String {
    let mut out = String::new();
    for c in &report.router.connections {
        let attrs: String = attributes(c).collect();
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

fn peers(report: &Report, aligned: bool) -> String {
    let mut out = String::new();
    let links = || report.router.peers.iter().flat_map(|peer| &peer.connections);
    let names: Vec<String> = links().map(|c| format!("{}({})", c.name, c.nick_name)).collect();
    let widest = width(37, aligned, names.iter().map(String::as_str));
    let addresses = width(21, aligned, links().map(|c| c.address.as_str()));
    for peer in &report.router.peers {
        let _ = writeln!(out, "{}({})", peer.name, peer.nick_name);
        for c in &peer.connections {
            let other = format!("{}({})", c.name, c.nick_name);
            let state = if c.established { "established" } else { "pending" };
            let _ = writeln!(
                out,
                "   {} {:<addresses$} {other:<widest$} {state}",
                arrow(c.outbound),
                c.address
            );
        }
    }
    out
}

fn dns(dns: &Dns, aligned: bool) -> String {
    let mut out = String::new();
    let suffix = format!(".{}", dns.domain);
    let name = |entry: &'_ DnsEntry| -> String {
        // The case is as somebody gave it, in the name and in the domain.
        let at = entry.hostname.len().checked_sub(suffix.len());
        let split = at.and_then(|at| entry.hostname.split_at_checked(at));
        let bare = split.filter(|(_, end)| end.eq_ignore_ascii_case(&suffix));
        bare.map_or(entry.hostname.as_str(), |(bare, _)| bare).to_owned()
    };
    let live = || dns.entries.iter().filter(|e| e.tombstone == 0);
    let names: Vec<String> = live().map(name).collect();
    let widest = width(12, aligned, names.iter().map(String::as_str));
    for (entry, name) in live().zip(&names) {
        let id: String = entry.container_id.chars().take(12).collect();
        let _ = writeln!(
            out,
            "{name:<widest$} {:<15} {id:>12} {}",
            entry.address, entry.origin
        );
    }
    out
}

/// What one peer owns of the ring.
pub(super) struct Share<'a> {
    pub peer: &'a str,
    pub nickname: &'a str,
    pub known: bool,
    pub addresses: u64,
}

impl Share<'_> {
    /// Of the whole range.
    pub fn percent(&self, ipam: &Ipam) -> f64 {
        #[allow(clippy::cast_precision_loss)] // a percentage with one decimal
        let percent = self.addresses as f64 * 100.0 / ipam.range_num_ips.max(1) as f64;
        percent
    }
}

/// Who owns how much, we first.
pub(super) fn shares<'a>(ipam: &'a Ipam, ours: &str) -> Vec<Share<'a>> {
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
    shares
}

fn ipam(ipam: &Ipam, ours: &str, aligned: bool) -> String {
    let shares = shares(ipam, ours);
    let owner = |peer: &str, nickname: &str| format!("{peer}({nickname})");
    let owners: Vec<String> = shares.iter().map(|s| owner(s.peer, s.nickname)).collect();
    let widest = width(37, aligned, owners.iter().map(String::as_str));
    let mut out = String::new();
    for (share, owner) in shares.iter().zip(&owners) {
        let percent = share.percent(ipam);
        let note = if share.peer == ours {
            format!("({} active)", ipam.active_ips)
        } else if share.known {
            String::new()
        } else {
            "- unreachable!".to_owned()
        };
        let _ = writeln!(
            out,
            "{owner:<widest$} {:>8} IPs ({percent:04.1}% of total) {note}",
            share.addresses
        );
    }
    for conflict in &ipam.conflicts {
        let owner = owner(&conflict.peer, &conflict.nickname);
        let _ = writeln!(
            out,
            "{owner:<widest$} conflict: {} - {}",
            conflict.text, conflict.remedy
        );
    }
    for lost in &ipam.lost {
        let owner = owner(&lost.peer, &lost.nickname);
        let (address, ident) = (&lost.address, &lost.ident);
        let _ = writeln!(
            out,
            "{owner:<widest$} has {address}, which {ident} here uses as well - detach and attach {ident}"
        );
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::golden;
    use super::super::report::{NextHop, Overlay, Paxos, Program, Remote, RingEntry, Traffic, Underlay, Xdp};
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
                let ours = page.render(&report, false).unwrap();
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
        let text = Page::Ipam.render(&report, false).unwrap();
        assert!(text.starts_with("7a:00:00:00:00:02(host2)"), "{text}");
        assert!(text.contains("(06.2% of total) \n"), "{text}");
    }

    #[test]
    fn disabled_components_have_no_page() {
        let report = Report::default();
        assert_eq!(Page::Dns.render(&report, false), None);
        assert_eq!(Page::Ipam.render(&report, false), None);
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
                maps: Vec::new(),
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

    #[test]
    fn a_new_name_says_why() {
        let mut report = Report::default();
        assert!(!summary(&report).contains("Renamed"));
        report.router.renamed = Some("renamed from 00:00:00:00:00:77: host b had it".to_owned());
        let text = summary(&report);
        assert!(
            text.contains("\n        Renamed: from 00:00:00:00:00:77: host b had it\n"),
            "{text}"
        );
    }

    #[test]
    fn for_a_terminal_columns_are_as_wide_as_needed() {
        let mut report = golden::report("04-three-dns.h1");
        let [first, second] = &mut report.router.connections[..] else {
            panic!("two connections")
        };
        first.address = "[fd00:1234:5678:9abc::1]:6783".to_owned();
        first.info = Connection::peer_info(None, "sleeve", "7a:00:00:00:00:03(a-much-longer-name)");
        second.remote = Some(Remote {
            round_trip_micros: Some(350),
            overlay: "sleeve".to_owned(),
            traffic: [(
                "sleeve".to_owned(),
                Traffic {
                    bytes_in: 2048,
                    ..Traffic::default()
                },
            )]
            .into(),
            ..Remote::default()
        });
        let text = Page::Connections.render(&report, true).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let column = |line: &str| line.find("mtu=").unwrap();
        assert_eq!(column(lines[0]), column(lines[1]), "{text}");
        assert!(
            lines[1].ends_with("mtu=1438, rtt=0.35 ms, in=2.0 KiB, out=0 B"),
            "{text}"
        );
        // Nothing is wider than the original's columns: the same text.
        let report = golden::report("08-h3-gone.h1");
        for page in [Page::Summary, Page::Targets, Page::Peers, Page::Dns, Page::Ipam] {
            assert_eq!(
                page.render(&report, true),
                page.render(&report, false),
                "{page:?}"
            );
        }
    }
}
