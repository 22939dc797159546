//! `rmpeer` (control.md 1.13): only of peers that are gone, and only by one peer at a time.
//!
//! Two that take over from the same peer would give its entries two owners with equal versions, which no merge
//! can put right. So a takeover is announced first; of two, the one with the lower name goes on.

use std::time::Duration;

use tracing::warn;

use super::allocator::Allocator;
use super::operations::{IpamError, Reply, RequestId};
use super::talk::Say;
use crate::mesh::Now;
use crate::mesh::channel::Outlet;
use crate::mesh::name::PeerName;

/// How long others may object.
const OBJECTIONS: Duration = Duration::from_secs(1);
/// How long an announcement of another peer counts.
const ANNOUNCED: Duration = Duration::from_secs(5);
/// How long we object after a takeover: by then all others have our ring.
const JUST_DONE: Duration = Duration::from_secs(60);
/// Most announcements and takeovers remembered.
const MAX_REMEMBERED: usize = 64;

/// Takeovers going on, and those of late.
#[derive(Debug, Default)]
pub(super) struct Removals {
    ours: Vec<Removal>,
    /// Who takes over from whom, since when.
    others: Vec<(PeerName, PeerName, Now)>,
    done: Vec<(PeerName, Now)>,
}

#[derive(Debug)]
struct Removal {
    request: RequestId,
    peer: PeerName,
    until: Now,
}

impl Allocator {
    /// Takes over everything of the peer with that nickname or name. Answers with [`Reply::Removed`], after a
    /// second in which others may object. `forced`: also if the peer is still there.
    pub fn remove_peer(&mut self, out: &mut dyn Outlet, request: RequestId, text: &str, forced: bool) {
        match self.may_remove(out, text, forced) {
            Ok(Some(peer)) => {
                let until = out.now() + OBJECTIONS;
                self.removals.ours.push(Removal { request, peer, until });
                self.said.push((None, Say::Intend { peer }));
            }
            Ok(None) => {
                let us = self.config.name;
                warn!("[allocator {us}] cannot take over from '{text}': no such other peer owns anything");
                self.replies.push((request, Reply::Removed(0)));
            }
            Err(error) => self.replies.push((request, Reply::Failed(error))),
        }
    }

    /// `None`: there is nothing to take over.
    fn may_remove(
        &mut self,
        out: &dyn Outlet,
        text: &str,
        forced: bool,
    ) -> Result<Option<PeerName>, IpamError> {
        let us = self.config.name;
        let found = self.find_peer(out, text).filter(|p| *p != us);
        let Some(peer) = found.filter(|p| self.ring.owns(*p)) else {
            return Ok(None);
        };
        if out.is_known(peer) && !forced {
            return Err(IpamError::StillThere(self.full_name(peer)));
        }
        self.forget_old_removals(out.now());
        let busy = |(by, whose, _): &&(PeerName, PeerName, Now)| *whose == peer && *by < us;
        if let Some((by, ..)) = self.removals.others.iter().find(busy) {
            return Err(IpamError::TakenOverBy(self.full_name(peer), self.full_name(*by)));
        }
        if self.removals.ours.len() >= MAX_REMEMBERED {
            return Err(IpamError::TooManyPending);
        }
        Ok(Some(peer))
    }

    pub(super) fn on_intend(&mut self, out: &dyn Outlet, by: PeerName, peer: PeerName) {
        let us = self.config.name;
        if by == us {
            return;
        }
        self.forget_old_removals(out.now());
        if self.removals.others.len() < MAX_REMEMBERED {
            self.removals.others.push((by, peer, out.now()));
        }
        let ours = self.removals.ours.iter().any(|r| r.peer == peer);
        let done = self.removals.done.iter().any(|(p, _)| *p == peer);
        if done || (ours && us < by) {
            self.said.push((Some(by), Say::Object { peer }));
        } else if ours {
            self.on_object(by, peer);
        }
        // What an administrator does goes before what we would do by ourselves.
        self.reclaim.withdraw(peer);
    }

    /// `by` takes over from the peer, so we do not.
    pub(super) fn on_object(&mut self, by: PeerName, peer: PeerName) {
        let given_up: Vec<Removal> = self.removals.ours.extract_if(.., |r| r.peer == peer).collect();
        for removal in given_up {
            let error = IpamError::TakenOverBy(self.full_name(peer), self.full_name(by));
            self.replies.push((removal.request, Reply::Failed(error)));
        }
    }

    /// When [`Allocator::on_deadline`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Now> {
        self.removals.ours.iter().map(|r| r.until).min()
    }

    /// Takes over where nobody has objected.
    pub fn on_deadline(&mut self, out: &mut dyn Outlet) {
        let now = out.now();
        let due: Vec<Removal> = self.removals.ours.extract_if(.., |r| r.until <= now).collect();
        for Removal { request, peer, .. } in due {
            let gained = self.take_over(out, peer);
            self.replies.push((request, Reply::Removed(gained)));
            self.took_over(now, peer);
        }
    }

    pub(super) fn took_over(&mut self, now: Now, peer: PeerName) {
        self.forget_old_removals(now);
        if self.removals.done.len() < MAX_REMEMBERED {
            self.removals.done.push((peer, now));
        }
    }

    fn forget_old_removals(&mut self, now: Now) {
        let removals = &mut self.removals;
        removals
            .others
            .retain(|(.., since)| now.saturating_sub(*since) < ANNOUNCED);
        removals
            .done
            .retain(|(_, since)| now.saturating_sub(*since) < JUST_DONE);
    }

    pub(super) fn cancel_removals(&mut self, which: impl Fn(RequestId) -> bool) -> Vec<RequestId> {
        let gone = self.removals.ours.extract_if(.., |r| which(r.request));
        gone.map(|r| r.request).collect()
    }

    pub(super) fn full_name(&self, peer: PeerName) -> String {
        match self.nicknames.get(&peer) {
            Some(nickname) => format!("{peer}({nickname})"),
            None => peer.to_string(),
        }
    }
}
