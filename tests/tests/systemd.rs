//! The units of contrib/systemd under a real systemd, with Docker beside them: ready when it says so, with all rights
//! that it needs, started again after a crash, and gone when it is told to go.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use weave_tests::lab::{Lab, Plan};
use weave_tests::process::{LIMIT, Output, wait_for};
use weave_tests::systemd::Systemd;

/// Docker's client at the proxy.
const PROXY: &str = "--host=unix:///var/run/weave/weave.sock";
const SLEEP: [&str; 3] = ["box", "sleep", "100000"];

fn units() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../contrib/systemd"))
}

fn docker(systemd: &Systemd<'_>, args: &[&str]) -> Result<Output> {
    systemd.run(&[&["docker"], args].concat())
}

fn state(systemd: &Systemd<'_>) -> Result<String> {
    // Those of a unit that failed are states, too.
    let shown = systemd.property("weave", "ActiveState")?;
    Ok(shown)
}

/// What the daemon does under its own restrictions.
fn all_that_it_does(systemd: &Systemd<'_>) -> Result<()> {
    let show = [
        "box",
        "sh",
        "-c",
        "ip -4 -o address show dev ethwe; busybox cat /etc/hosts",
    ];
    let run = [&[PROXY, "run", "--rm", "--network", "none"], &show[..]].concat();
    let shown = docker(systemd, &run)?.ok()?;
    ensure!(
        shown.contains(" inet 10.32.") && shown.contains("# created by Weave - BEGIN"),
        "{shown}"
    );
    let held = [PROXY, "run", "--detach", "--network", "none", "--name", "held"];
    docker(systemd, &[&held[..], &SLEEP].concat())?.ok()?;
    let plain = ["run", "--detach", "--network", "none", "--name", "plain"];
    docker(systemd, &[&plain[..], &SLEEP].concat())?.ok()?;
    let networked = ["run", "--detach", "--network", "weave", "--name", "networked"];
    docker(systemd, &[&networked[..], &SLEEP].concat())?.ok()?;
    let address = systemd.weave(&["attach", "--rewrite-hosts", "plain"])?.ok()?;
    for from in ["held", "networked"] {
        docker(
            systemd,
            &["exec", from, "ping", "-c", "1", "-W", "5", address.trim()],
        )?
        .ok()?;
    }
    let address = systemd.weave(&["expose"])?.ok()?;
    docker(
        systemd,
        &["exec", "held", "ping", "-c", "1", "-W", "5", address.trim()],
    )?
    .ok()?;
    let rules = systemd.run(&["nft", "list", "table", "ip", "weave"])?.ok()?;
    ensure!(rules.contains("masquerade"), "{rules}");
    systemd.run(&["ip", "netns", "add", "plain"])?.ok()?;
    systemd.weave(&["attach", "netns:plain"])?.ok()?;
    let status = systemd.weave(&["status"])?.ok()?;
    ensure!(status.contains("Program: loaded"), "{status}");
    // Nothing was refused to it.
    let log = systemd.log()?;
    for refusal in [
        "WARN",
        "not permitted",
        "ermission denied",
        "ead-only file system",
    ] {
        ensure!(!log.contains(refusal), "{log}");
    }
    // One that cannot be attached is killed.
    let bad = [
        PROXY,
        "run",
        "--rm",
        "--network",
        "none",
        "--env",
        "WEAVE_CIDR=10.1.1.1",
    ];
    let message = docker(systemd, &[&bad[..], &SLEEP].concat())?.fails_with(125)?;
    ensure!(message.contains("invalid CIDR address: 10.1.1.1"), "{message}");
    Ok(())
}

/// A crash is repaired, and nobody notices.
fn crash(systemd: &Systemd<'_>) -> Result<()> {
    let before = systemd.weave(&["ps"])?.ok()?;
    let pid = systemd.property("weave", "MainPID")?;
    systemd.run(&["kill", "-KILL", &pid])?.ok()?;
    wait_for("the daemon to be started again", LIMIT, || {
        let now = systemd.property("weave", "MainPID")?;
        Ok((now != "0" && now != pid && state(systemd)? == "active").then_some(()))
    })?;
    let after = systemd.weave(&["ps"])?.ok()?;
    ensure!(after == before, "{after} after the crash, {before} before");
    docker(systemd, &["restart", "--time", "0", "held"])?.ok()?;
    let line = |page: &str| -> Result<Vec<String>> {
        let id = docker(systemd, &["inspect", "--format", "{{.Id}}", "held"])?.ok()?;
        let line = page
            .lines()
            .find(|line| id.starts_with(line.split(' ').next().unwrap_or("-")));
        let line = line.with_context(|| format!("held is not in {page}"))?;
        Ok(line.split(' ').skip(2).map(str::to_owned).collect())
    };
    let had = line(&before)?;
    wait_for("held to be attached again", LIMIT, || {
        Ok((line(&systemd.weave(&["ps"])?.ok()?)? == had).then_some(()))
    })
}

/// Docker does not wait in vain, and what is told to stop stops.
fn stops(systemd: &Systemd<'_>) -> Result<()> {
    systemd.systemctl(&["stop", "weave"])?;
    ensure!(state(systemd)? == "inactive");
    ensure!(
        !systemd.run(&["pgrep", "-x", "weave-standby"])?.success(),
        "systemd's sockets are enough"
    );
    // Docker's call starts it.
    docker(systemd, &["rm", "--force", "networked"])?.ok()?;
    wait_for("the daemon", LIMIT, || {
        Ok((state(systemd)? == "active").then_some(()))
    })?;

    let said = systemd.weave(&["stop"])?;
    ensure!(
        said.stderr.contains("systemctl stop weave-plugin.socket"),
        "{said}"
    );
    ensure!(said.success(), "{said}");
    wait_for("the unit to be inactive", LIMIT, || {
        Ok((state(systemd)? == "inactive").then_some(()))
    })?;

    // After a reset it is as new, and Docker finds the plugins all the same.
    systemd.systemctl(&["start", "weave"])?;
    systemd.weave(&["reset"])?.ok()?;
    wait_for("the unit to be inactive", LIMIT, || {
        Ok((state(systemd)? == "inactive").then_some(()))
    })?;
    let links = systemd.run(&["ip", "-o", "link"])?.ok()?;
    for ours in [": weave:", ": vethwe", ": vxlan-6784:"] {
        ensure!(!links.contains(ours), "reset leaves {links}");
    }
    systemd.systemctl(&["start", "weave"])?;
    let networked = [
        "run",
        "--rm",
        "--network",
        "weave",
        "box",
        "ip",
        "-4",
        "-o",
        "address",
    ];
    let shown = docker(systemd, &networked)?.ok()?;
    ensure!(shown.contains("ethwe0"), "{shown}");
    systemd.systemctl(&["stop", "weave-plugin.socket", "weave"])?;
    Ok(())
}

#[test]
fn the_service() {
    Plan::mesh(1).test("systemd", |lab: &Lab| {
        let systemd = Systemd::boot(lab.host(1)?, &units())?;
        systemd.start_docker()?;
        // Docker's unit starts after ours; here it was there before, and the sockets are there before ours.
        systemd.systemctl(&["start", "weave-plugin.socket"])?;
        systemd.systemctl(&["start", "weave"])?;
        // Ready means ready.
        let status = systemd.weave(&["status"])?.ok()?;
        ensure!(status.contains("Service: proxy"), "{status}");
        all_that_it_does(&systemd)?;
        crash(&systemd)?;
        stops(&systemd)
    });
}
