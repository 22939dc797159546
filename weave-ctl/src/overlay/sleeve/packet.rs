//! Packets as they are in UDP: names, frame records, and the frames that peers send each other
//! (wire.md 6.2 to 6.4). Nothing is copied on receipt.

use super::Special;
use crate::mesh::name::PeerName;

/// Bytes of a peer's name.
pub const NAME: usize = 6;
/// Bytes in front of each frame: source peer, destination peer, length.
pub const RECORD_HEADER: usize = 14;
/// Bytes of an Ethernet header without tag: the shortest frame.
pub const ETHERNET: usize = 14;
/// Bytes of the number in front of sealed records.
pub const NUMBER: usize = 8;
/// Bytes in front of the first record of a plain packet.
pub const PLAIN_OVERHEAD: usize = NAME;
/// Bytes in front of the first record of a sealed packet: name, number, tag.
pub const SEALED_OVERHEAD: usize = NAME + NUMBER + super::cipher::TAG;
/// Bytes of IPv4 and UDP headers.
pub const IP_UDP: u16 = 28;
/// Longest UDP payload over IPv4 in bytes.
pub const MAX_PAYLOAD: u16 = 65507;
/// Bytes of the fragmentation test's frame.
pub const FRAGMENTATION_TEST: usize = 60001;
/// Bytes of the frame that provokes EMSGSIZE.
pub const MTU_PROVOCATION: usize = 60000;
/// Bytes of a heartbeat's frame.
pub const HEARTBEAT: usize = ETHERNET + 8;

/// Bytes in front of the first record.
#[must_use]
pub const fn packet_overhead(sealed: bool) -> usize {
    if sealed { SEALED_OVERHEAD } else { PLAIN_OVERHEAD }
}

/// Bytes between a path's MTU and the overlay MTU that fits: 62 plain, 86 sealed.
#[must_use]
pub const fn mtu_overhead(sealed: bool) -> u16 {
    IP_UDP + (packet_overhead(sealed) + RECORD_HEADER + ETHERNET) as u16
}

/// A packet that cannot be read (to its end).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than a name, or the name is zero.
    #[error("no peer name at the start")]
    NoName,
    /// A frame is cut off.
    #[error("too short; expected frame of length {expected}, got {got}")]
    TooShort {
        /// Bytes, as the record says.
        expected: usize,
        /// Bytes that are left.
        got: usize,
    },
    /// Less than a record's header remains: so many bytes.
    #[error("{0} octets of trailing garbage")]
    TrailingGarbage(usize),
}

/// A frame whose length does not fit its 16-bit field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame of {0} bytes is too long")]
pub struct FrameTooLong(pub usize);

/// One frame with the peers it goes between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Captured it.
    pub src: PeerName,
    /// Is to deliver it.
    pub dst: PeerName,
    /// The Ethernet frame, at least [`ETHERNET`] bytes.
    pub frame: &'a [u8],
}

/// Takes the sending peer's name off a packet; the rest is records, or number, tag and sealed records.
pub fn split(packet: &[u8]) -> Result<(PeerName, &[u8]), DecodeError> {
    let (name, rest) = packet.split_first_chunk::<NAME>().ok_or(DecodeError::NoName)?;
    Ok((PeerName::from_bytes(name).ok_or(DecodeError::NoName)?, rest))
}

/// The frames of a packet in clear, without its first [`NAME`] bytes. Ends after the first error.
///
/// Records without names or with less than an Ethernet header, which are to be dropped silently
/// (wire.md 6.4), are left out.
#[must_use]
pub fn records(records: &[u8]) -> Records<'_> {
    Records { rest: records }
}

/// See [`records`].
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let all = std::mem::take(&mut self.rest);
            if all.is_empty() {
                return None;
            }
            let Some((header, rest)) = all.split_first_chunk::<RECORD_HEADER>() else {
                return Some(Err(DecodeError::TrailingGarbage(all.len())));
            };
            let [src @ .., _, _, _, _, _, _, _, _] = header;
            let [_, _, _, _, _, _, dst @ .., high, low] = header;
            let expected = usize::from(u16::from_be_bytes([*high, *low]));
            let Some((frame, rest)) = rest.split_at_checked(expected) else {
                let got = rest.len();
                return Some(Err(DecodeError::TooShort { expected, got }));
            };
            self.rest = rest;
            let peers = PeerName::from_bytes(src).zip(PeerName::from_bytes(dst));
            if let Some((src, dst)) = peers.filter(|_| frame.len() >= ETHERNET) {
                return Some(Ok(Record { src, dst, frame }));
            }
        }
    }
}

/// What stands in front of a frame of `len` bytes.
#[must_use]
pub fn record_header(src: PeerName, dst: PeerName, len: u16) -> [u8; RECORD_HEADER] {
    let mut header = [0; RECORD_HEADER];
    header[..6].copy_from_slice(&src.to_bytes());
    header[6..12].copy_from_slice(&dst.to_bytes());
    header[12..].copy_from_slice(&len.to_be_bytes());
    header
}

/// Appends a record to a packet in clear. The caller sees to the packet's size.
pub fn append_record(
    packet: &mut Vec<u8>,
    src: PeerName,
    dst: PeerName,
    frame: &[u8],
) -> Result<(), FrameTooLong> {
    let len = u16::try_from(frame.len()).map_err(|_| FrameTooLong(frame.len()))?;
    packet.extend_from_slice(&record_header(src, dst, len));
    packet.extend_from_slice(frame);
    Ok(())
}

/// Starts a packet: the sending peer's name, and when `sealed` room for number and tag.
pub fn start(packet: &mut Vec<u8>, sender: PeerName, sealed: bool) {
    packet.clear();
    packet.extend_from_slice(&sender.to_bytes());
    packet.resize(packet_overhead(sealed), 0);
}

/// Bytes of a special frame.
#[must_use]
pub fn special_len(special: Special) -> u16 {
    match special {
        Special::Heartbeat { .. } => HEARTBEAT as u16,
        Special::FragmentationTest => FRAGMENTATION_TEST as u16,
        Special::MtuProvocation => MTU_PROVOCATION as u16,
        Special::MtuTest { mtu } => mtu.saturating_add(ETHERNET as u16),
    }
}

/// It belongs on the DF path: all but the fragmentation test (wire.md 6.5 to 6.7).
#[must_use]
pub fn special_df(special: Special) -> bool {
    special != Special::FragmentationTest
}

/// Appends a record with a special frame. Empty otherwise, but for a heartbeat's UID.
pub fn append_special(packet: &mut Vec<u8>, src: PeerName, dst: PeerName, special: Special) {
    let len = special_len(special);
    packet.extend_from_slice(&record_header(src, dst, len));
    let frame = packet.len();
    packet.resize(frame + usize::from(len), 0);
    if let Special::Heartbeat { conn_uid } = special {
        packet[frame + ETHERNET..].copy_from_slice(&conn_uid.to_be_bytes());
    }
}

/// What a received frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A container's.
    Data,
    /// For the forwarder, if it comes from the neighbour itself for us. A provocation that got through
    /// is the MTU test that it looks like.
    Special(Special),
    /// A fragmentation test whose bytes are not all zero: to be dropped.
    Damaged,
}

/// Tells special frames from others: both MAC addresses and the type zero (wire.md 6.4).
#[must_use]
pub fn kind(frame: &[u8]) -> Kind {
    let Some((head, rest)) = frame.split_first_chunk::<ETHERNET>() else {
        return Kind::Damaged;
    };
    if *head != [0; ETHERNET] {
        return Kind::Data;
    }
    if let Ok(conn_uid) = rest.try_into().map(u64::from_be_bytes) {
        return Kind::Special(Special::Heartbeat { conn_uid });
    }
    if frame.len() == FRAGMENTATION_TEST {
        return match rest.iter().all(|byte| *byte == 0) {
            true => Kind::Special(Special::FragmentationTest),
            false => Kind::Damaged,
        };
    }
    u16::try_from(rest.len()).map_or(Kind::Damaged, |mtu| Kind::Special(Special::MtuTest { mtu }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const UID: u64 = 0x0123_4567_89ab_cdef;

    fn name(number: u64) -> PeerName {
        PeerName::from_u64(number).unwrap()
    }

    fn decoded(bytes: &[u8]) -> Vec<Result<Record<'_>, DecodeError>> {
        records(bytes).collect()
    }

    #[test]
    fn the_heartbeat_of_the_specification() {
        let (a, b) = (name(0x0200_0000_000a), name(0x0200_0000_000b));
        let mut packet = Vec::new();
        start(&mut packet, a, false);
        append_special(&mut packet, a, b, Special::Heartbeat { conn_uid: UID });
        let expected = [
            [
                2, 0, 0, 0, 0, 0xa, 2, 0, 0, 0, 0, 0xa, 2, 0, 0, 0, 0, 0xb, 0, 0x16,
            ]
            .as_slice(),
            &[0; 14],
            &[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef],
        ];
        assert_eq!(packet, expected.concat());

        let (sender, rest) = split(&packet).unwrap();
        let record = decoded(rest)[0].unwrap();
        assert_eq!((sender, record.src, record.dst), (a, a, b));
        assert_eq!(
            kind(record.frame),
            Kind::Special(Special::Heartbeat { conn_uid: UID })
        );
    }

    #[test]
    fn overheads_of_the_specification() {
        assert_eq!((packet_overhead(false), packet_overhead(true)), (6, 30));
        assert_eq!((mtu_overhead(false), mtu_overhead(true)), (62, 86));
        for sealed in [false, true] {
            let mut packet = vec![1; 3];
            start(&mut packet, name(1), sealed);
            assert_eq!(packet.len(), packet_overhead(sealed));
        }
    }

    #[test]
    fn errors_come_after_the_records_before_them() {
        let (a, b) = (name(1), name(2));
        let frame = [7; 20];
        let good = Record {
            src: a,
            dst: b,
            frame: &frame,
        };
        let mut packet = Vec::new();
        append_record(&mut packet, a, b, &frame).unwrap();
        append_record(&mut packet, a, b, &frame).unwrap();
        assert_eq!(decoded(&packet), [Ok(good), Ok(good)]);
        for cut in [1, 20] {
            let got = 20 - cut;
            let error = DecodeError::TooShort { expected: 20, got };
            assert_eq!(
                decoded(&packet[..packet.len() - cut]),
                [Ok(good), Err(error)],
                "{cut}"
            );
        }
        packet.truncate(34 + 13);
        assert_eq!(
            decoded(&packet),
            [Ok(good), Err(DecodeError::TrailingGarbage(13))]
        );
        assert_eq!(
            DecodeError::TooShort { expected: 20, got: 3 }.to_string(),
            "too short; expected frame of length 20, got 3"
        );
        for nobody in [&[1, 2, 3, 4, 5][..], &[0; 40]] {
            assert_eq!(split(nobody), Err(DecodeError::NoName));
        }
    }

    #[test]
    fn frames_for_nobody_and_stumps_are_left_out() {
        let (a, b) = (name(1), name(2));
        let mut packet = vec![0; 12];
        packet.extend_from_slice(&[0, 1, 9]);
        append_record(&mut packet, a, b, &[7; 13]).unwrap();
        append_record(&mut packet, a, b, &[8; 14]).unwrap();
        let left: Vec<_> = decoded(&packet).into_iter().map(|r| r.unwrap().frame).collect();
        assert_eq!(left, [&[8; 14]]);
        assert_eq!(
            append_record(&mut packet, a, b, &vec![0; 65536]),
            Err(FrameTooLong(65536))
        );
    }

    #[test]
    fn special_frames_are_told_by_their_length() {
        let sent = |special| {
            let mut packet = Vec::new();
            append_special(&mut packet, name(1), name(2), special);
            decoded(&packet)[0].map(|record| kind(record.frame)).unwrap()
        };
        for special in [
            Special::FragmentationTest,
            Special::MtuTest { mtu: 552 },
            Special::MtuTest { mtu: 65487 },
        ] {
            assert_eq!(sent(special), Kind::Special(special));
        }
        assert_eq!(
            sent(Special::MtuProvocation),
            Kind::Special(Special::MtuTest { mtu: 59986 })
        );
        let mut test = vec![0; FRAGMENTATION_TEST];
        test[60000] = 1;
        assert_eq!(kind(&test), Kind::Damaged);
        let mut data = vec![0; HEARTBEAT];
        data[13] = 1;
        assert_eq!(kind(&data), Kind::Data);
        assert!(special_df(Special::MtuProvocation) && !special_df(Special::FragmentationTest));
    }
}
