//! The daemon's loop: everything that happens goes through here, one thing after the other.
//!
//! In each turn: handle what came, write the maps if forwarding changed, begin to save what must outlive
//! us. Answers and messages are held until that is on disk; the loop does not wait for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use aya::maps::{MapData, RingBuf};
use tokio::io::unix::{AsyncFd, AsyncFdReadyMutGuard};
use tokio::sync::mpsc;

use super::chores::Due;
use super::connections::{Connections, OurFeatures, Secrecy};
use super::event::{Event, Events};
use super::mtu::Mtu;
use super::neighbours::Neighbours;
use super::overlays::Overlays;
use super::requests::Waiting;
use super::saver::Saver;
use crate::cli::launch::LaunchOptions;
use crate::dns;
use crate::dns::names::{self, Names};
use crate::dns::zone::SharedZone;
use crate::docker::events::ContainerEvent;
use crate::ipam::allocator::{Allocator, CHANNEL};
use crate::ipam::talk::{self, Talk};
use crate::mesh::channel::{Channel, Channels, Outlet};
use crate::mesh::claim::Claim;
use crate::mesh::core::{Input, Introduction, Mesh, Output};
use crate::mesh::handshake::Features;
use crate::mesh::name::PeerName;
use crate::mesh::routes::Tree;
use crate::mesh::{ConnId, Now};
use crate::net::Netlink;
use crate::net::watch::Watcher;
use crate::overlay::fastdp::datapath::Datapath;
use crate::overlay::fastdp::maps;
use crate::overlay::forwarding::Forwarding;
use crate::store::{Identity, Store};

/// Events handled in one turn at most, so that answers and saving do not wait for ever.
pub(super) const BATCH: usize = 256;

/// The channels we have.
pub struct OurChannels {
    /// IP allocation, unless disabled.
    pub ipam: Option<Allocator>,
    /// What peers with IP allocation say about takeovers.
    pub talk: Talk,
    /// WeaveDNS, unless disabled.
    pub names: Option<Names>,
}

impl Channels for OurChannels {
    fn names(&self) -> Vec<&'static str> {
        let ipam = self.ipam.iter().flat_map(|_| [CHANNEL, talk::CHANNEL]);
        ipam.chain(self.names.iter().map(|_| names::CHANNEL)).collect()
    }
    fn get(&mut self, name: &str) -> Option<&mut dyn Channel> {
        match (name, &mut self.ipam, &mut self.names) {
            (CHANNEL, Some(ipam), _) => Some(ipam),
            (talk::CHANNEL, Some(_), _) => Some(&mut self.talk),
            (names::CHANNEL, _, Some(names)) => Some(names),
            _ => None,
        }
    }
}

/// How the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The overlay stops; containers of this host go on talking to each other.
    Stop,
    /// The kernel goes on until the next daemon takes over.
    HandOver,
    /// This host has another name now: the next daemon is to start at once.
    Renamed,
}

/// What the loop is made from.
pub struct Parts {
    /// As launched.
    pub options: LaunchOptions,
    /// Password and trusted subnets.
    pub secrecy: Arc<Secrecy>,
    /// Our name.
    pub name: PeerName,
    /// Which process that name is (wire.md 1.2).
    pub uid: u64,
    /// The name with what is persisted of it.
    pub identity: Identity,
    /// The mesh.
    pub mesh: Mesh,
    /// Its channels.
    pub channels: OurChannels,
    /// What DNS questions are answered from.
    pub zone: SharedZone,
    /// The persistent state.
    pub store: Store,
    /// What carries frames.
    pub overlays: Overlays,
    /// WeaveDNS's server, unless disabled.
    pub resolver: Option<dns::server::Handle>,
    /// Into the host's namespace.
    pub nl: Netlink,
    /// Said in handshakes.
    pub ours: OurFeatures,
    /// Overlay MTU.
    pub mtu: Mtu,
    /// The way to the loop, and its end.
    pub events: (Events, mpsc::Receiver<Event>),
}

/// The daemon.
pub struct Daemon {
    pub(super) options: LaunchOptions,
    pub(super) name: PeerName,
    pub(super) uid: u64,
    pub(super) identity: Identity,
    pub(super) claim: Option<Claim>,
    pub(super) renamed: bool,
    /// Interfaces of containers on the bridge.
    pub(super) ports: BTreeSet<u32>,
    pub(super) mesh: Mesh,
    pub(super) channels: OurChannels,
    pub(super) zone: SharedZone,
    /// Peers that we have a way to.
    pub(super) reachable: BTreeSet<PeerName>,
    pub(super) store: Arc<Store>,
    pub(super) saver: Saver,
    pub(super) overlays: Overlays,
    pub(super) neighbours: Neighbours,
    pub(super) mtu: Mtu,
    pub(super) waiting: Waiting,
    pub(super) started: Instant,
    pub(super) forwarding: Forwarding,
    pub(super) floods: BTreeMap<PeerName, Tree>,
    pub(super) connections: Connections,
    pub(super) resolver: Option<dns::server::Handle>,
    pub(super) nl: Netlink,
    ours: OurFeatures,
    pub(super) events: Events,
    inbox: Option<mpsc::Receiver<Event>>,
    pub(super) outputs: VecDeque<Output>,
    pub(super) to_pump: BTreeSet<ConnId>,
    pub(super) tables_stale: bool,
    pub(super) clock_base: u32,
    pub(super) due: Due,
}

/// The ring of heartbeats, readable like a socket.
struct Ring(RingBuf<MapData>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

fn open_ring(bpf_dir: &Path) -> anyhow::Result<AsyncFd<Ring>> {
    let ring = maps::open_events(bpf_dir)?;
    // SAFETY: the ring owns its descriptor and lives as long as the registration.
    unsafe { AsyncFd::register(Ring(ring)) }
        .map_err(io::Error::from)
        .context("cannot wait for heartbeats")
}

/// Never, without a ring.
async fn readable(ring: &mut Option<AsyncFd<Ring>>) -> io::Result<AsyncFdReadyMutGuard<'_, Ring>> {
    match ring {
        Some(ring) => ring.readable_mut().await,
        None => std::future::pending().await,
    }
}

pub(super) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Daemon {
    /// Ready to run.
    pub fn new(parts: Parts) -> anyhow::Result<Self> {
        let Parts {
            options,
            secrecy,
            name,
            uid,
            identity,
            mesh,
            channels,
            zone,
            store,
            overlays,
            resolver,
            nl,
            ours,
            mtu,
            events,
        } = parts;
        let left = match &overlays.fastdp {
            Ok(datapath) => datapath.left_behind()?,
            Err(_) => BTreeMap::new(),
        };
        if !left.is_empty() {
            tracing::info!("Adopted {} next hops of an earlier controller", left.len());
        }
        let mut mesh = mesh;
        mesh.count_channels(channels.names());
        let store = Arc::new(store);
        let connections = Connections::new(events.0.clone(), ours.clone(), secrecy, options.host);
        Ok(Self {
            forwarding: Forwarding::adopt(Now::ZERO, left),
            clock_base: overlays.fastdp.as_ref().map_or(0, Datapath::clock_s),
            options,
            name,
            uid,
            identity,
            claim: None,
            renamed: false,
            ports: BTreeSet::new(),
            mesh,
            channels,
            zone,
            reachable: BTreeSet::from([name]),
            saver: Saver::new(store.clone())?,
            store,
            overlays,
            neighbours: Neighbours::default(),
            mtu,
            waiting: Waiting::default(),
            started: Instant::now(),
            floods: BTreeMap::new(),
            connections,
            resolver,
            nl,
            ours,
            events: events.0,
            inbox: Some(events.1),
            outputs: VecDeque::new(),
            to_pump: BTreeSet::new(),
            tables_stale: true,
            due: Due::default(),
        })
    }

    /// The fast path, if this host has one.
    pub(super) fn datapath(&mut self) -> Option<&mut Datapath> {
        self.overlays.fastdp.as_mut().ok()
    }

    pub(super) fn now(&self) -> Now {
        self.started.elapsed()
    }

    /// Runs until `stop` completes, which says what is to be left behind, or until we have another name.
    pub async fn run(mut self, stop: impl Future<Output = Ending>) -> anyhow::Result<Ending> {
        let mut inbox = self.inbox.take().context("the daemon runs once")?;
        let mut watcher = Watcher::open(self.nl.ns()).await?;
        let mut ring = match self.overlays.fastdp {
            Ok(_) => Some(open_ring(&self.options.paths.bpf_dir)?),
            Err(_) => None,
        };
        self.scan_ports().await?;
        self.find_attached();
        self.dns_addresses().await;
        self.tell_claim();
        let mut stop = std::pin::pin!(stop);
        self.settle()?;
        let ending = loop {
            let deadline = tokio::time::Instant::from_std(self.started + self.next_deadline());
            tokio::select! {
                ending = &mut stop => break ending,
                Some(event) = inbox.recv() => {
                    self.on_event(event);
                    for _ in 1..BATCH {
                        let Ok(event) = inbox.try_recv() else { break };
                        self.on_event(event);
                    }
                }
                change = watcher.next() => self.on_change(change?).await?,
                guard = readable(&mut ring) => {
                    let mut guard = guard.context("cannot wait for heartbeats")?;
                    if self.on_ring(&mut guard.get_inner_mut().0) {
                        guard.clear_ready();
                    }
                }
                held = self.saver.saved() => self.release(held?),
                () = tokio::time::sleep_until(deadline) => {}
            }
            self.on_time().await?;
            self.carry_out().await?;
            self.settle()?;
            if self.renamed {
                break Ending::Renamed;
            }
        };
        self.shut_down(ending).await?;
        Ok(ending)
    }

    pub(super) fn mesh_input(&mut self, input: Input) {
        let outputs = self
            .mesh
            .handle(self.started.elapsed(), unix_now(), input, &mut self.channels);
        self.outputs.extend(outputs);
    }

    /// Lets IPAM act on its own behalf; `None` when it is disabled.
    pub(super) fn with_ipam<R>(
        &mut self,
        act: impl FnOnce(&mut Allocator, &mut dyn Outlet) -> R,
    ) -> Option<R> {
        let now = self.started.elapsed();
        let act = |channels: &mut OurChannels, out: &mut dyn Outlet| {
            channels.ipam.as_mut().map(|ipam| act(ipam, out))
        };
        let (result, outputs) = self
            .mesh
            .with_outlet(now, unix_now(), CHANNEL, &mut self.channels, act);
        self.outputs.extend(outputs);
        result
    }

    /// Carries what peers say about takeovers to IPAM, and its answers back.
    fn talk(&mut self) {
        let heard = self.channels.talk.take_heard();
        if !heard.is_empty() {
            self.with_ipam(|ipam, out| {
                for (from, say) in heard {
                    ipam.on_say(out, from, say);
                }
            });
        }
        let said = self.channels.ipam.as_mut().map(Allocator::take_said);
        let said = said.filter(|said| !said.is_empty()).unwrap_or_default();
        if said.is_empty() {
            return;
        }
        let now = self.started.elapsed();
        let act = |_: &mut OurChannels, out: &mut dyn Outlet| {
            for (to, say) in said {
                match to {
                    None => out.broadcast(Arc::new(say.encode())),
                    // Who asked has gone meanwhile.
                    Some(to) => drop(out.unicast(to, say.encode())),
                }
            }
        };
        let ((), outputs) = self
            .mesh
            .with_outlet(now, unix_now(), talk::CHANNEL, &mut self.channels, act);
        self.outputs.extend(outputs);
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Introduced {
                dialled,
                connected,
                features,
                our_conn_id,
            } => {
                let remote = connected.remote;
                let conn = self.connections.keep(*connected);
                self.mesh_input(Input::Introduced(Box::new(Introduction {
                    conn,
                    outbound: dialled.is_some(),
                    dialled,
                    remote,
                    features: *features,
                    our_conn_id,
                })));
            }
            Event::DialFailed {
                target,
                error,
                connected,
            } => {
                self.mesh_input(Input::DialFailed {
                    target,
                    error,
                    connected,
                });
            }
            Event::Moved(peer) => self.mesh_input(Input::Moved(peer)),
            Event::AcceptFailed { remote, error } => self.mesh_input(Input::AcceptFailed { remote, error }),
            Event::Received { conn, message } => self.mesh_input(Input::Received { conn, message }),
            Event::Closed { conn, error } => {
                self.connections.close(conn);
                self.mesh_input(Input::Closed { conn, error });
            }
            Event::WriterFree { conn } => {
                self.to_pump.insert(conn);
            }
            Event::Sleeve { conn, arrived } => {
                let actions = self.neighbours.on_sleeve(self.now(), conn, arrived);
                self.act(actions);
            }
            Event::Request(request) => self.on_request(request),
            Event::Found(containers) => self.claim_found(containers),
            Event::Container(event) => self.on_container(event),
        }
    }

    fn on_container(&mut self, event: ContainerEvent) {
        self.names_of_container(&event);
        self.with_ipam(|ipam, out| match event {
            ContainerEvent::Started(id) => ipam.container_started(&id),
            ContainerEvent::Died(id) => ipam.container_died(out, &id),
            ContainerEvent::Destroyed(id) => ipam.container_destroyed(&id),
            ContainerEvent::Running { ids, first: true } => ipam.retain_containers(&ids),
            ContainerEvent::Running { ids, first: false } => ipam.containers_died_except(out, &ids),
        });
    }

    /// Carries out what the mesh has asked for, and what follows from that.
    async fn carry_out(&mut self) -> anyhow::Result<()> {
        self.talk();
        while let Some(output) = self.outputs.pop_front() {
            match output {
                Output::Dial { target } => {
                    let texts = self.mesh.direct_at(target).map(str::to_owned).collect();
                    self.connections.dial(target, texts, self.options.port);
                }
                Output::Added {
                    conn,
                    remote,
                    conn_uid,
                    features,
                    outbound,
                    ..
                } => {
                    self.added(conn, remote, conn_uid, &features, outbound).await?;
                }
                Output::Farewell { conn, body } => self.connections.farewell(conn, body),
                Output::NameTaken(why) => self.give_up_name(&why)?,
                Output::Close { conn, reason } => {
                    tracing::info!("connection {conn} closed: {reason}");
                    self.connections.close(conn);
                }
                Output::Removed { conn, remote } => {
                    tracing::info!("connection to {remote} is gone");
                    self.connections.close(conn);
                    self.neighbours.remove(conn);
                    if let Ok(engine) = &self.overlays.sleeve {
                        engine.remove(conn);
                    }
                    self.tables_stale = true;
                }
                Output::Ready { conn } => {
                    self.to_pump.insert(conn);
                }
                Output::OverlayControlReceived {
                    conn,
                    index,
                    tag,
                    data,
                } => {
                    let actions = self.neighbours.on_control(self.now(), conn, index, tag, &data);
                    self.act(actions);
                }
                Output::RoutesChanged => {
                    self.floods = self.mesh.broadcast_routes();
                    self.tables_stale = true;
                    self.names_on_new_routes();
                }
                Output::ShortIdsChanged => self.tables_stale = true,
                Output::OwnShortIdChanged(id) => {
                    tracing::info!("our short ID is now {}", id.get());
                    if let Some(datapath) = self.datapath() {
                        datapath.set_short_id(id.get())?;
                    }
                    self.identity.short_id = Some(id);
                    self.store.save_identity(&self.identity)?;
                    self.tell_features(|features| features.short_id = Some(id));
                    self.tables_stale = true;
                }
                Output::PeerGone(peer) => {
                    tracing::info!("Removed unreachable peer {peer}");
                    if let Ok(engine) = &self.overlays.sleeve {
                        engine.forget_peer(peer);
                    }
                }
            }
        }
        self.resolve_if_due().await
    }

    pub(super) fn tell_features(&self, change: impl FnOnce(&mut Features)) {
        change(&mut self.ours.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
