//! Applications in subnets of their own do not reach each other, whatever their containers try.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use weave_tests::engine::Engine;
use weave_tests::lab::{Container, Host, Lab, Plan, netns};
use weave_tests::packets::{self, SERVICE_TAG, Sender, TAG};
use weave_tests::process::{LIMIT, wait_for};

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
/// Behind so many tags a receiver still finds the packet.
const TAGS: [&[u16]; 6] = [
    &[],
    &[TAG],
    &[SERVICE_TAG],
    &[TAG, TAG],
    &[SERVICE_TAG, TAG],
    &[TAG, TAG, TAG],
];
const PORT: u16 = 5998;

fn inside(container: &Container, args: &[&str]) -> Result<()> {
    netns::ip(&[&["-n", container.netns()], args].concat()).map(drop)
}

fn dropped(host: &Host, counter: &str) -> Result<u64> {
    let format = format!("{{{{.FastDatapath.Counters.{counter}}}}}");
    Ok(host.weave(&["report", "-f", &format])?.ok()?.trim().parse()?)
}

#[test]
fn subnets_stay_apart_and_nobody_is_somebody_else() {
    Plan::mesh(2).test("isolate", |lab: &Lab| {
        let (one, two) = (lab.host(1)?, lab.host(2)?);
        one.launch(&[])?;
        two.launch(&[&one.address().to_string()])?;
        one.wait_connection_to(two, &["fastdp", "established"])?;
        let container = |host: &Host, name: &str, address: &str| -> Result<(Container, Ipv4Addr)> {
            let container = host.container(name)?;
            let addrs = host.attach(&container, &[address])?;
            Ok((container, addrs[0]))
        };
        let (red, _) = container(one, "red1", "10.2.1.1/24")?;
        let (_red2, red2) = container(two, "red2", "10.2.1.2/24")?;
        let (blue, blue1) = container(one, "blue1", "10.2.2.1/24")?;
        let (_blue2, blue2) = container(two, "blue2", "10.2.2.2/24")?;
        red.wait_ping(red2)?;
        blue.wait_ping(blue2)?;
        for target in [blue1, blue2] {
            red.no_ping(target)?;
        }

        // An address of theirs, taken.
        let spoofed = dropped(one, "drop_spoofed_ip")?;
        inside(&red, &["address", "add", "10.2.2.99/24", "dev", "ethwe"])?;
        for target in [blue1, blue2] {
            red.no_ping(target)?;
        }
        ensure!(
            dropped(one, "drop_spoofed_ip")? > spoofed,
            "not dropped by the check"
        );
        // One that it was given, on both ways of the datapath, also after a restart of the daemon.
        one.kill_daemon()?;
        one.launch(&["--resume"])?;
        one.wait_connection_to(two, &["fastdp", "established"])?;
        for target in [blue1, blue2] {
            red.no_ping(target)?;
        }
        inside(&red, &["address", "del", "10.2.2.99/24", "dev", "ethwe"])?;
        one.attach(&red, &["10.2.2.99/24"])?;
        red.wait_ping(blue2)?;
        one.detach(&red, &["10.2.2.99/24"])?;
        inside(&red, &["address", "add", "10.2.2.99/24", "dev", "ethwe"])?;
        red.no_ping(blue2)?;
        inside(&red, &["address", "del", "10.2.2.99/24", "dev", "ethwe"])?;

        // Another Ethernet address.
        red.wait_ping(red2)?;
        let mac = ["link", "set", "ethwe", "address", "02:00:00:00:00:99"];
        inside(&red, &mac)?;
        red.no_ping(red2)?;
        ensure!(dropped(one, "drop_spoofed_mac")? > 0, "not dropped by the check");

        // Who wants it may have it so.
        one.weave(&["stop"])?.ok()?;
        one.launch(&["--resume", "--no-spoof-check"])?;
        one.wait_connection_to(two, &["fastdp", "established"])?;
        red.wait_ping(red2)?;
        inside(&red, &["address", "add", "10.2.2.99/24", "dev", "ethwe"])?;
        wait_for("a ping from an address taken", LIMIT, || {
            Ok(red
                .exec(&["ping", "-c1", "-W1", &blue2.to_string()])?
                .success()
                .then_some(()))
        })
    });
}

/// A container in two subnets, and what it gets of UDP.
struct Target {
    container: Container,
    mac: [u8; 6],
    /// In the subnet of who is honest, and in the one of who is not.
    addresses: [Ipv4Addr; 2],
    inbox: UdpSocket,
}

impl Target {
    fn new(host: &Host, addresses: [&str; 2]) -> Result<Self> {
        let container = host.container("target")?;
        let given = host.attach(&container, &addresses)?;
        let inbox = netns::inside(container.netns(), || {
            Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?)
        })?;
        inbox.set_read_timeout(Some(LIMIT))?;
        Ok(Self {
            mac: packets::mac(container.netns(), "ethwe")?,
            addresses: given.try_into().ok().context("two addresses")?,
            container,
            inbox,
        })
    }

    /// Who sent the next datagram, and what it says.
    fn next(&self) -> Result<(SocketAddr, String)> {
        let mut text = [0; 100];
        let (len, from) = self.inbox.recv_from(&mut text)?;
        let text = text.get(..len).unwrap_or_default();
        Ok((from, String::from_utf8_lossy(text).into_owned()))
    }

    /// Does it know `neighbour` at this Ethernet address?
    fn knows(&self, neighbour: Ipv4Addr, mac: [u8; 6]) -> Result<bool> {
        let shown = netns::ip(&[
            "-n",
            self.container.netns(),
            "neigh",
            "show",
            &neighbour.to_string(),
        ])?;
        Ok(shown.contains(&mac.map(|byte| format!("{byte:02x}")).join(":")))
    }
}

#[test]
fn nobody_hides_behind_tags_of_vlans() {
    Plan::mesh(2).test("isotags", |lab: &Lab| {
        let (one, two) = (lab.host(1)?, lab.host(2)?);
        one.launch(&[])?;
        two.launch(&[&one.address().to_string()])?;
        one.wait_connection_to(two, &["fastdp", "established"])?;
        let red = one.container("red")?;
        let own = *one
            .attach(&red, &["10.2.1.1/24"])?
            .first()
            .context("an address")?;
        let taken = Ipv4Addr::new(10, 2, 2, 99);
        let sender = Sender::open(red.netns(), "ethwe")?;
        for target in [
            Target::new(one, ["10.2.1.2/24", "10.2.2.2/24"])?,
            Target::new(two, ["10.2.1.3/24", "10.2.2.3/24"])?,
        ] {
            let [honest, other] = target.addresses;
            red.wait_ping(honest)?;
            let send = |tags: &[u16], ethertype: u16, packet: &[u8]| {
                sender.send(target.mac, &packets::tagged(tags, ethertype, packet))
            };
            let before = dropped(one, "drop_spoofed_ip")?;
            let letter = packets::udp(taken, other, PORT, "spoofed");
            let question = packets::arp_request(sender.mac, taken, other);
            let mut sent = 0;
            for tags in TAGS {
                let half = |packet: &[u8], len| packet.get(..len).unwrap_or_default().to_vec();
                for (ethertype, packet) in [
                    (IPV4, letter.clone()),
                    (IPV4, half(&letter, 15)),
                    (ARP, question.clone()),
                    (ARP, half(&question, 17)),
                ] {
                    send(tags, ethertype, &packet)?;
                    sent += 1;
                }
            }
            // Deeper than is looked.
            send(&[TAG; 4], IPV4, &letter)?;
            sent += 1;
            // In 802.2 SNAP, which is not looked into: no receiver takes it.
            let snap = [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &letter[..]].concat();
            send(&[], u16::try_from(snap.len())?, &snap)?;
            wait_for("all of them to be dropped", LIMIT, || {
                Ok((dropped(one, "drop_spoofed_ip")? >= before + sent).then_some(()))
            })?;
            ensure!(!target.knows(taken, sender.mac)?, "believed in ARP");

            // What is true arrives, tagged or not, and so nothing else has.
            for tags in TAGS {
                let text = format!("{tags:?}");
                send(tags, IPV4, &packets::udp(own, honest, PORT, &text))?;
                let got = target.next().with_context(|| format!("tags {text}"))?;
                ensure!(got == (SocketAddr::from((own, PORT)), text), "{got:?} arrived");
                inside(&target.container, &["neigh", "flush", "dev", "ethwe"])?;
                send(tags, ARP, &packets::arp_request(sender.mac, own, honest))?;
                wait_for("ARP to be believed", LIMIT, || {
                    Ok(target.knows(own, sender.mac)?.then_some(()))
                })?;
            }
            ensure!(
                dropped(one, "drop_spoofed_ip")? == before + sent,
                "what was true was dropped"
            );
        }
        Ok(())
    });
}

#[test]
fn containers_of_dockers_network_are_nobody_else_either() {
    Plan::mesh(1).test("isodocker", |lab: &Lab| {
        let host = lab.host(1)?;
        let engine = Engine::start(host)?;
        engine.launch(&["--ipalloc-init=consensus=1"])?;
        engine.run_with("box", &["--net=weave", "--name=target"])?;
        engine.run_with("box", &["--net=weave", "--name=red", "--cap-add=NET_ADMIN"])?;
        let format = "{{.NetworkSettings.Networks.weave.IPAddress}}";
        let target = engine.docker(&["inspect", "--format", format, "target"])?.ok()?;
        let red = |args: &[&str]| engine.docker(&[&["exec", "red"], args].concat());
        let ping = ["ping", "-c", "2", "-W", "1", target.trim()];
        wait_for("an answer", LIMIT, || red(&ping)?.ok().map(Some))?;

        let before = dropped(host, "drop_spoofed_ip")?;
        red(&["ip", "address", "add", "10.33.0.99/12", "dev", "ethwe0"])?.ok()?;
        let from = ["ping", "-c", "2", "-W", "1", "-I", "10.33.0.99", target.trim()];
        let pinged = red(&from)?;
        ensure!(!pinged.success(), "an answer that must not come: {pinged}");
        ensure!(
            dropped(host, "drop_spoofed_ip")? > before,
            "not dropped by the check"
        );
        wait_for("an answer again", LIMIT, || red(&ping)?.ok().map(Some))?;

        red(&["ip", "link", "set", "ethwe0", "address", "02:00:00:00:00:99"])?.ok()?;
        let pinged = red(&ping)?;
        ensure!(!pinged.success(), "an answer that must not come: {pinged}");
        ensure!(dropped(host, "drop_spoofed_mac")? > 0, "not dropped by the check");
        Ok(())
    });
}
