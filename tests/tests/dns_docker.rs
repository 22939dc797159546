//! WeaveDNS as containers of Docker have it: names from `attach`, their resolvers, their hosts files.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use weave_tests::engine::{Engine, GATEWAY, folder, need};
use weave_tests::lab::{Host, Lab, Plan};
use weave_tests::process::{LIMIT, wait_for};

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
    engine: Engine<'a>,
}

impl<'a> World<'a> {
    fn start(host: &'a Host) -> Result<Self> {
        for program in ["getent", "musl-gcc"] {
            need(program)?;
        }
        let engine = Engine::start_with_bridge(host)?;
        let folder = folder(host)?.display().to_string();
        host.exec(&["sh", "-c", IMAGE, "sh", &folder])?.ok()?;
        Ok(Self { engine })
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
        world.run("ant", &["--hostname", "ant.weave.local"])?;
        world.run("bee", &["--hostname", "bee", "--domainname", "weave.local"])?;
        world.run("cat", &["--hostname", "cat"])?;
        let before = world.resolv_conf("ant")?;
        let a = world.engine.attach("ant")?;
        let b = world.engine.attach("bee")?;
        world.engine.attach("cat")?;
        // Whole, without the domain, which is searched, and in another case. A container's own name is in its hosts
        // file, where Docker has put it.
        for (from, name, address) in [
            ("bee", "ant.weave.local", a),
            ("cat", "ant", a),
            ("ant", "bee", b),
            ("cat", "Bee.Weave.Local", b),
        ] {
            world.wait_resolved(from, name, &[address])?;
            world.wait_resolved(from, "nope", &[])?;
        }
        for resolver in RESOLVERS {
            let text = world.exec("cat", &[resolver, &[&a.to_string()]].concat())?;
            ensure!(text.contains("ant.weave.local"), "{resolver:?}: {text}");
        }

        // On another host, and from there to here.
        let lookup = |name: &str| other.weave(&["dns-lookup", name])?.ok();
        wait_for("b on the other host", LIMIT, || {
            Ok((lookup("bee")? == format!("{b}\n")).then_some(()))
        })?;
        ensure!(lookup("cat")?.is_empty(), "c has no domain, and no name");
        other
            .weave(&["dns-add", "192.0.2.8", "-h", "far.weave.local"])?
            .ok()?;
        world.wait_resolved("ant", "far", &[Ipv4Addr::new(192, 0, 2, 8)])?;

        // More of them under one name; the dead one is left out.
        world.run("bee2", &["--hostname", "bee.weave.local"])?;
        let b2 = world.engine.attach("bee2")?;
        world.wait_resolved("ant", "bee", &[b, b2])?;
        world.engine.docker(&["kill", "bee"])?.ok()?;
        world.wait_resolved("ant", "bee", &[b2])?;
        wait_for("b2 alone on the other host", LIMIT, || {
            Ok((lookup("bee")? == format!("{b2}\n")).then_some(()))
        })?;

        // Without DNS, on request.
        world.run("dog", &["--hostname", "dog.weave.local"])?;
        let untouched = world.resolv_conf("dog")?;
        world.engine.weave(&["attach", "--without-dns", "dog"])?.ok()?;
        ensure!(world.resolv_conf("dog")? == untouched);
        world.wait_resolved("ant", "dog", &[])?;

        // The daemon is away: the nameservers of before are still there, and asked at once.
        let during = world.resolv_conf("ant")?;
        ensure!(before.lines().all(|line| during.contains(line)), "{during}");
        host.kill_daemon()?;
        launch(host, &["--resume"])?;
        // Names of what runs are back.
        world.wait_resolved("cat", "ant", &[a])?;
        world.wait_resolved("ant", "bee", &[b2])?;

        // Detached, a container has no name and its own nameservers.
        world.engine.weave(&["detach", "ant"])?.ok()?;
        ensure!(
            world.resolv_conf("ant")? == before,
            "{}",
            world.resolv_conf("ant")?
        );
        world.wait_resolved("cat", "ant", &[])?;
        Ok(())
    });
}

/// The lines of cli.md 8.3 about a domain of one's own, containers that come and go, and a daemon that is stopped.
#[test]
fn names_come_and_go_with_their_containers() {
    Plan::mesh(1).test("dnsrounds", |lab: &Lab| {
        let host = lab.host(1)?;
        let world = World::start(host)?;
        let domain = "--dns-domain=Corp.example.";
        launch(host, &[domain])?;
        let weave = |args: &[&str]| world.engine.weave(args)?.ok();

        // Below the domain, also by the container's own list of domains to search in.
        world.run(
            "app",
            &[
                "--hostname",
                "app.corp.example",
                "--dns-search",
                "sub.corp.example",
            ],
        )?;
        world.run("db", &["--hostname", "db.sub.corp.example"])?;
        let app = world.engine.attach("app")?;
        let db = world.engine.attach("db")?;
        world.wait_resolved("app", "db", &[db])?;
        world.wait_resolved("db", "app", &[app])?;
        wait_lookup(host, "db", &[])?;

        // Killed and started by turns: exactly the live ones.
        let name = ["--hostname", "web.corp.example"];
        let mut live = Vec::new();
        for web in ["web1", "web2"] {
            world.run(web, &name)?;
            live.push((web, world.engine.attach(web)?));
        }
        for round in 0..5 {
            let (web, _) = live.remove(0);
            world.engine.docker(&["kill", web])?.ok()?;
            wait_lookup(host, "web", &live)?;
            world.engine.docker(&["start", web])?.ok()?;
            live.push((web, world.engine.attach(web)?));
            wait_lookup(host, "web", &live)?;
            let entries = host.weave(&["status", "dns"])?.ok()?;
            let webs = entries.lines().filter(|line| line.starts_with("web ")).count();
            ensure!(webs == 2, "round {round}: {entries}");
        }

        // By its own name, when asked to; and removed with it, as all its names are.
        world.run("dog", &["--hostname", "dog.corp.example"])?;
        let dog = weave(&["attach", "--without-dns", "dog"])?.trim().parse()?;
        wait_lookup(host, "dog", &[])?;
        weave(&["dns-add", "dog"])?;
        weave(&["dns-add", "192.0.2.50", "dog", "-h", "extra.corp.example"])?;
        wait_lookup(host, "dog", &[("dog", dog)])?;
        wait_lookup(host, "extra", &[("dog", Ipv4Addr::new(192, 0, 2, 50))])?;
        world.engine.docker(&["rm", "--force", "dog"])?.ok()?;
        for gone in ["dog", "extra"] {
            wait_lookup(host, gone, &[])?;
        }

        // Stopped and launched: the names of what runs are back.
        host.weave(&["stop"])?.ok()?;
        world.engine.docker(&["rm", "--force", "web2"])?.ok()?;
        launch(host, &[domain])?;
        live.retain(|(web, _)| *web != "web2");
        wait_lookup(host, "web", &live)?;
        world.wait_resolved("app", "db", &[db])?;

        // Without WeaveDNS containers keep the nameservers that they have.
        host.weave(&["stop"])?.ok()?;
        launch(host, &["--no-dns"])?;
        world.run("plain", &["--hostname", "plain.corp.example"])?;
        let before = world.resolv_conf("plain")?;
        let output = world.engine.weave(&["attach", "plain"])?;
        ensure!(output.success() && output.stderr.is_empty(), "{output}");
        ensure!(world.resolv_conf("plain")? == before);
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
            "ant.weave.local",
            "--add-host",
            "db:10.0.0.7",
            "--add-host",
            "old:10.0.0.8",
        ];
        world.run("ant", &options)?;
        let args = [
            "attach",
            "net:default",
            "10.99.0.1/24",
            "--rewrite-hosts",
            "--add-host",
            "old:10.0.0.9",
            "ant",
        ];
        let printed = world.engine.weave(&args)?.ok()?;
        let address = printed.split(' ').next().context("an address")?;
        let hosts = world.hosts_file("ant")?;
        for line in [
            format!("{address:<15} ant.weave.local ant"),
            format!("{:<15} ant.weave.local ant", "10.99.0.1"),
            format!("{:<15}  db", "10.0.0.7"),
            format!("{:<15}  old", "10.0.0.9"),
        ] {
            ensure!(
                hosts.lines().any(|l| l == line),
                "{line:?} is missing in\n{hosts}"
            );
        }
        ensure!(!hosts.contains("10.0.0.8"), "{hosts}");
        world.wait_resolved("ant", "db", &[Ipv4Addr::new(10, 0, 0, 7)])?;
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
        world.run("bee", &["--hostname", "bee.weave.local", "--dns", "192.0.2.53"])?;
        let kept = world.resolv_conf("bee")?;
        let output = world.engine.weave(&["attach", "bee"])?;
        ensure!(
            output.success() && output.stderr.contains("given with --dns"),
            "{output}"
        );
        ensure!(world.resolv_conf("bee")? == kept);
        let args = host.weave(&["dns-args"])?.ok()?;
        let args: Vec<&str> = args.split(' ').collect();
        world.run("cat", &args)?;
        let output = world.engine.weave(&["attach", "cat"])?;
        ensure!(output.success() && output.stderr.is_empty(), "{output}");
        let [b] = output_addresses(host, "bee")?[..] else {
            anyhow::bail!("b has one address")
        };
        world.wait_resolved("cat", "bee", &[b])?;

        // Only what can be asked is written down.
        world.run("dog", &["--network", "none"])?;
        let kept = world.resolv_conf("dog")?;
        let output = world.engine.weave(&["attach", "dog"])?;
        ensure!(
            output.success() && output.stderr.contains("no route to WeaveDNS"),
            "{output}"
        );
        ensure!(world.resolv_conf("dog")? == kept);
        Ok(())
    });
}

/// Waits until `dns-lookup` knows exactly these containers' addresses.
fn wait_lookup(host: &Host, name: &str, containers: &[(&str, Ipv4Addr)]) -> Result<()> {
    let mut expected: Vec<Ipv4Addr> = containers.iter().map(|(_, address)| *address).collect();
    expected.sort_unstable();
    wait_for(&format!("{name} at {expected:?}"), LIMIT, || {
        let mut found = output_addresses(host, name)?;
        found.sort_unstable();
        ensure!(found == expected, "{found:?}");
        Ok(Some(()))
    })
}

fn output_addresses(host: &Host, name: &str) -> Result<Vec<Ipv4Addr>> {
    let text = host.weave(&["dns-lookup", name])?.ok()?;
    text.lines().map(|line| Ok(line.parse()?)).collect()
}
