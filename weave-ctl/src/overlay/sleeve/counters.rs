//! One counter for every verdict and every reason to drop, for each thread its own.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Frames (where not said otherwise) by verdict and by drop reason.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// The counters' names, in the order of [`Counters::values`].
            pub const NAMES: [&'static str; { [$(stringify!($name)),+].len() }] = [$(stringify!($name)),+];

            /// All values, in the order of [`Counters::NAMES`].
            #[must_use]
            pub fn values(&self) -> [u64; Self::NAMES.len()] {
                [$(self.$name),+]
            }
        }

        /// One thread's counters: written by it alone, read by others.
        #[derive(Debug, Default)]
        pub struct Cells {
            $($(#[doc = $doc])+ pub $name: Cell,)+
        }

        impl Cells {
            /// Adds what has been counted to a total.
            pub fn add_to(&self, total: &mut Counters) {
                $(total.$name = total.$name.wrapping_add(self.$name.get());)+
            }
        }
    };
}

/// A number that one thread counts up.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// One more.
    #[inline]
    pub fn count(&self) {
        self.add(1);
    }

    /// So many more.
    #[inline]
    pub fn add(&self, more: u64) {
        // There is one writer only: cheaper than an atomic addition.
        self.0.store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    /// The number.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

counters! {
    /// Frames of containers, read from the TAP; a super-packet counts as one.
    captured,
    /// Frames put into packets.
    sent_frames,
    /// UDP packets sent.
    sent_packets,
    /// System calls that sent them.
    sent_batches,
    /// UDP packets received.
    received_packets,
    /// Frames in them.
    received_frames,
    /// Frames written to the TAP; coalesced ones count as one.
    injected,
    /// TCP segments that became part of a larger frame.
    coalesced,
    /// Frames of other peers for other peers, sent on.
    relayed,
    /// Of these, sent on by VXLAN.
    relayed_vxlan,
    /// Copies made for floods.
    flood_copies,
    /// Floods from another neighbour than the tree of their origin says: for this host only.
    flood_astray,
    /// Frames cut into IP fragments by us.
    fragmented,
    /// "Fragmentation needed" sent to a container.
    too_big,
    /// Special frames handed to the controller.
    special,
    /// MAC addresses that were elsewhere before.
    moved,
    /// Dropped from the TAP: not what a kernel hands out.
    drop_malformed_capture,
    /// Dropped: spanning tree frames stay on their host.
    drop_spanning_tree,
    /// Dropped: the bridge flooded it though its destination is on this host.
    drop_local_destination,
    /// Dropped: source MAC is zero or a group address.
    drop_bad_source_mac,
    /// Dropped: no way to the destination peer.
    drop_no_route,
    /// Dropped: the neighbour's UDP address is not known yet.
    drop_no_contact,
    /// Dropped: longer than the path allows, and nobody to tell.
    drop_too_big,
    /// Packets dropped: the kernel says that the path is narrower.
    drop_path_mtu,
    /// Packets dropped: the kernel's queues are full.
    drop_busy,
    /// Packets dropped: the kernel refused to send.
    drop_send_error,
    /// Packets dropped: sequence numbers used up.
    drop_exhausted,
    /// Packets dropped: too short, or records that do not add up.
    drop_malformed,
    /// Packets dropped: from nobody we are connected with.
    drop_unknown_sender,
    /// Frames and packets dropped: in clear, and not from the neighbour's address.
    drop_wrong_source,
    /// Packets dropped: not sealed with the connection's key.
    drop_forged,
    /// Packets dropped: seen before.
    drop_replay,
    /// Dropped: source or destination peer is not known.
    drop_unknown_peer,
    /// Dropped: it claims to come from ourselves.
    drop_own_source,
    /// Dropped: it would go back to where it came from.
    drop_returning,
    /// Dropped: special frames that are not for us from our neighbour, or damaged.
    drop_special,
    /// Special frames dropped: more than any neighbour has reason to send.
    drop_special_rate,
    /// Dropped: a peer has no short ID, which VXLAN needs.
    drop_no_short_id,
    /// Dropped: the TAP did not take it.
    drop_inject,
}

/// Sleeve's traffic with one neighbour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// UDP packets sent.
    pub packets_out: u64,
    /// UDP payload sent, bytes.
    pub bytes_out: u64,
    /// UDP packets received.
    pub packets_in: u64,
    /// UDP payload received, bytes.
    pub bytes_in: u64,
}

/// [`Traffic`] while it is counted, by all threads.
#[derive(Debug, Default)]
pub struct TrafficCells {
    packets_out: AtomicU64,
    bytes_out: AtomicU64,
    packets_in: AtomicU64,
    bytes_in: AtomicU64,
}

impl TrafficCells {
    /// Counts what was sent.
    pub fn sent(&self, packets: u64, bytes: u64) {
        self.packets_out.fetch_add(packets, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts what was received.
    pub fn received(&self, packets: u64, bytes: u64) {
        self.packets_in.fetch_add(packets, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The numbers.
    #[must_use]
    pub fn get(&self) -> Traffic {
        Traffic {
            packets_out: self.packets_out.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            packets_in: self.packets_in.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
        }
    }
}
