//! Containers' life on a real engine: those that wait in `/w/w` are attached before their command begins and
//! whenever they start again, and those of `weave attach` as well (control.md 4.3, 4.4, 4.7; cli.md 8.5).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_tests::engine::{self, Engine};
use weave_tests::lab::{Host, Lab, Plan};
use weave_tests::process::{self, Output, wait_for};

/// For everything that containers do in their own time.
const PATIENCE: Duration = Duration::from_secs(90);
/// 14 addresses, for containers that come and go.
const SMALL: &str = "10.32.200.0/28";

/// Containers made as the proxy makes them, but by hand.
struct Held<'a> {
    engine: &'a Engine<'a>,
    folder: String,
}

impl<'a> Held<'a> {
    fn new(engine: &'a Engine<'a>, host: &Host, way: &str) -> Self {
        let folder = host.data_dir().join("wait").join(way);
        Self {
            engine,
            folder: format!("{}:/w:ro", folder.display()),
        }
    }

    /// `docker ACTION -v …:/w:ro --entrypoint /w/w ARGS…`.
    fn docker(&self, action: &str, args: &[&str]) -> Result<Output> {
        let mut all = vec![
            action,
            "--network",
            "none",
            "-v",
            &self.folder,
            "--entrypoint",
            "/w/w",
        ];
        all.extend(args);
        self.engine.docker(&all)
    }
}

/// Address and length on `ethwe` of a running container; `None` without one.
fn address(engine: &Engine<'_>, name: &str) -> Result<Option<String>> {
    let shown = engine.docker(&["exec", name, "ip", "-4", "-o", "address", "show", "dev", "ethwe"])?;
    let mut words = shown.stdout.split_whitespace().skip_while(|word| *word != "inet");
    Ok(words.nth(1).map(str::to_owned))
}

fn wait_address(engine: &Engine<'_>, name: &str) -> Result<String> {
    wait_for(&format!("{name} to be attached"), PATIENCE, || {
        address(engine, name)
    })
}

/// An image with one static program and nothing else.
fn import_bare(host: &Host) -> Result<()> {
    let script = r#"cd "$1" && mkdir -p bare && cp "$(command -v busybox)" bare/busybox &&
        tar -C bare -cf bare.tar . && docker import bare.tar bare"#;
    let folder = engine::folder(host)?.display().to_string();
    host.exec(&["sh", "-c", script, "sh", &folder])?.ok().map(drop)
}

/// Without shell and libraries, as anybody, read-only; and with the words that people know when it fails.
fn waits_in_any_image(held: &Held<'_>) -> Result<()> {
    let shown = held.docker(
        "run",
        &[
            "--rm",
            "--user",
            "4711",
            "--read-only",
            "bare",
            "/busybox",
            "ip",
            "-4",
            "-o",
            "address",
            "show",
            "dev",
            "ethwe",
        ],
    )?;
    let text = shown.ok()?;
    ensure!(
        text.contains(" inet 10.32."),
        "started without an address: {text:?}"
    );

    for (args, error) in [
        (&["box"][..], "No command specified\n"),
        (
            &["box", "nope"],
            "exec: \"nope\": executable file not found in $PATH\n",
        ),
        (
            &["box", "/bin/nope"],
            "exec: \"/bin/nope\": stat /bin/nope: no such file or directory\n",
        ),
        (&["box", "/bin"], "exec: \"/bin\": permission denied\n"),
    ] {
        let mut all = vec!["--rm"];
        all.extend(args);
        let message = held.docker("run", &all)?.fails_with(1)?;
        ensure!(message == error, "{args:?}: {message:?}");
    }
    // The command's own status and signals.
    held.docker("run", &["--rm", "box", "sh", "-c", "exit 7"])?
        .fails_with(7)?;
    Ok(())
}

/// What does not wait, and what waits for less.
fn other_ways(engine: &Engine<'_>, host: &Host) -> Result<()> {
    let noop = Held::new(engine, host, "w-noop");
    let left_alone = &["--rm", "-e", "WEAVE_CIDR=none", "box", "sh", "-c", ":"];
    noop.docker("run", left_alone)?.ok()?;
    let nomcast = Held::new(engine, host, "w-nomcast");
    nomcast
        .docker("run", &["--rm", "box", "ip", "link", "show", "ethwe"])?
        .ok()
        .map(drop)
}

/// The same address after each kind of restart.
fn restarts(engine: &Engine<'_>, held: &Held<'_>) -> Result<()> {
    let keep = &[
        "--detach",
        "--restart",
        "always",
        "--name",
        "keep",
        "box",
        "sleep",
        "100000",
    ];
    held.docker("run", keep)?.ok()?;
    let cidr = wait_address(engine, "keep")?;
    engine.docker(&["restart", "--time", "0", "keep"])?.ok()?;
    let again = wait_address(engine, "keep")?;
    ensure!(again == cidr, "{again} after docker restart, {cidr} before");

    // The restart policy: its process is killed by somebody else than Docker.
    let pid = || -> Result<String> {
        let inspect = ["inspect", "--format", "{{.State.Pid}}", "keep"];
        Ok(engine.docker(&inspect)?.ok()?.trim().to_owned())
    };
    let killed = pid()?;
    let status = engine.command("kill")?.args(["-KILL", &killed]).status()?;
    ensure!(status.success(), "no process {killed}");
    wait_for("the restart policy", PATIENCE, || {
        let now = pid()?;
        Ok((now != "0" && now != killed).then_some(()))
    })?;
    let again = wait_address(engine, "keep")?;
    ensure!(
        again == cidr,
        "{again} after its process was killed, {cidr} before"
    );
    Ok(())
}

/// Attached while it ran: attached again after a restart, until it is detached.
fn dynamic(engine: &Engine<'_>) -> Result<()> {
    engine.run("plain", "none")?;
    let printed = engine
        .weave(&["attach", "net:default", "10.32.99.7/16", "plain"])?
        .ok()?;
    let addresses = || -> Result<Option<Vec<String>>> {
        let line = engine.weave(&["ps", "plain"])?.ok()?;
        let cidrs: Vec<String> = line.split_whitespace().skip(2).map(str::to_owned).collect();
        Ok((!cidrs.is_empty()).then_some(cidrs))
    };
    let before = addresses()?.context("not attached")?;
    ensure!(before.len() == 2, "attach printed {printed:?}, ps {before:?}");
    engine.docker(&["restart", "--time", "0", "plain"])?.ok()?;
    let after = wait_for("plain to be attached again", PATIENCE, addresses)?;
    ensure!(after == before, "{after:?} after a restart, {before:?} before");

    engine.weave(&["detach", "10.32.99.7/16", "plain"])?.ok()?;
    engine.docker(&["restart", "--time", "0", "plain"])?.ok()?;
    let after = wait_for("plain to be attached once more", PATIENCE, addresses)?;
    ensure!(
        after.len() == 1 && before.starts_with(&after),
        "{after:?} after one address was detached"
    );
    engine.docker(&["rm", "--force", "plain"])?.ok().map(drop)
}

/// Fifty that come and go in a subnet of fourteen addresses, and some that are removed in the middle of it.
fn short_lives(engine: &Engine<'_>, held: &Held<'_>, host: &Host) -> Result<()> {
    let script = r#"
        one() {
            docker run --rm --network none -v "$1" --entrypoint /w/w -e "WEAVE_CIDR=net:$2" box ip -4 -o address |
                grep -q " 10[.]32[.]200[.]" || echo "container $3 had no address"
            docker run --detach --network none --name "gone$3" -v "$1" --entrypoint /w/w -e "WEAVE_CIDR=net:$2" box sh -c : > /dev/null
            docker rm --force "gone$3" > /dev/null
        }
        n=0
        while [ $n -lt 25 ]; do
            for k in 1 2 3 4 5; do one "$1" "$2" "$n-$k" & done
            wait
            n=$((n + 5))
        done"#;
    let mut command = host.command("sh")?;
    command.args(["-c", script, "sh", &held.folder, SMALL]);
    let said = process::run(&mut command, 2 * PATIENCE)?.ok()?;
    ensure!(said.is_empty(), "{said}");
    wait_for("their addresses to be free", PATIENCE, || {
        let owned = engine.owned()?;
        ensure!(!owned.contains("10.32.200."), "{owned}");
        Ok(Some(()))
    })
}

/// `weave run` is `docker run`, with the address there first.
fn runs(engine: &Engine<'_>) -> Result<()> {
    let none = ["--network", "none"];
    let run = |before: &[&str], after: &[&str]| engine.weave(&[&["run"][..], before, &none, after].concat());
    let show = ["--rm", "box", "ip", "-4", "-o", "address", "show", "dev", "ethwe"];
    let shown = run(&[], &show)?.ok()?;
    ensure!(
        shown.contains(" inet 10.32."),
        "no address at the start: {shown:?}"
    );
    run(&[], &["--rm", "box", "sh", "-c", "exit 7"])?.fails_with(7)?;
    run(&[], &["--rm", "no-such-image"])?.fails_with(125)?;
    let id = run(
        &["10.32.77.7/12"],
        &["-d", "--name", "c1", "box", "sleep", "100000"],
    )?
    .ok()?;
    ensure!(id.trim().len() == 64, "run -d printed {id:?}");
    let cidr = address(engine, "c1")?;
    ensure!(cidr.as_deref() == Some("10.32.77.7/12"), "{cidr:?}");
    engine.docker(&["rm", "--force", "c1"])?.ok().map(drop)
}

#[test]
fn containers_live_with_their_addresses() {
    Plan::mesh(1).test("dockerlife", |lab: &Lab| {
        let host = lab.host(1)?;
        let mut engine = Engine::start(host)?;
        import_bare(host)?;
        engine.launch(&[])?;
        {
            let held = Held::new(&engine, host, "w");
            waits_in_any_image(&held)?;
            other_ways(&engine, host)?;
            restarts(&engine, &held)?;
            dynamic(&engine)?;
            runs(&engine)?;
            short_lives(&engine, &held, host)?;
        }
        let cidr = address(&engine, "keep")?.context("keep has no address")?;

        // Started while nobody is there to attach it: it is held until somebody is.
        host.kill_daemon()?;
        engine.docker(&["restart", "--time", "0", "keep"])?.ok()?;
        ensure!(address(&engine, "keep")?.is_none(), "attached by nobody");
        engine.launch(&[])?;
        let again = wait_address(&engine, "keep")?;
        ensure!(again == cidr, "{again} after the daemon was away, {cidr} before");

        engine.stop_dockerd()?;
        engine.start_dockerd()?;
        let again = wait_address(&engine, "keep")?;
        ensure!(again == cidr, "{again} after a restart of Docker, {cidr} before");

        engine.docker(&["rm", "--force", "keep"])?.ok()?;
        wait_for("the address to be free", PATIENCE, || {
            Ok((!engine.owned()?.contains(&cidr)).then_some(()))
        })?;
        engine.weave(&["reset"])?.ok()?;
        let left: Vec<_> = fs::read_dir(host.data_dir())?
            .flatten()
            .map(|e| e.path())
            .collect();
        ensure!(left.is_empty(), "reset leaves {left:?}");
        Ok(())
    });
}
