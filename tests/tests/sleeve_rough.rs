//! Sleeve where the network is bad: narrow, lossy, changing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_tests::ends::{
    End, attach_all, both_ways, connection_address, everybody_reaches_everybody, outer, wait_large_ping,
};
use weave_tests::impair::{Impairments, Relay};
use weave_tests::lab::{Lab, Options, Plan, netns};
use weave_tests::soak::Soak;
use weave_tests::traffic::bulk_tcp_amid;

const PASSWORD: &str = "correct horse battery staple";
const PLAIN: &str = "established sleeve";
const SEALED: &str = "established encrypted sleeve";

/// Names of labs, options, and what `status connections` then says: without a password and with one.
fn plain_and_sealed(name: &str) -> [(String, Options, &'static str); 2] {
    let plain = Options::new().no_fastdp();
    [
        (name.to_owned(), plain.clone(), PLAIN),
        (format!("{name}-sealed"), plain.password(PASSWORD), SEALED),
    ]
}

/// Launched, attached, and on sleeve.
fn ready(lab: &Lab, state: &str) -> Result<Vec<End>> {
    lab.launch_all(&[])?;
    let ends = attach_all(lab)?;
    everybody_reaches_everybody(&ends)?;
    for host in lab.hosts() {
        host.wait_connections(1, state)?;
    }
    Ok(ends)
}

#[test]
fn packets_over_700_bytes_are_dropped() {
    // With the fast path on offer: it does not fit, sleeve does.
    for (name, options, state) in [
        ("narrow", Options::new(), PLAIN),
        ("narrow-sealed", Options::new().password(PASSWORD), SEALED),
    ] {
        Plan::mesh(2).options(options).test(name, |lab: &Lab| {
            let block = lab.drop_longer_than(700)?;
            let ends = ready(lab, state)?;
            let (one, two) = outer(&ends)?;
            wait_large_ping(&one.0, two.1)?;
            wait_large_ping(&two.0, one.1)?;
            ensure!(block.dropped()? > 0, "nothing was too long");
            both_ways(one, two, 1 << 20)
        });
    }
}

#[test]
fn the_path_shrinks_during_a_transfer_and_nobody_tells() {
    for (name, options, state) in plain_and_sealed("shrink") {
        Plan::mesh(2).options(options).test(&name, |lab: &Lab| {
            lab.like_wires()?;
            let ends = ready(lab, state)?;
            let (one, two) = outer(&ends)?;
            both_ways(one, two, 1 << 20)?;
            let mut block = None;
            bulk_tcp_amid(one.0.netns(), two.0.netns(), two.1, 16 << 20, || {
                block = Some(lab.drop_longer_than(1300)?);
                Ok(())
            })?;
            wait_large_ping(&one.0, two.1)?;
            let dropped = block.context("it was not called")?.dropped()?;
            ensure!(dropped > 0, "nothing was too long");
            Ok(())
        });
    }
}

#[test]
fn the_link_shrinks_during_a_transfer() {
    for (name, options, state) in plain_and_sealed("shrink-link") {
        Plan::mesh(2).options(options).test(&name, |lab: &Lab| {
            let ends = ready(lab, state)?;
            let (one, two) = outer(&ends)?;
            both_ways(one, two, 1 << 20)?;
            bulk_tcp_amid(one.0.netns(), two.0.netns(), two.1, 16 << 20, || {
                for host in lab.hosts() {
                    netns::ip(&["-n", host.netns(), "link", "set", "eth0", "mtu", "1300"])?;
                }
                Ok(())
            })?;
            wait_large_ping(&one.0, two.1)?;
            both_ways(one, two, 1 << 20)
        });
    }
}

#[test]
fn fragments_are_dropped() {
    for (name, options, state) in plain_and_sealed("fragments") {
        Plan::mesh(2).options(options).test(&name, |lab: &Lab| {
            let block = lab.drop_fragments()?;
            let ends = ready(lab, state)?;
            let (one, two) = outer(&ends)?;
            wait_large_ping(&one.0, two.1)?;
            wait_large_ping(&two.0, one.1)?;
            both_ways(one, two, 4 << 20)?;
            ensure!(block.dropped()? > 0, "there were no fragments");
            Ok(())
        });
    }
}

#[test]
fn an_underlay_address_changes() {
    for (name, options, state) in plain_and_sealed("roam") {
        Plan::mesh(2).options(options).test(&name, |lab: &Lab| {
            let ends = ready(lab, state)?;
            let (first, second) = (lab.host(1)?, lab.host(2)?);
            netns::ip(&["-n", second.netns(), "addr", "flush", "dev", "eth0"])?;
            netns::ip(&[
                "-n",
                second.netns(),
                "addr",
                "add",
                "172.30.0.102/24",
                "dev",
                "eth0",
            ])?;
            first.wait_connection_to(second, &["172.30.0.102:", state])?;
            everybody_reaches_everybody(&ends)?;
            let (one, two) = outer(&ends)?;
            both_ways(one, two, 1 << 20)
        });
    }
}

#[test]
fn loss_reordering_and_duplicates() {
    for (name, options, state) in plain_and_sealed("rough") {
        Plan::mesh(2).options(options).test(&name, |lab: &Lab| {
            let impairments = Impairments {
                loss: 5,
                reorder: 10,
                duplicate: 5,
                seed: 11,
            };
            let relay = Relay::start(lab, lab.host(1)?, impairments)?;
            let ends = ready(lab, state)?;
            let (first, second) = (lab.host(1)?, lab.host(2)?);
            let connection = connection_address(first, second)?;
            let (one, two) = outer(&ends)?;
            both_ways(one, two, 4 << 20)?;
            wait_large_ping(&one.0, two.1)?;
            let now = connection_address(first, second)?;
            ensure!(
                now == connection,
                "the connection {connection} was made anew: {now}"
            );
            let counts = relay.counts();
            ensure!(
                counts.lost > 0 && counts.reordered > 0 && counts.duplicated > 0,
                "the network was good: {counts:?}"
            );
            for host in lab.hosts() {
                let log = host.log();
                // Late and doubled packets are dropped as such; they open all the same.
                ensure!(!log.contains("decryption failed"), "{}: {log}", host.name());
                ensure!(!log.contains("Failed to decode"), "{}: {log}", host.name());
            }
            Ok(())
        });
    }
}

#[test]
fn a_short_soak() {
    // Side by side, as the long one (cargo xtask soak).
    std::thread::scope(|scope| {
        for (name, sealed) in [("soak", false), ("soak-sealed", true)] {
            scope.spawn(move || {
                let mut soak = Soak::new(sealed, Duration::from_secs(15));
                // Buffers are still filling.
                soak.growth = 16.0;
                soak.plan(Plan::mesh(2))
                    .test(name, |lab: &Lab| soak.run(lab).map(drop));
            });
        }
    });
}
