//! Whom to dial, and when again (wire.md 5).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::Now;
use super::name::PeerName;

/// First interval between two attempts.
pub const FIRST_INTERVAL: Duration = Duration::from_secs(2);
/// Longest interval between two attempts (before the jitter).
pub const LONGEST_INTERVAL: Duration = Duration::from_secs(6 * 60);
/// A connection that ends later than this after its scheduled start was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(60);
/// Discovered addresses kept at most.
pub const MAX_DISCOVERED: usize = 4096;
/// Discovered addresses dialled at once, so that gossip cannot make us flood a network.
const MAX_ATTEMPTS: usize = 128;

/// A peer given by the user, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedPeer {
    /// As given: `host` or `host:port`.
    pub text: String,
    /// Its address; the port counts only if it was given.
    pub addr: SocketAddr,
    /// Was a port given? If not, ours is used.
    pub port_given: bool,
}

/// What is going on with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// For the next attempt.
    Waiting,
    /// Dialling or introducing.
    Attempting,
    /// A connection that we dialled is up.
    Connected,
    /// A direct peer that needs no dialling now.
    Suspended,
}

/// One address to be connected to.
#[derive(Debug, Clone)]
pub struct Target {
    /// What is going on with it.
    pub state: State,
    /// Why the latest attempt or connection ended.
    pub error: Option<String>,
    /// Time of the next try, or scheduled time of the latest; `None` is never.
    pub try_at: Option<Now>,
    interval: Duration,
    /// Who answered there last.
    answered: Option<PeerName>,
}

impl Target {
    fn new(now: Now) -> Self {
        Self {
            state: State::Waiting,
            error: None,
            try_at: Some(now),
            interval: FIRST_INTERVAL,
            answered: None,
        }
    }

    fn now(&mut self, now: Now) {
        self.try_at = Some(now);
        self.interval = FIRST_INTERVAL;
    }

    fn later(&mut self, now: Now, rng: &mut SmallRng) {
        let wait = rng.random_range(self.interval / 2..self.interval * 3 / 2);
        self.try_at = Some(now + wait);
        self.interval = (self.interval * 3 / 2).min(LONGEST_INTERVAL);
    }
}

/// One of our connections, as far as dialling is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// The remote's address.
    pub addr: SocketAddr,
    /// We dialled.
    pub outbound: bool,
    /// Who it is.
    pub remote: PeerName,
}

/// How a connection to a target ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The dial failed, or the introduction.
    NotMade,
    /// It was up.
    Lost,
    /// It leads to ourselves, or to another peer with our name.
    Hopeless,
}

/// The connection maker.
#[derive(Debug)]
pub struct Targets {
    port: u16,
    limit: usize,
    direct: Vec<ResolvedPeer>,
    targets: BTreeMap<SocketAddr, Target>,
}

impl Targets {
    /// `port` is our own; `limit` the largest number of connections, 0 for none.
    #[must_use]
    pub fn new(port: u16, limit: usize) -> Self {
        Self {
            port,
            limit,
            direct: Vec::new(),
            targets: BTreeMap::new(),
        }
    }

    /// Direct peers as given, in order of their addition.
    pub fn direct(&self) -> impl Iterator<Item = &str> {
        self.direct.iter().map(|d| d.text.as_str())
    }

    /// Direct peers that may still be tried.
    #[must_use]
    pub fn active(&self) -> usize {
        let hopeless = |d: &&ResolvedPeer| {
            self.targets
                .get(&self.address(d))
                .is_some_and(|t| t.try_at.is_none())
        };
        self.direct.iter().filter(|d| !hopeless(d)).count()
    }

    /// Is this the address of a direct peer? Only these may introduce peers unknown to us.
    #[must_use]
    pub fn is_direct(&self, addr: SocketAddr) -> bool {
        self.direct.iter().any(|d| self.address(d) == addr)
    }

    /// All targets.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &Target)> {
        self.targets.iter().map(|(addr, target)| (*addr, target))
    }

    /// Adds direct peers; one that exists is tried at once again.
    pub fn connect(&mut self, now: Now, peers: Vec<ResolvedPeer>, replace: bool) {
        if replace {
            self.direct.clear();
        }
        for mut peer in peers {
            peer.addr = canonical(peer.addr);
            self.direct.retain(|d| d.text != peer.text);
            if let Some(target) = self.targets.get_mut(&self.address(&peer)) {
                target.now(now);
                target.answered = None;
            }
            self.direct.push(peer);
        }
    }

    /// Texts of the direct peers that are to be dialled at this address.
    pub fn direct_at(&self, addr: SocketAddr) -> impl Iterator<Item = &str> {
        let here = self.direct.iter().filter(move |d| self.address(d) == addr);
        here.map(|d| d.text.as_str())
    }

    /// A direct peer's name leads to another address now; ignored if it is none any more.
    pub fn moved(&mut self, peer: &ResolvedPeer) {
        if let Some(direct) = self.direct.iter_mut().find(|d| d.text == peer.text) {
            direct.addr = canonical(peer.addr);
        }
    }

    /// Removes direct peers by the text they were given as.
    pub fn forget(&mut self, texts: &[String]) {
        self.direct.retain(|d| !texts.contains(&d.text));
    }

    /// Somebody answered at the target: it is up, or was refused for a reason that follows.
    pub fn answered(&mut self, addr: SocketAddr, by: PeerName, up: bool) {
        if let Some(target) = self.targets.get_mut(&addr) {
            target.answered = Some(by);
            if up {
                target.state = State::Connected;
                target.error = None;
            }
        }
    }

    /// An attempt or a connection ended.
    pub fn ended(&mut self, now: Now, addr: SocketAddr, how: Ending, error: String, rng: &mut SmallRng) {
        let Some(target) = self.targets.get_mut(&addr) else {
            return;
        };
        target.state = State::Waiting;
        target.error = Some(error);
        match how {
            Ending::Hopeless => {
                target.try_at = None;
                target.interval = LONGEST_INTERVAL;
            }
            Ending::Lost if target.try_at.is_some_and(|at| now > at + GOOD_AFTER) => target.now(now),
            Ending::NotMade | Ending::Lost => target.later(now, rng),
        }
    }

    /// Looks at everything anew: whom to dial now. `discovered` are addresses from the topology.
    pub fn refresh(
        &mut self,
        now: Now,
        links: &[Link],
        discovered: BTreeSet<SocketAddr>,
        rng: &mut SmallRng,
    ) -> Vec<SocketAddr> {
        let connected: BTreeSet<SocketAddr> = links.iter().map(|l| l.addr).collect();
        let mut valid = discovered;
        let mut direct = BTreeSet::new();
        for peer in &self.direct {
            let addr = self.address(peer);
            direct.insert(addr);
            if self.needs_dialling(peer, addr, links) {
                valid.insert(addr);
            }
        }
        valid.retain(|addr| !connected.contains(addr));
        for addr in &valid {
            let room = self.targets.len() < MAX_DISCOVERED || direct.contains(addr);
            if room && !self.targets.contains_key(addr) {
                self.targets.insert(*addr, Target::new(now));
            }
        }
        let mut attempts = self
            .targets
            .values()
            .filter(|t| t.state == State::Attempting)
            .count();
        let mut dial = Vec::new();
        self.targets.retain(|addr, target| {
            if !matches!(target.state, State::Waiting | State::Suspended) {
                return true;
            }
            if !valid.contains(addr) {
                target.state = State::Suspended;
                return direct.contains(addr);
            }
            target.state = State::Waiting;
            if target.try_at.is_some_and(|at| at <= now) {
                if self.limit > 0 && links.len() >= self.limit {
                    target.error = Some(limit_reached(self.limit));
                    target.later(now, rng);
                } else if attempts >= MAX_ATTEMPTS && !direct.contains(addr) {
                    target.try_at = Some(now + FIRST_INTERVAL);
                } else {
                    attempts += 1;
                    target.state = State::Attempting;
                    dial.push(*addr);
                }
            }
            true
        });
        dial
    }

    /// When [`Self::refresh`] has to be called at the latest, if nothing else happens.
    #[must_use]
    pub fn next_try(&self) -> Option<Now> {
        self.targets
            .values()
            .filter(|t| t.state == State::Waiting)
            .filter_map(|t| t.try_at)
            .min()
    }

    /// Where a direct peer is to be dialled.
    fn address(&self, peer: &ResolvedPeer) -> SocketAddr {
        let port = if peer.port_given {
            peer.addr.port()
        } else {
            self.port
        };
        SocketAddr::new(peer.addr.ip(), port)
    }

    fn needs_dialling(&self, peer: &ResolvedPeer, addr: SocketAddr, links: &[Link]) -> bool {
        let answered = self.targets.get(&addr).and_then(|t| t.answered);
        // Beyond the original's rule: one who dialled us is not dialled in turn only to lose or
        // win the tie-break of wire.md 2.8, for ever.
        let same_peer = |link: &Link| !peer.port_given || answered == Some(link.remote);
        !links
            .iter()
            .any(|l| !l.outbound && l.addr.ip() == addr.ip() && same_peer(l))
    }
}

/// Text of wire.md 2.8.
#[must_use]
pub fn limit_reached(limit: usize) -> String {
    format!("Connection limit reached ({limit})")
}

/// An IPv4 address is the same whether a socket for both families reports it or not.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Where to dial a peer that somebody else is connected to (wire.md 5.1).
#[must_use]
pub fn discovered(recorded: &str, they_dialled: bool, own_port: u16) -> Option<SocketAddr> {
    let addr = canonical(recorded.parse().ok()?);
    let usable = match addr.ip() {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    };
    let port = if they_dialled { addr.port() } else { own_port };
    (usable && port != 0).then(|| SocketAddr::new(addr.ip(), port))
}

#[cfg(test)]
#[path = "targets_tests.rs"]
mod tests;
