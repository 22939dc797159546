//! Hosts that are clones of each other, hosts that vanish, hosts that move to another address.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_tests::lab::{Host, Lab, Plan};
use weave_tests::process::wait_for;

const LIMIT: Duration = Duration::from_secs(90);

/// Launches without `--name`: all hosts of a lab have the same machine ID, as clones do.
fn launch_nameless(host: &Host, args: &[&str]) -> Result<()> {
    let nick = host.name();
    let mut all = vec!["launch", "--nickname", &nick];
    all.extend(args);
    host.weave(&all)?.ok().map(drop)
}

/// The peer name in the report.
fn name_of(host: &Host) -> Result<String> {
    let name = host.weave(&["report", "-f", "{{.Router.Name}}"])?.ok()?;
    Ok(name.trim().to_owned())
}

fn wait_renamed(host: &Host, from: &str) -> Result<String> {
    wait_for(
        &format!("another name than {from} on {}", host.name()),
        LIMIT,
        || {
            let name = name_of(host)?;
            Ok((!name.is_empty() && name != from).then_some(name))
        },
    )
}

#[test]
fn of_two_clones_the_one_with_less_to_lose_takes_another_name() {
    Plan::mesh(2).test("clones", |lab: &Lab| {
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        launch_nameless(first, &[])?;
        let shared = name_of(first)?;
        let (one, address) = first.attached("c1")?;
        let target = first.address().to_string();
        launch_nameless(second, &[&target])?;
        let other = wait_renamed(second, &shared)?;
        first.wait_connections(1, "established fastdp")?;
        second.wait_connections(1, "established fastdp")?;
        let (two, _) = second.attached("c2")?;
        two.wait_ping(address)?;
        let log = second.log();
        ensure!(log.contains(&format!("renamed from {shared}")), "{log}");

        // Both keep what they have, on restart as well; so does the container's address.
        for host in [first, second] {
            host.weave(&["stop"])?.ok()?;
        }
        launch_nameless(first, &[])?;
        launch_nameless(second, &[&target])?;
        first.wait_connections(1, "established fastdp")?;
        ensure!(
            (name_of(first)?, name_of(second)?) == (shared, other),
            "names have changed"
        );
        two.wait_ping(address)?;
        let (_, fresh) = first.attached("c3")?;
        ensure!(fresh != address, "{address} was given out twice");
        one.wait_ping(fresh)
    });
}

#[test]
fn a_copied_data_directory_is_found_out_by_a_third_peer() {
    Plan::mesh(3).test("copied", |lab: &Lab| {
        let (first, second, third) = (lab.host(1)?, lab.host(2)?, lab.host(3)?);
        let target = third.address().to_string();
        let lonely = ["--no-discovery", &target];
        third.launch(&[])?;
        launch_nameless(first, &lonely)?;
        let shared = name_of(first)?;
        let (_, address) = first.attached("c1")?;
        first.weave(&["stop"])?.ok()?;
        copy(&first.data_dir(), &second.data_dir())?;

        launch_nameless(first, &lonely)?;
        launch_nameless(second, &lonely)?;
        wait_renamed(second, &shared)?;
        ensure!(
            name_of(first)? == shared,
            "the host with the container was renamed"
        );
        third.wait_connections(2, "established fastdp")?;
        let (two, fresh) = second.attached("c2")?;
        ensure!(fresh != address, "{address} was given out twice");
        two.wait_ping(address)
    });
}

/// The files; folders hold nothing that says who we are.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.is_dir() {
            continue;
        }
        let name = path.file_name().context("a file without a name")?;
        fs::copy(&path, to.join(name))?;
    }
    Ok(())
}

/// Nothing is sent that a remote could leave unanswered: the connection is idle.
#[test]
fn a_host_that_is_cut_off_is_gone_before_it_could_miss_two_heartbeats() {
    Plan::mesh(2).test("cut-off", |lab: &Lab| {
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        lab.launch_all(&[])?;
        first.wait_connections(1, "established fastdp")?;
        second.wait_connections(1, "established fastdp")?;
        let _cut = lab.block_all(first, second)?;
        for host in [first, second] {
            let line = wait_for("the connection to be removed", LIMIT, || {
                let log = host.log();
                let line = log.lines().find(|line| line.contains("connection removed"));
                Ok(line.map(str::to_owned))
            })?;
            // The 60 s without a message end with "i/o timeout".
            let by_tcp = ["connection timed out", "no route to host"];
            ensure!(by_tcp.iter().any(|text| line.contains(text)), "{line}");
        }
        Ok(())
    });
}

/// The first host looks names up in a file of its own.
#[test]
fn a_peer_given_by_name_is_found_again_at_another_address() {
    Plan::mesh(2).test("moved", |lab: &Lab| {
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        second.launch(&[])?;
        let [a, b, c, _] = second.address().octets();
        let nobody = Ipv4Addr::from([a, b, c, 99]);
        let hosts = first.data_dir().join("hosts");
        let set = |address: Ipv4Addr| fs::write(&hosts, format!("{address} second.weave.test\n"));
        set(nobody)?;
        let script = "mount --bind \"$1\" /etc/hosts && shift && exec weave-ctl launch \"$@\"";
        let (file, name, nick) = (hosts.to_string_lossy(), first.peer_name(), first.name());
        #[rustfmt::skip]
        first.exec(&["unshare", "--mount", "sh", "-c", script, "sh", &file,
                     "--name", &name, "--nickname", &nick, "second.weave.test"])?.ok()?;
        let target = format!("-> {nobody}:6783");
        wait_for("a failed attempt", LIMIT, || {
            let page = first.weave(&["status", "connections"])?.ok()?;
            let failed = |line: &str| line.starts_with(&target) && line.contains("retry");
            Ok(page.lines().any(failed).then_some(()))
        })?;
        set(second.address())?;
        first.wait_connections(1, "established fastdp")?;
        let page = first.weave(&["status", "connections"])?.ok()?;
        ensure!(!page.contains(&target), "the old address is tried still\n{page}");
        let targets = first.weave(&["status", "targets"])?.ok()?;
        ensure!(targets.trim() == "second.weave.test", "{targets}");
        Ok(())
    });
}
