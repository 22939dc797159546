//! A host on which Weave Net ran before, with the plain bridge: ours takes over in place. The state file was written
//! by Weave Net 2.8.1; what it leaves in the kernel is rebuilt here (wire.md 9.1, 9.2).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use weave_tests::lab::{Host, Plan, netns};
use weave_tests::process::{LIMIT, wait_for};

/// The first address that the file knows as used, by a container.
const OLD: &str = "10.32.0.1";

/// Bridge, capture pair and an attached container, as they are after `weave stop`.
fn left_behind(host: &Host, container: &str) -> Result<()> {
    let here = host.netns();
    for command in [
        "link add weave type bridge",
        "link set weave address 7a:00:00:00:00:01 up",
        "link add vethwe-bridge type veth peer name vethwe-pcap",
        "link set vethwe-bridge master weave up",
        "link set vethwe-pcap up",
        &format!("link add vethwepl77 mtu 65535 type veth peer name ethwe mtu 65535 netns {container}"),
        "link set vethwepl77 master weave up",
        "link set vethwepl77 type bridge_slave hairpin on",
        "link set weave mtu 65535",
    ] {
        let mut args = vec!["-n", here];
        args.extend(command.split(' '));
        netns::ip(&args)?;
    }
    let address = format!("{OLD}/12");
    netns::ip(&["-n", container, "address", "add", &address, "dev", "ethwe"])?;
    netns::ip(&["-n", container, "link", "set", "ethwe", "up"])?;
    Ok(())
}

#[test]
fn ours_takes_over_where_weave_net_ran() {
    Plan::mesh(2).test("migrate", |lab| {
        let [first, second] = lab.hosts() else {
            anyhow::bail!("two hosts")
        };
        let old = first.container("old")?;
        left_behind(first, old.netns())?;
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../weave-ctl/src/legacy/testdata/weavedata.db");
        let file = first.data_dir().join("weavedata.db");
        fs::copy(&source, &file)?;

        // No name is given: the bridge has it.
        let launch = ["launch", "--nickname", "h1", "--ipalloc-init", "consensus=2"];
        first.weave(&launch)?.ok()?;
        let seed = format!("seed={},{}", first.peer_name(), second.peer_name());
        second.launch(&["--ipalloc-init", &seed, &first.address().to_string()])?;
        first.wait_connection_to(second, &["established fastdp"])?;

        // The ring and the addresses in use are known again.
        let page = first.weave(&["status", "ipam"])?.ok()?;
        let own = page.lines().next().unwrap_or_default();
        ensure!(
            own.starts_with("7a:00:00:00:00:01(h1)") && own.contains("(50.0% of total) (5 active)"),
            "{page}"
        );
        let (fresh, address) = first.attached("new")?;
        ensure!(
            address.to_string() == "10.32.0.4",
            "the lowest free address is 10.32.0.4, not {address}"
        );
        let (far, there) = second.attached("far")?;

        // The old container has kept its address, is reached from everywhere, and follows our MTU.
        let old_address = OLD.parse()?;
        for (from, to) in [
            (&old, address),
            (&old, there),
            (&fresh, old_address),
            (&far, old_address),
        ] {
            from.wait_ping(to)?;
        }
        let mtu = |link: &str| {
            let words: Vec<&str> = link.split_whitespace().collect();
            let at = words.iter().position(|word| *word == "mtu")?;
            words.get(at + 1)?.parse::<u32>().ok()
        };
        wait_for("our MTU inside the old container", LIMIT, || {
            let show = |c: &weave_tests::lab::Container| c.exec(&["ip", "-o", "link", "show", "ethwe"])?.ok();
            let (old, new) = (show(&old)?, show(&fresh)?);
            ensure!(
                mtu(&old).context("no MTU")? == mtu(&new).context("no MTU")?,
                "{old}{new}"
            );
            Ok(Some(()))
        })?;

        // The file is read once, and stays as it was; a reset takes it away, or it would come to life again.
        ensure!(fs::read(&file)? == fs::read(&source)?, "the file was changed");
        first.weave(&["stop"])?.ok()?;
        fs::write(&file, b"nobody reads this any more")?;
        first.weave(&launch)?.ok()?;
        let page = first.weave(&["status", "ipam"])?.ok()?;
        ensure!(page.contains("(6 active)"), "{page}");
        first.weave(&["reset"])?.ok()?;
        ensure!(!file.exists(), "the file has survived a reset");
        Ok(())
    });
}

#[test]
fn a_file_that_cannot_be_used_is_no_reason_to_forget_addresses() {
    Plan::mesh(1).test("migrate-not", |lab| {
        let host = lab.host(1)?;
        let file = host.data_dir().join("weavedata.db");
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../weave-ctl/src/legacy/testdata/weavedata.db");
        fs::copy(&source, &file)?;
        let other = host.weave(&["launch", "--name", "::9"])?.fails_with(1)?;
        ensure!(other.contains("launch with --name 7a:00:00:00:00:01"), "{other}");
        fs::write(&file, b"half of it")?;
        let damaged = host.weave(&["launch", "--name", "::9"])?.fails_with(1)?;
        ensure!(
            damaged.contains("weavedata.db") && damaged.contains("no BoltDB file"),
            "{damaged}"
        );
        // As it says: moved away, we start anew.
        fs::rename(&file, host.data_dir().join("old.db"))?;
        host.weave(&["launch", "--name", "::9"])?.ok().map(drop)
    });
}
