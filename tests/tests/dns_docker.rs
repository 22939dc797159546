//! WeaveDNS as containers of Docker have it: names from `attach`, their resolvers, their hosts files.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use weave_tests::engine::{Engine, folder, need};
use weave_tests::lab::{Host, Lab, Plan, netns};
use weave_tests::process::{LIMIT, wait_for};

/// Docker's bridge, where WeaveDNS listens.
const GATEWAY: &str = "172.17.0.1";

/// The image `names`: `box`, the C library's `getent`, and the same question asked through musl.
const IMAGE: &str = r#"
cd "$1" && cp -r image names && mkdir -p names/etc
cp "$(command -v getent)" names/bin/getent && for file in $(ldd "$(command -v getent)" | grep -o '/[^ ]*'); do
    mkdir -p "names$(dirname "$file")" && cp -L "$file" "names$file" || exit 1
done
echo 'hosts: files dns' > names/etc/nsswitch.conf
musl-gcc -static -o names/bin/musl -x c - <<'END' || exit 1
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct sockaddr_in at = { .sin_family = AF_INET };
    char text[256];
    if (argc == 2 && inet_pton(AF_INET, argv[1], &at.sin_addr)) {
        if (getnameinfo((void *)&at, sizeof at, text, sizeof text, 0, 0, NI_NAMEREQD)) return 2;
        printf("%s %s\n", argv[1], text);
        return 0;
    }
    struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *found;
    if (argc != 2 || getaddrinfo(argv[1], 0, &hints, &found)) return 2;
    for (; found; found = found->ai_next) {
        getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST);
        printf("%s %s\n", text, argv[1]);
    }
    return 0;
}
END
tar -C names -cf names.tar . && docker import names.tar names
"#;

/// The programs that ask.
const RESOLVERS: [&[&str]; 2] = [&["getent", "hosts"], &["musl"]];

struct World<'a> {
    host: &'a Host,
    engine: Engine<'a>,
}

impl<'a> World<'a> {
    fn start(host: &'a Host) -> Result<Self> {
        for program in ["dig", "musl-gcc"] {
            need(program)?;
        }
        for args in [
            "link add docker0 type bridge",
            "address add 172.17.0.1/16 dev docker0",
            "link set docker0 up",
        ] {
            let mut all = vec!["-n", host.netns()];
            all.extend(args.split(' '));
            netns::ip(&all)?;
        }
        let engine = Engine::start_on(host, "docker0")?;
        let folder = folder(host)?.display().to_string();
        host.exec(&["sh", "-c", IMAGE, "sh", &folder])?.ok()?;
        Ok(Self { host, engine })
    }

    fn run(&self, name: &str, options: &[&str]) -> Result<String> {
        self.engine
            .run_with("names", &[&["--name", name][..], options].concat())
    }

    fn exec(&self, container: &str, args: &[&str]) -> Result<String> {
        self.engine
            .docker(&[&["exec", container][..], args].concat())?
            .ok()
    }

    /// Waits until both C libraries in the container say that `name` is at exactly these addresses.
    fn wait_resolved(&self, container: &str, name: &str, addresses: &[Ipv4Addr]) -> Result<()> {
        let mut expected: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
        expected.sort_unstable();
        for resolver in RESOLVERS {
            let what = format!("{name} at {expected:?} by {resolver:?} in {container}");
            wait_for(&what, LIMIT, || {
                let args = [&["exec", container][..], resolver, &[name]].concat();
                let output = self.engine.docker(&args)?;
                let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
                let mut found: Vec<String> = output.stdout.lines().filter_map(first).collect();
                found.sort_unstable();
                ensure!(found == expected, "{output}");
                Ok(Some(()))
            })?;
        }
        Ok(())
    }

    fn resolv_conf(&self, container: &str) -> Result<String> {
        self.exec(container, &["busybox", "cat", "/etc/resolv.conf"])
    }

    fn hosts_file(&self, container: &str) -> Result<String> {
        self.exec(container, &["busybox", "cat", "/etc/hosts"])
    }
}

fn launch(host: &Host, args: &[&str]) -> Result<()> {
    let listen = format!("--dns-listen-address={GATEWAY}:53");
    host.launch(&[&[listen.as_str(), "--resolv-conf=/dev/null"][..], args].concat())
}

#[test]
fn names_of_docker_containers() {
    Plan::mesh(2).test("dnsdocker", |lab: &Lab| {
        let (host, other) = (lab.host(1)?, lab.host(2)?);
        let world = World::start(host)?;
        launch(host, &["--ipalloc-init=consensus=1"])?;
        let peer = host.address_towards(other)?.to_string();
        other.launch(&[
            "--dns-listen-address=127.0.0.1:53",
            "--ipalloc-init=consensus=1",
            &peer,
        ])?;

        // A name whole, in two parts, and none.
        world.run("a", &["--hostname", "a.weave.local"])?;
        world.run("b", &["--hostname", "b", "--domainname", "weave.local"])?;
        world.run("c", &["--hostname", "c"])?;
        let before = world.resolv_conf("a")?;
        let a = world.engine.attach("a")?;
        let b = world.engine.attach("b")?;
        world.engine.attach("c")?;
        for from in ["a", "b", "c"] {
            world.wait_resolved(from, "a.weave.local", &[a])?;
            // Without the domain, which is searched; in another case.
            world.wait_resolved(from, "b", &[b])?;
            world.wait_resolved(from, "B.Weave.Local", &[b])?;
            world.wait_resolved(from, "nope", &[])?;
        }
        for resolver in RESOLVERS {
            let text = world.exec("c", &[resolver, &[&a.to_string()]].concat())?;
            ensure!(text.contains("a.weave.local"), "{resolver:?}: {text}");
        }

        // On another host, and from there to here.
        let lookup = |name: &str| other.weave(&["dns-lookup", name])?.ok();
        wait_for("b on the other host", LIMIT, || {
            Ok((lookup("b")? == format!("{b}\n")).then_some(()))
        })?;
        ensure!(lookup("c")?.is_empty(), "c has no domain, and no name");
        other
            .weave(&["dns-add", "192.0.2.8", "-h", "far.weave.local"])?
            .ok()?;
        world.wait_resolved("a", "far", &[Ipv4Addr::new(192, 0, 2, 8)])?;

        // More of them under one name; the dead one is left out.
        world.run("b2", &["--hostname", "b.weave.local"])?;
        let b2 = world.engine.attach("b2")?;
        world.wait_resolved("a", "b", &[b, b2])?;
        world.engine.docker(&["kill", "b"])?.ok()?;
        world.wait_resolved("a", "b", &[b2])?;
        wait_for("b2 alone on the other host", LIMIT, || {
            Ok((lookup("b")? == format!("{b2}\n")).then_some(()))
        })?;

        // Without DNS, on request.
        world.run("d", &["--hostname", "d.weave.local"])?;
        let untouched = world.resolv_conf("d")?;
        world.engine.weave(&["attach", "--without-dns", "d"])?.ok()?;
        ensure!(world.resolv_conf("d")? == untouched);
        world.wait_resolved("a", "d", &[])?;

        // The daemon is away: the nameservers of before are still there, and asked at once.
        let during = world.resolv_conf("a")?;
        ensure!(before.lines().all(|line| during.contains(line)), "{during}");
        host.kill_daemon()?;
        launch(host, &["--resume"])?;
        // Names of what runs are back.
        world.wait_resolved("a", "a", &[a])?;
        world.wait_resolved("a", "b", &[b2])?;

        // Detached, a container has no name and its own nameservers.
        world.engine.weave(&["detach", "a"])?.ok()?;
        ensure!(world.resolv_conf("a")? == before, "{}", world.resolv_conf("a")?);
        world.wait_resolved("c", "a", &[])?;
        Ok(())
    });
}

#[test]
fn hosts_files_and_nameservers_of_ones_own() {
    Plan::mesh(1).test("dnsfiles", |lab: &Lab| {
        let host = lab.host(1)?;
        let world = World::start(host)?;
        launch(host, &[])?;

        let options = [
            "--hostname",
            "a.weave.local",
            "--add-host",
            "db:10.0.0.7",
            "--add-host",
            "old:10.0.0.8",
        ];
        world.run("a", &options)?;
        let args = [
            "attach",
            "net:default",
            "10.99.0.1/24",
            "--rewrite-hosts",
            "--add-host",
            "old:10.0.0.9",
            "a",
        ];
        let printed = world.engine.weave(&args)?.ok()?;
        let address = printed.split(' ').next().context("an address")?;
        let hosts = world.hosts_file("a")?;
        for line in [
            format!("{address:<15} a.weave.local a"),
            format!("{:<15} a.weave.local a", "10.99.0.1"),
            format!("{:<15}  db", "10.0.0.7"),
            format!("{:<15}  old", "10.0.0.9"),
        ] {
            ensure!(
                hosts.lines().any(|l| l == line),
                "{line:?} is missing in\n{hosts}"
            );
        }
        ensure!(!hosts.contains("10.0.0.8"), "{hosts}");
        world.wait_resolved("a", "db", &[Ipv4Addr::new(10, 0, 0, 7)])?;
        let blue = host.container("blue")?;
        let message = host
            .weave(&["attach", "--rewrite-hosts", &blue.id()])?
            .fails_with(1)?;
        ensure!(message.contains("no hosts file"), "{message}");
        ensure!(
            host.weave(&["ps", &blue.id()])?.ok()?.trim().is_empty(),
            "attached all the same"
        );

        // Who chose nameservers keeps them; who chose ours has it.
        world.run("b", &["--hostname", "b.weave.local", "--dns", "192.0.2.53"])?;
        let kept = world.resolv_conf("b")?;
        let output = world.engine.weave(&["attach", "b"])?;
        ensure!(
            output.success() && output.stderr.contains("given with --dns"),
            "{output}"
        );
        ensure!(world.resolv_conf("b")? == kept);
        let args = host.weave(&["dns-args"])?.ok()?;
        let args: Vec<&str> = args.split(' ').collect();
        world.run("c", &args)?;
        let output = world.engine.weave(&["attach", "c"])?;
        ensure!(output.success() && output.stderr.is_empty(), "{output}");
        let [b] = output_addresses(host, "b")?[..] else {
            anyhow::bail!("b has one address")
        };
        world.wait_resolved("c", "b", &[b])?;

        // Only what can be asked is written down.
        world.run("d", &["--network", "none"])?;
        let kept = world.resolv_conf("d")?;
        let output = world.engine.weave(&["attach", "d"])?;
        ensure!(
            output.success() && output.stderr.contains("no route to WeaveDNS"),
            "{output}"
        );
        ensure!(world.resolv_conf("d")? == kept);
        Ok(())
    });
}

fn output_addresses(host: &Host, name: &str) -> Result<Vec<Ipv4Addr>> {
    let text = host.weave(&["dns-lookup", name])?.ok()?;
    text.lines().map(|line| Ok(line.parse()?)).collect()
}
