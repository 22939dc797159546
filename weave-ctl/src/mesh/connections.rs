//! Connections of the mesh: introduction, tie-break, limit, end (wire.md 2.7, 2.8, 2.10).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::channel::FEATURE_IMPLEMENTATION;
use super::claim::{Claim, Holder};
use super::core::{Call, GARBAGE_DELAY, HEARTBEAT, Introduction, Mesh, Output};
use super::gossip::TOPOLOGY;
use super::limit::Bucket;
use super::message::Message;
use super::name::PeerName;
use super::peers::MAX_PEERS;
use super::queue::{Item, Queue, Slot};
use super::reconcile::work::{Depth, Work};
use super::reconcile::{FEATURE, FEATURE_VALUE};
use super::routes::Edges;
use super::summary::{ConnectionSummary, PeerSummary};
use super::targets::{self, Ending, Link};
use super::{ConnId, Now};

/// A connection that is part of the mesh.
pub(super) struct Connection {
    pub(super) remote: PeerName,
    pub(super) remote_addr: SocketAddr,
    pub(super) remote_uid: u64,
    /// What the remote's right to its name rests on; an original does not say.
    claim: Option<Claim>,
    /// UID of the process whose connection this one has taken the place of.
    outlived: Option<u64>,
    pub(super) outbound: bool,
    pub(super) dialled: Option<SocketAddr>,
    pub(super) uid: u64,
    pub(super) established: bool,
    /// It does not say that it is another program than the original.
    pub(super) original: bool,
    /// We exchange records with it, not full states.
    pub(super) reconciles: bool,
    pub(super) heartbeat_at: Now,
    pub(super) queue: Queue,
    /// What we pass on for it.
    pub(super) relays: Bucket,
}

/// Why a connection does not become part of the mesh (texts of wire.md 2.7, 2.8).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("Found unknown remote name: {0} at {1}")]
    UnknownName(PeerName, SocketAddr),
    #[error("local \"{0}\" and remote \"{1}\" peer names collision")]
    Collision(String, String),
    #[error("peer names collision: another live peer is \"{0}\"")]
    Taken(String),
    #[error("cannot connect to ourself")]
    Ourself,
    #[error("Multiple connections to {0} added to {1}")]
    Multiple(String, String),
    #[error("{}", targets::limit_reached(*.0))]
    Limit(usize),
    #[error("Peer limit reached ({MAX_PEERS})")]
    PeerLimit,
}

impl Mesh {
    pub(super) fn introduced(&mut self, call: &mut Call<'_>, intro: Introduction) {
        let conn = intro.conn;
        let dialled = intro.dialled.map(targets::canonical);
        let remote = intro.features.name;
        if self.conns.contains_key(&conn) {
            return;
        }
        self.connecting = Some(remote);
        let outlived = self.connection_with(remote).and_then(|(_, old)| {
            let same = old.remote_uid == intro.features.uid;
            if same { old.outlived } else { Some(old.remote_uid) }
        });
        let verdict = self.admit(call, &intro, dialled);
        self.connecting = None;
        if let Some(target) = dialled {
            self.targets.answered(target, remote, verdict.is_ok());
        }
        if let Err(refusal) = verdict {
            self.refuse(call.now, conn, dialled, &refusal);
            self.timers.garbage.get_or_insert(call.now + GARBAGE_DELAY);
            return;
        }
        tracing::info!(conn, %remote, outbound = intro.outbound, "connection added");
        self.add_connection(call, intro, dialled, outlived);
    }

    /// All checks in their order; may close an earlier connection in favour of this one.
    fn admit(
        &mut self,
        call: &mut Call<'_>,
        intro: &Introduction,
        dialled: Option<SocketAddr>,
    ) -> Result<(), Refusal> {
        let theirs = &intro.features;
        let own = self.config.name;
        let may_introduce = !intro.outbound || dialled.is_some_and(|target| self.targets.is_direct(target));
        let known = self.peers.get(theirs.name).is_some();
        if !known && !may_introduce {
            return Err(Refusal::UnknownName(
                theirs.name,
                targets::canonical(intro.remote),
            ));
        }
        if theirs.name == own && theirs.uid == self.config.uid {
            return Err(Refusal::Ourself);
        }
        if theirs.name == own {
            self.met_namesake(call.now, intro);
            let remote = format!("{}({})", theirs.name, theirs.nickname);
            return Err(Refusal::Collision(self.peers.full_name(own), remote));
        }
        let shown = if known {
            self.peers.full_name(theirs.name)
        } else {
            format!("{}({})", theirs.name, theirs.nickname)
        };
        if self.is_contested(intro) {
            self.tell_namesakes(intro);
            return Err(Refusal::Taken(shown));
        }
        let multiple = Refusal::Multiple(shown, self.peers.full_name(own));
        let uid = intro.our_conn_id ^ theirs.conn_id;
        if let Some((old_conn, old)) = self.connection_with(theirs.name) {
            // A connection with an earlier incarnation is dead, whatever its number.
            let outlived = old.remote_uid != theirs.uid;
            let (loses, wins) = (uid > old.uid && !outlived, uid < old.uid || outlived);
            if !loses {
                self.close(call, old_conn, multiple.to_string());
            }
            if !wins {
                return Err(multiple);
            }
        }
        let limit = self.config.conn_limit;
        if limit > 0 && self.conns.len() >= limit {
            let Some(conn) = self.dispensable(theirs.name) else {
                return Err(Refusal::Limit(limit));
            };
            self.close(call, conn, Refusal::Limit(limit).to_string());
        }
        if self.peers.get(theirs.name).is_none() && self.peers.is_full() {
            return Err(Refusal::PeerLimit);
        }
        Ok(())
    }

    /// The connection to give up for a peer that nobody leads to: those who know each other must not shut out
    /// one that knows only us. It is the one that is missed least, as its remote has the most others.
    fn dispensable(&self, stranger: PeerName) -> Option<ConnId> {
        if self.routes.next_hop(stranger, Edges::All).is_some() {
            return None;
        }
        let others = |c: &Connection| self.peers.get(c.remote).map_or(0, |p| p.connections.len());
        let candidates = self.conns.iter().map(|(conn, c)| (others(c), *conn));
        let (links, conn) = candidates.max()?;
        (links > 2).then_some(conn)
    }

    /// Does the remote have the name of a neighbour that is alive? What an earlier process of the same peer
    /// leaves behind looks alike: it has the same instance, and does not come again.
    fn is_contested(&self, intro: &Introduction) -> bool {
        let theirs = &intro.features;
        let Some((_, old)) = self.connection_with(theirs.name) else {
            return false;
        };
        let (Some(held), Some(new)) = (old.claim, Claim::of(theirs)) else {
            return false;
        };
        held.uid != new.uid && (held.instance != new.instance || old.outlived == Some(new.uid))
    }

    /// Each is told of the other; they come to the same decision (`claim`). The one that was first stays
    /// connected until then.
    fn tell_namesakes(&mut self, intro: &Introduction) {
        let theirs = &intro.features;
        let full = self.peers.get(theirs.name).map(|p| p.nickname.clone());
        let Some((old_conn, old)) = self.connection_with(theirs.name) else {
            return;
        };
        let dialled = |addr: SocketAddr, dialled| {
            let port = if dialled { addr.port() } else { self.config.port };
            Some(targets::canonical(SocketAddr::new(addr.ip(), port)))
        };
        let told = |holder| Message::NameTaken(Box::new(holder)).encode();
        let first = old.claim.map(|claim| Holder {
            name: theirs.name,
            nickname: full.unwrap_or_default(),
            address: dialled(old.remote_addr, old.outbound),
            claim,
        });
        let second = Claim::of(theirs).map(|claim| Holder {
            name: theirs.name,
            nickname: theirs.nickname.clone(),
            address: dialled(intro.remote, intro.outbound),
            claim,
        });
        if let Some((first, second)) = first.zip(second) {
            let body = told(first);
            self.out.push(Output::Farewell {
                conn: intro.conn,
                body,
            });
            self.send(old_conn, told(second));
        }
    }

    fn refuse(&mut self, now: Now, conn: ConnId, dialled: Option<SocketAddr>, refusal: &Refusal) {
        tracing::info!(conn, %refusal, "connection refused");
        let hopeless = match refusal {
            Refusal::Ourself => true,
            Refusal::Collision(..) => !self.collision_may_end(),
            _ => false,
        };
        let ending = if hopeless {
            Ending::Hopeless
        } else {
            Ending::NotMade
        };
        if let Some(target) = dialled {
            self.targets
                .ended(now, target, ending, refusal.to_string(), &mut self.rng);
        }
        self.terminations += u64::from(*refusal != Refusal::Ourself);
        self.timers.dial = Some(now);
        self.out.push(Output::Close {
            conn,
            reason: refusal.to_string(),
        });
    }

    fn add_connection(
        &mut self,
        call: &mut Call<'_>,
        intro: Introduction,
        dialled: Option<SocketAddr>,
        outlived: Option<u64>,
    ) {
        let Introduction {
            conn,
            outbound,
            features,
            our_conn_id,
            ..
        } = intro;
        let remote = features.name;
        let remote_addr = targets::canonical(intro.remote);
        // A peer inserted just now has the same UID, but no route leads to it yet.
        let introduced = self.peers.introduce(PeerSummary {
            name: remote,
            nickname: features.nickname.clone(),
            uid: features.uid,
            version: 0,
            short_id: features.short_id,
            connections: Vec::new(),
        });
        self.short_ids_changed(call.now, introduced.as_slice());
        let restarted = self.peers.get(remote).is_some_and(|p| p.uid != features.uid);
        let unreached = self.routes.next_hop(remote, Edges::Established).is_none();
        let uid = our_conn_id ^ features.conn_id;
        let reconciles = features.extra.get(FEATURE).is_some_and(|f| f == FEATURE_VALUE);
        self.conns.insert(
            conn,
            Connection {
                remote,
                remote_addr,
                remote_uid: features.uid,
                claim: Claim::of(&features),
                outlived,
                outbound,
                dialled,
                uid,
                established: false,
                original: !features.extra.contains_key(FEATURE_IMPLEMENTATION),
                reconciles,
                heartbeat_at: call.now + HEARTBEAT,
                queue: Queue::default(),
                relays: Bucket::new(call.now),
            },
        );
        self.by_remote.insert(remote, conn);
        self.peers.change_own(|own| {
            own.connections.push(ConnectionSummary {
                name: remote,
                remote_addr: remote_addr.to_string(),
                outbound,
                established: false,
            });
        });
        self.out.push(Output::Added {
            conn,
            remote,
            conn_uid: uid,
            features: Box::new(features),
            outbound,
            remote_addr,
        });
        if reconciles {
            self.begin_reconciling(call, conn, outbound);
        } else if restarted || unreached {
            self.send_full_state(call, conn);
        }
        self.topology_changed(call.now);
        self.schedule_update(call.now, Some(remote));
    }

    /// Everything we know, to a neighbour that may know nothing (wire.md 2.10).
    fn send_full_state(&mut self, call: &mut Call<'_>, conn: ConnId) {
        self.put(call, conn, (TOPOLOGY.into(), Slot::Gossip), Item::AllPeers);
        self.send_full_channels(call, conn);
    }

    fn send_full_channels(&mut self, call: &mut Call<'_>, conn: ConnId) {
        for name in call.channels.names() {
            if let Some(data) = self.full_state(call, name) {
                self.put(call, conn, (Arc::from(name), Slot::Gossip), Item::Data(data));
            }
        }
    }

    /// A neighbour that reconciles gets digests at once. That of the topology comes from one end only, as it leads
    /// to an exchange in both directions.
    fn begin_reconciling(&mut self, call: &mut Call<'_>, conn: ConnId, outbound: bool) {
        if outbound {
            let digest = Some(Depth::Long);
            self.add_work(
                conn,
                &TOPOLOGY.into(),
                Work {
                    digest,
                    ..Work::default()
                },
            );
        }
        self.send_full_channels(call, conn);
    }

    /// A neighbour cannot reconcile with us on this channel and has asked for everything.
    pub(super) fn send_full(&mut self, call: &mut Call<'_>, conn: ConnId, channel: &Arc<str>) {
        if let Some(data) = self.full_state(call, channel) {
            let key = (Arc::clone(channel), Slot::Gossip);
            self.put_item(conn, key, Item::Data(data), call.channels.get(channel));
        }
    }

    pub(super) fn established(&mut self, call: &mut Call<'_>, conn: ConnId) {
        let Some(connection) = self.conns.get_mut(&conn).filter(|c| !c.established) else {
            return;
        };
        connection.established = true;
        let remote = connection.remote;
        self.peers.change_own(|own| {
            if let Some(link) = own.connections.iter_mut().find(|l| l.name == remote) {
                link.established = true;
            }
        });
        let delay = self.routes_delay();
        self.timers.routes.get_or_insert(call.now + delay);
        self.schedule_update(call.now, None);
    }

    /// Closes from our side.
    pub(super) fn close(&mut self, call: &mut Call<'_>, conn: ConnId, reason: String) {
        if self.conns.contains_key(&conn) {
            self.out.push(Output::Close {
                conn,
                reason: reason.clone(),
            });
            self.remove_connection(call, conn, reason);
        }
    }

    pub(super) fn remove_connection(&mut self, call: &mut Call<'_>, conn: ConnId, error: String) {
        let Some(connection) = self.conns.remove(&conn) else {
            return;
        };
        let remote = connection.remote;
        tracing::info!(conn, %remote, %error, "connection removed");
        self.by_remote.remove(&remote);
        self.peers
            .change_own(|own| own.connections.retain(|l| l.name != remote));
        self.out.push(Output::Removed { conn, remote });
        self.terminations += 1;
        if let Some(target) = connection.dialled {
            self.targets
                .ended(call.now, target, Ending::Lost, error, &mut self.rng);
        }
        self.collect_garbage(call);
        self.topology_changed(call.now);
        self.schedule_update(call.now, None);
    }

    pub(super) fn dial_failed(
        &mut self,
        call: &mut Call<'_>,
        target: SocketAddr,
        error: String,
        connected: bool,
    ) {
        let target = targets::canonical(target);
        tracing::info!(%target, %error, "dial failed");
        self.terminations += u64::from(connected);
        self.targets
            .ended(call.now, target, Ending::NotMade, error, &mut self.rng);
        self.timers.dial.get_or_insert(call.now);
    }

    pub(super) fn shutdown(&mut self, call: &mut Call<'_>) {
        self.stopped = true;
        let all: Vec<ConnId> = self.conns.keys().copied().collect();
        for conn in all {
            self.close(call, conn, "weave is stopping".to_owned());
        }
        self.waiting.clear();
    }

    pub(super) fn send_heartbeats(&mut self, now: Now) {
        for (conn, connection) in &mut self.conns {
            if connection.heartbeat_at <= now {
                connection.heartbeat_at = now + HEARTBEAT;
                connection.queue.push_heartbeat();
                if !std::mem::replace(&mut connection.queue.announced, true) {
                    self.out.push(Output::Ready { conn: *conn });
                }
            }
        }
    }

    /// Whom to dial now (wire.md 5.2).
    pub(super) fn refresh_targets(&mut self, now: Now) {
        self.timers.dial = None;
        let links: Vec<Link> = self
            .conns
            .values()
            .map(|c| Link {
                addr: c.remote_addr,
                outbound: c.outbound,
                remote: c.remote,
            })
            .collect();
        let discovered = if self.config.discovery && self.targets.room(links.len()) > 0 {
            self.discovered()
        } else {
            BTreeSet::new()
        };
        let dial = self.targets.refresh(now, &links, discovered, &mut self.rng);
        self.out
            .extend(dial.into_iter().map(|target| Output::Dial { target }));
    }

    /// Addresses of peers that others are connected to, and we are not (wire.md 5.1).
    fn discovered(&self) -> BTreeSet<SocketAddr> {
        let own = self.config.name;
        if self.by_remote.len() + 1 >= self.peers.len() {
            return BTreeSet::new();
        }
        let strangers: BTreeSet<PeerName> = self
            .peers
            .iter()
            .map(|p| p.name)
            .filter(|n| *n != own && !self.by_remote.contains_key(n))
            .collect();
        self.peers
            .iter()
            .filter(|p| p.name != own)
            .flat_map(|p| &p.connections)
            .filter(|l| strangers.contains(&l.name))
            .filter_map(|l| targets::discovered(&l.remote_addr, l.outbound, self.config.port))
            .collect()
    }

    pub(super) fn connection_with(&self, remote: PeerName) -> Option<(ConnId, &Connection)> {
        let conn = *self.by_remote.get(&remote)?;
        Some((conn, self.conns.get(&conn)?))
    }
}
