//! Addresses of the bridge, and the rules that let hosts reach containers through them (control.md 7.3, 7.4).
//!
//! Rules are made from the whole list of what is exposed, each time in one transaction, in a table of our own,
//! `ip weave`. A firewall that drops what is forwarded (Docker's, for one) can not be overruled from there: where
//! there is one, the chain `WEAVE-FORWARD` of iptables accepts our traffic.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::{NetError, Netlink, Netns, arp, nft};
use crate::ipam::address::Cidr;

/// Who owns the bridge's addresses, and has its names.
pub const OWNER: &str = "weave:expose";
/// Our table.
const TABLE: &str = "weave";
/// Our chain in the table `filter` of iptables.
const CHAIN: &str = "WEAVE-FORWARD";

/// An address of the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposed {
    /// The address and the subnet that it opens.
    pub cidr: Cidr,
    /// Traffic between the subnet and the rest of the world gets an address of this host.
    pub masquerade: bool,
}

/// The bridges that rules name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridges {
    /// Ours.
    pub weave: String,
    /// Docker's, whose containers must not come in through the host; empty: none.
    pub docker: String,
}

/// Gives the bridge an address, and tells everybody. Having it already is fine.
pub async fn add_address(nl: &Netlink, bridge: &str, cidr: Cidr) -> Result<(), NetError> {
    let missing = || NetError::NoBridge(bridge.to_owned());
    let link = nl.find_link(bridge).await?.ok_or_else(missing)?;
    nl.add_address(&link, cidr).await?;
    arp::announce(nl.ns(), &link, vec![cidr.addr.into()]).await
}

/// Takes an address from the bridge. Not having it is fine.
pub async fn remove_address(nl: &Netlink, bridge: &str, cidr: Cidr) -> Result<(), NetError> {
    match nl.find_link(bridge).await? {
        Some(link) => nl.remove_address(&link, cidr).await,
        None => Ok(()),
    }
}

/// Makes the rules as they should be for all that is exposed.
///
/// # Errors
/// If `nft` is missing or refuses; the rules are then as they were.
pub async fn apply(ns: &Netns, bridges: &Bridges, exposed: &[Exposed]) -> Result<(), NetError> {
    let subnets = subnets(exposed);
    if subnets.is_empty() {
        return clear(ns).await;
    }
    nft::run(ns, script(bridges, &subnets)?).await?;
    match forward_drops(ns).await {
        Ok(true) => accept_forwarded(ns, bridges, &subnets).await,
        Ok(false) => Ok(()),
        // Whoever has no iptables has no firewall made with it.
        Err(_) => Ok(()),
    }
}

/// Removes all rules of ours.
///
/// # Errors
/// If the kernel refuses.
pub async fn clear(ns: &Netns) -> Result<(), NetError> {
    let removed = match nft::run(ns, nft::without(TABLE)).await {
        // Without it there can be no rules.
        Err(NetError::NoProgram(_)) => Ok(()),
        other => other,
    };
    let jump = ["-w", "-D", "FORWARD", "-j", CHAIN];
    if nft::call(ns, "iptables", &jump, String::new()).await.is_ok() {
        let chain = format!("*filter\n:{CHAIN} - [0:0]\n-X {CHAIN}\nCOMMIT\n");
        nft::call(ns, "iptables-restore", &["-w", "--noflush"], chain).await?;
    }
    removed
}

/// Each subnet once: is it to be masqueraded? One address that asks for it decides for all of its subnet.
fn subnets(exposed: &[Exposed]) -> BTreeMap<String, bool> {
    let mut subnets = BTreeMap::new();
    for one in exposed {
        *subnets.entry(one.cidr.network().to_string()).or_default() |= one.masquerade;
    }
    subnets
}

fn script(bridges: &Bridges, subnets: &BTreeMap<String, bool>) -> Result<String, NetError> {
    let mut text = nft::without(TABLE);
    text += &format!(
        "table ip {TABLE} {{\nchain forward {{\ntype filter hook forward priority 0; policy accept;\n"
    );
    if bridges.docker != bridges.weave && !bridges.docker.is_empty() {
        // Containers reach each other over weave, not through the host's address on it.
        for name in [&bridges.docker, &bridges.weave] {
            if !nft::is_plain(name) {
                return Err(NetError::BadName(name.clone()));
            }
        }
        let _ = writeln!(
            text,
            "iifname \"{}\" oifname \"{}\" drop",
            bridges.docker, bridges.weave
        );
    }
    text += "}\nchain postrouting {\ntype nat hook postrouting priority 100; policy accept;\n";
    for net in subnets
        .iter()
        .filter(|(_, masquerade)| **masquerade)
        .map(|(net, _)| net)
    {
        let _ = writeln!(text, "ip saddr {net} ip daddr 224.0.0.0/4 return");
        let _ = writeln!(text, "ip daddr {net} ip saddr != {net} masquerade");
        let _ = writeln!(text, "ip saddr {net} ip daddr != {net} masquerade");
    }
    text += "}\n}\n";
    Ok(text)
}

/// Has anybody given iptables a reason to drop what is forwarded?
async fn forward_drops(ns: &Netns) -> Result<bool, NetError> {
    let listed = nft::call(ns, "iptables", &["-w", "-S", "FORWARD"], String::new()).await?;
    let harmless = |line: &str| line == "-P FORWARD ACCEPT" || line == format!("-A FORWARD -j {CHAIN}");
    Ok(!listed.lines().all(harmless))
}

async fn accept_forwarded(
    ns: &Netns,
    bridges: &Bridges,
    subnets: &BTreeMap<String, bool>,
) -> Result<(), NetError> {
    let weave = &bridges.weave;
    if !nft::is_plain(weave) {
        return Err(NetError::BadName(weave.clone()));
    }
    let mut text = format!("*filter\n:{CHAIN} - [0:0]\n");
    let mut rule = |what: &str| {
        let _ = writeln!(text, "-A {CHAIN} {what} -j ACCEPT");
    };
    rule(&format!("-i {weave} -o {weave}"));
    rule(&format!("-i {weave} ! -o {weave}"));
    rule(&format!("-o {weave} -m conntrack --ctstate RELATED,ESTABLISHED"));
    for net in subnets.keys() {
        rule(&format!("-o {weave} -d {net}"));
    }
    text += "COMMIT\n";
    nft::call(ns, "iptables-restore", &["-w", "--noflush"], text).await?;
    let jump = |action| ["-w", action, "FORWARD", "-j", CHAIN];
    if nft::call(ns, "iptables", &jump("-C"), String::new())
        .await
        .is_err()
    {
        nft::call(ns, "iptables", &jump("-I"), String::new()).await?;
    }
    Ok(())
}

/// What is exposed when a daemon starts. While the bridge stands, it tells (somebody may have taken an address
/// away); what masquerading was asked for, only we have kept. A bridge that is new gets back what it had.
#[must_use]
pub fn at_start(kept: &[Exposed], on_bridge: Option<&[Cidr]>) -> Vec<Exposed> {
    let Some(on_bridge) = on_bridge else {
        return kept.to_vec();
    };
    let one = |cidr: &Cidr| Exposed {
        cidr: *cidr,
        masquerade: kept.iter().find(|k| k.cidr == *cidr).is_none_or(|k| k.masquerade),
    };
    on_bridge.iter().map(one).collect()
}

/// The address of ours that somebody in one of these subnets can reach.
#[must_use]
pub fn reachable_from(exposed: &[Cidr], subnets: &[Cidr]) -> Option<Ipv4Addr> {
    let same = |e: &&Cidr| subnets.iter().any(|s| s.network() == e.network());
    exposed.iter().find(same).map(|e| e.addr.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::net::testing::{ip, new_host};

    fn exposed(cidr: &str, masquerade: bool) -> Exposed {
        Exposed {
            cidr: cidr.parse().unwrap(),
            masquerade,
        }
    }

    fn bridges() -> Bridges {
        Bridges {
            weave: "weave".to_owned(),
            docker: "docker0".to_owned(),
        }
    }

    async fn list(ns: &Netns) -> String {
        nft::call(ns, "nft", &["list", "ruleset"], String::new())
            .await
            .unwrap()
    }

    fn has_programs() -> bool {
        let found = ["nft", "iptables"].map(|p| std::process::Command::new(p).arg("-V").output().is_ok());
        if found != [true, true] {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "skipped: nft or iptables is missing");
        }
        found == [true, true]
    }

    #[tokio::test]
    async fn rules_follow_the_list_and_leave_others_alone() {
        let Some(nl) = new_host().await else { return };
        if !has_programs() {
            return;
        }
        let ns = nl.ns();
        let foreign = "table ip foreign {\n\tchain c {\n\t\tip saddr 10.32.0.0/12 accept\n\t}\n}\n";
        nft::run(ns, foreign.to_owned()).await.unwrap();
        let all = [
            exposed("10.32.0.5/12", true),
            exposed("10.32.0.6/12", false),
            exposed("10.99.0.1/24", false),
        ];
        for _ in 0..2 {
            apply(ns, &bridges(), &all).await.unwrap();
            let rules = list(ns).await;
            assert_eq!(rules.matches("masquerade").count(), 2, "{rules}");
            for rule in [
                "iifname \"docker0\" oifname \"weave\" drop",
                "ip saddr 10.32.0.0/12 ip daddr 224.0.0.0/4 return",
                "ip daddr 10.32.0.0/12 ip saddr != 10.32.0.0/12 masquerade",
                "ip saddr 10.32.0.0/12 ip daddr != 10.32.0.0/12 masquerade",
            ] {
                assert_eq!(rules.matches(rule).count(), 1, "{rule} in {rules}");
            }
            assert!(!rules.contains("10.99.0.0/24"), "{rules}");
        }
        // One of two in a subnet goes: the subnet's rules go only if the other does not want them.
        apply(ns, &bridges(), &all[..1]).await.unwrap();
        assert_eq!(list(ns).await.matches("masquerade").count(), 2);
        apply(ns, &bridges(), &[]).await.unwrap();
        assert_eq!(list(ns).await, foreign);
        clear(ns).await.unwrap();
    }

    #[tokio::test]
    async fn a_firewall_that_drops_is_told_what_to_accept() {
        let Some(nl) = new_host().await else { return };
        if !has_programs() {
            return;
        }
        let ns = nl.ns();
        let docker = "*filter\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n-A FORWARD -j DOCKER\nCOMMIT\n";
        nft::call(ns, "iptables-restore", &["-w"], docker.to_owned())
            .await
            .unwrap();
        let listed = || nft::call(ns, "iptables", &["-w", "-S"], String::new());
        let before = listed().await.unwrap();
        for addresses in [&["10.32.0.5/12"][..], &["10.32.0.5/12", "10.99.0.1/24"]] {
            let all: Vec<Exposed> = addresses.iter().map(|a| exposed(a, true)).collect();
            apply(ns, &bridges(), &all).await.unwrap();
            let rules = listed().await.unwrap();
            let first = rules.lines().find(|l| l.starts_with("-A FORWARD")).unwrap();
            assert_eq!(first, "-A FORWARD -j WEAVE-FORWARD");
            assert_eq!(rules.matches("-j WEAVE-FORWARD").count(), 1, "{rules}");
            assert_eq!(
                rules.matches("-A WEAVE-FORWARD -d").count(),
                addresses.len(),
                "{rules}"
            );
        }
        apply(ns, &bridges(), &[]).await.unwrap();
        assert_eq!(listed().await.unwrap(), before);
    }

    #[tokio::test]
    async fn addresses_of_the_bridge() {
        let Some(nl) = new_host().await else { return };
        let cidr = "10.32.0.5/12".parse().unwrap();
        let missing = add_address(&nl, "weave", cidr).await.unwrap_err();
        assert!(matches!(missing, NetError::NoBridge(_)));
        remove_address(&nl, "weave", cidr).await.unwrap();
        ip(nl.ns(), "link add weave type bridge").await;
        ip(nl.ns(), "link set weave up").await;
        for _ in 0..2 {
            add_address(&nl, "weave", cidr).await.unwrap();
        }
        assert!(ip(nl.ns(), "addr show weave").await.contains("10.32.0.5/12"));
        for _ in 0..2 {
            remove_address(&nl, "weave", cidr).await.unwrap();
        }
        assert!(!ip(nl.ns(), "addr show weave").await.contains("10.32.0.5"));
    }

    #[test]
    fn after_a_restart() {
        let kept = [exposed("10.32.0.5/12", false), exposed("10.99.0.1/24", true)];
        assert_eq!(at_start(&kept, None), kept, "a new bridge");
        let on_bridge = ["10.32.0.5/12", "10.77.0.1/24"].map(|c| c.parse().unwrap());
        assert_eq!(
            at_start(&kept, Some(&on_bridge)),
            [exposed("10.32.0.5/12", false), exposed("10.77.0.1/24", true)]
        );
    }

    #[test]
    fn from_a_containers_subnet() {
        let cidrs = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<Cidr>>();
        let exposed = cidrs(&["10.32.0.5/12", "10.99.0.1/24"]);
        let address = reachable_from(&exposed, &cidrs(&["10.99.0.7/24"]));
        assert_eq!(address, Some(Ipv4Addr::new(10, 99, 0, 1)));
        assert_eq!(reachable_from(&exposed, &cidrs(&["10.99.0.7/16"])), None);
    }
}
