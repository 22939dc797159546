//! Sends frames on their way to the next hop: which path, what if they are too long (wire.md 6.8).

use std::io::IoSlice;
use std::sync::Arc;

use super::fragment::{self, Kind};
use super::icmp::{self, IPV6_MIN_MTU};
use super::outbox::{Ends, Outbox};
use super::segment::{Frames, VnetHeader};
use super::shared::Common;
use super::snapshot::{Link, Snapshot};
use super::tap::Tap;
use super::{FrameSource, Hop, Limits};

/// Ethernet header, bytes.
const ETHERNET: usize = 14;

/// What happens to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Df,
    Fragmenting,
    /// Its sender is told.
    TooBig,
    Drop,
    /// In IP fragments made by us.
    Cut,
}

/// How a frame of `len` bytes travels (wire.md 6.8).
fn way(kind: Kind, len: usize, limits: Limits, flooded: bool) -> Way {
    let room = |mtu: u16| len <= usize::from(mtu) + ETHERNET;
    let fits = room(limits.mtu);
    match kind {
        Kind::Ipv4 { df: true } if fits => Way::Df,
        Kind::Ipv4 { df: true } if flooded => Way::Drop,
        Kind::Ipv4 { df: true } => Way::TooBig,
        Kind::Ipv4 { df: false } if limits.fragmentation => Way::Fragmenting,
        Kind::Ipv4 { df: false } if fits => Way::Df,
        Kind::Ipv4 { df: false } => Way::Cut,
        // The original sends it anyway, to be lost (wire.md W17).
        Kind::Ipv6 if !room(limits.mtu.max(IPV6_MIN_MTU)) && !flooded => Way::TooBig,
        Kind::Ipv6 | Kind::Other => Way::Fragmenting,
    }
}

/// One thread's way out.
pub struct Forward {
    /// What the thread has at hand.
    pub common: Arc<Common>,
    tap: Arc<Tap>,
    outbox: Outbox,
    scratch: Vec<u8>,
    piece: Vec<u8>,
}

impl Forward {
    /// With nothing waiting.
    #[must_use]
    pub fn new(common: Arc<Common>, tap: Arc<Tap>) -> Self {
        let outbox = Outbox::new(Arc::clone(&common));
        Self {
            common,
            tap,
            outbox,
            scratch: Vec::new(),
            piece: Vec::new(),
        }
    }

    /// Sends what has been gathered.
    pub fn flush(&mut self) {
        self.outbox.flush();
    }

    /// To one peer, by the first hop on the way there.
    pub fn unicast(&mut self, snapshot: &Snapshot, ends: Ends, frames: &Frames<'_>) {
        match snapshot.tables.unicast.get(&ends.dst) {
            Some(hop) => self.send(snapshot, *hop, ends, frames, false),
            None => self.common.cells.drop_no_route.count(),
        }
    }

    /// To all next hops of the tree of `ends.src`, but for the neighbour it came from (`ends.dst`
    /// when that is not ourselves).
    pub fn flood(&mut self, snapshot: &Snapshot, ends: Ends, frames: &Frames<'_>) {
        let Some(tree) = snapshot.tables.floods.get(&ends.src) else {
            return;
        };
        for (neighbour, hop) in &tree.hops {
            // BPF has served the fast path.
            let ours = self.common.source == FrameSource::Bridge || matches!(hop, Hop::Sleeve(_));
            if ours && *neighbour != ends.dst {
                self.common.cells.flood_copies.count();
                let ends = Ends {
                    src: ends.src,
                    dst: *neighbour,
                };
                self.send(snapshot, *hop, ends, frames, true);
            }
        }
    }

    /// By one hop.
    pub fn send(&mut self, snapshot: &Snapshot, hop: Hop, ends: Ends, frames: &Frames<'_>, flooded: bool) {
        match hop {
            Hop::Sleeve(conn) => match snapshot.links.get(&conn) {
                Some(link) => self.by_sleeve(snapshot, link, ends, frames, flooded),
                None => self.common.cells.drop_no_route.count(),
            },
            Hop::Vxlan { .. } => {
                let id = |name| snapshot.tables.ids.get(&name).map(|id| u32::from(*id));
                let Some((src, dst)) = id(ends.src).zip(id(ends.dst)) else {
                    return self.common.cells.drop_no_short_id.count();
                };
                for index in 0..frames.count() {
                    if let Some(out) = self.outbox.vxlan(hop, dst << 12 | src, frames.len(index)) {
                        frames.write(index, out);
                        self.common.cells.relayed_vxlan.count();
                    }
                }
            }
        }
    }

    fn by_sleeve(
        &mut self,
        snapshot: &Snapshot,
        link: &Arc<Link>,
        ends: Ends,
        frames: &Frames<'_>,
        flooded: bool,
    ) {
        let kind = fragment::kind(frames.head());
        let limits = link.limits();
        for index in 0..frames.count() {
            let len = frames.len(index);
            let chosen = way(kind, len, limits, flooded);
            match chosen {
                Way::Df | Way::Fragmenting => {
                    let Some(out) = self.outbox.frame(link, chosen == Way::Df, ends, len) else {
                        return;
                    };
                    frames.write(index, out);
                }
                Way::Drop => self.common.cells.drop_too_big.count(),
                Way::TooBig | Way::Cut => {
                    let mut frame = std::mem::take(&mut self.scratch);
                    frame.resize(len, 0);
                    frames.write(index, &mut frame);
                    if chosen == Way::Cut {
                        self.cut(link, ends, &frame);
                    } else {
                        self.too_big(snapshot, ends, &frame, limits.mtu);
                    }
                    self.scratch = frame;
                    if chosen == Way::TooBig {
                        return;
                    }
                }
            }
        }
    }

    fn cut(&mut self, link: &Arc<Link>, ends: Ends, frame: &[u8]) {
        let outbox = &mut self.outbox;
        let pieces = fragment::ipv4(frame, link.limits().mtu, &mut self.piece, |piece| {
            if let Some(out) = outbox.frame(link, true, ends, piece.len())
                && out.len() == piece.len()
            {
                out.copy_from_slice(piece);
            }
        });
        match pieces {
            0 => self.common.cells.drop_too_big.count(),
            _ => self.common.cells.fragmented.count(),
        }
    }

    /// Sees to a frame for this host that is longer than its containers take: the bridge would drop it
    /// without a word. True if that is so, and nothing more is to be done with it here.
    pub fn shorten(&mut self, snapshot: &Snapshot, ends: Ends, frame: &[u8], tag: Option<u16>) -> bool {
        let mtu = snapshot.tables.mtu;
        if mtu == 0 || frame.len() <= usize::from(mtu) + ETHERNET {
            return false;
        }
        match fragment::kind(frame) {
            Kind::Ipv4 { df: false } => {
                let mut piece = std::mem::take(&mut self.piece);
                let pieces = fragment::ipv4(frame, mtu, &mut piece, |piece| self.inject(piece, tag));
                self.piece = piece;
                match pieces {
                    0 => self.common.cells.drop_too_big.count(),
                    _ => self.common.cells.fragmented.count(),
                }
            }
            Kind::Ipv6 if mtu < IPV6_MIN_MTU => return false,
            Kind::Ipv4 { df: true } | Kind::Ipv6 => self.too_big(snapshot, ends, frame, mtu),
            Kind::Other => return false,
        }
        true
    }

    /// The answer is a frame from the destination peer to the source peer.
    fn too_big(&mut self, snapshot: &Snapshot, ends: Ends, frame: &[u8], mtu: u16) {
        let Some(answer) = icmp::too_big(frame, mtu) else {
            return self.common.cells.drop_too_big.count();
        };
        self.common.cells.too_big.count();
        let back = Ends {
            src: ends.dst,
            dst: ends.src,
        };
        if back.dst == self.common.own {
            let tag = self.tag(snapshot, back.src);
            self.inject(&answer, tag);
        } else {
            self.unicast(snapshot, back, &Frames::single(&answer));
        }
    }

    /// What marks frames of a peer on the TAP: its short ID, for BPF.
    #[must_use]
    pub fn tag(&self, snapshot: &Snapshot, src: crate::mesh::name::PeerName) -> Option<u16> {
        match self.common.source {
            FrameSource::Bpf => snapshot.tables.ids.get(&src).copied().filter(|id| *id < 4096),
            FrameSource::Bridge => None,
        }
    }

    /// Writes one frame to the TAP.
    fn inject(&self, frame: &[u8], tag: Option<u16>) {
        let vnet = VnetHeader::default().bytes();
        let Some((macs, rest)) = frame.split_at_checked(12) else {
            return;
        };
        let tag = tag
            .map(|tci| [[0x81, 0], tci.to_be_bytes()].concat())
            .unwrap_or_default();
        match self.tap.write(&[&vnet[..], macs, &tag, rest].map(IoSlice::new)) {
            Ok(()) => self.common.cells.injected.count(),
            Err(_) => self.common.cells.drop_inject.count(),
        }
    }
}
