//! `cargo xtask demo --docker`: Docker's three ways onto the network, on two real engines.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use weave_tests::engine::{Engine, GATEWAY};
use weave_tests::lab::{Host, Lab};
use weave_tests::process::{self, LIMIT, wait_for};

use crate::shell::heading;

/// A host, its engine, and what was started there.
struct Docker<'a> {
    host: &'a Host,
    engine: Engine<'a>,
}

/// A container and its address on weave.
struct Started<'a> {
    on: &'a Docker<'a>,
    name: String,
    address: Ipv4Addr,
}

impl<'a> Docker<'a> {
    fn start(host: &'a Host) -> Result<Self> {
        let engine = Engine::start_with_bridge(host)?;
        Ok(Self { host, engine })
    }

    fn launch(&self, peers: &[&str]) -> Result<()> {
        let listen = format!("--dns-listen-address={GATEWAY}:53");
        self.engine.launch(&[&[listen.as_str()], peers].concat())
    }

    /// `docker ARGS…`, told as it is run; through the proxy if asked.
    fn docker(&self, args: &[&str], through_proxy: bool) -> Result<String> {
        let socket = self.host.run_dir().join("weave.sock");
        let (env, prompt) = match through_proxy {
            true => (Some(format!("unix://{}", socket.display())), "(weave-ctl env) "),
            false => (None, ""),
        };
        println!("{}# {prompt}docker {}", self.host.name(), args.join(" "));
        let mut command: Command = self.host.command("docker")?;
        command.args(args).envs(env.map(|host| ("DOCKER_HOST", host)));
        process::run(&mut command, LIMIT)?.ok()
    }

    fn weave(&self, args: &[&str]) -> Result<String> {
        println!("{}# weave-ctl {}", self.host.name(), args.join(" "));
        self.engine.weave(args)?.ok()
    }

    /// Where a container is on weave.
    fn started(&'a self, name: &str) -> Result<Started<'a>> {
        let address = wait_for(&format!("the address of {name}"), LIMIT, || {
            let inside = self
                .engine
                .docker(&["exec", name, "ip", "-4", "-o", "address"])?
                .ok()?;
            let line = inside.lines().find(|line| line.contains(" ethwe"));
            let cidr = line.and_then(|line| line.split_whitespace().nth(3));
            Ok(cidr.and_then(|cidr| cidr.split('/').next()?.parse().ok()))
        })?;
        println!("    {name} {address}");
        let name = name.to_owned();
        Ok(Started {
            on: self,
            name,
            address,
        })
    }
}

/// Shows all of it; the hosts are not launched yet.
pub fn show(lab: &Lab) -> Result<()> {
    heading("A Docker engine on each");
    let (first, second) = (Docker::start(lab.host(1)?)?, Docker::start(lab.host(2)?)?);
    first.launch(&[])?;
    second.launch(&[&first.host.address().to_string()])?;
    first.host.wait_connections(1, "established")?;
    let status = first.engine.weave(&["status"])?.ok()?;
    for service in ["Service: proxy", "Service: plugin"] {
        ensure!(status.contains(service), "no {service} in\n{status}");
    }
    print!("{status}");
    let run = ["run", "--detach", "--name"];
    let sleep = ["box", "sleep", "100000"];

    heading("By hand: weave-ctl attach");
    first.docker(
        &[&run[..], &["plain", "--hostname", "plain.weave.local"], &sleep].concat(),
        false,
    )?;
    first.weave(&["attach", "plain"])?;
    let mut all = vec![first.started("plain")?];

    heading("Through the proxy: the command starts when its interface is up");
    second.docker(&[&run[..], &["proxied"], &sleep].concat(), true)?;
    all.push(second.started("proxied")?);

    heading("As a network of Docker's");
    for docker in [&first, &second] {
        let name = format!("member-{}", docker.host.name());
        docker.docker(&[&run[..], &[&name, "--net", "weave"], &sleep].concat(), false)?;
        all.push(docker.started(&name)?);
    }

    heading("Everybody reaches everybody, by name where WeaveDNS is asked");
    for from in &all {
        for to in all.iter().filter(|to| to.name != from.name) {
            let target = to.address.to_string();
            let ping = ["exec", &from.name, "ping", "-c", "1", "-W", "1", &target];
            wait_for(&format!("{} to reach {}", from.name, to.name), LIMIT, || {
                from.on.engine.docker(&ping)?.ok().map(Some)
            })?;
            println!("{} -> {} ok", from.name, to.name);
        }
    }
    let named = wait_for("the name of the proxied container", LIMIT, || {
        let found = first.engine.weave(&["dns-lookup", "proxied"])?.ok()?;
        Ok((!found.trim().is_empty()).then_some(found))
    })?;
    println!("h1# weave-ctl dns-lookup proxied\n{}", named.trim());
    let expected = all.iter().find(|one| one.name == "proxied").context("started")?;
    ensure!(named.trim() == expected.address.to_string(), "another address");
    print!(
        "{}",
        second.docker(&["exec", "proxied", "ping", "-c", "1", "plain"], false)?
    );

    heading("A restart: same address");
    second.docker(&["restart", "--time", "0", "proxied"], true)?;
    let again = second.started("proxied")?;
    ensure!(again.address == expected.address, "another address");

    heading("weave-ctl ps, on h2");
    print!("{}", second.weave(&["ps"])?);

    heading("Clean up");
    for docker in [&first, &second] {
        let ids = docker.engine.docker(&["ps", "--quiet"])?.ok()?;
        let ids: Vec<&str> = ids.split_whitespace().collect();
        docker
            .engine
            .docker(&[&["rm", "--force"], &ids[..]].concat())?
            .ok()?;
        docker.weave(&["reset"])?;
    }
    Ok(())
}
