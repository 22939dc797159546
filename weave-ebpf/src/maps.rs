//! The maps, filled by the controller (and `MACS` by learning), and what reads them in one line.

use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use weave_common::{
    Config, Counters, EVENT_RING, FloodHops, Heartbeat, MAX_MACS, MAX_PEERS, MAX_SOURCES, MacEntry, MacKey,
    NeighbourTraffic, NextHop, Sender, Source,
};

use crate::packet::Size;

#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

/// MAC -> peer or local port.
#[btf_map]
pub static MACS: HashMap<MacKey, MacEntry, { MAX_MACS as usize }> = HashMap::new();

/// Peer (short ID) -> next hop.
#[btf_map]
pub static PEERS: HashMap<u32, NextHop, { MAX_PEERS as usize }> = HashMap::new();

/// Origin of a flood (short ID) -> where we pass it on.
#[btf_map]
pub static FLOODS: HashMap<u32, FloodHops, { MAX_PEERS as usize }> = HashMap::new();

/// Outer source address -> neighbour.
#[btf_map]
pub static SENDERS: HashMap<[u8; 4], Sender, { MAX_PEERS as usize }> = HashMap::new();

/// Port (interface index) -> who may send from there.
#[btf_map]
pub static SOURCES: HashMap<u32, Source, { MAX_SOURCES as usize }> = HashMap::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

/// Neighbour (short ID) -> 1 once a frame has left for it; the controller sets it back to 0.
#[btf_map]
pub static TRAFFIC: Array<u32, { MAX_PEERS as usize }> = Array::new();

/// Neighbour (short ID) -> what went to it and came from it.
#[btf_map]
pub static NEIGHBOURS: PerCpuArray<NeighbourTraffic, { MAX_PEERS as usize }> = PerCpuArray::new();

#[btf_map]
pub static EVENTS: RingBuf<Heartbeat, { EVENT_RING as usize }> = RingBuf::new();

/// Adds one to a counter of this CPU.
macro_rules! count {
    ($name:ident) => {
        if let Some(counters) = crate::maps::COUNTERS.get_ptr_mut(0) {
            // SAFETY: the slot belongs to this CPU and programs of this kind are not preempted
            // by one another on it.
            unsafe { (*counters).$name += 1 };
        }
    };
}
pub(crate) use count;

/// Who may send from this port; `None`: anybody.
#[inline(always)]
pub fn source(ifindex: u32) -> Option<&'static Source> {
    // SAFETY: as in `mac`.
    unsafe { SOURCES.get(ifindex) }
}

/// Our configuration; `None` only before the controller's first write.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Where a MAC address is.
#[inline(always)]
pub fn mac(address: [u8; 6]) -> Option<&'static MacEntry> {
    // SAFETY: entries are read field by field; one replaced meanwhile is stale, not dangling
    // (BPF hash maps free elements only after an RCU grace period or reuse them in place).
    unsafe { MACS.get(MacKey::new(address)) }
}

/// The next hop towards a peer.
#[inline(always)]
pub fn peer(short_id: u32) -> Option<&'static NextHop> {
    // SAFETY: as in `mac`.
    unsafe { PEERS.get(short_id) }
}

/// The next hop towards a peer, if there is a way.
#[inline(always)]
pub fn usable(short_id: u32) -> Option<&'static NextHop> {
    let hop = peer(short_id).filter(|hop| hop.flags & NextHop::USABLE != 0);
    if hop.is_none() {
        count!(drop_no_route);
    }
    hop
}

/// A frame has come from the neighbour `from`, and is accepted.
#[inline(always)]
pub fn received(from: u32, size: Size) {
    if let Some(traffic) = NEIGHBOURS.get_ptr_mut(from) {
        // SAFETY: as in `count`.
        unsafe {
            (*traffic).packets_in += u64::from(size.packets);
            (*traffic).bytes_in += u64::from(size.bytes);
        }
    }
}

/// The neighbour with this address.
#[inline(always)]
pub fn sender(address: [u8; 4]) -> Option<&'static Sender> {
    // SAFETY: as in `mac`.
    unsafe { SENDERS.get(address) }
}

/// A frame leaves for the neighbour `via`. The first one after a pause wakes the controller, which
/// watches a path closely only while it is used.
#[inline(always)]
pub fn sent(via: u32, size: Size) {
    if let Some(traffic) = NEIGHBOURS.get_ptr_mut(via) {
        // SAFETY: as in `count`.
        unsafe {
            (*traffic).packets_out += u64::from(size.packets);
            (*traffic).bytes_out += u64::from(size.bytes);
        }
    }
    if let Some(slot) = TRAFFIC.get_ptr_mut(via) {
        // SAFETY: an aligned integer of the map; two CPUs at once tell the controller twice.
        unsafe {
            if *slot == 0 && EVENTS.output(Heartbeat::traffic(via), 0).is_ok() {
                *slot = 1;
            }
        }
    }
}
