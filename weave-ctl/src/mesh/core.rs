//! The mesh of one peer as a state machine: inputs in, outputs out, no clock and no socket.
//!
//! The driver calls [`Mesh::handle`] for everything that happens, and at [`Mesh::next_deadline`]
//! with [`Input::Tick`]; it carries out the outputs in order, and fetches what is to be sent on a
//! connection with [`Mesh::poll_send`] after [`Output::Ready`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::census::Census;
use super::channel::Channels;
use super::collisions::Contest;
use super::connections::Connection;
pub use super::events::{Config, Counters, Input, Introduction, Output};
use super::gossip::Relay;
use super::message::Message;
use super::name::PeerName;
use super::peers::Peers;
use super::queue::Item;
use super::reconcile::exchange::Asks;
use super::routes::Routes;
use super::short_ids::Effect;
use super::summary::PeerSummary;
use super::surrogate::Surrogates;
use super::targets::Targets;
use super::{ConnId, Now};

/// A heartbeat on every connection (wire.md 2.6).
pub const HEARTBEAT: Duration = Duration::from_secs(30);
/// Full state of every channel to random neighbours (wire.md 4.2.4).
pub const GOSSIP_INTERVAL: Duration = Duration::from_secs(30);
/// From a local event to the topology update (wire.md 4.2.4).
pub const UPDATE_DELAY: Duration = Duration::from_secs(1);
/// From an applied update to the collection of garbage (wire.md 4.2.6).
pub const GARBAGE_DELAY: Duration = Duration::from_secs(1);
/// From the first change to new routes (wire.md 4.4). Dialling is reconsidered as late.
pub const ROUTES_DELAY: Duration = Duration::from_millis(100);
/// With more peers than that it takes a millisecond longer for each.
const MANY_PEERS: usize = 300;
/// But never longer than this.
const LONGEST_ROUTES_DELAY: Duration = Duration::from_secs(1);

/// Times of what is due; `None` is not due.
#[derive(Debug)]
pub(super) struct Timers {
    pub(super) gossip: Now,
    pub(super) update: Option<Now>,
    pub(super) garbage: Option<Now>,
    pub(super) routes: Option<Now>,
    pub(super) dial: Option<Now>,
}

/// What one call brings along.
pub(super) struct Call<'a> {
    pub(super) now: Now,
    pub(super) unix_now: i64,
    pub(super) channels: &'a mut dyn Channels,
}

/// The mesh of one peer.
pub struct Mesh {
    pub(super) config: Config,
    pub(super) rng: SmallRng,
    pub(super) peers: Peers,
    pub(super) routes: Routes,
    pub(super) targets: Targets,
    pub(super) surrogates: Surrogates,
    pub(super) conns: BTreeMap<ConnId, Connection>,
    pub(super) by_remote: BTreeMap<PeerName, ConnId>,
    /// Kept in the table while its earlier connection makes room for a new one.
    pub(super) connecting: Option<PeerName>,
    pub(super) timers: Timers,
    /// Named in the next update besides ourselves.
    pub(super) update: BTreeSet<PeerName>,
    /// To be passed on once the routes are up to date.
    pub(super) waiting: BTreeMap<(Arc<str>, Relay), Item>,
    pub(super) waiting_bytes: usize,
    /// The connection whose message is being handled.
    pub(super) delivered_by: Option<ConnId>,
    /// Records that we have asked for.
    pub(super) asks: Asks,
    /// To be closed at the end of the call.
    pub(super) doomed: Vec<(ConnId, String)>,
    pub(super) out: Vec<Output>,
    pub(super) contest: Contest,
    /// Has a neighbour told us of the topology?
    pub(super) joined: bool,
    pub(super) terminations: u64,
    pub(super) counters: Counters,
    pub(super) census: Census,
    pub(super) stopped: bool,
}

impl Mesh {
    /// A mesh of one.
    #[must_use]
    pub fn new(config: Config, now: Now) -> Self {
        let peers = Peers::new(PeerSummary {
            name: config.name,
            nickname: config.nickname.clone(),
            uid: config.uid,
            version: 0,
            short_id: Some(config.short_id),
            connections: Vec::new(),
        });
        Self {
            rng: SmallRng::seed_from_u64(config.seed),
            routes: Routes::compute(&peers, config.name),
            targets: Targets::new(config.port, config.conn_limit),
            peers,
            config,
            surrogates: Surrogates::default(),
            conns: BTreeMap::new(),
            by_remote: BTreeMap::new(),
            connecting: None,
            timers: Timers {
                gossip: now + GOSSIP_INTERVAL,
                update: None,
                garbage: None,
                routes: None,
                dial: None,
            },
            update: BTreeSet::new(),
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            delivered_by: None,
            asks: Asks::default(),
            doomed: Vec::new(),
            out: Vec::new(),
            contest: Contest::default(),
            joined: false,
            terminations: 0,
            counters: Counters::default(),
            census: Census::default(),
            stopped: false,
        }
    }

    /// Something happened. `unix_now` in seconds.
    pub fn handle(
        &mut self,
        now: Now,
        unix_now: i64,
        input: Input,
        channels: &mut dyn Channels,
    ) -> Vec<Output> {
        let call = &mut Call {
            now,
            unix_now,
            channels,
        };
        if !self.stopped {
            self.dispatch(call, input);
            self.run_timers(call);
        }
        self.finish(call)
    }

    fn dispatch(&mut self, call: &mut Call<'_>, input: Input) {
        match input {
            Input::Tick => {}
            Input::Introduced(introduction) => self.introduced(call, *introduction),
            Input::Received { conn, message } => self.received(call, conn, message),
            Input::Closed { conn, error } => self.remove_connection(call, conn, error),
            Input::DialFailed {
                target,
                error,
                connected,
            } => self.dial_failed(call, target, error, connected),
            Input::AcceptFailed { remote, error } => {
                tracing::info!(%remote, %error, "connection shutting down due to error during handshake");
                self.terminations += 1;
            }
            Input::Connect { peers, replace } => {
                self.targets.connect(call.now, peers, replace);
                self.timers.dial = Some(call.now);
            }
            Input::Moved(peer) => {
                self.targets.moved(&peer);
                self.timers.dial = Some(call.now);
            }
            Input::Forget { peers } => {
                self.targets.forget(&peers);
                self.timers.dial = Some(call.now);
            }
            Input::Established { conn } => self.established(call, conn),
            Input::OverlayControl {
                conn,
                index,
                tag,
                data,
            } => {
                self.send(conn, Message::OverlayControl { index, tag, data }.encode());
            }
            Input::Shutdown => self.shutdown(call),
        }
    }

    /// When [`Input::Tick`] is due at the latest; `None` after a shutdown.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Now> {
        if self.stopped {
            return None;
        }
        let timers = [
            self.timers.update,
            self.timers.garbage,
            self.timers.routes,
            self.timers.dial,
            self.asks.check,
        ];
        let heartbeat = self.conns.values().map(|c| c.heartbeat_at).min();
        let others = [Some(self.timers.gossip), heartbeat, self.targets.next_try()];
        timers.into_iter().chain(others).flatten().min()
    }

    fn run_timers(&mut self, call: &mut Call<'_>) {
        let now = call.now;
        let due = |timer: &mut Option<Now>| timer.take_if(|at| *at <= now).is_some();
        let (routes, garbage) = (due(&mut self.timers.routes), due(&mut self.timers.garbage));
        let (update, dial) = (due(&mut self.timers.update), due(&mut self.timers.dial));
        if routes {
            self.recalculate(call);
        }
        if garbage {
            self.collect_garbage(call);
        }
        if update {
            self.send_update(call);
        }
        if call.now >= self.timers.gossip {
            self.timers.gossip = call.now + GOSSIP_INTERVAL;
            self.gossip_everything(call);
        }
        if due(&mut self.asks.check) {
            self.check_asks(call);
        }
        self.send_heartbeats(call.now);
        if dial || self.targets.next_try().is_some_and(|at| at <= call.now) {
            self.refresh_targets(call.now);
        }
    }

    /// Closes what is to be closed, and returns the outputs.
    pub(super) fn finish(&mut self, call: &mut Call<'_>) -> Vec<Output> {
        while let Some((conn, reason)) = self.doomed.pop() {
            self.close(call, conn, reason);
        }
        std::mem::take(&mut self.out)
    }

    /// The topology has changed: routes and targets are to be looked at.
    pub(super) fn topology_changed(&mut self, now: Now) {
        let delay = self.routes_delay();
        self.timers.routes.get_or_insert(now + delay);
        self.timers.dial.get_or_insert(now + delay);
    }

    /// In a large mesh changes come thick and fast, and each recalculation costs more.
    pub(super) fn routes_delay(&self) -> Duration {
        let beyond = self.peers.len().saturating_sub(MANY_PEERS) as u64;
        (ROUTES_DELAY + Duration::from_millis(beyond)).min(LONGEST_ROUTES_DELAY)
    }

    /// Our own record has changed: others are to be told.
    pub(super) fn schedule_update(&mut self, now: Now, about: Option<PeerName>) {
        self.timers.update.get_or_insert(now + UPDATE_DELAY);
        self.update.extend(about);
    }

    /// New routes, and what has waited for them.
    pub(super) fn recalculate(&mut self, call: &mut Call<'_>) {
        self.timers.routes = None;
        let routes = Routes::compute(&self.peers, self.config.name);
        if !routes.same_for_data(&self.routes) {
            self.out.push(Output::RoutesChanged);
        }
        self.routes = routes;
        self.send_waiting(call);
    }

    /// Acts on changes of the short-ID table (wire.md 1.4).
    pub(super) fn short_ids_changed(&mut self, now: Now, effects: &[Effect]) {
        if effects.iter().any(|e| e.changed) {
            self.out.push(Output::ShortIdsChanged);
        }
        if effects.iter().any(|e| e.ousted == Some(self.config.name)) {
            self.reassign_short_id(now);
        }
    }

    /// A topology was heard. If our short ID is taken in the first one, we move whatever the names: at once,
    /// before we dial others, and so that nobody who was there before us has to (weakness W12).
    pub(super) fn topology_heard(&mut self, now: Now) {
        if std::mem::replace(&mut self.joined, true) {
            return;
        }
        let Some(own) = self.own().and_then(|own| own.short_id) else {
            return;
        };
        let name = self.config.name;
        let taken = |peer: &PeerSummary| peer.name != name && peer.short_id == Some(own);
        if self.peers.iter().any(taken) {
            self.reassign_short_id(now);
            self.timers.update = Some(now);
        }
    }

    fn reassign_short_id(&mut self, now: Now) {
        let Some(id) = self.peers.short_ids().pick_free(&mut self.rng) else {
            tracing::warn!("no short ID is free: the fast path cannot address this peer");
            return;
        };
        self.peers.change_own_short_id(id);
        self.out
            .extend([Output::ShortIdsChanged, Output::OwnShortIdChanged(id)]);
        self.schedule_update(now, None);
    }

    /// Drops peers that we have no way to (wire.md 4.2.6).
    pub(super) fn collect_garbage(&mut self, call: &mut Call<'_>) {
        self.timers.garbage = None;
        let (gone, effects) = self.peers.collect_garbage(self.connecting);
        if gone.is_empty() {
            return;
        }
        self.topology_changed(call.now);
        self.short_ids_changed(call.now, &effects);
        let names = call.channels.names();
        for peer in gone {
            tracing::info!("Removed unreachable peer {}({})", peer.name, peer.nickname);
            self.out.push(Output::PeerGone(peer.name));
            for name in &names {
                self.with_channel(call, name, |channel, outlet| {
                    channel.on_peer_gone(outlet, peer.name)
                });
            }
        }
        let own = self.peers.get(self.config.name).and_then(|p| p.short_id);
        if own.is_some_and(|id| self.peers.short_ids().owner(id) != Some(self.config.name)) {
            self.reassign_short_id(call.now);
        }
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
