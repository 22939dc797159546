//! What people and programs see of a running daemon: pages, JSON, metrics, and who may look.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weave_tests::lab::{Container, Host, Lab, Plan, netns};
use weave_tests::process::{run, wait_for};
use weave_tests::traffic::bulk_tcp;

const LIMIT: Duration = Duration::from_secs(60);
const CONTROL: u16 = 6784;
const STATUS: u16 = 6782;
const METRICS: u16 = 6781;

/// Asks from within a network namespace: status and body.
fn get(netns: &str, address: Ipv4Addr, port: u16, path: &str) -> Result<(u16, String)> {
    netns::inside(netns, || {
        let to = SocketAddr::from((address, port));
        let mut stream = TcpStream::connect_timeout(&to, LIMIT).with_context(|| format!("{to}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    })
}

/// The value of the sample whose line contains all of these.
fn sample(host: &Host, parts: &[&str]) -> Result<Option<f64>> {
    let (status, text) = get(host.netns(), Ipv4Addr::LOCALHOST, METRICS, "/metrics")?;
    ensure!(status == 200, "{status}: {text}");
    let line = text
        .lines()
        .find(|line| parts.iter().all(|part| line.contains(part)));
    let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
    Ok(value)
}

fn json(host: &Host, page: &[&str]) -> Result<Value> {
    let args = [&["status"], page, &["--output", "json"]].concat();
    Ok(serde_json::from_str(&host.weave(&args)?.ok()?)?)
}

#[test]
fn pages_json_metrics_and_watching() {
    Plan::mesh(2).test("status-pages", |lab: &Lab| {
        let [first, second] = lab.hosts() else {
            anyhow::bail!("two hosts")
        };
        let socket = first.run_dir().join("control.sock");
        let socket = socket.to_str().context("path")?;
        let both = format!("127.0.0.1:{CONTROL},{socket}");
        let metrics = format!("127.0.0.1:{METRICS}");
        first.launch(&["--http-addr", &both, "--metrics-addr", &metrics])?;
        let address = first.address().to_string();
        second.launch(&[&address])?;
        first.wait_connections(1, "established fastdp")?;

        the_text_agrees_with_the_report(first, second)?;

        // JSON on every page, over the Unix socket as well.
        let summary = json(first, &[])?;
        ensure!(summary["Router"]["Connections"]["established"] == 1, "{summary}");
        let peers = json(first, &["peers"])?;
        ensure!(peers.as_array().is_some_and(|peers| peers.len() == 2), "{peers}");
        let connections = json(first, &["connections"])?;
        ensure!(
            connections[0]["Remote"]["Name"] == second.peer_name(),
            "{connections}"
        );
        ensure!(json(second, &["targets"])? == Value::from(vec![address]));
        let mut command = first.command("weave-ctl")?;
        command.env("WEAVE_HTTP_ADDR", socket);
        let page = run(command.args(["status", "ipam", "-o", "json"]), LIMIT)?.ok()?;
        let page: Value = serde_json::from_str(&page)?;
        ensure!(page["Owners"].is_array(), "{page}");
        let mode = std::fs::metadata(socket)?.permissions().mode();
        ensure!(mode & 0o777 == 0o660, "{mode:o}");

        // Frames are counted; so are packets of the neighbour on sleeve, which beats all the time.
        let (here, _) = first.attached("here")?;
        let (there_container, there) = second.attached("there")?;
        let encap = || {
            let sent = sample(first, &["weave_fastdp_packets_total{verdict=\"encap\"}"])?;
            sent.context("no such sample")
        };
        here.wait_ping(there)?;
        let before = encap()?;
        here.exec(&["ping", "-c", "5", "-i", "0.2", &there.to_string()])?
            .ok()?;
        let after = encap()?;
        ensure!(after >= before + 5.0, "{before} {after}");
        traffic_of_a_neighbour([first, second], [&here, &there_container], there)?;
        wait_for("sleeve's packets in the metrics", LIMIT, || {
            let count = |direction: &str| {
                let direction = format!("direction=\"{direction}\"");
                let parts = [
                    "weave_peer_packets_total{",
                    &direction,
                    "nickname=\"h2\"",
                    "overlay=\"sleeve\"",
                ];
                sample(first, &parts)
            };
            let both = [count("in")?, count("out")?];
            Ok(both.iter().all(|n| n.is_some_and(|n| n > 0.0)).then_some(()))
        })?;
        let peers_known = sample(first, &["weave_bpf_map_entries{map=\"PEERS\"}"])?;
        ensure!(peers_known.is_some_and(|n| n >= 1.0), "{peers_known:?}");
        let gossip = ["weave_gossip_received_bytes_total{channel=\"IPallocation\"}"];
        wait_for("gossip and a round trip in the metrics", LIMIT, || {
            let gossip = sample(first, &gossip)?.unwrap_or(0.0);
            let round_trip = sample(first, &["weave_peer_round_trip_seconds{nickname=\"h2\""])?;
            Ok((gossip > 0.0 && round_trip.is_some_and(|s| s > 0.0 && s < 10.0)).then_some(()))
        })?;

        // Again and again, plain, until Ctrl-C.
        let watch = first.spawn(&["weave-ctl", "status", "connections", "--watch=0.1"])?;
        wait_for("three pages", LIMIT, || {
            let pages = watch.printed()?.matches(" established ").count();
            Ok((pages >= 3).then_some(()))
        })?;
        let watched = watch.interrupt(LIMIT)?;
        ensure!(watched.success() && !watched.stdout.contains('\x1b'), "{watched}");
        Ok(())
    });
}

/// What the fast path has carried between the first host and the second: packets in, bytes in, packets out, bytes
/// out.
fn fastdp_traffic(host: &Host) -> Result<[f64; 4]> {
    let mut numbers = [0.0; 4];
    let names = [
        ("packets", "in"),
        ("bytes", "in"),
        ("packets", "out"),
        ("bytes", "out"),
    ];
    for (number, (unit, direction)) in numbers.iter_mut().zip(names) {
        let family = format!("weave_peer_{unit}_total{{");
        let direction = format!("direction=\"{direction}\"");
        let parts = [&family, &direction, "nickname=\"h2\"", "overlay=\"fastdp\""];
        *number = sample(host, &parts)?.with_context(|| format!("no sample {parts:?}"))?;
    }
    Ok(numbers)
}

/// The metrics of the fast path grow by what a ping and a TCP connection to `address` send.
fn traffic_of_a_neighbour(hosts: [&Host; 2], ends: [&Container; 2], address: Ipv4Addr) -> Result<()> {
    let [first, second] = hosts;
    let address_text = address.to_string();
    // Room for ARP and what IPv6 sends by itself, not for counting twice. Again if the path was not in use all the
    // time, as a busy machine may lose its heartbeats.
    wait_for("the bytes of five pings", LIMIT, || {
        let before = fastdp_traffic(first)?;
        ends[0]
            .exec(&["ping", "-c", "5", "-i", "0.2", "-s", "1000", &address_text])?
            .ok()?;
        let after = fastdp_traffic(first)?;
        let grown = [0, 1, 2, 3].map(|i| after[i] - before[i]);
        let fits = |packets: f64, bytes: f64| packets >= 5.0 && (5210.0..9000.0).contains(&bytes);
        Ok((fits(grown[0], grown[1]) && fits(grown[2], grown[3])).then_some(()))
    })?;
    const BULK: usize = 8 << 20;
    wait_for("the bytes of a TCP connection", LIMIT, || {
        let before = fastdp_traffic(first)?;
        bulk_tcp(ends[0].netns(), ends[1].netns(), address, BULK)?;
        let after = fastdp_traffic(first)?;
        let [packets, bytes] = [2, 3].map(|i| after[i] - before[i]);
        // Super-packets count as what they are cut into.
        let (low, high) = (BULK as f64, BULK as f64 * 1.2);
        Ok(((low..high).contains(&bytes) && bytes / packets < 1500.0).then_some(()))
    })?;
    let report = json(second, &["connections"])?;
    let traffic = &report[0]["Remote"]["Traffic"]["fastdp"];
    let [packets, bytes] = ["PacketsIn", "BytesIn"].map(|name| traffic[name].as_f64().unwrap_or_default());
    ensure!(
        bytes > BULK as f64 && bytes / packets < 1500.0,
        "the other end: {report}"
    );
    Ok(())
}

/// The lines of cli.md 8.7.
fn the_text_agrees_with_the_report(first: &Host, second: &Host) -> Result<()> {
    let page = |page: &str| first.weave(&["status", page])?.ok();
    let report = |format: &str| first.weave(&["report", "-f", format])?.ok();
    second
        .weave(&["dns-add", "192.0.2.7", "-h", "db.weave.local"])?
        .ok()?;
    wait_for("the name", LIMIT, || {
        Ok((report("{{len .DNS.Entries}}")? == "1").then_some(()))
    })?;
    let text = first.weave(&["status"])?.ok()?;
    for (label, format, after) in [
        ("Name", "{{.Router.Name}}({{.Router.NickName}})", "\n"),
        ("Targets", "{{len .Router.Targets}}", "\n"),
        ("Connections", "{{len .Router.Connections}}", " (1 established)\n"),
        (
            "Peers",
            "{{len .Router.Peers}}",
            " (with 2 established connections)\n",
        ),
        ("DefaultSubnet", "{{.IPAM.DefaultSubnet}}", "\n"),
        ("Domain", "{{.DNS.Domain}}", "\n"),
        ("Entries", "{{len .DNS.Entries}}", "\n"),
    ] {
        let value = report(format)?;
        let line = format!("{label:>15}: {value}{after}");
        ensure!(text.contains(&line), "{line:?} in {text}");
    }
    ensure!(text.contains("version check update disabled"), "{text}");
    let check = "{{with .VersionCheck}}{{.Enabled}} {{.Success}} {{printf \"%q\" .NewVersion}}{{end}}";
    ensure!(report(check)? == "false false \"\"", "{}", report(check)?);
    let targets = "{{range .Router.Targets}}{{.}}{{\"\\n\"}}{{end}}";
    let listed = second.weave(&["report", "-f", targets])?.ok()?;
    ensure!(listed == format!("{}\n", first.address()), "{listed:?}");
    ensure!(second.weave(&["status", "targets"])?.ok()? == listed);

    let peers = page("peers")?;
    for host in [first, second] {
        let known = format!("{}({})", host.peer_name(), host.name());
        ensure!(peers.contains(&known), "{known} in {peers}");
    }
    ensure!(page("dns")?.starts_with("db "), "{}", page("dns")?);
    let connections = second.weave(&["status", "connections"])?.ok()?;
    let remote = connections.split_whitespace().nth(1);
    let expected = format!("{}:6783", first.address());
    ensure!(remote == Some(expected.as_str()), "{connections}");
    // There is no ring before somebody asks for an address.
    ensure!(page("ipam")?.is_empty(), "{}", page("ipam")?);
    Ok(())
}

#[test]
fn containers_are_kept_out() {
    Plan::mesh(2).test("status-guard", |lab: &Lab| {
        let [first, second] = lab.hosts() else {
            anyhow::bail!("two hosts")
        };
        let all = |port: u16| format!("0.0.0.0:{port}");
        let (control, status, metrics) = (all(CONTROL), all(STATUS), all(METRICS));
        first.launch(&[
            "--http-addr",
            &control,
            "--status-addr",
            &status,
            "--metrics-addr",
            &metrics,
            // Otherwise frames from an address of its own choice do not even leave it.
            "--no-spoof-check",
        ])?;
        let (container, _) = first.attached("inside")?;
        // What `expose` does, and a container with the host as its router.
        let bridge = Ipv4Addr::new(10, 32, 7, 7);
        first
            .exec(&["ip", "address", "add", "10.32.7.7/12", "dev", "weave"])?
            .ok()?;
        let gateway = bridge.to_string();
        container
            .exec(&["ip", "route", "replace", "default", "via", &gateway])?
            .ok()?;
        // With an address of its own choice, too, and a way back for it.
        container
            .exec(&["ip", "address", "add", "198.51.100.7/32", "dev", "ethwe"])?
            .ok()?;
        first
            .exec(&["ip", "route", "add", "198.51.100.7/32", "dev", "weave"])?
            .ok()?;
        let host = first.address().to_string();
        let underlay = format!("{host}/32");
        container
            .exec(&[
                "ip",
                "route",
                "add",
                &underlay,
                "via",
                &gateway,
                "src",
                "198.51.100.7",
            ])?
            .ok()?;

        for (address, way) in [
            (bridge, "the bridge"),
            (first.address(), "the host's own address"),
        ] {
            for port in [CONTROL, STATUS] {
                let (status, body) = get(container.netns(), address, port, "/status")?;
                ensure!(
                    status == 403 && body.contains("containers"),
                    "{way}, {port}: {status} {body}"
                );
            }
            let (status, _) = get(container.netns(), address, METRICS, "/metrics")?;
            ensure!(status == 200, "metrics by {way}: {status}");
            for port in [CONTROL, STATUS] {
                let (status, body) = get(first.netns(), address, port, "/status")?;
                ensure!(status == 200, "the host itself by {way}, {port}: {status} {body}");
            }
        }
        let (status, body) = get(second.netns(), first.address(), STATUS, "/status")?;
        ensure!(status == 200, "another host: {status} {body}");
        // Also one whose own address is in the range, on a network of both.
        for (host, address) in [(first, "10.33.0.1/24"), (second, "10.33.0.2/24")] {
            host.exec(&["ip", "address", "add", address, "dev", "eth0"])?
                .ok()?;
        }
        let neighbour = Ipv4Addr::new(10, 33, 0, 1);
        let (status, body) = get(second.netns(), neighbour, STATUS, "/status")?;
        ensure!(
            status == 200,
            "a host with an address of the range: {status} {body}"
        );
        let (status, body) = get(container.netns(), neighbour, STATUS, "/status")?;
        ensure!(status == 403, "a container by that address: {status} {body}");
        Ok(())
    });
}

#[test]
fn by_default_only_the_host_itself_is_answered() {
    Plan::mesh(2).test("status-loopback", |lab: &Lab| {
        let [first, second] = lab.hosts() else {
            anyhow::bail!("two hosts")
        };
        first.launch(&[])?;
        for port in [CONTROL, STATUS] {
            let (status, _) = get(first.netns(), Ipv4Addr::LOCALHOST, port, "/status")?;
            ensure!(status == 200, "{status}");
            let asked = get(second.netns(), first.address(), port, "/status");
            ensure!(asked.is_err(), "{asked:?}");
        }
        // Text and exit status of mistakes (cli.md 1.3).
        let wrong = first.weave(&["stauts"])?;
        ensure!(
            wrong.code == 1
                && wrong
                    .stderr
                    .starts_with("Unknown weave command 'stauts'\nDid you mean 'status'?\n"),
            "{wrong}"
        );
        let page = first.weave(&["status", "conections"])?;
        let text = "Invalid 'weave status' sub-command: conections\nDid you mean 'connections'?\n";
        ensure!(page.code == 1 && page.stderr.contains(text), "{page}");
        Ok(())
    });
}
