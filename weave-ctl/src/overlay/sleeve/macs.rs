//! Where MAC addresses are, for hosts without BPF (wire.md 6.9). Shared by the worker threads.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use weave_common::{MAX_MACS, MacEntry};

use crate::mesh::Now;
use crate::mesh::name::PeerName;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Not seen for so long an address is forgotten.
const MAX_AGE: Duration = Duration::from_secs(MacEntry::MAX_AGE_S as u64);
/// How old the time of the last sight may get before it is written again.
const REFRESH: Duration = Duration::from_secs(MacEntry::REFRESH_S as u64);
/// Threads that learn at the same time rarely want the same part.
const SHARDS: usize = 16;

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// On this host.
    Local,
    /// On the host of this peer.
    Peer(PeerName),
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    place: Where,
    last_seen: Now,
}

type Shard = HashMap<Mac, Entry>;

/// The addresses known, at most [`MAX_MACS`]: beyond that, frames for new ones are flooded.
#[derive(Debug, Default)]
pub struct Macs {
    shards: [RwLock<Shard>; SHARDS],
}

impl Macs {
    /// A frame from `mac` came from the bridge. Returns where the address was, if elsewhere.
    ///
    /// It is taken over at once (wire.md W8): what we write to the bridge does not come back to us, so
    /// that a frame seen there has been sent there.
    pub fn learn_local(&self, mac: Mac, now: Now) -> Option<Where> {
        self.learn(mac, Where::Local, now)
    }

    /// A frame from `mac` came for us from `peer`, which captured it. Returns where the address was, if
    /// elsewhere.
    pub fn learn_remote(&self, mac: Mac, peer: PeerName, now: Now) -> Option<Where> {
        self.learn(mac, Where::Peer(peer), now)
    }

    /// Where it is, if known. Nobody has a group address.
    #[must_use]
    pub fn lookup(&self, mac: Mac) -> Option<Where> {
        self.read(mac).get(&mac).map(|entry| entry.place)
    }

    /// Forgets what has not been seen for ten minutes. To be called every minute or so.
    pub fn sweep(&self, now: Now) {
        self.retain(|entry| now.saturating_sub(entry.last_seen) < MAX_AGE);
    }

    /// The peer is gone, and its addresses with it.
    pub fn remove_peer(&self, peer: PeerName) {
        self.retain(|entry| entry.place != Where::Peer(peer));
    }

    /// All of them, with the time they were last seen (to the minute), by address.
    #[must_use]
    pub fn list(&self) -> Vec<(Mac, Where, Now)> {
        let mut list = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            list.extend(
                shard
                    .iter()
                    .map(|(mac, entry)| (*mac, entry.place, entry.last_seen)),
            );
        }
        list.sort_unstable_by_key(|(mac, ..)| *mac);
        list
    }

    fn learn(&self, mac: Mac, place: Where, now: Now) -> Option<Where> {
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return None;
        }
        let known = self.read(mac).get(&mac).copied();
        if known.is_some_and(|e| e.place == place && now.saturating_sub(e.last_seen) < REFRESH) {
            return None;
        }
        let mut shard = self.write(mac);
        let entry = Entry {
            place,
            last_seen: now,
        };
        if let Some(known) = shard.get_mut(&mac) {
            let before = std::mem::replace(known, entry).place;
            return Some(before).filter(|before| *before != place);
        }
        if shard.len() < MAX_MACS as usize / SHARDS {
            shard.insert(mac, entry);
        }
        None
    }

    fn retain(&self, keep: impl Fn(&Entry) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, entry| keep(entry));
        }
    }

    /// Nothing that is done under the lock leaves a map half changed.
    fn read(&self, mac: Mac) -> RwLockReadGuard<'_, Shard> {
        self.shard(mac).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mac: Mac) -> RwLockWriteGuard<'_, Shard> {
        self.shard(mac).write().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, mac: Mac) -> &RwLock<Shard> {
        &self.shards[usize::from(mac[5] ^ mac[4]) % SHARDS]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    fn at(seconds: u64) -> Now {
        Duration::from_secs(seconds)
    }

    fn peer(number: u64) -> PeerName {
        PeerName::from_u64(number).unwrap()
    }

    #[test]
    fn an_address_that_moves_is_followed_at_once() {
        let macs = Macs::default();
        assert_eq!(macs.lookup(MAC), None);
        assert_eq!(macs.learn_remote(MAC, peer(1), at(0)), None);
        assert_eq!(macs.lookup(MAC), Some(Where::Peer(peer(1))));
        assert_eq!(macs.learn_local(MAC, at(1)), Some(Where::Peer(peer(1))));
        assert_eq!(macs.lookup(MAC), Some(Where::Local));
        assert_eq!(macs.learn_local(MAC, at(2)), None);
        assert_eq!(macs.learn_remote(MAC, peer(2), at(3)), Some(Where::Local));
        assert_eq!(macs.lookup(MAC), Some(Where::Peer(peer(2))));
    }

    #[test]
    fn forgotten_after_ten_minutes_of_silence() {
        let macs = Macs::default();
        macs.learn_local(MAC, at(0));
        macs.learn_local(MAC, at(59));
        assert_eq!(macs.list(), [(MAC, Where::Local, at(0))], "written once a minute");
        macs.learn_local(MAC, at(60));
        macs.sweep(at(659));
        assert_eq!(macs.list(), [(MAC, Where::Local, at(60))]);
        macs.sweep(at(660));
        assert_eq!(macs.lookup(MAC), None);
    }

    #[test]
    fn a_peer_takes_its_addresses_along() {
        let macs = Macs::default();
        let other = [2, 0, 0, 0, 0, 2];
        macs.learn_remote(MAC, peer(1), at(0));
        macs.learn_remote(other, peer(2), at(0));
        macs.remove_peer(peer(1));
        assert_eq!(macs.list(), [(other, Where::Peer(peer(2)), at(0))]);
    }

    #[test]
    fn groups_are_nowhere() {
        let macs = Macs::default();
        for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0; 6]] {
            macs.learn_local(mac, at(0));
            assert_eq!(macs.lookup(mac), None);
        }
    }

    #[test]
    fn a_flood_of_addresses_does_not_fill_the_memory() {
        let macs = Macs::default();
        for number in 0..100_000u32 {
            let [a, b, c, d] = number.to_be_bytes();
            macs.learn_remote([2, 0, a, b, c, d], peer(1), at(0));
        }
        assert!(macs.list().len() <= MAX_MACS as usize);
        assert!(
            macs.learn_local([2, 0, 0, 0, 0, 0], at(1)).is_some(),
            "known ones still move"
        );
    }
}
