//! Joining, leaving, and sharing the address range.

use std::time::Duration;

use anyhow::{Result, ensure};
use weave_tests::lab::{Host, Lab, Plan};
use weave_tests::process::wait_for;

fn lines(host: &Host, page: &str) -> Result<Vec<String>> {
    let text = host.weave(&["status", page])?.ok()?;
    Ok(text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect())
}

#[test]
fn connect_replace_and_forget() {
    Plan::mesh(3).test("connect", |lab: &Lab| {
        let [first, second, third] = lab.hosts() else {
            anyhow::bail!("three hosts")
        };
        for host in lab.hosts() {
            host.launch(&["--no-discovery"])?;
        }
        let (two, three) = (second.address().to_string(), third.address().to_string());
        first.weave(&["connect", &two])?.ok()?;
        ensure!(
            lines(first, "targets")? == [two.clone()],
            "{:?}",
            lines(first, "targets")?
        );
        first.wait_connections(1, "established fastdp")?;
        second.wait_connections(1, "established fastdp")?;

        first.weave(&["connect", "--replace", &three])?.ok()?;
        ensure!(
            lines(first, "targets")? == [three.clone()],
            "{:?}",
            lines(first, "targets")?
        );
        third.wait_connections(1, "established fastdp")?;
        first.weave(&["forget", &three])?.ok()?;
        ensure!(
            lines(first, "targets")?.is_empty(),
            "{:?}",
            lines(first, "targets")?
        );
        // Unknown peers are no error; names that cannot be resolved are.
        first.weave(&["forget", "172.30.0.77"])?.ok()?;
        let message = first.weave(&["connect", "no.such.host.invalid"])?.fails_with(1)?;
        ensure!(message.contains("no.such.host.invalid"), "{message}");
        Ok(())
    });
}

#[test]
fn an_absent_peer_is_tried_until_it_is_there() {
    Plan::mesh(2).test("absent", |lab: &Lab| {
        let [first, second] = lab.hosts() else {
            anyhow::bail!("two hosts")
        };
        // Both hosts are there; on the second nobody listens yet.
        first.launch(&[&second.address().to_string()])?;
        let target = format!("-> {}:6783", second.address());
        wait_for(
            "the failed attempt in status connections",
            Duration::from_secs(60),
            || {
                let page = lines(first, "connections")?;
                let shown = page
                    .iter()
                    .any(|line| line.starts_with(&target) && line.contains("retry"));
                ensure!(shown, "{page:?}");
                Ok(Some(()))
            },
        )?;
        second.launch(&[])?;
        first.wait_connections(1, "established fastdp")
    });
}

#[test]
fn prime_waits_for_the_ring() {
    Plan::mesh(2).test("prime", |lab: &Lab| {
        let [first, second] = lab.hosts() else {
            anyhow::bail!("two hosts")
        };
        let mode = ["--ipalloc-init", "consensus=2"];
        first.launch(&mode)?;
        let prime = first.spawn(&["weave-ctl", "prime"])?;
        wait_for(
            "the allocator to wait for others",
            Duration::from_secs(60),
            || {
                let status = first.weave(&["status"])?.ok()?;
                ensure!(status.contains("awaiting consensus (quorum: 2"), "{status}");
                Ok(Some(()))
            },
        )?;
        ensure!(lines(first, "ipam")?.is_empty(), "a ring without a quorum");
        let address = first.address().to_string();
        second.launch(&["--ipalloc-init", "consensus=2", &address])?;
        let output = prime.finish(Duration::from_secs(60))?;
        ensure!(output.success() && output.stdout.is_empty(), "{output}");
        ensure!(!lines(first, "ipam")?.is_empty(), "no ring after prime");
        Ok(())
    });
}

#[test]
fn rmpeer_takes_over_what_a_lost_peer_owned() {
    Plan::mesh(2).test("rmpeer", |lab: &Lab| {
        let [first, second] = lab.hosts() else {
            anyhow::bail!("two hosts")
        };
        // Each owns half from the start.
        let seed = format!("seed={},{}", first.peer_name(), second.peer_name());
        lab.launch_all(&["--ipalloc-init", &seed])?;
        first.wait_connections(1, "established fastdp")?;
        let refused = first.weave(&["rmpeer", &second.name()])?.fails_with(1)?;
        ensure!(refused.contains("is still connected"), "{refused}");
        second.kill_daemon()?;
        wait_for("the lost peer to be gone", Duration::from_secs(120), || {
            let page = lines(first, "ipam")?;
            ensure!(page.iter().any(|line| line.contains("unreachable!")), "{page:?}");
            Ok(Some(()))
        })?;
        let took = first.weave(&["rmpeer", &second.name()])?.ok()?;
        ensure!(took.trim() == "524288 IPs taken over from h2", "{took}");
        let page = lines(first, "ipam")?;
        ensure!(
            page.len() == 1 && page.iter().all(|line| line.contains("100.0% of total")),
            "{page:?}"
        );
        let nobody = first.weave(&["rmpeer", "nobody"])?.ok()?;
        ensure!(nobody.trim() == "0 IPs taken over from nobody", "{nobody}");
        Ok(())
    });
}
