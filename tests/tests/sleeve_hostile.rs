//! Sleeve under attack: datagrams of any content, and forged ones.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use weave_tests::ends::{End, connection_address};
use weave_tests::lab::firewall::SLEEVE_PORT;
use weave_tests::lab::{Host, Lab, Options, Plan, netns};
use weave_tests::process::{LIMIT, wait_for};
use weave_tests::random::Random;
use weave_tests::traffic::{Stream, bulk_tcp};

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
