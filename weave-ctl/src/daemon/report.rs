//! Everything about us, for `/report`, `/status` and `/metrics`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use nix::sys::resource::Resource;
use serde_json::{Value, json};
use weave_common::{Counters, NextHop};

use super::core::unix_now;
use super::core::{Daemon, OurChannels};
use super::neighbours::Neighbour;
use super::overlays::TAP;
use crate::api::backend::Detail;
use crate::api::report::{self, Attempt, Connection, FastDatapath, Process, Remote, Report, Router, State};
use crate::ipam::allocator::CHANNEL;
use crate::mesh::ConnId;
use crate::mesh::census;
use crate::mesh::channel::Outlet;
use crate::mesh::events::Sent;
use crate::mesh::gossip::TOPOLOGY;
use crate::mesh::name::{PeerName, ShortId};
use crate::mesh::status::{ConnectionState, ConnectionStatus, Retry};
use crate::net::mac_text;
use crate::overlay::fastdp::datapath::{Datapath, is_local};
use crate::overlay::forwarding::Best;
use crate::overlay::sleeve::{self, SLEEVE};
use crate::overlay::switch::FASTDP;

/// Mesh protocol versions spoken (wire.md 1.7).
const PROTOCOL: u8 = 2;

/// The name of the overlay that carries a neighbour's frames; the one tried first until one works.
fn overlay_in_use(neighbour: &Neighbour) -> &'static str {
    match (neighbour.switch.best(), neighbour.switch.fastdp()) {
        (Some(Best::Fastdp), _) | (None, Some(_)) => FASTDP,
        (Some(Best::Sleeve), _) | (None, None) => SLEEVE,
    }
}

impl Daemon {
    pub(super) fn report(&mut self, detail: Detail) -> Report {
        let now = self.now();
        let report = |channels: &mut OurChannels, out: &mut dyn Outlet| {
            channels.ipam.as_ref().map(|ipam| ipam.report(out))
        };
        // Reporting sends nothing, so there are no outputs to carry out.
        let (ipam, _) = self
            .mesh
            .with_outlet(now, unix_now(), CHANNEL, &mut self.channels, report);
        Report {
            ready: true,
            version: crate::VERSION.to_owned(),
            version_check: report::VersionCheck::default(),
            router: self.router(detail),
            ipam,
            dns: self.dns(detail),
            proxy: None,
            plugin: self.plugin(),
            fast_datapath: Some(self.fast_datapath()),
            sleeve: Some(self.sleeve()),
            gossip: Some(self.gossip()),
            process: Some(self.process()),
        }
    }

    fn collisions(&self) -> Vec<report::Collision> {
        let now = self.now();
        let seen = self.mesh.collisions(now);
        seen.map(|collision| report::Collision {
            name: self.name.to_string(),
            nick_name: collision.nickname.clone(),
            address: collision.address.map(|a| a.to_string()).unwrap_or_default(),
            seconds_ago: now.saturating_sub(collision.last).as_secs(),
            outcome: collision.outcome.clone(),
        })
        .collect()
    }

    fn nickname(&self, name: PeerName) -> String {
        self.mesh
            .peer(name)
            .map(|peer| peer.nickname.clone())
            .unwrap_or_default()
    }

    fn router(&mut self, detail: Detail) -> Router {
        let all = detail == Detail::All;
        let broadcast_routes = match detail {
            Detail::All => self.mesh.broadcast_routes(),
            Detail::Metrics => BTreeMap::new(),
        };
        let overlays = &self.overlays;
        let fastdp = overlays.fastdp.as_ref().ok();
        let fastdp = fastdp.map(|_| ("fastdp".to_owned(), json!({ "Vports": null, "Flows": null })));
        let sleeve = overlays
            .sleeve
            .as_ref()
            .ok()
            .map(|_| ("sleeve".to_owned(), Value::Null));
        Router {
            protocol: "weave".to_owned(),
            protocol_min_version: PROTOCOL,
            protocol_max_version: PROTOCOL,
            encryption: self.options.password.is_some(),
            peer_discovery: self.options.discovery,
            name: self.name.to_string(),
            nick_name: self.nickname(self.name),
            port: self.options.port,
            peers: self.peers(all),
            unicast_routes: self
                .mesh
                .unicast_routes()
                .filter(|_| all)
                .map(|(dest, via)| report::UnicastRoute {
                    dest: dest.to_string(),
                    via: via.map_or_else(|| "00:00:00:00:00:00".to_owned(), |via| via.to_string()),
                })
                .collect(),
            broadcast_routes: broadcast_routes
                .into_iter()
                .map(|(source, tree)| report::BroadcastRoute {
                    source: source.to_string(),
                    via: tree.to.iter().map(ToString::to_string).collect(),
                })
                .collect(),
            connections: self.connections(),
            termination_count: self.mesh.termination_count(),
            targets: self.mesh.targets().map(str::to_owned).collect(),
            overlay_diagnostics: fastdp.into_iter().chain(sleeve).collect(),
            trusted_subnets: self.options.trusted_subnets.texts().collect(),
            interface: match self.overlays.fastdp {
                Ok(_) => format!("{} (via BPF)", self.options.bridge),
                Err(_) => format!("{TAP} (via TAP)"),
            },
            capture_stats: BTreeMap::new(),
            macs: if all { self.macs() } else { Vec::new() },
            renamed: self.identity.renamed.clone(),
            collisions: self.collisions(),
        }
    }

    fn peers(&self, all: bool) -> Vec<report::Peer> {
        let connection = |c: &crate::mesh::summary::ConnectionSummary| report::PeerConnection {
            name: c.name.to_string(),
            nick_name: self.nickname(c.name),
            address: c.remote_addr.clone(),
            outbound: c.outbound,
            established: c.established,
        };
        self.mesh
            .peers()
            .map(|peer| report::Peer {
                name: peer.name.to_string(),
                nick_name: peer.nickname.clone(),
                uid: peer.uid,
                short_id: peer.short_id.map_or(0, ShortId::get),
                version: peer.version,
                connections: peer.connections.iter().filter(|_| all).map(connection).collect(),
            })
            .collect()
    }

    fn connections(&self) -> Vec<Connection> {
        self.mesh
            .connections_status(self.now())
            .into_iter()
            .map(|status| self.connection(status))
            .collect()
    }

    fn connection(&self, status: ConnectionStatus) -> Connection {
        let ConnectionStatus {
            address,
            outbound,
            state,
            error,
            retry,
            remote,
            conn,
        } = status;
        let attempt = error.as_ref().map(|error| Attempt {
            error: error.clone(),
            retry_seconds: match retry {
                Some(Retry::In(wait)) => Some(wait.as_secs()),
                _ => None,
            },
        });
        let error = error.unwrap_or_default();
        let neighbour = conn.and_then(|conn| self.neighbours.get(conn));
        let overlay = neighbour.map_or("none", overlay_in_use);
        let info = |(name, nick): &(PeerName, String)| {
            let sealed = neighbour.and_then(|neighbour| neighbour.sealed);
            Connection::peer_info(sealed, overlay, &format!("{name}({nick})"))
        };
        let (state, info) = match (state, &remote) {
            (ConnectionState::Established, Some(peer)) => (State::Established, info(peer)),
            (ConnectionState::Pending, Some(peer)) => (State::Pending, info(peer)),
            (ConnectionState::Failed, _) => {
                let at = match retry {
                    Some(Retry::In(wait)) => Some(SystemTime::now() + wait),
                    _ => None,
                };
                (State::Failed, Connection::failed_info(&error, at))
            }
            (ConnectionState::Retrying, _) => (State::Retrying, error),
            _ => (State::Connecting, String::new()),
        };
        let attrs = neighbour.map(|neighbour| self.attrs(neighbour, overlay));
        let remote = remote.zip(neighbour).map(|((name, nick), neighbour)| Remote {
            round_trip_micros: conn
                .and_then(|conn| self.connections.round_trip(conn))
                .and_then(|time| u64::try_from(time.as_micros()).ok()),
            traffic: self.traffic(conn, neighbour),
            ..self.remote(name, nick, neighbour)
        });
        Connection {
            address: address.to_string(),
            outbound,
            state,
            info,
            attrs,
            remote,
            attempt,
        }
    }

    /// What went to and came from a neighbour, by overlay.
    fn traffic(&self, conn: Option<ConnId>, neighbour: &Neighbour) -> BTreeMap<String, report::Traffic> {
        let datapath = self.overlays.fastdp.as_ref().ok();
        let datapath = datapath.filter(|_| neighbour.switch.fastdp().is_some());
        let id = self.mesh.short_id_of(neighbour.remote);
        let fastdp = datapath
            .zip(id)
            .and_then(|(datapath, id)| datapath.traffic(id.get()).ok());
        let fastdp = fastdp.map(|traffic| report::Traffic {
            packets_in: traffic.packets_in,
            bytes_in: traffic.bytes_in,
            packets_out: traffic.packets_out,
            bytes_out: traffic.bytes_out,
        });
        let engine = self.overlays.sleeve.as_ref().ok();
        let sleeve = engine.zip(conn).and_then(|(engine, conn)| engine.traffic(conn));
        let sleeve = sleeve.map(|traffic| report::Traffic {
            packets_in: traffic.packets_in,
            bytes_in: traffic.bytes_in,
            packets_out: traffic.packets_out,
            bytes_out: traffic.bytes_out,
        });
        [(FASTDP, fastdp), (SLEEVE, sleeve)]
            .into_iter()
            .filter_map(|(overlay, traffic)| Some((overlay.to_owned(), traffic?)))
            .collect()
    }

    fn gossip(&self) -> report::Gossip {
        let volume = |sent: Sent| report::Volume {
            messages: sent.messages,
            bytes: sent.bytes,
        };
        let refused = self.mesh.counters();
        let skipped = |channel| match (channel, &self.channels.ipam) {
            (TOPOLOGY, _) => refused.topology_messages_skipped,
            (CHANNEL, Some(ipam)) => ipam.messages_skipped(),
            _ => 0,
        };
        let channel = |(name, traffic): (&'static str, &census::Traffic)| {
            let sent = traffic.sent().map(|(kind, sent)| (kind.to_owned(), volume(sent)));
            let channel = report::Channel {
                sent: sent.into(),
                received: volume(traffic.received),
                skipped: skipped(name),
            };
            (name.to_owned(), channel)
        };
        report::Gossip {
            channels: self.mesh.gossip_traffic().map(channel).collect(),
            refused: refused.named().map(|(why, n)| (why.to_owned(), n)).into(),
        }
    }

    fn remote(&self, name: PeerName, nick_name: String, neighbour: &Neighbour) -> Remote {
        let overlay = match neighbour.switch.best() {
            None => "none",
            Some(Best::Fastdp) => FASTDP,
            Some(Best::Sleeve) => SLEEVE,
        };
        Remote {
            name: name.to_string(),
            nick_name,
            implementation: neighbour.implementation.clone(),
            mtu: neighbour.remote_mtu,
            path_mtu: neighbour.way.as_ref().map(|way| way.mtu),
            overlay: overlay.to_owned(),
            overlay_seconds: self.now().saturating_sub(neighbour.since).as_secs(),
            fallback: neighbour.reason().filter(|_| overlay != FASTDP),
            ..Remote::default()
        }
    }

    fn process(&self) -> Process {
        let (limit, _) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Process {
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            data_dir: self.options.paths.data_dir.display().to_string(),
            open_files: open as u64,
            open_files_limit: limit,
            connection_limit: self.options.conn_limit as u64,
        }
    }

    /// `Attrs` of a connection with a peer (control.md 3.4), and why it is not on the fast path.
    fn attrs(&self, neighbour: &Neighbour, overlay: &str) -> BTreeMap<String, Value> {
        let mut attrs: BTreeMap<String, Value> = [("name".to_owned(), json!(overlay))].into();
        let mtu = match neighbour.switch.sleeve() {
            Some(sleeve) if overlay == SLEEVE => sleeve.limits().mtu.into(),
            _ => self.mtu.bytes,
        };
        attrs.insert("mtu".to_owned(), json!(mtu));
        if overlay == SLEEVE && neighbour.sealed == Some(true) {
            attrs.insert("encrypted".to_owned(), json!(true));
        }
        if let Some(reason) = neighbour.reason().filter(|_| overlay != FASTDP) {
            attrs.insert("reason".to_owned(), json!(reason));
        }
        attrs
    }

    fn macs(&self) -> Vec<report::Mac> {
        let Ok(datapath) = &self.overlays.fastdp else {
            return self.sleeve_macs();
        };
        let clock = datapath.clock_s();
        let entries = datapath.macs().unwrap_or_default();
        let mut macs: Vec<report::Mac> = entries
            .into_iter()
            .filter_map(|(key, entry)| {
                let owner = if is_local(&entry) {
                    self.name
                } else {
                    self.mesh.short_id_owner(ShortId::new(entry.peer.into())?)?
                };
                let age = Duration::from_secs(clock.wrapping_sub(entry.last_seen_s).into());
                let seen = SystemTime::now()
                    .checked_sub(age)
                    .unwrap_or(SystemTime::UNIX_EPOCH);
                Some(report::Mac {
                    mac: mac_text(key.mac),
                    name: owner.to_string(),
                    nick_name: self.nickname(owner),
                    last_seen: crate::api::calendar::rfc3339(seen),
                })
            })
            .collect();
        macs.sort_by(|a, b| a.mac.cmp(&b.mac));
        macs
    }

    /// Without BPF it is the workers of sleeve that learn MAC addresses.
    fn sleeve_macs(&self) -> Vec<report::Mac> {
        let Ok(engine) = &self.overlays.sleeve else {
            return Vec::new();
        };
        let now = SystemTime::now();
        let macs = engine.macs().into_iter().map(|known| report::Mac {
            mac: mac_text(known.mac),
            name: known.peer.to_string(),
            nick_name: self.nickname(known.peer),
            last_seen: crate::api::calendar::rfc3339(
                now.checked_sub(known.age).unwrap_or(SystemTime::UNIX_EPOCH),
            ),
        });
        let mut macs: Vec<report::Mac> = macs.collect();
        macs.sort_by(|a, b| a.mac.cmp(&b.mac));
        macs
    }

    fn fast_datapath(&self) -> FastDatapath {
        let mtu = report::Overlay {
            bytes: self.mtu.bytes,
            reason: self.mtu.reason.clone(),
        };
        let datapath = match &self.overlays.fastdp {
            Ok(datapath) => datapath,
            Err(why) => {
                let (loaded, version) = (false, why.clone());
                return FastDatapath {
                    program: report::Program { loaded, version },
                    mtu,
                    ..FastDatapath::default()
                };
            }
        };
        let counters = datapath.counters().unwrap_or_default();
        let underlays = datapath.underlays();
        let xdp = match underlays.values().next() {
            None => report::Xdp {
                mode: "off".to_owned(),
                reason: "no underlay interface in use yet".to_owned(),
            },
            Some(first) => report::Xdp {
                mode: first.xdp.mode.to_owned(),
                reason: first.xdp.reason.clone(),
            },
        };
        FastDatapath {
            attach: datapath.mode().to_string(),
            program: report::Program {
                loaded: true,
                version: crate::VERSION.to_owned(),
            },
            xdp,
            mtu,
            underlay: underlays
                .values()
                .map(|u| report::Underlay {
                    name: u.name.clone(),
                    mtu: u.mtu,
                })
                .collect(),
            next_hops: self.next_hops(datapath),
            maps: datapath
                .fill()
                .iter()
                .flatten()
                .map(|fill| report::MapFill {
                    name: fill.name.to_owned(),
                    entries: fill.entries as u64,
                    most: fill.most.into(),
                })
                .collect(),
            counters: Counters::NAMES
                .iter()
                .map(|n| (*n).to_owned())
                .zip(counters.values())
                .collect(),
        }
    }

    fn sleeve(&self) -> report::Sleeve {
        let engine = match &self.overlays.sleeve {
            Ok(engine) => engine,
            Err(why) => {
                return report::Sleeve {
                    trouble: Some(why.clone()),
                    ..report::Sleeve::default()
                };
            }
        };
        let counters = engine.counters();
        report::Sleeve {
            trouble: engine.failed(),
            counters: sleeve::counters::Counters::NAMES
                .iter()
                .map(|n| (*n).to_owned())
                .zip(counters.values())
                .collect(),
        }
    }

    fn next_hops(&self, datapath: &Datapath) -> Vec<report::NextHop> {
        let name_of = |id: u32| ShortId::new(id.into()).and_then(|id| self.mesh.short_id_owner(id));
        let underlays = datapath.underlays();
        datapath
            .next_hops()
            .unwrap_or_default()
            .into_iter()
            .filter(|(_, hop)| hop.flags & (NextHop::USABLE | NextHop::SLEEVE) == NextHop::USABLE)
            .filter_map(|(id, hop)| {
                let peer = name_of(id)?;
                Some(report::NextHop {
                    peer: peer.to_string(),
                    nick_name: self.nickname(peer),
                    via: name_of(hop.via).unwrap_or(peer).to_string(),
                    address: SocketAddr::from((hop.remote_ip, hop.port)).to_string(),
                    interface: underlays
                        .get(&hop.ifindex)
                        .map(|u| u.name.clone())
                        .unwrap_or_default(),
                })
            })
            .collect()
    }
}
