//! Learning where MAC addresses are (wire.md 6.9; W8: a moved address is taken over at once).

use weave_common::{Config, MacEntry, MacKey};

use crate::maps::{MACS, count, mac, peer};
use crate::packet::is_group;

/// A frame from `address` came in at local port `ifindex` (0: by way of the bridge).
#[inline(always)]
pub fn local(config: &Config, address: [u8; 6], ifindex: u32) {
    let mut port = ifindex;
    match mac(address) {
        Some(known) if known.flags & MacEntry::LOCAL != 0 && (known.ifindex == ifindex || ifindex == 0) => {
            if !stale(config, known) {
                return;
            }
            // Seen through the bridge, a port's address keeps its port.
            port = known.ifindex;
        }
        Some(_) => count!(moved),
        None => count!(learnt),
    }
    let entry = MacEntry {
        ifindex: port,
        peer: 0,
        flags: MacEntry::LOCAL,
        last_seen_s: 0,
    };
    write(config, address, entry);
}

/// A frame from `address` came from peer `src`. False, and nothing learnt, if there is no such peer.
#[inline(always)]
pub fn remote(config: &Config, address: [u8; 6], src: u32) -> bool {
    let known = mac(address);
    if let Some(known) = known
        && known.flags & MacEntry::LOCAL == 0
        && u32::from(known.peer) == src
    {
        // Its peer was known when it was learnt, and entries go with their peer.
        if !stale(config, known) {
            return true;
        }
    } else if peer(src).is_none() {
        return false;
    } else if known.is_some() {
        count!(moved);
    } else {
        count!(learnt);
    }
    write(
        config,
        address,
        MacEntry {
            ifindex: 0,
            peer: src as u16,
            flags: 0,
            last_seen_s: 0,
        },
    );
    true
}

/// May frames come from this address at all?
#[inline(always)]
pub fn valid_source(address: [u8; 6]) -> bool {
    !is_group(address) && address != [0; 6]
}

#[inline(always)]
fn stale(config: &Config, entry: &MacEntry) -> bool {
    config.clock_s.wrapping_sub(entry.last_seen_s) > MacEntry::REFRESH_S
}

#[inline(never)]
fn write(config: &Config, address: [u8; 6], entry: MacEntry) {
    let entry = MacEntry {
        last_seen_s: config.clock_s,
        ..entry
    };
    if MACS.insert(MacKey::new(address), entry, 0).is_err() {
        count!(macs_full);
    }
}
