//! For tests: the TCP streams in captures of original peers.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Two peers, no password.
pub(crate) const PLAIN: &[u8] = include_bytes!("../../tests/fixtures/pcap/01-plain-tcp.pcap");
/// Three peers allocate addresses.
pub(crate) const IPAM: &[u8] = include_bytes!("../../tests/fixtures/pcap/04-ipam-h1view-tcp.pcap");

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
