//! The lab itself: hosts reach whom they should, and nothing is left behind.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use weave_tests::impair::{Impairments, Relay};
use weave_tests::lab::firewall::{SLEEVE_PORT, VXLAN_PORT};
use weave_tests::lab::{Host, Lab, Plan, netns};
use weave_tests::process::{LIMIT, wait_for};
use weave_tests::traffic::bulk_tcp;

fn reaches(from: &Host, address: Ipv4Addr) -> Result<bool> {
    Ok(from
        .exec(&["ping", "-n", "-c", "1", "-W", "1", &address.to_string()])?
        .success())
}

/// Waits until one ping is answered: on a busy machine the first may come too late.
fn comes_to_reach(from: &Host, address: Ipv4Addr) -> Result<()> {
    wait_for(&format!("an answer from {address}"), LIMIT, || {
        Ok(reaches(from, address)?.then_some(()))
    })
}

#[test]
fn hosts_on_one_segment_reach_each_other() {
    Plan::mesh(3).test("lab-mesh", |lab: &Lab| {
        comes_to_reach(lab.host(1)?, lab.host(3)?.address())?;
        ensure!(lab.host(4).is_err(), "there is no fourth host");
        bulk_tcp(
            lab.host(1)?.netns(),
            lab.host(2)?.netns(),
            lab.host(2)?.address(),
            8 << 20,
        )
    });
}

#[test]
fn hosts_in_a_line_reach_their_neighbours_only() {
    Plan::line(3).test("lab-line", |lab: &Lab| {
        let (first, middle, last) = (lab.host(1)?, lab.host(2)?, lab.host(3)?);
        comes_to_reach(first, middle.address_towards(first)?)?;
        comes_to_reach(last, middle.address_towards(last)?)?;
        ensure!(first.address_towards(last).is_err(), "h1 and h3 share a segment");
        // Even with routes at both ends.
        first
            .exec(&["ip", "route", "add", "172.30.1.0/24", "via", "172.30.0.2"])?
            .ok()?;
        last.exec(&["ip", "route", "add", "172.30.0.0/24", "via", "172.30.1.2"])?
            .ok()?;
        ensure!(!reaches(first, last.address())?, "h2 forwards");
        Ok(())
    });
}

#[test]
fn a_cut_link_carries_nothing() {
    Plan::mesh(2).test("lab-link", |lab: &Lab| {
        lab.link(lab.host(2)?, false)?;
        ensure!(
            !reaches(lab.host(1)?, lab.host(2)?.address())?,
            "the link is not cut"
        );
        lab.link(lab.host(2)?, true)?;
        comes_to_reach(lab.host(1)?, lab.host(2)?.address())
    });
}

#[test]
fn a_removed_lab_takes_its_processes_along() {
    Plan::mesh(1).test("lab-outer", |_| {
        let inner = Plan::mesh(1).build("lab-inner")?;
        let host = inner.host(1)?.clone();
        // Leaves its parent and its session, as a daemon does.
        host.exec(&["sh", "-c", "setsid sleep 1000 & echo started"])?
            .ok()?;
        let pids = netns::pids(host.netns());
        ensure!(pids.len() == 1, "running: {pids:?}");
        drop(inner);
        ensure!(
            !netns::path(host.netns()).exists() && !host.run_dir().exists(),
            "something is left"
        );
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pids.first().unwrap_or(&0)));
        ensure!(
            state.is_err() || state.is_ok_and(|s| s.contains(") Z ")),
            "the process lives on"
        );
        Ok(())
    });
}

/// Does a UDP packet of `length` bytes get to `port`? Sent until it does, or a few times in vain.
fn udp_reaches(from: &Host, to: &Host, port: u16, length: usize) -> Result<bool> {
    let receiver = netns::inside(to.netns(), || Ok(UdpSocket::bind((to.address(), port))?))?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    let sender = netns::inside(from.netns(), || Ok(UdpSocket::bind((from.address(), 0))?))?;
    let mut buffer = [0; 65536];
    for _ in 0..5 {
        sender.send_to(&vec![0; length], SocketAddr::from((to.address(), port)))?;
        if receiver
            .recv(&mut buffer)
            .is_ok_and(|received| received == length)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn firewalls_block_what_they_say_until_they_are_lifted() {
    Plan::mesh(3).test("lab-firewall", |lab: &Lab| {
        let [first, second, third] = lab.hosts() else {
            anyhow::bail!("three hosts")
        };
        comes_to_reach(first, second.address())?;
        let block = lab.block_vxlan(first, second)?;
        ensure!(!udp_reaches(first, second, VXLAN_PORT, 10)?, "there");
        ensure!(!udp_reaches(second, first, VXLAN_PORT, 10)?, "and back");
        ensure!(udp_reaches(first, third, VXLAN_PORT, 10)?, "another host");
        ensure!(udp_reaches(first, second, SLEEVE_PORT, 10)?, "another port");
        ensure!(block.dropped()? == 10, "{} dropped", block.dropped()?);
        let also = lab.block_sleeve(second, first)?;
        ensure!(!udp_reaches(first, second, SLEEVE_PORT, 10)?, "two blocks");
        block.lift()?;
        ensure!(udp_reaches(first, second, VXLAN_PORT, 10)?, "lifted");
        ensure!(!udp_reaches(first, second, SLEEVE_PORT, 10)?, "lifted alone");
        drop(also);

        let one_way = lab.block_one_way(first, second, SLEEVE_PORT)?;
        ensure!(!udp_reaches(first, second, SLEEVE_PORT, 10)?, "the one way");
        ensure!(udp_reaches(second, first, SLEEVE_PORT, 10)?, "the other way");
        drop(one_way);

        let all = lab.block_all(first, third)?;
        ensure!(!reaches(first, third.address())?, "it reaches the third");
        drop(all);
        comes_to_reach(first, third.address())
    });
}

#[test]
fn narrow_paths() {
    Plan::mesh(2).test("lab-narrow", |lab: &Lab| {
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        comes_to_reach(first, second.address())?;
        let block = lab.drop_longer_than(700)?;
        ensure!(udp_reaches(first, second, SLEEVE_PORT, 672)?, "700 bytes");
        ensure!(!udp_reaches(first, second, SLEEVE_PORT, 673)?, "701 bytes");
        ensure!(!udp_reaches(first, second, SLEEVE_PORT, 5000)?, "fragments");
        // Not as super-packets of the sender's stack, which would be dropped.
        bulk_tcp(first.netns(), second.netns(), second.address(), 1 << 20)?;
        block.lift()?;
        let fragments = lab.drop_fragments()?;
        ensure!(!udp_reaches(first, second, SLEEVE_PORT, 1473)?, "two fragments");
        ensure!(udp_reaches(first, second, SLEEVE_PORT, 1472)?, "no fragment");
        drop(fragments);
        ensure!(udp_reaches(first, second, SLEEVE_PORT, 60000)?, "lifted");
        Ok(())
    });
}

#[test]
fn a_bad_network_does_what_it_says() {
    Plan::mesh(2).test("lab-relay", |lab: &Lab| {
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        let impairments = Impairments {
            loss: 5,
            reorder: 10,
            duplicate: 5,
            seed: 7,
        };
        let relay = Relay::start(lab, first, impairments)?;
        comes_to_reach(first, second.address())?;
        let receiver = netns::inside(second.netns(), || {
            Ok(UdpSocket::bind((second.address(), SLEEVE_PORT))?)
        })?;
        receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
        let sender = netns::inside(first.netns(), || Ok(UdpSocket::bind((first.address(), 0))?))?;
        let target = SocketAddr::from((second.address(), SLEEVE_PORT));
        let mut numbers = Vec::new();
        let mut buffer = [0; 4];
        // In parts that fit the receiver's buffer.
        for part in 0..20u32 {
            for number in part * 100..(part + 1) * 100 {
                sender.send_to(&number.to_be_bytes(), target)?;
            }
            while receiver.recv(&mut buffer).is_ok() {
                numbers.push(u32::from_be_bytes(buffer));
            }
        }
        let mut distinct = numbers.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let (lost, doubled) = (2000 - distinct.len(), numbers.len() - distinct.len());
        let late = numbers
            .windows(2)
            .filter(|pair| pair.first() > pair.get(1))
            .count();
        let said = format!(
            "{lost} lost, {doubled} doubled, {late} late: {:?}",
            relay.counts()
        );
        ensure!((40..200).contains(&lost), "{said}");
        ensure!((40..200).contains(&doubled), "{said}");
        ensure!((50..400).contains(&late), "{said}");
        // TCP makes good for it; larger than any buffer on the way.
        bulk_tcp(first.netns(), second.netns(), second.address(), 4 << 20)?;
        bulk_tcp(second.netns(), first.netns(), first.address(), 4 << 20)?;
        drop(relay);
        comes_to_reach(first, second.address())
    });
}
