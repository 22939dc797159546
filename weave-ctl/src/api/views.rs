//! The pages of `/status` as JSON, for programs: what the text shows, with the keys of the report.

use serde_json::{Map, Value, json};

use super::fastdp_report::drops;
use super::report::{Connection, Dns, FastDatapath, Ipam, Report, Router, Sleeve, State};
use super::status::{Page, ipam_status, shares};

impl Page {
    /// The page as JSON; `None` when it is about a disabled component.
    #[must_use]
    pub fn json(self, report: &Report) -> Option<Value> {
        Some(match self {
            Page::Summary => summary(report),
            Page::Targets => json!(report.router.targets),
            Page::Connections => json!(report.router.connections),
            Page::Peers => json!(report.router.peers),
            Page::Dns => {
                let entries = report.dns.as_ref()?.entries.iter();
                entries.filter(|e| e.tombstone == 0).map(|e| json!(e)).collect()
            }
            Page::Ipam => ipam(report.ipam.as_ref()?, &report.router.name),
        })
    }
}

fn summary(report: &Report) -> Value {
    let mut out = Map::new();
    let mut add = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            out.insert(key.to_owned(), value);
        }
    };
    add("Ready", Some(json!(report.ready)));
    add("Version", Some(json!(report.version)));
    add("VersionCheck", Some(json!(report.version_check)));
    add("Router", Some(router(&report.router)));
    add("IPAM", report.ipam.as_ref().map(ipam_summary));
    add("DNS", report.dns.as_ref().map(dns_summary));
    let connections = &report.router.connections;
    add("FastDatapath", report.fast_datapath.as_ref().map(fast_datapath));
    add("Sleeve", report.sleeve.as_ref().map(|s| sleeve(s, connections)));
    Value::Object(out)
}

fn router(router: &Router) -> Value {
    let mut connections = Map::from_iter([("Total".to_owned(), json!(router.connections.len()))]);
    for state in State::ALL {
        let count = router.connections.iter().filter(|c| c.state == state).count();
        connections.insert(state.as_str().to_owned(), json!(count));
    }
    let links = router.peers.iter().flat_map(|p| &p.connections);
    let (established, pending): (Vec<_>, Vec<_>) = links.partition(|c| c.established);
    let mut value = json!({
        "Protocol": router.protocol,
        "ProtocolMinVersion": router.protocol_min_version,
        "ProtocolMaxVersion": router.protocol_max_version,
        "Name": router.name,
        "NickName": router.nick_name,
        "Encryption": router.encryption,
        "PeerDiscovery": router.peer_discovery,
        "Targets": router.targets.len(),
        "Connections": connections,
        "Peers": {
            "Total": router.peers.len(),
            "established": established.len(),
            "pending": pending.len(),
        },
        "TrustedSubnets": router.trusted_subnets,
    });
    if let (Some(renamed), Some(value)) = (&router.renamed, value.as_object_mut()) {
        value.insert("Renamed".to_owned(), json!(renamed));
    }
    value
}

fn ipam_summary(ipam: &Ipam) -> Value {
    json!({
        "Status": ipam_status(ipam),
        "Range": ipam.range,
        "DefaultSubnet": ipam.default_subnet,
        "ReclaimAfterSeconds": ipam.reclaim_after_seconds,
    })
}

fn dns_summary(dns: &Dns) -> Value {
    json!({
        "Domain": dns.domain,
        "Upstream": dns.upstream,
        "Address": dns.address,
        "TTL": dns.ttl,
        "Entries": dns.entries.iter().filter(|e| e.tombstone == 0).count(),
    })
}

fn fast_datapath(fastdp: &FastDatapath) -> Value {
    json!({
        "Program": fastdp.program,
        "Attach": fastdp.attach,
        "XDP": fastdp.xdp,
        "MTU": fastdp.mtu,
        "Underlay": fastdp.underlay,
        "NextHops": fastdp.next_hops.len(),
        "Drops": drops(&fastdp.counters).map(|(why, n)| (why.to_owned(), json!(n))).collect::<Map<_, _>>(),
    })
}

fn sleeve(sleeve: &Sleeve, connections: &[Connection]) -> Value {
    json!({
        "Status": sleeve.trouble.as_deref().unwrap_or("ready"),
        "Carries": connections.iter().filter(|c| c.overlay() == Some("sleeve")).count(),
        "Drops": drops(&sleeve.counters).map(|(why, n)| (why.to_owned(), json!(n))).collect::<Map<_, _>>(),
    })
}

fn ipam(ipam: &Ipam, ours: &str) -> Value {
    let owners: Vec<Value> = shares(ipam, ours)
        .iter()
        .map(|share| {
            json!({
                "Peer": share.peer,
                "Nickname": share.nickname,
                "IsKnownPeer": share.known,
                "Addresses": share.addresses,
                "Percent": share.percent(ipam),
                "ActiveIPs": (share.peer == ours).then_some(ipam.active_ips),
            })
        })
        .collect();
    json!({ "Owners": owners, "Conflicts": ipam.conflicts, "Lost": ipam.lost })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::golden;
    use super::*;

    #[test]
    fn numbers_are_those_of_the_text() {
        let report = golden::report("08-h3-gone.h1");
        let summary = Page::Summary.json(&report).unwrap();
        let text = Page::Summary.render(&report, false).unwrap();
        let router = &summary["Router"];
        assert!(text.contains(&format!("Connections: {} (", router["Connections"]["Total"])));
        assert!(text.contains(&format!("{} established", router["Connections"]["established"])));
        assert!(text.contains(&format!(
            "Status: {}\n",
            summary["IPAM"]["Status"].as_str().unwrap()
        )));
        assert!(text.contains(&format!("Entries: {}\n", summary["DNS"]["Entries"])));
        assert_eq!(summary.get("Sleeve"), None);
    }

    #[test]
    fn lists_have_the_keys_of_the_report() {
        let report = golden::report("04-three-dns.h1");
        for (page, list) in [
            (Page::Targets, json!(report.router.targets)),
            (Page::Connections, json!(report.router.connections)),
            (Page::Peers, json!(report.router.peers)),
            (Page::Dns, json!(report.dns.as_ref().unwrap().entries)),
        ] {
            assert_eq!(page.json(&report).unwrap(), list, "{page:?}");
        }
        let ipam = Page::Ipam.json(&report).unwrap();
        let owners = ipam["Owners"].as_array().unwrap();
        assert_eq!(owners[0]["Peer"], "7a:00:00:00:00:01");
        let sum: u64 = owners.iter().map(|o| o["Addresses"].as_u64().unwrap()).sum();
        assert_eq!(sum, report.ipam.unwrap().range_num_ips);
        for page in [Page::Dns, Page::Ipam] {
            assert_eq!(page.json(&Report::default()), None);
        }
    }
}
