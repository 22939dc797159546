//! The way out of a conflict: we give up our ring and take the other side's (control.md 1.8 has no such thing;
//! users of the original had to delete files).

use std::time::Duration;

use tracing::info;

use super::address::Cidr;
use super::allocator::Allocator;
use super::conflicts::{Conflict, Kind};
use super::gossip::broadcast;
use super::operations::{IpamError, Reply, RequestId};
use super::ring::Ring;
use crate::mesh::Now;
use crate::mesh::channel::Outlet;

/// How long an answer waits for addresses to be claimed back; the claims go on afterwards.
const PATIENCE: Duration = Duration::from_secs(20);
/// Adoptions that may wait for their answer.
const MAX_ADOPTIONS: usize = 16;

/// What became of the addresses in use here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Owner's ID and address: ours as before.
    pub kept: Vec<(String, Cidr)>,
    /// In use elsewhere; the container needs another.
    pub lost: Vec<(String, Cidr)>,
    /// Their new owner has not answered yet.
    pub waiting: Vec<(String, Cidr)>,
}

/// One that waits for its answer.
#[derive(Debug)]
pub(super) struct Adoption {
    pub request: RequestId,
    since: Now,
    addresses: Vec<(String, Cidr)>,
}

impl Allocator {
    /// Gives up our ring for that of the peer we are in conflict with (its name or nickname; may be left out
    /// if there is but one), and claims the addresses in use here from their new owners. Answers with
    /// [`Reply::Adopted`] when all is clear, or after 20 s.
    pub fn adopt(&mut self, out: &mut dyn Outlet, request: RequestId, peer: Option<&str>) {
        match self.choose_conflict(peer) {
            Ok(conflict) => self.adopt_ring(out, request, &conflict),
            Err(why) => self
                .replies
                .push((request, Reply::Failed(IpamError::NotAdopted(why)))),
        }
        self.finish();
    }

    fn choose_conflict(&self, peer: Option<&str>) -> Result<Conflict, String> {
        if self.stopping || self.departed || self.adoptions.len() >= MAX_ADOPTIONS {
            return Err("weave is leaving the cluster, or busy with other adoptions".to_owned());
        }
        let name = |c: &&Conflict| {
            peer.is_none_or(|text| {
                let nickname = self.nicknames.get(&c.peer);
                c.peer.to_string() == text || nickname.is_some_and(|n| n == text)
            })
        };
        let found: Vec<&Conflict> = self.conflicts().filter(name).collect();
        let conflict = match (&found[..], peer) {
            ([one], _) => *one,
            // Of two with one nickname, or whose rings are one: no matter which.
            ([one, rest @ ..], _) if rest.iter().all(|c| c.ring.seeds == one.ring.seeds) => *one,
            ([], Some(peer)) => {
                return Err(format!(
                    "there is no conflict with {peer}; see 'weave status ipam'"
                ));
            }
            ([], None) => return Err("there is no conflict; see 'weave status ipam'".to_owned()),
            _ => return Err("there are several conflicts; name the peer whose ring to adopt".to_owned()),
        };
        if conflict.kind == Kind::Range {
            return Err(format!("{}; {}", conflict.text, conflict.remedy()));
        }
        Ok(conflict.clone())
    }

    fn adopt_ring(&mut self, out: &mut dyn Outlet, request: RequestId, conflict: &Conflict) {
        let us = self.config.name;
        info!(
            "[allocator {us}] giving up our address ring for that of {}",
            conflict.peer
        );
        self.conflicts.retain(|c| c.peer != conflict.peer);
        self.ring = Ring {
            peer: us,
            ..conflict.ring.clone()
        };
        let addresses = self.addresses_inside();
        self.asked_strays.clear();
        self.reclaim.taken.clear();
        self.rebuild();
        self.settle_conflicts();
        self.adoptions.push(Adoption {
            request,
            since: out.now(),
            addresses,
        });
        broadcast(out);
        self.ring_updated(out);
        self.tell_strays("another ring is ours now");
    }

    /// Answers those that are done, or have waited for too long by `now`.
    pub(super) fn finish_adoptions(&mut self, now: Option<Now>) {
        if self.adoptions.is_empty() {
            return;
        }
        let clear = self.strays().is_empty();
        let late = |a: &Adoption| now.is_some_and(|now| now.saturating_sub(a.since) >= PATIENCE);
        let done: Vec<Adoption> = self.adoptions.extract_if(.., |a| clear || late(a)).collect();
        for adoption in done {
            let mut adopted = Adopted::default();
            for (id, cidr) in adoption.addresses {
                let addr = cidr.addr;
                if self.lost.contains_key(&addr) {
                    adopted.lost.push((id, cidr));
                } else if self.is_stray(addr) {
                    adopted.waiting.push((id, cidr));
                } else if self.owned.owner(addr) == Some(id.as_str()) {
                    adopted.kept.push((id, cidr));
                }
            }
            self.replies.push((adoption.request, Reply::Adopted(adopted)));
        }
    }
}
