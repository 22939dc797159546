//! Engines in network namespaces, with the TAP as an ordinary interface that has an address.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::engine::{Config, Engine};
use super::{Arrived, FloodTree, FrameSource, Hop, Limits, LinkState, NewLink, Session, Special, Tables};
use crate::mesh::ConnId;
use crate::mesh::crypto::SessionKey;
use crate::mesh::name::PeerName;
use crate::net::netns::Netns;
use crate::net::testing::new_netns;

const PORT: u16 = 6783;
const SECOND: Duration = Duration::from_secs(1);

/// One host with an engine.
struct Host {
    ns: Netns,
    name: PeerName,
    engine: Arc<Engine>,
    events: Arc<Mutex<Vec<(ConnId, Arrived)>>>,
}

impl Host {
    /// Number `number` of the overlay, 10.9.0.`number`.
    async fn new(number: u64) -> Option<Self> {
        Self::with(number, FrameSource::Bridge).await
    }

    async fn with(number: u64, source: FrameSource) -> Option<Self> {
        let ns = new_netns()?;
        let name = PeerName::from_u64(0x0200_0000_0000 + number).unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        let config = Config {
            own: name,
            port: PORT,
            host: None,
            tap: "sleeve".to_owned(),
            source,
            workers: 2,
        };
        let start = move || {
            Engine::start(
                config,
                Arc::new(move |conn, event| seen.lock().unwrap().push((conn, event))),
            )
        };
        let engine = Arc::new(ns.run(start).await.unwrap().unwrap());
        let host = Self {
            ns,
            name,
            engine,
            events,
        };
        host.ip(&format!("address add 10.9.0.{number}/24 dev sleeve"))
            .await;
        host.ip("link set lo up").await;
        Some(host)
    }

    async fn command(&self, program: &'static str, args: &str) -> (bool, String) {
        let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
        self.ns
            .run(move || {
                let out = Command::new(program).args(args).output().unwrap();
                let text = [out.stdout, out.stderr].concat();
                (out.status.success(), String::from_utf8_lossy(&text).into_owned())
            })
            .await
            .unwrap()
    }

    async fn ip(&self, args: &str) {
        let (ok, text) = self.command("ip", args).await;
        assert!(ok, "ip {args}: {text}");
    }

    /// Another host answers a ping with so much payload.
    async fn assert_ping(&self, to: &Self, bytes: u16) {
        let target = to.address();
        let (ok, text) = self
            .command("ping", &format!("-c 1 -w 10 -s {bytes} {target}"))
            .await;
        let counters = |host: &Self| {
            let values = host.engine.counters().values();
            let named = super::counters::Counters::NAMES.into_iter().zip(values);
            named.filter(|(_, value)| *value > 0).collect::<Vec<_>>()
        };
        assert!(
            ok,
            "ping {bytes}: {text}\n{:?}\n{:?}",
            counters(self),
            counters(to)
        );
    }

    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 9, 0, self.name.as_u64() as u8)
    }

    /// Joins two hosts by a wire and a connection number `conn`; `number` makes its addresses.
    async fn connect(&self, other: &Self, conn: ConnId, sealed: bool) {
        let ours = format!("v{conn}");
        let made = self.ns.clone();
        let far = other.ns.clone();
        self.ip(&format!("link add {ours} type veth peer name far{conn}"))
            .await;
        far_end(&made, &far, &format!("far{conn}")).await;
        let [a, b] = [1, 2].map(|end| Ipv4Addr::new(192, 0, conn as u8, end));
        for (host, dev, address) in [(self, ours.clone(), a), (other, format!("far{conn}"), b)] {
            host.ip(&format!("address add {address}/24 dev {dev}")).await;
            host.ip(&format!("link set {dev} up")).await;
        }
        let overhead = if sealed { 86 } else { 62 };
        for (host, remote, local, far) in [(self, other, a, b), (other, self, b, a)] {
            let session = sealed.then(|| Session {
                key: SessionKey::new([7; 32]),
                outbound: host.name < remote.name,
            });
            let link = NewLink {
                conn,
                remote: remote.name,
                session,
                strict_source: true,
            };
            let limits = Limits {
                mtu: 1500 - overhead,
                max_payload: 1472,
                fragmentation: true,
            };
            let remote = Some(SocketAddrV4::new(far, PORT));
            host.engine.add(
                link,
                LinkState {
                    local,
                    remote,
                    limits,
                },
            );
        }
    }

    async fn set_mtu(&self, mtu: u16) {
        self.ip(&format!("link set sleeve mtu {mtu}")).await;
    }

    /// Sends `bytes` by TCP and checks that they arrive.
    async fn assert_transfer(&self, to: &Self, bytes: usize) {
        self.assert_transfer_to(to, IpAddr::V4(to.address()), bytes).await;
    }

    async fn assert_transfer_to(&self, to: &Self, target: IpAddr, bytes: usize) {
        let (ready, listening) = tokio::sync::oneshot::channel();
        let far = to.ns.clone();
        let received = tokio::spawn(async move {
            far.run(move || {
                let listener = TcpListener::bind((target, 0)).unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(20 * SECOND)).unwrap();
                let mut data = Vec::new();
                stream.read_to_end(&mut data).map(|_| data).unwrap()
            })
            .await
            .unwrap()
        });
        let address = listening.await.unwrap();
        let data: Vec<u8> = (0..bytes).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
        let sent = data.clone();
        self.ns
            .run(move || {
                let mut stream = TcpStream::connect_timeout(&address, 20 * SECOND).unwrap();
                stream.set_write_timeout(Some(20 * SECOND)).unwrap();
                stream.write_all(&sent).unwrap();
            })
            .await
            .unwrap();
        assert!(received.await.unwrap() == data, "what arrives is what was sent");
    }

    /// As the loop does, in the namespace.
    async fn send(&self, conn: ConnId, special: Special) -> std::io::Result<()> {
        let engine = Arc::clone(&self.engine);
        self.ns.run(move || engine.send(conn, special)).await.unwrap()
    }

    /// Waits for something that a thread does.
    async fn wait_for(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(
                start.elapsed() < 20 * SECOND,
                "{what}: {:?}",
                self.engine.counters()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn wait_event(&self, event: (ConnId, Arrived)) {
        self.wait_for(&format!("{event:?}"), |host| {
            host.events.lock().unwrap().contains(&event)
        })
        .await;
    }
}

/// Moves an interface from one namespace to another.
async fn far_end(from: &Netns, to: &Netns, dev: &str) {
    // `ip` opens it by the number in our own process, which is its parent.
    let path = format!("/proc/{}/fd/{}", std::process::id(), to.as_fd().as_raw_fd());
    let args = ["link", "set", dev, "netns", &path].map(str::to_owned);
    let out = from
        .run(move || Command::new("ip").args(args).output().unwrap())
        .await
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn tables(peers: &[&Host], unicast: &[(&Host, ConnId)], floods: &[(&Host, &[(&Host, ConnId)])]) -> Tables {
    let hop = |conn: &ConnId| Hop::Sleeve(*conn);
    let hops = |to: &[(&Host, ConnId)]| to.iter().map(|(host, conn)| (host.name, hop(conn))).collect();
    Tables {
        known: peers.iter().map(|host| host.name).collect::<HashSet<_>>(),
        unicast: unicast
            .iter()
            .map(|(host, conn)| (host.name, hop(conn)))
            .collect(),
        floods: floods
            .iter()
            .map(|(origin, to)| {
                let from = Some(origin.name);
                (origin.name, FloodTree { from, hops: hops(to) })
            })
            .collect::<HashMap<_, _>>(),
        ..Tables::default()
    }
}

async fn pair(sealed: bool) -> Option<(Host, Host)> {
    let (a, b) = (Host::new(1).await?, Host::new(2).await?);
    a.connect(&b, 1, sealed).await;
    a.engine
        .set_tables(tables(&[&a, &b], &[(&b, 1)], &[(&a, &[(&b, 1)])]));
    b.engine
        .set_tables(tables(&[&a, &b], &[(&a, 1)], &[(&b, &[(&a, 1)])]));
    Some((a, b))
}

async fn frames_move(sealed: bool) {
    let Some((a, b)) = pair(sealed).await else { return };
    let mtu = if sealed { 1414 } else { 1438 };
    // Larger than a packet: IPv4 without DF, which ping leaves out here, in IP fragments.
    for bytes in [0, 56, 1300] {
        a.assert_ping(&b, bytes).await;
        b.assert_ping(&a, bytes).await;
    }
    for host in [&a, &b] {
        host.set_mtu(mtu).await;
    }
    a.assert_ping(&b, 9000).await;
    a.assert_transfer(&b, 8 << 20).await;
    b.assert_transfer(&a, 8 << 20).await;
    for (host, number) in [(&a, 1), (&b, 2)] {
        let address = format!("address add fd09::{number}/64 dev sleeve nodad");
        host.ip(&address).await;
    }
    let target = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2));
    a.assert_transfer_to(&b, target, 4 << 20).await;

    let (sent, received) = (a.engine.counters(), b.engine.counters());
    assert!(received.coalesced > 1000, "{received:?}");
    assert!(sent.sent_batches * 4 < sent.sent_packets, "{sent:?}");
    let traffic = a.engine.traffic(1).unwrap();
    assert!(
        traffic.bytes_out > 8 << 20 && traffic.bytes_in > 8 << 20,
        "{traffic:?}"
    );
    let macs = b.engine.macs();
    assert!(macs.iter().any(|known| known.peer == a.name) && macs.iter().any(|known| known.peer == b.name));
    assert_eq!(a.engine.failed(), None);
}

#[tokio::test]
async fn plain_frames_move() {
    frames_move(false).await;
}

#[tokio::test]
async fn sealed_frames_move() {
    frames_move(true).await;
}

#[tokio::test]
async fn special_frames_arrive() {
    for sealed in [false, true] {
        let Some((a, b)) = pair(sealed).await else { return };
        let from = SocketAddrV4::new(Ipv4Addr::new(192, 0, 1, 1), PORT);
        let conn_uid = 0x0123_4567_89ab_cdef;
        a.send(1, Special::Heartbeat { conn_uid }).await.unwrap();
        b.wait_event((1, Arrived::Heartbeat { conn_uid, from })).await;
        a.send(1, Special::FragmentationTest).await.unwrap();
        b.wait_event((1, Arrived::FragmentationTest)).await;
        a.send(1, Special::MtuTest { mtu: 1400 }).await.unwrap();
        b.wait_event((1, Arrived::MtuTest { mtu: 1400 })).await;
        a.send(1, Special::MtuProvocation).await.unwrap();
        a.wait_event((1, Arrived::TooBig { path_mtu: 1500 })).await;
        assert!(
            a.send(2, Special::FragmentationTest).await.is_err(),
            "no such connection"
        );
    }
}

#[tokio::test]
async fn a_narrower_path_is_noticed_and_told() {
    let Some((a, b)) = pair(true).await else { return };
    for host in [&a, &b] {
        host.set_mtu(1414).await;
    }
    a.assert_ping(&b, 1300).await;
    a.ip("link set v1 mtu 1400").await;
    let (ok, _) = a.command("ping", "-M do -c 1 -W 0.2 -s 1386 10.9.0.2").await;
    assert!(!ok, "it does not fit");
    a.wait_event((1, Arrived::TooBig { path_mtu: 1400 })).await;
    let limits = Limits {
        mtu: 1314,
        max_payload: 1372,
        fragmentation: false,
    };
    let [near, far] = [1, 2].map(|end| Ipv4Addr::new(192, 0, 1, end));
    for (host, local, remote) in [(&a, near, far), (&b, far, near)] {
        let remote = Some(SocketAddrV4::new(remote, PORT));
        let state = LinkState {
            local,
            remote,
            limits,
        };
        host.engine.update(1, state);
    }
    let (ok, text) = a.command("ping", "-M do -c 1 -w 10 -s 1386 10.9.0.2").await;
    assert!(!ok && text.contains("mtu") && text.contains("1314"), "{text}");
    // Without DF (as the kernel's answers are) we cut it ourselves, as nobody has shown that fragments
    // arrive.
    let (ok, text) = a.command("ping", "-M dont -c 1 -w 10 -s 1380 10.9.0.2").await;
    assert!(ok && b.engine.counters().fragmented > 0, "{text}");
}

#[tokio::test]
async fn relayed_by_a_third() {
    for sealed in [false, true] {
        let (Some(a), Some(b), Some(relay)) = (Host::new(1).await, Host::new(2).await, Host::new(3).await)
        else {
            return;
        };
        a.connect(&relay, 1, sealed).await;
        relay.connect(&b, 2, false).await;
        let all = [&a, &b, &relay];
        a.engine
            .set_tables(tables(&all, &[(&relay, 1), (&b, 1)], &[(&a, &[(&relay, 1)])]));
        b.engine
            .set_tables(tables(&all, &[(&relay, 2), (&a, 2)], &[(&b, &[(&relay, 2)])]));
        let floods: &[(&Host, &[(&Host, ConnId)])] =
            &[(&a, &[(&b, 2)]), (&b, &[(&a, 1)]), (&relay, &[(&a, 1), (&b, 2)])];
        relay.engine.set_tables(tables(&all, &[(&a, 1), (&b, 2)], floods));
        for host in all {
            host.set_mtu(1414).await;
        }
        a.assert_ping(&b, 56).await;
        a.assert_ping(&relay, 56).await;
        b.assert_ping(&a, 3000).await;
        a.assert_transfer(&b, 2 << 20).await;
        assert!(relay.engine.counters().relayed > 1000);
    }
}

#[tokio::test]
async fn a_flood_from_another_neighbour_than_expected_goes_no_further() {
    let (Some(a), Some(b), Some(relay)) = (Host::new(1).await, Host::new(2).await, Host::new(3).await) else {
        return;
    };
    a.connect(&relay, 1, false).await;
    relay.connect(&b, 2, false).await;
    let all = [&a, &b, &relay];
    a.engine
        .set_tables(tables(&all, &[(&relay, 1)], &[(&a, &[(&relay, 1)])]));
    let mut relay_tables = tables(&all, &[(&a, 1), (&b, 2)], &[(&a, &[(&b, 2)])]);
    // It believes that what `a` floods comes by way of `b`.
    relay_tables.floods.get_mut(&a.name).unwrap().from = Some(b.name);
    relay.engine.set_tables(relay_tables.clone());
    let ear = relay.ns.run(|| packet_socket("sleeve", true)).await.unwrap();
    a.send_raw("sleeve", datagram(1, 2, "astray")).await;
    tag_of(&ear, "astray");
    relay_tables.floods.get_mut(&a.name).unwrap().from = Some(a.name);
    relay.engine.set_tables(relay_tables);
    a.send_raw("sleeve", datagram(1, 2, "in order")).await;
    tag_of(&ear, "in order");
    relay
        .wait_for("a copy", |host| host.engine.counters().flood_copies > 0)
        .await;
    let counters = relay.engine.counters();
    assert_eq!((counters.flood_astray, counters.flood_copies), (1, 1));
}

#[tokio::test]
async fn a_flood_to_many_neighbours_is_one_system_call() {
    for sealed in [false, true] {
        let (Some(a), Some(b), Some(c)) = (Host::new(1).await, Host::new(2).await, Host::new(3).await) else {
            return;
        };
        a.connect(&b, 1, sealed).await;
        a.connect(&c, 2, sealed).await;
        let all = [&a, &b, &c];
        for (host, conn) in [(&b, 1), (&c, 2)] {
            host.engine.set_tables(tables(&all, &[(&a, conn)], &[]));
        }
        a.engine
            .set_tables(tables(&all, &[(&b, 1), (&c, 2)], &[(&a, &[(&b, 1), (&c, 2)])]));
        let ears = [
            b.ns.run(|| packet_socket("sleeve", true)).await.unwrap(),
            c.ns.run(|| packet_socket("sleeve", true)).await.unwrap(),
        ];
        let before = a.engine.counters();
        a.send_raw("sleeve", datagram(1, 2, "to all")).await;
        for ear in &ears {
            assert_eq!(tag_of(ear, "to all"), None, "heard, and by its own name");
        }
        let after = a.engine.counters();
        assert_eq!(after.sent_packets - before.sent_packets, 2);
        assert_eq!(after.sent_batches - before.sent_batches, 1);
    }
}

#[tokio::test]
async fn hostile_datagrams_do_no_harm() {
    let Some((a, b)) = pair(false).await else { return };
    // Sealed, with a peer that is not there.
    let ghost = PeerName::from_u64(0x99).unwrap();
    let session = Some(Session {
        key: SessionKey::new([1; 32]),
        outbound: true,
    });
    let limits = Limits {
        mtu: 1400,
        max_payload: 1472,
        fragmentation: false,
    };
    let state = LinkState {
        local: Ipv4Addr::UNSPECIFIED,
        remote: None,
        limits,
    };
    b.engine.add(
        NewLink {
            conn: 9,
            remote: ghost,
            session,
            strict_source: false,
        },
        state,
    );
    let (names, target) = (
        [a.name, b.name, ghost],
        SocketAddrV4::new(Ipv4Addr::new(192, 0, 1, 2), PORT),
    );
    a.ns.run(move || {
        let socket = UdpSocket::bind("192.0.1.1:0").unwrap();
        let mut rng = SmallRng::seed_from_u64(1);
        for round in 0..3000 {
            let name = |rng: &mut SmallRng| names[rng.random_range(0..3)].to_bytes();
            let len = rng.random_range(0..if round % 50 == 0 { 30000 } else { 200 });
            let mut frame: Vec<u8> = (0..len).map(|_| rng.random()).collect();
            if round % 3 == 0 && len > 14 {
                frame[12..14].copy_from_slice(&[8, 0]);
                frame[0] &= 0xfe;
            }
            if round % 7 == 0 {
                frame.fill(0);
            }
            let claimed = len as u16 + u16::from(round % 5 == 0);
            let mut packet = [name(&mut rng), name(&mut rng), name(&mut rng)].concat();
            packet.extend(claimed.to_be_bytes());
            packet.extend(frame);
            packet.truncate(if round % 11 == 0 {
                round / 11 % 40
            } else {
                usize::MAX
            });
            let _ = socket.send_to(&packet, target);
        }
    })
    .await
    .unwrap();
    a.assert_ping(&b, 56).await;
    let counters = b.engine.counters();
    assert!(counters.drop_malformed > 0 && counters.drop_forged > 0 && counters.drop_unknown_sender > 0);
    assert!(b.events.lock().unwrap().iter().all(|(conn, _)| *conn == 1));
    assert_eq!(b.engine.failed(), None);
}

#[tokio::test]
async fn plain_data_from_elsewhere_is_refused() {
    let Some((a, b)) = pair(false).await else { return };
    a.assert_ping(&b, 56).await;
    a.ip("address add 192.0.1.7/24 dev v1").await;
    let state = |local| LinkState {
        local,
        remote: Some(SocketAddrV4::new(Ipv4Addr::new(192, 0, 1, 2), PORT)),
        limits: Limits {
            mtu: 1438,
            max_payload: 1472,
            fragmentation: true,
        },
    };
    let moved = Ipv4Addr::new(192, 0, 1, 7);
    a.engine.update(1, state(moved));
    let (ok, _) = a.command("ping", "-c 1 -W 0.2 10.9.0.2").await;
    assert!(!ok && b.engine.counters().drop_wrong_source > 0);
    // But a heartbeat gets through: by it the loop learns the new address.
    a.send(1, Special::Heartbeat { conn_uid: 5 }).await.unwrap();
    let from = SocketAddrV4::new(moved, PORT);
    b.wait_event((1, Arrived::Heartbeat { conn_uid: 5, from })).await;
}

/// An IPv4 UDP datagram to port 4000 as an Ethernet frame.
fn datagram(src_mac: u8, dst_mac: u8, text: &str) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, dst_mac, 2, 0, 0, 0, 0, src_mac, 8, 0];
    let mut ip = vec![0x45, 0, 0, 28 + text.len() as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend([10, 9, 0, src_mac, 10, 9, 0, dst_mac]);
    let checksum = super::fragment::checksum(&[&ip]);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(ip);
    frame.extend([0, 9, 0x0f, 0xa0, 0, 8 + text.len() as u8, 0, 0]);
    frame.extend(text.as_bytes());
    frame
}

/// A packet socket that sees one interface. `all`: also what comes in, with its tags.
fn packet_socket(dev: &str, all: bool) -> OwnedFd {
    let protocol = if all { libc::ETH_P_ALL as u16 } else { 0 };
    let index = nix::net::if_::if_nametoindex(dev).unwrap();
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let on = 1;
    // SAFETY: plain system calls with buffers of the lengths given; the descriptor is ours.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(fd >= 0);
        let fd = OwnedFd::from_raw_fd(fd);
        let (raw, on, address) = (
            fd.as_raw_fd(),
            (&raw const on).cast(),
            (&raw const address).cast(),
        );
        assert_eq!(
            libc::setsockopt(raw, libc::SOL_PACKET, libc::PACKET_AUXDATA, on, 4),
            0
        );
        assert_eq!(libc::bind(raw, address, size_of::<libc::sockaddr_ll>() as u32), 0);
        fd
    }
}

/// Waits for a frame that ends with this text; returns its tag, if it has one.
fn tag_of(socket: &OwnedFd, text: &str) -> Option<u16> {
    let start = Instant::now();
    let mut tag = None;
    while start.elapsed() < 20 * SECOND {
        let mut buffer = [0; 2000];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut control = [0u64; 16];
        // SAFETY: a struct of integers and pointers, for which zero is a value.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = parts.as_mut_ptr().cast();
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control) as _;
        // SAFETY: all buffers live until the call is over; the kernel has filled in the control
        // message that is then read.
        let len = unsafe {
            let len = libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT);
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            if len > 0 && !message.is_null() {
                let data: *const libc::tpacket_auxdata = libc::CMSG_DATA(message).cast();
                let data = data.read_unaligned();
                tag = (data.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some(data.tp_vlan_tci);
            }
            len
        };
        match usize::try_from(len) {
            Ok(len) if buffer[..len].ends_with(text.as_bytes()) => return tag,
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    panic!("no frame with {text:?}");
}

/// Puts bytes on an interface, as if the kernel sent them.
fn send_raw(dev: &str, bytes: &[u8]) {
    let socket = packet_socket(dev, false);
    // SAFETY: the buffer is valid for the length given.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    assert_eq!(sent, bytes.len() as isize, "{}", std::io::Error::last_os_error());
}

impl Host {
    async fn send_raw(&self, dev: &'static str, bytes: Vec<u8>) {
        self.ns.run(move || send_raw(dev, &bytes)).await.unwrap();
    }

    /// Listens for [`datagram`]s.
    async fn listen(&self, address: &'static str) -> UdpSocket {
        let socket = self
            .ns
            .run(move || UdpSocket::bind((address, 4000)).unwrap())
            .await
            .unwrap();
        socket.set_read_timeout(Some(20 * SECOND)).unwrap();
        socket
    }
}

fn heard(socket: &UdpSocket) -> String {
    let mut buffer = [0; 100];
    let (len, _) = socket.recv_from(&mut buffer).unwrap();
    String::from_utf8(buffer[..len].to_vec()).unwrap()
}

#[tokio::test]
async fn bpf_says_where_frames_go_and_is_told_whence_they_come() {
    let (Some(a), Some(b)) = (
        Host::with(1, FrameSource::Bpf).await,
        Host::with(2, FrameSource::Bpf).await,
    ) else {
        return;
    };
    a.connect(&b, 1, false).await;
    let ids = [(a.name, 0x123), (b.name, 0xabc)];
    let mut tables_a = tables(&[&a, &b], &[(&b, 1)], &[(&a, &[(&b, 1)])]);
    tables_a.ids = HashMap::from(ids);
    tables_a.by_id = ids.map(|(name, id)| (id, name)).into();
    b.engine.set_tables(tables_a.clone());
    a.engine.set_tables(tables_a);
    let seen = b.ns.run(|| packet_socket("sleeve", true)).await.unwrap();

    let prefixed = |dst: u16, text: &str| {
        let head = [0, dst, 0x123].map(u16::to_ne_bytes).concat();
        [b"wv", &head[..], &datagram(1, 2, text)].concat()
    };
    a.send_raw("sleeve", prefixed(0xabc, "to one")).await;
    assert_eq!(tag_of(&seen, "to one"), Some(0x123));
    a.send_raw("sleeve", prefixed(0x123, "to all")).await;
    assert_eq!(tag_of(&seen, "to all"), Some(0x123));
    let before = a.engine.counters().drop_unknown_peer;
    a.send_raw("sleeve", prefixed(0x777, "to nobody")).await;
    a.wait_for("drop", |a| a.engine.counters().drop_unknown_peer == before + 1)
        .await;
    // Without a prefix it is flooded, as the address is not known.
    a.send_raw("sleeve", datagram(1, 2, "unmarked")).await;
    assert_eq!(tag_of(&seen, "unmarked"), Some(0x123));
}

/// Two segments of a TCP flow, written as one frame.
struct Direct(super::tap::Tap);

impl super::coalesce::Sink for Direct {
    fn write(&mut self, parts: &[IoSlice<'_>], segments: usize) {
        assert_eq!(segments, 2);
        self.0.write(parts).unwrap();
    }
}

#[tokio::test]
async fn the_kernel_takes_tagged_super_packets() {
    let Some(ns) = new_netns() else { return };
    let received = ns.run(|| {
        let mut sink = Direct(super::tap::Tap::open("sleeve", 1).unwrap().remove(0));
        let seen = packet_socket("sleeve", true);
        let mut area = Vec::new();
        let mut coalescer = super::coalesce::Coalescer::default();
        for (seq, text) in [(1u32, "first"), (6, "again")] {
            let mut frame = datagram(1, 2, "");
            frame.truncate(34);
            frame[17] = 45;
            (frame[20], frame[23]) = (0x40, 6);
            frame[24..26].fill(0);
            let checksum = super::fragment::checksum(&[&frame[14..]]);
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
            let mut tcp = [0, 9, 0x0f, 0xa0].to_vec();
            tcp.extend(seq.to_be_bytes());
            tcp.extend([0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
            tcp.extend(text.as_bytes());
            let pseudo = [&frame[26..34], &[0, 6, 0, 25]].concat();
            let checksum = super::fragment::checksum(&[&pseudo, &tcp]);
            tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
            frame.extend(tcp);
            area.extend(frame);
            let range = area.len() - 59..area.len();
            coalescer.push(&area, range, Some(0x123), &mut sink);
        }
        coalescer.flush(&area, &mut sink);
        tag_of(&seen, "firstagain")
    });
    assert_eq!(received.await.unwrap(), Some(0x123));
}

#[tokio::test]
async fn a_peer_without_short_id_is_learnt() {
    let (Some(a), Some(b)) = (Host::new(1).await, Host::with(2, FrameSource::Bpf).await) else {
        return;
    };
    a.connect(&b, 1, false).await;
    a.engine
        .set_tables(tables(&[&a, &b], &[(&b, 1)], &[(&a, &[(&b, 1)])]));
    b.engine.set_tables(tables(&[&a, &b], &[(&a, 1)], &[]));
    let seen = b.ns.run(|| packet_socket("sleeve", true)).await.unwrap();
    a.send_raw("sleeve", datagram(1, 2, "no tag")).await;
    assert_eq!(tag_of(&seen, "no tag"), None);
    // BPF cannot have learnt it: what has no prefix goes by our own cache.
    let before = a.engine.counters().received_frames;
    b.send_raw("sleeve", datagram(2, 1, "back")).await;
    a.wait_for("answer", |a| a.engine.counters().received_frames == before + 1)
        .await;
    b.engine.forget_peer(a.name);
    assert!(b.engine.macs().iter().all(|known| known.peer == b.name));
}

#[tokio::test]
async fn relayed_to_the_fast_path() {
    let (Some(a), Some(relay), Some(b)) = (Host::new(1).await, Host::new(3).await, Host::new(2).await) else {
        return;
    };
    a.connect(&relay, 1, true).await;
    relay.connect(&b, 2, false).await;
    let all = [&a, &b, &relay];
    a.engine
        .set_tables(tables(&all, &[(&b, 1)], &[(&a, &[(&relay, 1)])]));
    let mut relay_tables = tables(&all, &[(&a, 1)], &[]);
    relay_tables.ids = HashMap::from([(a.name, 0x123), (b.name, 0xabc)]);
    let remote = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 6784);
    let local = Ipv4Addr::new(192, 0, 2, 1);
    let fast = Hop::Vxlan { remote, local };
    relay_tables.unicast.insert(b.name, fast);
    let tree = FloodTree {
        from: Some(a.name),
        hops: vec![(b.name, fast)],
    };
    relay_tables.floods.insert(a.name, tree);
    relay.engine.set_tables(relay_tables);
    // The kernel's own VXLAN, on the VNI of the specification's example.
    b.ip("link add fast type vxlan id 11256099 dstport 6784 local 192.0.2.2 nolearning")
        .await;
    b.ip("link set fast address 02:00:00:00:00:02 up").await;
    b.ip("address del 10.9.0.2/24 dev sleeve").await;
    b.ip("address add 10.9.0.2/24 dev fast").await;
    let socket = b.listen("10.9.0.2").await;
    a.send_raw("sleeve", datagram(1, 2, "relayed")).await;
    assert_eq!(heard(&socket), "relayed");
    assert_eq!(relay.engine.counters().relayed_vxlan, 1);
}

#[tokio::test]
async fn nothing_remains() {
    let Some(host) = Host::new(1).await else { return };
    let (_, addresses) = host.command("ip", "-6 -o address show dev sleeve").await;
    assert_eq!(addresses, "", "the kernel says nothing by itself");
    let Host { ns, engine, .. } = host;
    let ifindex = engine.ifindex();
    let show = |ns: Netns| async move {
        let out = ns.run(|| {
            Command::new("ip")
                .args(["-o", "link", "show", "sleeve"])
                .output()
                .unwrap()
        });
        String::from_utf8(out.await.unwrap().stdout).unwrap()
    };
    assert!(show(ns.clone()).await.starts_with(&format!("{ifindex}:")));
    drop(engine);
    assert_eq!(show(ns.clone()).await, "");
    let bound = ns.run(|| UdpSocket::bind(("0.0.0.0", PORT))).await.unwrap();
    assert!(bound.is_ok(), "{bound:?}");
}
