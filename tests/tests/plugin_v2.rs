//! What is made for Docker out of this machine's files: the managed plugin in a swarm of two engines (cli.md 8.6,
//! 850_plugin_v2_cross_hosts_2), and the container image.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_tests::engine::{Engine, folder};
use weave_tests::image;
use weave_tests::lab::{Lab, Plan};
use weave_tests::process::{self, LIMIT, wait_for};

/// Far longer than a slow, busy machine takes for it.
const COMPRESSING: Duration = Duration::from_secs(900);

fn address(engine: &Engine, container: &str) -> Result<String> {
    let shown = engine
        .docker(&[
            "exec", container, "ip", "-o", "-4", "address", "show", "dev", "ethwe0",
        ])?
        .ok()?;
    let cidr = shown.split_whitespace().find(|word| word.contains('/'));
    let address = cidr.and_then(|cidr| cidr.split('/').next());
    Ok(address
        .with_context(|| format!("no address: {shown}"))?
        .to_owned())
}

#[test]
fn a_service_of_a_swarm_on_two_hosts() {
    Plan::mesh(2).test("pluginv2", |lab: &Lab| {
        let engines = [Engine::start(lab.host(1)?)?, Engine::start(lab.host(2)?)?];
        let [one, two] = &engines;
        let manager = lab.host(1)?.address().to_string();
        one.docker(&["swarm", "init", "--advertise-addr", &manager])?
            .ok()?;
        let token = one.docker(&["swarm", "join-token", "--quiet", "worker"])?.ok()?;
        two.docker(&[
            "swarm",
            "join",
            "--token",
            token.trim(),
            &format!("{manager}:2377"),
        ])?
        .ok()?;

        let made = folder(lab.host(1)?)?.join("managed");
        image::plugin(&made, lab.host(1)?.binary(), &lab.host(1)?.artifacts()?)?;
        std::thread::scope(|scope| {
            let enabling = engines
                .each_ref()
                .map(|engine| scope.spawn(|| enable(engine, &made)));
            enabling
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|_| Ok(())))
        })?;
        let status = lab.host(1)?.weave(&["status"])?.ok()?;
        ensure!(status.contains("Service: plugin (v2)\n"), "{status}");
        // Told by Docker who else is in the swarm.
        lab.host(2)?.wait_connections(1, "established")?;

        one.docker(&[
            "network",
            "create",
            "--driver=weave:test",
            "--subnet=10.50.0.0/24",
            "net",
        ])?
        .ok()?;
        #[rustfmt::skip]
        one.docker(&["service", "create", "--detach", "--no-resolve-image", "--name=web", "--mode=global",
                     "--network=net", "box", "sleep", "100000"])?.ok()?;
        let mut found = Vec::new();
        for engine in &engines {
            found.push(wait_for("the service's container", LIMIT, || {
                let ids = engine.docker(&["ps", "--quiet", "--filter", "name=web"])?.ok()?;
                let Some(id) = ids.lines().next() else {
                    return Ok(None);
                };
                Ok(Some((id.to_owned(), address(engine, id)?)))
            })?);
        }
        let [(id, _), (_, target)] = found.as_slice() else {
            unreachable!()
        };
        wait_for("an answer from the other host", LIMIT, || {
            one.docker(&["exec", id, "ping", "-c", "1", "-W", "1", target])?
                .ok()
                .map(Some)
        })?;
        Ok(())
    });
}

fn enable(engine: &Engine, made: &Path) -> Result<()> {
    let host = engine.host();
    // The client compresses it, on one core.
    let mut create = host.command("docker")?;
    create.args(["plugin", "create", "weave:test"]).arg(made);
    process::run(&mut create, COMPRESSING)?.ok()?;
    let docker = format!("docker.source={}", folder(host)?.join("docker.sock").display());
    // The hosts of a lab have one machine ID, so they would have one name.
    let args = format!("EXTRA_ARGS=--name {}", host.peer_name());
    engine
        .docker(&["plugin", "set", "weave:test", &docker, &args])?
        .ok()?;
    engine.docker(&["plugin", "enable", "weave:test"])?.ok().map(drop)
}

#[test]
fn the_image_runs_and_attaches() {
    Plan::mesh(1).test("image", |lab: &Lab| {
        let host = lab.host(1)?;
        let engine = Engine::start(host)?;
        let folder = folder(host)?;
        let (rootfs, to) = (folder.join("rootfs"), folder.join("image.tar"));
        image::rootfs(&rootfs, host.binary(), &host.artifacts()?)?;
        image::archive(&rootfs, &folder.join("work"), "weave:test", &to)?;
        engine
            .docker(&["load", "--input", &to.display().to_string()])?
            .ok()?;

        let mount = |path: &Path, to: &str| format!("--volume={}:{to}", path.display());
        #[rustfmt::skip]
        engine.docker(&["run", "--detach", "--name=weave", "--privileged", "--net=host", "--pid=host",
                        &mount(&folder.join("docker.sock"), "/var/run/docker.sock"),
                        &mount(&folder.join("plugins"), "/run/docker/plugins"),
                        &mount(&host.data_dir(), "/var/lib/weave"), "--volume=/sys/fs/bpf:/sys/fs/bpf",
                        "weave:test", "launch", "--name", &host.peer_name()])?.ok()?;
        let status = wait_for("the daemon in the container", LIMIT, || {
            host.weave(&["status"])?.ok().map(Some)
        })?;
        ensure!(status.contains("Program: loaded"), "no fast path: {status}");
        let weave = |args: &[&str]| {
            engine
                .docker(&[&["exec", "weave", "weave"][..], args].concat())?
                .ok()
        };
        let mut addresses = Vec::new();
        for name in ["first", "second"] {
            engine.run(name, "none")?;
            addresses.push(weave(&["attach", name])?.trim().to_owned());
        }
        engine
            .docker(&[
                "exec",
                "first",
                "ping",
                "-c",
                "1",
                addresses.last().context("two")?,
            ])?
            .ok()?;
        // The network plugin, too.
        engine.run("third", "weave")?;
        engine
            .docker(&[
                "exec",
                "third",
                "ping",
                "-c",
                "1",
                addresses.first().context("two")?,
            ])?
            .ok()?;
        weave(&["expose"])?;
        Ok(())
    });
}
