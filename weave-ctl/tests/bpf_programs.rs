//! The BPF programs on packets, through BPF_PROG_TEST_RUN: description, packet in, verdict,
//! packet out. What the VXLAN device's programs do needs the device: see the end-to-end tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use weave_common::{
    Config, Counters, Heartbeat, MacEntry, MacKey, NeighbourTraffic, NextHop, Sender, SleevePrefix,
};
use weave_ctl::net::identity::Identity;
use weave_ctl::overlay::fastdp::datapath::{self, Datapath};
use weave_ctl::overlay::fastdp::loader;
use weave_ctl::overlay::fastdp::maps::{self, Maps};
use weave_ctl::overlay::fastdp::xdp::Wanted;
use weave_ctl::overlay::forwarding::Tables;

const OURS: u32 = 0x123;
const THEIRS: u32 = 0xabc;
const OTHER: u32 = 0x777;
const OUR_IP: [u8; 4] = [172, 31, 0, 1];
const THEIR_IP: [u8; 4] = [172, 31, 0, 2];
const OTHER_IP: [u8; 4] = [172, 31, 0, 3];
const STRANGER: [u8; 4] = [172, 31, 0, 99];
const HERE: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const THERE: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
const NEIGHBOUR_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 2];
const OWN_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 1];
const PORT: u16 = 6784;
/// The loopback device, on which BPF_PROG_TEST_RUN places packets.
const LO: u32 = 1;
/// Where a local container's veth would be; redirection itself is not carried out.
const VETH: u32 = 40;
/// Where the TAP of sleeve would be.
const TAP: u32 = 41;

const NEXT: u32 = u32::MAX;
const OK: u32 = 0;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

fn options<'a>(packet: &'a [u8], out: &'a mut [u8]) -> TestRunOptions<'a> {
    TestRunOptions {
        data_in: Some(packet),
        data_out: Some(out),
        ..TestRunOptions::default()
    }
}

macro_rules! run {
    ($program:expr, $packet:expr) => {{
        let mut out = vec![0; 4096];
        let result = $program.test_run(options($packet, &mut out)).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }};
}

struct Bench {
    loaded: loader::Loaded,
    maps: Maps,
    dir: PinDir,
}

/// The directory of the pins, removed also when loading fails.
struct PinDir(PathBuf);

impl Drop for PinDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Bench {
    fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED {test}: needs root to load BPF programs");
            return None;
        }
        let dir = PinDir(PathBuf::from(format!(
            "/sys/fs/bpf/weave-test-{}-{test}",
            std::process::id()
        )));
        let loaded = loader::load(&dir.0).unwrap_or_else(|error| panic!("{error}"));
        let mut maps = Maps::open(&dir.0).unwrap();
        let mut config = Config {
            flags: Config::ENABLED | Config::XDP_RELAY,
            short_id: OURS,
            clock_s: 1000,
            vxlan_ifindex: LO,
            ..Config::default()
        };
        config.ports[0] = PORT;
        config.local_ips[0] = OUR_IP;
        maps.set_config(config).unwrap();
        let hop = |remote_ip| NextHop {
            flags: NextHop::USABLE | NextHop::HAS_MACS,
            via: THEIRS,
            remote_ip,
            local_ip: OUR_IP,
            ifindex: LO,
            vxlan_ifindex: LO,
            mtu: 1416,
            port: PORT,
            dst_mac: NEIGHBOUR_MAC,
            src_mac: OWN_MAC,
            zero: 0,
        };
        maps.sync_peers(&[(THEIRS, hop(THEIR_IP)), (OTHER, hop(OTHER_IP))].into())
            .unwrap();
        let sender = |short_id| Sender { short_id };
        maps.sync_senders(&[(THEIR_IP, sender(THEIRS)), (OTHER_IP, sender(OTHER))].into())
            .unwrap();
        Some(Self { loaded, maps, dir })
    }

    fn remote(&mut self, mac: [u8; 6], peer: u32) {
        let entry = MacEntry {
            peer: peer as u16,
            last_seen_s: 1000,
            ..MacEntry::default()
        };
        self.maps.set_mac(MacKey::new(mac), entry).unwrap();
    }

    fn local(&mut self, mac: [u8; 6], ifindex: u32) {
        let entry = MacEntry {
            ifindex,
            flags: MacEntry::LOCAL,
            last_seen_s: 1000,
            ..MacEntry::default()
        };
        self.maps.set_mac(MacKey::new(mac), entry).unwrap();
    }

    fn mac(&self, mac: [u8; 6]) -> Option<MacEntry> {
        self.maps
            .macs()
            .unwrap()
            .into_iter()
            .find(|(key, _)| key.mac == mac)
            .map(|(_, entry)| entry)
    }

    fn tc(&mut self, name: &str, packet: &[u8]) -> (u32, Vec<u8>) {
        let program: &mut SchedClassifier = self.loaded.ebpf.program_mut(name).unwrap().try_into().unwrap();
        run!(program, packet)
    }

    /// As [`Bench::tc`]: the verdict and `skb->priority` afterwards.
    fn priority(&mut self, name: &str, packet: &[u8]) -> (u32, u32) {
        let program: &mut SchedClassifier = self.loaded.ebpf.program_mut(name).unwrap().try_into().unwrap();
        // `struct __sk_buff`, where priority is the ninth word.
        let mut after = [0; 192];
        let run = TestRunOptions {
            data_in: Some(packet),
            ctx_out: Some(&mut after),
            ..TestRunOptions::default()
        };
        let verdict = program.test_run(run).unwrap().return_value;
        (verdict, u32::from_ne_bytes(after[32..36].try_into().unwrap()))
    }

    /// As [`Bench::tc`], of a super-packet of so many segments.
    fn super_packet(&mut self, name: &str, packet: &[u8], segments: u32) -> u32 {
        let program: &mut SchedClassifier = self.loaded.ebpf.program_mut(name).unwrap().try_into().unwrap();
        // `struct __sk_buff`, where gso_segs is at byte 164.
        let mut context = [0; 192];
        context[164..168].copy_from_slice(&segments.to_ne_bytes());
        let run = TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        program.test_run(run).unwrap().return_value
    }

    /// `peer` is reached by sleeve through neighbour `via`, and the TAP is interface `tap`.
    fn on_sleeve(&mut self, peer: u32, via: u32, tap: u32) {
        let mut peers = self.maps.peers().unwrap();
        let hop = NextHop {
            flags: NextHop::USABLE | NextHop::SLEEVE,
            via,
            mtu: 1400,
            ..NextHop::default()
        };
        peers.insert(peer, hop);
        self.maps.sync_peers(&peers).unwrap();
        let config = self.maps.config().unwrap();
        self.maps
            .set_config(Config {
                sleeve_ifindex: tap,
                ..config
            })
            .unwrap();
    }

    fn xdp(&mut self, packet: &[u8]) -> (u32, Vec<u8>) {
        let program: &mut Xdp = self
            .loaded
            .ebpf
            .program_mut("weave_xdp")
            .unwrap()
            .try_into()
            .unwrap();
        run!(program, packet)
    }

    /// The counters that went up since `before`.
    fn counted(&self, before: &Counters) -> Vec<(&'static str, u64)> {
        let now = self.maps.counters().unwrap().values();
        let old = before.values();
        Counters::NAMES
            .into_iter()
            .zip(now.iter().zip(old).map(|(n, o)| n - o))
            .filter(|(_, n)| *n > 0)
            .collect()
    }
}

/// An Ethernet frame with an IPv4 packet of `len` bytes in all, TCP, DF as asked.
fn ipv4_frame(dst: [u8; 6], src: [u8; 6], len: usize, df: bool) -> Vec<u8> {
    let mut frame = [&dst[..], &src[..], &[8, 0]].concat();
    let total = (len as u16).to_be_bytes();
    let flags = if df { 0x40 } else { 0 };
    frame.extend([
        0x45, 0, total[0], total[1], 0, 7, flags, 0, 64, 6, 0, 0, 10, 32, 0, 1, 10, 40, 0, 1,
    ]);
    frame.resize(14 + len, 0x5a);
    frame
}

fn ipv6_frame(dst: [u8; 6], src: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&dst[..], &src[..], &[0x86, 0xdd]].concat();
    let payload = ((len - 40) as u16).to_be_bytes();
    frame.extend([0x60, 0, 0, 0, payload[0], payload[1], 6, 64]);
    frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    frame.resize(14 + len, 0x5a);
    frame
}

/// A whole VXLAN packet on the underlay (wire.md 8.1).
fn vxlan(from: [u8; 4], to: [u8; 4], dst: u32, src: u32, ttl: u8, inner: &[u8]) -> Vec<u8> {
    let mut packet = [&OWN_MAC[..], &NEIGHBOUR_MAC[..], &[8, 0]].concat();
    let udp = (inner.len() + 16) as u16;
    let total = (udp + 20).to_be_bytes();
    let mut ip = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, ttl, 17, 0, 0];
    ip.extend(from);
    ip.extend(to);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(ip);
    packet.extend([0xc0, 0x01]);
    packet.extend(PORT.to_be_bytes());
    packet.extend(udp.to_be_bytes());
    packet.extend([0, 0, 8, 0, 0, 0]);
    packet.extend(&(dst << 12 | src).to_be_bytes()[1..]);
    packet.push(0);
    packet.extend(inner);
    packet
}

/// RFC 1071; zero over a header whose checksum is right.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn heartbeat(uid: u64, len: usize) -> Vec<u8> {
    let mut frame = vec![0; 14];
    frame.extend(uid.to_be_bytes());
    frame.extend((len as u16).to_be_bytes());
    frame.resize(len, 0);
    frame
}

#[test]
fn a_container_to_a_known_peer_gets_a_vxlan_header() {
    let Some(mut bench) = Bench::new("encap") else {
        return;
    };
    bench.remote(THERE, THEIRS);
    let frame = ipv4_frame(THERE, HERE, 100, true);
    let before = bench.maps.counters().unwrap();
    let (verdict, out) = bench.tc("weave_port", &frame);
    assert_eq!(verdict, REDIRECT);
    assert_eq!(bench.counted(&before), [("encap", 1), ("learnt", 1)]);
    assert_eq!(out.len(), frame.len() + 50);
    assert_eq!(out[..14], [&NEIGHBOUR_MAC[..], &OWN_MAC[..], &[8, 0]].concat());
    assert_eq!(checksum(&out[14..34]), 0);
    assert_eq!(
        out[14..24],
        [0x45, 0, 0, 150, 0, 0, 0x40, 0, 64, 17],
        "TOS 0, DF, TTL 64 (wire.md 8.1)"
    );
    assert_eq!(out[26..34], [OUR_IP, THEIR_IP].concat());
    assert!(
        out[34] >= 0x80,
        "source port from the flow's hash, in the upper half"
    );
    assert_eq!(
        out[36..42],
        [0x1a, 0x80, 0, 130, 0, 0],
        "port 6784, length, checksum 0"
    );
    assert_eq!(
        out[42..50],
        [8, 0, 0, 0, 0xab, 0xc1, 0x23, 0],
        "VNI of wire.md 8.4"
    );
    assert_eq!(out[50..], frame, "the inner frame is untouched");
    let learnt = bench.mac(HERE).unwrap();
    assert_eq!(
        (learnt.flags, learnt.ifindex, learnt.last_seen_s),
        (MacEntry::LOCAL, LO, 1000)
    );
}

#[test]
fn what_a_container_sends_elsewhere() {
    let Some(mut bench) = Bench::new("port") else {
        return;
    };
    bench.local(THERE, VETH);
    let table: [(&str, Vec<u8>, u32, &str); 6] = [
        (
            "to another local port",
            ipv4_frame(THERE, HERE, 60, true),
            REDIRECT,
            "local",
        ),
        (
            "to nobody known",
            ipv4_frame([2, 9, 9, 9, 9, 9], HERE, 60, true),
            OK,
            "to_bridge",
        ),
        (
            "broadcast",
            ipv4_frame([0xff; 6], HERE, 60, true),
            OK,
            "to_bridge",
        ),
        (
            "to itself: hairpin is the bridge's",
            ipv4_frame(HERE, HERE, 60, true),
            OK,
            "to_bridge",
        ),
        (
            "from a group address",
            ipv4_frame(THERE, [1, 0, 0, 0, 0, 1], 60, true),
            DROP,
            "drop_bad_source_mac",
        ),
        (
            "from no address",
            ipv4_frame(THERE, [0; 6], 60, true),
            DROP,
            "drop_bad_source_mac",
        ),
    ];
    bench.tc("weave_port", &ipv4_frame(THERE, HERE, 60, true));
    for (what, frame, verdict, counter) in table {
        let before = bench.maps.counters().unwrap();
        assert_eq!(bench.tc("weave_port", &frame), (verdict, frame), "{what}");
        assert_eq!(bench.counted(&before), [(counter, 1)], "{what}");
    }
}

#[test]
fn a_moved_address_is_taken_over_at_once() {
    let Some(mut bench) = Bench::new("moved") else {
        return;
    };
    bench.remote(HERE, THEIRS);
    let before = bench.maps.counters().unwrap();
    bench.tc("weave_port", &ipv4_frame([0xff; 6], HERE, 60, true));
    assert_eq!(bench.mac(HERE).unwrap().flags, MacEntry::LOCAL, "now here (W8)");
    assert!(bench.counted(&before).contains(&("moved", 1)));
    let packet = vxlan(
        OTHER_IP,
        OUR_IP,
        OURS,
        OTHER,
        64,
        &ipv4_frame([0xff; 6], HERE, 60, true),
    );
    bench.tc("weave_underlay", &packet);
    let entry = bench.mac(HERE).unwrap();
    assert_eq!((entry.flags, u32::from(entry.peer)), (0, OTHER), "and now there");
}

#[test]
fn vxlan_for_us_is_unwrapped() {
    let Some(mut bench) = Bench::new("decap") else {
        return;
    };
    bench.local(HERE, VETH);
    for inner in [ipv4_frame(HERE, THERE, 84, true), ipv6_frame(HERE, THERE, 84)] {
        let before = bench.maps.counters().unwrap();
        let (verdict, out) = bench.tc(
            "weave_underlay",
            &vxlan(THEIR_IP, OUR_IP, OURS, THEIRS, 64, &inner),
        );
        assert_eq!((verdict, out), (REDIRECT, inner));
        assert!(bench.counted(&before).contains(&("decap", 1)));
    }
    let entry = bench.mac(THERE).unwrap();
    assert_eq!(
        (entry.flags, u32::from(entry.peer)),
        (0, THEIRS),
        "its sender is learnt"
    );
}

#[test]
fn what_arrives_on_the_underlay() {
    let Some(mut bench) = Bench::new("underlay") else {
        return;
    };
    bench.local(HERE, VETH);
    let inner = ipv4_frame(HERE, THERE, 60, true);
    let good = vxlan(THEIR_IP, OUR_IP, OURS, THEIRS, 64, &inner);
    bench.tc("weave_underlay", &good);
    let other_port = {
        let mut p = good.clone();
        p[36] = 0x12;
        p
    };
    let fragment = {
        let mut p = good.clone();
        p[20] = 0x20;
        p
    };
    let bad_flags = {
        let mut p = good.clone();
        p[43] = 1;
        p
    };
    let arp = {
        let mut f = inner.clone();
        f[12..14].copy_from_slice(&[8, 6]);
        f
    };
    let table: [(&str, Vec<u8>, u32, &[&str]); 12] = [
        ("another UDP port is not ours", other_port, NEXT, &[]),
        ("fragments are for the stack", fragment, NEXT, &[]),
        (
            "another host's address is not ours",
            vxlan(THEIR_IP, OTHER_IP, OURS, THEIRS, 64, &inner),
            NEXT,
            &[],
        ),
        ("VXLAN extensions", bad_flags, DROP, &["drop_malformed"]),
        (
            "from a stranger",
            vxlan(STRANGER, OUR_IP, OURS, THEIRS, 64, &inner),
            DROP,
            &["drop_unknown_sender"],
        ),
        (
            "from ourselves",
            vxlan(THEIR_IP, OUR_IP, OURS, OURS, 64, &inner),
            DROP,
            &["drop_own_source"],
        ),
        (
            "for an unknown peer",
            vxlan(THEIR_IP, OUR_IP, 0x999, THEIRS, 64, &inner),
            DROP,
            &["drop_no_route"],
        ),
        (
            "back to its sender",
            vxlan(THEIR_IP, OUR_IP, THEIRS, OTHER, 64, &inner),
            DROP,
            &["drop_returning"],
        ),
        (
            "relayed too often",
            vxlan(THEIR_IP, OUR_IP, OTHER, THEIRS, 1, &inner),
            DROP,
            &["drop_ttl"],
        ),
        (
            "from an unknown peer",
            vxlan(
                THEIR_IP,
                OUR_IP,
                OURS,
                0x999,
                64,
                &ipv4_frame(HERE, [2, 8, 8, 8, 8, 8], 60, true),
            ),
            DROP,
            &["drop_unknown_source"],
        ),
        (
            "a broadcast goes up the stack",
            vxlan(
                THEIR_IP,
                OUR_IP,
                OURS,
                THEIRS,
                64,
                &ipv4_frame([0xff; 6], THERE, 60, true),
            ),
            NEXT,
            &["to_stack"],
        ),
        (
            "so does ARP",
            vxlan(THEIR_IP, OUR_IP, OURS, THEIRS, 64, &arp),
            NEXT,
            &["to_stack"],
        ),
    ];
    for (what, packet, verdict, counters) in table {
        let before = bench.maps.counters().unwrap();
        assert_eq!(bench.tc("weave_underlay", &packet), (verdict, packet), "{what}");
        let counted: Vec<_> = bench.counted(&before).into_iter().map(|(name, _)| name).collect();
        assert_eq!(counted, counters, "{what}");
    }
}

#[test]
fn vxlan_for_another_peer_is_sent_on() {
    let Some(mut bench) = Bench::new("relay") else {
        return;
    };
    let inner = ipv4_frame(HERE, THERE, 60, true);
    let packet = vxlan(THEIR_IP, OUR_IP, OTHER, THEIRS, 64, &inner);
    for xdp in [false, true] {
        let before = bench.maps.counters().unwrap();
        let (verdict, out) = if xdp {
            bench.xdp(&packet)
        } else {
            bench.tc("weave_underlay", &packet)
        };
        assert_eq!(verdict, if xdp { XDP_TX } else { REDIRECT });
        assert_eq!(
            bench.counted(&before),
            [(if xdp { "xdp_relay" } else { "relay" }, 1)]
        );
        assert_eq!(out[..12], [NEIGHBOUR_MAC, OWN_MAC].concat());
        assert_eq!(out[26..34], [OUR_IP, OTHER_IP].concat());
        assert_eq!(checksum(&out[14..34]), 0);
        assert_eq!(out[22], 63, "a loop ends");
        assert_eq!(out[34..], packet[34..], "VNI and inner frame stay");
    }
}

#[test]
fn xdp_drops_strangers_only() {
    let Some(mut bench) = Bench::new("xdp") else {
        return;
    };
    let inner = ipv4_frame(HERE, THERE, 60, true);
    let table = [
        (
            "a stranger's frame",
            vxlan(STRANGER, OUR_IP, OURS, THEIRS, 64, &inner),
            XDP_DROP,
        ),
        (
            "a stranger's heartbeat",
            vxlan(STRANGER, OUR_IP, OURS, THEIRS, 64, &heartbeat(7, 100)),
            XDP_PASS,
        ),
        (
            "a neighbour's frame",
            vxlan(THEIR_IP, OUR_IP, OURS, THEIRS, 64, &inner),
            XDP_PASS,
        ),
        (
            "something else",
            ipv4_frame(OWN_MAC, NEIGHBOUR_MAC, 80, true),
            XDP_PASS,
        ),
        ("a runt", vec![0; 14], XDP_PASS),
    ];
    for (what, packet, verdict) in table {
        assert_eq!(bench.xdp(&packet), (verdict, packet), "{what}");
    }
}

#[test]
fn the_first_frame_to_a_neighbour_is_told_once_and_again_after_a_look() {
    let Some(mut bench) = Bench::new("traffic") else {
        return;
    };
    let mut events = maps::open_events(&bench.dir.0).unwrap();
    bench.remote(THERE, THEIRS);
    let via = bench.maps.peers().unwrap()[&THEIRS].via;
    assert!(!bench.maps.take_traffic(via).unwrap(), "nothing yet");
    for turn in ["at first", "after a look"] {
        for _ in 0..3 {
            let frame = ipv4_frame(THERE, HERE, 100, true);
            assert_eq!(bench.tc("weave_port", &frame).0, REDIRECT);
        }
        let event = events.next().and_then(|item| maps::heartbeat(&item));
        assert_eq!(event, Some(Heartbeat::traffic(via)), "{turn}");
        assert!(events.next().is_none(), "once only");
        assert!(bench.maps.take_traffic(via).unwrap());
        assert!(!bench.maps.take_traffic(via).unwrap());
    }
    // What stays on this host is no traffic of a neighbour.
    let packet = vxlan(
        THEIR_IP,
        OUR_IP,
        OURS,
        THEIRS,
        64,
        &ipv4_frame(HERE, THERE, 60, true),
    );
    bench.tc("weave_underlay", &packet);
    assert!(events.next().is_none());
}

#[test]
fn packets_and_bytes_of_each_neighbour_are_counted() {
    let Some(mut bench) = Bench::new("neighbours") else {
        return;
    };
    let mut peers = bench.maps.peers().unwrap();
    peers.get_mut(&OTHER).unwrap().via = OTHER;
    bench.maps.sync_peers(&peers).unwrap();
    bench.remote(THERE, THEIRS);
    bench.local(HERE, VETH);
    let both = |bench: &Bench| [THEIRS, OTHER].map(|id| bench.maps.neighbour(id).unwrap());
    let traffic = |[packets_in, bytes_in, packets_out, bytes_out]: [u64; 4]| NeighbourTraffic {
        packets_in,
        bytes_in,
        packets_out,
        bytes_out,
    };
    let none = traffic([0; 4]);

    let frame = ipv4_frame(THERE, HERE, 100, true);
    for _ in 0..3 {
        assert_eq!(bench.tc("weave_port", &frame).0, REDIRECT);
    }
    assert_eq!(both(&bench), [traffic([0, 0, 3, 342]), none], "sent by BPF");
    let mut arp = frame.clone();
    arp[13] = 6;
    assert_eq!(bench.tc("weave_port", &arp).0, REDIRECT);
    assert_eq!(
        both(&bench),
        [traffic([0, 0, 4, 456]), none],
        "and by the VXLAN device"
    );

    let inner = ipv4_frame(HERE, THERE, 84, true);
    let packet = vxlan(THEIR_IP, OUR_IP, OURS, THEIRS, 64, &inner);
    for _ in 0..2 {
        assert_eq!(bench.tc("weave_underlay", &packet).0, REDIRECT);
    }
    assert_eq!(both(&bench), [traffic([2, 196, 4, 456]), none], "received");

    // From one neighbour on to the other, whoever sent it at first.
    let packet = vxlan(THEIR_IP, OUR_IP, OTHER, 0x555, 64, &inner);
    assert_eq!(bench.tc("weave_underlay", &packet).0, REDIRECT);
    assert_eq!(bench.xdp(&packet).0, XDP_TX);
    let (theirs, other) = (traffic([4, 392, 4, 456]), traffic([0, 0, 2, 196]));
    assert_eq!(both(&bench), [theirs, other], "relayed");

    // What is dropped, no frame of a container, counted elsewhere, or on this host only.
    for packet in [
        vxlan(THEIR_IP, OUR_IP, OTHER, 0x555, 1, &inner),
        vxlan(THEIR_IP, OUR_IP, OURS, 0x555, 64, &inner),
        vxlan(STRANGER, OUR_IP, OURS, THEIRS, 64, &inner),
        vxlan(THEIR_IP, OUR_IP, OURS, THEIRS, 64, &heartbeat(7, 100)),
        vxlan(
            THEIR_IP,
            OUR_IP,
            OURS,
            THEIRS,
            64,
            &ipv4_frame([0xff; 6], THERE, 84, true),
        ),
    ] {
        assert_ne!(bench.tc("weave_underlay", &packet).0, REDIRECT);
    }
    bench.tc("weave_port", &ipv4_frame(HERE, [2, 0, 0, 0, 0, 9], 100, true));
    assert_eq!(both(&bench), [theirs, other]);

    // Super-packets: as many as they are cut into.
    assert_eq!(bench.super_packet("weave_port", &frame, 5), REDIRECT);
    let packet = vxlan(THEIR_IP, OUR_IP, OURS, THEIRS, 64, &inner);
    assert_eq!(bench.super_packet("weave_underlay", &packet, 7), REDIRECT);
    let theirs = traffic([11, 490, 9, 570]);
    assert_eq!(both(&bench), [theirs, other]);

    // They outlive the controller, but not the neighbour, nor its number.
    let mut datapath = Datapath::load(&bench.dir.0, Wanted::Off).unwrap();
    let both = |datapath: &Datapath| [THEIRS, OTHER].map(|id| datapath.traffic(id as u16).unwrap());
    assert_eq!(both(&datapath), [theirs, other]);
    peers.remove(&OTHER);
    let mut tables = Tables {
        peers,
        ..Tables::default()
    };
    datapath.apply(&tables).unwrap();
    assert_eq!(both(&datapath), [theirs, none], "forgotten");
    tables.renumbered = vec![(THEIRS, 0x555)];
    datapath.apply(&tables).unwrap();
    assert_eq!(both(&datapath), [none, none], "renumbered");
}

#[test]
fn heartbeats_reach_the_controller_whoever_sent_them() {
    let Some(mut bench) = Bench::new("heartbeat") else {
        return;
    };
    let mut events = maps::open_events(&bench.dir.0).unwrap();
    for (from, len) in [(THEIR_IP, 1430), (STRANGER, 24)] {
        let packet = vxlan(
            from,
            OUR_IP,
            OURS,
            THEIRS,
            64,
            &heartbeat(0x0123_4567_89ab_cdef, len),
        );
        assert_eq!(bench.tc("weave_underlay", &packet).0, DROP, "not for the stack");
        let item = events.next().expect("an event");
        let event = maps::heartbeat(&item).unwrap();
        assert_eq!(event.conn_uid, 0x0123_4567_89ab_cdef);
        assert_eq!((event.frame_len as usize, event.claimed_len as usize), (len, len));
        assert_eq!((event.outer_src, event.outer_dst), (from, OUR_IP));
        assert_eq!((event.src, event.dst), (THEIRS, OURS));
    }
    let before = bench.maps.counters().unwrap();
    bench.tc(
        "weave_underlay",
        &vxlan(THEIR_IP, OUR_IP, OURS, THEIRS, 64, &heartbeat(7, 24)[..23]),
    );
    assert_eq!(
        bench.counted(&before),
        [("drop_malformed", 1)],
        "a short one (wire.md 8.6)"
    );
    assert!(events.next().is_none());
}

#[test]
fn too_long_for_the_path() {
    let Some(mut bench) = Bench::new("too-big") else {
        return;
    };
    bench.remote(THERE, THEIRS);
    assert_eq!(
        bench
            .tc("weave_port", &ipv4_frame(THERE, HERE, 1416, true))
            .1
            .len(),
        14 + 1416 + 50,
        "just fits"
    );

    let frame = ipv4_frame(THERE, HERE, 1417, true);
    let (verdict, out) = bench.tc("weave_port", &frame);
    assert_eq!(verdict, REDIRECT);
    assert_eq!(
        out[..14],
        [&HERE[..], &THERE[..], &[8, 0]].concat(),
        "back to the sender"
    );
    assert_eq!(out[14..16], [0x45, 0]);
    assert_eq!(out[22..24], [64, 1], "ICMP");
    assert_eq!(checksum(&out[14..34]), 0);
    assert_eq!(
        out[26..34],
        [10, 40, 0, 1, 10, 32, 0, 1],
        "from the destination (wire.md 6.10)"
    );
    assert_eq!(out[34..36], [3, 4], "fragmentation needed");
    assert_eq!(out[38..42], [0, 0, 5, 0x88], "MTU 1416");
    assert_eq!(checksum(&out[34..]), 0);
    assert_eq!(out[42..], frame[14..110], "header and the start of its payload");

    let frame = ipv6_frame(THERE, HERE, 1417);
    let (verdict, out) = bench.tc("weave_port", &frame);
    assert_eq!((verdict, out[54], out[55]), (REDIRECT, 2, 0), "packet too big");
    assert_eq!(out[58..62], [0, 0, 5, 0x88]);
    let pseudo = [&out[22..54], &[0, 0, 0, 104, 0, 0, 0, 58], &out[54..]].concat();
    assert_eq!(checksum(&pseudo), 0);
    assert_eq!(out[22..38], frame[38..54], "from the destination");

    let before = bench.maps.counters().unwrap();
    let frame = ipv4_frame(THERE, HERE, 1417, false);
    assert_eq!(
        bench.tc("weave_port", &frame).1,
        frame,
        "without DF the outer packet may be fragmented"
    );
    assert_eq!(bench.counted(&before), [("encap_device", 1)]);
}

#[test]
fn stopped_means_local_only() {
    let Some(mut bench) = Bench::new("stopped") else {
        return;
    };
    bench.local(HERE, VETH);
    let config = bench.maps.config().unwrap();
    bench.maps.set_config(Config { flags: 0, ..config }).unwrap();
    let inner = ipv4_frame(HERE, THERE, 60, true);
    assert_eq!(
        bench
            .tc(
                "weave_underlay",
                &vxlan(THEIR_IP, OUR_IP, OURS, THEIRS, 64, &inner)
            )
            .0,
        DROP
    );
    assert_eq!(
        bench.tc("weave_port", &inner).0,
        REDIRECT,
        "containers of this host still talk"
    );
}

#[test]
fn pins_of_another_shape_are_not_reused() {
    let Some(bench) = Bench::new("shape") else { return };
    let dir = bench.dir.0.clone();
    assert!(!bench.loaded.adopted);
    let again = loader::load(&dir).unwrap();
    assert!(again.adopted, "same version: state is kept");
    // Somebody else's map under our name.
    let pin = loader::maps_dir(&dir).join("PEERS");
    std::fs::remove_file(&pin).unwrap();
    std::fs::rename(loader::maps_dir(&dir).join("SENDERS"), &pin).unwrap();
    let fresh = loader::load(&dir).unwrap();
    assert!(!fresh.adopted);
    Maps::open(&dir).unwrap().peers().unwrap();
}

#[test]
fn to_a_peer_on_sleeve_frames_go_to_the_tap_as_they_are() {
    let Some(mut bench) = Bench::new("to-sleeve") else {
        return;
    };
    bench.remote(THERE, THEIRS);
    bench.on_sleeve(THEIRS, OTHER, TAP);
    bench.local(HERE, LO);
    let fits = ipv4_frame(THERE, HERE, 1400, true);
    let divisible = ipv4_frame(THERE, HERE, 1500, false);
    let arp = [&THERE[..], &HERE[..], &[8, 6], &[0; 28]].concat();
    for program in ["weave_port", "weave_vxlan_out"] {
        for frame in [&fits, &divisible, &arp] {
            let before = bench.maps.counters().unwrap();
            assert_eq!(bench.tc(program, frame), (REDIRECT, frame.clone()), "{program}");
            assert_eq!(bench.counted(&before), [("to_sleeve", 1)], "{program}");
            assert_eq!(
                bench.priority(program, frame),
                (REDIRECT, THEIRS << 12 | OURS),
                "{program}: the TAP's program is told the peers"
            );
        }
    }
    let too_long = ipv4_frame(THERE, HERE, 1401, true);
    let (verdict, out) = bench.tc("weave_port", &too_long);
    assert_eq!(
        (verdict, &out[34..36], &out[38..42]),
        (REDIRECT, &[3, 4][..], &[0, 0, 5, 0x78][..])
    );
    let before = bench.maps.counters().unwrap();
    assert_eq!(bench.tc("weave_vxlan_out", &too_long).0, DROP);
    bench.on_sleeve(THEIRS, OTHER, 0);
    assert_eq!(bench.tc("weave_vxlan_out", &fits).0, DROP, "no TAP");
    assert_eq!(
        bench.counted(&before),
        [("to_sleeve", 1), ("drop_no_route", 1), ("drop_too_big", 1)]
    );
}

#[test]
fn what_the_bridge_sends_to_the_tap() {
    let Some(mut bench) = Bench::new("sleeve-out") else {
        return;
    };
    const FAR: [u8; 6] = [2, 0, 0, 0, 0, 3];
    bench.on_sleeve(OTHER, OTHER, LO);
    let mut peers = bench.maps.peers().unwrap();
    peers.get_mut(&THEIRS).unwrap().vxlan_ifindex = VETH;
    bench.maps.sync_peers(&peers).unwrap();
    bench.remote(THERE, THEIRS);
    bench.remote(FAR, OTHER);
    bench.local(HERE, 0);
    let frame = ipv4_frame(FAR, HERE, 1400, true);
    let prefix = [
        &b"wv"[..],
        &0u16.to_ne_bytes(),
        &0x777u16.to_ne_bytes(),
        &0x123u16.to_ne_bytes(),
    ];
    assert_eq!(
        bench.tc("weave_sleeve_out", &frame),
        (OK, [&prefix.concat()[..], &frame].concat()),
        "a peer on sleeve"
    );
    assert_eq!(prefix.concat().len(), size_of::<SleevePrefix>());
    let table: [(&str, Vec<u8>, u32, &str); 5] = [
        (
            "a peer on the fast path",
            ipv4_frame(THERE, HERE, 60, true),
            REDIRECT,
            "bridge_out",
        ),
        (
            "nobody we know: userspace may",
            ipv4_frame([2, 9, 9, 9, 9, 9], HERE, 60, true),
            OK,
            "",
        ),
        (
            "somebody here",
            ipv4_frame(HERE, HERE, 60, true),
            DROP,
            "drop_local_destination",
        ),
        (
            "spanning tree",
            ipv4_frame([1, 0x80, 0xc2, 0, 0, 0], HERE, 60, true),
            DROP,
            "drop_spanning_tree",
        ),
        (
            "too long",
            ipv4_frame(FAR, HERE, 1401, true),
            DROP,
            "drop_too_big",
        ),
    ];
    for (what, frame, verdict, counter) in table {
        let before = bench.maps.counters().unwrap();
        assert_eq!(bench.tc("weave_sleeve_out", &frame), (verdict, frame), "{what}");
        let counted: Vec<_> = bench.counted(&before);
        let expected = Some((counter, 1)).filter(|(name, _)| !name.is_empty());
        assert_eq!(counted, Vec::from_iter(expected), "{what}");
    }
    let config = bench.maps.config().unwrap();
    bench.maps.set_config(Config { flags: 0, ..config }).unwrap();
    assert_eq!(bench.tc("weave_sleeve_out", &frame).0, DROP, "stopped");
}

#[test]
fn untagged_frames_from_sleeve_are_for_the_bridge() {
    let Some(mut bench) = Bench::new("sleeve-in") else {
        return;
    };
    let frame = ipv4_frame(HERE, THERE, 60, true);
    assert_eq!(bench.tc("weave_sleeve_in", &frame), (OK, frame));
    assert!(bench.mac(THERE).is_none(), "whose it is, nobody has said");
}

#[test]
fn vxlan_for_a_peer_on_sleeve_goes_up_the_stack() {
    let Some(mut bench) = Bench::new("relay-sleeve") else {
        return;
    };
    bench.on_sleeve(0x555, OTHER, TAP);
    let inner = ipv4_frame(HERE, THERE, 60, true);
    let packet = vxlan(THEIR_IP, OUR_IP, 0x555, THEIRS, 64, &inner);
    assert_eq!(bench.xdp(&packet), (XDP_PASS, packet.clone()));
    let before = bench.maps.counters().unwrap();
    assert_eq!(bench.tc("weave_underlay", &packet), (NEXT, packet));
    assert_eq!(bench.counted(&before), [("to_stack", 1)]);
    let before = bench.maps.counters().unwrap();
    let back = vxlan(OTHER_IP, OUR_IP, 0x555, THEIRS, 64, &inner);
    assert_eq!(bench.tc("weave_underlay", &back).0, DROP, "never back");
    assert_eq!(bench.counted(&before), [("drop_returning", 1)]);
}

#[test]
fn what_another_version_pinned_is_removed() {
    let Some(bench) = Bench::new("version") else {
        return;
    };
    let [old, other] = ["v1", "vault"].map(|name| bench.dir.0.join(name));
    for dir in [&old, &other] {
        std::fs::create_dir(dir).unwrap();
    }
    let link = loader::links_dir(&bench.dir.0).join("port-7");
    let maps = loader::maps_dir(&bench.dir.0);
    std::fs::rename(maps.join("SENDERS"), old.join("SENDERS")).unwrap();
    std::fs::rename(maps.join("COUNTERS"), &link).unwrap();
    loader::load(&bench.dir.0).unwrap();
    assert!(!old.exists() && !link.exists());
    assert!(other.exists(), "not ours");
    assert_eq!(maps.read_dir().unwrap().count(), 10);
}

/// An ARP request for 10.40.0.1.
fn arp_frame(src: [u8; 6], sender: [u8; 6], sender_ip: [u8; 4]) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &src[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    frame.extend(sender);
    frame.extend(sender_ip);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 40, 0, 1]);
    frame
}

/// With tags of VLAN 0 before its packet, the outermost first.
fn tagged(frame: &[u8], tags: &[u16]) -> Vec<u8> {
    let (addresses, packet) = frame.split_at(12);
    let tags = tags.iter().flat_map(|tag| [tag.to_be_bytes(), [0, 0]].concat());
    addresses
        .iter()
        .copied()
        .chain(tags)
        .chain(packet.iter().copied())
        .collect()
}

#[test]
fn only_frames_from_a_containers_own_addresses_leave_it() {
    let Some(mut bench) = Bench::new("spoof") else {
        return;
    };
    let ours = [10, 32, 0, 1];
    let identity = |addrs: Option<&[[u8; 4]]>| Identity {
        mac: HERE,
        addrs: addrs.map(|addrs| addrs.iter().map(|a| (*a).into()).collect()),
    };
    let source = |identity: &Identity| datapath::source(identity);
    let (mut spoofed_ip, spoofed_mac) = (ipv4_frame([0xff; 6], HERE, 60, true), [2, 0, 0, 0, 0, 9]);
    spoofed_ip[14 + 12..14 + 16].copy_from_slice(&[10, 32, 0, 2]);
    let table: [(&str, Vec<u8>, Option<&str>); 9] = [
        ("its own", ipv4_frame([0xff; 6], HERE, 60, true), None),
        ("other IPv4 source", spoofed_ip.clone(), Some("drop_spoofed_ip")),
        (
            "other MAC",
            ipv4_frame([0xff; 6], spoofed_mac, 60, true),
            Some("drop_spoofed_mac"),
        ),
        ("IPv6", ipv6_frame([0xff; 6], HERE, 80), None),
        (
            "IPv6 from another MAC",
            ipv6_frame([0xff; 6], spoofed_mac, 80),
            Some("drop_spoofed_mac"),
        ),
        ("ARP", arp_frame(HERE, HERE, ours), None),
        ("ARP probe", arp_frame(HERE, HERE, [0; 4]), None),
        (
            "ARP for another address",
            arp_frame(HERE, HERE, [10, 32, 0, 2]),
            Some("drop_spoofed_ip"),
        ),
        (
            "ARP with another MAC",
            arp_frame(HERE, spoofed_mac, ours),
            Some("drop_spoofed_mac"),
        ),
    ];
    // What a receiver finds behind tags; the kernel has taken off one more before the program sees the frame.
    let own = ipv4_frame([0xff; 6], HERE, 60, true);
    let (own_arp, spoofed_arp) = (arp_frame(HERE, HERE, ours), arp_frame(HERE, HERE, [10, 32, 0, 2]));
    let other_mac_arp = arp_frame(HERE, spoofed_mac, ours);
    let mut table = Vec::from(table);
    for tags in [
        &[0x8100][..],
        &[0x88a8],
        &[0x9100],
        &[0x8100, 0x8100],
        &[0x88a8, 0x8100],
    ] {
        table.extend([
            ("its own, tagged", tagged(&own, tags), None),
            (
                "other IPv4 source, tagged",
                tagged(&spoofed_ip, tags),
                Some("drop_spoofed_ip"),
            ),
            ("ARP, tagged", tagged(&own_arp, tags), None),
            (
                "ARP for another address, tagged",
                tagged(&spoofed_arp, tags),
                Some("drop_spoofed_ip"),
            ),
            (
                "ARP with another MAC, tagged",
                tagged(&other_mac_arp, tags),
                Some("drop_spoofed_mac"),
            ),
            (
                "IPv6, tagged",
                tagged(&ipv6_frame([0xff; 6], HERE, 80), tags),
                None,
            ),
        ]);
    }
    let (mut with_options, mut fragment) = (spoofed_ip.clone(), spoofed_ip.clone());
    with_options[14] = 0x4f;
    // The last one, far from the header of TCP.
    fragment[14 + 6..14 + 8].copy_from_slice(&[0, 100]);
    table.extend([
        (
            "too many tags",
            tagged(&own, &[0x8100; 3]),
            Some("drop_spoofed_ip"),
        ),
        ("a source with options", with_options, Some("drop_spoofed_ip")),
        ("a fragment", fragment, Some("drop_spoofed_ip")),
        // Newer kernels run no program on half an IPv4 header right after Ethernet: see the end-to-end tests.
        (
            "ARP without its sender",
            own_arp[..14 + 17].to_vec(),
            Some("drop_spoofed_ip"),
        ),
        (
            "half a tag",
            tagged(&own, &[0x8100])[..14 + 3].to_vec(),
            Some("drop_spoofed_ip"),
        ),
        (
            "a tag and half an IPv4 header",
            tagged(&own, &[0x8100])[..14 + 4 + 15].to_vec(),
            Some("drop_spoofed_ip"),
        ),
        (
            "two tags and half of ARP",
            tagged(&own_arp, &[0x8100; 2])[..14 + 8 + 17].to_vec(),
            Some("drop_spoofed_ip"),
        ),
    ]);
    let listed = source(&identity(Some(&[[10, 2, 1, 7], ours])));
    bench.maps.set_source(LO, Some(&listed)).unwrap();
    for (what, frame, dropped) in &table {
        let before = bench.maps.counters().unwrap();
        let verdict = if dropped.is_some() { DROP } else { OK };
        assert_eq!(bench.tc("weave_port", frame).0, verdict, "{what}");
        let counted = bench.counted(&before);
        let counter = dropped.unwrap_or("to_bridge");
        assert!(counted.contains(&(counter, 1)), "{what}: {counted:?}");
    }
    assert!(bench.mac(spoofed_mac).is_none(), "nothing is learnt from it");
    // Any address, no address, and nothing known.
    for (source, passes) in [
        (Some(source(&identity(None))), true),
        (Some(source(&identity(Some(&[])))), false),
        (None, true),
    ] {
        bench.maps.set_source(LO, source.as_ref()).unwrap();
        let verdict = if passes { OK } else { DROP };
        assert_eq!(bench.tc("weave_port", &spoofed_ip).0, verdict, "{source:?}");
    }
}
