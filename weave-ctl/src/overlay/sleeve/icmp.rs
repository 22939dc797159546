//! Telling containers that their packets are too big: ICMP "fragmentation needed" (wire.md 6.10) and
//! ICMPv6 "packet too big" (RFC 4443, wire.md W17).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::fragment::{self, checksum};
use super::packet::ETHERNET;

/// Least MTU of IPv6 in bytes: what is not longer must be carried somehow.
pub const IPV6_MIN_MTU: u16 = 1280;
/// Bytes of an IPv6 header.
const IPV6: usize = 40;
/// Bytes of an ICMP header.
const ICMP: usize = 8;

/// The answer to a frame whose IP packet is longer than `mtu`: a whole frame, to be sent to where that
/// one came from. `None` where no answer is due: to errors, groups and later fragments, to anything
/// that is not IP, and to IPv6 packets of up to [`IPV6_MIN_MTU`] bytes.
#[must_use]
pub fn too_big(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let (ethernet, packet) = frame.split_first_chunk::<ETHERNET>()?;
    let [dst @ .., _, _, _, _, _, _, _, _] = ethernet;
    let [_, _, _, _, _, _, src @ .., _, _] = ethernet;
    if (dst[0] | src[0]) & 1 != 0 {
        return None;
    }
    let answer = match &ethernet[12..] {
        [8, 0] => ipv4(frame, mtu)?,
        [0x86, 0xdd] => ipv6(packet, mtu)?,
        _ => return None,
    };
    Some([src, dst, &ethernet[12..], &answer].concat())
}

fn ipv4(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let packet = fragment::parse(frame)?;
    let header = packet.header;
    let address = |at: usize| header.get(at..at + 4)?.try_into().ok().map(Ipv4Addr::from_octets);
    let (src, dst) = (address(12)?, address(16)?);
    let nobody =
        |ip: Ipv4Addr| ip.is_multicast() || ip.is_broadcast() || ip.is_unspecified() || ip.is_loopback();
    // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
    let error = header[9] == 1 && matches!(packet.payload.first(), None | Some(3 | 4 | 5 | 11 | 12));
    if header[0] >> 4 != 4 || packet.fragment & 0x1fff != 0 || nobody(src) || nobody(dst) || error {
        return None;
    }
    let quoted = &packet.payload[..packet.payload.len().min(8)];
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend_from_slice(&mtu.to_be_bytes());
    icmp.extend_from_slice(header);
    icmp.extend_from_slice(quoted);
    let sum = checksum(&[&icmp]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut ip = vec![0x45, header[1]];
    ip.extend_from_slice(&((20 + icmp.len()) as u16).to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0, 0, 64, 1, 0, 0]);
    ip.extend_from_slice(&dst.octets());
    ip.extend_from_slice(&src.octets());
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend_from_slice(&icmp);
    Some(ip)
}

fn ipv6(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let header = packet.first_chunk::<IPV6>()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    // Length 0: a packet too long for the field.
    let end = if length == 0 { packet.len() } else { IPV6 + length };
    let packet = packet
        .get(..end)
        .filter(|_| end > usize::from(IPV6_MIN_MTU) && header[0] >> 4 == 6)?;
    let address = |at: usize| {
        header
            .get(at..at + 16)?
            .try_into()
            .ok()
            .map(Ipv6Addr::from_octets)
    };
    let (src, dst) = (address(8)?, address(24)?);
    let nobody = |ip: Ipv6Addr| ip.is_multicast() || ip.is_unspecified() || ip.is_loopback();
    if nobody(src) || nobody(dst) || !answerable(header[6], &packet[IPV6..]) {
        return None;
    }
    let quoted = &packet[..packet.len().min(usize::from(IPV6_MIN_MTU) - IPV6 - ICMP)];
    let length = (ICMP + quoted.len()) as u16;
    let mut icmp = vec![2, 0, 0, 0];
    icmp.extend_from_slice(&u32::from(mtu.max(IPV6_MIN_MTU)).to_be_bytes());
    icmp.extend_from_slice(quoted);
    let pseudo_header = [0, 0, 0, 58];
    let sum = checksum(&[
        &src.octets(),
        &dst.octets(),
        &length.to_be_bytes(),
        &pseudo_header,
        &icmp,
    ]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend_from_slice(&length.to_be_bytes());
    ip.extend_from_slice(&[58, 64]);
    ip.extend_from_slice(&dst.octets());
    ip.extend_from_slice(&src.octets());
    ip.extend_from_slice(&icmp);
    Some(ip)
}

/// It is no ICMPv6 error or redirect, and no later fragment: follows the extension headers.
fn answerable(mut next: u8, mut rest: &[u8]) -> bool {
    loop {
        let length = match (next, rest) {
            (58, [kind, ..]) => return *kind >= 128 && *kind != 137,
            (58, []) => return false,
            // Hop-by-hop options, routing, destination options.
            (0 | 43 | 60, [_, length, ..]) => (usize::from(*length) + 1) * 8,
            (44, [_, _, high, low, ..]) if u16::from_be_bytes([*high, *low]) >> 3 == 0 => 8,
            (51, [_, length, ..]) => (usize::from(*length) + 2) * 4,
            (0 | 43 | 44 | 51 | 60, _) => return false,
            _ => return true,
        };
        let Some((header, tail)) = rest.split_at_checked(length) else {
            return false;
        };
        (next, rest) = (header[0], tail);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::fragment::tests::frame;
    use super::*;

    /// An IPv6 frame of so many bytes behind the fixed header, which says what comes next.
    fn frame6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 1, 2, 3];
        frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        frame.extend_from_slice(&[next, 64]);
        frame.extend_from_slice(&"fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend_from_slice(&"fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn fragmentation_needed() {
        for options in [0, 8] {
            let original = frame(options, 0x4000, &[7; 1480], 0);
            let answer = too_big(&original, 1438).unwrap();
            assert_eq!(answer[..14], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
            let ip = fragment::parse(&answer).unwrap();
            assert_eq!(
                ip.header[..10],
                [0x45, 0x12, 0, 56 + options as u8, 0, 0, 0, 0, 64, 1]
            );
            assert_eq!(ip.header[12..], [10, 32, 0, 2, 10, 32, 0, 1]);
            assert_eq!(ip.payload[..2], [3, 4]);
            assert_eq!(ip.payload[4..8], [0, 0, 5, 0x9e]);
            assert_eq!(ip.payload[8..], original[14..14 + 20 + options + 8]);
            assert_eq!((checksum(&[ip.header]), checksum(&[ip.payload])), (0, 0));
        }
    }

    #[test]
    fn ipv4_that_gets_no_answer() {
        let altered = |at: usize, bytes: &[u8]| {
            let mut frame = frame(0, 0x4000, &[8; 1480], 0);
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            too_big(&frame, 1400)
        };
        assert!(altered(23, &[1]).is_some(), "a ping is answered");
        for (at, bytes) in [
            (0, &[0xff; 6][..]),
            (0, &[1]),
            (6, &[3]),
            (12, &[8, 6]),
            (14, &[0x65]),
            (14, &[0x44]),
            (16, &[0xff, 0xff]),
            (20, &[0x40, 1]),
            (26, &[0, 0, 0, 0]),
            (26, &[224, 0, 0, 1]),
            (30, &[239, 1, 1, 1]),
            (30, &[255, 255, 255, 255]),
        ] {
            assert_eq!(altered(at, bytes), None, "{at} {bytes:?}");
        }
        for kind in [3, 4, 5, 11, 12] {
            let mut error = frame(0, 0x4000, &[kind; 1480], 0);
            error[23] = 1;
            assert_eq!(too_big(&error, 1400), None, "an error of type {kind}");
        }
    }

    #[test]
    fn packet_too_big() {
        let original = frame6(6, &[7; 1460]);
        let answer = too_big(&original, 1438).unwrap();
        assert_eq!(answer[..14], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd]);
        assert_eq!(answer.len(), 14 + 1280);
        assert_eq!(answer[14..22], [0x60, 0, 0, 0, 4, 0xd8, 58, 64]);
        assert_eq!(answer[22..38], original[38..54]);
        assert_eq!(answer[38..54], original[22..38]);
        assert_eq!(answer[54..56], [2, 0]);
        assert_eq!(answer[58..62], [0, 0, 5, 0x9e]);
        assert_eq!(answer[62..], original[14..14 + 1232]);
        assert_eq!(
            checksum(&[&answer[22..54], &[4, 0xd8, 0, 0, 0, 58], &answer[54..]]),
            0
        );
        let small = too_big(&original, 600).unwrap();
        assert_eq!(small[58..62], [0, 0, 5, 0], "never below the least of IPv6");
    }

    #[test]
    fn ipv6_that_gets_no_answer() {
        assert!(too_big(&frame6(6, &[7; 1240]), 600).is_none(), "1280 bytes");
        assert!(too_big(&frame6(6, &[7; 1241]), 600).is_some());
        let mut group = frame6(6, &[7; 1460]);
        group[38] = 0xff;
        assert_eq!(too_big(&group, 1400), None);
        let behind = |headers: &[u8]| {
            let mut payload = headers[1..].to_vec();
            payload.resize(1460, 0);
            too_big(&frame6(headers[0], &payload), 1400).is_some()
        };
        assert!(behind(&[58, 128]), "a ping");
        assert!(!behind(&[58, 1]) && !behind(&[58, 2]) && !behind(&[58, 137]));
        let hop_by_hop = |kind| behind(&[0, 58, 0, 0, 0, 0, 0, 0, 0, kind]);
        assert!(hop_by_hop(128) && !hop_by_hop(3));
        let fragment = |offset| behind(&[44, 17, 0, 0, offset, 0, 0, 0, 0]);
        assert!(fragment(1) && !fragment(8), "the first only");
        assert!(!behind(&[0, 0, 255]), "an extension header that does not end");
    }

    #[test]
    fn stumps_get_no_answer() {
        for frame in [frame(0, 0x4000, &[7; 1480], 0), frame6(6, &[7; 1460])] {
            assert!((0..frame.len()).all(|len| too_big(&frame[..len], 1400).is_none()));
        }
    }
}
