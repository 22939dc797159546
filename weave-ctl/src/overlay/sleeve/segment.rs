//! From what a TAP hands out (super-packets, checksums left to do) to frames as they are on a wire.

use super::checksum::{fold, sum, word};

/// Bytes of the header that goes with each frame through the TAP (`struct virtio_net_hdr`).
pub const VNET: usize = 10;
/// Ethernet header without tag, bytes.
const ETHERNET: usize = 14;
/// Flag of [`VnetHeader`]: the checksum at `csum_start + csum_offset` covers the pseudo header only.
pub const NEEDS_CSUM: u8 = 1;
/// Flag of [`VnetHeader`]: the checksum has been verified.
pub const DATA_VALID: u8 = 2;
/// Type of [`VnetHeader`]: one frame.
pub const GSO_NONE: u8 = 0;
/// Type of [`VnetHeader`]: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// Type of [`VnetHeader`]: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// Type of [`VnetHeader`]: UDP datagrams of one size.
pub const GSO_UDP_L4: u8 = 5;
/// Flag in the type: the segments but the first have no CWR.
const GSO_ECN: u8 = 0x80;

/// Where the TCP checksum is in its header.
pub const TCP_CHECKSUM: u16 = 16;

/// `struct virtio_net_hdr`, in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// `GSO_*`.
    pub gso_type: u8,
    /// Bytes of all headers; a hint.
    pub hdr_len: u16,
    /// Bytes of payload in each segment.
    pub gso_size: u16,
    /// Where the transport header starts, bytes from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum is, bytes from there.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Takes it off what was read from the TAP.
    #[must_use]
    pub fn split(data: &mut [u8]) -> Option<(Self, &mut [u8])> {
        let (head, frame) = data.split_first_chunk_mut::<VNET>()?;
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *head;
        let header = Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        };
        Some((header, frame))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; VNET] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let rest = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (to, number) in bytes[2..].chunks_exact_mut(2).zip(rest) {
            to.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}

/// Not what a kernel would hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame from the TAP")]
pub struct Malformed;

/// One read from the TAP as the frames it stands for.
#[derive(Debug)]
pub struct Frames<'a> {
    frame: &'a [u8],
    /// `None`: it is one frame, as it stands.
    split: Option<Split>,
}

#[derive(Debug, Clone, Copy)]
struct Split {
    l3: usize,
    l4: usize,
    v6: bool,
    tcp: bool,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of payload per frame, the last may have fewer.
    size: usize,
    count: usize,
    /// Sum of both addresses and the protocol.
    pseudo: u64,
}

/// Offset and type of the network header, behind at most two 802.1Q tags.
#[must_use]
pub fn network(frame: &[u8]) -> Option<(usize, u16)> {
    let mut at = 12;
    for _ in 0..3 {
        let kind = u16::from_be_bytes(*frame.get(at..)?.first_chunk()?);
        if !matches!(kind, 0x8100 | 0x88a8) {
            return Some((at + 2, kind));
        }
        at += 4;
    }
    None
}

impl<'a> Frames<'a> {
    /// Finishes the checksum of a single frame in place.
    pub fn new(header: VnetHeader, frame: &'a mut [u8]) -> Result<Self, Malformed> {
        if frame.len() < ETHERNET {
            return Err(Malformed);
        }
        if header.gso_type == GSO_NONE {
            if header.flags & NEEDS_CSUM != 0 {
                finish_checksum(header, frame).ok_or(Malformed)?;
            }
            return Ok(Self { frame, split: None });
        }
        let split = Split::new(header, frame).ok_or(Malformed)?;
        Ok(Self {
            frame,
            split: Some(split),
        })
    }

    /// One frame that is complete.
    #[must_use]
    pub fn single(frame: &'a [u8]) -> Self {
        Self { frame, split: None }
    }

    /// How many frames.
    #[must_use]
    pub fn count(&self) -> usize {
        self.split.map_or(1, |split| split.count)
    }

    /// Bytes of frame number `index`.
    #[must_use]
    pub fn len(&self, index: usize) -> usize {
        let Some(split) = &self.split else {
            return self.frame.len();
        };
        let start = split.headers + index * split.size;
        split.headers + self.frame.len().saturating_sub(start).min(split.size)
    }

    /// The headers of all of them: what decides on their way.
    #[must_use]
    pub fn head(&self) -> &'a [u8] {
        self.frame
    }

    /// Writes frame number `index` to `out`, which has room for exactly its length.
    #[inline]
    pub fn write(&self, index: usize, out: &mut [u8]) {
        match &self.split {
            None => {
                if out.len() == self.frame.len() {
                    out.copy_from_slice(self.frame);
                }
            }
            // Lengths were checked in `new`.
            Some(split) => {
                let _ = split.write(self.frame, index, out);
            }
        }
    }
}

fn finish_checksum(header: VnetHeader, frame: &mut [u8]) -> Option<()> {
    let start = usize::from(header.csum_start);
    let at = start + usize::from(header.csum_offset);
    let checksum = match !fold(sum(frame.get(start..)?)) {
        0 => 0xffff,
        other => other,
    };
    frame
        .get_mut(at..at + 2)?
        .copy_from_slice(&checksum.to_ne_bytes());
    Some(())
}

impl Split {
    fn new(header: VnetHeader, frame: &[u8]) -> Option<Self> {
        let (l3, kind) = network(frame)?;
        let v6 = match kind {
            0x0800 => false,
            0x86dd => true,
            _ => return None,
        };
        let l4 = usize::from(header.csum_start);
        let tcp = match (header.gso_type & !GSO_ECN, v6) {
            (GSO_TCPV4, false) | (GSO_TCPV6, true) => true,
            (GSO_UDP_L4, _) => false,
            _ => return None,
        };
        if header.flags & NEEDS_CSUM == 0 || l4 < l3 + if v6 { 40 } else { 20 } {
            return None;
        }
        let headers = l4
            + if tcp {
                usize::from(frame.get(l4 + 12)? >> 4) * 4
            } else {
                8
            };
        if headers < l4 + if tcp { 20 } else { 8 } || headers > frame.len() || header.gso_size == 0 {
            return None;
        }
        if !v6 && usize::from(frame.get(l3)? & 15) * 4 != l4 - l3 {
            return None;
        }
        let size = usize::from(header.gso_size);
        let addresses = if v6 { l3 + 8..l3 + 40 } else { l3 + 12..l3 + 20 };
        Some(Self {
            l3,
            l4,
            v6,
            tcp,
            headers,
            size,
            count: (frame.len() - headers).div_ceil(size).max(1),
            pseudo: sum(frame.get(addresses)?) + word(if tcp { 6 } else { 17 }),
        })
    }

    #[inline]
    fn write(&self, frame: &[u8], index: usize, out: &mut [u8]) -> Option<()> {
        let start = self.headers + index * self.size;
        let end = (start + self.size).min(frame.len());
        let payload = frame.get(start..end)?;
        let total = self.headers + payload.len();
        if out.len() != total {
            return None;
        }
        let (head, rest) = out.split_at_mut_checked(self.headers)?;
        head.copy_from_slice(frame.get(..self.headers)?);
        rest.copy_from_slice(payload);

        let (before, l4) = head.split_at_mut_checked(self.l4)?;
        let l3 = before.get_mut(self.l3..)?;
        if self.v6 {
            put(l3, 4, (total - self.l3 - 40) as u16)?;
        } else {
            let id = u16::from_be_bytes(*l3.get(4..)?.first_chunk()?);
            put(l3, 2, (total - self.l3) as u16)?;
            put(l3, 4, id.wrapping_add(index as u16))?;
            put(l3, 10, 0)?;
            let checksum = !fold(sum(l3));
            l3.get_mut(10..12)?.copy_from_slice(&checksum.to_ne_bytes());
        }
        let length = (total - self.l4) as u16;
        let at = if self.tcp {
            self.tcp_header(l4, index)?
        } else {
            put(l4, 4, length)?;
            6
        };
        put(l4, at, 0)?;
        let whole = self.pseudo + word(length) + sum(l4) + sum(rest);
        let checksum = match !fold(whole) {
            0 => 0xffff,
            other => other,
        };
        l4.get_mut(at..at + 2)?.copy_from_slice(&checksum.to_ne_bytes());
        Some(())
    }

    fn tcp_header(&self, l4: &mut [u8], index: usize) -> Option<usize> {
        const FIN_PSH: u8 = 0x09;
        const CWR: u8 = 0x80;
        let seq = u32::from_be_bytes(*l4.get(4..)?.first_chunk()?);
        let seq = seq.wrapping_add((index * self.size) as u32);
        l4.get_mut(4..8)?.copy_from_slice(&seq.to_be_bytes());
        let flags = l4.get_mut(13)?;
        if index + 1 < self.count {
            *flags &= !FIN_PSH;
        }
        if index > 0 {
            *flags &= !CWR;
        }
        Some(usize::from(TCP_CHECKSUM))
    }
}

fn put(to: &mut [u8], at: usize, number: u16) -> Option<()> {
    to.get_mut(at..at + 2)?.copy_from_slice(&number.to_be_bytes());
    Some(())
}
