//! `expose` and `hide`: what hosts reach, what containers must not, and what stays.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_tests::lab::{Container, Host, Lab, Plan, netns};
use weave_tests::process::{LIMIT, wait_for};

/// A table of somebody else, with what an administrator would do to export and to import a service.
const FOREIGN: &str = "table ip foreign {
    chain prerouting {
        type nat hook prerouting priority -100; policy accept;
        ip daddr 172.30.0.1 tcp dport 2211 dnat to INSIDE:4422
        ip daddr EXPOSED tcp dport 3322 dnat to 172.30.0.2:2211
    }
}";

fn expose(host: &Host, args: &[&str]) -> Result<Vec<Ipv4Addr>> {
    printed(host, "expose", args)
}

fn hide(host: &Host, args: &[&str]) -> Result<Vec<Ipv4Addr>> {
    printed(host, "hide", args)
}

fn printed(host: &Host, command: &str, args: &[&str]) -> Result<Vec<Ipv4Addr>> {
    let mut all = vec![command];
    all.extend(args);
    let line = host.weave(&all)?.ok()?;
    ensure!(
        line.ends_with('\n') && line.lines().count() == 1,
        "printed {line:?}"
    );
    let parse = |word: &str| word.parse().with_context(|| format!("printed {line:?}"));
    line.split_whitespace().map(parse).collect()
}

fn the_one(addresses: &[Ipv4Addr]) -> Result<Ipv4Addr> {
    match addresses {
        [one] => Ok(*one),
        other => anyhow::bail!("one address expected: {other:?}"),
    }
}

/// Waits until one ping from the host is answered.
fn wait_ping(host: &Host, target: Ipv4Addr) -> Result<()> {
    let target = target.to_string();
    wait_for(&format!("an answer from {target}"), LIMIT, || {
        host.exec(&["ping", "-n", "-c", "1", "-W", "1", &target])?
            .ok()
            .map(Some)
    })
    .map(drop)
}

fn no_ping(host: &Host, target: Ipv4Addr) -> Result<()> {
    let target = target.to_string();
    let output = host.exec(&["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", &target])?;
    ensure!(!output.success(), "an answer that must not come: {output}");
    Ok(())
}

fn attached(host: &Host, name: &str, subnet: &str) -> Result<(Container, Ipv4Addr)> {
    let container = host.container(name)?;
    let addresses = host.attach(&container, &[subnet])?;
    Ok((container, the_one(&addresses)?))
}

fn ruleset(host: &Host) -> Result<String> {
    host.exec(&["nft", "list", "ruleset"])?.ok()
}

fn load(host: &Host, rules: &str) -> Result<()> {
    host.exec(&["sh", "-c", "printf '%s\\n' \"$1\" | nft -f -", "sh", rules])?
        .ok()
        .map(drop)
}

/// Connects from one namespace to `target`, which leads to `port` in another; the address that the service sees.
fn seen_by_service(client: &str, target: SocketAddr, service: &str, port: u16) -> Result<IpAddr> {
    let listener = netns::inside(service, || Ok(TcpListener::bind(("0.0.0.0", port))?))?;
    listener.set_nonblocking(true)?;
    let mut stream = netns::inside(client, || {
        TcpStream::connect_timeout(&target, LIMIT).with_context(|| format!("connecting to {target}"))
    })?;
    let (served, from) = wait_for("the connection", LIMIT, || match listener.accept() {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        accepted => Ok(Some(accepted?)),
    })?;
    drop(served);
    // Nothing more comes, and no reset: the way back works.
    stream.set_read_timeout(Some(LIMIT))?;
    ensure!(stream.read(&mut [0])? == 0);
    Ok(from.ip())
}

#[test]
fn hosts_reach_what_is_exposed_and_containers_stay_apart() {
    Plan::mesh(2).test("expose", |lab: &Lab| {
        lab.launch_all(&[])?;
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        let (red, blue) = ("net:10.32.1.0/24", "net:10.32.2.0/24");
        let (red1, red1_at) = attached(first, "red", red)?;
        let (blue1, blue1_at) = attached(first, "blue", blue)?;
        let (_, red2_at) = attached(second, "red", red)?;
        no_ping(first, red1_at)?;

        let exposed = the_one(&expose(first, &[red])?)?;
        ensure!(
            expose(first, &[red])? == [exposed],
            "another address the second time"
        );
        for target in [red1_at, red2_at] {
            wait_ping(first, target)?;
        }
        red1.wait_ping(exposed)?;
        no_ping(first, blue1_at)?;
        let ps = first.weave(&["ps", "weave:expose"])?.ok()?;
        ensure!(ps.contains(&format!(" {exposed}/24\n")), "{ps}");

        // The other host, from its own address to ours.
        let other = the_one(&expose(second, &[red])?)?;
        wait_ping(second, exposed)?;
        ensure!(hide(second, &[red])? == [other]);

        // With both subnets open, containers still do not see each other.
        expose(first, &[blue])?;
        wait_ping(first, blue1_at)?;
        red1.no_ping(blue1_at)?;
        blue1.no_ping(red1_at)?;
        not_through_dockers_bridge(first, red1_at)?;

        // Others reach a container through this host, and a container reaches others through it.
        first.exec(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?.ok()?;
        let foreign = FOREIGN.replace("INSIDE", &red1_at.to_string());
        let foreign = foreign.replace("EXPOSED", &exposed.to_string());
        load(first, &foreign)?;
        let target = (first.address(), 2211).into();
        let seen = seen_by_service(second.netns(), target, red1.netns(), 4422)?;
        ensure!(seen == exposed, "the container sees {seen}");
        let target = (exposed, 3322).into();
        let seen = seen_by_service(red1.netns(), target, second.netns(), 2211)?;
        ensure!(seen == first.address(), "the other host sees {seen}");

        // What is hidden is gone, however often; what is not, stays.
        let before = ruleset(first)?;
        ensure!(hide(first, &[red])? == [exposed]);
        ensure!(hide(first, &[red])?.is_empty(), "hidden twice");
        no_ping(first, red1_at)?;
        wait_ping(first, blue1_at)?;
        let after = ruleset(first)?;
        ensure!(
            before.contains("10.32.1.0/24") && !after.contains("10.32.1.0/24"),
            "{after}"
        );
        ensure!(
            after.contains("10.32.2.0/24") && after.contains("table ip foreign"),
            "{after}"
        );
        Ok(())
    });
}

/// A container of Docker's bridge, for which the host is the router, does not get into weave.
fn not_through_dockers_bridge(host: &Host, target: Ipv4Addr) -> Result<()> {
    let docker = host.container("docker")?;
    let name = docker.netns();
    let on_host = |args: &str| -> Result<()> {
        let mut all = vec!["-n", host.netns()];
        all.extend(args.split(' '));
        netns::ip(&all).map(drop)
    };
    on_host("link add docker0 type bridge")?;
    on_host("address add 172.17.0.1/16 dev docker0")?;
    on_host("link set docker0 up")?;
    on_host(&format!(
        "link add vethd master docker0 type veth peer name eth0 netns {name}"
    ))?;
    on_host("link set vethd up")?;
    for args in [
        "address add 172.17.0.2/16 dev eth0",
        "link set eth0 up",
        "route add default via 172.17.0.1",
    ] {
        let mut all = vec!["-n", name];
        all.extend(args.split(' '));
        netns::ip(&all)?;
    }
    host.exec(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?.ok()?;
    docker.wait_ping(Ipv4Addr::new(172, 17, 0, 1))?;
    docker.no_ping(target)
}

#[test]
fn what_is_exposed_outlives_the_daemon_and_not_a_reset() {
    Plan::mesh(1).test("exposed", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&[])?;
        load(host, "table ip foreign {\n\tchain c {\n\t}\n}")?;
        let before = ruleset(host)?;
        let first = the_one(&expose(host, &["--without-masquerade"])?)?;
        let given = "10.99.0.1/24";
        ensure!(expose(host, &[given])? == [Ipv4Addr::new(10, 99, 0, 1)]);
        let rules = ruleset(host)?;
        ensure!(
            rules.contains("ip saddr 10.99.0.0/24") && !rules.contains("ip saddr 10.32.0.0/12"),
            "{rules}"
        );
        let (container, address) = host.attached("c")?;
        wait_ping(host, address)?;

        // The daemon dies: nothing changes, and its successor knows all.
        host.kill_daemon()?;
        wait_ping(host, address)?;
        host.launch(&["--resume"])?;
        ensure!(ruleset(host)? == rules, "{}", ruleset(host)?);
        wait_ping(host, address)?;

        // The bridge is gone, as after a restart of the host. The address comes back and nobody else gets it.
        host.weave(&["stop"])?.ok()?;
        netns::ip(&["-n", host.netns(), "link", "del", "weave"])?;
        host.exec(&["nft", "delete", "table", "ip", "weave"])?.ok()?;
        host.launch(&["--resume"])?;
        ensure!(ruleset(host)? == rules, "{}", ruleset(host)?);
        let ps = host.weave(&["ps", "weave:expose"])?.ok()?;
        ensure!(ps.contains(&format!(" {first}/12")) && ps.contains(given), "{ps}");
        let (_, next) = host.attached("d")?;
        ensure!(next != first && next != address, "{next} has two owners");
        wait_ping(host, next)?;
        ensure!(expose(host, &[])? == [first], "another address");
        drop(container);

        // An address that was taken from the bridge meanwhile stays away.
        host.kill_daemon()?;
        netns::ip(&["-n", host.netns(), "address", "del", given, "dev", "weave"])?;
        host.launch(&["--resume"])?;
        let ps = host.weave(&["ps", "weave:expose"])?.ok()?;
        ensure!(
            ps.contains(&format!(" {first}/12")) && !ps.contains(given),
            "{ps}"
        );

        // What is given back can be had by others.
        ensure!(hide(host, &[])? == [first]);
        let other = host.container("e")?;
        let wanted = format!("{first}/12");
        ensure!(host.attach(&other, &[&wanted])? == [first]);

        for (args, part) in [
            (&["expose", "nonsense"][..], "'nonsense' is no address"),
            (
                &["expose", "-h", "a.weave.local", "-h", "b.weave.local"],
                "Usage:",
            ),
            (&["hide", "a.weave.local"], "is no address"),
            (&["expose", "net:10.98.0.0/24"], "out of bounds"),
        ] {
            let message = host.weave(args)?.fails_with(1)?;
            ensure!(message.contains(part), "{args:?}: {message}");
        }

        expose(host, &[])?;
        ensure!(ruleset(host)? != before, "no rules");
        host.weave(&["reset"])?.ok()?;
        ensure!(ruleset(host)? == before, "{}", ruleset(host)?);
        let links = netns::ip(&["-n", host.netns(), "link", "show"])?;
        ensure!(!links.contains("weave"), "{links}");
        Ok(())
    });
}

#[test]
fn a_firewall_that_drops_lets_exposed_traffic_pass() {
    Plan::mesh(2).test("firewall", |lab: &Lab| {
        let (host, client) = (lab.host(1)?, lab.host(2)?);
        weave_tests::engine::need("iptables")?;
        // As Docker leaves it.
        host.exec(&["iptables", "-P", "FORWARD", "DROP"])?.ok()?;
        host.exec(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?.ok()?;
        host.launch(&[])?;
        let (container, address) = host.attached("c")?;
        let exposed = the_one(&expose(host, &[])?)?;
        wait_ping(host, address)?;
        let foreign = FOREIGN.replace("INSIDE", &address.to_string());
        load(host, &foreign.replace("EXPOSED", &exposed.to_string()))?;
        let target = (host.address(), 2211).into();
        let seen = seen_by_service(client.netns(), target, container.netns(), 4422)?;
        ensure!(seen == exposed, "the container sees {seen}");
        host.weave(&["reset"])?.ok()?;
        let left = host.exec(&["iptables", "-S"])?.ok()?;
        ensure!(
            !left.contains("WEAVE") && left.contains("-P FORWARD DROP"),
            "{left}"
        );
        Ok(())
    });
}

#[test]
fn a_missing_program_is_named() {
    Plan::mesh(1).test("nonft", |lab: &Lab| {
        let host = lab.host(1)?;
        let mut command = host.command("weave-ctl")?;
        command
            .env("PATH", "/nowhere")
            .args(["launch", "--name", &host.peer_name()]);
        weave_tests::process::run(&mut command, Duration::from_secs(120))?.ok()?;
        let message = host.weave(&["expose"])?.fails_with(1)?;
        ensure!(
            message.contains("unable to expose: the program nft is missing") && message.contains("nftables"),
            "{message}"
        );
        let ps = host.weave(&["ps", "weave:expose"])?.ok()?;
        ensure!(!ps.contains('/'), "exposed all the same: {ps}");
        Ok(())
    });
}
