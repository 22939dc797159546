//! Everything about us, for `/report`, `/status` and `/metrics`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use weave_common::{Counters, NextHop};

use super::core::unix_now;
use super::core::{Daemon, OurChannels};
use crate::api::report::{self, Connection, FastDatapath, Report, Router, State};
use crate::ipam::allocator::CHANNEL;
use crate::mesh::channel::Outlet;
use crate::mesh::name::{PeerName, ShortId};
use crate::mesh::status::{ConnectionState, ConnectionStatus, Retry};
use crate::net::mac_text;
use crate::overlay::fastdp::datapath::is_local;

/// Mesh protocol versions spoken (wire.md 1.7).
const PROTOCOL: u8 = 2;

impl Daemon {
    pub(super) fn report(&mut self) -> Report {
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
            router: self.router(),
            ipam,
            fast_datapath: self.fast_datapath(),
            ..Report::default()
        }
    }

    fn nickname(&self, name: PeerName) -> String {
        self.mesh
            .peer(name)
            .map(|peer| peer.nickname.clone())
            .unwrap_or_default()
    }

    fn router(&mut self) -> Router {
        let broadcast_routes = self.mesh.broadcast_routes();
        let overlays = [("fastdp".to_owned(), json!({ "Vports": null, "Flows": null }))];
        Router {
            protocol: "weave".to_owned(),
            protocol_min_version: PROTOCOL,
            protocol_max_version: PROTOCOL,
            encryption: false,
            peer_discovery: self.options.discovery,
            name: self.name.to_string(),
            nick_name: self.nickname(self.name),
            port: self.options.port,
            peers: self.peers(),
            unicast_routes: self
                .mesh
                .unicast_routes()
                .map(|(dest, via)| report::UnicastRoute {
                    dest: dest.to_string(),
                    via: via.map_or_else(|| "00:00:00:00:00:00".to_owned(), |via| via.to_string()),
                })
                .collect(),
            broadcast_routes: broadcast_routes
                .into_iter()
                .map(|(source, via)| report::BroadcastRoute {
                    source: source.to_string(),
                    via: via.iter().map(ToString::to_string).collect(),
                })
                .collect(),
            connections: self.connections(),
            termination_count: self.mesh.termination_count(),
            targets: self.mesh.targets().map(str::to_owned).collect(),
            overlay_diagnostics: overlays.into(),
            trusted_subnets: Vec::new(),
            interface: format!("{} (via BPF)", self.options.bridge),
            capture_stats: BTreeMap::new(),
            macs: self.macs(),
        }
    }

    fn peers(&self) -> Vec<report::Peer> {
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
                connections: peer.connections.iter().map(connection).collect(),
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
        let error = error.unwrap_or_default();
        let (state, info) = match (state, &remote) {
            (ConnectionState::Established, Some((name, nick))) => (
                State::Established,
                Connection::peer_info(None, "fastdp", &format!("{name}({nick})")),
            ),
            (ConnectionState::Pending, Some((name, nick))) => (
                State::Pending,
                Connection::peer_info(None, "fastdp", &format!("{name}({nick})")),
            ),
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
        let attrs = conn.and_then(|conn| self.neighbours.get(conn)).map(|neighbour| {
            let mut attrs: BTreeMap<String, Value> = [
                ("name".to_owned(), json!("fastdp")),
                ("mtu".to_owned(), json!(self.mtu.bytes)),
            ]
            .into();
            if let Some(reason) = neighbour.reason() {
                attrs.insert("reason".to_owned(), json!(reason));
            }
            attrs
        });
        Connection {
            address: address.to_string(),
            outbound,
            state,
            info,
            attrs,
        }
    }

    fn macs(&self) -> Vec<report::Mac> {
        let clock = self.datapath.clock_s();
        let entries = self.datapath.macs().unwrap_or_default();
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

    fn fast_datapath(&self) -> Option<FastDatapath> {
        let counters = self.datapath.counters().ok()?;
        let underlays = self.datapath.underlays();
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
        Some(FastDatapath {
            attach: self.datapath.mode().to_string(),
            program: report::Program {
                loaded: true,
                version: crate::VERSION.to_owned(),
            },
            xdp,
            mtu: report::Overlay {
                bytes: self.mtu.bytes,
                reason: self.mtu.reason.clone(),
            },
            underlay: underlays
                .values()
                .map(|u| report::Underlay {
                    name: u.name.clone(),
                    mtu: u.mtu,
                })
                .collect(),
            next_hops: self.next_hops(),
            counters: Counters::NAMES
                .iter()
                .map(|n| (*n).to_owned())
                .zip(counters.values())
                .collect(),
        })
    }

    fn next_hops(&self) -> Vec<report::NextHop> {
        let name_of = |id: u32| ShortId::new(id.into()).and_then(|id| self.mesh.short_id_owner(id));
        let underlays = self.datapath.underlays();
        self.datapath
            .next_hops()
            .unwrap_or_default()
            .into_iter()
            .filter(|(_, hop)| hop.flags & NextHop::USABLE != 0)
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
