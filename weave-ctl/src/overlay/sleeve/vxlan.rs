//! Frames that a relay takes from sleeve to the fast path: VXLAN written by hand (wire.md 8.1, 8.4).
//! One message each, as the kernel segments only packets that have a checksum.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::sync::Arc;

use super::Hop;
use super::shared::Common;
use super::socket::{MAX_MESSAGES, Message};

/// Bytes of the VXLAN header.
const HEADER: usize = 8;
/// Longest UDP payload.
const MAX: usize = 65507;

/// VXLAN packets of one batch.
pub struct VxlanOut {
    common: Arc<Common>,
    buffer: Vec<u8>,
    packets: Vec<(SocketAddrV4, Ipv4Addr, Range<usize>)>,
}

impl VxlanOut {
    /// Nothing yet.
    #[must_use]
    pub fn new(common: Arc<Common>) -> Self {
        Self {
            common,
            buffer: Vec::new(),
            packets: Vec::new(),
        }
    }

    /// Room for a frame of `len` bytes. `None` for a hop of another kind, or if it is too long.
    pub fn frame(&mut self, hop: Hop, vni: u32, len: usize) -> Option<&mut [u8]> {
        let Hop::Vxlan { remote, local } = hop else {
            return None;
        };
        if HEADER + len > MAX {
            self.common.cells.drop_too_big.count();
            return None;
        }
        if self.packets.len() >= MAX_MESSAGES {
            self.flush();
        }
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[8, 0, 0, 0]);
        self.buffer.extend_from_slice(&(vni << 8).to_be_bytes());
        self.buffer.resize(start + HEADER + len, 0);
        self.packets.push((remote, local, start..self.buffer.len()));
        self.buffer.get_mut(start + HEADER..)
    }

    /// Sends everything.
    pub fn flush(&mut self) {
        if self.packets.is_empty() {
            return;
        }
        let cells = &self.common.cells;
        let messages: Vec<_> = self
            .packets
            .iter()
            .map(|(remote, local, range)| Message {
                remote: *remote,
                local: *local,
                contents: self.buffer.get(range.clone()).unwrap_or_default(),
                segment: None,
            })
            .collect();
        let mut rest = messages.as_slice();
        while !rest.is_empty() {
            // The one that the kernel refuses is left out, and the others follow.
            let done = match self.common.sockets.vxlan.send(rest) {
                Ok(sent) => {
                    cells.sent_packets.add(sent as u64);
                    sent.max(1)
                }
                Err(error) => {
                    match error.raw_os_error() {
                        Some(libc::EMSGSIZE) => cells.drop_path_mtu.count(),
                        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => cells.drop_busy.count(),
                        _ => cells.drop_send_error.count(),
                    }
                    1
                }
            };
            rest = rest.get(done..).unwrap_or_default();
        }
        self.packets.clear();
        self.buffer.clear();
    }
}
