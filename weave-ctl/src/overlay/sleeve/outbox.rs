//! Packets in the making: frames for one neighbour and path are gathered while a batch of frames is
//! worked off, laid out so that one system call sends many packets (wire.md 6.8, "Aggregation").

use std::io;
use std::sync::Arc;

use super::packet::{MAX_PAYLOAD, RECORD_HEADER, packet_overhead, record_header};
use super::shared::Common;
use super::snapshot::Link;
use super::socket::{MAX_SEGMENTS, Message, path_mtu};
use super::{Arrived, Hop};
use crate::mesh::name::PeerName;

/// Most frames in one packet.
const MAX_FRAMES: u32 = 100;
/// Most neighbours and paths at a time, each with a buffer of 64 KB.
const MAX_PACKERS: usize = 32;

/// A frame's record: who sent it and who is to have it.
#[derive(Clone, Copy)]
pub struct Ends {
    /// Captured it.
    pub src: PeerName,
    /// Is to deliver it.
    pub dst: PeerName,
}

/// What one thread is about to send.
pub struct Outbox {
    common: Arc<Common>,
    packers: Vec<Packer>,
    spare: Vec<Vec<u8>>,
    vxlan: super::vxlan::VxlanOut,
}

/// Packets to one neighbour on one path.
struct Packer {
    link: Arc<Link>,
    df: bool,
    /// Finished packets, all of `segment` bytes, then the one that still takes frames.
    buffer: Vec<u8>,
    /// Where that one starts.
    start: usize,
    /// Frames in it.
    frames: u32,
    finished: usize,
    segment: usize,
}

impl Outbox {
    /// An empty one for one thread.
    #[must_use]
    pub fn new(common: Arc<Common>) -> Self {
        let vxlan = super::vxlan::VxlanOut::new(Arc::clone(&common));
        Self {
            common,
            packers: Vec::new(),
            spare: Vec::new(),
            vxlan,
        }
    }

    /// Room for a frame of `len` bytes, to be filled at once. `None`: it is too long, or nobody knows
    /// the neighbour's address; that is counted.
    #[inline]
    pub fn frame(&mut self, link: &Arc<Link>, df: bool, ends: Ends, len: usize) -> Option<&mut [u8]> {
        let index = self.packer(link, df)?;
        let packer = self.packers.get_mut(index)?;
        packer.frame(&self.common, ends, len)
    }

    /// Adds a frame that goes by VXLAN.
    pub fn vxlan(&mut self, hop: Hop, vni: u32, len: usize) -> Option<&mut [u8]> {
        self.vxlan.frame(hop, vni, len)
    }

    fn packer(&mut self, link: &Arc<Link>, df: bool) -> Option<usize> {
        let same = |packer: &Packer| packer.df == df && Arc::ptr_eq(&packer.link, link);
        if let Some(index) = self.packers.iter().position(same) {
            return Some(index);
        }
        if link.state.remote.is_none() {
            self.common.cells.drop_no_contact.count();
            return None;
        }
        if self.packers.len() >= MAX_PACKERS {
            self.flush();
        }
        let buffer = self.spare.pop().unwrap_or_default();
        self.packers.push(Packer {
            link: Arc::clone(link),
            df,
            buffer,
            start: 0,
            frames: 0,
            finished: 0,
            segment: 0,
        });
        Some(self.packers.len() - 1)
    }

    /// Sends everything.
    pub fn flush(&mut self) {
        for packer in &mut self.packers {
            packer.finish(&self.common);
        }
        for df in [true, false] {
            self.send_together(df);
        }
        for mut packer in self.packers.drain(..) {
            packer.send(&self.common, packer.buffer.len());
            packer.buffer.clear();
            self.spare.push(packer.buffer);
        }
        self.vxlan.flush();
    }

    /// Sends what waits for several neighbours in one system call. What the kernel does not take
    /// stays: each is then tried by itself, which tells whose fault it is.
    fn send_together(&mut self, df: bool) {
        let common = &self.common;
        let socket = common.socket(df);
        let waits = |packer: &&mut Packer| {
            packer.df == df && !packer.buffer.is_empty() && (packer.finished <= 1 || socket.gso())
        };
        let mut waiting: Vec<&mut Packer> = self.packers.iter_mut().filter(waits).collect();
        if waiting.len() < 2 {
            return;
        }
        let messages: Vec<Message<'_>> = waiting.iter().filter_map(|packer| packer.message()).collect();
        // All have an address, or there would be no packer; should one be missing, each goes alone.
        if messages.len() != waiting.len() {
            return;
        }
        let Ok(sent) = socket.send(&messages) else {
            return;
        };
        common.cells.sent_batches.count();
        for packer in waiting.iter_mut().take(sent) {
            packer.sent(common);
        }
    }
}

impl Packer {
    /// All that is finished, as one message.
    fn message(&self) -> Option<Message<'_>> {
        Some(Message {
            remote: self.link.state.remote?,
            local: self.link.state.local,
            contents: &self.buffer,
            segment: match self.finished {
                0 | 1 => None,
                _ => Some(u16::try_from(self.segment).ok()?),
            },
        })
    }

    /// [`Packer::message`] was sent.
    fn sent(&mut self, common: &Common) {
        let count = self.buffer.len().div_ceil(self.segment.max(1)) as u64;
        common.cells.sent_packets.add(count);
        self.link.shared.traffic.sent(count, self.buffer.len() as u64);
        self.buffer.clear();
        self.start = 0;
        self.finished = 0;
    }

    fn frame(&mut self, common: &Common, ends: Ends, len: usize) -> Option<&mut [u8]> {
        let max_payload = usize::from(self.link.limits().max_payload);
        let record = RECORD_HEADER + len;
        let overhead = packet_overhead(self.link.sealed());
        if self.frames > 0 {
            let packet = self.buffer.len() - self.start;
            let full = self.frames >= MAX_FRAMES
                || packet + record > max_payload
                || self.buffer.len() + record > usize::from(MAX_PAYLOAD);
            if full {
                self.finish(common);
            }
        }
        if self.frames == 0 {
            let alone = if self.df {
                max_payload
            } else {
                usize::from(MAX_PAYLOAD)
            };
            if overhead + record > alone {
                common.cells.drop_too_big.count();
                return None;
            }
            // A message has the size limits of a packet.
            let together = self.buffer.len() + overhead + record;
            if together > usize::from(MAX_PAYLOAD) || self.finished >= MAX_SEGMENTS {
                self.send(common, self.start);
            }
            self.start = self.buffer.len();
            self.buffer.extend_from_slice(&common.own.to_bytes());
            self.buffer.resize(self.start + overhead, 0);
        }
        let header = record_header(ends.src, ends.dst, u16::try_from(len).ok()?);
        self.buffer.extend_from_slice(&header);
        let at = self.buffer.len();
        self.buffer.resize(at + len, 0);
        self.frames += 1;
        common.cells.sent_frames.count();
        self.buffer.get_mut(at..)
    }

    /// The packet takes no more frames. Sends what must not wait for more packets.
    fn finish(&mut self, common: &Common) {
        if self.frames == 0 {
            return;
        }
        self.frames = 0;
        if let (Some(sealer), Some(packet)) = (&self.link.shared.sealer, self.buffer.get_mut(self.start..))
            && sealer.seal(self.df, packet).is_err()
        {
            common.cells.drop_exhausted.count();
            self.buffer.truncate(self.start);
            return;
        }
        let len = self.buffer.len() - self.start;
        // Only the last packet of a message may be shorter, none may be longer.
        if self.finished > 0 && len > self.segment {
            self.send(common, self.start);
        }
        if self.finished == 0 {
            self.segment = len;
        }
        self.finished += 1;
        self.start = self.buffer.len();
        if len < self.segment || len > usize::from(self.link.limits().max_payload) {
            self.send(common, self.start);
        }
    }

    /// Sends the packets before `end`.
    fn send(&mut self, common: &Common, end: usize) {
        if let Some(packets) = self.buffer.get(..end).filter(|packets| !packets.is_empty()) {
            transmit(common, &self.link, self.df, packets, self.segment);
        }
        self.buffer.drain(..end);
        self.start -= end.min(self.start);
        self.finished = 0;
    }
}

/// Sends packets of `segment` bytes (the last may be shorter) to a neighbour.
fn transmit(common: &Common, link: &Link, df: bool, packets: &[u8], segment: usize) {
    let Some(remote) = link.state.remote else {
        return common.cells.drop_no_contact.count();
    };
    let socket = common.socket(df);
    let count = packets.len().div_ceil(segment.max(1)) as u64;
    let message = |contents, segment| Message {
        remote,
        local: link.state.local,
        contents,
        segment,
    };
    link.shared.traffic.sent(count, packets.len() as u64);
    if count > 1 && socket.gso() {
        let error = match socket.send(&[message(packets, u16::try_from(segment).ok())]) {
            Ok(_) => {
                common.cells.sent_batches.count();
                return common.cells.sent_packets.add(count);
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EIO) => socket.no_gso(),
            // Also what kernels say of packets longer than the path's MTU: one by one tells.
            Some(libc::EINVAL | libc::EMSGSIZE) => {}
            _ => return failed(common, link, df, &error, count),
        }
    }
    for (done, packet) in packets.chunks(segment.max(1)).enumerate() {
        match socket.send(&[message(packet, None)]) {
            Ok(_) => {
                common.cells.sent_batches.count();
                common.cells.sent_packets.count();
            }
            // The others are as long.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                return failed(common, link, df, &error, count - done as u64);
            }
            Err(error) => failed(common, link, df, &error, 1),
        }
    }
}

fn failed(common: &Common, link: &Link, df: bool, error: &io::Error, count: u64) {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => {
            common.cells.drop_path_mtu.add(count);
            if df && link.may_report(common.now(), true) {
                report_path_mtu(common, link);
            }
        }
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => common.cells.drop_busy.add(count),
        _ => common.cells.drop_send_error.add(count),
    }
}

/// Tells the loop how wide the path to a neighbour is.
pub fn report_path_mtu(common: &Common, link: &Link) {
    if let Some(remote) = link.state.remote
        && let Ok(path_mtu) = path_mtu(link.state.local, remote)
    {
        (common.events)(link.conn, Arrived::TooBig { path_mtu });
    }
}
