//! Docker's network plugins (cli.md 8.6): networks across hosts, names, addresses of one's own, and
//! Docker while the daemon is away.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, ensure};
use weave_tests::engine::{Engine, folder};
use weave_tests::lab::{Host, Lab, Plan};
use weave_tests::process::{self, Background, LIMIT, wait_for};

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

/// Sockets that are there before the daemon and outlive it, as `weave-plugin.socket` of systemd makes them.
struct Sockets([UnixListener; 2]);

impl Sockets {
    fn new(host: &Host) -> Result<Self> {
        let folder = folder(host)?.join("plugins");
        let listen = |name| UnixListener::bind(folder.join(name));
        Ok(Self([listen("weave.sock")?, listen("weavemesh.sock")?]))
    }

    /// The daemon, as systemd starts it.
    fn daemon(&self, engine: &Engine) -> Result<Background> {
        let program = engine.host().binary().display().to_string();
        let mut command = engine.command("sh")?;
        let script = r#"export LISTEN_PID=$$ LISTEN_FDS=2 && exec "$0" launch --foreground --name "$1""#;
        command.args(["-c", script, &program, &engine.host().peer_name()]);
        process::pass_sockets(&mut command, &self.0.each_ref().map(AsFd::as_fd))?;
        Background::start(&mut command)
    }
}

/// Ask 23 of control.md 9: what Docker wants of us while we are away waits in the socket, and is done when we are back.
#[test]
fn docker_waits_for_a_daemon_that_comes_back() {
    Plan::mesh(1).test("pluginaway", |lab: &Lab| {
        let host = lab.host(1)?;
        let engine = Engine::start(host)?;
        let sockets = Sockets::new(host)?;
        let first = sockets.daemon(&engine)?;
        wait_for("the network", LIMIT, || {
            engine.docker(&["network", "inspect", "weave"])?.ok().map(Some)
        })?;
        engine.run("gone", "weave")?;
        host.kill_daemon()?;
        drop(first);

        let docker = |args: &[&str]| host.spawn(&[&["docker"], args].concat());
        let removing = docker(&["rm", "--force", "gone"])?;
        let starting = docker(&[
            "run",
            "--detach",
            "--net=weave",
            "--name=new",
            "box",
            "sleep",
            "100000",
        ])?;
        // Nothing else is held up.
        engine.docker(&["network", "ls"])?.ok()?;
        engine
            .docker(&["run", "--rm", "--net=none", "box", "true"])?
            .ok()?;

        let _second = sockets.daemon(&engine)?;
        removing.finish(LIMIT)?.ok()?;
        starting.finish(LIMIT)?.ok()?;
        address(&engine, "new", "weave")?;
        engine.weave(&["stop"])?.ok()?;
        ensure!(
            folder(host)?.join("plugins/weave.sock").exists(),
            "it is not ours to remove"
        );
        Ok(())
    });
}

/// The same without systemd: somebody stands in for the daemon.
#[test]
fn docker_while_the_daemon_is_away() {
    Plan::mesh(1).test("pluginstandby", |lab: &Lab| {
        let host = lab.host(1)?;
        let mut engine = Engine::start(host)?;
        launch(&[&engine], &[])?;
        for name in ["first", "second"] {
            engine.run(name, "weave")?;
        }
        let first = address(&engine, "first", "weave")?;
        host.kill_daemon()?;

        // What ends is ended, what begins is refused, and nothing waits.
        engine.docker(&["network", "inspect", "weave"])?.ok()?;
        engine.docker(&["rm", "--force", "first"])?.ok()?;
        let refused = engine
            .docker(&["run", "--net=weave", "box", "true"])?
            .fails_with(125)?;
        ensure!(
            refused.contains("weave is not running on this host; start it with 'weave launch'"),
            "{refused}"
        );
        engine.stop_dockerd()?;
        engine.start_dockerd()?;
        let log = engine.log()?;
        ensure!(!log.contains("Unable to connect to plugin"), "{log}");

        // What was given back meanwhile is free, and all goes on.
        launch(&[&engine], &[])?;
        ensure!(
            !engine.owned()?.contains(&format!("{first}/")),
            "{}",
            engine.owned()?
        );
        engine.docker(&["start", "second"])?.ok()?;
        engine.weave(&["stop"])?.ok()?;
        engine.docker(&["rm", "--force", "second"])?.ok()?;
        launch(&[&engine], &[])?;
        ensure!(!engine.owned()?.contains("/12"), "{}", engine.owned()?);
        engine.weave(&["stop"])?.ok()?;
        let left = std::fs::read_dir(folder(host)?.join("plugins"))?.count();
        ensure!(left == 0, "sockets are left");
        Ok(())
    });
}
