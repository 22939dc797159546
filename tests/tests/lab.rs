//! The lab itself: hosts reach whom they should, and nothing is left behind.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
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
