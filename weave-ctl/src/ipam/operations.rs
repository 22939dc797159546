//! Allocate, claim, free, prime (control.md 1.10).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use tracing::warn;

use super::address::{Address, Cidr, CidrError, Range};
use super::adopt::Adopted;
use super::allocator::Allocator;
use super::message::Unicast;
use crate::mesh::Now;
use crate::mesh::channel::Outlet;
use crate::mesh::name::PeerName;

/// Number of a request, chosen by the caller; comes back with the answer.
pub type RequestId = u64;

/// In place of a container's ID: the caller has none. The record is filed under the address's text.
pub const ANONYMOUS: &str = "_";
/// Owner of addresses on the bridge itself.
pub const EXPOSE: &str = "weave:expose";

/// Most operations that may wait.
pub const MAX_PENDING: usize = 65_536;
/// A claim that cannot reach the owner fails after this many tries.
const MAX_CLAIM_TRIES: u32 = 5;

/// The end of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The address, with the prefix length of the subnet asked for.
    Allocated(Cidr),
    /// Claimed, or there is a ring.
    Done,
    /// The container has died, or we are stopping.
    Cancelled,
    /// A peer was removed; by how much our free space grew.
    Removed(u32),
    /// Another ring is ours now; what became of the addresses in use.
    Adopted(Adopted),
    /// It cannot be.
    Failed(IpamError),
}

/// Why an operation failed; the texts are those that HTTP clients get.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// No part of the subnet is ours to allocate.
    #[error("range {0} out of bounds: {1}")]
    OutOfBounds(Cidr, Cidr),
    /// The subnet leaves no address to hand out.
    #[error(transparent)]
    Subnet(#[from] CidrError),
    /// Outside the universe: another ID has it.
    #[error("address {0} already in use by {1}")]
    InUseBy(Cidr, String),
    /// An anonymous claim has it.
    #[error("address {0} already in use")]
    InUse(Cidr),
    /// Another ID has it.
    #[error("address {0} is already owned by {1}")]
    OwnedBy(Cidr, String),
    /// Another peer has it: name, then nickname and reason if known.
    #[error("address {0} is owned by other peer {1}{2}")]
    OtherPeer(Cidr, PeerName, String),
    /// It should be free by all we know, but is not.
    #[error(transparent)]
    Space(#[from] super::space::SpaceError),
    /// The ID does not own it.
    #[error("Free: address {0} not found for {1}")]
    NotFound(Ipv4Addr, String),
    /// The ID owns nothing.
    #[error("Delete: no addresses for {0}")]
    NothingOwned(String),
    /// The peer to be removed is in the topology.
    #[error(
        "{0} is still connected, to us or to another peer, and uses its addresses; see 'weave status peers'. \
         Stop it first ('weave reset' on it hands its addresses over), or use 'weave rmpeer --force'"
    )]
    StillThere(String),
    /// Another host removes the same peer.
    #[error(
        "{1} is taking over from {0} at this moment, or has just done so; run rmpeer on one host only, and see \
         'weave status ipam'"
    )]
    TakenOverBy(String, String),
    /// There is nothing to adopt, or it would not help.
    #[error("{0}")]
    NotAdopted(String),
    /// [`MAX_PENDING`] is reached.
    #[error("too many requests are waiting for addresses; see 'weave status ipam'")]
    TooManyPending,
}

/// What waits for a ring, for space, or for another peer's answer; oldest first.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub primes: Vec<RequestId>,
    pub claims: Vec<Claim>,
    pub allocates: Vec<Allocate>,
}

#[derive(Debug)]
pub(super) struct Allocate {
    request: RequestId,
    pub id: String,
    pub subnet: Cidr,
    is_container: bool,
}

/// Flags of a claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimOptions {
    /// The ID is a container's: release it when Docker says it is dead.
    pub is_container: bool,
    /// Answer with success at once if it cannot be told who owns the address (the claim goes on).
    pub no_error_on_unknown: bool,
}

#[derive(Debug)]
pub(super) struct Claim {
    request: RequestId,
    pub id: String,
    pub cidr: Cidr,
    options: ClaimOptions,
    tries: u32,
    answered: bool,
}

impl Pending {
    fn is_full(&self) -> bool {
        self.primes.len() + self.claims.len() + self.allocates.len() >= MAX_PENDING
    }
}

impl Allocator {
    /// The answers since the last call. They may be given once [`Allocator::take_changes`] has been saved.
    pub fn take_replies(&mut self) -> Vec<(RequestId, Reply)> {
        std::mem::take(&mut self.replies)
    }

    fn reply(&mut self, request: RequestId, reply: Reply) {
        self.replies.push((request, reply));
    }

    /// False: already answered with a refusal.
    fn admit(&mut self, request: RequestId) -> bool {
        if self.stopping {
            self.reply(request, Reply::Cancelled);
        } else if self.pending.is_full() {
            self.reply(request, Reply::Failed(IpamError::TooManyPending));
        } else {
            return true;
        }
        false
    }

    /// An address in `subnet` for `id`: the one it has, else the lowest free one. Waits until there is one.
    /// The caller has already checked that the container is alive, where that was asked for.
    pub fn allocate(
        &mut self,
        out: &mut dyn Outlet,
        request: RequestId,
        id: &str,
        subnet: Cidr,
        is_container: bool,
    ) {
        if self.admit(request) {
            let allocate = Allocate {
                request,
                id: id.to_owned(),
                subnet,
                is_container,
            };
            self.attempt_allocate(out, allocate, &mut BTreeSet::new());
        }
        self.finish();
    }

    fn attempt_allocate(&mut self, out: &mut dyn Outlet, allocate: Allocate, asked: &mut BTreeSet<Cidr>) {
        match self.try_allocate(out, &allocate, asked) {
            Some(reply) => self.reply(allocate.request, reply),
            None => self.pending.allocates.push(allocate),
        }
    }

    /// `asked`: subnets for which a request for space has just gone out; another would be of no use.
    fn try_allocate(
        &mut self,
        out: &mut dyn Outlet,
        allocate: &Allocate,
        asked: &mut BTreeSet<Cidr>,
    ) -> Option<Reply> {
        let Allocate {
            id,
            subnet,
            is_container,
            ..
        } = allocate;
        let prefix_len = subnet.prefix_len;
        if prefix_len > 30 {
            return Some(Reply::Failed(CidrError::TooSmall(*subnet).into()));
        }
        let range = subnet.range();
        if let Some(own) = self.owned.of(id).iter().find(|c| range.contains(c.addr)) {
            let addr = own.addr;
            if self.is_stray(addr) {
                // Its new owner has been asked; until then nobody knows whether it can stay.
                return None;
            }
            self.dead.remove(id);
            return Some(Reply::Allocated(Cidr { addr, prefix_len }));
        }
        if !range.overlaps(self.ring.range) {
            let universe = self.config.universe;
            return Some(Reply::Failed(IpamError::OutOfBounds(*subnet, universe)));
        }
        self.establish(out);
        if self.withholds() {
            return None;
        }
        if let Some(addr) = self.take_address(subnet.host_range()) {
            let cidr = Cidr { addr, prefix_len };
            self.record(id, *is_container, cidr);
            return Some(Reply::Allocated(cidr));
        }
        if asked.insert(*subnet) {
            let donors = self.ring.peers_with_space(range, &mut self.rng);
            let request = Unicast::SpaceRequest(range);
            let _ = donors
                .into_iter()
                .find(|donor| self.send(out, *donor, &request).is_ok());
        }
        None
    }

    fn record(&mut self, id: &str, is_container: bool, cidr: Cidr) {
        let address = Ipv4Addr::from(cidr.addr).to_string();
        let id = if id == ANONYMOUS { &address } else { id };
        self.owned.add(id, is_container, cidr);
        self.lost.remove(&cidr.addr);
    }

    /// Makes `id` the owner of that address. Waits until it is known whether it can have it.
    pub fn claim(
        &mut self,
        out: &mut dyn Outlet,
        request: RequestId,
        id: &str,
        cidr: Cidr,
        options: ClaimOptions,
    ) {
        if self.admit(request) {
            let claim = Claim {
                request,
                id: id.to_owned(),
                cidr,
                options,
                tries: 0,
                answered: false,
            };
            self.attempt_claim(out, claim);
        }
        self.finish();
    }

    fn attempt_claim(&mut self, out: &mut dyn Outlet, mut claim: Claim) {
        match self.try_claim(out, &mut claim) {
            Some(result) => self.answer_claim(&mut claim, result),
            None => self.pending.claims.push(claim),
        }
    }

    fn answer_claim(&mut self, claim: &mut Claim, result: Result<(), IpamError>) {
        if !claim.answered {
            claim.answered = true;
            let reply = result.map_or_else(Reply::Failed, |()| Reply::Done);
            self.reply(claim.request, reply);
        } else if let Err(error) = result {
            warn!("[allocator {}] claim for {}: {error}", self.config.name, claim.id);
        }
    }

    fn try_claim(&mut self, out: &mut dyn Outlet, claim: &mut Claim) -> Option<Result<(), IpamError>> {
        claim.tries = claim.tries.saturating_add(1);
        if !self.ring.range.contains(claim.cidr.addr) {
            return Some(self.claim_outside(claim));
        }
        self.establish(out);
        self.dead.remove(&claim.id);
        let addr = claim.cidr.addr;
        let Some(owner) = self.ring.owner(addr) else {
            if claim.options.no_error_on_unknown {
                self.answer_claim(claim, Ok(()));
            }
            return None;
        };
        if owner == self.config.name {
            if self.withholds() && self.owned.owner(addr).is_none() {
                return None;
            }
            return Some(self.claim_here(claim));
        }
        let one = Range {
            start: addr,
            end: addr + 1,
        };
        let reason = self.send(out, owner, &Unicast::SpaceRequest(one)).err()?;
        if claim.options.no_error_on_unknown {
            self.answer_claim(claim, Ok(()));
            return None;
        }
        (claim.tries > MAX_CLAIM_TRIES).then(|| Err(self.other_peer(claim.cidr, owner, Some(&reason))))
    }

    fn claim_outside(&mut self, claim: &Claim) -> Result<(), IpamError> {
        let (id, cidr) = (&claim.id, claim.cidr);
        let Some(owner) = self.owned.owner(cidr.addr).map(str::to_owned) else {
            self.record(id, claim.options.is_container, cidr);
            return Ok(());
        };
        if owner == *id || id == ANONYMOUS {
            return Ok(());
        }
        if !self.dead.contains_key(&owner) {
            return Err(IpamError::InUseBy(cidr, owner));
        }
        self.owned.remove(&owner, cidr.addr);
        self.record(id, claim.options.is_container, cidr);
        Ok(())
    }

    fn claim_here(&mut self, claim: &Claim) -> Result<(), IpamError> {
        let (id, cidr) = (&claim.id, claim.cidr);
        let Some(owner) = self.owned.owner(cidr.addr) else {
            self.space.claim(cidr.addr)?;
            self.record(id, claim.options.is_container, cidr);
            return Ok(());
        };
        if owner == id || id == ANONYMOUS {
            return Ok(());
        }
        if owner == Ipv4Addr::from(cidr.addr).to_string() {
            return Err(IpamError::InUse(cidr));
        }
        Err(IpamError::OwnedBy(cidr, owner.to_owned()))
    }

    fn other_peer(&self, cidr: Cidr, owner: PeerName, reason: Option<&str>) -> IpamError {
        let mut details = String::new();
        if let Some(nickname) = self.nicknames.get(&owner) {
            details += &format!(" ({nickname})");
        }
        if let Some(reason) = reason {
            details += &format!(" - {reason}");
        }
        IpamError::OtherPeer(cidr, owner, details)
    }

    /// `from` will not give us anything of `range`. Only the owner's answer to a claim's own request, for
    /// that one address, decides the claim.
    pub(super) fn deny_claims(&mut self, now: Now, from: PeerName, range: Range) {
        if range.size() == 1 && self.ring.owner(range.start) == Some(from) {
            self.deny_stray(now, from, range.start);
        }
        for mut claim in std::mem::take(&mut self.pending.claims) {
            let addr = claim.cidr.addr;
            let asked = range.start == addr && range.size() == 1;
            if asked && self.ring.owner(addr) == Some(from) && from != self.config.name {
                let error = self.other_peer(claim.cidr, from, None);
                self.answer_claim(&mut claim, Err(error));
            } else {
                self.pending.claims.push(claim);
            }
        }
    }

    /// Answers once there is a ring.
    pub fn prime(&mut self, out: &mut dyn Outlet, request: RequestId) {
        if self.stopping {
            self.reply(request, Reply::Done);
        } else if self.admit(request) {
            self.pending.primes.push(request);
            self.try_primes(out);
        }
        self.finish();
    }

    fn try_primes(&mut self, out: &mut dyn Outlet) {
        if !self.pending.primes.is_empty() {
            self.establish(out);
        }
        if !self.ring.is_empty() {
            for request in std::mem::take(&mut self.pending.primes) {
                self.reply(request, Reply::Done);
            }
        }
    }

    pub(super) fn retry_pending(&mut self, out: &mut dyn Outlet) {
        self.try_primes(out);
        self.claim_strays(out);
        for claim in std::mem::take(&mut self.pending.claims) {
            self.attempt_claim(out, claim);
        }
        let mut asked = BTreeSet::new();
        for allocate in std::mem::take(&mut self.pending.allocates) {
            self.attempt_allocate(out, allocate, &mut asked);
        }
    }

    /// The caller no longer waits. Addresses already allocated stay with their ID.
    pub fn cancel(&mut self, request: RequestId) {
        let pending = &mut self.pending;
        pending.primes.retain(|p| *p != request);
        pending.claims.retain(|c| c.answered || c.request != request);
        pending.allocates.retain(|a| a.request != request);
        self.adoptions.retain(|a| a.request != request);
        self.cancel_removals(|r| r == request);
    }

    /// Cancels everything that waits, and all that comes from now on.
    pub fn stop(&mut self) {
        self.stopping = true;
        for request in std::mem::take(&mut self.pending.primes) {
            self.reply(request, Reply::Done);
        }
        self.cancel_pending(|_| true);
        let removals = self.cancel_removals(|_| true);
        self.replies
            .extend(removals.into_iter().map(|r| (r, Reply::Cancelled)));
        let adoptions = std::mem::take(&mut self.adoptions);
        self.replies
            .extend(adoptions.into_iter().map(|a| (a.request, Reply::Cancelled)));
    }

    pub(super) fn cancel_pending(&mut self, which: impl Fn(&str) -> bool) {
        let claims = self.pending.claims.extract_if(.., |c| which(&c.id));
        let claims = claims.filter(|c| !c.answered).map(|c| c.request);
        let allocates = self.pending.allocates.extract_if(.., |a| which(&a.id));
        let requests = claims.chain(allocates.map(|a| a.request));
        self.replies.extend(requests.map(|r| (r, Reply::Cancelled)));
    }

    /// What the ID owns inside the subnet (the default one if `None`), in order of allocation.
    #[must_use]
    pub fn lookup(&self, id: &str, subnet: Option<Cidr>) -> Vec<Cidr> {
        let range = subnet.unwrap_or(self.config.default_subnet).host_range();
        let cidrs = self.owned.of(id).iter().copied();
        cidrs.filter(|c| range.contains(c.addr)).collect()
    }

    /// All owners with what they own, in order of allocation.
    #[must_use]
    pub fn owned(&self) -> Vec<(String, Vec<Cidr>)> {
        let records = self.owned.records();
        records.map(|r| (r.id.clone(), r.cidrs.clone())).collect()
    }

    /// Releases one address. As with replies: save before telling.
    pub fn free(&mut self, id: &str, addr: Address) -> Result<(), IpamError> {
        if !self.owned.remove(id, addr) {
            return Err(IpamError::NotFound(addr.into(), id.to_owned()));
        }
        self.release(addr);
        self.finish();
        Ok(())
    }

    /// Releases all addresses of an ID. As with replies: save before telling.
    pub fn free_all(&mut self, id: &str) -> Result<(), IpamError> {
        let cidrs = self.owned.remove_all(id);
        self.dead.remove(id);
        if self.forget_lost(id) && cidrs.is_empty() {
            return Ok(());
        }
        if cidrs.is_empty() {
            return Err(IpamError::NothingOwned(id.to_owned()));
        }
        for cidr in cidrs {
            self.release(cidr.addr);
        }
        self.finish();
        Ok(())
    }

    /// Not an error: outside the universe there is nothing to release, and a rebuild may have dropped it.
    fn release(&mut self, addr: Address) {
        if let Err(error) = self.space.free(addr)
            && self.ring.owner(addr) == Some(self.config.name)
        {
            warn!("[allocator {}] {error}", self.config.name);
        }
    }
}
