//! Lives of containers of the proxy (control.md 4.7; cli.md 8.5: 640): those that come and go, come back, sleep, are
//! removed before they are attached, or change while nobody looks.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_tests::lab::{Lab, Plan};
use weave_tests::process::{self, Background, LIMIT, signal, wait_for};
use weave_tests::proxied::World;

/// Addresses of containers that have ended are kept for 30 s.
const PATIENCE: Duration = Duration::from_secs(120);
/// 14 addresses, for containers that come and go.
const SMALL: &str = "WEAVE_CIDR=net:10.32.200.0/28";
/// More that nobody else takes.
const OWN: &str = "WEAVE_CIDR=net:10.32.201.0/28";

/// Fifty that come and go in a subnet of fourteen addresses.
fn short_lives(world: &World<'_>) -> Result<()> {
    let script = r#"
        one() {
            docker run --rm -e "$1" box ip -4 -o address show dev ethwe 2>&1 | grep -q " 10[.]32[.]200[.]" ||
                echo "container $2 had no address"
        }
        n=0
        while [ $n -lt 50 ]; do
            for k in 1 2 3 4 5; do one "$1" "$n-$k" & done
            wait
            n=$((n + 5))
        done"#;
    let mut command = world.through("sh")?;
    let said = process::run(command.args(["-c", script, "sh", SMALL]), 2 * PATIENCE)?.ok()?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

/// Waits until a container reaches an address.
fn reaches(world: &World<'_>, from: &str, cidr: &str) -> Result<()> {
    let address = cidr.split('/').next().context("no address")?;
    wait_for(&format!("{from} to reach {address}"), LIMIT, || {
        let pinged = world
            .engine
            .docker(&["exec", from, "ping", "-c", "1", "-W", "1", address])?;
        pinged.ok().map(Some)
    })
    .map(drop)
}

/// Its process is killed by somebody else than Docker.
fn comes_back(world: &World<'_>) -> Result<()> {
    world.run_detached("always", &["--restart", "always", "--env", OWN])?;
    let (cidr, killed) = (world.cidr("always")?, world.inspect("always", "{{.State.Pid}}")?);
    process::run(world.engine.command("kill")?.args(["-KILL", &killed]), LIMIT)?.ok()?;
    wait_for("the restart policy, and its address", PATIENCE, || {
        let now = world.inspect("always", "{{.State.Pid}}")?;
        Ok((now != killed && world.cidrs("always")? == [cidr.as_str()]).then_some(()))
    })?;
    reaches(world, "always", &world.cidr("witness")?)
}

/// It sleeps while the daemon is killed and starts again.
fn sleeps(world: &World<'_>) -> Result<()> {
    for name in ["sleeper", "killed"] {
        world.run_detached(name, &["--env", OWN])?;
        world.docker(&["pause", name])?.ok()?;
    }
    let cidr = world.cidr("sleeper")?;
    world.engine.host().kill_daemon()?;
    world.launch(&[])?;
    ensure!(world.cidr("sleeper")? == cidr, "{:?}", world.cidrs("sleeper")?);
    world.docker(&["unpause", "sleeper"])?.ok()?;
    ensure!(world.cidr("sleeper")? == cidr, "{:?}", world.cidrs("sleeper")?);
    reaches(world, "witness", &cidr)?;
    reaches(world, "sleeper", &world.cidr("witness")?)?;
    world.docker(&["kill", "killed"])?.ok().map(drop)
}

/// The daemon stands still while containers start, are killed and are removed without the proxy.
fn nobody_looks(world: &World<'_>) -> Result<()> {
    let (engine, host) = (&world.engine, world.engine.host());
    let wait = format!("{}:/w:ro", host.data_dir().join("wait/w").display());
    for n in 0..6 {
        world.run_detached(&format!("old{n}"), &["--network", "none"])?;
    }
    let daemons = host.daemon_pids();
    daemons.iter().for_each(|pid| signal(*pid, libc::SIGSTOP));
    let script = r#"
        for n in 0 1 2 3; do docker restart --time 0 old$n & done; docker rm --force old4; docker kill old5
        wait
        for n in 0 1 2 3 4 5 6 7 8 9; do
            for k in a b; do
                docker run --detach --network none --name new$k$n -v "$1" --entrypoint /w/w box sleep 100000 &
            done
            wait
            case $n in [0-3]) docker kill newb$n ;; [4-9]) docker rm --force newb$n ;; esac
        done"#;
    let done = engine.host().exec(&["sh", "-c", script, "sh", &wait]);
    daemons.iter().for_each(|pid| signal(*pid, libc::SIGCONT));
    done?.ok()?;
    for name in (0..4)
        .map(|n| format!("old{n}"))
        .chain((0..10).map(|n| format!("newa{n}")))
    {
        wait_for(&format!("{name} to be attached"), LIMIT, || {
            Ok((world.cidrs(&name)?.len() == 1).then_some(()))
        })?;
    }
    Ok(())
}

/// Exactly those containers that run have addresses.
fn nothing_is_left(world: &World<'_>) -> Result<()> {
    let listed = world.engine.docker(&["ps", "--quiet", "--no-trunc"])?.ok()?;
    let mut running: Vec<&str> = listed.lines().collect();
    running.sort_unstable();
    wait_for(
        "the addresses of those that have ended to be free",
        PATIENCE,
        || {
            let owned: serde_json::Value = serde_json::from_str(&world.engine.owned()?)?;
            let all = owned["owned"].as_array().context("no list")?;
            let mut owners: Vec<&str> = all
                .iter()
                .filter_map(|owner| owner["containerid"].as_str())
                .collect();
            owners.sort_unstable();
            ensure!(owners == running, "{owned} are owned while these run: {listed}");
            Ok(Some(()))
        },
    )
}

#[test]
fn containers_that_come_and_go() {
    Plan::mesh(1).test("proxylife", |lab: &Lab| {
        let world = World::start(lab.host(1)?)?;
        world.launch(&[])?;
        for name in ["witness", "kept"] {
            world.run_detached(name, &["--env", OWN])?;
        }
        let kept = world.cidr("kept")?;
        world.docker(&["stop", "--time", "0", "kept"])?.ok()?;
        comes_back(&world)?;
        sleeps(&world)?;
        nobody_looks(&world)?;
        short_lives(&world)?;
        nothing_is_left(&world)?;
        world.docker(&["start", "kept"])?.ok()?;
        ensure!(
            world.cidr("kept")? == kept,
            "{:?} after {kept}",
            world.cidrs("kept")?
        );
        ensure!(world.engine.owned()?.contains(&kept), "{}", world.engine.owned()?);
        Ok(())
    });
}

/// Starts a container that waits for an address, which does not come.
fn waiting(world: &World<'_>, name: &str) -> Result<Background> {
    let args = ["run", "--detach", "--name", name, "box", "sleep", "100000"];
    let client = Background::start(&mut world.command(&args)?)?;
    wait_for("the container to wait", LIMIT, || {
        let format = ["inspect", "--format", "{{.State.Running}}", name];
        let running = world.engine.docker(&format)?.ok()? == "true\n";
        let asked = world
            .engine
            .weave(&["status"])?
            .ok()?
            .contains("awaiting consensus");
        Ok((running && asked).then_some(()))
    })?;
    Ok(client)
}

/// Nothing is attached and no address is taken.
fn nobody_is_left(world: &World<'_>) -> Result<()> {
    wait_for("nothing to be left", LIMIT, || {
        let (ps, owned) = (world.engine.weave(&["ps"])?.ok()?, world.engine.owned()?);
        let ipam = world.engine.weave(&["status", "ipam"])?.ok()?;
        ensure!(
            ps.lines().count() == 1 && !owned.contains("containerid"),
            "{ps}{owned}"
        );
        ensure!(ipam.trim().is_empty(), "{ipam}");
        Ok(Some(()))
    })
}

/// Removed or killed before there is an address: who waits for the start is answered, and nothing is left.
#[test]
fn containers_that_end_before_they_are_attached() {
    Plan::mesh(1).test("proxywait", |lab: &Lab| {
        let world = World::start(lab.host(1)?)?;
        world.launch(&["--ipalloc-init=consensus=3"])?;
        for how in [&["rm", "--force"][..], &["kill"]] {
            let name = how.concat();
            let client = waiting(&world, &name)?;
            world.engine.docker(&[how, &[&name]].concat())?.ok()?;
            client.finish(LIMIT)?;
            nobody_is_left(&world)?;
        }
        world.stop()
    });
}
