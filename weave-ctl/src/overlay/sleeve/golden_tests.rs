//! Sleeve as original peers speak it: captures decode, open, and are what we would have sent.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::cipher::Cipher;
use super::forwarder::{Action, CONTROL_ACK, CONTROL_MTU, Forwarder};
use super::fragment::{
    self,
    tests::{Parts, assemble},
};
use super::packet::{self, Kind, PLAIN_OVERHEAD, SEALED_OVERHEAD};
use super::seal::{OpenError, Opener};
use super::{Arrived, Session, Special};
use crate::mesh::Now;
use crate::mesh::crypto::SessionKey;
use crate::mesh::name::PeerName;
use crate::overlay::pace::Pace;

const PLAIN: &[u8] = include_bytes!("../../../tests/fixtures/pcap/01-plain-udp.pcap");
const SEALED: &[u8] = include_bytes!("../../../tests/fixtures/pcap/02-encrypted-udp.pcap");
const BLACK_HOLE: &[u8] = include_bytes!("../../../tests/fixtures/pcap/03-pmtu-blackhole1300-udp.pcap");
const RELAY: &[u8] = include_bytes!("../../../tests/fixtures/pcap/10-relay-h2view.pcap");
const RELAY_SEALED: &[u8] = include_bytes!("../../../tests/fixtures/pcap/11-relay-encrypted-h2view.pcap");

const KEYS: &str = include_str!("../../../tests/fixtures/pcap/02-encrypted.h1.keylog");
const RELAY_KEYS: &str = include_str!("../../../tests/fixtures/pcap/11-relay-encrypted.h2.keylog");

/// A UDP datagram between host `from` and host `to`.
struct Datagram {
    from: u8,
    to: u8,
    df: bool,
    payload: Vec<u8>,
}

/// The complete ones of a capture (little-endian pcap, Ethernet).
fn datagrams(pcap: &[u8]) -> Vec<Datagram> {
    let mut datagrams = Vec::new();
    let mut waiting: HashMap<(u8, [u8; 2]), Parts> = HashMap::new();
    let mut rest = &pcap[24..];
    while !rest.is_empty() {
        let size = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        let (frame, tail) = rest[16..].split_at(size);
        rest = tail;
        let Some(ip) = fragment::parse(frame).filter(|ip| ip.header[9] == 17) else {
            continue;
        };
        let (from, to) = (ip.header[15], ip.header[19]);
        let (offset, more) = (usize::from(ip.fragment & 0x1fff) * 8, ip.fragment & 0x2000 != 0);
        let id = (from, [ip.header[4], ip.header[5]]);
        let whole = if offset == 0 && !more {
            ip.payload.to_vec()
        } else {
            let parts = waiting.entry(id).or_default();
            parts.insert(offset, (ip.payload.to_vec(), more));
            let Some(whole) = assemble(parts) else { continue };
            waiting.remove(&id);
            whole
        };
        assert_eq!(whole[..4], [0x1a, 0x7f, 0x1a, 0x7f], "port 6783, both");
        assert_eq!(usize::from(u16::from_be_bytes([whole[4], whole[5]])), whole.len());
        datagrams.push(Datagram {
            from,
            to,
            df: ip.fragment & 0x4000 != 0,
            payload: whole[8..].to_vec(),
        });
    }
    datagrams
}

fn name(host: u8) -> PeerName {
    PeerName::from_u64(0x7a00_0000_0000 + u64::from(host)).unwrap()
}

/// What the records of a capture hold.
#[derive(Default)]
struct Seen {
    /// By the hosts of the connection, the lower first.
    uids: BTreeMap<(u8, u8), BTreeSet<u64>>,
    specials: Vec<(u8, Special)>,
    frames: usize,
    relayed: usize,
}

impl Seen {
    /// Looks at the records of a packet in clear, which our encoder must be able to write as well.
    fn look(&mut self, datagram: &Datagram, records: &[u8]) {
        let mut written = Vec::new();
        for record in packet::records(records) {
            let record = record.unwrap();
            self.frames += 1;
            let known = [name(1), name(2), name(3)];
            assert!(known.contains(&record.src) && known.contains(&record.dst));
            match packet::kind(record.frame) {
                Kind::Special(special) => {
                    assert_eq!((record.src, record.dst), (name(datagram.from), name(datagram.to)));
                    assert_eq!(packet::special_df(special), datagram.df, "{special:?}");
                    if let Special::Heartbeat { conn_uid } = special {
                        let ends = (datagram.from.min(datagram.to), datagram.from.max(datagram.to));
                        self.uids.entry(ends).or_default().insert(conn_uid);
                    }
                    self.specials.push((datagram.from, special));
                    packet::append_special(&mut written, record.src, record.dst, special);
                }
                kind => {
                    assert_eq!(kind, Kind::Data);
                    self.relayed +=
                        usize::from(record.src != name(datagram.from) || record.dst != name(datagram.to));
                    packet::append_record(&mut written, record.src, record.dst, record.frame).unwrap();
                }
            }
        }
        assert_eq!(written, records);
    }

    fn expect(&self, uids: &[((u8, u8), u64)], frames: usize) {
        let uids = uids.iter().map(|(ends, uid)| (*ends, BTreeSet::from([*uid])));
        assert_eq!(self.uids, uids.collect());
        assert_eq!(self.frames, frames);
    }
}

fn plain(pcap: &[u8], packets: usize) -> Seen {
    let (mut seen, datagrams) = (Seen::default(), datagrams(pcap));
    assert_eq!(datagrams.len(), packets);
    for datagram in datagrams {
        let (sender, records) = packet::split(&datagram.payload).unwrap();
        assert_eq!(sender, name(datagram.from));
        let mut start = Vec::new();
        packet::start(&mut start, sender, false);
        assert_eq!(start, datagram.payload[..PLAIN_OVERHEAD]);
        seen.look(&datagram, records);
    }
    seen
}

/// Both ends of each connection that one end has logged, by sender and receiver: the receiver's opener,
/// the sender's cipher.
fn ends(keylog: &str) -> HashMap<(u8, u8), (Opener, Cipher)> {
    let mut ends = HashMap::new();
    for line in keylog.lines() {
        let fields: HashMap<_, _> = line.split(' ').filter_map(|f| f.split_once('=')).collect();
        let host = |end: &str| fields[end].parse::<SocketAddrV4>().unwrap().ip().octets()[3];
        let key: Vec<u8> = (0..64)
            .step_by(2)
            .map(|at| u8::from_str_radix(&fields["sessionkey"][at..at + 2], 16).unwrap())
            .collect();
        let key = SessionKey::new(key.try_into().unwrap());
        let (local, remote, outbound) = (host("local"), host("remote"), fields["outbound"] == "true");
        for (from, to, outbound) in [(remote, local, outbound), (local, remote, !outbound)] {
            let key = key.clone();
            let theirs = Cipher::new(&key, !outbound);
            ends.insert((from, to), (Opener::new(&Session { key, outbound }), theirs));
        }
    }
    ends
}

fn sealed(pcap: &[u8], packets: usize, keylog: &str) -> Seen {
    let ends = ends(keylog);
    let (mut seen, datagrams) = (Seen::default(), datagrams(pcap));
    assert_eq!(datagrams.len(), packets);
    for datagram in datagrams {
        let (sender, _) = packet::split(&datagram.payload).unwrap();
        assert_eq!(sender, name(datagram.from));
        let number = u64::from_be_bytes(datagram.payload[6..14].try_into().unwrap());
        assert_eq!(number >> 63 != 0, datagram.df);
        let (opener, theirs) = &ends[&(datagram.from, datagram.to)];
        let mut opened = datagram.payload.clone();
        let mut records = opener.open(&mut opened).unwrap().to_vec();
        seen.look(&datagram, &records);
        assert_eq!(opener.open(&mut datagram.payload.clone()), Err(OpenError::Replay));
        let tag = theirs.seal(number, &mut records);
        assert_eq!(datagram.payload[14..SEALED_OVERHEAD], tag);
        assert_eq!(datagram.payload[SEALED_OVERHEAD..], records);
    }
    seen
}

#[test]
fn plain_packets() {
    let seen = plain(PLAIN, 73);
    seen.expect(&[((1, 2), 12_400_655_149_262_150_001)], 85);
    for host in [1, 2] {
        assert!(seen.specials.contains(&(host, Special::FragmentationTest)));
        assert!(seen.specials.contains(&(host, Special::MtuTest { mtu: 1438 })));
    }
    assert_eq!(seen.relayed, 0);
    plain(BLACK_HOLE, 84).expect(&[((1, 2), 6_722_030_063_911_567_799)], 86);
}

#[test]
fn sealed_packets() {
    let seen = sealed(SEALED, 75, KEYS);
    seen.expect(&[((1, 2), 7_090_652_550_026_890_871)], 87);
    for host in [1, 2] {
        assert!(seen.specials.contains(&(host, Special::FragmentationTest)));
        assert!(seen.specials.contains(&(host, Special::MtuTest { mtu: 1414 })));
    }
}

#[test]
fn relayed_packets() {
    let uids = [
        ((1, 2), 14_579_552_339_322_520_007),
        ((2, 3), 15_961_067_478_861_396_442),
    ];
    let seen = plain(RELAY, 70);
    seen.expect(&uids, 74);
    assert!(seen.relayed > 0);
    let uids = [
        ((1, 2), 8_341_742_022_355_791_402),
        ((2, 3), 8_423_544_458_513_484_876),
    ];
    let seen = sealed(RELAY_SEALED, 50, RELAY_KEYS);
    seen.expect(&uids, 54);
    assert!(seen.relayed > 0);
}

/// What a forwarder of ours tests where the original stood, the kernel believing in 1500 bytes and
/// 1300 getting through.
#[test]
fn the_search_in_a_black_hole() {
    let captured = plain(BLACK_HOLE, 84).specials.into_iter().filter_map(|special| {
        let (1, Special::MtuTest { mtu }) = special else {
            return None;
        };
        Some(mtu)
    });
    let there = SocketAddrV4::new(Ipv4Addr::new(172, 31, 0, 2), 6783);
    let mut forwarder = Forwarder::new(Now::ZERO, 1, Some(there), false, Pace::ORIGINAL);
    let mut actions = forwarder.on_control(Now::ZERO, CONTROL_ACK, &[]);
    actions.extend(forwarder.on_arrived(Now::ZERO, Arrived::TooBig { path_mtu: 1500 }));
    let (mut tested, mut now) = (Vec::new(), Now::ZERO);
    // The capture ends before either side verifies its result.
    while now < Now::from_secs(20) {
        for action in std::mem::take(&mut actions) {
            if let Action::Send(Special::MtuTest { mtu }) = action {
                tested.push(mtu);
                if mtu + 62 <= 1300 {
                    actions.extend(forwarder.on_control(now, CONTROL_MTU, &mtu.to_be_bytes()));
                }
            }
        }
        if actions.is_empty() {
            now = forwarder.next_deadline();
            actions = forwarder.tick(now);
        }
    }
    assert_eq!(tested, captured.collect::<Vec<_>>());
    assert_eq!(forwarder.limits().mtu, 1238);
}
