//! One counter for every verdict and every reason to drop.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Packets by verdict and by drop reason; one copy for each CPU.
        #[repr(C)]
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

            /// Adds another CPU's counters.
            pub fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.wrapping_add(other.$name);)+
            }
        }
    };
}

counters! {
    /// From a container straight to a container on this host.
    local,
    /// From a container into VXLAN, header written in BPF.
    encap,
    /// From a container into the VXLAN device (ARP and other frames that are not IP).
    encap_device,
    /// From a container to the bridge.
    to_bridge,
    /// From the underlay straight into a container.
    decap,
    /// From the VXLAN device straight into a container.
    decap_device,
    /// From the underlay up the host's stack to the VXLAN device.
    to_stack,
    /// From the VXLAN device or sleeve to the bridge.
    bridge_in,
    /// For another peer, sent on by us.
    relay,
    /// For another peer, sent on by us in XDP.
    xdp_relay,
    /// From the bridge to one known peer.
    bridge_out,
    /// From the bridge to all: floods begun here.
    flood,
    /// Floods of other peers that we passed on.
    flood_relay,
    /// Copies made for floods.
    flood_copies,
    /// Floods from another neighbour than the tree of their origin says: for this host only.
    flood_astray,
    /// To a peer by sleeve.
    to_sleeve,
    /// From sleeve straight into a container.
    from_sleeve,
    /// For another peer, from the fast path on to sleeve.
    relay_sleeve,
    /// Copies of floods handed to sleeve, which makes more of them as needed.
    flood_sleeve,
    /// Heartbeats handed to the controller.
    heartbeat,
    /// "Fragmentation needed" or "packet too big" sent to a container.
    too_big,
    /// MAC addresses learnt.
    learnt,
    /// MAC addresses that were elsewhere before.
    moved,
    /// Dropped: VXLAN from an address that is no neighbour's.
    drop_unknown_sender,
    /// Dropped by XDP: likewise.
    drop_xdp_unknown_sender,
    /// Dropped: the source peer of the VNI is not known.
    drop_unknown_source,
    /// Dropped: it claims to come from ourselves.
    drop_own_source,
    /// Dropped: no way to the destination peer.
    drop_no_route,
    /// Dropped: it would go back to where it came from.
    drop_returning,
    /// Dropped: relayed too often.
    drop_ttl,
    /// Dropped: longer than the path allows, and nobody to tell.
    drop_too_big,
    /// Dropped: no valid VXLAN header or inner frame.
    drop_malformed,
    /// Dropped: source MAC is zero or a group address.
    drop_bad_source_mac,
    /// Dropped: a container used another source MAC than its own.
    drop_spoofed_mac,
    /// Dropped: a container used an IPv4 address that it was not given, or one that cannot be read.
    drop_spoofed_ip,
    /// Dropped: spanning tree frames stay on their host.
    drop_spanning_tree,
    /// Dropped: flooded by the bridge though its destination is on this host.
    drop_local_destination,
    /// Dropped: the overlay is stopped.
    drop_stopped,
    /// Dropped: the ring to the controller was full.
    drop_events_full,
    /// Dropped: a helper of the kernel refused.
    drop_error,
    /// The table of MAC addresses was full: not learnt.
    macs_full,
}
