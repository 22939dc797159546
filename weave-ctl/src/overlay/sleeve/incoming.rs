//! From UDP to the TAP, and on to other peers: one thread for each pair of sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddrV4;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use quinn_udp::RecvMeta;
use weave_common::LEAF_TAG;

use super::coalesce::{Coalescer, Sink};
use super::counters::Cells;
use super::forward::Forward;
use super::macs::{Macs, Where};
use super::outbox::Ends;
use super::outgoing::macs;
use super::packet::{self, Kind, NAME, Record, SEALED_OVERHEAD};
use super::seal::OpenError;
use super::segment::Frames;
use super::snapshot::{Link, Reader, Snapshot};
use super::socket::{Socket, sender, wait};
use super::tap::Tap;
use super::{Arrived, FrameSource, Hop, Special};
use crate::mesh::name::PeerName;

/// Messages received at a time.
const MESSAGES: usize = 16;
/// Bytes of the longest one: many packets in one, or the longest of all.
const MESSAGE: usize = 64 << 10;

/// The thread's state.
pub struct Incoming {
    tap: Arc<Tap>,
    forward: Forward,
    reader: Reader,
    macs: Arc<Macs>,
    coalescer: Coalescer,
    batch: Batch,
}

/// What has been looked up and done in this batch already.
#[derive(Default)]
struct Batch {
    link: Option<Arc<Link>>,
    /// A known peer and its tag.
    known: Option<(PeerName, Option<u16>)>,
    learnt: Option<([u8; 6], PeerName)>,
    /// A local address.
    local: Option<[u8; 6]>,
}

/// May floods of `src` that come by this link go further?
fn on_tree(snapshot: &Snapshot, link: &Link, src: PeerName) -> bool {
    let tree = snapshot.tables.floods.get(&src);
    tree.is_some_and(|tree| tree.from == Some(link.remote))
}

struct TapSink<'a> {
    tap: &'a Tap,
    cells: &'a Cells,
}

impl Sink for TapSink<'_> {
    fn write(&mut self, parts: &[IoSlice<'_>], segments: usize) {
        match self.tap.write(parts) {
            Ok(()) => {
                self.cells.injected.count();
                self.cells.coalesced.add(segments.saturating_sub(1) as u64);
            }
            Err(_) => self.cells.drop_inject.add(segments as u64),
        }
    }
}

impl Incoming {
    /// Before its thread runs.
    #[must_use]
    pub fn new(tap: Arc<Tap>, forward: Forward, reader: Reader, macs: Arc<Macs>) -> Self {
        let (coalescer, batch) = Default::default();
        Self {
            tap,
            forward,
            reader,
            macs,
            coalescer,
            batch,
        }
    }

    /// Moves packets until `stop` is closed.
    pub fn run(mut self, stop: BorrowedFd<'_>) -> io::Result<()> {
        let mut area = vec![0; MESSAGES * MESSAGE];
        let sockets = Arc::clone(&self.forward.common.sockets);
        loop {
            let [df, fragmenting, stopped] = wait([sockets.df.as_fd(), sockets.fragmenting.as_fd(), stop])?;
            if stopped {
                return Ok(());
            }
            for (socket, _) in [(&sockets.df, df), (&sockets.fragmenting, fragmenting)]
                .iter()
                .filter(|s| s.1)
            {
                self.batch(socket, &mut area);
            }
        }
    }

    /// Receives once. Errors are those of earlier packets: the next call goes on.
    fn batch(&mut self, socket: &Socket, area: &mut [u8]) {
        let mut meta = [RecvMeta::default(); MESSAGES];
        let mut chunks = area.chunks_exact_mut(MESSAGE);
        let mut buffers: [IoSliceMut<'_>; MESSAGES] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let Ok(count) = socket.receive(&mut buffers, &mut meta) else {
            return;
        };
        let snapshot = self.reader.latest();
        self.batch = Batch::default();
        for (index, meta) in meta.iter().take(count).enumerate() {
            let start = index * MESSAGE;
            let end = start + meta.len.min(MESSAGE);
            let Some(from) = sender(meta) else { continue };
            let stride = meta.stride.max(1);
            let mut at = start;
            while at < end {
                let range = at..(at + stride).min(end);
                at = range.end;
                self.packet(&snapshot, from, area, range);
            }
        }
        let common = &self.forward.common;
        let mut sink = TapSink {
            tap: &self.tap,
            cells: &common.cells,
        };
        self.coalescer.flush(area, &mut sink);
        self.forward.flush();
    }

    fn packet(&mut self, snapshot: &Snapshot, from: SocketAddrV4, area: &mut [u8], range: Range<usize>) {
        let common = Arc::clone(&self.forward.common);
        let cells = &common.cells;
        cells.received_packets.count();
        let Some(bytes) = area.get_mut(range.clone()) else {
            return;
        };
        let Ok((name, _)) = packet::split(bytes) else {
            return cells.drop_malformed.count();
        };
        let link = match self.batch.link.take().filter(|link| link.remote == name) {
            Some(link) => link,
            None => match snapshot.by_peer.get(&name) {
                Some(link) => Arc::clone(link),
                None => return cells.drop_unknown_sender.count(),
            },
        };
        let mut trusted = true;
        let start = match &link.shared.opener {
            Some(opener) => match opener.open(bytes) {
                Ok(_) => SEALED_OVERHEAD,
                Err(error) => {
                    match error {
                        OpenError::Short => cells.drop_malformed.count(),
                        OpenError::Forged => cells.drop_forged.count(),
                        OpenError::Replay => cells.drop_replay.count(),
                    }
                    return self.batch.link = Some(link);
                }
            },
            None => {
                let address = link.state.remote.map(|remote| *remote.ip());
                trusted = !link.strict_source || address == Some(*from.ip());
                NAME
            }
        };
        link.shared.traffic.received(1, range.len() as u64);
        let area = &*area;
        let records = area.get(range.start + start..range.end).unwrap_or_default();
        for record in packet::records(records) {
            match record {
                Ok(record) => {
                    cells.received_frames.count();
                    self.record(snapshot, &link, from, trusted, record, area);
                }
                Err(_) => cells.drop_malformed.count(),
            }
        }
        self.batch.link = Some(link);
    }

    fn record(
        &mut self,
        snapshot: &Snapshot,
        link: &Arc<Link>,
        from: SocketAddrV4,
        trusted: bool,
        record: Record<'_>,
        area: &[u8],
    ) {
        let common = Arc::clone(&self.forward.common);
        let cells = &common.cells;
        let Record { src, dst, frame } = record;
        let special = match packet::kind(frame) {
            Kind::Data => None,
            Kind::Special(special) => Some(special),
            Kind::Damaged => return cells.drop_special.count(),
        };
        if let Some(special) = special {
            if src != link.remote || dst != common.own {
                return cells.drop_special.count();
            }
            return self.special(link, from, trusted, special);
        }
        if !trusted {
            return cells.drop_wrong_source.count();
        }
        if src == common.own {
            return cells.drop_own_source.count();
        }
        let tag = match self.batch.known {
            Some((known, tag)) if known == src => tag,
            _ => {
                if !snapshot.tables.known.contains(&src) {
                    return cells.drop_unknown_peer.count();
                }
                let leaf = if on_tree(snapshot, link, src) { 0 } else { LEAF_TAG };
                let tag = self.forward.tag(snapshot, src).map(|tag| tag | leaf);
                self.batch.known = Some((src, tag));
                tag
            }
        };
        if dst == common.own {
            self.deliver(snapshot, link, src, tag, frame, area);
        } else {
            self.relay(snapshot, link, Ends { src, dst }, frame);
        }
    }

    fn special(&self, link: &Link, from: SocketAddrV4, trusted: bool, special: Special) {
        let common = &self.forward.common;
        let arrived = match special {
            Special::Heartbeat { conn_uid } => Arrived::Heartbeat { conn_uid, from },
            // A neighbour whose address has changed says so by a heartbeat.
            _ if !trusted => return common.cells.drop_wrong_source.count(),
            Special::FragmentationTest => Arrived::FragmentationTest,
            Special::MtuTest { mtu } => Arrived::MtuTest { mtu },
            Special::MtuProvocation => return,
        };
        if !link.may_report(common.now(), trusted) {
            return common.cells.drop_special_rate.count();
        }
        common.cells.special.count();
        (common.events)(link.conn, arrived);
    }

    fn relay(&mut self, snapshot: &Snapshot, link: &Link, ends: Ends, frame: &[u8]) {
        let cells = &self.forward.common.cells;
        let Some(hop) = snapshot.tables.unicast.get(&ends.dst) else {
            return match snapshot.tables.known.contains(&ends.dst) {
                true => cells.drop_no_route.count(),
                false => cells.drop_unknown_peer.count(),
            };
        };
        let returning = match hop {
            Hop::Sleeve(conn) => snapshot
                .links
                .get(conn)
                .is_some_and(|next| next.remote == link.remote),
            Hop::Vxlan { remote, .. } => link.state.remote.is_some_and(|from| from.ip() == remote.ip()),
        };
        if returning {
            return cells.drop_returning.count();
        }
        cells.relayed.count();
        self.forward
            .send(snapshot, *hop, ends, &Frames::single(frame), false);
    }

    /// For this host, and in bridge mode perhaps for the next (wire.md 6.9).
    fn deliver(
        &mut self,
        snapshot: &Snapshot,
        link: &Link,
        src: PeerName,
        tag: Option<u16>,
        frame: &[u8],
        area: &[u8],
    ) {
        let common = Arc::clone(&self.forward.common);
        let Some((dst_mac, src_mac)) = macs(frame) else {
            return;
        };
        let bridge = common.source == FrameSource::Bridge;
        if src_mac == [0; 6] || src_mac[0] & 1 != 0 {
            return common.cells.drop_bad_source_mac.count();
        }
        // BPF learns from the tag.
        if tag.is_none() && self.batch.learnt != Some((src_mac, src)) {
            if self.macs.learn_remote(src_mac, src, common.now()).is_some() {
                common.cells.moved.count();
            }
            self.batch.learnt = Some((src_mac, src));
        }
        let own = Ends { src, dst: common.own };
        if !self.forward.shorten(snapshot, own, frame, tag) {
            let start = frame.as_ptr().addr().wrapping_sub(area.as_ptr().addr());
            let mut sink = TapSink {
                tap: &self.tap,
                cells: &common.cells,
            };
            self.coalescer
                .push(area, start..start.wrapping_add(frame.len()), tag, &mut sink);
        }
        if !bridge || self.batch.local == Some(dst_mac) {
            return;
        }
        if self.macs.lookup(dst_mac) == Some(Where::Local) {
            self.batch.local = Some(dst_mac);
            return;
        }
        if !on_tree(snapshot, link, src) {
            return common.cells.flood_astray.count();
        }
        let ends = Ends {
            src,
            dst: link.remote,
        };
        self.forward.flood(snapshot, ends, &Frames::single(frame));
    }
}
