//! The daemon may die, be stopped, come back: the containers do not notice.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_tests::ends::answered;
use weave_tests::lab::{Container, Host, Lab, Plan};
use weave_tests::process::{Background, LIMIT, wait_for};
use weave_tests::traffic::Stream;

fn start_ping(from: &Container, to: Ipv4Addr) -> Result<Background> {
    from.spawn(&["ping", "-n", "-i", "0.05", &to.to_string()])
}

/// Waits for so many more answers.
fn more_answers(ping: &Background, count: usize) -> Result<()> {
    let before = answered(&ping.printed()?).len();
    wait_for(&format!("{count} more answers"), LIMIT, || {
        Ok((answered(&ping.printed()?).len() >= before + count).then_some(()))
    })
}

/// Ends the ping: no answer may be missing before the last one.
fn none_lost(ping: Background) -> Result<()> {
    let output = ping.interrupt(LIMIT)?;
    let answers = answered(&output.stdout);
    let expected: Vec<u32> = (1..=answers.last().copied().unwrap_or(0)).collect();
    ensure!(!answers.is_empty() && answers == expected, "lost pings: {output}");
    Ok(())
}

#[test]
fn killed_daemons_lose_no_packet_and_adopt_what_they_left() {
    Plan::mesh(2).test("killed", |lab: &Lab| {
        lab.launch_all(&[])?;
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        let ((one, _), (two, address)) = (first.attached("c1")?, second.attached("c2")?);
        one.wait_ping(address)?;
        first.wait_connections(1, "established fastdp")?;
        second.wait_connections(1, "established fastdp")?;

        let ping = start_ping(&one, address)?;
        let stream = Stream::start(one.netns(), two.netns(), address)?;
        more_answers(&ping, 10)?;
        first.kill_daemon()?;
        second.kill_daemon()?;
        more_answers(&ping, 40).context("with both daemons dead")?;
        stream.wait_more(100).context("with both daemons dead")?;

        first.launch(&[])?;
        second.launch(&[&first.address().to_string()])?;
        first.wait_connections(1, "established fastdp")?;
        second.wait_connections(1, "established fastdp")?;
        more_answers(&ping, 20).context("with both daemons back")?;
        stream.wait_more(100).context("with both daemons back")?;
        none_lost(ping)?;
        stream.finish()?;

        // The old containers are known and their addresses are not given out again.
        let ps = second.weave(&["ps"])?.ok()?;
        ensure!(ps.contains(&address.to_string()), "{address} is not in\n{ps}");
        let (_, fresh) = second.attached("c3")?;
        ensure!(fresh != address, "{address} was given out twice");
        one.wait_ping(fresh)
    });
}

#[test]
fn a_relay_that_is_killed_goes_on_relaying() {
    Plan::line(3).test("killed-relay", |lab: &Lab| {
        lab.launch_all(&[])?;
        let (one, _) = lab.host(1)?.attached("c1")?;
        let (_, address) = lab.host(3)?.attached("c3")?;
        one.wait_ping(address)?;
        for (number, count) in [(1, 1), (2, 2), (3, 1)] {
            lab.host(number)?.wait_connections(count, "established fastdp")?;
        }
        let ping = start_ping(&one, address)?;
        more_answers(&ping, 10)?;
        lab.host(2)?.kill_daemon()?;
        more_answers(&ping, 20)?;
        none_lost(ping)
    });
}

fn name(host: &Host) -> Result<String> {
    let status = host.weave(&["status"])?.ok()?;
    let line = status.lines().find(|line| line.trim_start().starts_with("Name:"));
    Ok(line
        .with_context(|| format!("no name in\n{status}"))?
        .trim()
        .to_owned())
}

#[test]
fn stop_and_launch_keep_name_addresses_and_containers() {
    Plan::mesh(2).test("stop", |lab: &Lab| {
        lab.launch_all(&[])?;
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        let ((one, own), (_, address)) = (first.attached("c1")?, second.attached("c2")?);
        one.wait_ping(address)?;
        first.wait_connections(1, "established fastdp")?;
        let before = name(first)?;

        first.weave(&["stop"])?.ok()?;
        ensure!(first.daemon_pids().is_empty(), "the daemon still runs");
        ensure!(
            !first.weave(&["status"])?.success(),
            "status answers without a daemon"
        );
        // Without --name: it was chosen before.
        first.weave(&["launch", "--nickname", "h1"])?.ok()?;
        ensure!(name(first)? == before, "{before} became {}", name(first)?);
        one.wait_ping(address)?;
        ensure!(
            first.attach(&one, &[])? == [own],
            "the container got another address"
        );
        let (_, fresh) = first.attached("c3")?;
        ensure!(fresh != own && fresh != address, "{fresh} was given out twice");
        Ok(())
    });
}

#[test]
fn reset_leaves_nothing_behind() {
    Plan::mesh(2).test("reset", |lab: &Lab| {
        let host = lab.host(1)?;
        let links = ["ip", "-br", "link"];
        let rules = ["nft", "list", "ruleset"];
        let routes = ["ip", "route"];
        let qdiscs = ["tc", "qdisc"];
        let snapshot = || -> Result<Vec<String>> {
            // Whether a link is up and its neighbours move by themselves; names are what counts.
            let names = |text: String| {
                text.lines()
                    .filter_map(|l| Some(l.split([' ', '@']).next()?.to_owned()))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            Ok(vec![
                names(host.exec(&links)?.ok()?),
                host.exec(&rules)?.ok()?,
                host.exec(&routes)?.ok()?,
                host.exec(&qdiscs)?.ok()?,
            ])
        };
        let before = snapshot()?;
        lab.launch_all(&[])?;
        let ((one, _), (_, address)) = (host.attached("c1")?, lab.host(2)?.attached("c2")?);
        one.wait_ping(address)?;
        ensure!(
            host.bpf_dir().exists(),
            "nothing was pinned in {}",
            host.bpf_dir().display()
        );

        host.weave(&["reset"])?.ok()?;
        let after = snapshot()?;
        ensure!(before == after, "before: {before:#?}\nafter: {after:#?}");
        ensure!(host.daemon_pids().is_empty(), "the daemon still runs");
        ensure!(
            !one.exec(&["ip", "link", "show", "ethwe"])?.success(),
            "the container keeps its interface"
        );
        let mut left = Vec::new();
        for folder in [host.bpf_dir(), &host.run_dir(), &host.data_dir()] {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                left.push(entry.path());
            }
        }
        ensure!(left.is_empty(), "left behind: {left:?}");
        // And again: nothing to do is no error.
        host.weave(&["reset"])?.ok()?;
        // The space went to the other peer.
        wait_for(
            "the other peer to own everything",
            Duration::from_secs(60),
            || {
                let ipam = lab.host(2)?.weave(&["status", "ipam"])?.ok()?;
                ensure!(
                    ipam.lines().count() == 1 && ipam.contains("100.0% of total"),
                    "{ipam}"
                );
                Ok(Some(()))
            },
        )
    });
}

#[test]
fn launch_after_reset_starts_afresh() {
    Plan::mesh(1).test("relaunch", |lab: &Lab| {
        let host = lab.host(1)?;
        for container in ["c1", "c2"] {
            host.launch(&[])?;
            let (_, address) = host.attached(container)?;
            ensure!(
                address == Ipv4Addr::new(10, 32, 0, 1),
                "the first address is {address}"
            );
            host.weave(&["reset"])?.ok()?;
        }
        Ok(())
    });
}

#[test]
fn foreground_tells_systemd_and_ends_on_sigterm() {
    Plan::mesh(1).test("foreground", |lab: &Lab| {
        use std::os::unix::net::UnixDatagram;
        let host = lab.host(1)?;
        let path = host.run_dir().join("../notify");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(LIMIT))?;
        let mut command = host.command("weave-ctl")?;
        command
            .args(["launch", "--foreground", "--name", "::1", "--nickname", "h1"])
            .env("NOTIFY_SOCKET", &path);
        let daemon = Background::start(&mut command)?;
        let mut message = [0; 4096];
        let length = socket
            .recv(&mut message)
            .with_context(|| daemon.printed().unwrap_or_default())?;
        let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default()).into_owned();
        ensure!(text.lines().any(|line| line == "READY=1"), "{text}");
        host.attached("c")?;
        weave_tests::process::signal(daemon.pid().cast_signed(), 15);
        let output = daemon.finish(LIMIT)?;
        ensure!(output.success(), "{output}");
        Ok(())
    });
}

#[test]
fn kernels_without_tcx() {
    Plan::mesh(2).test("clsact", |lab: &Lab| {
        let old = |host: &Host, peers: &[&str]| -> Result<()> {
            let (peer, nick) = (host.peer_name(), host.name());
            let mut words = vec![
                "env",
                "WEAVE_ATTACH=clsact",
                "weave-ctl",
                "launch",
                "--name",
                &peer,
                "--nickname",
                &nick,
            ];
            words.push("--ipalloc-init=consensus=2");
            words.extend(peers);
            host.exec(&words)?.ok().map(drop)
        };
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        let address = first.address().to_string();
        old(first, &[])?;
        old(second, &[&address])?;
        let ((one, _), (_, target)) = (first.attached("c1")?, second.attached("c2")?);
        one.wait_ping(target)?;
        let status = first.weave(&["status"])?.ok()?;
        ensure!(status.contains("Attach: clsact"), "{status}");

        let ping = start_ping(&one, target)?;
        more_answers(&ping, 5)?;
        first.kill_daemon()?;
        more_answers(&ping, 10).context("with the daemon dead")?;
        old(first, &[])?;
        more_answers(&ping, 10).context("with its filters replaced")?;
        none_lost(ping)?;

        let filters = || {
            first
                .exec(&["tc", "filter", "show", "dev", "eth0", "ingress"])?
                .ok()
        };
        ensure!(filters()?.contains("weave_underlay"), "{}", filters()?);
        first.weave(&["reset"])?.ok()?;
        ensure!(filters()?.trim().is_empty(), "left behind: {}", filters()?);
        Ok(())
    });
}

#[test]
fn an_upgrade_loses_no_packet() {
    Plan::mesh(2).test("upgrade", |lab: &Lab| {
        lab.launch_all(&[])?;
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        let ((one, _), (_, target)) = (first.attached("c1")?, second.attached("c2")?);
        one.wait_ping(target)?;
        let ping = start_ping(&one, target)?;
        more_answers(&ping, 5)?;
        for host in [first, second] {
            host.weave(&["stop", "--keep-traffic"])?.ok()?;
            more_answers(&ping, 10).context("between two versions")?;
            host.launch(&[&first.address().to_string()])?;
            more_answers(&ping, 10).context("with programs replaced")?;
        }
        first.wait_connections(1, "established fastdp")?;
        none_lost(ping)
    });
}
