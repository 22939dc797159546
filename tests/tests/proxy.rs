//! The Docker API proxy in front of a real engine (control.md 4.2 to 4.8; cli.md 8.5).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_tests::certificates::Certificates;
use weave_tests::engine::{BRIDGE, Engine, GATEWAY, folder};
use weave_tests::lab::{Lab, Plan};
use weave_tests::process::{self, Background, LIMIT, wait_for};
use weave_tests::proxied::{INTERFACE, SLEEP, World};

/// Where the proxy says it is.
fn addresses(world: &World<'_>) -> Result<()> {
    let engine = &world.engine;
    let address = format!("unix://{}", world.socket().display());
    let status = engine.weave(&["status"])?.ok()?;
    ensure!(
        status.contains(&format!("Service: proxy\n        Address: {address}\n")),
        "{status}"
    );
    let report = engine
        .weave(&["report", "-f", "{{range .Proxy.Addresses}}{{.}} {{end}}"])?
        .ok()?;
    ensure!(report == format!("{address} "), "{report}");
    let env = engine.weave(&["env"])?.ok()?;
    let docker = world.files()?.join("docker.sock");
    ensure!(
        env == format!(
            "export DOCKER_HOST={address} ORIG_DOCKER_HOST=unix://{}\n",
            docker.display()
        ),
        "{env}"
    );
    ensure!(engine.weave(&["config"])?.ok()? == format!("-H={address}\n"));
    let (ours, dockers) = (fs::metadata(world.socket())?, fs::metadata(docker)?);
    ensure!(ours.permissions().mode() == dockers.permissions().mode() && ours.gid() == dockers.gid());
    world.docker(&["version"])?.ok().map(drop)
}

/// The interface is there before the command begins, and the address is told.
fn attached(world: &World<'_>) -> Result<()> {
    let shown = world.run(&[], &INTERFACE)?;
    ensure!(shown.contains(" inet 10.32."), "{shown}");
    world.run_detached("c1", &[])?;
    let cidrs = world.cidrs("c1")?;
    let told = world.inspect(
        "c1",
        "{{.NetworkSettings.IPAddress}}/{{.NetworkSettings.IPPrefixLen}}",
    )?;
    ensure!([told.clone()] == cidrs[..], "{told} {cidrs:?}");
    let mac = world.inspect("c1", "{{.NetworkSettings.MacAddress}}")?;
    let line = world.engine.weave(&["ps", "c1"])?.ok()?;
    ensure!(line.split(' ').nth(1) == Some(mac.as_str()), "{mac} {line}");
    // As anybody, and its hosts file has the address.
    let address = |cidr: &str| cidr.split('/').next().unwrap_or_default().to_owned();
    let shown = world.run(&["--user", "4711"], &["busybox", "hostname", "-i"])?;
    ensure!(shown.trim().starts_with("10.32."), "{shown}");
    let shown = world.docker(&["exec", "c1", "busybox", "hostname", "-i"])?.ok()?;
    ensure!(shown.trim() == address(&told), "{shown}");

    // One mount more, which nobody can write to.
    let volumes = ["--detach", "--name", "mounts", "-v", "/a", "-v", "/b"];
    world.docker(&[&["run"], &volumes[..], &SLEEP].concat())?.ok()?;
    ensure!(world.inspect("mounts", "{{len .Mounts}}")? == "3");
    let message = world
        .docker(&["exec", "mounts", "busybox", "touch", "/w/w"])?
        .fails_with(1)?;
    ensure!(message.contains("Read-only file system"), "{message}");
    // What is executed in somebody else's container does not wait.
    world.engine.run("foreign", "none")?;
    world.docker(&["exec", "foreign", "busybox", "true"])?.ok()?;
    let restarted = world.docker(&["restart", "--time", "0", "c1"])?;
    restarted.ok()?;
    ensure!(world.cidrs("c1")? == cidrs, "another address after a restart");
    Ok(())
}

/// Entrypoints and commands of requests and images, and the words of errors.
fn commands(world: &World<'_>) -> Result<()> {
    let message = world.docker(&["create", "box"])?.fails_with(1)?;
    ensure!(
        message == "Error response from daemon: No command specified\n",
        "{message}"
    );
    let message = world.docker(&["run", "--rm", "box", "nope"])?.fails_with(1)?;
    ensure!(
        message.contains("exec: \"nope\": executable file not found in $PATH"),
        "{message}"
    );
    // A client pulls what is not there; here it has nowhere to pull it from.
    let message = world
        .docker(&["run", "--rm", "127.0.0.1:1/nope"])?
        .fails_with(125)?;
    ensure!(
        message.contains("Unable to find image '127.0.0.1:1/nope:latest' locally"),
        "{message}"
    );

    let context = world.files()?.join("context");
    fs::create_dir_all(&context)?;
    fs::write(context.join("large"), "x".repeat(300_000))?;
    let dockerfile = "FROM box\nCOPY large /large\nRUN busybox wc -c /large\n\
                      ENTRYPOINT [\"busybox\", \"echo\", \"entry\"]\nCMD [\"cmd\"]\n";
    fs::write(context.join("Dockerfile"), dockerfile)?;
    let built = world
        .docker(&["build", "--tag", "both", &context.display().to_string()])?
        .ok()?;
    ensure!(built.contains("300000 /large"), "{built}");
    let echo = ["--entrypoint", "busybox", "both", "echo", "given"];
    for (args, printed) in [
        (&["both"][..], "entry cmd\n"),
        (&["both", "x", "y"], "entry x y\n"),
        (&echo, "given\n"),
    ] {
        let got = world.docker(&[&["run", "--rm"], args].concat())?.ok()?;
        ensure!(got == printed, "{args:?}: {got}");
    }
    // A committed container starts as it did, with one helper only.
    world.docker(&["create", "--name", "first", "both"])?.ok()?;
    world.docker(&["commit", "first", "again"])?.ok()?;
    ensure!(world.docker(&["run", "--rm", "again"])?.ok()? == "entry cmd\n");
    world.docker(&["create", "--name", "second", "again"])?.ok()?;
    ensure!(world.inspect("second", "{{.Config.Entrypoint}}")? == "[/w/w busybox echo entry]");

    // Without a version, and with numbers that are no floating-point ones.
    let (status, body) = world.post(
        "/containers/create?name=raw",
        r#"{"Image":"both","HostConfig":{"Memory":67108865,"Unknown":9007199254740993}}"#,
    )?;
    ensure!(status == 201, "{status} {body}");
    ensure!(
        world.inspect("raw", "{{.HostConfig.Memory}} {{.Config.Entrypoint}}")?
            == "67108865 [/w/w busybox echo entry]"
    );
    let (status, body) = world.post("/v1.41/containers/nope/start", "")?;
    ensure!(
        (status, body.as_str()) == (404, "No such container: nope\n"),
        "{status} {body}"
    );
    Ok(())
}

/// Which containers are attached, and with what.
fn choices(world: &World<'_>) -> Result<()> {
    let none = ["busybox", "sh", "-c", "! ip link show ethwe 2>/dev/null"];
    world.run(&["--network", "host"], &none)?;
    world.run(&["--env", "WEAVE_CIDR=none"], &none)?;
    world.run(&["--network", "container:c1"], &INTERFACE)?;
    for (name, network, cidr, expected) in [
        ("w1", "none", "10.48.9.1/24", &["10.48.9.1/24"][..]),
        (
            "w2",
            "bridge",
            "net:10.32.7.0/24 ip:10.49.1.1/16",
            &["10.32.7.", "10.49.1.1/16"],
        ),
        ("w3", "default", "", &["10.32."]),
    ] {
        let variable = format!("WEAVE_CIDR={cidr}");
        world.run_detached(name, &["--network", network, "--env", &variable])?;
        let cidrs = world.cidrs(name)?;
        let fits = cidrs.len() == expected.len()
            && cidrs
                .iter()
                .zip(expected)
                .all(|(cidr, start)| cidr.starts_with(start));
        ensure!(fits, "{cidr:?} gives {cidrs:?}");
    }
    let all = [
        &["run", "--detach", "--name", "bad", "--env", "WEAVE_CIDR=10.1.1.1"],
        &SLEEP[..],
    ]
    .concat();
    let message = world.docker(&all)?.fails_with(125)?;
    let reason = "Error response from daemon: for \"10.1.1.1\": invalid CIDR address: 10.1.1.1";
    ensure!(message.contains(reason), "{message}");
    wait_for("the container that was not attached to be killed", LIMIT, || {
        Ok((world.inspect("bad", "{{.State.Running}}")? == "false").then_some(()))
    })
}

/// Names, and how they are found.
fn names(world: &World<'_>) -> Result<()> {
    world.run_detached("ant", &["--add-host", "old:10.0.0.8"])?;
    world.run_detached("bee", &["--label", "hostname=labelled"])?;
    ensure!(world.inspect("ant", "{{.Config.Hostname}}.{{.Config.Domainname}}")? == "ant.weave.local");
    ensure!(world.inspect("bee", "{{.Config.Hostname}}")? == "labelled");
    ensure!(
        world.inspect("ant", "{{.HostConfig.Dns}} {{.HostConfig.DnsSearch}}")? == format!("[{GATEWAY}] [.]")
    );
    for (from, name) in [("bee", "ant"), ("ant", "labelled.weave.local")] {
        wait_for(&format!("{name} in {from}"), LIMIT, || {
            let asked = world.docker(&["exec", from, "ping", "-c", "1", "-W", "1", name])?;
            asked.ok().map(Some)
        })?;
    }
    let hosts = world
        .docker(&["exec", "ant", "busybox", "cat", "/etc/hosts"])?
        .ok()?;
    ensure!(
        hosts.contains("ant.weave.local ant\n") && hosts.contains("10.0.0.8         old\n"),
        "{hosts}"
    );
    Ok(())
}

/// Everything that is not one question and one answer.
fn streams(world: &World<'_>) -> Result<()> {
    // The end of the input ends `cat`, not the connection.
    let input = "0123456789abcdef".repeat(20_000);
    let exec = [
        "exec",
        "--interactive",
        "c1",
        "busybox",
        "sh",
        "-c",
        "busybox cat; echo end",
    ];
    let output = world.with_input(&exec, &input)?.ok()?;
    ensure!(
        output == format!("{input}end\n"),
        "{} bytes come back",
        output.len()
    );
    let run = ["run", "--rm", "--interactive", "box", "busybox", "wc", "-c"];
    let output = world.with_input(&run, &input)?.ok()?;
    ensure!(output.trim() == input.len().to_string(), "{output}");
    let script = ["busybox", "sh", "-c", "busybox cat; exit 3"];
    let run = [&["run", "--interactive", "--name", "status", "box"], &script[..]].concat();
    world.with_input(&run, "x")?.fails_with(3)?;

    // As old clients have it: no upgrade, and what they say comes right after the head.
    let exec = r#"{"AttachStdin":true,"AttachStdout":true,"Cmd":["busybox","cat"]}"#;
    let (status, body) = world.post("/v1.41/containers/c1/exec", exec)?;
    ensure!(status == 201, "{body}");
    let id = body.split('"').nth(3).context("no exec ID")?;
    let answer = world.raw(format!(
        "POST /v1.41/exec/{id}/start HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n\
         Content-Length: 28\r\n\r\n{{\"Detach\":false,\"Tty\":false}}hello"
    ))?;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n";
    ensure!(
        answer.starts_with(head) && !answer.contains("hunked") && answer.ends_with("\u{5}hello"),
        "{answer:?}"
    );

    // A chunk of more than 64 KiB.
    let script = ["busybox", "sh", "-c", "busybox seq 1 60000"];
    world
        .docker(&[&["run", "--name", "much", "box"], &script[..]].concat())?
        .ok()?;
    let logs = world.docker(&["logs", "much"])?.ok()?;
    ensure!(logs.ends_with("\n60000\n") && logs.lines().count() == 60_000);
    let files = world.files()?;
    let (saved, copied) = (files.join("saved.tar"), files.join("copied"));
    world
        .docker(&["save", "--output", &saved.display().to_string(), "box"])?
        .ok()?;
    ensure!(fs::metadata(&saved)?.len() > 500_000);
    world
        .docker(&["load", "--input", &saved.display().to_string()])?
        .ok()?;
    let large = files.join("context/large");
    world
        .docker(&["cp", &large.display().to_string(), "c1:/copied"])?
        .ok()?;
    world
        .docker(&["cp", "c1:/copied", &copied.display().to_string()])?
        .ok()?;
    ensure!(
        fs::read(&copied)? == fs::read(&large)?,
        "a file came back changed"
    );

    // What goes on for ever is passed on at once.
    let events = Background::start(&mut world.command(&["events", "--filter", "event=create"])?)?;
    wait_for("an event", LIMIT, || {
        world.run(
            &["--network", "none", "--env", "WEAVE_CIDR=none"],
            &["busybox", "true"],
        )?;
        Ok(events.printed()?.contains("container create").then_some(()))
    })?;
    let script = "echo ready; while [ ! -e /go ]; do busybox usleep 20000; done; echo gone";
    let ticker = [
        "run", "--detach", "--name", "ticker", "box", "busybox", "sh", "-c", script,
    ];
    world.docker(&ticker)?.ok()?;
    let logs = Background::start(&mut world.command(&["logs", "--follow", "ticker"])?)?;
    wait_for("the first line", LIMIT, || {
        Ok((logs.printed()? == "ready\n").then_some(()))
    })?;
    world
        .docker(&["exec", "ticker", "busybox", "touch", "/go"])?
        .ok()?;
    wait_for("the last line", LIMIT, || {
        Ok((logs.printed()? == "ready\ngone\n").then_some(()))
    })?;
    // It ends with the container.
    let follow = world.docker(&["logs", "--follow", "ticker"])?.ok()?;
    ensure!(follow == "ready\ngone\n", "{follow}");
    Ok(())
}

/// Host configurations in requests that start, as old versions of the API have them.
fn old_starts(world: &World<'_>) -> Result<()> {
    let oldest = world
        .docker(&["version", "--format", "{{.Server.MinAPIVersion}}"])?
        .ok()?;
    let minor = oldest.trim().rsplit('.').next().context("no version")?;
    if minor.parse::<u32>()? > 21 {
        // This engine has forgotten them.
        return Ok(());
    }
    let create = |name: &str, extra: &str| -> Result<()> {
        let body = format!(r#"{{"Image":"box","Cmd":["sleep","100000"]{extra}}}"#);
        let (status, text) = world.post(&format!("/v1.21/containers/create?name={name}"), &body)?;
        ensure!(status == 201, "{status} {text}");
        Ok(())
    };
    for (name, body, attached) in [
        ("old-empty", "", true),
        ("old-null", "null", true),
        ("old-nothing", "{}", true),
        ("old-config", r#"{"HostConfig":{}}"#, true),
        ("old-dns", r#"{"Dns":["192.0.2.53"]}"#, true),
        ("old-host", r#"{"HostConfig":{"NetworkMode":"host"}}"#, false),
        ("old-shared", r#"{"NetworkMode":"container:c1"}"#, false),
    ] {
        create(name, "")?;
        let (status, text) = world.post(&format!("/v1.21/containers/{name}/start"), body)?;
        ensure!(status == 204, "{name}: {status} {text}");
        let exec = ["exec", name, "busybox", "true"];
        world.engine.docker(&exec)?.ok()?;
        let mode = world.inspect(name, "{{.HostConfig.NetworkMode}}")?;
        ensure!(attached == (mode == "default"), "{name}: {mode}");
        if attached {
            ensure!(world.cidrs(name)?.len() == 1, "{name} is not attached");
        }
    }
    let servers = world.inspect("old-dns", "{{.HostConfig.Dns}}")?;
    ensure!(servers == format!("[192.0.2.53 {GATEWAY}]"), "{servers}");
    Ok(())
}

/// TLS over TCP, a link to the socket, and everything switched off that can be.
fn other_options(world: &World<'_>) -> Result<()> {
    let tls = Certificates::make(world.engine.host(), &world.files()?.join("tls"))?;
    let link = world.files()?.join("link.sock");
    let link_option = format!("-H=unix://{}", link.display());
    let mut options = vec![
        "-H=tcp://0.0.0.0:12375",
        &link_option,
        "--tlsverify",
        "--no-default-ipalloc",
        "--without-dns",
        "--no-rewrite-hosts",
        "--no-multicast-route",
    ];
    let server = tls.server_options();
    options.extend(server.iter().map(String::as_str));
    world.launch(&options)?;
    let status = world.engine.weave(&["status"])?.ok()?;
    let shown = format!(
        "Address: tcp://0.0.0.0:12375, unix://{}, unix://{}\n",
        link.display(),
        world.socket().display()
    );
    ensure!(status.contains(&shown), "{status}");
    ensure!(world.engine.weave(&["config"])?.ok()? == "-H=tcp://127.0.0.1:12375\n");

    let docker = |certificate: bool, args: &[&str]| {
        let mut all = vec!["docker".to_owned(), "-H=tcp://127.0.0.1:12375".to_owned()];
        if certificate {
            all.push("--tlsverify".to_owned());
            all.extend(tls.client_options());
        }
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        world
            .engine
            .host()
            .exec(&all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    ensure!(!docker(false, &["version"])?.success(), "without TLS");
    ensure!(
        !docker(false, &["--tls", "version"])?.success(),
        "without a certificate"
    );
    docker(true, &["version"])?.ok()?;
    let plain = [
        "run",
        "--rm",
        "box",
        "busybox",
        "sh",
        "-c",
        "! ip link show ethwe 2>/dev/null",
    ];
    docker(true, &plain)?.ok()?;
    let script = "ip -o -4 address show dev ethwe; ip route; busybox cat /etc/hosts /etc/resolv.conf";
    let asked = [
        "run",
        "--rm",
        "--name=quiet",
        "--env=WEAVE_CIDR=",
        "box",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    let shown = docker(true, &asked)?.ok()?;
    ensure!(shown.contains(" inet 10.32."), "{shown}");
    let nameserver = format!("nameserver {GATEWAY}\n");
    for unwanted in ["224.0.0.0", "Weave", &nameserver, "quiet"] {
        ensure!(!shown.contains(unwanted), "{unwanted} in {shown}");
    }
    let through =
        world
            .engine
            .host()
            .exec(&["docker", &format!("-H=unix://{}", link.display()), "version"])?;
    through.ok()?;
    // One that was made when there was a route for multicast does not wait for it any more.
    world.engine.docker(&["stop", "--time", "0", "w3"])?.ok()?;
    docker(true, &["start", "w3"])?.ok()?;
    let routes = docker(true, &["exec", "w3", "ip", "route"])?.ok()?;
    ensure!(
        routes.contains("dev ethwe") && !routes.contains("224.0.0.0"),
        "{routes}"
    );
    world.stop()?;
    ensure!(fs::symlink_metadata(&link).is_err(), "the link stays");
    Ok(())
}

/// What keeps a proxy that was asked for from starting.
fn refusals(world: &World<'_>) -> Result<()> {
    let fails = |args: &[&str], text: &str| -> Result<()> {
        let message = world.engine.weave(&[&["launch"], args].concat())?.fails_with(1)?;
        ensure!(message.contains(text), "{args:?}: {message}");
        ensure!(!world.socket().exists());
        Ok(())
    };
    fails(
        &["-H", "foo://bar"],
        "FATA: Invalid protocol format: \"foo://bar\"",
    )?;
    fails(
        &["-H", "unix://relative"],
        "When launching the proxy, unix sockets must be specified as an absolute path.",
    )?;
    fails(
        &["--hostname-match", "("],
        "FATA: Could not start proxy: Incorrect hostname match '('",
    )?;
    fails(
        &["-H=:12376", "--tlsverify", "--tlscacert=/nope"],
        "Could not configure tls for proxy: Couldn't read CA certificate: ",
    )?;
    fails(
        &["-H=tcp://192.0.2.1:1", "--no-detect-tls"],
        "Cannot listen on tcp://192.0.2.1:1: ",
    )?;
    fails(
        &["--proxy", "--docker-api=unix:///nope.sock"],
        "Could not start proxy: ",
    )
}

#[test]
fn containers_through_the_proxy() {
    Plan::mesh(1).test("proxy", |lab: &Lab| {
        let world = World::start(lab.host(1)?)?;
        ensure!(world.engine.weave(&["env"])?.stdout.is_empty(), "nothing runs");
        world.launch(&["--rewrite-inspect", "--hostname-from-label=hostname"])?;
        addresses(&world)?;
        attached(&world)?;
        commands(&world)?;
        choices(&world)?;
        names(&world)?;
        streams(&world)?;
        old_starts(&world)?;
        world.stop()?;
        refusals(&world)?;
        other_options(&world)
    });
}

/// Without Docker the daemon starts all the same, and the proxy comes with Docker.
#[test]
fn docker_comes_later() {
    Plan::mesh(1).test("proxylate", |lab: &Lab| {
        let host = lab.host(1)?;
        let mut engine = Engine::prepare(host, BRIDGE)?;
        engine.launch(&[])?;
        let socket = host.run_dir().join("weave.sock");
        ensure!(!socket.exists());
        ensure!(engine.weave(&["config"])?.fails_with(1)?.is_empty());
        ensure!(!engine.weave(&["dns-args"])?.ok()?.contains(GATEWAY));
        Engine::make_bridge(host)?;
        engine.start_dockerd()?;
        wait_for("the proxy", Duration::from_secs(90), || {
            Ok(socket.exists().then_some(()))
        })?;
        // And names are answered where Docker's containers ask.
        wait_for("WeaveDNS at Docker's bridge", LIMIT, || {
            let args = engine.weave(&["dns-args"])?.ok()?;
            Ok(args.contains(&format!("--dns={GATEWAY} ")).then_some(()))
        })?;
        let through = |args: &[&str]| {
            let option = format!("-H=unix://{}", socket.display());
            host.exec(&[&["docker", option.as_str()], args].concat())
        };
        through(&["version"])?.ok()?;
        // It goes away, and comes back.
        engine.stop_dockerd()?;
        let message = through(&["version"])?.fails_with(1)?;
        ensure!(message.contains("Could not connect to target"), "{message}");
        engine.start_dockerd()?;
        through(&["version"])?.ok()?;
        engine.weave(&["stop"])?.ok()?;
        ensure!(!Path::new(&socket).exists());
        Ok(())
    });
}

/// A Docker that is reached over TCP with TLS only, as `DOCKER_HOST` and its companions say.
#[test]
fn docker_behind_tls() {
    Plan::mesh(1).test("dockertls", |lab: &Lab| {
        let host = lab.host(1)?;
        let files = folder(host)?;
        let tls = Certificates::make(host, &files.join("tls"))?;
        let engine = Engine::start_with_tls(host, "127.0.0.1:2376", &tls)?;
        let listen = format!("-H=unix://{}", host.run_dir().join("weave.sock").display());
        let world = World { engine };
        world.engine.launch(&[&listen])?;
        let shown = world.run(&["--network", "none"], &INTERFACE)?;
        ensure!(shown.contains(" inet 10.32."), "{shown}");
        // The command asks Docker as well, and the daemon hears of what happens to the container.
        world.engine.run("plain", "none")?;
        let address = world.engine.attach("plain")?;
        world.engine.docker(&["restart", "--time", "0", "plain"])?.ok()?;
        let again = wait_for("plain to be attached again", LIMIT, || {
            Ok(world.cidrs("plain")?.pop())
        })?;
        ensure!(
            again.starts_with(&format!("{address}/")),
            "{again} after {address}"
        );
        world
            .engine
            .docker(&["run", "--detach", "--network", "weave", "box", "sleep", "100000"])?
            .ok()?;
        world.stop()?;

        // Its own authority is another one.
        let other = Certificates::make(host, &files.join("other"))?;
        let mut command = world.engine.command(&host.binary().display().to_string())?;
        command
            .args(["launch", "--proxy", &listen, "--docker-api=tcp://127.0.0.1:2376"])
            .env("DOCKER_TLS_VERIFY", "1")
            .env("DOCKER_CERT_PATH", other.client_folder());
        let message = process::run(&mut command, LIMIT)?.fails_with(1)?;
        let expected = "Could not start proxy: no Docker at tcp://127.0.0.1:2376: invalid peer certificate";
        ensure!(message.contains(expected), "{message}");
        Ok(())
    });
}
