//! Fragmenting the containers' IPv4 packets where the underlay's fragments do not arrive (wire.md 6.8).

use super::packet::ETHERNET;

/// In the flags and offset field.
const DF: u16 = 0x4000;
/// Likewise.
const MF: u16 = 0x2000;
/// Likewise: offset in units of 8 bytes.
const OFFSET: u16 = 0x1fff;

/// What decides how a frame travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// EtherType 0x0800 and a header that can be read.
    Ipv4 {
        /// It must not be fragmented.
        df: bool,
    },
    /// EtherType 0x86dd.
    Ipv6,
    /// All else, tagged frames among it.
    Other,
}

/// An IPv4 packet, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ipv4<'a> {
    /// With options.
    pub header: &'a [u8],
    /// Up to the packet's length, without what pads the frame.
    pub payload: &'a [u8],
    /// Flags and offset.
    pub fragment: u16,
}

/// Reads the IPv4 packet in a frame. `None` if there is none, or less of it than it says.
pub(super) fn parse(frame: &[u8]) -> Option<Ipv4<'_>> {
    let (header, length) = header(frame)?;
    let packet = frame.get(ETHERNET..ETHERNET + length)?;
    let fragment = u16::from_be_bytes([*header.get(6)?, *header.get(7)?]);
    let payload = packet.get(header.len()..)?;
    Some(Ipv4 {
        header,
        payload,
        fragment,
    })
}

/// The header and the packet's length in bytes.
fn header(frame: &[u8]) -> Option<(&[u8], usize)> {
    let packet = frame.get(ETHERNET..).filter(|_| frame[12..14] == [8, 0])?;
    let [first, _, high, low, ..] = *packet.first_chunk::<20>()?;
    let length = match usize::from(u16::from_be_bytes([high, low])) {
        // So the kernel writes it in packets too long for the field.
        0 => packet.len(),
        length => length,
    };
    let header = usize::from(first & 15) * 4;
    ((20..=length).contains(&header) && header <= packet.len()).then(|| (&packet[..header], length))
}

/// Tells what kind of frame it is.
#[must_use]
pub fn kind(frame: &[u8]) -> Kind {
    match (header(frame), frame.get(12..14)) {
        (Some((header, _)), _) => Kind::Ipv4 {
            df: header[6] & (DF >> 8) as u8 != 0,
        },
        (None, Some([0x86, 0xdd])) => Kind::Ipv6,
        _ => Kind::Other,
    }
}

/// Hands the pieces of an IPv4 frame without DF to `emit`, each an Ethernet frame whose IP packet has
/// at most `mtu` bytes, in `scratch`. Returns how many: none if this frame cannot be fragmented.
pub fn ipv4(frame: &[u8], mtu: u16, scratch: &mut Vec<u8>, mut emit: impl FnMut(&[u8])) -> usize {
    let Some(packet) = parse(frame).filter(|packet| packet.fragment & DF == 0) else {
        return 0;
    };
    let (head, start) = (packet.header.len(), packet.fragment & OFFSET);
    let segment = usize::from(mtu).saturating_sub(head) & !7;
    // The last offset must fit its 13 bits as well.
    if segment == 0 || usize::from(start) * 8 + packet.payload.len() > usize::from(u16::MAX) {
        return 0;
    }
    let pieces = packet.payload.len().div_ceil(segment).max(1);
    for piece in 0..pieces {
        let from = piece * segment;
        let to = packet.payload.len().min(from + segment);
        let more = if piece + 1 < pieces { MF } else { 0 };
        let fragment = (packet.fragment | more) + (from / 8) as u16;
        scratch.clear();
        scratch.extend_from_slice(&frame[..ETHERNET + head]);
        scratch.extend_from_slice(&packet.payload[from..to]);
        let ip = &mut scratch[ETHERNET..ETHERNET + head];
        ip[2..4].copy_from_slice(&((head + to - from) as u16).to_be_bytes());
        ip[6..8].copy_from_slice(&fragment.to_be_bytes());
        ip[10..12].fill(0);
        let sum = checksum(&[ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        emit(scratch);
    }
    pieces
}

/// The Internet checksum (RFC 1071) over parts, all but the last of even length.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words
        .map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    let mut folded = sum;
    while folded >> 16 != 0 {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    !(folded as u16)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A frame with an IPv4 packet of `payload` behind `options` and with so many bytes of padding.
    pub(in super::super) fn frame(options: usize, fragment: u16, payload: &[u8], padding: usize) -> Vec<u8> {
        let head = 20 + options;
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.extend_from_slice(&[0x40 | (head / 4) as u8, 0x12]);
        frame.extend_from_slice(&((head + payload.len()) as u16).to_be_bytes());
        frame.extend_from_slice(&[0xab, 0xcd]);
        frame.extend_from_slice(&fragment.to_be_bytes());
        frame.extend_from_slice(&[64, 17, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2]);
        frame.extend(std::iter::repeat_n(1, options));
        let sum = checksum(&[&frame[14..]]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend_from_slice(payload);
        frame.extend(std::iter::repeat_n(0xee, padding));
        frame
    }

    fn pieces(frame: &[u8], mtu: u16) -> Vec<Vec<u8>> {
        let (mut scratch, mut pieces) = (vec![9; 3], Vec::new());
        let count = ipv4(frame, mtu, &mut scratch, |piece| pieces.push(piece.to_vec()));
        assert_eq!(count, pieces.len());
        pieces
    }

    /// Pieces of a packet by offset in bytes, and whether more follow.
    pub(in super::super) type Parts = BTreeMap<usize, (Vec<u8>, bool)>;

    /// Puts fragments together again; `None` while some are missing.
    pub(in super::super) fn assemble(parts: &Parts) -> Option<Vec<u8>> {
        let mut whole = Vec::new();
        let mut more = true;
        for (offset, (part, more_follow)) in parts {
            if *offset != whole.len() {
                return None;
            }
            whole.extend_from_slice(part);
            more = *more_follow;
        }
        (!more).then_some(whole)
    }

    #[test]
    fn kinds() {
        assert_eq!(kind(&frame(0, 0x4000, &[0; 8], 0)), Kind::Ipv4 { df: true });
        assert_eq!(kind(&frame(4, 0, &[0; 8], 0)), Kind::Ipv4 { df: false });
        let altered = |at: usize, value| {
            let mut frame = frame(0, 0, &[0; 8], 0);
            frame[at] = value;
            kind(&frame)
        };
        assert_eq!(altered(14, 0x44), Kind::Other, "header of 16 bytes");
        assert_eq!(altered(14, 0x48), Kind::Other, "header longer than the packet");
        assert_eq!(altered(17, 0), Kind::Ipv4 { df: false }, "length 0: the frame's");
        assert_eq!(altered(13, 6), Kind::Other);
        assert_eq!(kind(&frame(0, 0, &[], 0)[..33]), Kind::Other);
        assert_eq!(kind(&[&[0; 12][..], &[0x86, 0xdd]].concat()), Kind::Ipv6);
        assert_eq!(kind(&[0; 13]), Kind::Other);
    }

    #[test]
    fn what_cannot_be_fragmented() {
        let payload = [7; 2000];
        assert_eq!(pieces(&frame(0, DF, &payload, 0), 1400).len(), 0);
        assert_eq!(
            pieces(&frame(0, 0, &payload, 0), 27).len(),
            0,
            "no room for 8 bytes"
        );
        assert_eq!(
            pieces(&frame(0, OFFSET, &payload, 0), 1400).len(),
            0,
            "offset too far"
        );
        assert_eq!(pieces(&frame(0, 0, &payload, 0)[..1000], 600).len(), 0, "cut off");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn pieces_make_up_the_packet(
            options in 0usize..=10, offset in 0u16..1000, more: bool, mtu in 68u16..1500,
            payload in prop::collection::vec(any::<u8>(), 0..4000), padding in 0usize..40,
        ) {
            let more = if more { MF } else { 0 };
            let original = frame(options * 4, offset | more, &payload, padding);
            let (mut parts, pieces) = (Parts::new(), pieces(&original, mtu));
            for (i, piece) in pieces.iter().enumerate() {
                let ip = parse(piece).unwrap();
                prop_assert!(piece.len() <= usize::from(mtu) + 14);
                prop_assert_eq!(checksum(&[ip.header]), 0);
                prop_assert_eq!(&piece[..14], &original[..14]);
                prop_assert_eq!(&ip.header[4..6], &[0xab, 0xcd]);
                prop_assert_eq!(&ip.header[20..], &vec![1; options * 4]);
                prop_assert_eq!(piece.len(), 14 + ip.header.len() + ip.payload.len(), "no padding");
                let last = i + 1 == pieces.len();
                prop_assert_eq!(ip.fragment & MF, if last { more } else { MF });
                parts.insert(usize::from((ip.fragment & OFFSET) - offset) * 8, (ip.payload.to_vec(), !last));
            }
            prop_assert_eq!(assemble(&parts), Some(payload));
        }
    }
}
