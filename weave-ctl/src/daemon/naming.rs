//! Our right to our name, and another name when a clone of this host has ours (wire.md W24).

use super::core::{Daemon, unix_now};
use crate::identity;
use crate::mesh::claim::{Claim, Stake};

/// After a change of name we stay what we are for this long, in seconds: nobody can drive us from name to
/// name.
const STAY: u64 = 3600;

impl Daemon {
    /// Tells mesh and handshakes what we would lose with our name.
    pub(super) fn tell_claim(&mut self) {
        let claim = Claim {
            stake: self.stake(),
            since: self.identity.since,
            instance: self.identity.instance,
            uid: self.uid,
        };
        if self.claim != Some(claim) {
            self.claim = Some(claim);
            self.mesh.set_claim(claim);
            self.tell_features(|features| features.extra.extend(claim.features()));
        }
    }

    fn stake(&self) -> Stake {
        let space = |ipam: &crate::ipam::allocator::Allocator| ipam.ring().owns(self.name);
        if self.options.name.is_some() {
            Stake::Chosen
        } else if !self.ports.is_empty() {
            Stake::Containers
        } else if self.channels.ipam.as_ref().is_some_and(space) {
            Stake::Space
        } else {
            Stake::Nothing
        }
    }

    /// Another live peer has our name and keeps it. Takes a new one, with which the daemon then starts anew.
    pub(super) fn give_up_name(&mut self, why: &str) -> anyhow::Result<()> {
        if self.renamed {
            return Ok(());
        }
        let now = u64::try_from(unix_now()).unwrap_or_default();
        let age = now.saturating_sub(self.identity.since);
        if self.identity.renamed.is_some() && age < STAY {
            tracing::warn!(
                "{why}. This host took its name only {age} s ago and keeps it for now; choose one with --name"
            );
            return Ok(());
        }
        let next = identity::renamed(self.name, why, now, &mut rand::rng());
        tracing::warn!("This host takes the peer name {}: {}", next.name, why);
        self.store.save_identity(&next)?;
        self.renamed = true;
        Ok(())
    }
}
