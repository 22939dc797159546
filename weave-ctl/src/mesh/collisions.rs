//! Other live peers that have our name: seen, answered, remembered (wire.md 2.7, weakness W24).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Now;
use super::claim::{Claim, Holder, Stake};
use super::core::{Introduction, Mesh, Output};
use super::targets;

/// How long a collision is told of after it was last seen.
pub const REMEMBERED: Duration = Duration::from_secs(600);
/// A collision that only a third peer tells of, or with a copy of our data directory, must still be there
/// after this time: by then the connections of a dead process have been noticed to be dead.
const CONFIRMED_AFTER: Duration = Duration::from_secs(10);
/// Two sightings further apart than this have nothing to do with each other.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Collisions remembered at most.
const MAX_COLLISIONS: usize = 16;

/// A live peer that has our name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collision {
    /// Its nickname.
    pub nickname: String,
    /// Where it is, as far as known.
    pub address: Option<SocketAddr>,
    /// First of the sightings in a row.
    pub first: Now,
    /// Latest sighting.
    pub last: Now,
    /// What comes of it, and what to do, for people.
    pub outcome: String,
}

/// How we stand.
#[derive(Debug, Default)]
pub(super) struct Contest {
    /// `None`: the driver does not know how to take another name.
    ours: Option<Claim>,
    seen: BTreeMap<Option<IpAddr>, Collision>,
}

impl Mesh {
    /// What our right to our name rests on. Until it is told, collisions are only refused.
    pub fn set_claim(&mut self, claim: Claim) {
        self.contest.ours = Some(claim);
    }

    /// Peers with our name that were seen within [`REMEMBERED`].
    pub fn collisions(&self, now: Now) -> impl Iterator<Item = &Collision> {
        let seen = self.contest.seen.values();
        seen.filter(move |collision| now.saturating_sub(collision.last) < REMEMBERED)
    }

    /// Does it make sense to try the same peer again? One of us may get another name.
    pub(super) fn collision_may_end(&self) -> bool {
        self.contest.ours.is_some()
    }

    /// A peer with our name and another UID has introduced itself.
    pub(super) fn met_namesake(&mut self, now: Now, intro: &Introduction) {
        let claim = Claim::of(&intro.features);
        let port = if intro.outbound {
            intro.remote.port()
        } else {
            self.config.port
        };
        let address = targets::canonical(SocketAddr::new(intro.remote.ip(), port));
        // It answers, so it is not an earlier process of ours; the same instance is looked at twice.
        let sure = claim.is_none_or(|theirs| self.contest.ours.is_none_or(|o| o.instance != theirs.instance));
        self.collided(
            now,
            intro.features.nickname.clone(),
            Some(address),
            claim.as_ref(),
            sure,
        );
    }

    /// A neighbour says that somebody else has our name.
    pub(super) fn told_of_namesake(&mut self, now: Now, holder: Holder) {
        if holder.name == self.config.name && holder.claim.uid != self.config.uid {
            self.collided(now, holder.nickname, holder.address, Some(&holder.claim), false);
        }
    }

    fn collided(
        &mut self,
        now: Now,
        nickname: String,
        address: Option<SocketAddr>,
        theirs: Option<&Claim>,
        sure: bool,
    ) {
        let yields = self.contest.ours.is_some_and(|ours| ours.yields_to(theirs));
        let outcome = self.outcome(yields, theirs);
        let seen = &mut self.contest.seen;
        let ip = address.map(|address| address.ip());
        let recent = |c: &&Collision| now.saturating_sub(c.last) < FORGOTTEN_AFTER;
        let first = seen.get(&ip).filter(recent).map_or(now, |c| c.first);
        if seen.len() >= MAX_COLLISIONS && !seen.contains_key(&ip) {
            let oldest = seen.iter().min_by_key(|(_, c)| c.last).map(|(ip, _)| *ip);
            oldest.map(|ip| seen.remove(&ip));
        }
        let place = address.map_or_else(String::new, |address| format!(" at {address}"));
        let collision = Collision {
            nickname,
            address,
            first,
            last: now,
            outcome,
        };
        let why = format!(
            "host {}{place} had the same name {}",
            collision.nickname, self.config.name
        );
        tracing::warn!("{why}: {}", collision.outcome);
        seen.insert(ip, collision);
        if yields && (sure || now.saturating_sub(first) >= CONFIRMED_AFTER) {
            self.out.push(Output::NameTaken(why));
        }
    }

    fn outcome(&self, yields: bool, theirs: Option<&Claim>) -> String {
        let chosen = self.contest.ours.is_some_and(|ours| ours.stake == Stake::Chosen);
        match theirs {
            _ if yields => "this host takes another name by itself".to_owned(),
            None => "launch one of the two hosts with another --name".to_owned(),
            Some(theirs) if chosen && theirs.stake == Stake::Chosen => {
                "both names were given with --name: launch one of the two hosts with another one, or without"
                    .to_owned()
            }
            Some(_) => "the other host takes another name by itself".to_owned(),
        }
    }
}

#[cfg(test)]
#[path = "collisions_tests.rs"]
mod tests;
