//! Hosts that reach each other by sleeve: with and without a password, in meshes and lines, mixed
//! with hosts on the fast path, and without BPF.

use std::net::UdpSocket;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use weave_tests::ends::{
    attach_all, both_ways, broadcast_reaches_all, everybody_reaches_everybody, forget_neighbours, outer,
    wait_large_ping,
};
use weave_tests::lab::{Host, Lab, Options, Plan, netns};
use weave_tests::process::{LIMIT, wait_for};

const BULK: usize = 16 << 20;
const PASSWORD: &str = "correct horse battery staple";

fn plain() -> Options {
    Options::new().no_fastdp()
}

fn sealed() -> Options {
    plain().password(PASSWORD)
}

/// What `status connections` says of a connection on sleeve, plain and with a password.
const PLAIN: &str = "established sleeve";
const SEALED: &str = "established encrypted sleeve";

#[test]
fn two_hosts() {
    for (name, options, state) in [("sleeve", plain(), PLAIN), ("sealed", sealed(), SEALED)] {
        Plan::mesh(2).options(options).test(name, |lab: &Lab| {
            lab.launch_all(&[])?;
            let ends = attach_all(lab)?;
            everybody_reaches_everybody(&ends)?;
            for host in lab.hosts() {
                host.wait_connections(1, state)?;
            }
            let (one, two) = outer(&ends)?;
            both_ways(one, two, BULK)?;
            wait_large_ping(&one.0, two.1)?;
            wait_large_ping(&two.0, one.1)
        });
    }
}

/// What a listener on the underlay sees of pings whose contents are [`ON_THE_WIRE`].
fn overheard(lab: &Lab, state: &str) -> Result<String> {
    lab.launch_all(&[])?;
    let ends = attach_all(lab)?;
    everybody_reaches_everybody(&ends)?;
    lab.host(1)?.wait_connections(1, state)?;
    lab.host(2)?.wait_connections(1, state)?;
    #[rustfmt::skip]
    let words = ["tcpdump", "-i", "eth0", "-n", "-A", "-s", "0", "-c", "40", "udp"];
    let capture = lab.host(1)?.spawn(&words)?;
    wait_for("tcpdump to listen", LIMIT, || {
        Ok(capture.printed()?.contains("listening on").then_some(()))
    })?;
    let (one, two) = outer(&ends)?;
    let pattern: String = ON_THE_WIRE.bytes().map(|byte| format!("{byte:02x}")).collect();
    let address = two.1.to_string();
    #[rustfmt::skip]
    let words = ["ping", "-n", "-c", "50", "-i", "0.02", "-s", "200", "-p", &pattern, &address];
    one.0.exec(&words)?.ok()?;
    capture.finish(LIMIT)?.ok()
}

const ON_THE_WIRE: &str = "weave-in-clear";

#[test]
fn a_password_seals_what_is_on_the_wire() {
    // Without --no-fastdp: what cannot be sealed is not used.
    let options = Options::new().password(PASSWORD);
    Plan::mesh(2).options(options).test("overheard", |lab: &Lab| {
        let seen = overheard(lab, "established encrypted")?;
        ensure!(!seen.contains(ON_THE_WIRE), "in clear on the wire");
        Ok(())
    });
    // And this is how it would look.
    Plan::mesh(2).options(plain()).test("in-clear", |lab: &Lab| {
        let seen = overheard(lab, PLAIN)?;
        ensure!(seen.contains(ON_THE_WIRE), "nothing was captured: {seen}");
        Ok(())
    });
}

#[test]
fn passwords_that_do_not_match_are_told_on_both_sides() {
    let cases = [
        ("wrong-password", sealed(), plain().password("Tr0ub4dor&3")),
        ("no-password", sealed(), plain()),
    ];
    for (name, one, two) in cases {
        let plan = Plan::mesh(2).host_options(1, one).host_options(2, two);
        plan.test(name, |lab: &Lab| {
            let (first, second) = (lab.host(1)?, lab.host(2)?);
            // Each has the other as its target: the one that is only dialled shows no attempt.
            first.launch(&[&second.address().to_string()])?;
            second.launch(&[&first.address().to_string()])?;
            for (host, other) in [(first, second), (second, first)] {
                let target = format!("-> {}:6783", other.address());
                wait_for("a message about the password", LIMIT, || {
                    let page = host.weave(&["status", "connections"])?.ok()?;
                    ensure!(
                        page.lines()
                            .any(|line| line.starts_with(&target) && line.contains("password")),
                        "{}: {page}",
                        host.name()
                    );
                    Ok(Some(()))
                })?;
                let log = host.log();
                ensure!(log.contains("password"), "{}'s log: {log}", host.name());
                let page = host.weave(&["status", "connections"])?.ok()?;
                ensure!(!page.contains("established"), "{page}");
            }
            Ok(())
        });
    }
}

#[test]
fn three_in_a_line() {
    for (name, options, state) in [("sleeve-line", plain(), PLAIN), ("sealed-line", sealed(), SEALED)] {
        Plan::line(3).options(options).test(name, |lab: &Lab| {
            lab.launch_all(&[])?;
            let ends = attach_all(lab)?;
            everybody_reaches_everybody(&ends)?;
            for (number, count) in [(1, 1), (2, 2), (3, 1)] {
                lab.host(number)?.wait_connections(count, state)?;
            }
            let (first, last) = outer(&ends)?;
            both_ways(first, last, BULK)?;
            wait_large_ping(&first.0, last.1)?;
            broadcast_reaches_all(&ends, 0)
        });
    }
}

#[test]
fn a_line_of_both_overlays() {
    Plan::line(3).test("mixed-line", |lab: &Lab| {
        let (first, middle, last) = (lab.host(1)?, lab.host(2)?, lab.host(3)?);
        let block = lab.block_vxlan(middle, last)?;
        lab.launch_all(&[])?;
        first.wait_connection_to(middle, &["established fastdp"])?;
        middle.wait_connection_to(last, &[PLAIN, "reason="])?;
        last.wait_connection_to(middle, &[PLAIN, "reason="])?;
        let ends = attach_all(lab)?;
        // From the ends first, while nobody knows anybody's address.
        let (one, three) = outer(&ends)?;
        one.0.wait_ping(three.1)?;
        for (container, _) in &ends {
            forget_neighbours(container)?;
        }
        three.0.wait_ping(one.1)?;
        everybody_reaches_everybody(&ends)?;
        for from in 0..ends.len() {
            broadcast_reaches_all(&ends, from)?;
        }
        both_ways(one, three, BULK)?;
        ensure!(block.dropped()? > 0, "the firewall saw no VXLAN");
        first.wait_connection_to(middle, &["established fastdp"])?;
        middle.wait_connection_to(last, &[PLAIN])?;
        Ok(())
    });
}

#[test]
fn one_host_without_the_fast_path_among_others() {
    let plan = Plan::mesh(3).host_options(3, plain());
    plan.test("mixed-mesh", |lab: &Lab| {
        lab.launch_all(&[])?;
        let (first, second, third) = (lab.host(1)?, lab.host(2)?, lab.host(3)?);
        first.wait_connection_to(second, &["established fastdp"])?;
        for host in [first, second] {
            host.wait_connection_to(third, &[PLAIN])?;
        }
        let ends = attach_all(lab)?;
        // Each pair with both of them not knowing the other's address.
        for (from, own) in &ends {
            for (to, target) in ends.iter().filter(|(_, target)| target != own) {
                forget_neighbours(from)?;
                forget_neighbours(to)?;
                from.wait_ping(*target)?;
            }
        }
        for from in 0..ends.len() {
            broadcast_reaches_all(&ends, from)?;
        }
        let [one, two, three] = ends.as_slice() else {
            anyhow::bail!("three hosts")
        };
        both_ways(one, two, BULK)?;
        both_ways(one, three, BULK)?;
        both_ways(two, three, BULK)
    });
}

#[test]
fn without_bpf_rights_there_is_sleeve() {
    let plan = Plan::mesh(2).host_options(1, Options::new().without_bpf());
    plan.test("no-rights", |lab: &Lab| {
        lab.launch_all(&[])?;
        let ends = attach_all(lab)?;
        everybody_reaches_everybody(&ends)?;
        for host in lab.hosts() {
            host.wait_connections(1, PLAIN)?;
        }
        let (one, two) = outer(&ends)?;
        both_ways(one, two, BULK)?;
        let host = lab.host(1)?;
        let (sister, address) = host.attached("c2")?;
        one.0
            .wait_ping(address)
            .context("two containers on the host without BPF")?;
        sister.wait_ping(two.1)?;
        says_why(host)?;
        ensure!(
            !host.bpf_dir().exists() || std::fs::read_dir(host.bpf_dir())?.next().is_none(),
            "something is pinned"
        );
        Ok(())
    });
}

/// One line of `status`, and one of the log, tell that BPF is the reason.
fn says_why(host: &Host) -> Result<()> {
    let about = |text: &str| {
        text.lines()
            .filter(|line| line.to_lowercase().contains("bpf"))
            .count()
    };
    let (status, log) = (host.weave(&["status"])?.ok()?, host.log());
    ensure!(about(&status) == 1, "not one line about BPF in\n{status}");
    ensure!(about(&log) == 1, "not one line about BPF in\n{log}");
    Ok(())
}

#[test]
fn without_the_bpf_object_there_is_sleeve() {
    let plan = Plan::mesh(1).options(Options::new().env("WEAVE_BPF_OBJECT", "/nowhere/weave.bpf.o"));
    plan.test("no-object", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&[])?;
        let ((one, _), (_, address)) = (host.attached("c1")?, host.attached("c2")?);
        one.wait_ping(address)?;
        says_why(host)
    });
}

fn has_tap(host: &Host) -> Result<bool> {
    Ok(host.exec(&["ip", "link", "show", "vethwe-sleeve"])?.success())
}

fn port_is_free(host: &Host) -> Result<()> {
    netns::inside(host.netns(), || Ok(UdpSocket::bind("0.0.0.0:6783")?))
        .context("UDP port 6783 is still taken")
        .map(drop)
}

#[test]
fn stop_and_reset_leave_no_tap_and_no_port() {
    Plan::mesh(2).options(plain()).test("sleeve-stop", |lab: &Lab| {
        let host = lab.host(1)?;
        for command in ["stop", "reset"] {
            lab.launch_all(&[])?;
            host.wait_connections(1, PLAIN)?;
            ensure!(has_tap(host)?, "no TAP while it runs");
            ensure!(port_is_free(host).is_err(), "nothing listens while it runs");
            host.weave(&[command])?.ok()?;
            ensure!(!has_tap(host)?, "{command} leaves the TAP");
            port_is_free(host).with_context(|| format!("after {command}"))?;
            lab.host(2)?.weave(&[command])?.ok()?;
        }
        Ok(())
    });
}

/// All files below `folder` that contain `text`.
fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_with(&path, text));
        } else if std::fs::read(&path)
            .is_ok_and(|bytes| bytes.windows(text.len()).any(|w| w == text.as_bytes()))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn the_password_is_shown_nowhere() {
    const SECRET: &str = "xyzzy-plugh-4711";
    let plan = Plan::mesh(3)
        .host_options(1, plain().arg("--log-level=debug").arg("--password").arg(SECRET))
        .host_options(2, plain().arg("--log-level=debug").password(SECRET));
    plan.test("secrets", |lab: &Lab| {
        let (first, second, third) = (lab.host(1)?, lab.host(2)?, lab.host(3)?);
        let target = first.address().to_string();
        first.launch(&[])?;
        second.launch(&[&target])?;
        first.wait_connection_to(second, &[SEALED])?;
        // The third has it from a file, with a line end, and the fourth way is a wrong one.
        let file = third.run_dir().join("../password");
        std::fs::write(&file, format!("{SECRET}\n"))?;
        third.launch(&["--no-fastdp", "--password-file", &file.to_string_lossy(), &target])?;
        first.wait_connection_to(third, &[SEALED])?;

        for host in lab.hosts() {
            for folder in [host.run_dir(), host.data_dir()] {
                let found = files_with(&folder, SECRET);
                ensure!(found.is_empty(), "the password is in {found:?}");
            }
            for args in [
                &["report"][..],
                &["status"],
                &["status", "connections"],
                &["status", "targets"],
            ] {
                let output = host.weave(args)?;
                ensure!(output.success(), "{output}");
                ensure!(!output.to_string().contains(SECRET), "{}", output.command);
            }
            let daemons = host.daemon_pids();
            ensure!(!daemons.is_empty(), "no daemon");
            for pid in daemons {
                let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
                ensure!(
                    !line.contains(SECRET),
                    "the password is in the command line {line:?}"
                );
            }
            let log = host.log();
            ensure!(log.contains("Our name is"), "no log to look into");
        }
        Ok(())
    });
}
