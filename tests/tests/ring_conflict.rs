//! Two clusters that began apart meet: nothing breaks, and one of them can take the other's address ring.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_tests::lab::{Host, Lab, Plan};
use weave_tests::process::wait_for;

const LIMIT: Duration = Duration::from_secs(120);

fn page(host: &Host, page: &str) -> Result<String> {
    host.weave(&["status", page])?.ok()
}

/// `POST /ipam/adopt`, by hand: no program for HTTP is needed on the host.
fn adopt(host: &Host) -> Result<String> {
    let request = "POST /ipam/adopt HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/6784; printf '{request}' >&3; cat <&3");
    let answer = host.exec(&["bash", "-c", &script])?.ok()?;
    ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    Ok(answer)
}

#[test]
fn separately_seeded_hosts_stay_connected_and_become_one() {
    Plan::mesh(2).test("ring-conflict", |lab: &Lab| {
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        for host in [first, second] {
            host.launch(&["--ipalloc-init", &format!("seed={}", host.peer_name())])?;
        }
        let ((one, _), two) = (first.attached("c1")?, second.container("c2")?);
        // Another address than the one that the first host has handed out.
        let other: Ipv4Addr = "10.33.0.7".parse()?;
        second.attach(&two, &[&format!("{other}/12")])?;
        second.weave(&["connect", &first.address().to_string()])?.ok()?;
        for host in [first, second] {
            wait_for("the conflict in status ipam", LIMIT, || {
                let text = page(host, "ipam")?;
                let told = text.contains("conflict: IP allocation was seeded by different peers");
                Ok(told.then_some(()))
            })?;
        }
        // It costs no connection, and data flows.
        first.wait_connections(1, "established fastdp")?;
        one.wait_ping(other)?;
        let closed = |host: &Host| host.log().contains(" closed: IP allocation");
        ensure!(
            !closed(first) && !closed(second),
            "a connection was closed for it"
        );

        let answer = adopt(second)?;
        ensure!(
            answer.contains(&format!("{other}/12")) && answer.contains("kept"),
            "{answer}"
        );
        ensure!(
            !answer.contains("lost") && !answer.contains("waiting"),
            "{answer}"
        );
        for host in [first, second] {
            wait_for("one ring", LIMIT, || {
                let text = page(host, "ipam")?;
                let lines = text.lines().filter(|l| l.contains("% of total")).count();
                Ok((lines == 2 && !text.contains("conflict")).then_some(()))
            })?;
        }
        one.wait_ping(other)?;
        // The whole range is shared from now on.
        let (three, third) = second
            .attached("c3")
            .context("an address out of the common ring")?;
        three.wait_ping(other)?;
        one.wait_ping(third)
    });
}
