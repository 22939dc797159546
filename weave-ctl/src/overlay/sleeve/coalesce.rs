//! From frames as they come off the wire to super-packets for the TAP: consecutive segments of one TCP
//! flow become one write (what the kernel calls GRO). Frames of one flow keep their order.
//!
//! Nothing is copied but headers: payloads stay in the receive buffer until they are written.

use std::io::IoSlice;
use std::ops::Range;

use super::checksum::{fold, sum, word};
use super::segment::{DATA_VALID, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, TCP_CHECKSUM, VnetHeader};

/// Flows gathered at a time.
const MAX_FLOWS: usize = 8;
/// Ethernet, IPv6 and the longest TCP header.
const MAX_HEADERS: usize = 14 + 40 + 60;
/// Longest IP packet made.
const MAX_IP: usize = 65535;
/// Most pieces of a packet, below the kernel's 1024 per write.
const MAX_PIECES: usize = 128;
/// Ethernet header, bytes.
const L3: usize = 14;

const FIN_SYN_RST_URG_ECE_CWR: u8 = 0xe7;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// A TCP segment with payload and nothing unusual about it.
#[derive(Clone, Copy)]
struct Segment {
    /// Bytes of all headers.
    headers: usize,
    l4: usize,
    v6: bool,
    seq: u32,
    push: bool,
    payload: usize,
}

/// What a frame means to the flows that are being gathered.
enum Class {
    /// May be gathered.
    Segment(Segment),
    /// Of a TCP flow; its gathered segments go first.
    Tcp,
    /// Has nothing to do with any of them.
    Other,
    /// May be anything: all gathered segments go first.
    Unclear,
}

struct Flow {
    head: [u8; MAX_HEADERS],
    first: Segment,
    /// Sequence number after the last.
    next: u32,
    /// IPv4 ID after the last.
    next_id: u16,
    tag: Option<u16>,
    /// Payloads in the receive buffer.
    pieces: Vec<Range<usize>>,
    /// The first frame, in case it stays alone.
    frame: Range<usize>,
    /// Bytes of all payloads.
    total: usize,
    push: bool,
}

/// Where complete writes go: the parts of one frame with its header.
pub trait Sink {
    /// Writes one frame; `segments`: how many it was made of.
    fn write(&mut self, parts: &[IoSlice<'_>], segments: usize);
}

/// Gathers the frames of one batch.
#[derive(Default)]
pub struct Coalescer {
    flows: Vec<Flow>,
    spare: Vec<Vec<Range<usize>>>,
}

impl Coalescer {
    /// Takes a frame at `range` of `area`, which gets an 802.1Q tag with this TCI if there is one.
    pub fn push(&mut self, area: &[u8], range: Range<usize>, tag: Option<u16>, sink: &mut impl Sink) {
        let Some(frame) = area.get(range.clone()) else {
            return;
        };
        let segment = match classify(frame) {
            Class::Segment(segment) => segment,
            Class::Tcp => {
                let found = self
                    .flows
                    .iter()
                    .position(|flow| flow.tag == tag && flow.same_ends(frame));
                if let Some(index) = found {
                    self.finish(index, area, sink);
                }
                return write_single(frame, 0, tag, sink);
            }
            Class::Other => return write_single(frame, 0, tag, sink),
            Class::Unclear => {
                self.flush(area, sink);
                return write_single(frame, 0, tag, sink);
            }
        };
        let found = self
            .flows
            .iter()
            .position(|flow| flow.tag == tag && flow.same_ends(frame));
        if let Some(index) = found {
            if let Some(flow) = self.flows.get_mut(index)
                && flow.continued_by(frame, &segment)
            {
                flow.append(&segment, range);
                if flow.complete(&segment) {
                    self.finish(index, area, sink);
                }
                return;
            }
            self.finish(index, area, sink);
        }
        if segment.push {
            return write_single(frame, DATA_VALID, tag, sink);
        }
        if self.flows.len() >= MAX_FLOWS {
            self.finish(0, area, sink);
        }
        let pieces = self.spare.pop().unwrap_or_default();
        self.flows.extend(Flow::new(frame, segment, range, tag, pieces));
    }

    /// Writes all that has been gathered.
    pub fn flush(&mut self, area: &[u8], sink: &mut impl Sink) {
        while !self.flows.is_empty() {
            self.finish(0, area, sink);
        }
    }

    fn finish(&mut self, index: usize, area: &[u8], sink: &mut impl Sink) {
        let mut flow = self.flows.remove(index);
        flow.write(area, sink);
        flow.pieces.clear();
        self.spare.push(flow.pieces);
    }
}

impl Flow {
    fn new(
        frame: &[u8],
        first: Segment,
        range: Range<usize>,
        tag: Option<u16>,
        mut pieces: Vec<Range<usize>>,
    ) -> Option<Self> {
        let mut head = [0; MAX_HEADERS];
        head.get_mut(..first.headers)?
            .copy_from_slice(frame.get(..first.headers)?);
        let start = range.start + first.headers;
        pieces.push(start..start + first.payload);
        Some(Self {
            head,
            next: first.seq.wrapping_add(first.payload as u32),
            next_id: u16::from_be_bytes(*frame.get(L3 + 4..)?.first_chunk()?).wrapping_add(1),
            tag,
            pieces,
            frame: range,
            total: first.payload,
            push: false,
            first,
        })
    }

    /// It has the same addresses and ports.
    fn same_ends(&self, frame: &[u8]) -> bool {
        let (addresses, l4) = match self.first.v6 {
            true => (L3 + 8..L3 + 40, L3 + 40),
            false => (L3 + 12..L3 + 20, L3 + 20),
        };
        let ports = l4..l4 + 4;
        self.same(frame, 0..L3) && self.same(frame, addresses) && self.same(frame, ports)
    }

    fn same(&self, frame: &[u8], range: Range<usize>) -> bool {
        self.head.get(range.clone()) == frame.get(range)
    }

    fn continued_by(&self, frame: &[u8], segment: &Segment) -> bool {
        let first = &self.first;
        let l4 = first.l4;
        let ip = if first.v6 {
            self.same(frame, L3..L3 + 4) && self.same(frame, L3 + 6..L3 + 8)
        } else {
            let df = frame.get(L3 + 6).is_some_and(|flags| flags & 0x40 != 0);
            let id = frame.get(L3 + 4..).and_then(|rest| rest.first_chunk());
            self.same(frame, L3..L3 + 2)
                && self.same(frame, L3 + 6..L3 + 10)
                // Without DF the ID means something, and segmentation counts it up.
                && (df || id.is_some_and(|id| u16::from_be_bytes(*id) == self.next_id))
        };
        ip && segment.v6 == first.v6
            && segment.headers == first.headers
            && segment.seq == self.next
            && segment.payload <= first.payload
            && first.headers - L3 + self.total + segment.payload <= MAX_IP
            && self.same(frame, l4 + 8..l4 + 13)
            && self.same(frame, l4 + 14..l4 + 16)
            && self.same(frame, l4 + 18..first.headers)
    }

    fn append(&mut self, segment: &Segment, range: Range<usize>) {
        let start = range.start + segment.headers;
        self.pieces.push(start..start + segment.payload);
        self.next = self.next.wrapping_add(segment.payload as u32);
        self.next_id = self.next_id.wrapping_add(1);
        self.total += segment.payload;
        self.push |= segment.push;
    }

    /// Nothing can follow this last segment.
    fn complete(&self, last: &Segment) -> bool {
        last.push || last.payload < self.first.payload || self.pieces.len() >= MAX_PIECES
    }

    fn write(&mut self, area: &[u8], sink: &mut impl Sink) {
        if self.pieces.len() <= 1 {
            if let Some(frame) = area.get(self.frame.clone()) {
                write_single(frame, DATA_VALID, self.tag, sink);
            }
            return;
        }
        let _ = self.write_gathered(area, sink);
    }

    fn write_gathered(&mut self, area: &[u8], sink: &mut impl Sink) -> Option<()> {
        let Segment {
            headers,
            l4,
            v6,
            payload,
            ..
        } = self.first;
        let ip_len = headers - L3 + self.total;
        let head = self.head.get_mut(..headers)?;
        if v6 {
            put(head, L3 + 4, u16::try_from(ip_len - 40).ok()?)?;
        } else {
            put(head, L3 + 2, u16::try_from(ip_len).ok()?)?;
            put(head, L3 + 10, 0)?;
            let checksum = !fold(sum(head.get(L3..l4)?));
            head.get_mut(L3 + 10..L3 + 12)?
                .copy_from_slice(&checksum.to_ne_bytes());
        }
        if self.push {
            *head.get_mut(l4 + 13)? |= PSH;
        }
        let tcp_len = (headers - l4 + self.total) as u16;
        let partial = fold(pseudo(head, v6)? + word(tcp_len));
        let at = l4 + usize::from(TCP_CHECKSUM);
        head.get_mut(at..at + 2)?.copy_from_slice(&partial.to_ne_bytes());

        let tag = self.tag.map(tag_bytes);
        let tag = tag.as_ref().map_or(&[][..], |tag| tag);
        let vnet = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: if v6 { GSO_TCPV6 } else { GSO_TCPV4 },
            hdr_len: (headers + tag.len()) as u16,
            gso_size: payload as u16,
            csum_start: (l4 + tag.len()) as u16,
            csum_offset: TCP_CHECKSUM,
        }
        .bytes();
        let (macs, rest) = self.head.get(..headers)?.split_at_checked(12)?;
        let mut parts = [IoSlice::new(&[]); MAX_PIECES + 4];
        let slices = [&vnet[..], macs, tag, rest].into_iter();
        let slices = slices.chain(self.pieces.iter().filter_map(|piece| area.get(piece.clone())));
        let mut count = 0;
        for (part, slice) in parts.iter_mut().zip(slices) {
            *part = IoSlice::new(slice);
            count += 1;
        }
        sink.write(parts.get(..count)?, self.pieces.len());
        Some(())
    }
}

fn tag_bytes(tci: u16) -> [u8; 4] {
    let [high, low] = tci.to_be_bytes();
    [0x81, 0, high, low]
}

fn write_single(frame: &[u8], flags: u8, tag: Option<u16>, sink: &mut impl Sink) {
    let vnet = VnetHeader {
        flags,
        ..VnetHeader::default()
    }
    .bytes();
    let Some((macs, rest)) = frame.split_at_checked(12) else {
        return;
    };
    match tag.map(tag_bytes) {
        None => sink.write(&[IoSlice::new(&vnet), IoSlice::new(frame)], 1),
        Some(tag) => {
            let parts = [&vnet[..], macs, &tag, rest].map(IoSlice::new);
            sink.write(&parts, 1);
        }
    }
}

fn put(to: &mut [u8], at: usize, number: u16) -> Option<()> {
    to.get_mut(at..at + 2)?.copy_from_slice(&number.to_be_bytes());
    Some(())
}

/// Sum of addresses and protocol.
fn pseudo(frame: &[u8], v6: bool) -> Option<u64> {
    let addresses = if v6 { L3 + 8..L3 + 40 } else { L3 + 12..L3 + 20 };
    Some(sum(frame.get(addresses)?) + word(6))
}

fn classify(frame: &[u8]) -> Class {
    look(frame).unwrap_or(Class::Unclear)
}

/// `None`: not clear what it is.
fn look(frame: &[u8]) -> Option<Class> {
    let kind = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
    let ip = frame.get(L3..)?;
    let (v6, l4, ip_len) = match kind {
        0x0800 => {
            let len = usize::from(u16::from_be_bytes(*ip.get(2..)?.first_chunk()?));
            let fragment = u16::from_be_bytes(*ip.get(6..)?.first_chunk()?) & 0x3fff != 0;
            match (*ip.first()?, fragment, *ip.get(9)?) {
                (0x45, false, 6) => (false, L3 + 20, len),
                (0x45, false, _) => return Some(Class::Other),
                _ => return None,
            }
        }
        0x86dd => match *ip.get(6)? {
            6 => (
                true,
                L3 + 40,
                40 + usize::from(u16::from_be_bytes(*ip.get(4..)?.first_chunk()?)),
            ),
            // UDP and ICMP.
            17 | 58 => return Some(Class::Other),
            _ => return None,
        },
        // ARP.
        0x0806 => return Some(Class::Other),
        _ => return None,
    };
    let tcp = frame.get(l4..)?;
    let headers = l4 + usize::from(tcp.get(12)? >> 4) * 4;
    let flags = *tcp.get(13)?;
    let payload = frame.len().checked_sub(headers)?;
    let plain = ip_len == frame.len() - L3
        && headers >= l4 + 20
        && payload > 0
        && flags & FIN_SYN_RST_URG_ECE_CWR == 0
        && flags & ACK != 0
        && ip.first()? >> 4 == if v6 { 6 } else { 4 };
    if !plain || !checksums_right(frame, v6, l4)? {
        return Some(Class::Tcp);
    }
    Some(Class::Segment(Segment {
        headers,
        l4,
        v6,
        seq: u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?),
        push: flags & PSH != 0,
        payload,
    }))
}

fn checksums_right(frame: &[u8], v6: bool, l4: usize) -> Option<bool> {
    let tcp = frame.get(l4..)?;
    let ip = v6 || fold(sum(frame.get(L3..l4)?)) == 0xffff;
    Some(ip && fold(pseudo(frame, v6)? + word(u16::try_from(tcp.len()).ok()?) + sum(tcp)) == 0xffff)
}
