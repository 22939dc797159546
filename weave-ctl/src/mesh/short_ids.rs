//! Who owns which short ID (wire.md 1.4).

use std::collections::BTreeSet;

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::name::{PeerName, ShortId};

/// Random tries before all free slots are listed (wire.md 11).
const TRIES: usize = 10;

#[derive(Debug, Default, Clone)]
struct Slot {
    owner: Option<PeerName>,
    others: BTreeSet<PeerName>,
    used: bool,
}

/// What a change of the table calls for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    /// Some short ID now has another owner than before, or none, or its first one.
    pub changed: bool,
    /// A mapping that may be in use is wrong now: an original peer deletes its flows here.
    pub invalidate: bool,
    /// This peer lost the slot to one with a lower name.
    pub ousted: Option<PeerName>,
}

/// The ownership table: one slot for each short ID.
#[derive(Debug, Clone)]
pub struct ShortIds {
    slots: Vec<Slot>,
}

impl Default for ShortIds {
    fn default() -> Self {
        Self {
            slots: vec![Slot::default(); ShortId::COUNT],
        }
    }
}

impl ShortIds {
    /// The owner, which is what a lookup returns.
    #[must_use]
    pub fn owner(&self, id: ShortId) -> Option<PeerName> {
        self.slots.get(usize::from(id.get()))?.owner
    }

    /// The peer says that it has this ID.
    pub fn claim(&mut self, id: ShortId, peer: PeerName) -> Effect {
        let Some(slot) = self.slots.get_mut(usize::from(id.get())) else {
            return Effect::default();
        };
        match slot.owner {
            Some(owner) if owner == peer => Effect::default(),
            Some(owner) if owner < peer => {
                slot.others.insert(peer);
                Effect::default()
            }
            Some(owner) => {
                slot.others.insert(owner);
                slot.others.remove(&peer);
                slot.owner = Some(peer);
                Effect {
                    changed: true,
                    invalidate: true,
                    ousted: Some(owner),
                }
            }
            None => {
                let invalidate = slot.used;
                slot.used = true;
                slot.owner = Some(peer);
                Effect {
                    changed: true,
                    invalidate,
                    ousted: None,
                }
            }
        }
    }

    /// The peer is gone, or has another ID now.
    pub fn release(&mut self, id: ShortId, peer: PeerName) -> Effect {
        let Some(slot) = self.slots.get_mut(usize::from(id.get())) else {
            return Effect::default();
        };
        if slot.owner != Some(peer) {
            slot.others.remove(&peer);
            return Effect::default();
        }
        slot.owner = slot.others.pop_first();
        Effect {
            changed: true,
            invalidate: slot.owner.is_some(),
            ousted: None,
        }
    }

    /// A random ID that nobody has; `None` when all are taken.
    pub fn pick_free(&self, rng: &mut SmallRng) -> Option<ShortId> {
        let free = |n: usize| self.slots.get(n).is_some_and(|s| s.owner.is_none());
        let number = (0..TRIES)
            .map(|_| rng.random_range(0..ShortId::COUNT))
            .find(|n| free(*n))
            .or_else(|| {
                let all: Vec<usize> = (0..ShortId::COUNT).filter(|n| free(*n)).collect();
                all.choose(rng).copied()
            })?;
        ShortId::new(number as u64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn peer(n: u64) -> PeerName {
        PeerName::from_u64(n).unwrap()
    }

    /// The rows of the table in wire.md 1.4.
    #[test]
    fn events() {
        let id = ShortId::new(0).unwrap();
        let mut table = ShortIds::default();
        let first = Effect {
            changed: true,
            ..Effect::default()
        };
        assert_eq!(table.claim(id, peer(5)), first, "never used");
        assert_eq!(
            table.claim(id, peer(7)),
            Effect::default(),
            "higher name goes to others"
        );
        assert_eq!(
            table.claim(id, peer(3)),
            Effect {
                changed: true,
                invalidate: true,
                ousted: Some(peer(5))
            },
            "lower name wins"
        );
        assert_eq!(table.owner(id), Some(peer(3)));
        assert_eq!(
            table.release(id, peer(3)),
            Effect {
                changed: true,
                invalidate: true,
                ousted: None
            }
        );
        assert_eq!(table.owner(id), Some(peer(5)), "lowest of the others");
        assert_eq!(
            table.release(id, peer(7)),
            Effect::default(),
            "a non-owner disappears"
        );
        assert_eq!(table.release(id, peer(5)), first, "no others: free but used");
        assert_eq!(table.owner(id), None);
        assert_eq!(
            table.claim(id, peer(9)),
            Effect {
                changed: true,
                invalidate: true,
                ousted: None
            }
        );
        assert_eq!(table.claim(id, peer(9)), Effect::default(), "again");
    }

    #[test]
    fn picks_the_last_free_one_and_then_none() {
        let mut table = ShortIds::default();
        let mut rng = SmallRng::seed_from_u64(1);
        for n in 0..4095 {
            table.claim(ShortId::new(n).unwrap(), peer(n + 1));
        }
        assert_eq!(table.pick_free(&mut rng), ShortId::new(4095));
        table.claim(ShortId::new(4095).unwrap(), peer(1));
        assert_eq!(table.pick_free(&mut rng), None);
    }
}
