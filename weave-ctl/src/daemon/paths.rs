//! The overlays and the loop: what the paths to neighbours ask for, and what they are told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddrV4;

use aya::maps::{MapData, RingBuf};

use super::core::{BATCH, Daemon};
use super::neighbours::{Actions, NewConnection};
use crate::mesh::core::Input;
use crate::mesh::handshake::Features;
use crate::mesh::name::{PeerName, ShortId};
use crate::mesh::{ConnId, Now};
use crate::overlay::fastdp::heartbeat::Received;
use crate::overlay::fastdp::maps;
use crate::overlay::forwarding::{Best, View};
use crate::overlay::sleeve::{FloodTree, Hop, NewLink, Session, Tables};
use crate::overlay::switch::Action;

impl Daemon {
    /// Looks which neighbours the fast path still has frames for.
    pub(super) fn check_traffic(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        let (mesh, Ok(datapath)) = (&self.mesh, &mut self.overlays.fastdp) else {
            return Ok(());
        };
        let used = |remote| match mesh.short_id_of(remote) {
            Some(id) => datapath.take_traffic(id.get()),
            None => Ok(false),
        };
        let actions = self.neighbours.check_traffic(now, used)?;
        self.act(actions);
        Ok(())
    }

    /// Heartbeats of the fast path have come, or news of traffic. True once nothing is left: the kernel
    /// does not tell of new ones while old ones wait.
    pub(super) fn on_ring(&mut self, ring: &mut RingBuf<MapData>) -> bool {
        let now = self.now();
        for _ in 0..BATCH {
            let Some(item) = ring.next() else {
                return true;
            };
            let Some(heartbeat) = maps::heartbeat(&item) else {
                continue;
            };
            drop(item);
            let traffic = heartbeat.frame_len == 0;
            let id = if traffic { heartbeat.dst } else { heartbeat.src };
            let owner = ShortId::new(id.into()).and_then(|id| self.mesh.short_id_owner(id));
            let Some(remote) = owner else {
                continue;
            };
            if traffic {
                let actions = self.neighbours.on_traffic(now, remote);
                self.act(actions);
                continue;
            }
            let received = Received {
                conn_uid: heartbeat.conn_uid,
                frame_len: heartbeat.frame_len,
                claimed_len: heartbeat.claimed_len,
                from: heartbeat.outer_src.into(),
            };
            let actions = self.neighbours.on_heartbeat(now, remote, received);
            self.act(actions);
        }
        false
    }

    /// Carries out what paths ask for.
    pub(super) fn act(&mut self, actions: Actions) {
        for (conn, action) in actions {
            let Some(neighbour) = self.neighbours.get(conn) else {
                continue;
            };
            let remote = neighbour.remote;
            match action {
                Action::FastdpHeartbeat => {
                    let (dst, mtu) = (self.mesh.short_id_of(remote), self.mtu.bytes);
                    if let Some(src) = self.mesh.short_id_of(self.name) {
                        self.neighbours.send_heartbeat(conn, dst, src, mtu);
                    }
                }
                Action::Sleeve(special) => {
                    if let Ok(engine) = &self.overlays.sleeve
                        && let Err(error) = engine.send(conn, special)
                    {
                        tracing::debug!("cannot send {special:?} to {remote}: {error}");
                    }
                }
                Action::SleeveChanged => {
                    if let (Ok(engine), Some(state)) = (&self.overlays.sleeve, neighbour.sleeve_state()) {
                        tracing::debug!("sleeve to {remote}: {state:?}");
                        engine.update(conn, state);
                    }
                    self.tables_stale = true;
                }
                Action::Control { index, tag, data } => self.mesh_input(Input::OverlayControl {
                    conn,
                    index,
                    tag,
                    data,
                }),
                Action::Established => self.mesh_input(Input::Established { conn }),
                Action::Changed => {
                    self.neighbours.tell_change(self.now(), conn);
                    self.tables_stale = true;
                }
                Action::FastdpMoved => {
                    if let Some(path) = neighbour.switch.fastdp() {
                        tracing::info!("Peer IP address changed to {}", path.remote());
                    }
                    // Looked up within this turn.
                    self.due.resolve = Now::ZERO;
                    self.tables_stale = true;
                }
                Action::Close => {
                    self.connections.close(conn);
                    let error = format!("no working forwarders to {remote}");
                    self.mesh_input(Input::Closed { conn, error });
                }
            }
        }
    }

    /// A connection is part of the mesh: its paths begin.
    pub(super) async fn added(
        &mut self,
        conn: ConnId,
        remote: PeerName,
        conn_uid: u64,
        features: &Features,
        outbound: bool,
    ) -> anyhow::Result<()> {
        let Some(started) = self.connections.start(conn) else {
            return Ok(());
        };
        // In clear if both ends trust the network between them (wire.md 2.7).
        let trusted = started.trusted_by_us && features.trusted;
        let session = started.session.filter(|_| !trusted);
        let new = NewConnection {
            conn,
            remote,
            conn_uid,
            features,
            outbound,
            ends: started.ends,
            our_port: self.options.port,
            sealed: self.options.password.is_some().then_some(session.is_some()),
            no_fastdp: self.overlays.no_fastdp(&self.options),
            no_sleeve: self.overlays.sleeve.as_ref().err().map(String::as_str),
        };
        let neighbour = match self.neighbours.add(self.now(), new) {
            Ok(neighbour) => neighbour,
            Err(error) => {
                self.connections.close(conn);
                let error = error.to_string();
                self.mesh_input(Input::Closed { conn, error });
                return Ok(());
            }
        };
        if let (Ok(engine), Some(state)) = (&self.overlays.sleeve, neighbour.sleeve_state()) {
            let link = NewLink {
                conn,
                remote,
                session: session.map(|key| Session { key, outbound }),
                strict_source: !neighbour.original,
            };
            engine.add(link, state);
        }
        if neighbour.switch.fastdp().is_some() {
            let port = neighbour.port;
            if let Err(error) = self.receive_on(port).await {
                tracing::warn!("{error}");
            }
        }
        self.resolve(Some(conn)).await
    }

    /// Tells the maps and the workers of sleeve where frames go now.
    pub(super) fn write_tables(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        let view = self.view();
        if let Ok(engine) = &self.overlays.sleeve {
            engine.set_tables(self.sleeve_tables(&view));
        }
        if self.overlays.fastdp.is_ok() {
            let tables = self.forwarding.update(now, &view);
            if let Some(datapath) = self.datapath() {
                datapath.apply(&tables)?;
            }
        }
        Ok(())
    }

    /// What the workers of sleeve look up.
    fn sleeve_tables(&self, view: &View) -> Tables {
        let own = self.mesh.short_id_of(self.name).map(|id| (self.name, id));
        let numbered = view.peers.iter().map(|(name, id)| (*name, *id)).chain(own);
        let ids: HashMap<PeerName, u16> = numbered.map(|(name, id)| (name, id.get())).collect();
        let hops: BTreeMap<PeerName, Hop> = self
            .neighbours
            .iter()
            .filter_map(|(conn, neighbour)| {
                let hop = match neighbour.switch.best()? {
                    Best::Sleeve => Hop::Sleeve(conn),
                    Best::Fastdp => Hop::Vxlan {
                        remote: SocketAddrV4::new(neighbour.switch.fastdp()?.remote(), neighbour.port),
                        local: neighbour.ends.0,
                    },
                };
                Some((neighbour.remote, hop))
            })
            .collect();
        let with_hop = |via: &PeerName| Some((*via, *hops.get(via)?));
        Tables {
            mtu: u16::try_from(self.mtu.bytes).unwrap_or(u16::MAX),
            by_id: ids.iter().map(|(name, id)| (*id, *name)).collect(),
            ids,
            known: self.mesh.peers().map(|peer| peer.name).collect(),
            unicast: view
                .routes
                .iter()
                .filter_map(|(to, via)| Some((*to, *hops.get(via)?)))
                .collect(),
            floods: view
                .floods
                .iter()
                .map(|(origin, tree)| {
                    let hops = tree.to.iter().filter_map(with_hop).collect();
                    (
                        *origin,
                        FloodTree {
                            from: tree.from,
                            hops,
                        },
                    )
                })
                .collect(),
        }
    }

    fn view(&self) -> View {
        let mesh = &self.mesh;
        let own = mesh.short_id_of(self.name).map_or(0, |id| id.get().into());
        let owns = |name: PeerName| {
            mesh.short_id_of(name)
                .filter(|id| mesh.short_id_owner(*id) == Some(name))
        };
        let peers = mesh
            .peers()
            .map(|peer| peer.name)
            .filter(|name| *name != self.name);
        View {
            own,
            own_name: Some(self.name),
            peers: peers.filter_map(|name| Some((name, owns(name)?))).collect(),
            routes: mesh
                .unicast_routes()
                .filter_map(|(to, via)| Some((to, via?)))
                .collect(),
            links: self.neighbours.links(self.mtu.bytes, |port| {
                self.overlays.fastdp.as_ref().ok()?.vxlan(port)
            }),
            sleeves: self.neighbours.sleeves(),
            best: self.neighbours.best(),
            floods: self.floods.clone(),
            orphans: self.orphans(),
        }
    }

    /// Peers that say that they are connected with us, while we are not with them.
    fn orphans(&self) -> BTreeSet<PeerName> {
        let peers = self.mesh.peers();
        peers
            .filter(|peer| peer.is_established_with(self.name))
            .map(|peer| peer.name)
            .filter(|name| self.mesh.connection_to(*name).is_none())
            .collect()
    }
}
