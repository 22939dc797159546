//! Gossip: what arrives, what is passed on, and to whom (wire.md 4).

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use rand::RngExt;

use super::channel::{Channel, Channels, GossipData, Neighbour, Outlet, Rejected, UnicastError};
use super::core::{Call, GARBAGE_DELAY, Mesh, Output};
use super::limit::RELAYED;
use super::message::{Envelope, Message};
use super::name::PeerName;
use super::peers::Applied;
use super::queue::{Item, Slot};
use super::routes::Edges;
use super::summary::{PeerSummary, decode_topology_news};
use super::{ConnId, Now};

/// The channel that the mesh itself uses.
pub const TOPOLOGY: &str = "topology";
/// What waits for routes is limited to this many bytes (counting each item for at least 1024).
const MAX_WAITING: usize = 16 << 20;

/// How an item is to be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Relay {
    /// To random neighbours, but not to this one.
    Gossip { except: PeerName },
    /// Along the tree of this originator.
    Broadcast { origin: PeerName },
}

/// What a channel wants to send.
#[derive(Default)]
struct Outgoing {
    unicasts: Vec<(ConnId, PeerName, Vec<u8>)>,
    broadcasts: Vec<GossipData>,
    gossip: Vec<GossipData>,
}

/// The mesh as a channel sees it during a call.
struct Exit<'a> {
    mesh: &'a Mesh,
    now: Now,
    unix_now: i64,
    said: Outgoing,
}

impl Outlet for Exit<'_> {
    fn now(&self) -> Now {
        self.now
    }
    fn unix_now(&self) -> i64 {
        self.unix_now
    }
    fn is_known(&self, peer: PeerName) -> bool {
        self.mesh.peers.get(peer).is_some()
    }
    fn nickname(&self, peer: PeerName) -> Option<String> {
        self.mesh.peers.get(peer).map(|p| p.nickname.clone())
    }
    fn active_targets(&self) -> usize {
        self.mesh.targets.active()
    }
    fn neighbour(&self) -> Option<Neighbour> {
        self.mesh.neighbour(self.mesh.delivered_by?)
    }
    fn unicast(&mut self, to: PeerName, payload: Vec<u8>) -> Result<(), UnicastError> {
        let conn = self.mesh.gossip_hop(to)?;
        self.said.unicasts.push((conn, to, payload));
        Ok(())
    }
    fn broadcast(&mut self, data: GossipData) {
        self.said.broadcasts.push(data);
    }
    fn gossip(&mut self, data: GossipData) {
        self.said.gossip.push(data);
    }
}

impl Mesh {
    /// Lets the owner of a channel act on its own behalf (timers, API requests). The closure gets
    /// the channels back, with their own type, and an outlet that sends on `channel`.
    pub fn with_outlet<C: Channels, R>(
        &mut self,
        now: Now,
        unix_now: i64,
        channel: &str,
        channels: &mut C,
        act: impl FnOnce(&mut C, &mut dyn Outlet) -> R,
    ) -> (R, Vec<Output>) {
        let mut exit = Exit {
            mesh: self,
            now,
            unix_now,
            said: Outgoing::default(),
        };
        let result = act(channels, &mut exit);
        let said = exit.said;
        let call = &mut Call {
            now,
            unix_now,
            channels,
        };
        self.send_for(call, channel, said);
        (result, self.finish(call))
    }

    /// Calls one of our channels; `None` if we do not have it.
    pub(super) fn with_channel<R>(
        &mut self,
        call: &mut Call<'_>,
        name: &str,
        act: impl FnOnce(&mut dyn Channel, &mut dyn Outlet) -> R,
    ) -> Option<R> {
        let channel = call.channels.get(name)?;
        let (now, unix_now) = (call.now, call.unix_now);
        let mut exit = Exit {
            mesh: self,
            now,
            unix_now,
            said: Outgoing::default(),
        };
        let result = act(channel, &mut exit);
        let said = exit.said;
        self.send_for(call, name, said);
        Some(result)
    }

    fn send_for(&mut self, call: &mut Call<'_>, channel: &str, said: Outgoing) {
        for (conn, to, payload) in said.unicasts {
            self.census.unicast(channel, payload.len());
            let envelope = Envelope {
                channel: channel.to_owned(),
                source: self.config.name,
                payload,
            };
            self.send(
                conn,
                Message::Unicast {
                    to,
                    envelope,
                    raw: None,
                }
                .encode(),
            );
        }
        let ours = self.config.name;
        let broadcasts = said
            .broadcasts
            .into_iter()
            .map(|data| (Relay::Broadcast { origin: ours }, data));
        let gossip = said
            .gossip
            .into_iter()
            .map(|data| (Relay::Gossip { except: ours }, data));
        for (relay, data) in broadcasts.chain(gossip) {
            let item = self.news(call, channel, data);
            self.relay(call, Arc::from(channel), relay, item);
        }
    }

    /// The connection on which a unicast leaves. A neighbour is reached directly even before the
    /// routes know it.
    fn gossip_hop(&self, to: PeerName) -> Result<ConnId, UnicastError> {
        if let Some(conn) = self.by_remote.get(&to) {
            return Ok(*conn);
        }
        let hop = self
            .routes
            .next_hop(to, Edges::All)
            .ok_or(UnicastError::NoRoute(to))?;
        self.by_remote
            .get(&hop)
            .copied()
            .ok_or(UnicastError::NotConnected(hop))
    }

    pub(super) fn neighbour(&self, conn: ConnId) -> Option<Neighbour> {
        self.conns.get(&conn).map(|c| Neighbour {
            name: c.remote,
            original: c.original,
        })
    }

    pub(super) fn received(&mut self, call: &mut Call<'_>, conn: ConnId, message: Message) {
        let Some(from) = self.conns.get(&conn).map(|c| c.remote) else {
            return;
        };
        self.delivered_by = Some(conn);
        self.census.came(&message);
        let verdict = match message {
            Message::Heartbeat => Ok(()),
            Message::NameTaken(holder) => {
                self.told_of_namesake(call.now, *holder);
                Ok(())
            }
            Message::Gossip(envelope) => self.on_gossip(call, conn, from, envelope),
            Message::Broadcast(envelope) => self.on_broadcast(call, conn, envelope),
            Message::Unicast { to, envelope, raw } => self.on_unicast(call, conn, to, envelope, raw),
            Message::Reconcile(payload) => {
                self.on_reconcile(call, conn, &payload);
                Ok(())
            }
            Message::OverlayControl { index, tag, data } => {
                self.out.push(Output::OverlayControlReceived {
                    conn,
                    index,
                    tag,
                    data,
                });
                Ok(())
            }
        };
        self.delivered_by = None;
        if let Err(Rejected(reason)) = verdict {
            self.doomed.push((conn, reason));
        }
    }

    fn on_gossip(
        &mut self,
        call: &mut Call<'_>,
        conn: ConnId,
        from: PeerName,
        envelope: Envelope,
    ) -> Result<(), Rejected> {
        let Envelope { channel, payload, .. } = envelope;
        let relay = Relay::Gossip { except: from };
        if channel == TOPOLOGY {
            let (changed, _) = self.apply_topology(call, &payload);
            if !changed.is_empty() {
                self.relay(call, channel.into(), relay, Item::Peers(changed));
            }
            return Ok(());
        }
        let heard = self.with_channel(call, &channel, |c, outlet| c.on_gossip(outlet, &payload));
        if let Some(heard) = heard {
            if let Some(data) = heard? {
                let item = self.news(call, &channel, data);
                self.relay(call, channel.into(), relay, item);
            }
        } else if let Some(name) = self.surrogate(call.now, &channel)
            && let Some(payload) = self.surrogates.unseen(call.now, &name, &payload)
            && self.may_relay(call.now, conn)
        {
            self.relay(call, name, relay, Item::Relayed(VecDeque::from([payload])));
        }
        Ok(())
    }

    fn on_broadcast(
        &mut self,
        call: &mut Call<'_>,
        conn: ConnId,
        envelope: Envelope,
    ) -> Result<(), Rejected> {
        let Envelope {
            channel,
            source,
            payload,
        } = envelope;
        if source == self.config.name {
            self.counters.loops_cut += 1;
            return Ok(());
        }
        let relay = Relay::Broadcast { origin: source };
        if channel == TOPOLOGY {
            let (_, mentioned) = self.apply_topology(call, &payload);
            if !mentioned.is_empty() && self.may_relay(call.now, conn) {
                self.relay(call, channel.into(), relay, Item::Peers(mentioned));
            }
            return Ok(());
        }
        let heard = self.with_channel(call, &channel, |c, outlet| {
            c.on_broadcast(outlet, source, &payload)
        });
        if let Some(heard) = heard {
            if let Some(data) = heard?
                && self.may_relay(call.now, conn)
            {
                let item = self.news(call, &channel, data);
                self.relay(call, channel.into(), relay, item);
            }
        } else if let Some(name) = self.surrogate(call.now, &channel)
            && self.may_relay(call.now, conn)
        {
            self.relay(call, name, relay, Item::Relayed(VecDeque::from([payload.into()])));
        }
        Ok(())
    }

    fn on_unicast(
        &mut self,
        call: &mut Call<'_>,
        from: ConnId,
        to: PeerName,
        envelope: Envelope,
        raw: Option<Vec<u8>>,
    ) -> Result<(), Rejected> {
        if envelope.source == self.config.name {
            self.counters.loops_cut += 1;
            return Ok(());
        }
        if to != self.config.name {
            if !self.may_relay(call.now, from) {
                return Ok(());
            }
            let body = raw.unwrap_or_else(|| {
                Message::Unicast {
                    to,
                    envelope,
                    raw: None,
                }
                .encode()
            });
            self.forward(from, to, body);
            return Ok(());
        }
        let Envelope {
            channel,
            source,
            payload,
        } = envelope;
        if channel == TOPOLOGY {
            // Nobody sends such. Whoever did is not the neighbour that relayed it.
            self.skip_topology(format_args!("a unicast of {} bytes from {source}", payload.len()));
            return Ok(());
        }
        self.with_channel(call, &channel, |c, outlet| c.on_unicast(outlet, source, &payload))
            .unwrap_or(Ok(()))
    }

    /// Is there anything left of what we pass on for this neighbour?
    fn may_relay(&mut self, now: Now, from: ConnId) -> bool {
        let may = self
            .conns
            .get_mut(&from)
            .is_some_and(|c| c.relays.take(now, RELAYED));
        self.counters.relays_limited += u64::from(!may);
        may
    }

    /// Passes a unicast on unchanged; never back to where it came from, as nothing else ends a loop.
    fn forward(&mut self, from: ConnId, to: PeerName, body: Vec<u8>) {
        match self.gossip_hop(to) {
            Ok(hop) if hop == from => self.counters.loops_cut += 1,
            Ok(hop)
                if !self
                    .conns
                    .get(&hop)
                    .is_some_and(|c| c.queue.has_room_to_relay(body.len())) =>
            {
                self.counters.relays_dropped += 1;
            }
            Ok(hop) => self.send(hop, body),
            Err(error) => {
                tracing::debug!(%error, "cannot relay a gossip unicast");
                self.counters.unicasts_unroutable += 1;
            }
        }
    }

    /// Under which name we pass on what we do not understand; `None`: there are too many such channels.
    pub(super) fn surrogate(&mut self, now: Now, channel: &str) -> Option<Arc<str>> {
        let name = self.surrogates.channel(now, channel);
        self.counters.channels_refused += u64::from(name.is_none());
        name
    }

    /// Counts what cannot be used. It ends no connection: the next one would bring the same (W1).
    fn skip_topology(&mut self, what: std::fmt::Arguments<'_>) {
        self.counters.topology_messages_skipped += 1;
        if self.counters.topology_messages_skipped.is_power_of_two() {
            let skipped = self.counters.topology_messages_skipped;
            tracing::warn!("skipping topology gossip, {skipped} so far: {what}");
        }
    }

    /// Applies a topology payload; returns the names that were news, and all names in it.
    fn apply_topology(
        &mut self,
        call: &Call<'_>,
        payload: &[u8],
    ) -> (BTreeSet<PeerName>, BTreeSet<PeerName>) {
        let mut skipped = 0;
        let update = decode_topology_news(payload, &mut skipped, |peer| self.peers.is_news(peer));
        let update = match update {
            Ok(update) => update,
            Err(error) => {
                self.skip_topology(format_args!("{error}"));
                return (BTreeSet::new(), BTreeSet::new());
            }
        };
        self.counters.topology_entries_skipped += skipped;
        let applied = self.take_in(call.now, update);
        (applied.changed, applied.mentioned)
    }

    /// What others say of the topology becomes ours.
    pub(super) fn take_in(&mut self, now: Now, update: Vec<PeerSummary>) -> Applied {
        let applied = self.peers.apply(update);
        self.counters.topology_entries_refused += applied.refused as u64;
        self.short_ids_changed(now, &applied.short_ids);
        self.topology_heard(now);
        if let Some(version) = applied.overtake {
            tracing::info!(version, "overtaking an earlier incarnation of ourselves");
            self.peers
                .change_own(|own| own.version = own.version.max(version));
            self.schedule_update(now, None);
        }
        self.timers.garbage.get_or_insert(now + GARBAGE_DELAY);
        if !applied.changed.is_empty() {
            self.topology_changed(now);
        }
        applied
    }

    /// What we originate after local events (wire.md 4.2.4).
    pub(super) fn send_update(&mut self, call: &mut Call<'_>) {
        let mut names = std::mem::take(&mut self.update);
        names.insert(self.config.name);
        self.relay(
            call,
            TOPOLOGY.into(),
            Relay::Gossip {
                except: self.config.name,
            },
            Item::Peers(names),
        );
    }

    /// Full state of every channel, each to a fresh choice of neighbours.
    pub(super) fn gossip_everything(&mut self, call: &mut Call<'_>) {
        let relay = Relay::Gossip {
            except: self.config.name,
        };
        self.relay(call, TOPOLOGY.into(), relay, Item::AllPeers);
        for name in call.channels.names() {
            if let Some(data) = self.full_state(call, name) {
                self.relay(call, name.into(), relay, Item::Data(data));
            }
        }
    }

    pub(super) fn full_state(&mut self, call: &mut Call<'_>, channel: &str) -> Option<GossipData> {
        self.with_channel(call, channel, |channel, outlet| channel.full_state(outlet))
            .flatten()
    }

    /// Passes an item on, once the routes are up to date.
    pub(super) fn relay(&mut self, call: &mut Call<'_>, channel: Arc<str>, relay: Relay, item: Item) {
        if self.timers.routes.is_none() {
            self.pass_on(call, &channel, relay, item);
            return;
        }
        self.waiting_bytes += item.relayed().1.max(1024);
        let key = (channel, relay);
        let item = match self.waiting.remove(&key) {
            Some(old) => old.merge(item, call.channels.get(&key.0)),
            None => item,
        };
        self.waiting.insert(key, item);
        if self.waiting_bytes > MAX_WAITING {
            self.recalculate(call);
        }
    }

    pub(super) fn send_waiting(&mut self, call: &mut Call<'_>) {
        self.waiting_bytes = 0;
        for ((channel, relay), item) in std::mem::take(&mut self.waiting) {
            self.pass_on(call, &channel, relay, item);
        }
    }

    fn pass_on(&mut self, call: &mut Call<'_>, channel: &Arc<str>, relay: Relay, item: Item) {
        let (hops, slot) = match relay {
            Relay::Gossip { except } => (self.random_neighbours(except), Slot::Gossip),
            Relay::Broadcast { origin } => (
                self.routes.broadcast(origin, Edges::All).to_vec(),
                Slot::Broadcast(origin),
            ),
        };
        for hop in hops {
            if let Some(conn) = self.by_remote.get(&hop).copied() {
                self.put(call, conn, (Arc::clone(channel), slot), item.clone());
            }
        }
    }

    /// `2·log2 n` neighbours, likelier those with more peers behind them (wire.md 4.3).
    fn random_neighbours(&mut self, except: PeerName) -> Vec<PeerName> {
        let mut left: Vec<(PeerName, u32)> = self
            .routes
            .weights()
            .iter()
            .filter(|(name, _)| *name != except)
            .copied()
            .collect();
        let wanted = (2.0 * (self.routes.gossip_entries().max(1) as f64).log2()) as usize;
        let mut total: u32 = left.iter().map(|(_, weight)| weight).sum();
        let mut chosen = Vec::new();
        while chosen.len() < wanted && total > 0 {
            let mut ticket = self.rng.random_range(0..total);
            let drawn = left.iter().position(|(_, weight)| {
                let hit = ticket < *weight;
                ticket = ticket.saturating_sub(*weight);
                hit
            });
            let Some(drawn) = drawn else { break };
            let (name, weight) = left.swap_remove(drawn);
            total -= weight;
            chosen.push(name);
        }
        chosen
    }
}
