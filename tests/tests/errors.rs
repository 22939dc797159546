//! What goes wrong says so, with the right exit status, and leaves nothing half-made.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use weave_tests::lab::{Host, Lab, Plan, netns};
use weave_tests::process::{LIMIT, Output, run};

/// It failed with a message that has all these parts, and no daemon or bridge is there.
fn refused(host: &Host, output: Output, parts: &[&str]) -> Result<()> {
    ensure!(!output.success(), "it succeeded: {output}");
    for part in parts {
        ensure!(
            output.stderr.contains(part),
            "no {part:?} in the message: {output}"
        );
    }
    ensure!(host.daemon_pids().is_empty(), "a daemon is left behind");
    ensure!(
        !host.exec(&["ip", "link", "show", "weave"])?.success(),
        "a bridge is left behind"
    );
    Ok(())
}

#[test]
fn launch_twice() {
    Plan::mesh(1).test("twice", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&[])?;
        let message = host.weave(&["launch"])?.fails_with(3)?;
        ensure!(
            message.contains("weave is already running; you can stop it with 'weave stop'."),
            "{message}"
        );
        host.weave(&["status"])?.ok()?;
        Ok(())
    });
}

#[test]
fn a_port_is_taken() {
    Plan::mesh(1).test("port", |lab: &Lab| {
        let host = lab.host(1)?;
        for (bind, port) in [("0.0.0.0:6783", "6783"), ("127.0.0.1:6784", "6784")] {
            let taken = netns::inside(host.netns(), || Ok(TcpListener::bind(bind)?))?;
            refused(host, host.weave(&["launch", "--name", "::1"])?, &[port])?;
            drop(taken);
        }
        host.launch(&[])
    });
}

/// Many hosts have a name server of their own.
#[test]
fn another_name_server_is_there() {
    Plan::mesh(1).test("dnsport", |lab: &Lab| {
        let host = lab.host(1)?;
        let taken = netns::inside(host.netns(), || Ok(TcpListener::bind("0.0.0.0:53")?))?;
        let chosen = ["launch", "--name", "::1", "--dns-listen-address", "127.0.0.1:53"];
        refused(host, host.weave(&chosen)?, &["127.0.0.1:53"])?;
        host.launch(&[])?;
        let log = host.log();
        ensure!(log.contains("--dns-listen-address"), "nothing said: {log}");
        let status = host.weave(&["status"])?.ok()?;
        ensure!(
            status.contains("Service: dns"),
            "names are gossiped all the same: {status}"
        );
        drop(taken);
        Ok(())
    });
}

#[test]
fn wrong_options() {
    Plan::mesh(1).test("options", |lab: &Lab| {
        let host = lab.host(1)?;
        let cases: [(&[&str], &str); 7] = [
            (&["--nonsense"], "flag provided but not defined: --nonsense"),
            (&["--port"], "flag needs an argument: --port"),
            (&["--port", "many"], "invalid value \"many\" for flag --port"),
            (&["--name", "nobody"], "invalid peer name format: \"nobody\""),
            (
                &["--ipalloc-range", "10.32.0.1/12"],
                "bits after network prefix are not all zero",
            ),
            (&["--ipalloc-init", "guess"], "unknown mode: guess"),
            (&["--xdp=perhaps"], "perhaps"),
        ];
        for (args, message) in cases {
            let mut all = vec!["launch"];
            all.extend(args);
            refused(host, host.weave(&all)?, &[message])?;
        }
        Ok(())
    });
}

#[test]
fn a_password_that_cannot_be_read() {
    Plan::mesh(1).test("password", |lab: &Lab| {
        let host = lab.host(1)?;
        let empty = host.run_dir().join("../empty");
        std::fs::write(&empty, "")?;
        for path in ["/nowhere/password", &empty.to_string_lossy()] {
            refused(
                host,
                host.weave(&["launch", "--name", "::1", "--password-file", path])?,
                &["password", path],
            )?;
        }
        Ok(())
    });
}

#[test]
fn the_default_range_overlaps_a_route() {
    Plan::mesh(1).test("overlap", |lab: &Lab| {
        let host = lab.host(1)?;
        netns::ip(&["-n", host.netns(), "route", "add", "10.33.0.0/16", "dev", "eth0"])?;
        let output = host.weave(&["launch", "--name", "::1"])?;
        refused(
            host,
            output,
            &["ERROR: Default --ipalloc-range 10.32.0.0/12 overlaps with existing route on host."],
        )?;
        // A range that was asked for is taken, with a warning.
        let output = host.weave(&["launch", "--name", "::1", "--ipalloc-range", "10.32.0.0/12"])?;
        ensure!(output.success() && output.stderr.contains("WARNING:"), "{output}");
        Ok(())
    });
}

#[test]
fn not_root() {
    Plan::mesh(1).test("not-root", |lab: &Lab| {
        let host = lab.host(1)?;
        // Where nobody can read it.
        let folder = host.run_dir().join("../bin");
        std::fs::create_dir_all(&folder)?;
        let copy = folder.join("weave-ctl");
        std::fs::copy(host.binary(), &copy)?;
        for path in [&folder, &copy] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        }
        let mut command = host.command("setpriv")?;
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .arg(&copy)
            .args(["launch", "--name", "::1"]);
        refused(host, run(&mut command, LIMIT)?, &["root"])
    });
}

#[test]
fn commands_without_a_daemon() {
    Plan::mesh(1).test("no-daemon", |lab: &Lab| {
        let host = lab.host(1)?;
        for args in [
            &["status"][..],
            &["status", "peers"],
            &["report"],
            &["prime"],
            &["connect", "172.30.0.9"],
        ] {
            let output = host.weave(args)?;
            ensure!(!output.success() && !output.stderr.trim().is_empty(), "{output}");
            ensure!(output.stdout.trim().is_empty(), "scripts read this: {output}");
        }
        // Stopping what does not run is no failure.
        host.weave(&["stop"])?.ok()?;
        Ok(())
    });
}

#[test]
fn usage() {
    Plan::mesh(1).test("usage", |lab: &Lab| {
        let host = lab.host(1)?;
        let message = host.weave(&["frobnicate"])?.fails_with(1)?;
        ensure!(
            message.starts_with("Unknown weave command 'frobnicate'"),
            "{message}"
        );
        ensure!(message.contains("Usage:"), "{message}");
        host.weave(&[])?.fails_with(1)?;
        let help = host.weave(&["help"])?;
        ensure!(help.success() && help.stderr.contains("Usage:"), "{help}");
        host.weave(&["attach"])?.fails_with(1)?;
        host.weave(&["status", "weather"])?.fails_with(1)?;
        let removed = host.weave(&["start", "image"])?.fails_with(1)?;
        ensure!(
            removed.contains("The 'weave start' command has been removed as of Weave Net version 2.0"),
            "{removed}"
        );
        Ok(())
    });
}
