//! `weave-ctl doctor` finds what is wrong, says what to run, and that helps.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weave_tests::lab::{Host, Lab, Plan, netns};
use weave_tests::process::{Output, wait_for};

const LIMIT: Duration = Duration::from_secs(120);

fn list(json: &Value, key: &str) -> Vec<Value> {
    json.get(key)
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default()
}

fn text(json: &Value, key: &str) -> String {
    json.get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

/// Exit status and findings.
fn ask(host: &Host) -> Result<(i32, Vec<Value>)> {
    let Output { code, stdout, .. } = host.weave(&["doctor", "--json"])?;
    let json: Value = serde_json::from_str(&stdout).with_context(|| format!("no JSON: {stdout}"))?;
    Ok((code, list(&json, "findings")))
}

/// Waits for a finding; what is seen, and what to run.
fn wait_finding(host: &Host, id: &str) -> Result<(String, Vec<String>)> {
    wait_for(&format!("the finding {id} on {}", host.name()), LIMIT, || {
        let (code, findings) = ask(host)?;
        let Some(finding) = findings.iter().find(|finding| text(finding, "id") == id) else {
            anyhow::bail!("{findings:?}");
        };
        ensure!(code == 1, "exit status {code} with {findings:?}");
        let run = list(finding, "run");
        let run = run.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(Some((text(finding, "what"), run)))
    })
}

fn wait_healthy(host: &Host) -> Result<()> {
    wait_for(&format!("nothing to repair on {}", host.name()), LIMIT, || {
        let output = host.weave(&["doctor"])?;
        ensure!(
            output.success() && output.stdout.ends_with("nothing to repair\n"),
            "{output}"
        );
        Ok(Some(()))
    })
}

#[test]
fn a_dead_owner_is_found_and_removed() {
    Plan::mesh(3).test("doctor-owner", |lab: &Lab| {
        let [first, second, third] = lab.hosts() else {
            anyhow::bail!("three hosts")
        };
        let seed = format!(
            "seed={},{},{}",
            first.peer_name(),
            second.peer_name(),
            third.peer_name()
        );
        lab.launch_all(&["--ipalloc-init", &seed])?;
        for host in lab.hosts() {
            host.wait_connections(2, "established fastdp")?;
        }
        lab.hosts().iter().try_for_each(wait_healthy)?;
        let (code, findings) = ask(first)?;
        ensure!(code == 0 && findings.is_empty(), "{code}: {findings:?}");

        third.kill_daemon()?;
        let (what, run) = wait_finding(first, "owner-unreachable")?;
        ensure!(what.contains("h3") && what.contains("% of the range"), "{what}");
        let step = run.first().context("nothing to run")?;
        // As a user would copy it.
        let command = step.split(',').next().unwrap_or_default();
        ensure!(command == "weave rmpeer h3", "{run:?}");
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        first.weave(&words)?.ok()?;
        wait_healthy(first)?;
        wait_healthy(second)
    });
}

#[test]
fn a_blocked_fast_path_is_told_with_its_reason() {
    Plan::mesh(2).test("doctor-sleeve", |lab: &Lab| {
        let [first, second] = lab.hosts() else {
            anyhow::bail!("two hosts")
        };
        lab.launch_all(&[])?;
        first.wait_connections(1, "established fastdp")?;
        let block = lab.block_vxlan(first, second)?;
        let (what, run) = wait_finding(first, "stuck-on-sleeve")?;
        ensure!(what.contains("h2 (for ") && what.contains("heartbeat"), "{what}");
        ensure!(
            run.iter().any(|step| step.contains("UDP 6783 and 6784")),
            "{run:?}"
        );
        block.lift()?;
        wait_healthy(first)
    });
}

/// Answers every request with something that is no report.
fn not_weave(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    let _request = stream.read(&mut [0; 1024])?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")?;
    Ok(())
}

#[test]
fn without_a_daemon_it_says_why() {
    Plan::mesh(1).test("doctor-stopped", |lab: &Lab| {
        let host = lab.host(1)?;
        let (what, _) = wait_finding(host, "daemon-not-running")?;
        ensure!(what.contains("none has been here"), "{what}");
        host.launch(&[])?;
        wait_healthy(host)?;
        host.kill_daemon()?;
        let (what, run) = wait_finding(host, "daemon-not-running")?;
        ensure!(what.contains("the bridge weave has"), "{what}");
        ensure!(
            run.iter().any(|step| step.contains("weave launch --resume")),
            "{run:?}"
        );

        let data = host.data_dir().join("weave.redb");
        let good = std::fs::read(&data)?;
        std::fs::write(&data, "no database")?;
        wait_finding(host, "data-damaged")?;
        std::fs::write(&data, good)?;

        // A stranger where the daemon would listen for peers, and one where it would listen for us.
        let taken = netns::inside(host.netns(), || Ok(TcpListener::bind("0.0.0.0:6783")?))?;
        let (what, _) = wait_finding(host, "port-taken")?;
        ensure!(
            what.contains("TCP port 6783") && what.contains(&std::process::id().to_string()),
            "{what}"
        );
        drop(taken);
        let stranger = netns::inside(host.netns(), || Ok(TcpListener::bind("127.0.0.1:6784")?))?;
        let answering = std::thread::spawn(move || not_weave(&stranger));
        let output = host.weave(&["doctor"])?;
        ensure!(
            output.code == 2 && output.stdout.contains("not-weave"),
            "{output}"
        );
        ensure!(
            answering.join().is_ok_and(|answered| answered.is_ok()),
            "nobody asked"
        );
        host.launch(&["--resume"])?;
        wait_healthy(host)
    });
}

#[test]
fn fix_does_what_is_safe() {
    Plan::mesh(1).test("doctor-fix", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&[&host.address().to_string()])?;
        let (one, _) = host.attached("c1")?;
        let (_, other) = host.attached("c2")?;
        one.wait_ping(other)?;
        let links = host
            .exec(&["ip", "-o", "link", "show", "master", "weave"])?
            .ok()?;
        let names = links.lines().filter_map(|line| line.split([':', '@']).nth(1));
        let port = names.map(str::trim).find(|name| name.starts_with("vethwepl"));
        let port = port.with_context(|| format!("no port in {links}"))?;
        host.exec(&["ip", "link", "set", port, "nomaster"])?.ok()?;
        wait_finding(host, "container-unplugged")?;
        wait_for("the target to be found out", LIMIT, || {
            let (_, findings) = ask(host)?;
            let found = findings
                .iter()
                .any(|finding| text(finding, "id") == "target-is-ourselves");
            Ok(found.then_some(()))
        })?;

        let output = host.weave(&["doctor", "--fix"])?;
        for done in [
            format!("put {port} into the bridge again"),
            format!("forget the target {}", host.address()),
        ] {
            ensure!(output.stdout.contains(&format!("done: {done}\n")), "{output}");
        }
        ensure!(
            output.success() && output.stdout.ends_with("nothing to repair\n"),
            "{output}"
        );
        ensure!(
            host.weave(&["status", "targets"])?.ok()?.trim().is_empty(),
            "the target is still there"
        );
        one.wait_ping(other)?;
        let (code, findings) = ask(host)?;
        ensure!(code == 0 && findings.is_empty(), "{findings:?}");
        Ok(())
    });
}
#[test]
fn separately_seeded_hosts_are_mended_by_fix() {
    Plan::mesh(2).test("doctor-seeds", |lab: &Lab| {
        let [first, second] = lab.hosts() else {
            anyhow::bail!("two hosts")
        };
        for host in lab.hosts() {
            host.launch(&["--ipalloc-init", &format!("seed={}", host.peer_name())])?;
        }
        let (one, _) = first.attached("c1")?;
        // Not the lowest address of the range, which the first host has given out as well.
        let two = second.container("c2")?;
        let address = *second
            .attach(&two, &["net:10.40.0.0/24"])?
            .first()
            .context("no address")?;
        first.weave(&["connect", &second.address().to_string()])?.ok()?;
        let (what, run) = wait_finding(first, "ring-conflict")?;
        ensure!(
            what.contains("h2") && what.contains("seeded by different peers"),
            "{what}"
        );
        ensure!(
            run.iter().any(|step| step.contains("doctor --fix, on h2")),
            "{run:?}"
        );
        let (_, run) = wait_finding(second, "ring-conflict")?;
        ensure!(
            run.iter().any(|step| step.contains("doctor --fix, here")),
            "{run:?}"
        );

        let output = second.weave(&["doctor", "--fix"])?;
        ensure!(
            output.stdout.contains("done: take over the address ring of"),
            "{output}"
        );
        ensure!(
            output.stdout.contains(&format!("kept {} {address}/24", two.id())),
            "{output}"
        );
        wait_healthy(first)?;
        wait_healthy(second)?;
        one.wait_ping(second.attached("c3")?.1)
    });
}
