//! From the TAP to UDP: one thread for each queue.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use weave_common::SleevePrefix;

use super::FrameSource;
use super::forward::Forward;
use super::macs::{Macs, Where};
use super::outbox::Ends;
use super::segment::{Frames, VnetHeader};
use super::snapshot::{Reader, Snapshot};
use super::socket::wait;
use super::tap::Tap;
use crate::mesh::Now;

/// Bytes of the longest read: header, prefix, tag, and a super-packet.
const READ: usize = 80 << 10;
/// Reads before what has been gathered is sent.
const BATCH: usize = 64;
/// Bytes likewise.
const BATCH_BYTES: usize = 512 << 10;

/// How often old MAC addresses are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// Destination of spanning tree frames.
const SPANNING_TREE: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];
/// Bytes of [`SleevePrefix`].
const PREFIX: usize = size_of::<SleevePrefix>();

/// The thread's state.
pub struct Outgoing {
    tap: Arc<Tap>,
    forward: Forward,
    reader: Reader,
    macs: Arc<Macs>,
    swept: Now,
}

impl Outgoing {
    /// Before its thread runs.
    #[must_use]
    pub fn new(tap: Arc<Tap>, forward: Forward, reader: Reader, macs: Arc<Macs>) -> Self {
        Self {
            tap,
            forward,
            reader,
            macs,
            swept: Now::ZERO,
        }
    }

    /// Moves frames until `stop` is closed. An error means that the TAP is gone.
    pub fn run(mut self, stop: BorrowedFd<'_>) -> io::Result<()> {
        let mut buffer = vec![0; READ];
        loop {
            let [_, stopped] = wait([self.tap.as_fd(), stop])?;
            if stopped {
                return Ok(());
            }
            self.batch(&mut buffer)?;
        }
    }

    fn batch(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let snapshot = self.reader.latest();
        let mut bytes = 0;
        let mut result = Ok(());
        for _ in 0..BATCH {
            match self.tap.read(buffer) {
                Ok(len) => {
                    bytes += len;
                    if let Some(data) = buffer.get_mut(..len) {
                        self.captured(&snapshot, data);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            if bytes > BATCH_BYTES {
                break;
            }
        }
        self.forward.flush();
        let now = self.forward.common.now();
        if now.saturating_sub(self.swept) >= SWEEP {
            self.swept = now;
            self.macs.sweep(now);
        }
        result
    }

    fn captured(&mut self, snapshot: &Snapshot, data: &mut [u8]) {
        let common = Arc::clone(&self.forward.common);
        common.cells.captured.count();
        let Some((mut header, data)) = VnetHeader::split(data) else {
            return common.cells.drop_malformed_capture.count();
        };
        let prefix = match common.source {
            FrameSource::Bpf => Prefix::read(data),
            FrameSource::Bridge => None,
        };
        let frame = match prefix {
            None => Some(data),
            Some(_) => {
                header.csum_start = header.csum_start.saturating_sub(PREFIX as u16);
                without_prefix(data)
            }
        };
        let Some(frames) = frame.and_then(|frame| Frames::new(header, frame).ok()) else {
            return common.cells.drop_malformed_capture.count();
        };
        match prefix {
            Some(prefix) => self.as_told(snapshot, prefix, &frames),
            None => self.as_learnt(snapshot, &frames),
        }
    }

    /// BPF has decided.
    fn as_told(&mut self, snapshot: &Snapshot, prefix: Prefix, frames: &Frames<'_>) {
        let own = self.forward.common.own;
        let peer = |id| snapshot.tables.by_id.get(&id).copied();
        let Some((src, dst)) = peer(prefix.src).zip(peer(prefix.dst)) else {
            return self.forward.common.cells.drop_unknown_peer.count();
        };
        let ends = Ends { src, dst };
        if dst == own {
            self.forward.flood(snapshot, ends, frames);
        } else {
            self.forward.unicast(snapshot, ends, frames);
        }
    }

    /// By the MAC cache (wire.md 6.9, "Captured locally").
    fn as_learnt(&mut self, snapshot: &Snapshot, frames: &Frames<'_>) {
        let cells = &self.forward.common.cells;
        let own = self.forward.common.own;
        let Some((dst_mac, src_mac)) = macs(frames.head()) else {
            return cells.drop_malformed_capture.count();
        };
        if src_mac == [0; 6] || src_mac[0] & 1 != 0 {
            return cells.drop_bad_source_mac.count();
        }
        if self
            .macs
            .learn_local(src_mac, self.forward.common.now())
            .is_some()
        {
            cells.moved.count();
        }
        if dst_mac == SPANNING_TREE {
            return cells.drop_spanning_tree.count();
        }
        match self.macs.lookup(dst_mac) {
            Some(Where::Local) => cells.drop_local_destination.count(),
            Some(Where::Peer(dst)) => self.forward.unicast(snapshot, Ends { src: own, dst }, frames),
            None => self.forward.flood(snapshot, Ends { src: own, dst: own }, frames),
        }
    }
}

/// Destination and source address.
#[must_use]
pub fn macs(frame: &[u8]) -> Option<([u8; 6], [u8; 6])> {
    let (dst, rest) = frame.split_first_chunk::<6>()?;
    Some((*dst, *rest.first_chunk()?))
}

/// What BPF says of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Prefix {
    dst: u16,
    src: u16,
}

impl Prefix {
    fn read(data: &[u8]) -> Option<Self> {
        let [m0, m1, _, _, d0, d1, s0, s1] = *data.first_chunk::<PREFIX>()?;
        ([m0, m1] == SleevePrefix::MAGIC).then_some(Self {
            dst: u16::from_ne_bytes([d0, d1]),
            src: u16::from_ne_bytes([s0, s1]),
        })
    }
}

/// The frame behind the prefix. The TAP may have put the frame's tag 4 bytes behind the start of the
/// frame; it belongs 12 bytes behind.
fn without_prefix(data: &mut [u8]) -> Option<&mut [u8]> {
    let flags = u16::from_ne_bytes(*data.get(2..)?.first_chunk()?);
    let frame = data.get_mut(PREFIX..)?;
    if flags & SleevePrefix::TAGGED != 0 {
        frame.get_mut(4..16)?.rotate_left(4);
    }
    Some(frame)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn prefix_and_tag() {
        let frame: Vec<u8> = (0..40).collect();
        for tagged in [false, true] {
            let flags = if tagged { SleevePrefix::TAGGED } else { 0 };
            let head = [flags, 0x0abc, 0x0123].map(u16::to_ne_bytes).concat();
            let mut data = [&SleevePrefix::MAGIC[..], &head, &frame].concat();
            let mut expected = frame.clone();
            if tagged {
                // The tag goes behind 12 bytes of what it knows as the frame: prefix and 4 bytes more.
                data.splice(12..12, [0x81, 0, 0, 7]);
                expected.splice(12..12, [0x81, 0, 0, 7]);
            }
            let prefix = Prefix::read(&data).unwrap();
            assert_eq!(
                prefix,
                Prefix {
                    dst: 0x0abc,
                    src: 0x0123
                }
            );
            assert_eq!(without_prefix(&mut data).unwrap(), expected);
        }
        assert_eq!(Prefix::read(&frame), None);
        for len in 0..24 {
            let mut data = [&SleevePrefix::MAGIC[..], &1u16.to_ne_bytes(), &[0; 20]].concat();
            data.truncate(len);
            assert!(Prefix::read(&data).is_none() || without_prefix(&mut data).is_none());
        }
    }
}
