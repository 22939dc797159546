//! The maps, filled by the controller (and `MACS` by learning), and what reads them in one line.

use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use aya_ebpf::macros::btf_map;
use weave_common::{
    Config, Counters, EVENT_RING, FloodHops, Heartbeat, MAX_MACS, MAX_PEERS, MacEntry, MacKey, NextHop,
    Sender, Sent,
};

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

/// Outer source address -> neighbour, and what it has sent.
#[btf_map]
pub static SENDERS: PerCpuHashMap<[u8; 4], Sender, { MAX_PEERS as usize }> = PerCpuHashMap::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

/// Neighbour (short ID) -> what has left for it.
#[btf_map]
pub static TRAFFIC: PerCpuArray<Sent, { MAX_PEERS as usize }> = PerCpuArray::new();

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

/// The neighbour with an address.
#[derive(Clone, Copy)]
pub struct Neighbour {
    /// Its short ID.
    pub short_id: u32,
    entry: *mut Sender,
}

impl Neighbour {
    /// It has sent a frame of `bytes`, without the outer headers.
    #[inline(always)]
    pub fn received(self, bytes: u32) {
        // SAFETY: this CPU's copy of the entry, as in `count`; see `mac` for entries that are replaced.
        unsafe {
            (*self.entry).packets += 1;
            (*self.entry).bytes += u64::from(bytes);
        }
    }
}

/// The neighbour with this address.
#[inline(always)]
pub fn sender(address: [u8; 4]) -> Option<Neighbour> {
    let entry = SENDERS.get_ptr_mut(address)?;
    // SAFETY: as in `mac`.
    let short_id = unsafe { (*entry).short_id };
    Some(Neighbour { short_id, entry })
}

/// A frame of `bytes`, without outer headers, leaves for the neighbour `via`. The first one since the clock was
/// stepped wakes the controller, which watches a path closely only while it is used.
#[inline(always)]
pub fn sent(config: &Config, via: u32, bytes: u32) {
    if let Some(slot) = TRAFFIC.get_ptr_mut(via) {
        // SAFETY: this CPU's copy, as in `count`.
        unsafe {
            (*slot).packets += 1;
            (*slot).bytes += u64::from(bytes);
            let now = config.clock_s.wrapping_add(1);
            if (*slot).told != now && EVENTS.output(Heartbeat::traffic(via), 0).is_ok() {
                (*slot).told = now;
            }
        }
    }
}
