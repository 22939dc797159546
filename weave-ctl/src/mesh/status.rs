//! What others may ask the mesh: peers, routes, short IDs, connections.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::core::{Counters, Mesh};
use super::name::{PeerName, ShortId};
use super::routes::{Edges, Tree};
use super::summary::PeerSummary;
use super::targets::State;
use super::{ConnId, Now};

/// State of a connection or of an attempt, as `status connections` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnectionState {
    /// Data can flow.
    Established,
    /// No heartbeat of the overlay acknowledged yet.
    Pending,
    /// Attempted again after a failure.
    Retrying,
    /// Waiting for the next attempt after a failure.
    Failed,
    /// Attempted for the first time.
    Connecting,
}

impl ConnectionState {
    /// As printed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Pending => "pending",
            Self::Retrying => "retrying",
            Self::Failed => "failed",
            Self::Connecting => "connecting",
        }
    }
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// When a failed target is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// After this time from now.
    In(Duration),
    /// Not before it is added again as a direct peer.
    Never,
}

/// One line of `status connections`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// Remote end, or target.
    pub address: SocketAddr,
    /// We dialled, or would.
    pub outbound: bool,
    /// What is going on.
    pub state: ConnectionState,
    /// `failed`, `retrying`: why the latest attempt or connection ended.
    pub error: Option<String>,
    /// `failed`: the next attempt.
    pub retry: Option<Retry>,
    /// `established`, `pending`: name and nickname.
    pub remote: Option<(PeerName, String)>,
    /// `established`, `pending`: the driver's number.
    pub conn: Option<ConnId>,
}

impl Mesh {
    /// Our own record as others get it.
    #[must_use]
    pub fn own(&self) -> Option<&PeerSummary> {
        self.peers.get(self.config.name)
    }

    /// All known peers with their connections, ourselves included, by name.
    pub fn peers(&self) -> impl Iterator<Item = &PeerSummary> {
        self.peers.iter()
    }

    /// One peer.
    #[must_use]
    pub fn peer(&self, name: PeerName) -> Option<&PeerSummary> {
        self.peers.get(name)
    }

    /// Next hop of data frames for a peer; `None` without a route, and for ourselves.
    #[must_use]
    pub fn unicast_next_hop(&self, to: PeerName) -> Option<PeerName> {
        self.routes.next_hop(to, Edges::Established)
    }

    /// The table for data frames: destination and next hop (`None` for ourselves).
    pub fn unicast_routes(&self) -> impl Iterator<Item = (PeerName, Option<PeerName>)> {
        self.routes.unicast()
    }

    /// To whom data frames are passed on that this peer broadcasts.
    pub fn broadcast_hops(&mut self, origin: PeerName) -> Vec<PeerName> {
        self.routes.broadcast(origin, Edges::Established).to_vec()
    }

    /// Our place in every tree for data frames.
    pub fn broadcast_routes(&mut self) -> BTreeMap<PeerName, Tree> {
        self.routes.broadcasts()
    }

    /// Whose short ID it is.
    #[must_use]
    pub fn short_id_owner(&self, id: ShortId) -> Option<PeerName> {
        self.peers.short_ids().owner(id)
    }

    /// A peer's short ID, if it owns it: otherwise frames with it would reach another one.
    #[must_use]
    pub fn short_id_of(&self, peer: PeerName) -> Option<ShortId> {
        let id = self.peers.get(peer)?.short_id?;
        (self.short_id_owner(id) == Some(peer)).then_some(id)
    }

    /// Our connection to a neighbour.
    #[must_use]
    pub fn connection_to(&self, peer: PeerName) -> Option<ConnId> {
        self.by_remote.get(&peer).copied()
    }

    /// Direct peers as they were given.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.targets.direct()
    }

    /// Texts of the direct peers that are dialled at this address.
    pub fn direct_at(&self, addr: SocketAddr) -> impl Iterator<Item = &str> {
        self.targets.direct_at(addr)
    }

    /// Connections that ended, other than to ourselves.
    #[must_use]
    pub fn termination_count(&self) -> u64 {
        self.terminations
    }

    /// What was refused or dropped.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Connections, then attempts and failures.
    #[must_use]
    pub fn connections_status(&self, now: Now) -> Vec<ConnectionStatus> {
        let connections = self.conns.iter().map(|(conn, c)| ConnectionStatus {
            address: c.remote_addr,
            outbound: c.outbound,
            state: if c.established {
                ConnectionState::Established
            } else {
                ConnectionState::Pending
            },
            error: None,
            retry: None,
            remote: Some((
                c.remote,
                self.peers
                    .get(c.remote)
                    .map_or_else(String::new, |p| p.nickname.clone()),
            )),
            conn: Some(*conn),
        });
        let targets = self.targets.iter().filter_map(|(address, target)| {
            let state = match (target.state, &target.error) {
                (State::Waiting, Some(_)) => ConnectionState::Failed,
                (State::Attempting, Some(_)) => ConnectionState::Retrying,
                (State::Attempting | State::Waiting, None) => ConnectionState::Connecting,
                (State::Connected | State::Suspended, _) => return None,
            };
            let next = target
                .try_at
                .map_or(Retry::Never, |at| Retry::In(at.saturating_sub(now)));
            Some(ConnectionStatus {
                address,
                outbound: true,
                state,
                error: target.error.clone(),
                retry: (state == ConnectionState::Failed).then_some(next),
                remote: None,
                conn: None,
            })
        });
        connections.chain(targets).collect()
    }
}
