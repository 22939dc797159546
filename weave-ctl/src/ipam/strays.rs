//! Addresses that we handed out and whose range now belongs to another peer: after a takeover from us while we
//! were away, or when we have adopted another ring. Each is claimed back from its new owner, one by one.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::{info, warn};

use super::address::{Address, Cidr, Range};
use super::allocator::Allocator;
use super::message::Unicast;
use crate::mesh::Now;
use crate::mesh::channel::Outlet;
use crate::mesh::name::PeerName;

/// Requests for strays sent at once.
const MAX_ASKED: usize = 256;
/// When to ask again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Most lost addresses remembered.
const MAX_LOST: usize = 4096;

/// A stray whose owner has been asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    at: Now,
    /// Who has refused it.
    refused_by: Option<PeerName>,
}

/// An address that could not be had back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    pub id: String,
    pub cidr: Cidr,
    /// Who has it now.
    pub owner: PeerName,
    pub since: Now,
}

impl Allocator {
    /// Is the address recorded here, while the ring says it is another peer's?
    pub(super) fn is_stray(&self, addr: Address) -> bool {
        self.stray && self.ring.range.contains(addr) && self.ring.owner(addr) != Some(self.config.name)
    }

    /// All of them, with their owners' IDs.
    pub(super) fn strays(&self) -> Vec<(String, Cidr)> {
        if !self.stray {
            return Vec::new();
        }
        let strays = self.owned.addresses().filter(|(_, c)| self.is_stray(c.addr));
        strays.map(|(id, cidr)| (id.to_owned(), cidr)).collect()
    }

    /// Asks the new owners for our strays.
    pub(super) fn claim_strays(&mut self, out: &mut dyn Outlet) {
        if !self.stray || self.stopping {
            self.asked_strays.clear();
            return;
        }
        let now = out.now();
        let strays = self.strays();
        let still: BTreeSet<Address> = strays.iter().map(|(_, c)| c.addr).collect();
        self.asked_strays.retain(|addr, _| still.contains(addr));
        let mut sent = 0;
        for addr in still {
            let before = self.asked_strays.get(&addr).copied();
            let waits = before.is_some_and(|asked| now.saturating_sub(asked.at) < ASK_AGAIN);
            let Some(owner) = self.ring.owner(addr).filter(|_| !waits && sent < MAX_ASKED) else {
                continue;
            };
            let refused_by = before.and_then(|asked| asked.refused_by);
            self.asked_strays.insert(addr, Asked { at: now, refused_by });
            sent += 1;
            // Not reachable now: asked again later.
            let _ = self.send(out, owner, &Unicast::SpaceRequest(single(addr)));
        }
    }

    /// The owner of the address will not give it back. It has to say so twice: the first time it may just have
    /// passed the address on, which we learn from what it sends next.
    pub(super) fn deny_stray(&mut self, now: Now, owner: PeerName, addr: Address) {
        if !self.is_stray(addr) {
            return;
        }
        match self.asked_strays.get_mut(&addr) {
            Some(asked) if asked.refused_by == Some(owner) => {}
            Some(asked) => {
                asked.refused_by = Some(owner);
                return;
            }
            None => return,
        }
        self.asked_strays.remove(&addr);
        let Some((id, cidr)) = self.owned.addresses().find(|(_, c)| c.addr == addr) else {
            return;
        };
        let id = id.to_owned();
        let name = self.config.name;
        warn!(
            "[allocator {name}] {cidr} of {id} now belongs to {owner} and is in use there: {id} needs another address"
        );
        self.owned.remove(&id, addr);
        if self.lost.len() < MAX_LOST {
            let since = now;
            self.lost.insert(
                addr,
                Lost {
                    id,
                    cidr,
                    owner,
                    since,
                },
            );
        }
    }

    /// Tells the log once that ranges were lost.
    pub(super) fn tell_strays(&self, why: &str) {
        let count = self.strays().len();
        if count > 0 {
            let name = self.config.name;
            info!(
                "[allocator {name}] {why}: claiming {count} addresses in use here back from their new owners"
            );
        }
    }

    /// The ID has nothing any more, or the address is back.
    pub(super) fn forget_lost(&mut self, id: &str) -> bool {
        let before = self.lost.len();
        self.lost.retain(|_, lost| lost.id != id);
        before != self.lost.len()
    }
}

fn single(addr: Address) -> Range {
    Range {
        start: addr,
        end: addr.saturating_add(1),
    }
}
