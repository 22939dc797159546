//! Docker's network plugins (cli.md 8.6): networks across hosts, names, addresses of one's own.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use weave_tests::engine::{Engine, folder};
use weave_tests::lab::{Host, Lab, Plan};
use weave_tests::process::{LIMIT, wait_for};

fn address(engine: &Engine, container: &str, network: &str) -> Result<Ipv4Addr> {
    let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
    let printed = engine
        .docker(&["inspect", "--format", &format, container])?
        .ok()?;
    printed
        .trim()
        .parse()
        .with_context(|| format!("inspect printed {printed:?}"))
}

fn ping(engine: &Engine, container: &str, target: Ipv4Addr) -> Result<()> {
    let what = format!("{container} to reach {target}");
    wait_for(&what, LIMIT, || {
        let pinged = engine.docker(&[
            "exec",
            container,
            "ping",
            "-c",
            "1",
            "-W",
            "1",
            &target.to_string(),
        ])?;
        pinged.ok().map(Some)
    })
    .map(drop)
}

/// Waits until the host knows exactly these addresses of a name.
fn wait_named(host: &Host, name: &str, addresses: &[Ipv4Addr]) -> Result<()> {
    let mut expected: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
    expected.sort_unstable();
    wait_for(&format!("{name} at {expected:?}"), LIMIT, || {
        let printed = host.weave(&["dns-lookup", name])?.ok()?;
        let mut found: Vec<&str> = printed.lines().collect();
        found.sort_unstable();
        ensure!(found == expected, "{found:?}");
        Ok(Some(()))
    })
}

fn launch(engines: &[&Engine], args: &[&str]) -> Result<()> {
    let majority = format!("--ipalloc-init=consensus={}", engines.len());
    let first = engines.first().context("an engine")?.host().address().to_string();
    for (index, engine) in engines.iter().enumerate() {
        let peer = (index > 0).then_some(first.as_str());
        let args: Vec<&str> = [majority.as_str()]
            .into_iter()
            .chain(args.iter().copied())
            .chain(peer)
            .collect();
        engine.launch(&args)?;
    }
    Ok(())
}

/// The original's 800_plugin_cross_hosts_2 and 810_plugin_router_restart.
#[test]
fn a_network_of_two_hosts_that_outlives_its_daemon() {
    Plan::mesh(2).test("plugin2", |lab: &Lab| {
        let (one, two) = (Engine::start(lab.host(1)?)?, Engine::start(lab.host(2)?)?);
        launch(&[&one, &two], &[])?;
        let status = lab.host(1)?.weave(&["status"])?.ok()?;
        ensure!(
            status.contains("Service: plugin (legacy)\n     DriverName: weave\n"),
            "{status}"
        );

        let id = one.run_with(
            "box",
            &["--net=weave", "--name=first", "--hostname=first.weave.local"],
        )?;
        two.run_with("box", &["--net=weave", "--name=second", "--network-alias=db"])?;
        let (first, second) = (
            address(&one, "first", "weave")?,
            address(&two, "second", "weave")?,
        );
        ping(&one, "first", second)?;
        ping(&two, "second", first)?;
        wait_named(lab.host(2)?, "first", &[first])?;
        for name in ["second", "db"] {
            wait_named(lab.host(1)?, name, &[second])?;
        }
        let routes = one.docker(&["exec", "first", "ip", "route"])?.ok()?;
        ensure!(
            routes.contains("224.0.0.0/4 dev ethwe0"),
            "no multicast route: {routes}"
        );
        let sysctl = "/proc/sys/net/ipv4/neigh/ethwe0/base_reachable_time_ms";
        wait_for("the settings for ARP", LIMIT, || {
            let set = one.docker(&["exec", "first", "busybox", "cat", sysctl])?.ok()?;
            Ok((set == "5000\n").then_some(()))
        })?;
        // Its port has our program, as doctor would tell.
        let doctor = one.weave(&["doctor"])?.stdout;
        ensure!(!doctor.contains("vethwl"), "{doctor}");

        // What is attached stays as it is; the network stays, too, and the user is told.
        let stopped = one.weave(&["stop"])?;
        let short = id.get(..12).context("a short ID")?;
        let told = format!("{}{}", stopped.stdout, stopped.stderr);
        ensure!(
            told.contains("still attached to network \"weave\"") && told.contains(short),
            "stop printed {told:?}"
        );
        one.launch(&[&two.host().address().to_string()])?;
        wait_named(lab.host(2)?, "first", &[first])?;
        let listed = one.weave(&["ps"])?.ok()?;
        ensure!(listed.contains(&format!("{first}/12")), "ps printed {listed}");
        ping(&two, "second", first)?;
        // It is not given to another.
        one.run_with("box", &["--net=weave", "--name=third"])?;
        ensure!(address(&one, "third", "weave")? != first, "given twice");

        // Names and addresses end with the containers.
        for name in ["first", "third"] {
            one.docker(&["rm", "--force", name])?.ok()?;
        }
        wait_named(lab.host(2)?, "first", &[])?;
        ensure!(!one.owned()?.contains("/12"), "{}", one.owned()?);
        one.weave(&["stop"])?.ok()?;
        let networks = one.docker(&["network", "ls"])?.ok()?;
        ensure!(!networks.contains("weave"), "{networks}");
        let left = std::fs::read_dir(folder(lab.host(1)?)?.join("plugins"))?.count();
        ensure!(left == 0, "sockets are left");
        Ok(())
    });
}

/// The original's 820_plugin_subnet, and the options of networks.
#[test]
fn networks_of_ones_own() {
    Plan::mesh(1).test("plugin1", |lab: &Lab| {
        let engine = Engine::start(lab.host(1)?)?;
        launch(&[&engine], &[])?;
        let create = |args: &[&str]| engine.docker(&[&["network", "create"], args].concat());
        create(&[
            "--driver=weavemesh",
            "--ipam-driver=weavemesh",
            "--subnet=10.40.1.0/24",
            "mesh",
        ])?
        .ok()?;
        create(&[
            "--driver=weave",
            "--subnet=10.40.2.0/24",
            "--opt=works.weave.multicast=true",
            "plain",
        ])?
        .ok()?;
        let refused =
            create(&["--driver=weavemesh", "--opt=works.weave.multicast=maybe", "bad"])?.fails_with(1)?;
        ensure!(refused.contains("unrecognized value \"maybe\""), "{refused}");

        for (name, network, ip, expected) in [
            ("mesh-given", "mesh", "--ip=10.40.1.1", "10.40.1.1"),
            ("mesh-next", "mesh", "", "10.40.1.2"),
            ("plain-given", "plain", "--ip=10.40.2.7", "10.40.2.7"),
        ] {
            let (net, name_arg) = (format!("--net={network}"), format!("--name={name}"));
            let options: Vec<&str> = [net.as_str(), name_arg.as_str(), ip]
                .into_iter()
                .filter(|o| !o.is_empty())
                .collect();
            engine.run_with("box", &options)?;
            let got = address(&engine, name, network)?;
            ensure!(got.to_string() == expected, "{name} has {got}");
        }
        ping(&engine, "mesh-next", "10.40.1.1".parse()?)?;
        let routes = |name: &str| engine.docker(&["exec", name, "ip", "route"])?.ok();
        ensure!(
            !routes("mesh-given")?.contains("224.0.0.0/4"),
            "multicast was not asked for"
        );
        ensure!(
            routes("plain-given")?.contains("224.0.0.0/4 dev ethwe0"),
            "multicast was asked for"
        );
        Ok(())
    });
}
