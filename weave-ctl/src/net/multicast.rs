//! Inside a container: multicast is accepted only from its own weave subnets (control.md 4.5).
//!
//! An nftables table of our own per interface, `weave-IFNAME`, through the `nft` tool, which
//! replaces it in one transaction. Where the tool is missing nothing is filtered.

use std::fmt::Write as _;

use tracing::debug;

use super::{Netns, nft};
use crate::ipam::address::Cidr;

/// Accepts multicast that arrives on `ifname` from these subnets and drops the rest.
pub(super) async fn allow_only(ns: &Netns, ifname: &str, held: &[Cidr]) {
    if let Some(script) = script(ifname, held) {
        apply(ns, ifname, script).await;
    }
}

/// Removes the rules again.
pub(super) async fn forget(ns: &Netns, ifname: &str) {
    if let Some(table) = table(ifname) {
        apply(ns, ifname, nft::without(&table)).await;
    }
}

/// The table; `None` for names that nft could take for something else.
fn table(ifname: &str) -> Option<String> {
    nft::is_plain(ifname).then(|| format!("weave-{ifname}"))
}

fn script(ifname: &str, held: &[Cidr]) -> Option<String> {
    let table = table(ifname)?;
    let mut text = format!(
        "{}table ip {table} {{\n\
         chain input {{\ntype filter hook input priority 0; policy accept;\n",
        nft::without(&table)
    );
    let from = format!("iifname \"{ifname}\" ip daddr 224.0.0.0/4");
    for subnet in held.iter().map(|c| c.network()) {
        let _ = writeln!(text, "{from} ip saddr {subnet} accept");
    }
    let _ = writeln!(text, "{from} drop\n}}\n}}");
    Some(text)
}

async fn apply(ns: &Netns, ifname: &str, script: String) {
    if let Err(e) = nft::run(ns, script).await {
        debug!(
            ifname,
            "multicast from outside the container's subnets is not filtered: {e}"
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{self, Write as _};
    use std::process::Command;

    use super::*;
    use crate::net::testing::new_netns;

    #[test]
    fn names_that_could_end_the_string_are_left_alone() {
        assert!(script("e\" drop", &[]).is_none());
        assert!(script("eth0.1", &[]).is_some());
    }

    #[tokio::test]
    async fn rules_follow_the_subnets_and_go() {
        let Some(ns) = new_netns() else { return };
        if Command::new("nft").arg("-v").output().is_err() {
            let _ = writeln!(io::stderr(), "skipped: the nft tool is missing");
            return;
        }
        let list = || async {
            ns.run(|| Command::new("nft").args(["list", "ruleset"]).output().unwrap())
                .await
                .map(|out| String::from_utf8(out.stdout).unwrap())
                .unwrap()
        };
        // The second subnet lies inside the first: a set of intervals would refuse it.
        let (one, two) = ("10.32.0.5/12".parse().unwrap(), "10.33.0.5/24".parse().unwrap());
        allow_only(&ns, "ethwe", &[one, two]).await;
        let both = list().await;
        let accept = |net: &str| format!("ip daddr 224.0.0.0/4 ip saddr {net} accept");
        assert!(both.contains(&accept("10.32.0.0/12")), "{both}");
        assert!(both.contains(&accept("10.33.0.0/24")), "{both}");
        assert!(
            both.contains("iifname \"ethwe\" ip daddr 224.0.0.0/4 drop"),
            "{both}"
        );
        allow_only(&ns, "ethwe", &[one]).await;
        assert!(!list().await.contains("10.33.0.0/24"));
        forget(&ns, "ethwe").await;
        assert_eq!(list().await, "");
    }
}
