//! Where the proxy listens and who is led there (cli.md 4.5, and 8.5: 650, 690).

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::Command;

use anyhow::{Result, ensure};
use weave_tests::engine::{Engine, folder};
use weave_tests::lab::{Lab, Plan, netns};
use weave_tests::process::{self, Background, LIMIT, wait_for};
use weave_tests::proxied::{INTERFACE, World};

/// A shell that is led to the proxy, uses it, and is led back.
const SHELL: &str = r#"
set -e
eval "$(weave-ctl env)"
docker run --rm --network none box "$@"
echo "at $DOCKER_HOST"
weave-ctl env
eval "$(weave-ctl env)"
eval "$(weave-ctl env --restore)"
echo "back at $DOCKER_HOST"
"#;

/// Who has the proxy in the environment can use the commands that ask.
fn commands(world: &World<'_>) -> Result<()> {
    world.run_detached("c1", &["--network", "none"])?;
    let weave = world.engine.host().binary().display().to_string();
    let proxy = format!("unix://{}", world.socket().display());
    for (args, part) in [
        (&["version"][..], "weave "),
        (&["ps"], "weave:expose "),
        (&["ps", "c1"], "10.32."),
        (&["status"], "Service: proxy\n"),
    ] {
        let mut command = world.engine.command(&weave)?;
        command.env("DOCKER_HOST", &proxy).args(args);
        let shown = process::run(&mut command, LIMIT)?.ok()?;
        ensure!(shown.contains(part), "{args:?}: {shown}");
        let direct = world.engine.weave(args)?.ok()?;
        ensure!(shown == direct, "{args:?}: {shown} instead of {direct}");
    }
    Ok(())
}

/// Into the proxy and back, in one shell, for the first of some places.
fn environment(world: &World<'_>) -> Result<()> {
    let docker = format!("unix://{}", world.files()?.join("docker.sock").display());
    let socket = format!("unix://{}", world.socket().display());
    let restore = world.engine.weave(&["env", "--restore"])?.fails_with(1)?;
    ensure!(restore.starts_with("Nothing to restore. "), "{restore}");
    for (options, address) in [
        (&["-H=tcp://0.0.0.0:12375"][..], "tcp://127.0.0.1:12375"),
        (
            &["-H=tcp://127.0.0.1:12376", &format!("-H={socket}")],
            "tcp://127.0.0.1:12376",
        ),
        (&[&format!("-H={socket}")], &socket),
    ] {
        world.launch(options)?;
        let env = world.engine.weave(&["env"])?.ok()?;
        ensure!(
            env == format!("export DOCKER_HOST={address} ORIG_DOCKER_HOST={docker}\n"),
            "{env}"
        );
        ensure!(world.engine.weave(&["config"])?.ok()? == format!("-H={address}\n"));
        let mut shell = world.engine.command("sh")?;
        let said = process::run(shell.args(["-c", SHELL, "sh"]).args(INTERFACE), LIMIT)?.ok()?;
        let expected = format!("at {address}\nexport DOCKER_HOST={address} \nback at {docker}\n");
        ensure!(
            said.contains(" inet 10.32.") && said.ends_with(&expected),
            "{said}"
        );
        world.stop()?;
        let env = world.engine.weave(&["env"])?;
        ensure!(env.success() && env.stdout.is_empty(), "{env}");
    }
    Ok(())
}

/// A service manager's sockets, by their names.
struct Sockets {
    unix: UnixListener,
    tcp: TcpListener,
}

impl Sockets {
    /// The daemon with some of them, as a service manager starts it.
    fn daemon(&self, engine: &Engine<'_>, options: &[&str]) -> Result<Command> {
        let mut command = engine.command("sh")?;
        let script = r#"export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=local:remote
            exec "$0" launch --foreground --plugin=false --name "$@""#;
        command.args(["-c", script, &engine.host().binary().display().to_string()]);
        command.arg(engine.host().peer_name()).args(options);
        process::pass_sockets(&mut command, &[self.unix.as_fd(), self.tcp.as_fd()])?;
        Ok(command)
    }
}

/// They are taken by name, belong to the service manager, and outlive the daemon.
fn inherited(world: &World<'_>) -> Result<()> {
    let (engine, host) = (&world.engine, world.engine.host());
    let path = world.files()?.join("local.sock");
    let sockets = Sockets {
        unix: UnixListener::bind(&path)?,
        tcp: netns::inside(host.netns(), || Ok(TcpListener::bind("127.0.0.1:4243")?))?,
    };
    let (local, remote) = (format!("unix://{}", path.display()), "tcp://127.0.0.1:4243");
    let start = |options: &[&str], shown: &str| -> Result<Background> {
        let daemon = Background::start(&mut sockets.daemon(engine, options)?)?;
        let shown = format!("Service: proxy\n        Address: {shown}\n");
        wait_for(&shown, LIMIT, || {
            let status = engine.weave(&["status"])?.ok()?;
            ensure!(status.contains(&shown), "{status}");
            Ok(Some(()))
        })?;
        Ok(daemon)
    };
    let command = |address: &str| {
        [
            &["docker", "-H", address, "run", "--rm", "--network", "none", "box"][..],
            &INTERFACE,
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>()
    };
    let run = |address: &str| -> Result<()> {
        let args = command(address);
        let shown = host
            .exec(&args.iter().map(String::as_str).collect::<Vec<_>>())?
            .ok()?;
        ensure!(shown.contains(" inet 10.32."), "{address}: {shown}");
        Ok(())
    };
    let daemon = start(&["-H=fd://"], &format!("{local}, {remote}"))?;
    run(&local)?;
    run(remote)?;
    engine.weave(&["stop"])?.ok()?;
    daemon.finish(LIMIT)?.ok()?;

    // One of them only; and who asks while the daemon is away is answered when it is back.
    let daemon = start(&["-H=fd://remote"], remote)?;
    run(remote)?;
    host.kill_daemon()?;
    drop(daemon);
    let args = command(&local);
    let waiting = host.spawn(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
    let daemon = start(&["-H=fd://local"], &local)?;
    let shown = waiting.finish(LIMIT)?.ok()?;
    ensure!(shown.contains(" inet 10.32."), "{shown}");
    engine.weave(&["stop"])?.ok()?;
    daemon.finish(LIMIT)?.ok()?;
    ensure!(path.exists(), "it is not ours to remove");

    let refused = process::run(&mut sockets.daemon(engine, &["-H=fd://nope"])?, LIMIT)?.fails_with(1)?;
    let expected = "Cannot listen on fd://nope: no such socket was passed to us";
    ensure!(refused.contains(expected), "{refused}");
    Ok(())
}

#[test]
fn clients_are_led_to_the_proxy() {
    Plan::mesh(1).test("proxyenv", |lab: &Lab| {
        let world = World::start(lab.host(1)?)?;
        world.launch(&[])?;
        commands(&world)?;
        world.stop()?;
        environment(&world)?;
        inherited(&world)
    });
}

/// Who reaches Docker over TCP finds the proxy there, too, unless it is told where to listen.
#[test]
fn docker_over_tcp() {
    Plan::mesh(1).test("proxytcp", |lab: &Lab| {
        let host = lab.host(1)?;
        let world = World {
            engine: Engine::start_with_tcp(host, "127.0.0.1:2375")?,
        };
        let (engine, socket) = (&world.engine, world.socket());
        let unix = format!("unix://{}", socket.display());
        let docker = |address: &str, args: &[&str]| host.exec(&[&["docker", "-H", address], args].concat());
        let run = [&["run", "--rm", "--network", "none", "box"], &INTERFACE[..]].concat();
        for (options, shown, reached) in [
            (&[][..], "tcp://0.0.0.0:12375", "tcp://127.0.0.1:12375"),
            (
                &["-H=tcp://127.0.0.1:12399"],
                "tcp://127.0.0.1:12399",
                "tcp://127.0.0.1:12399",
            ),
            (&[&format!("-H={unix}")], &unix, &unix),
        ] {
            engine.launch(options)?;
            let status = engine.weave(&["status"])?.ok()?;
            ensure!(
                status.contains(&format!("Service: proxy\n        Address: {shown}\n")),
                "{status}"
            );
            let env = engine.weave(&["env"])?.ok()?;
            ensure!(
                env == format!("export DOCKER_HOST={reached} ORIG_DOCKER_HOST=tcp://127.0.0.1:2375\n"),
                "{env}"
            );
            ensure!(socket.exists() == (reached == unix), "{options:?}");
            if shown != "tcp://0.0.0.0:12375" {
                let message = docker("tcp://127.0.0.1:12375", &["version"])?.fails_with(1)?;
                ensure!(message.contains("Cannot connect"), "{message}");
            }
            let attached = docker(reached, &run)?.ok()?;
            ensure!(attached.contains(" inet 10.32."), "{attached}");
            world.stop()?;
        }
        ensure!(
            folder(host)?.join("docker.sock").exists(),
            "Docker's own socket is gone"
        );
        Ok(())
    });
}
