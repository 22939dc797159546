//! WeaveDNS end to end: what `dig`, `dns-lookup` and resolvers in containers get, on several hosts.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use weave_tests::engine::need;
use weave_tests::lab::{Container, Host, Lab, Options, Plan};
use weave_tests::process::{LIMIT, wait_for};

/// Where the hosts' own programs ask.
const LISTEN: &str = "--dns-listen-address=127.0.0.1:53";

fn plan(hosts: u8) -> Plan {
    Plan::mesh(hosts).options(Options::new().arg(LISTEN))
}

/// All that `dig` prints about a question to this host.
fn dig(host: &Host, args: &str) -> Result<String> {
    let mut all = vec!["dig", "@127.0.0.1"];
    all.extend(args.split(' '));
    host.exec(&all)?.ok()
}

/// The answers alone, sorted.
fn short(host: &Host, args: &str) -> Result<Vec<String>> {
    let text = dig(host, &format!("+short {args}"))?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    Ok(lines)
}

fn sorted(addresses: &[Ipv4Addr]) -> Vec<String> {
    let mut texts: Vec<String> = addresses.iter().map(Ipv4Addr::to_string).collect();
    texts.sort_unstable();
    texts
}

/// Waits until this host gives exactly these answers.
fn wait_short(host: &Host, args: &str, expected: &[String]) -> Result<()> {
    let what = format!("{expected:?} for {args} on {}", host.name());
    wait_for(&what, LIMIT, || {
        let found = short(host, args)?;
        ensure!(found == expected, "{found:?}");
        Ok(Some(()))
    })
}

fn weave(host: &Host, args: &str) -> Result<String> {
    let words: Vec<&str> = args.split(' ').collect();
    host.weave(&words)?.ok()
}

/// For commands that say nothing.
fn quiet(host: &Host, args: &str) -> Result<()> {
    let said = weave(host, args)?;
    ensure!(said.is_empty(), "{args} printed {said:?}");
    Ok(())
}

/// Name, and so on, of a container without Docker.
fn named(host: &Host, name: &str, fqdn: &str) -> Result<(Container, Ipv4Addr)> {
    let (container, address) = host.attached(name)?;
    quiet(host, &format!("dns-add {} -h {fqdn}", container.id()))?;
    Ok((container, address))
}

fn status(answer: &str) -> &str {
    let rest = answer.split_once("status: ").map_or("", |(_, rest)| rest);
    rest.split(',').next().unwrap_or_default()
}

#[test]
fn names_are_the_same_on_all_hosts() {
    plan(3).test("dnsnames", |lab: &Lab| {
        need("dig")?;
        lab.launch_all(&["--resolv-conf=/dev/null"])?;
        let [first, second, third] = [lab.host(1)?, lab.host(2)?, lab.host(3)?];

        // One name on three hosts has all their addresses, everywhere.
        let mut addresses = Vec::new();
        let mut containers = Vec::new();
        for host in lab.hosts() {
            let (container, address) = named(host, "web", "Web.weave.local")?;
            addresses.push(address);
            containers.push(container);
        }
        let all = sorted(&addresses);
        let [own, other, _] = addresses[..] else {
            anyhow::bail!("three hosts")
        };
        for host in lab.hosts() {
            wait_short(host, "web.weave.local", &all)?;
        }
        // In whatever case and form it is asked for; a domain is no part of it.
        for name in ["WEB.Weave.LOCAL", "web", "web."] {
            ensure!(short(second, name)? == all, "{name}: {:?}", short(second, name)?);
        }
        let mut looked_up: Vec<String> = weave(third, "dns-lookup web")?
            .lines()
            .map(str::to_owned)
            .collect();
        looked_up.sort_unstable();
        ensure!(looked_up == all, "dns-lookup printed {looked_up:?}");
        ensure!(weave(third, "dns-lookup nope")?.is_empty());

        // Ours first: the others only when asked again and again.
        let answer = short_in_order(first, "web.weave.local")?;
        ensure!(
            answer.first() == Some(&own.to_string()),
            "{answer:?} on the host of {own}"
        );

        // Names that differ in case are one, and what comes back is as it was given.
        quiet(second, "dns-add 192.0.2.9 -h WEB.weave.LOCAL")?;
        let joined = sorted(&[&addresses[..], &[Ipv4Addr::new(192, 0, 2, 9)]].concat());
        wait_short(first, "web.weave.local", &joined)?;
        ensure!(short(first, "-x 192.0.2.9")? == ["WEB.weave.LOCAL."]);
        ensure!(short(third, &format!("-x {other}"))? == ["Web.weave.local."]);
        quiet(second, "dns-remove 192.0.2.9 -h WEB.weave.LOCAL")?;
        wait_short(first, "web.weave.local", &all)?;
        wait_short(first, "-x 192.0.2.9", &[])?;

        // No answer, in its two kinds.
        for (question, code) in [
            ("web.weave.local MX", "NOERROR"),
            ("web.weave.local AAAA", "NOERROR"),
            ("nope.weave.local", "NXDOMAIN"),
            ("nope.weave.local MX", "NXDOMAIN"),
        ] {
            let answer = dig(first, question)?;
            ensure!(
                status(&answer) == code && answer.contains("ANSWER: 0"),
                "{question}: {answer}"
            );
        }

        // The host itself has names, and each call adds one.
        let exposed = weave(first, "expose -h one.weave.local")?;
        weave(first, "expose -h two.weave.local")?;
        for name in ["one.weave.local", "two.weave.local"] {
            wait_short(third, name, &[exposed.trim().to_owned()])?;
        }
        weave(first, "hide")?;
        wait_short(third, "one.weave.local", &[])?;

        // Hot swap: the new one is there before the old one goes.
        let Some(old) = containers.first() else {
            anyhow::bail!("three containers")
        };
        quiet(first, &format!("dns-remove {}", old.id()))?;
        let left = sorted(addresses.get(1..).unwrap_or_default());
        for host in lab.hosts() {
            wait_short(host, "web.weave.local", &left)?;
        }

        // Removed while a host is cut off: it must not bring the name back.
        quiet(second, "dns-add 192.0.2.77 -h stale.weave.local")?;
        let stale = ["192.0.2.77".to_owned()];
        wait_short(third, "stale.weave.local", &stale)?;
        wait_short(first, "stale.weave.local", &stale)?;
        let block = lab.partition(&[true, true, false])?;
        second.wait_connections(1, "established")?;
        quiet(second, "dns-remove 192.0.2.77 -h stale.weave.local")?;
        quiet(second, "dns-add 192.0.2.78 -h fresh.weave.local")?;
        wait_short(first, "stale.weave.local", &[])?;
        block.lift()?;
        wait_short(third, "fresh.weave.local", &["192.0.2.78".to_owned()])?;
        for host in lab.hosts() {
            wait_short(host, "stale.weave.local", &[])?;
        }

        // A host that is gone takes its names along only when it is forgotten; a daemon that comes back knows none
        // but those of its containers, and what it had said before it takes back.
        third.kill_daemon()?;
        third.launch(&["--resolv-conf=/dev/null", "--resume"])?;
        let only = sorted(&[other]);
        wait_short(third, "web.weave.local", &only)?;
        wait_short(first, "web.weave.local", &only)
    });
}

/// As they came.
fn short_in_order(host: &Host, args: &str) -> Result<Vec<String>> {
    let text = dig(host, &format!("+short {args}"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

#[test]
fn shapes_sizes_and_switches() {
    plan(2).test("dnsshapes", |lab: &Lab| {
        need("dig")?;
        let (host, other) = (lab.host(1)?, lab.host(2)?);
        // A domain of one's own; subdomains are names like others.
        host.launch(&["--dns-domain=Foo.example", "--resolv-conf=/dev/null"])?;
        let args = weave(host, "dns-args")?;
        ensure!(
            args.eq_ignore_ascii_case("--dns=127.0.0.1 --dns-search=foo.example."),
            "dns-args printed {args:?}"
        );
        let (container, address) = named(host, "c", "c.sub.foo.example")?;
        let own = [address.to_string()];
        ensure!(short(host, "c.sub.foo.example")? == own);
        ensure!(short(host, "c.sub.weave.local")?.is_empty());
        quiet(host, "dns-add 192.0.2.1 -h elsewhere.weave.local")?;
        ensure!(
            short(host, "elsewhere.weave.local")?.is_empty(),
            "a name of another domain"
        );

        // All shapes of adding and removing.
        let id = container.id();
        quiet(
            host,
            &format!("dns-add 192.0.2.1 192.0.2.2 {id} -h many.foo.example"),
        )?;
        quiet(host, "dns-add 192.0.2.3 192.0.2.4 -h many.foo.example")?;
        let many: Vec<String> = (1..=4).map(|n| format!("192.0.2.{n}")).collect();
        ensure!(short(host, "many.foo.example")? == many);
        quiet(host, &format!("dns-remove 192.0.2.1 {id} -h many.foo.example"))?;
        quiet(host, &format!("dns-remove 192.0.2.2 {id}"))?;
        quiet(host, "dns-remove 192.0.2.3 -h many.foo.example")?;
        ensure!(short(host, "many.foo.example")? == ["192.0.2.4"]);
        quiet(host, &format!("dns-add {id}"))?;
        for (wrong, code, part) in [
            ("dns-add 192.0.2.1", 1, "Usage:"),
            ("dns-add", 1, "Usage:"),
            ("dns-remove a b", 1, "Usage:"),
            ("dns-lookup", 1, "Usage:"),
            ("dns-add netns:nope", 1, "nope"),
        ] {
            let words: Vec<&str> = wrong.split(' ').collect();
            let message = host.weave(&words)?.fails_with(code)?;
            ensure!(message.contains(part), "{wrong}: {message}");
        }

        // Fifty addresses do not fit into one packet of old.
        let fifty: Vec<String> = (1..=50).map(|n| format!("198.51.100.{n}")).collect();
        quiet(host, &format!("dns-add {} -h big.foo.example", fifty.join(" ")))?;
        let all: BTreeSet<&str> = fifty.iter().map(String::as_str).collect();
        for how in ["+noedns", "+tcp", "+bufsize=700", "+bufsize=4096"] {
            let found = short(host, &format!("{how} big.foo.example"))?;
            let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
            ensure!(found == all, "{how}: {found:?}");
        }
        for (how, flag) in [
            ("+ignore +noedns", true),
            ("+ignore +bufsize=700", true),
            ("+ignore +bufsize=4096", false),
        ] {
            let answer = dig(host, &format!("{how} big.foo.example"))?;
            let flags = answer.split_once(";; flags:").map_or("", |(_, rest)| rest);
            let cut = flags.split(';').next().unwrap_or_default().contains(" tc");
            ensure!(cut == flag, "{how}: {answer}");
        }
        for name in ["big", "big.foo.example"] {
            let count = weave(host, &format!("dns-lookup {name}"))?.lines().count();
            ensure!(count == 50, "dns-lookup {name}: {count} addresses");
        }

        // Nothing of all this where DNS is off, and nothing fails.
        other.launch(&["--no-dns"])?;
        let (_, _) = other.attached("c")?;
        ensure!(weave(other, "dns-args")?.is_empty());
        quiet(other, "dns-add 192.0.2.1 -h x.weave.local")?;
        quiet(other, "dns-remove 192.0.2.1 -h x.weave.local")?;
        let off = other.weave(&["dns-lookup", "x"])?;
        ensure!(
            off.code == 4 && off.stdout.is_empty() && off.stderr.is_empty(),
            "{off}"
        );

        // Without a daemon.
        other.weave(&["stop"])?.ok()?;
        let away = other.weave(&["dns-args"])?;
        ensure!(
            away.code == 7 && away.stdout.is_empty() && away.stderr.is_empty(),
            "{away}"
        );
        let message = other.weave(&["dns-add", "192.0.2.1", "-h", "x.weave.local"])?;
        ensure!(
            message.code != 0 && message.stderr.contains("weave container is not present"),
            "{message}"
        );
        Ok(())
    });
}

/// A resolver in the outer world that knows one address, and the names of all.
mod outside {
    use std::net::UdpSocket;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use anyhow::Result;

    /// What it says: `192.0.2.99` for every A, `outside.example.` for every PTR, and that `nope.…` does not exist.
    pub fn serve(socket: &UdpSocket, stop: &AtomicBool) -> Result<()> {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut buffer = [0; 1500];
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let answer = buffer.get(..length).and_then(answer);
            socket.send_to(&answer.unwrap_or_default(), from)?;
        }
        Ok(())
    }

    fn answer(query: &[u8]) -> Option<Vec<u8>> {
        let name = query.get(12..)?;
        let end = 12 + name.iter().position(|byte| *byte == 0)? + 1;
        let question = query.get(12..end + 4)?;
        let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
        let missing = name.starts_with(b"\x04nope");
        let data: &[u8] = match kind {
            1 => &[192, 0, 2, 99],
            12 => b"\x07outside\x07example\x00",
            15 => b"\x00\x0a\x04mail\x07example\x00",
            _ => &[],
        };
        let has_answer = !missing && !data.is_empty();
        let mut out = query.get(..2)?.to_vec();
        out.extend([
            0x81,
            if missing { 0x83 } else { 0x80 },
            0,
            1,
            0,
            u8::from(has_answer),
            0,
            0,
            0,
            0,
        ]);
        out.extend(question);
        if has_answer {
            out.extend([0xc0, 12]);
            out.extend(kind.to_be_bytes());
            out.extend([0, 1, 0, 0, 0, 60, 0, u8::try_from(data.len()).ok()?]);
            out.extend(data);
        }
        Some(out)
    }
}

/// Calls `body` while a resolver answers at `host`'s address.
fn with_outside<T>(host: &Host, body: impl FnOnce() -> Result<T>) -> Result<T> {
    use std::sync::atomic::{AtomicBool, Ordering};
    let address = (host.address(), 53);
    let socket = weave_tests::lab::netns::inside(host.netns(), || Ok(std::net::UdpSocket::bind(address)?))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| outside::serve(&socket, &stop));
        let result = body();
        stop.store(true, Ordering::Relaxed);
        server
            .join()
            .map_err(|_| anyhow::anyhow!("the outer resolver panicked"))??;
        result
    })
}

#[test]
fn other_names_are_asked_for_outside() {
    plan(2).test("dnsoutside", |lab: &Lab| {
        need("dig")?;
        let (host, world) = (lab.host(1)?, lab.host(2)?);
        let resolv = host.run_dir().join("resolv.conf");
        // The first is dead.
        let text = format!("nameserver 172.30.0.77\nnameserver {}\n", world.address());
        std::fs::write(&resolv, text)?;
        with_outside(world, || {
            host.launch(&[&format!("--resolv-conf={}", resolv.display())])?;
            ensure!(short(host, "www.example.com")? == ["192.0.2.99"]);
            ensure!(short(host, "www.example.com MX")? == ["10 mail.example."]);
            ensure!(short(host, "-x 203.0.113.5")? == ["outside.example."]);
            ensure!(status(&dig(host, "nope.example.com")?) == "NXDOMAIN");
            // What is in our domain is ours alone.
            ensure!(status(&dig(host, "www.weave.local")?) == "NXDOMAIN");
            ensure!(weave(host, "dns-lookup www.example.com")? == "192.0.2.99\n");

            // A new list of servers is found by itself.
            std::fs::write(&resolv, format!("# changed\nnameserver {}\n", world.address()))?;
            wait_short(host, "other.example.com", &["192.0.2.99".to_owned()])
        })
    });
}
