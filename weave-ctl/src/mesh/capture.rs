//! For tests: the TCP streams in captures of original peers, and what opens the sealed ones.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::gob::tests::unhex;

/// Two peers, no password.
pub(crate) const PLAIN: &[u8] = include_bytes!("../../tests/fixtures/pcap/01-plain-tcp.pcap");
/// Three peers allocate addresses.
pub(crate) const IPAM: &[u8] = include_bytes!("../../tests/fixtures/pcap/04-ipam-h1view-tcp.pcap");

/// Two peers with a password.
pub(crate) const ENCRYPTED: &[u8] = include_bytes!("../../tests/fixtures/pcap/02-encrypted-tcp.pcap");
/// What both ends of it knew.
pub(crate) const ENCRYPTED_KEYS: &str = concat!(
    include_str!("../../tests/fixtures/pcap/02-encrypted.h1.keylog"),
    include_str!("../../tests/fixtures/pcap/02-encrypted.h2.keylog")
);
/// Two peers with different passwords.
pub(crate) const WRONG_PASSWORD: &[u8] =
    include_bytes!("../../tests/fixtures/pcap/07-wrong-password-tcp.pcap");
/// What the one that accepted knew.
pub(crate) const WRONG_PASSWORD_KEYS: &str =
    include_str!("../../tests/fixtures/pcap/07-wrong-password.h1.keylog");
/// A peer with a password dials one without.
pub(crate) const PASSWORD_OR_NONE: &[u8] =
    include_bytes!("../../tests/fixtures/pcap/08-encrypted-vs-plain-tcp.pcap");
/// Three in a line with a password, seen at the middle.
pub(crate) const RELAY: &[u8] = include_bytes!("../../tests/fixtures/pcap/11-relay-encrypted-tcp.pcap");
/// What the middle knew of both connections.
pub(crate) const RELAY_KEYS: &str = include_str!("../../tests/fixtures/pcap/11-relay-encrypted.h2.keylog");
/// Two peers with a password and protocol version 1.
pub(crate) const VERSION_1: &[u8] =
    include_bytes!("../../tests/fixtures/pcap/12-protocolv1-encrypted-tcp.pcap");
/// What both ends of it knew.
pub(crate) const VERSION_1_KEYS: &str = concat!(
    include_str!("../../tests/fixtures/pcap/12-protocolv1-encrypted.h1.keylog"),
    include_str!("../../tests/fixtures/pcap/12-protocolv1-encrypted.h2.keylog")
);

/// What one end knew of a sealed connection: a line of a key log.
#[derive(Clone)]
pub(crate) struct Secret {
    pub local: SocketAddrV4,
    pub remote: SocketAddrV4,
    /// The local end dialled.
    pub outbound: bool,
    pub password: String,
    pub local_private: [u8; 32],
    pub remote_public: [u8; 32],
    pub session_key: [u8; 32],
}

pub(crate) fn secrets(keylog: &str) -> Vec<Secret> {
    let secret = |line: &str| {
        let field = |name: &str| {
            let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
            fields.find(|(key, _)| *key == name).unwrap().1
        };
        let key = |name| <[u8; 32]>::try_from(unhex(field(name))).unwrap();
        Secret {
            local: field("local").parse().unwrap(),
            remote: field("remote").parse().unwrap(),
            outbound: field("outbound") == "true",
            password: field("password").to_owned(),
            local_private: key("localpriv"),
            remote_public: key("remotepub"),
            session_key: key("sessionkey"),
        }
    };
    keylog.lines().map(secret).collect()
}

/// One direction of a TCP connection: (from, to).
pub(crate) type Flow = (SocketAddrV4, SocketAddrV4);

/// What was sent in each direction, put together from its segments (little-endian pcap, Ethernet, IPv4).
pub(crate) fn streams(pcap: &[u8]) -> BTreeMap<Flow, Vec<u8>> {
    let be16 = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
    let be32 = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut flows: BTreeMap<Flow, (u32, Vec<u8>)> = BTreeMap::new();
    let mut rest = &pcap[24..];
    while !rest.is_empty() {
        let size = u32::from_le_bytes([rest[8], rest[9], rest[10], rest[11]]) as usize;
        let ip = &rest[16 + 14..16 + size];
        rest = &rest[16 + size..];
        let ip = &ip[..usize::from(be16(&ip[2..]))];
        let tcp = &ip[usize::from(ip[0] & 15) * 4..];
        let address = |at: usize| Ipv4Addr::from(be32(&ip[at..]));
        let flow = (
            SocketAddrV4::new(address(12), be16(tcp)),
            SocketAddrV4::new(address(16), be16(&tcp[2..])),
        );
        let (sequence, syn) = (be32(&tcp[4..]), tcp[13] & 2 != 0);
        let data = &tcp[usize::from(tcp[12] >> 4) * 4..];
        if syn {
            flows.insert(flow, (sequence.wrapping_add(1), Vec::new()));
        } else if let Some((start, stream)) = flows.get_mut(&flow) {
            let at = sequence.wrapping_sub(*start) as usize;
            // A retransmission starts earlier; a hole would be a defect of the capture.
            if !data.is_empty() && at + data.len() > stream.len() {
                assert!(at <= stream.len(), "segment missing");
                stream.truncate(at);
                stream.extend_from_slice(data);
            }
        }
    }
    flows
        .into_iter()
        .map(|(flow, (_, stream))| (flow, stream))
        .collect()
}

/// Header, flag, features and bodies of one direction without encryption.
pub(crate) fn parts(stream: &[u8]) -> (&[u8], u8, Vec<&[u8]>) {
    let (header, rest) = stream.split_at(7);
    let (flag, mut rest) = rest.split_first().unwrap_or((&0xff, &[]));
    let mut bodies = Vec::new();
    while let Some((size, tail)) = rest.split_first_chunk::<4>() {
        let Some((body, tail)) = tail.split_at_checked(u32::from_be_bytes(*size) as usize) else {
            break;
        };
        bodies.push(body);
        rest = tail;
    }
    assert!(rest.is_empty(), "incomplete message");
    (header, *flag, bodies)
}
