//! Containers on different hosts reach each other.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use weave_tests::ends::{
    attach_all, both_ways, broadcast_reaches_all, everybody_reaches_everybody, ping_size,
};
use weave_tests::lab::{Container, Host, Lab, Plan, netns};
use weave_tests::process::{LIMIT, wait_for};
use weave_tests::traffic::bulk_tcp;

const BULK: usize = 64 << 20;

#[test]
fn two_hosts() {
    Plan::mesh(2).test("two-hosts", |lab: &Lab| {
        lab.launch_all(&[])?;
        let ends = attach_all(lab)?;
        everybody_reaches_everybody(&ends)?;
        for host in lab.hosts() {
            host.wait_connections(1, "established fastdp")?;
        }
        let [one, two] = ends.as_slice() else {
            anyhow::bail!("two hosts")
        };
        both_ways(one, two, BULK)?;

        let peers = lab.host(1)?.weave(&["status", "peers"])?.ok()?;
        for host in lab.hosts() {
            let expected = format!("{}({})", host.peer_name(), host.name());
            ensure!(peers.contains(&expected), "no {expected} in\n{peers}");
        }
        Ok(())
    });
}

#[test]
fn two_containers_on_one_host() {
    Plan::mesh(1).test("one-host", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&[])?;
        let (one, two) = (host.attached("c1")?, host.attached("c2")?);
        ensure!(one.1 != two.1, "both got {}", one.1);
        one.0.wait_ping(two.1)?;
        both_ways(&one, &two, BULK)
    });
}

#[test]
fn five_hosts_find_each_other_and_share_no_address() {
    Plan::mesh(5).test("five", |lab: &Lab| {
        // Each is told of one other only.
        lab.launch_all(&[])?;
        let ends = attach_all(lab)?;
        let distinct: BTreeSet<Ipv4Addr> = ends.iter().map(|(_, address)| *address).collect();
        ensure!(distinct.len() == 5, "addresses given out twice: {ends:?}");
        for host in lab.hosts() {
            host.wait_connections(4, "established fastdp")?;
        }
        everybody_reaches_everybody(&ends)
    });
}

#[test]
fn three_in_a_line_are_relayed_by_the_middle_one() {
    Plan::line(3).test("line", |lab: &Lab| {
        lab.launch_all(&[])?;
        let ends = attach_all(lab)?;
        everybody_reaches_everybody(&ends)?;
        lab.host(1)?.wait_connections(1, "established fastdp")?;
        lab.host(2)?.wait_connections(2, "established fastdp")?;
        let [first, _, last] = ends.as_slice() else {
            anyhow::bail!("three hosts")
        };
        both_ways(first, last, BULK)?;
        broadcast_reaches_all(&ends, 0)
    });
}

#[test]
fn xdp_changes_nothing_that_containers_notice() {
    for mode in ["generic", "native"] {
        Plan::line(3).test(&format!("xdp-{mode}"), |lab: &Lab| {
            lab.launch_all(&[&format!("--xdp={mode}")])?;
            let ends = attach_all(lab)?;
            everybody_reaches_everybody(&ends)?;
            let [first, middle, last] = ends.as_slice() else {
                anyhow::bail!("three hosts")
            };
            bulk_tcp(first.0.netns(), middle.0.netns(), middle.1, 8 << 20)?;
            bulk_tcp(first.0.netns(), last.0.netns(), last.1, 8 << 20)
        });
    }
}

#[test]
fn traffic_returns_when_a_cut_link_is_restored() {
    Plan::mesh(2).test("cut", |lab: &Lab| {
        lab.launch_all(&[])?;
        let ends = attach_all(lab)?;
        everybody_reaches_everybody(&ends)?;
        let [one, two] = ends.as_slice() else {
            anyhow::bail!("two hosts")
        };
        lab.link(lab.host(2)?, false)?;
        one.0.no_ping(two.1)?;
        lab.link(lab.host(2)?, true)?;
        everybody_reaches_everybody(&ends)
    });
}

fn mtu_of(container: &Container) -> Result<u32> {
    let link = netns::ip(&["-n", container.netns(), "-o", "link", "show", "ethwe"])?;
    let mtu = link.split(" mtu ").nth(1).and_then(|rest| rest.split(' ').next());
    mtu.and_then(|mtu| mtu.parse().ok())
        .with_context(|| format!("no MTU in {link}"))
}

#[test]
fn too_large_packets_are_refused_aloud() {
    Plan::mesh(2).test("mtu", |lab: &Lab| {
        lab.launch_all(&[])?;
        let ends = attach_all(lab)?;
        everybody_reaches_everybody(&ends)?;
        let [(one, _), (two, target)] = ends.as_slice() else {
            anyhow::bail!("two hosts")
        };
        let mtu = mtu_of(one)?;
        ensure!(
            (1300..1500).contains(&mtu),
            "an MTU of {mtu} for an underlay of 1500"
        );
        ping_size(one, *target, mtu, "do")?
            .ok()
            .context("the largest packet that fits")?;

        // A container that ignores the MTU it was given.
        netns::ip(&["-n", one.netns(), "link", "set", "ethwe", "mtu", "3000"])?;
        let refused = ping_size(one, *target, 2500, "do")?;
        ensure!(!refused.success(), "2500 bytes with DF got through");
        ensure!(
            refused.stdout.contains("Frag needed") || refused.stderr.contains("too long"),
            "{refused}"
        );
        ping_size(one, *target, 2500, "dont")?
            .ok()
            .context("without DF it is fragmented on the way")?;
        bulk_tcp(one.netns(), two.netns(), *target, 1 << 20).context("TCP learns the path's MTU")?;
        Ok(())
    });
}

#[test]
fn the_mtu_can_be_chosen_and_follows_the_underlay() {
    Plan::mesh(2).mtu(9000).test("jumbo", |lab: &Lab| {
        lab.launch_all(&[])?;
        let ends = attach_all(lab)?;
        everybody_reaches_everybody(&ends)?;
        let [one, two] = ends.as_slice() else {
            anyhow::bail!("two hosts")
        };
        let mtu = mtu_of(&one.0)?;
        ensure!(
            (8500..9000).contains(&mtu),
            "an MTU of {mtu} for an underlay of 9000"
        );
        ping_size(&one.0, two.1, mtu, "do")?.ok()?;
        both_ways(one, two, BULK)
    });
    Plan::mesh(1).test("mtu-chosen", |lab: &Lab| {
        let host: &Host = lab.host(1)?;
        host.launch(&["--mtu", "1200"])?;
        let (container, _) = host.attached("c")?;
        let mtu = mtu_of(&container)?;
        ensure!(mtu == 1200, "asked for 1200, got {mtu}");
        Ok(())
    });
}

#[test]
fn an_underlay_address_may_change() {
    Plan::mesh(2).test("readdress", |lab: &Lab| {
        lab.launch_all(&[])?;
        let ends = attach_all(lab)?;
        everybody_reaches_everybody(&ends)?;
        let host = lab.host(2)?;
        netns::ip(&["-n", host.netns(), "addr", "flush", "dev", "eth0"])?;
        let new = "172.30.0.102/24";
        netns::ip(&["-n", host.netns(), "addr", "add", new, "dev", "eth0"])?;
        wait_for("a connection from the new address", LIMIT, || {
            let status = lab.host(1)?.weave(&["status", "connections"])?;
            let found = status
                .stdout
                .lines()
                .any(|line| line.contains("172.30.0.102:") && line.contains("established fastdp"));
            Ok(found.then_some(()))
        })?;
        everybody_reaches_everybody(&ends)
    });
}
