//! Containers of a real Docker engine: attach, traffic, `ps`, and what their end means.

use std::time::Duration;

use anyhow::{Context, ensure};
use weave_tests::engine::Engine;
use weave_tests::lab::{Lab, Plan};
use weave_tests::process::wait_for;

#[test]
fn containers_of_docker() {
    Plan::mesh(2).test("docker", |lab: &Lab| {
        let engine = Engine::start(lab.host(1)?)?;
        lab.launch_all(&[])?;
        let (other, other_address) = lab.host(2)?.attached("other")?;

        let id = engine.run("web", "none")?;
        let address = engine.attach("web")?;
        ensure!(engine.attach(&id)? == address, "another address by ID");
        other.wait_ping(address)?;
        let target = other_address.to_string();
        engine
            .docker(&["exec", "web", "ping", "-c", "1", &target])?
            .ok()?;

        // Listed by the beginning of the ID, or as asked for.
        let short = id.get(..12).context("a short ID")?;
        let all = engine.weave(&["ps"])?.ok()?;
        ensure!(
            all.lines()
                .any(|line| line.starts_with(&format!("{short} "))
                    && line.ends_with(&format!(" {address}/12"))),
            "ps printed {all:?}"
        );
        let one = engine.weave(&["ps", "web"])?.ok()?;
        ensure!(
            one.starts_with("web ") && one.lines().count() == 1,
            "ps web printed {one:?}"
        );

        let detached = engine.weave(&["detach", "web"])?.ok()?;
        ensure!(
            detached.trim() == address.to_string(),
            "detach printed {detached:?}"
        );
        other.no_ping(address)
    });
}

#[test]
fn docker_containers_that_cannot_be_attached() {
    Plan::mesh(1).test("nodocker", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&[])?;
        let message = host.weave(&["attach", "web"])?.fails_with(1)?;
        ensure!(message.starts_with("cannot reach Docker at unix://"), "{message}");

        let engine = Engine::start(host)?;
        engine.run("hosty", "host")?;
        engine
            .docker(&["create", "--network", "none", "--name", "stopped", "box", "sh"])?
            .ok()?;
        for (name, text) in [
            (
                "nope",
                "unable to inspect container nope: No such container: nope\n",
            ),
            ("stopped", "container stopped not running\n"),
            (
                "hosty",
                "Container is running in the host network namespace, and therefore cannot be\n\
                 connected to weave - perhaps the container was started with --net=host\n",
            ),
        ] {
            let message = engine.weave(&["attach", name])?.fails_with(1)?;
            ensure!(message == text, "attach {name}: {message}");
            ensure!(
                engine.weave(&["ps", name])?.ok()? == "\n",
                "ps {name} printed something"
            );
        }
        let owned = engine.owned()?;
        ensure!(
            !owned.contains("/12"),
            "a refused container has an address: {owned}"
        );
        Ok(())
    });
}

#[test]
fn a_removed_container_gives_its_address_back() {
    Plan::mesh(1).test("removed", |lab: &Lab| {
        let host = lab.host(1)?;
        // The daemon is there first: it must find Docker when that comes.
        host.launch(&[])?;
        let engine = Engine::start(host)?;
        let id = engine.run("web", "none")?;
        let address = engine.attach("web")?;
        ensure!(engine.owned()?.contains(&id), "no record of {id}");

        // A restarted container finds its address again.
        engine.docker(&["kill", "web"])?.ok()?;
        engine.docker(&["start", "web"])?.ok()?;
        ensure!(
            engine.attach("web")? == address,
            "another address after a restart"
        );

        engine.docker(&["rm", "--force", "web"])?.ok()?;
        wait_for("the address to be released", Duration::from_secs(20), || {
            let owned = engine.owned()?;
            Ok((!owned.contains(&id)).then_some(()))
        })?;
        engine.run("next", "none")?;
        ensure!(
            engine.attach("next")? == address,
            "the address is not given out again"
        );
        Ok(())
    });
}
