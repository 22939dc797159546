//! Rings that cannot be merged with ours (control.md 1.8): kept and told of, instead of ending the connection.
//!
//! Topology and data go on between the two sides. Nothing of IPAM crosses over until the cause is gone: one
//! side was reset, or has adopted the other's ring (`adopt.rs`).

use std::time::Duration;

use tracing::{info, warn};

use super::address::Range;
use super::allocator::Allocator;
use super::ring::{Ring, RingError};
use crate::api::report;
use crate::mesh::Now;
use crate::mesh::channel::Outlet;
use crate::mesh::name::PeerName;

/// Most conflicts remembered.
pub const MAX_CONFLICTS: usize = 16;
/// How long a conflict outlives its peer: it may only have dropped the connection because of it.
const MEMORY: Duration = Duration::from_secs(600);

/// What is wrong with the other ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The first division was among other peers.
    Seeds,
    /// Another `--ipalloc-range`.
    Range,
    /// Some range has two owners, each of whom uses it.
    Entries,
    /// The other is an original that would refuse our ring, though we could merge its.
    Refused,
}

/// A peer whose ring cannot be merged with ours.
#[derive(Debug, Clone)]
pub struct Conflict {
    /// Whose ring it is.
    pub peer: PeerName,
    /// The original's error text.
    pub text: String,
    /// Since when.
    pub since: Now,
    /// What is wrong.
    pub kind: Kind,
    /// Its ring, as it was last heard.
    pub(super) ring: Ring,
    /// States from it in a row that showed the conflict.
    seen: u32,
    gone: Option<Now>,
}

impl Conflict {
    /// What an administrator can do.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self.kind {
            Kind::Range => "both sides need the same --ipalloc-range: on the side that is to change, \
                            'weave reset' and launch again with the other's range"
                .to_owned(),
            Kind::Seeds | Kind::Entries | Kind::Refused => {
                "'weave doctor' tells which side is to give up its address ring, and how".to_owned()
            }
        }
    }

    /// A message that crossed another may look like a refusal: it takes two to be sure.
    fn certain(&self) -> bool {
        self.kind != Kind::Refused || self.seen > 1
    }
}

impl Allocator {
    /// The peers whose rings cannot be merged with ours.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict> {
        let present = |c: &&Conflict| c.certain() && c.gone.is_none();
        self.conflicts.iter().filter(present)
    }

    pub(super) fn in_conflict(&self, peer: PeerName) -> bool {
        self.conflicts.iter().any(|c| c.peer == peer && c.certain())
    }

    /// `theirs` could not be merged.
    pub(super) fn on_conflict(&mut self, out: &dyn Outlet, theirs: &Ring, error: &RingError, kind: Kind) {
        let text = self.explain(theirs, error);
        let (us, peer) = (self.config.name, theirs.peer);
        if peer == us {
            return;
        }
        let found = self.conflicts.iter().position(|c| c.peer == peer);
        let before = found.map(|index| self.conflicts.remove(index));
        let old = before.as_ref().filter(|c| c.kind == kind);
        let conflict = Conflict {
            peer,
            since: old.map_or(out.now(), |c| c.since),
            kind,
            ring: theirs.clone(),
            seen: old.map_or(1, |c| c.seen.saturating_add(1)),
            gone: None,
            text,
        };
        let told = before.is_some_and(|c| c.certain() && c.text == conflict.text);
        if conflict.certain() && !told {
            warn!(
                "[allocator {us}] conflict with {peer}: {}. Remedy: {}",
                conflict.text,
                conflict.remedy()
            );
        }
        if self.conflicts.len() >= MAX_CONFLICTS {
            self.conflicts.remove(0);
        }
        self.conflicts.push(conflict);
    }

    /// What this peer says fits together with what we know.
    pub(super) fn no_conflict(&mut self, peer: PeerName) {
        let us = self.config.name;
        for over in self.conflicts.extract_if(.., |c| c.peer == peer) {
            if over.certain() {
                info!("[allocator {us}] the conflict with {peer} is over");
            }
        }
    }

    /// Our ring is another: with whom it fits now, by what they said last, there is no conflict any more.
    pub(super) fn settle_conflicts(&mut self) {
        let (ring, space) = (&self.ring, &self.space);
        let in_use = |range: Range| space.count_free(range) != range.size();
        let over = |c: &mut Conflict| {
            let merged = ring.clone().merge(&c.ring, in_use).is_ok();
            merged && (c.kind != Kind::Refused || ring.refused_by(&c.ring).is_none())
        };
        for over in self.conflicts.extract_if(.., over) {
            if over.certain() {
                let us = self.config.name;
                info!("[allocator {us}] the conflict with {} is over", over.peer);
            }
        }
    }

    /// Forgets conflicts with peers that have been gone for long.
    pub(super) fn age_conflicts(&mut self, out: &dyn Outlet) {
        let now = out.now();
        for conflict in &mut self.conflicts {
            if out.is_known(conflict.peer) {
                conflict.gone = None;
            } else {
                conflict.gone.get_or_insert(now);
            }
        }
        self.conflicts
            .retain(|c| c.gone.is_none_or(|gone| now.saturating_sub(gone) < MEMORY));
    }

    /// The error as the original words it, with nicknames (control.md 1.7).
    fn explain(&self, theirs: &Ring, error: &RingError) -> String {
        let peers = |names: &[PeerName]| {
            let names = names.iter().map(|name| self.full_name(*name));
            names.collect::<Vec<_>>().join(" ")
        };
        match error {
            RingError::DifferentSeeds => {
                let (received, ours) = (peers(&theirs.seeds), peers(&self.ring.seeds));
                format!(
                    "IP allocation was seeded by different peers (received: [{received}], ours: [{ours}])"
                )
            }
            RingError::DifferentRange => {
                use super::allocator::range_text;
                let (received, ours) = (range_text(theirs.range), range_text(self.ring.range));
                format!("Incompatible IP allocation ranges (received: {received}, ours: {ours})")
            }
            other => other.to_string(),
        }
    }

    pub(super) fn report_conflicts(&self, now: Now) -> Vec<report::IpamConflict> {
        let nickname = |peer| self.nicknames.get(peer).cloned().unwrap_or_default();
        let rings = self.conflicts().map(|c| report::IpamConflict {
            peer: c.peer.to_string(),
            nickname: nickname(&c.peer),
            text: c.text.clone(),
            remedy: c.remedy(),
            since_seconds: now.saturating_sub(c.since).as_secs(),
        });
        rings.collect()
    }

    pub(super) fn report_lost(&self, now: Now) -> Vec<report::LostAddress> {
        let lost = self.lost.iter().map(|(addr, lost)| report::LostAddress {
            ident: lost.id.clone(),
            address: std::net::Ipv4Addr::from(*addr).to_string(),
            peer: lost.owner.to_string(),
            nickname: self.nicknames.get(&lost.owner).cloned().unwrap_or_default(),
            since_seconds: now.saturating_sub(lost.since).as_secs(),
        });
        lost.collect()
    }
}
