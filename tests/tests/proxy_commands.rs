//! What runs in containers of the proxy and what they are called, compared with Docker alone (cli.md 8.5: 615, 620,
//! 655, 680).

use std::process::Command;

use anyhow::{Context, Result, ensure};
use weave_tests::lab::{Lab, Plan};
use weave_tests::process::{self, LIMIT, wait_for};
use weave_tests::proxied::{INTERFACE, World, raw};

/// Makes the images `nothing`, `e`, `c` and `ec` (with ENTRYPOINT or CMD or both) whose program tells how it was
/// called, and `user`, whose user is not root. `$1`: a folder for that.
const IMAGES: &str = r#"
cd "$1" && cp -r image shown && mkdir -p shown/etc && echo app:x:4711:4711::/:/bin/sh > shown/etc/passwd &&
printf '%s\n' '#!/bin/sh' 'echo "<$0>" "$@"' > shown/bin/show && chmod +x shown/bin/show &&
tar -C shown -cf shown.tar . || exit 1
e='ENTRYPOINT ["show", "of the image", "E"]' c='CMD ["show", "C"]'
docker import shown.tar nothing && docker import -c "$e" shown.tar e && docker import -c "$c" shown.tar c &&
    docker import -c "$e" -c "$c" shown.tar ec && docker import -c "USER app" shown.tar user"#;

/// Runs all images with each option and each command, and prints how they end and what they print.
const COMBINATIONS: &str = r#"
cd "$1"
for image in nothing e c ec; do
    {
        for option in "" --entrypoint=show; do
            for command in "" "show G"; do
                said=$(docker run --rm --network none $option $image $command 2>&1)
                echo "$? $image $option $command: $said"
            done
        done
    } > "said.$image" &
done
wait
cat said.*"#;

/// An image's entrypoint or command or both or none, a request's or none: what runs is what Docker would run.
fn entrypoints_and_commands(world: &World<'_>) -> Result<()> {
    let folder = world.files()?.display().to_string();
    let run =
        |mut command: Command| process::run(command.args(["-c", COMBINATIONS, "sh", &folder]), LIMIT)?.ok();
    let alone = run(world.engine.host().command("sh")?)?;
    ensure!(
        alone
            .lines()
            .any(|line| line == "0 ec  : </bin/show> of the image E show C"),
        "{alone}"
    );
    let through = run(world.through("sh")?)?;
    ensure!(
        through == alone,
        "through the proxy:\n{through}\nwithout it:\n{alone}"
    );
    Ok(())
}

/// An image's user need not be root for the hosts file to be there.
fn hosts_file_of_a_user(world: &World<'_>) -> Result<()> {
    let script = "busybox id -u; busybox hostname -i; ";
    let all = [
        "run",
        "--rm",
        "user",
        "sh",
        "-c",
        &(script.to_owned() + &INTERFACE.join(" ")),
    ];
    let shown = world.docker(&all)?.ok()?;
    let lines: Vec<&str> = shown.lines().map(str::trim).collect();
    let [user, address, interface] = lines[..] else {
        anyhow::bail!("{shown}");
    };
    ensure!(
        user == "4711" && interface.contains(&format!(" inet {address}/")),
        "{shown}"
    );
    Ok(())
}

/// Body of an answer that was sent in chunks, and the largest of these.
fn unchunked(answer: &str) -> Result<(String, usize)> {
    let (head, mut rest) = answer.split_once("\r\n\r\n").context("no head")?;
    ensure!(
        head.starts_with("HTTP/1.1 200 ") && head.contains("Transfer-Encoding: chunked"),
        "{head}"
    );
    let (mut body, mut largest) = (String::new(), 0);
    loop {
        let (size, after) = rest.split_once("\r\n").context("no size of a chunk")?;
        let size = usize::from_str_radix(size, 16)?;
        if size == 0 {
            return Ok((body, largest));
        }
        largest = largest.max(size);
        body += after.get(..size).context("a chunk that is cut off")?;
        rest = after.get(size + 2..).context("nothing after a chunk")?;
    }
}

/// Docker writes what it says at once into one chunk, and a client may, too: more than 64 KiB in each.
fn large_chunks(world: &World<'_>) -> Result<()> {
    let label = format!("--label=large={}", "x".repeat(100_000));
    world
        .docker(&["create", "--name", "large", &label, "nothing", "show"])?
        .ok()?;
    let request = "GET /containers/large/json HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n";
    let (body, largest) = unchunked(&raw(&world.files()?.join("docker.sock"), request)?)?;
    ensure!(largest > 1 << 16, "Docker's largest chunk has {largest} bytes");
    let (passed_on, _) = unchunked(&world.raw(request)?)?;
    ensure!(passed_on == body, "changed on its way: {passed_on}");

    let saved = world.files()?.join("saved.tar");
    world
        .docker(&["save", "--output", &saved.display().to_string(), "c"])?
        .ok()?;
    world.docker(&["rmi", "c"])?.ok()?;
    let tar = std::fs::read(&saved)?;
    ensure!(tar.len() > 1 << 16, "the image has only {} bytes", tar.len());
    let head = format!(
        "POST /images/load?quiet=1 HTTP/1.1\r\nHost: docker\r\nContent-Type: application/x-tar\r\n\
         Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
        tar.len()
    );
    let answer = world.raw([head.as_bytes(), &tar, b"\r\n0\r\n\r\n"].concat())?;
    ensure!(answer.contains("Loaded image: c:latest"), "{answer}");
    let shown = world.docker(&["run", "--rm", "c"])?.ok()?;
    ensure!(shown == "</bin/show> C\n", "{shown}");
    Ok(())
}

/// The name and the label of a container, and the host name that it has by them with these options.
fn host_names(world: &World<'_>) -> Result<()> {
    let (pattern, replacement) = (
        "--hostname-match=^aws-[0-9]+-(.*)$",
        "--hostname-replacement=my-app-$1",
    );
    let label = "--hostname-from-label=name";
    for (options, cases) in [
        (
            &[pattern][..],
            &[("aws-1-one", "", "one"), ("two", "", "two")][..],
        ),
        (&[replacement], &[("three", "", "my-app-three")]),
        (
            &[pattern, replacement],
            &[("aws-1-four", "", "my-app-four"), ("five", "", "five")],
        ),
        (&[label], &[("six", "other", "other"), ("seven", "", "seven")]),
        (
            &[label, pattern, replacement],
            &[
                ("eight", "aws-2-label", "my-app-label"),
                ("aws-3-nine", "", "my-app-nine"),
            ],
        ),
    ] {
        world.launch(options)?;
        for (name, label, expected) in cases {
            let label = format!("--label=name={label}");
            world.run_detached(name, &["--network", "none", &label])?;
            let names = world.docker(&["exec", name, "busybox", "hostname", "-f"])?.ok()?;
            ensure!(
                names == format!("{expected}.weave.local\n"),
                "{options:?} {name}: {names}"
            );
            let cidr = world.cidr(name)?;
            let address = cidr.split('/').next().context("no address")?;
            wait_for(&format!("{expected} in WeaveDNS"), LIMIT, || {
                let found = world.engine.weave(&["dns-lookup", expected])?.ok()?;
                Ok((found == format!("{address}\n")).then_some(()))
            })?;
        }
        world.stop()?;
    }
    Ok(())
}

#[test]
fn commands_of_containers() {
    Plan::mesh(1).test("proxycommands", |lab: &Lab| {
        let world = World::start(lab.host(1)?)?;
        let folder = world.files()?.display().to_string();
        world
            .engine
            .host()
            .exec(&["sh", "-c", IMAGES, "sh", &folder])?
            .ok()?;
        world.launch(&[])?;
        entrypoints_and_commands(&world)?;
        hosts_file_of_a_user(&world)?;
        large_chunks(&world)?;
        world.stop()?;
        host_names(&world)
    });
}
