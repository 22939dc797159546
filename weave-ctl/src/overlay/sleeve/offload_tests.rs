//! Segmentation and coalescing against a simple reference, and against each other.
#![allow(clippy::unwrap_used)]

use std::io::IoSlice;

use proptest::prelude::*;

use super::coalesce::{Coalescer, Sink};
use super::segment::{Frames, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET, VnetHeader};

/// As RFC 1071 says it.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.concat().chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[derive(Debug, Clone)]
struct Sample {
    v6: bool,
    tcp: bool,
    vlan: bool,
    options: usize,
    payload: Vec<u8>,
    size: u16,
    flags: u8,
    seq: u32,
    df: bool,
}

impl Sample {
    fn l3(&self) -> usize {
        if self.vlan { 18 } else { 14 }
    }

    fn l4(&self) -> usize {
        self.l3() + if self.v6 { 40 } else { 20 }
    }

    /// The super-packet as a kernel hands it out.
    fn frame(&self) -> (VnetHeader, Vec<u8>) {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if self.vlan {
            frame.extend([0x81, 0, 0, 5]);
        }
        let l4_header = if self.tcp { 20 + 4 * self.options } else { 8 };
        let l4_len = l4_header + self.payload.len();
        let protocol = if self.tcp { 6 } else { 17 };
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60, 1, 2, 3]);
            frame.extend((l4_len as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend([0xfd; 15]);
            frame.extend([1]);
            frame.extend([0xfd; 15]);
            frame.extend([2]);
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend(((20 + l4_len) as u16).to_be_bytes());
            frame.extend([0xff, 0xfe, if self.df { 0x40 } else { 0 }, 0, 64, protocol]);
            frame.extend([0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let l3 = self.l3();
            let sum = checksum(&[&frame[l3..]]);
            frame[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
        }
        frame.extend([0x30, 0x39, 0x1f, 0x90]);
        if self.tcp {
            frame.extend(self.seq.to_be_bytes());
            frame.extend([
                1,
                2,
                3,
                4,
                (l4_header as u8 / 4) << 4,
                self.flags,
                5,
                6,
                0,
                0,
                0,
                0,
            ]);
            frame.extend((0..4 * self.options).map(|i| i as u8));
        } else {
            frame.extend((l4_len as u16).to_be_bytes());
            frame.extend([0, 0]);
        }
        frame.extend(&self.payload);
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: match (self.tcp, self.v6) {
                (true, false) => GSO_TCPV4,
                (true, true) => GSO_TCPV6,
                (false, _) => GSO_UDP_L4,
            },
            hdr_len: (self.l4() + l4_header) as u16,
            gso_size: self.size,
            csum_start: self.l4() as u16,
            csum_offset: if self.tcp { 16 } else { 6 },
        };
        let at = self.l4() + usize::from(header.csum_offset);
        let partial = !checksum(&[&pseudo(&frame, self.l3(), l4_len)]);
        frame[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        (header, frame)
    }
}

/// The pseudo header, for either version.
fn pseudo(frame: &[u8], l3: usize, l4_len: usize) -> Vec<u8> {
    let v6 = frame[l3] >> 4 == 6;
    let (addresses, protocol) = match v6 {
        true => (l3 + 8..l3 + 40, frame[l3 + 6]),
        false => (l3 + 12..l3 + 20, frame[l3 + 9]),
    };
    let mut bytes = frame[addresses].to_vec();
    bytes.extend((l4_len as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// Lengths and checksums of a frame are what a receiver expects.
fn assert_whole(frame: &[u8], l3: usize) {
    let v6 = frame[l3] >> 4 == 6;
    let l4 = l3 + if v6 { 40 } else { 20 };
    let ip_len = u16::from_be_bytes([
        frame[l3 + if v6 { 4 } else { 2 }],
        frame[l3 + if v6 { 5 } else { 3 }],
    ]);
    assert_eq!(usize::from(ip_len), frame.len() - if v6 { l4 } else { l3 });
    if !v6 {
        assert_eq!(checksum(&[&frame[l3..l4]]), 0, "IP header");
    }
    let pseudo = pseudo(frame, l3, frame.len() - l4);
    assert_eq!(checksum(&[&pseudo, &frame[l4..]]), 0, "transport");
}

fn split(header: VnetHeader, frame: &mut [u8]) -> Vec<Vec<u8>> {
    let frames = Frames::new(header, frame).unwrap();
    (0..frames.count())
        .map(|index| {
            let mut out = vec![0xee; frames.len(index)];
            frames.write(index, &mut out);
            out
        })
        .collect()
}

#[derive(Default)]
struct Writes(Vec<(VnetHeader, Vec<u8>)>);

impl Sink for Writes {
    fn write(&mut self, parts: &[IoSlice<'_>], _segments: usize) {
        let mut all: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        let (header, frame) = VnetHeader::split(&mut all).unwrap();
        self.0.push((header, frame.to_vec()));
    }
}

/// What a TAP would be given for these frames, in one batch.
fn coalesce(frames: &[Vec<u8>], tag: Option<u16>) -> Vec<(VnetHeader, Vec<u8>)> {
    // As in a receive buffer: something between them.
    let mut area = Vec::new();
    let ranges: Vec<_> = frames
        .iter()
        .map(|frame| {
            area.extend([0xaa; 14]);
            area.extend(frame);
            area.len() - frame.len()..area.len()
        })
        .collect();
    let (mut coalescer, mut writes) = (Coalescer::default(), Writes::default());
    for range in ranges {
        coalescer.push(&area, range, tag, &mut writes);
    }
    coalescer.flush(&area, &mut writes);
    writes.0
}

fn sample() -> impl Strategy<Value = Sample> {
    let flags = prop_oneof![3 => Just(0x10), 2 => Just(0x18), 1 => any::<u8>()];
    let payload = prop::collection::vec(any::<u8>(), 1..20000);
    let bools = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (bools, 0..=10usize, payload, 100..3000u16, flags, any::<u32>()).prop_map(
        |((v6, tcp, vlan, df), options, payload, size, flags, seq)| Sample {
            v6,
            tcp,
            vlan,
            options,
            payload,
            size,
            flags,
            seq,
            df,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn segments_are_whole_and_carry_everything(sample in sample()) {
        let (header, mut frame) = sample.frame();
        let segments = split(header, &mut frame);
        prop_assert_eq!(segments.len(), sample.payload.len().div_ceil(usize::from(sample.size)));
        let headers = usize::from(header.hdr_len);
        let l4 = sample.l4();
        let mut payload: Vec<u8> = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            assert_whole(segment, sample.l3());
            let (first, last) = (index == 0, index + 1 == segments.len());
            prop_assert!(last || segment.len() == headers + usize::from(sample.size));
            if sample.tcp {
                let seq = u32::from_be_bytes(segment[l4 + 4..l4 + 8].try_into().unwrap());
                prop_assert_eq!(seq, sample.seq.wrapping_add(payload.len() as u32));
                let only_last = if last { 0x09 } else { 0 };
                let only_first = if first { 0x80 } else { 0 };
                let flags = sample.flags & (!0x89 | only_last | only_first);
                prop_assert_eq!(segment[l4 + 13], flags);
            }
            if !sample.v6 {
                let id = u16::from_be_bytes([segment[sample.l3() + 4], segment[sample.l3() + 5]]);
                prop_assert_eq!(id, 0xfffe_u16.wrapping_add(index as u16));
            }
            payload.extend(&segment[headers..]);
        }
        prop_assert_eq!(payload, sample.payload);
    }

    #[test]
    fn coalescing_undoes_segmentation(
        sample in sample(),
        tag in prop::option::of(0..4096u16),
        push in any::<bool>(),
    ) {
        let flags = if push { 0x18 } else { 0x10 };
        let sample = Sample { tcp: true, vlan: false, flags, ..sample };
        let (header, frame) = sample.frame();
        let segments = split(header, &mut frame.clone());
        let written = coalesce(&segments, tag);
        prop_assert_eq!(written.len(), segments.len().div_ceil(128));
        if segments.len() > 1 && written.len() == 1 {
            let (got, mut got_frame) = written[0].clone();
            let shift = if tag.is_some() { 4 } else { 0 };
            if let Some(tci) = tag {
                let tagged: Vec<u8> = got_frame.splice(12..16, []).collect();
                prop_assert_eq!(tagged, [[0x81, 0], tci.to_be_bytes()].concat());
            }
            prop_assert_eq!(got_frame, frame);
            let expected = VnetHeader {
                csum_start: header.csum_start + shift,
                hdr_len: header.hdr_len + shift,
                ..header
            };
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn nothing_is_lost_or_out_of_order(
        samples in prop::collection::vec(sample(), 1..4),
        order in prop::collection::vec((0..4usize, any::<u8>()), 1..60),
    ) {
        // Several flows mixed, some segments damaged or lost.
        let flows: Vec<_> = samples
            .iter()
            .enumerate()
            .map(|(number, sample)| {
                let (header, mut frame) = Sample { vlan: false, ..sample.clone() }.frame();
                frame[11] = number as u8;
                split(header, &mut frame)
            })
            .collect();
        let mut next = vec![0; flows.len()];
        let mut sent = Vec::new();
        for (flow, dice) in order {
            let flow = flow % flows.len();
            if let Some(segment) = flows[flow].get(next[flow]) {
                next[flow] += 1;
                let mut segment = segment.clone();
                match dice {
                    0..20 => continue,
                    20..40 => *segment.last_mut().unwrap() ^= 1,
                    _ => {}
                }
                sent.push(segment);
            }
        }
        let written = coalesce(&sent, None);
        let again: Vec<_> = written
            .into_iter()
            .flat_map(|(header, mut frame)| split(header, &mut frame))
            .collect();
        for number in 0..flows.len() as u8 {
            let of = |all: &[Vec<u8>]| -> Vec<Vec<u8>> {
                all.iter().filter(|frame| frame[11] == number).map(|frame| without_id(frame)).collect()
            };
            prop_assert_eq!(of(&again), of(&sent));
        }
    }

    #[test]
    fn garbage_does_no_harm(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        sample in sample(),
        cut in 0..200usize,
        changes in prop::collection::vec((0..120usize, any::<u8>()), 0..4),
    ) {
        if let Some((header, frame)) = VnetHeader::split(&mut bytes)
            && let Ok(frames) = Frames::new(header, frame)
        {
            for index in 0..frames.count().min(10) {
                frames.write(index, &mut vec![0; frames.len(index)]);
            }
        }
        let (header, mut frame) = sample.frame();
        frame.truncate(cut);
        let mut data = [&header.bytes()[..], &frame].concat();
        for (at, value) in changes {
            if let Some(byte) = data.get_mut(at) {
                *byte = value;
            }
        }
        let frame = data[VNET..].to_vec();
        let _ = coalesce(&[frame.clone(), frame], Some(1));
        let (header, frame) = VnetHeader::split(&mut data).unwrap();
        if let Ok(frames) = Frames::new(header, frame) {
            for index in 0..frames.count().min(10) {
                frames.write(index, &mut vec![0; frames.len(index)]);
            }
        }
    }
}

/// The ID of an IPv4 packet with DF means nothing, and its checksum depends on it.
fn without_id(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame[12..14] == [8, 0] && frame[20] & 0x40 != 0 {
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
    frame
}

#[test]
fn an_unfinished_checksum_is_finished() {
    for tcp in [false, true] {
        let sample = Sample {
            v6: false,
            tcp,
            vlan: true,
            options: 0,
            payload: vec![7; 101],
            size: 1000,
            flags: 0x18,
            seq: 1,
            df: true,
        };
        let (header, mut frame) = sample.frame();
        let header = VnetHeader {
            gso_type: GSO_NONE,
            ..header
        };
        let frames = split(header, &mut frame);
        assert_eq!(frames.len(), 1);
        assert_whole(&frames[0], 18);
    }
}
