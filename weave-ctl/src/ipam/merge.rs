//! Merging another peer's ring into ours (control.md 1.8).
//!
//! Originals that disagree about a merge drop each other's connections for ever, so the rules are exactly
//! theirs, but for one case: where a newer entry gives a range that we use to somebody else, the original
//! reports an error, and we yield. Only a takeover makes such an entry; the addresses in use are claimed
//! back from the new owner (`strays.rs`).

use std::cmp::Ordering;

use super::address::Range;
use super::ring::{Entry, Ring, RingError};

impl Ring {
    /// Merges `theirs` into this ring; on an error nothing changes. `has_allocations` tells whether any
    /// address in a range is not among our free ones. Returns true if entries have changed.
    pub fn merge(
        &mut self,
        theirs: &Ring,
        has_allocations: impl Fn(Range) -> bool,
    ) -> Result<bool, RingError> {
        self.merge_as(theirs, has_allocations, true)
    }

    /// The error that an original, whose ring is `theirs`, will report when it is sent this one.
    /// What it uses is known only from the `free` fields of its entries.
    #[must_use]
    pub fn refused_by(&self, theirs: &Ring) -> Option<RingError> {
        let used = |range: Range| {
            let mut ranges = theirs.ranges();
            ranges.any(|(part, entry)| {
                let distance = theirs.distance(entry.token, theirs.token_after(entry.token));
                entry.peer == theirs.peer && entry.free != distance && part.overlaps(range)
            })
        };
        theirs.clone().merge_as(self, used, false).err()
    }

    fn merge_as(
        &mut self,
        theirs: &Ring,
        has_allocations: impl Fn(Range) -> bool,
        yields: bool,
    ) -> Result<bool, RingError> {
        theirs.check()?;
        if !self.seeds.is_empty() && !theirs.seeds.is_empty() && self.seeds != theirs.seeds {
            return Err(RingError::DifferentSeeds);
        }
        if self.range != theirs.range {
            return Err(RingError::DifferentRange);
        }
        let (entries, changed) = self.merge_entries(theirs, has_allocations, yields)?;
        let seeds = if self.seeds.is_empty() {
            &theirs.seeds
        } else {
            &self.seeds
        };
        let mut merged = Ring {
            entries,
            seeds: seeds.clone(),
            ..*self
        };
        merged.clamp_free();
        merged.check().map_err(|e| RingError::AfterMerge(Box::new(e)))?;
        *self = merged;
        Ok(changed)
    }

    fn merge_entries(
        &self,
        theirs: &Ring,
        has_allocations: impl Fn(Range) -> bool,
        yields: bool,
    ) -> Result<(Vec<Entry>, bool), RingError> {
        let us = self.peer;
        let in_use = |token, next| self.parts(token, next).any(&has_allocations);
        let mut result = Vec::with_capacity(self.entries.len().max(theirs.entries.len()));
        let mut changed = false;
        // Owner of the entry before, if that was copied from our list.
        let mut last = None;
        let mut their_entries = theirs.entries.iter().peekable();
        for (index, ours) in self.entries.iter().enumerate() {
            while let Some(new) = their_entries.next_if(|t| t.token < ours.token) {
                if last == Some(us) && new.peer != us && in_use(new.token, ours.token) {
                    return Err(RingError::OwnedByUs(new.peer, new.token.into()));
                }
                result.push(*new);
                last = None;
                changed = true;
            }
            let Some(new) = their_entries.next_if(|t| t.token == ours.token) else {
                result.push(*ours);
                last = Some(ours.peer);
                continue;
            };
            let owner_uses_it = || ours.peer == us && in_use(ours.token, self.next_token(index));
            let keep = match new.version.cmp(&ours.version) {
                Ordering::Less => true,
                Ordering::Equal if new.peer == ours.peer => true,
                Ordering::Equal if owner_uses_it() => {
                    return Err(RingError::Inconsistent(ours.token.into(), ours.peer, new.peer));
                }
                Ordering::Equal => ours.free >= new.free,
                Ordering::Greater if ours.peer == us && new.peer == us => {
                    // An echo of our own past before a restart: get ahead of it.
                    let version = new.version.saturating_add(1);
                    result.push(Entry { version, ..*ours });
                    continue;
                }
                Ordering::Greater if !yields && owner_uses_it() => {
                    return Err(RingError::UpdateOfOurs {
                        token: ours.token.into(),
                        version: ours.version,
                        peer: new.peer,
                        new_version: new.version,
                    });
                }
                Ordering::Greater => false,
            };
            result.push(if keep { *ours } else { *new });
            last = keep.then_some(ours.peer);
            changed |= !keep;
        }
        for new in their_entries {
            if last == Some(us) && new.peer != us {
                return Err(RingError::OwnedByUs(new.peer, new.token.into()));
            }
            result.push(*new);
            last = None;
            changed = true;
        }
        Ok((result, changed))
    }

    /// New tokens may have shortened our ranges.
    fn clamp_free(&mut self) {
        for index in 0..self.entries.len() {
            let Some(entry) = self.entries.get(index) else {
                continue;
            };
            let distance = self.distance(entry.token, self.next_token(index));
            let ours = entry.peer == self.peer;
            if let Some(entry) = self.entries.get_mut(index).filter(|_| ours) {
                entry.free = entry.free.min(distance);
            }
        }
    }
}
