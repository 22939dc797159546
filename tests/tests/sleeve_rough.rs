//! Sleeve where the network is bad: narrow, lossy, changing, hostile.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use weave_tests::ends::{
    End, attach_all, both_ways, connection_address, everybody_reaches_everybody, outer, wait_large_ping,
};
use weave_tests::impair::{Impairments, Relay};
use weave_tests::lab::firewall::SLEEVE_PORT;
use weave_tests::lab::{Host, Lab, Options, Plan, netns};
use weave_tests::process::{LIMIT, wait_for};
use weave_tests::random::Random;
use weave_tests::soak::Soak;
use weave_tests::traffic::{Stream, bulk_tcp, bulk_tcp_amid};

const PASSWORD: &str = "correct horse battery staple";
const PLAIN: &str = "established sleeve";
const SEALED: &str = "established encrypted sleeve";

/// Names of labs, options, and what `status connections` then says: without a password and with one.
fn plain_and_sealed(name: &str) -> [(String, Options, &'static str); 2] {
    let plain = Options::new().no_fastdp();
    [
        (name.to_owned(), plain.clone(), PLAIN),
        (format!("{name}-sealed"), plain.password(PASSWORD), SEALED),
    ]
}

/// Launched, attached, and on sleeve.
fn ready(lab: &Lab, state: &str) -> Result<Vec<End>> {
    lab.launch_all(&[])?;
    let ends = attach_all(lab)?;
    everybody_reaches_everybody(&ends)?;
    for host in lab.hosts() {
        host.wait_connections(1, state)?;
    }
    Ok(ends)
}

#[test]
fn packets_over_700_bytes_are_dropped() {
    // With the fast path on offer: it does not fit, sleeve does.
    for (name, options, state) in [
        ("narrow", Options::new(), PLAIN),
        ("narrow-sealed", Options::new().password(PASSWORD), SEALED),
    ] {
        Plan::mesh(2).options(options).test(name, |lab: &Lab| {
            let block = lab.drop_longer_than(700)?;
            let ends = ready(lab, state)?;
            let (one, two) = outer(&ends)?;
            wait_large_ping(&one.0, two.1)?;
            wait_large_ping(&two.0, one.1)?;
            ensure!(block.dropped()? > 0, "nothing was too long");
            both_ways(one, two, 1 << 20)
        });
    }
}

#[test]
fn the_path_shrinks_during_a_transfer_and_nobody_tells() {
    for (name, options, state) in plain_and_sealed("shrink") {
        Plan::mesh(2).options(options).test(&name, |lab: &Lab| {
            lab.like_wires()?;
            let ends = ready(lab, state)?;
            let (one, two) = outer(&ends)?;
            both_ways(one, two, 1 << 20)?;
            let mut block = None;
            bulk_tcp_amid(one.0.netns(), two.0.netns(), two.1, 16 << 20, || {
                block = Some(lab.drop_longer_than(1300)?);
                Ok(())
            })?;
            wait_large_ping(&one.0, two.1)?;
            let dropped = block.context("it was not called")?.dropped()?;
            ensure!(dropped > 0, "nothing was too long");
            Ok(())
        });
    }
}

#[test]
fn the_link_shrinks_during_a_transfer() {
    for (name, options, state) in plain_and_sealed("shrink-link") {
        Plan::mesh(2).options(options).test(&name, |lab: &Lab| {
            let ends = ready(lab, state)?;
            let (one, two) = outer(&ends)?;
            both_ways(one, two, 1 << 20)?;
            bulk_tcp_amid(one.0.netns(), two.0.netns(), two.1, 16 << 20, || {
                for host in lab.hosts() {
                    netns::ip(&["-n", host.netns(), "link", "set", "eth0", "mtu", "1300"])?;
                }
                Ok(())
            })?;
            wait_large_ping(&one.0, two.1)?;
            both_ways(one, two, 1 << 20)
        });
    }
}

#[test]
fn fragments_are_dropped() {
    for (name, options, state) in plain_and_sealed("fragments") {
        Plan::mesh(2).options(options).test(&name, |lab: &Lab| {
            let block = lab.drop_fragments()?;
            let ends = ready(lab, state)?;
            let (one, two) = outer(&ends)?;
            wait_large_ping(&one.0, two.1)?;
            wait_large_ping(&two.0, one.1)?;
            both_ways(one, two, 4 << 20)?;
            ensure!(block.dropped()? > 0, "there were no fragments");
            Ok(())
        });
    }
}

#[test]
fn an_underlay_address_changes() {
    for (name, options, state) in plain_and_sealed("roam") {
        Plan::mesh(2).options(options).test(&name, |lab: &Lab| {
            let ends = ready(lab, state)?;
            let (first, second) = (lab.host(1)?, lab.host(2)?);
            netns::ip(&["-n", second.netns(), "addr", "flush", "dev", "eth0"])?;
            netns::ip(&[
                "-n",
                second.netns(),
                "addr",
                "add",
                "172.30.0.102/24",
                "dev",
                "eth0",
            ])?;
            first.wait_connection_to(second, &["172.30.0.102:", state])?;
            everybody_reaches_everybody(&ends)?;
            let (one, two) = outer(&ends)?;
            both_ways(one, two, 1 << 20)
        });
    }
}

#[test]
fn loss_reordering_and_duplicates() {
    for (name, options, state) in plain_and_sealed("rough") {
        Plan::mesh(2).options(options).test(&name, |lab: &Lab| {
            let impairments = Impairments {
                loss: 5,
                reorder: 10,
                duplicate: 5,
                seed: 11,
            };
            let relay = Relay::start(lab, lab.host(1)?, impairments)?;
            let ends = ready(lab, state)?;
            let (first, second) = (lab.host(1)?, lab.host(2)?);
            let connection = connection_address(first, second)?;
            let (one, two) = outer(&ends)?;
            both_ways(one, two, 4 << 20)?;
            wait_large_ping(&one.0, two.1)?;
            let now = connection_address(first, second)?;
            ensure!(
                now == connection,
                "the connection {connection} was made anew: {now}"
            );
            let counts = relay.counts();
            ensure!(
                counts.lost > 0 && counts.reordered > 0 && counts.duplicated > 0,
                "the network was good: {counts:?}"
            );
            for host in lab.hosts() {
                let log = host.log();
                // Late and doubled packets are dropped as such; they open all the same.
                ensure!(!log.contains("decryption failed"), "{}: {log}", host.name());
                ensure!(!log.contains("Failed to decode"), "{}: {log}", host.name());
            }
            Ok(())
        });
    }
}

/// Bytes of the peer name of `host` as packets carry it.
fn peer_bytes(host: &Host) -> Result<Vec<u8>> {
    let name = host.peer_name();
    name.split(':')
        .map(|part| u8::from_str_radix(part, 16).context("an odd peer name"))
        .collect()
}

/// Something that begins as a packet of `from` for `to` may, and goes wrong somewhere.
fn hostile(random: &mut Random, from: &[u8], to: &[u8]) -> Vec<u8> {
    let anything = |random: &mut Random, most: u64| {
        let length = random.below(most) as usize;
        random.bytes(length)
    };
    let record = |random: &mut Random, claimed: u64, body: &[u8]| {
        let (source, target) = if random.chance(50) { (from, to) } else { (to, from) };
        let mut bytes = [source, target].concat();
        bytes.extend((claimed as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    };
    let mut packet = from.to_vec();
    match random.below(8) {
        0 => return anything(random, 16),
        1 => return anything(random, 1472),
        // Up to the longest that UDP carries.
        2 => return anything(random, 65_507),
        // Sealed, or so it says.
        3 => packet.extend(anything(random, 200)),
        // A special frame of any length: heartbeats of unknown connections, tests nobody sent.
        4 => {
            let length = [14, 21, 22, 23, 700, 1438].get(random.below(6) as usize).copied();
            let body = vec![0; length.unwrap_or(22)];
            packet.extend(record(random, body.len() as u64, &body));
        }
        // Lengths that do not fit.
        5 => {
            let (claimed, body) = (random.below(65_536), anything(random, 100));
            packet.extend(record(random, claimed, &body));
        }
        // Truncated anywhere.
        6 => {
            let body = random.bytes(60);
            packet.extend(record(random, 60, &body));
            packet.truncate(random.below(80) as usize);
        }
        // Many records, the last one cut.
        _ => {
            for _ in 0..random.below(40) {
                let length = random.below(13);
                let body = random.bytes(length as usize);
                packet.extend(record(random, length, &body));
            }
            packet.extend(anything(random, 13));
        }
    }
    packet
}

#[test]
fn hostile_datagrams() {
    for (name, options, state) in plain_and_sealed("hostile") {
        // The third host has no daemon: it attacks, under its own address and from that of the second.
        Plan::mesh(3).options(options).test(&name, |lab: &Lab| {
            let (first, second, attacker) = (lab.host(1)?, lab.host(2)?, lab.host(3)?);
            first.launch(&["--ipalloc-init=consensus=2"])?;
            second.launch(&["--ipalloc-init=consensus=2", &first.address().to_string()])?;
            let ((one, _), (two, address)) = (first.attached("c1")?, second.attached("c2")?);
            one.wait_ping(address)?;
            first.wait_connection_to(second, &[state])?;
            let connection = connection_address(first, second)?;
            let daemons = (first.daemon_pids(), second.daemon_pids());
            let (from, to) = (peer_bytes(second)?, peer_bytes(first)?);
            let target = SocketAddr::from((first.address(), SLEEVE_PORT));
            let stop = AtomicBool::new(false);
            let stream = Stream::start(one.netns(), two.netns(), address)?;
            let sent = std::thread::scope(|scope| {
                let attacks = [attacker, second].map(|host| {
                    let (stop, from, to) = (&stop, &from, &to);
                    scope.spawn(move || {
                        let socket = netns::inside(host.netns(), || Ok(UdpSocket::bind("0.0.0.0:0")?))?;
                        let mut random = Random::new(u64::from(host.address().octets()[3]));
                        let mut sent = 0u64;
                        while !stop.load(Ordering::SeqCst) {
                            let packet = hostile(&mut random, from, to);
                            // Refusals (too long, queue full) are as good.
                            sent += u64::from(socket.send_to(&packet, target).is_ok());
                        }
                        Ok::<_, anyhow::Error>(sent)
                    })
                });
                let traffic = stream
                    .wait_more(300)
                    .and_then(|()| bulk_tcp(one.netns(), two.netns(), address, 4 << 20))
                    .and_then(|()| stream.wait_more(300));
                stop.store(true, Ordering::SeqCst);
                let mut sent = 0;
                for attack in attacks {
                    sent += attack.join().map_err(|_| anyhow!("an attacker panicked"))??;
                }
                traffic.map(|()| sent)
            })
            .context("under attack")?;
            ensure!(sent > 1000, "hardly an attack: {sent} datagrams");
            stream.finish()?;
            one.wait_ping(address)?;
            ensure!(
                daemons == (first.daemon_pids(), second.daemon_pids()),
                "a daemon was restarted"
            );
            let now = connection_address(first, second)?;
            ensure!(
                now == connection,
                "the connection {connection} was made anew: {now}"
            );
            let log = first.log();
            ensure!(!log.contains("panicked"), "{log}");
            ensure!(
                log.len() < 1 << 20,
                "{} bytes of log after {sent} datagrams",
                log.len()
            );
            Ok(())
        });
    }
}

/// A plain packet of `sender` with one UDP datagram for `to`, as broadcast by a container.
fn forged(sender: &[u8], neighbour: &[u8], to: &End, port: u16, text: &[u8]) -> Vec<u8> {
    let udp = 8 + text.len() as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend([10, 47, 0, 1]);
    ip.extend(to.1.octets());
    let words = ip.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    });
    let sum: u32 = words.sum();
    let once = (sum & 0xffff) + (sum >> 16);
    let checksum = !((once & 0xffff) + (once >> 16)) as u16;
    ip.splice(10..12, checksum.to_be_bytes());
    let mut frame = vec![0xff; 6];
    frame.extend([0x02, 0, 0, 0, 0x66, 0x66, 0x08, 0x00]);
    frame.extend(ip);
    for field in [port, port, udp, 0] {
        frame.extend(field.to_be_bytes());
    }
    frame.extend(text);
    let length = (frame.len() as u16).to_be_bytes();
    [sender, sender, neighbour, &length, &frame].concat()
}

#[test]
fn frames_of_strangers_reach_no_container() {
    for (name, options, state) in plain_and_sealed("forged") {
        let sealed = state == SEALED;
        Plan::mesh(3).options(options).test(&name, |lab: &Lab| {
            const PORT: u16 = 7777;
            let (first, second, stranger) = (lab.host(1)?, lab.host(2)?, lab.host(3)?);
            first.launch(&["--ipalloc-init=consensus=2"])?;
            second.launch(&["--ipalloc-init=consensus=2", &first.address().to_string()])?;
            let (one, two) = (first.attached("c1")?, second.attached("c2")?);
            one.0.wait_ping(two.1)?;
            first.wait_connection_to(second, &[state])?;
            let receiver = netns::inside(one.0.netns(), || Ok(UdpSocket::bind(("0.0.0.0", PORT))?))?;
            receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
            let genuine = netns::inside(two.0.netns(), || Ok(UdpSocket::bind("0.0.0.0:0")?))?;
            let packet = forged(&peer_bytes(second)?, &peer_bytes(first)?, &one, PORT, b"forged");
            let target = SocketAddr::from((first.address(), SLEEVE_PORT));
            let forge_on = |host: &Host| {
                let socket = netns::inside(host.netns(), || Ok(UdpSocket::bind("0.0.0.0:0")?))?;
                socket.send_to(&packet, target)?;
                Ok::<_, anyhow::Error>(())
            };
            let mut buffer = [0; 100];
            let mut genuine_ones = 0;
            // Whoever opens a connection knows the password; without one, the neighbour's address is
            // all there is to go by.
            let strangers = if sealed {
                vec![stranger, second]
            } else {
                vec![stranger]
            };
            wait_for("20 genuine datagrams", LIMIT, || {
                for host in &strangers {
                    forge_on(host)?;
                }
                genuine.send_to(b"genuine", (one.1, PORT))?;
                while let Ok(length) = receiver.recv(&mut buffer) {
                    let text = buffer.get(..length).unwrap_or_default();
                    if text == b"forged" {
                        return Ok(Some(false));
                    }
                    genuine_ones += usize::from(text == b"genuine");
                }
                Ok((genuine_ones >= 20).then_some(true))
            })?
            .then_some(())
            .context("a forged datagram arrived")?;
            if !sealed {
                // The forgery was well made: from the neighbour's address it is taken.
                wait_for("the datagram from the right address", LIMIT, || {
                    forge_on(second)?;
                    let length = receiver.recv(&mut buffer)?;
                    Ok((buffer.get(..length) == Some(b"forged")).then_some(()))
                })?;
            }
            Ok(())
        });
    }
}

#[test]
fn a_short_soak() {
    // Side by side, as the long one (cargo xtask soak).
    std::thread::scope(|scope| {
        for (name, sealed) in [("soak", false), ("soak-sealed", true)] {
            scope.spawn(move || {
                let mut soak = Soak::new(sealed, Duration::from_secs(15));
                // Buffers are still filling.
                soak.growth = 16.0;
                soak.plan(Plan::mesh(2))
                    .test(name, |lab: &Lab| soak.run(lab).map(drop));
            });
        }
    });
}
