//! Our daemons beside peers that are not ours: the original's mesh library, as Debian packages it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_ctl::ipam::message::State;
use weave_tests::lab::{Host, Lab, Options, Plan};
use weave_tests::mesh_peer::{MeshPeer, Status, established};
use weave_tests::process::{LIMIT, wait_for};

/// What our daemon on `host` thinks of the network.
fn ours(host: &Host) -> Result<Status> {
    let report: serde_json::Value = serde_json::from_str(&host.weave(&["report"])?.ok()?)?;
    let router = report.get("Router").context("no Router in the report")?;
    Ok(serde_json::from_value(router.clone())?)
}

fn wait_ours(host: &Host, what: &str, holds: impl Fn(&Status) -> bool) -> Result<Status> {
    wait_for(&format!("{what}, on {}", host.name()), LIMIT, || {
        let status = ours(host)?;
        ensure!(holds(&status), "{status:?}");
        Ok(Some(status))
    })
}

/// All these peers are there, and each is connected to as many others, as far as both ends know.
fn complete(status: &Status, peers: usize, connections: usize) -> bool {
    let whole = status
        .peers
        .iter()
        .filter(|peer| established(peer) == connections);
    status.peers.len() == peers && whole.count() == peers
}

/// First addresses and owners of the ring that a host's daemon has.
fn ring_of(host: &Host) -> Result<BTreeSet<(String, String)>> {
    let report: serde_json::Value = serde_json::from_str(&host.weave(&["report"])?.ok()?)?;
    let entries = report
        .pointer("/IPAM/Entries")
        .and_then(serde_json::Value::as_array);
    let text = |entry: &serde_json::Value, key| Some(entry.get(key)?.as_str()?.to_owned());
    let entry = |entry| Some((text(entry, "Token")?, text(entry, "Peer")?));
    let ring: Option<_> = entries.context("no ring")?.iter().map(entry).collect();
    ring.context("entries without token or peer")
}

/// The same of a message that the third party has received from us.
fn ring_in(payload: &[u8]) -> Result<BTreeSet<(String, String)>> {
    let ring = State::decode(payload)?.ring.context("no ring in the message")?;
    let entries = ring.entries.iter();
    Ok(entries
        .map(|e| (Ipv4Addr::from(e.token).to_string(), e.peer.to_string()))
        .collect())
}

fn meets_us(lab: &Lab, sealed: bool) -> Result<()> {
    let [first, second, third] = lab.hosts() else {
        anyhow::bail!("three hosts")
    };
    let address = first.address().to_string();
    let mut args = vec!["-listen", "IPallocation"];
    if sealed {
        args.extend(["-password", "wombat"]);
    }
    args.push(&address);
    let mut guest = MeshPeer::start(third, &args)?;
    first.launch(&["--ipalloc-init=consensus=2"])?;
    second.launch(&["--ipalloc-init=consensus=2", &address])?;

    // Everybody sees the same; the second host and the guest have found each other by themselves.
    guest.wait("three peers in a full mesh", |s| complete(s, 3, 2))?;
    for host in [first, second] {
        wait_ours(host, "three peers in a full mesh", |s| complete(s, 3, 2))?;
        let overlay = if sealed { "encrypted sleeve" } else { "sleeve" };
        host.wait_connection_to(third, &["established", overlay, guest.name()])?;
        let page = host.weave(&["status", "peers"])?.ok()?;
        let titles: Vec<&str> = page.lines().filter(|line| !line.starts_with(' ')).collect();
        ensure!(
            titles.contains(&format!("{}(h3)", guest.name()).as_str()),
            "{page}"
        );
    }

    // It gets our ring, and what it gets is what we have.
    second.attached("c1")?;
    wait_for("our ring at the third party", LIMIT, || {
        let (heard, ring) = (guest.received("IPallocation", ""), ring_of(second)?);
        let latest = heard.iter().rev().find_map(|e| ring_in(&e.payload()).ok());
        ensure!(latest.as_ref() == Some(&ring), "{latest:?} is not {ring:?}");
        Ok(Some(()))
    })?;
    // None of our messages was beyond it.
    let status = guest.status()?;
    ensure!(complete(&status, 3, 2), "{status:?}");

    let name = guest.name().to_owned();
    guest.quit()?;
    for host in [first, second] {
        wait_ours(host, "the peer that has left to be forgotten", |s| {
            s.peer(&name).is_none()
        })?;
    }
    Ok(())
}

#[test]
fn it_meets_us_in_clear() {
    Plan::mesh(3).test("third-clear", |lab| meets_us(lab, false));
}

#[test]
fn it_meets_us_sealed() {
    let plan = Plan::mesh(3).options(Options::new().password("wombat"));
    plan.test("third-sealed", |lab| meets_us(lab, true));
}

#[test]
fn another_password_or_none_is_refused_at_both_ends() {
    let plan = Plan::mesh(3).options(Options::new().password("wombat"));
    plan.test("third-refused", |lab| {
        let [host, wrong, none] = lab.hosts() else {
            anyhow::bail!("three hosts")
        };
        host.launch(&[])?;
        let address = host.address().to_string();
        for (stranger, password, reason) in [
            (wrong, vec!["-password", "numbat"], "has another password"),
            (none, vec![], "peer requested an unencrypted connection"),
        ] {
            let mut guest = MeshPeer::start(stranger, &password)?;
            let name = guest.name().to_owned();
            // We dial, and are told why not …
            host.weave(&["connect", &stranger.address().to_string()])?.ok()?;
            wait_for("the reason in status connections", LIMIT, || {
                let page = host.weave(&["status", "connections"])?.ok()?;
                let line = page.lines().find(|l| l.contains(&stranger.address().to_string()));
                ensure!(line.is_some_and(|l| l.contains(reason)), "{page}");
                Ok(Some(()))
            })?;
            // … it dials, and is refused.
            guest.tell(&format!("connect {address}"))?;
            let refused = |s: &Status| {
                let attempts = s.connections.as_deref().unwrap_or_default();
                attempts
                    .iter()
                    .any(|a| ["failed", "retrying"].contains(&a.state.as_str()))
            };
            let status = guest.wait("the refusal", refused)?;
            ensure!(status.peers.len() == 1, "{status:?}");
            let status = ours(host)?;
            ensure!(status.peer(&name).is_none(), "{status:?}");
        }
        Ok(())
    });
}

#[test]
fn a_restarted_peer_overtakes_what_is_known_of_it() {
    Plan::mesh(3).test("third-restart", |lab| {
        let [first, second, third] = lab.hosts() else {
            anyhow::bail!("three hosts")
        };
        let address = first.address().to_string();
        first.launch(&[])?;
        second.launch(&[&address])?;
        let mut guest = MeshPeer::start(third, &[&address])?;
        guest.wait("three peers in a full mesh", |s| complete(s, 3, 2))?;
        let name = guest.name().to_owned();
        let uid = |s: &Status| s.peer(&name).map(|p| p.uid);
        let before = wait_ours(second, "the guest", |s| complete(s, 3, 2)).map(|s| uid(&s))?;
        // It dies unheard: nobody is told that its connections are gone.
        lab.link(third, false)?;
        drop(guest);
        lab.link(third, true)?;
        let mut guest = MeshPeer::start(third, &[&address])?;
        let now = uid(&guest.status()?);
        ensure!(now != before, "the same UID twice");
        guest.wait("three peers in a full mesh again", |s| complete(s, 3, 2))?;
        for host in [first, second] {
            wait_ours(host, "the restarted guest", |s| {
                uid(s) == now && complete(s, 3, 2)
            })?;
        }
        Ok(())
    });
}

#[test]
fn we_relay_a_channel_that_we_do_not_know() {
    // Third parties at both ends, ours between them.
    Plan::line(4).test("third-relay", |lab| {
        let [one, two, three, four] = lab.hosts() else {
            anyhow::bail!("four hosts")
        };
        two.launch(&[])?;
        three.launch(&[&two.address_towards(three)?.to_string()])?;
        let mut right = MeshPeer::start(
            four,
            &["-words", "right", &three.address_towards(four)?.to_string()],
        )?;
        let everybody = |s: &Status| s.peers.len() >= 3 && s.peers.iter().all(|p| established(p) > 0);
        right.wait("the two of ours", everybody)?;
        // Its words leave it when it meets its neighbour.
        let mut left = MeshPeer::start(one, &["-words", "left", &two.address_towards(one)?.to_string()])?;
        for (peer, from) in [(&mut left, four), (&mut right, one)] {
            peer.wait("all four", |s| {
                s.peers.len() == 4 && everybody(s) && s.peer(&from.peer_name()).is_some()
            })?;
        }
        wait_for("gossip through two of ours", LIMIT, || {
            let heard = right.received("test", "gossip");
            Ok(heard.iter().any(|e| e.text() == "left").then_some(()))
        })?;

        left.tell(&format!("unicast {} to you", right.name()))?;
        left.tell("broadcast to all")?;
        right.tell(&format!("unicast {} and back", left.name()))?;
        wait_for("messages through two of ours", LIMIT, || {
            let there = |how, peer: &MeshPeer, source: &MeshPeer, text| {
                let messages = peer.received("test", how);
                let [message] = messages.as_slice() else {
                    anyhow::bail!("{how}: {messages:?}")
                };
                ensure!(
                    message.source == source.name() && message.text() == text,
                    "{message:?}"
                );
                Ok(())
            };
            there("unicast", &right, &left, "to you")?;
            there("broadcast", &right, &left, "to all")?;
            there("unicast", &left, &right, "and back")?;
            Ok(Some(()))
        })
    });
}

#[test]
fn it_relays_our_address_allocation() {
    // Ours at both ends, and between them somebody who knows nothing of address allocation.
    Plan::line(3).test("third-between", |lab| {
        let [left, middle, right] = lab.hosts() else {
            anyhow::bail!("three hosts")
        };
        let _guest = MeshPeer::start(middle, &[])?;
        let mode = "--ipalloc-init=consensus=2";
        for host in [left, right] {
            host.launch(&[mode, &middle.address_towards(host)?.to_string()])?;
        }
        // A vote, a ring, and a request for space, all relayed.
        let (_, one) = left.attached("c1")?;
        let (_, two) = right.attached("c2")?;
        ensure!(one != two, "both have {one}");
        wait_for("the same ring on both sides", Duration::from_secs(90), || {
            let (one, two) = (ring_of(left)?, ring_of(right)?);
            ensure!(one == two, "{one:?} is not {two:?}");
            let owners: BTreeSet<_> = one.iter().map(|(_, owner)| owner).collect();
            ensure!(owners.len() == 2, "{one:?}");
            Ok(Some(()))
        })
    });
}
