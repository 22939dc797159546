//! The fast path to each neighbour: heartbeats over it, and how it leaves this host.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::mesh::handshake::Features;
use crate::mesh::name::{PeerName, ShortId};
use crate::mesh::{ConnId, Now};
use crate::net::underlay;
use crate::net::{Mac, NetError, Netlink};
use crate::overlay::fastdp::heartbeat::{self, Action, Path, Received};
use crate::overlay::fastdp::sender::Sender;
use crate::overlay::forwarding::Link;
use crate::overlay::pace::Pace;

/// Our overlay, as announced. Sleeve comes with a later version.
pub const FASTDP: &str = "fastdp";
/// Feature key: overlay MTU in bytes.
pub const FEATURE_MTU: &str = "MTU";
/// Feature key: which program. The original sends none.
pub const FEATURE_IMPLEMENTATION: &str = "Implementation";

/// Outer headers, in bytes: IPv4, UDP, VXLAN, inner Ethernet.
pub const OVERHEAD: u32 = weave_common::OVERHEAD;
/// What ESP adds at most to a packet whose length suits it (wire.md 8.10), in bytes.
pub const ESP: u32 = 34;

/// Why a connection can have no fast path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPath {
    /// Nothing in common: the remote has sleeve only.
    #[error("no overlays in common with peer")]
    NoCommonOverlay,
    /// VXLAN here is IPv4 only (wire.md 8.1).
    #[error("IP address {0} is not IPv4")]
    NotIpv4(IpAddr),
}

/// How packets for a neighbour leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Interface, by number and name.
    pub ifindex: u32,
    /// Its name.
    pub device: String,
    /// Largest IP packet on the path, in bytes.
    pub mtu: u32,
    next_hop: IpAddr,
    src_mac: Option<Mac>,
    dst_mac: Option<Mac>,
}

/// One neighbour.
#[derive(Debug)]
pub struct Neighbour {
    /// Who.
    pub remote: PeerName,
    /// Heartbeats.
    pub path: Path,
    /// UDP port of VXLAN, both ways (wire.md 8.2).
    pub port: u16,
    /// Our end.
    pub local: Ipv4Addr,
    /// Overlay MTU of the remote in bytes, if it tells.
    pub remote_mtu: Option<u32>,
    /// It runs the original program.
    pub original: bool,
    /// How packets leave, once found.
    pub way: Option<Way>,
    /// Why heartbeats cannot be sent, or no way is known.
    pub trouble: Option<String>,
}

impl Neighbour {
    /// Why the path is not in use, for people.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let silent = self.path.trouble()?;
        Some(self.trouble.clone().unwrap_or_else(|| silent.to_owned()))
    }
}

/// Facts of a new connection.
#[derive(Debug, Clone, Copy)]
pub struct NewConnection<'a> {
    /// The mesh's number for it.
    pub conn: ConnId,
    /// Who.
    pub remote: PeerName,
    /// UID of the connection.
    pub conn_uid: u64,
    /// What the remote says of itself.
    pub features: &'a Features,
    /// We dialled.
    pub outbound: bool,
    /// Both ends of TCP.
    pub ends: (SocketAddr, SocketAddr),
    /// Our own TCP port.
    pub our_port: u16,
}

/// All neighbours by connection.
#[derive(Debug, Default)]
pub struct Neighbours {
    by_conn: BTreeMap<ConnId, Neighbour>,
    sender: Sender,
}

/// Something the loop must do for a neighbour.
pub type Actions = Vec<(ConnId, Action)>;

impl Neighbours {
    /// Adds a connection; returns the UDP port on which VXLAN must be received for it.
    pub fn add(&mut self, now: Now, new: NewConnection<'_>) -> Result<u16, NoPath> {
        let theirs = new.features.overlays.as_deref().unwrap_or_default();
        if !theirs.iter().any(|overlay| overlay == FASTDP) {
            return Err(NoPath::NoCommonOverlay);
        }
        let (local, remote) = match (new.ends.0.ip(), new.ends.1.ip()) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => (local, remote),
            (_, other) => return Err(NoPath::NotIpv4(other)),
        };
        let tcp_port = if new.outbound {
            new.ends.1.port()
        } else {
            new.our_port
        };
        let port = tcp_port.wrapping_add(1);
        let extra = &new.features.extra;
        let neighbour = Neighbour {
            remote: new.remote,
            path: Path::new(now, new.conn_uid, remote, Pace::ORIGINAL),
            port,
            local,
            remote_mtu: extra.get(FEATURE_MTU).and_then(|mtu| mtu.parse().ok()),
            original: !extra.contains_key(FEATURE_IMPLEMENTATION),
            way: None,
            trouble: None,
        };
        self.by_conn.insert(new.conn, neighbour);
        Ok(port)
    }

    /// The connection is gone.
    pub fn remove(&mut self, conn: ConnId) {
        self.by_conn.remove(&conn);
    }

    /// One neighbour.
    #[must_use]
    pub fn get(&self, conn: ConnId) -> Option<&Neighbour> {
        self.by_conn.get(&conn)
    }

    /// When [`Neighbours::tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Now> {
        self.by_conn.values().map(|n| n.path.next_deadline()).min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) -> Actions {
        let mut actions = Vec::new();
        for (conn, neighbour) in &mut self.by_conn {
            actions.extend(neighbour.path.tick(now).into_iter().map(|action| (*conn, action)));
        }
        actions
    }

    /// A heartbeat came from the peer `remote`.
    pub fn on_heartbeat(&mut self, now: Now, remote: PeerName, received: Received) -> Actions {
        let Some((conn, neighbour)) = self.by_conn.iter_mut().find(|(_, n)| n.remote == remote) else {
            return Vec::new();
        };
        neighbour
            .path
            .on_heartbeat(now, received)
            .into_iter()
            .map(|action| (*conn, action))
            .collect()
    }

    /// A control message of the overlay came over TCP.
    pub fn on_control(&mut self, conn: ConnId, index: u8, tag: u8) -> Actions {
        let Some(neighbour) = self.by_conn.get_mut(&conn) else {
            return Vec::new();
        };
        // Only one overlay is common: index 0.
        match (index, tag) {
            (0, heartbeat::CONTROL_ACK) => neighbour
                .path
                .on_ack()
                .into_iter()
                .map(|action| (conn, action))
                .collect(),
            (0, heartbeat::CONTROL_IPSEC) => {
                tracing::warn!(
                    "{} wants IPsec, which this version does not have",
                    neighbour.remote
                );
                Vec::new()
            }
            _ => {
                tracing::warn!("ignoring overlay control {index}/{tag} from {}", neighbour.remote);
                Vec::new()
            }
        }
    }

    /// Sends a heartbeat to a neighbour.
    pub fn send_heartbeat(&mut self, conn: ConnId, dst: Option<ShortId>, src: ShortId, mtu: u32) {
        let Some(neighbour) = self.by_conn.get_mut(&conn) else {
            return;
        };
        let Some(dst) = dst else {
            neighbour.trouble = Some("the peer has no short ID".to_owned());
            return;
        };
        let packet = heartbeat::packet(dst.get(), src.get(), neighbour.path.conn_uid(), mtu);
        let remote = neighbour.path.remote();
        match self.sender.send(neighbour.local, remote, neighbour.port, &packet) {
            Ok(()) => neighbour.trouble = None,
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                neighbour.trouble = Some(format!(
                    "the path to {remote} is too narrow for an overlay MTU of {mtu}"
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => neighbour.trouble = Some(format!("cannot send heartbeats to {remote}: {error}")),
        }
    }

    /// Finds anew how packets leave for one connection (`Some`) or for all.
    /// Returns the ways that changed, by connection.
    pub async fn resolve(&mut self, nl: &Netlink, only: Option<ConnId>) -> Vec<ConnId> {
        let mut changed = Vec::new();
        for (conn, neighbour) in &mut self.by_conn {
            if only.is_some_and(|only| only != *conn) {
                continue;
            }
            let way = match find_way(nl, neighbour.path.remote()).await {
                Ok(way) => Some(way),
                Err(error) => {
                    neighbour.trouble = Some(error.to_string());
                    None
                }
            };
            if neighbour.way != way {
                neighbour.way = way;
                changed.push(*conn);
            }
        }
        changed
    }

    /// The kernel has another Ethernet address for `ip`, or none. Returns whether anything changed.
    pub fn on_neighbour(&mut self, ip: Ipv4Addr, oif: u32, mac: Option<Mac>) -> bool {
        let mut changed = false;
        for way in self.by_conn.values_mut().filter_map(|n| n.way.as_mut()) {
            if way.next_hop == IpAddr::V4(ip) && way.ifindex == oif && way.dst_mac != mac {
                way.dst_mac = mac;
                changed = true;
            }
        }
        changed
    }

    /// Links for forwarding: neighbours whose way is known.
    pub fn links(&self, overlay_mtu: u32, vxlan: impl Fn(u16) -> Option<u32>) -> BTreeMap<PeerName, Link> {
        self.by_conn
            .values()
            .filter_map(|n| {
                let way = n.way.as_ref()?;
                let mtu = overlay_mtu
                    .min(n.remote_mtu.unwrap_or(overlay_mtu))
                    .min(way.mtu.saturating_sub(OVERHEAD));
                let link = Link {
                    remote: n.path.remote(),
                    local: n.local,
                    port: n.port,
                    ifindex: way.ifindex,
                    vxlan_ifindex: vxlan(n.port)?,
                    mtu,
                    macs: way.dst_mac.zip(way.src_mac),
                    usable: n.path.usable(),
                };
                Some((n.remote, link))
            })
            .collect()
    }

    /// Our end of each connection.
    #[must_use]
    pub fn local_ends(&self) -> Vec<(ConnId, Ipv4Addr)> {
        self.by_conn.iter().map(|(conn, n)| (*conn, n.local)).collect()
    }

    /// Our underlay addresses in use.
    #[must_use]
    pub fn local_ips(&self) -> Vec<Ipv4Addr> {
        self.by_conn
            .values()
            .map(|n| n.local)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Largest inner packet that all paths carry with room for ESP, in bytes; `None` without any.
    #[must_use]
    pub fn narrowest(&self) -> Option<(u32, String)> {
        self.by_conn
            .values()
            .filter_map(|n| n.way.as_ref())
            .map(|way| {
                (
                    overlay_mtu(way.mtu),
                    format!("underlay {} on {}", way.mtu, way.device),
                )
            })
            .min()
    }

    /// Is there a neighbour that runs the original program?
    #[must_use]
    pub fn original(&self) -> Option<PeerName> {
        self.by_conn.values().find(|n| n.original).map(|n| n.remote)
    }
}

/// Overlay MTU for an underlay MTU, both in bytes: room for VXLAN and ESP, and a multiple of four,
/// with which ESP needs no padding.
#[must_use]
pub fn overlay_mtu(underlay: u32) -> u32 {
    underlay.saturating_sub(OVERHEAD + ESP) & !3
}

async fn find_way(nl: &Netlink, remote: Ipv4Addr) -> Result<Way, NetError> {
    let path = underlay::path_to(nl, remote).await?;
    let next_hop = path.next_hop(remote);
    let mut dst_mac = None;
    match underlay::neighbour(nl, path.oif, next_hop).await? {
        Some(neighbour) if neighbour.usable => dst_mac = neighbour.mac,
        // The answer comes as a change.
        _ => underlay::solicit(nl, path.oif, next_hop)
            .await
            .unwrap_or_else(|error| {
                tracing::debug!("{error}: leaving it to the kernel, packet by packet");
            }),
    }
    Ok(Way {
        ifindex: path.oif,
        device: path.device,
        mtu: path.mtu,
        next_hop,
        src_mac: path.mac,
        dst_mac,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_vxlan_and_esp() {
        assert_eq!(overlay_mtu(1500), 1416);
        assert_eq!(overlay_mtu(1460), 1376, "the original's default");
        assert_eq!(overlay_mtu(9000), 8916);
        assert_eq!(overlay_mtu(0), 0);
    }
}
