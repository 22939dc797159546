//! The neighbours: heartbeats, which overlay is best, and how packets leave this host.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

pub use crate::mesh::channel::FEATURE_IMPLEMENTATION;
use crate::mesh::handshake::Features;
use crate::mesh::name::{PeerName, ShortId};
use crate::mesh::{ConnId, Now};
use crate::net::underlay;
use crate::net::{Mac, NetError, Netlink};
use crate::overlay::fastdp::heartbeat::{self, Received};
use crate::overlay::fastdp::sender::Sender;
use crate::overlay::forwarding::{Best, Link, SleeveLink};
use crate::overlay::sleeve::{Arrived, LinkState, SLEEVE};
use crate::overlay::switch::{Action, FASTDP, NewSwitch, NoCommonOverlay, Switch};

/// Feature key: overlay MTU in bytes.
pub const FEATURE_MTU: &str = "MTU";
/// Feature key: how often heartbeats are sent. With `quick` at both ends a dead path that is in use is
/// noticed within two seconds, and its two ends tell each other what they hear and whether they use it.
pub const FEATURE_PACE: &str = "Pace";
/// Value of [`FEATURE_PACE`].
pub const PACE_QUICK: &str = "quick";

/// Outer headers of VXLAN, in bytes: IPv4, UDP, VXLAN, inner Ethernet.
pub const OVERHEAD: u32 = weave_common::OVERHEAD;
/// What ESP adds at most to a packet whose length suits it (wire.md 8.10), in bytes.
const ESP: u32 = 34;
/// From the underlay's IP packet to the overlay's, on sealed sleeve (wire.md 6.3), in bytes.
const SEALED_SLEEVE: u32 = 86;

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
    /// Both overlays and the choice between them.
    pub switch: Switch,
    /// UDP port of VXLAN, both ways (wire.md 8.2).
    pub port: u16,
    /// Our end, and theirs as of TCP.
    pub ends: (Ipv4Addr, Ipv4Addr),
    /// Overlay MTU of the remote in bytes, if it tells.
    pub remote_mtu: Option<u32>,
    /// It runs the original program.
    pub original: bool,
    /// Which program it is and of which version, if it tells.
    pub implementation: Option<String>,
    /// The overlays are sealed; `None`: nobody asked for that.
    pub sealed: Option<bool>,
    /// How packets leave, once found.
    pub way: Option<Way>,
    /// Why heartbeats cannot be sent, or no way is known.
    pub trouble: Option<String>,
    /// Since when frames have taken the overlay that they take.
    pub since: Now,
    /// What the log was told of last.
    told: Option<Best>,
}

impl Neighbour {
    /// Why the fast path is not in use, for people; `None` while it is.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let silent = self.switch.reason()?;
        Some(match (&self.trouble, self.switch.fastdp()) {
            (Some(trouble), Some(_)) => trouble.clone(),
            _ => silent,
        })
    }

    /// What the workers of sleeve need to know.
    #[must_use]
    pub fn sleeve_state(&self) -> Option<LinkState> {
        let sleeve = self.switch.sleeve()?;
        Some(LinkState {
            local: self.ends.0,
            remote: sleeve.remote(),
            limits: sleeve.limits(),
        })
    }
}

/// Facts of a new connection.
#[derive(Debug, Clone)]
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
    /// Shall the overlays seal what they carry? `None`: nobody asked for that.
    pub sealed: Option<bool>,
    /// Why this host has no fast path, if so.
    pub no_fastdp: Option<&'a str>,
    /// Why this host has no sleeve, if so.
    pub no_sleeve: Option<&'a str>,
}

/// All neighbours by connection.
#[derive(Debug, Default)]
pub struct Neighbours {
    by_conn: BTreeMap<ConnId, Neighbour>,
    sender: Sender,
}

/// Something the loop must do for a neighbour.
pub type Actions = Vec<(ConnId, Action)>;

fn of(conn: ConnId, actions: Vec<Action>) -> Actions {
    actions.into_iter().map(|action| (conn, action)).collect()
}

impl Neighbours {
    /// Adds a connection.
    pub fn add(&mut self, now: Now, new: NewConnection<'_>) -> Result<&Neighbour, NoCommonOverlay> {
        let theirs = new.features.overlays.as_deref().unwrap_or_default();
        let v4 = |address: SocketAddr| match address.ip() {
            IpAddr::V4(ip) => Ok(ip),
            IpAddr::V6(ip) => Err(format!("IP address {ip} is not IPv4")),
        };
        let ends = v4(new.ends.0).and_then(|local| Ok((local, v4(new.ends.1)?)));
        let refused = |why: Option<&str>| why.map_or(Ok(()), |why| Err(why.to_owned()));
        let fastdp = refused(new.no_fastdp).and_then(|()| match new.sealed {
            Some(true) => Err("fastdp cannot encrypt in this version".to_owned()),
            _ => ends.clone().map(|(_, remote)| remote),
        });
        let sleeve = refused(new.no_sleeve).and_then(|()| {
            let (_, remote) = ends.clone()?;
            // The side that accepted learns the address from the first heartbeat (wire.md 6.5).
            Ok(new.outbound.then(|| SocketAddrV4::new(remote, new.ends.1.port())))
        });
        let extra = &new.features.extra;
        let offered = [(FASTDP, new.no_fastdp), (SLEEVE, new.no_sleeve)];
        let ours: Vec<&str> = offered
            .iter()
            .filter(|(_, no)| no.is_none())
            .map(|(name, _)| *name)
            .collect();
        let switch = Switch::new(
            now,
            NewSwitch {
                conn_uid: new.conn_uid,
                ours: &ours,
                theirs,
                fastdp,
                sleeve,
                sealed: new.sealed == Some(true),
                quick: extra.get(FEATURE_PACE).is_some_and(|pace| pace == PACE_QUICK),
            },
        )?;
        let tcp_port = if new.outbound {
            new.ends.1.port()
        } else {
            new.our_port
        };
        let neighbour = Neighbour {
            remote: new.remote,
            switch,
            port: tcp_port.wrapping_add(1),
            // Without IPv4 there is no switch.
            ends: ends.map_err(|_| NoCommonOverlay)?,
            remote_mtu: extra.get(FEATURE_MTU).and_then(|mtu| mtu.parse().ok()),
            original: !extra.contains_key(FEATURE_IMPLEMENTATION),
            implementation: extra.get(FEATURE_IMPLEMENTATION).cloned(),
            since: now,
            sealed: new.sealed,
            way: None,
            trouble: None,
            told: None,
        };
        self.by_conn.insert(new.conn, neighbour);
        self.by_conn.get(&new.conn).ok_or(NoCommonOverlay)
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

    /// All, by connection.
    pub fn iter(&self) -> impl Iterator<Item = (ConnId, &Neighbour)> {
        self.by_conn.iter().map(|(conn, neighbour)| (*conn, neighbour))
    }

    /// When [`Neighbours::tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Now> {
        self.by_conn.values().map(|n| n.switch.next_deadline()).min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) -> Actions {
        let mut actions = Vec::new();
        for (conn, neighbour) in &mut self.by_conn {
            if neighbour.switch.next_deadline() <= now {
                actions.extend(of(*conn, neighbour.switch.tick(now)));
            }
        }
        actions
    }

    /// A heartbeat came on the fast path from the peer `remote`.
    pub fn on_heartbeat(&mut self, now: Now, remote: PeerName, received: Received) -> Actions {
        let Some((conn, neighbour)) = self.by_conn.iter_mut().find(|(_, n)| n.remote == remote) else {
            return Vec::new();
        };
        of(*conn, neighbour.switch.on_heartbeat(now, received))
    }

    /// A frame has left for a neighbour on the fast path, the first in a while.
    pub fn on_traffic(&mut self, now: Now, remote: PeerName) -> Actions {
        let Some((conn, neighbour)) = self.by_conn.iter_mut().find(|(_, n)| n.remote == remote) else {
            return Vec::new();
        };
        of(*conn, neighbour.switch.on_traffic(now, true))
    }

    /// Looks again at the neighbours for which frames left when they were looked at last. `used` tells
    /// whether any has since then.
    pub fn check_traffic<E>(
        &mut self,
        now: Now,
        mut used: impl FnMut(PeerName) -> Result<bool, E>,
    ) -> Result<Actions, E> {
        let mut actions = Vec::new();
        for (conn, neighbour) in &mut self.by_conn {
            let busy = neighbour
                .switch
                .fastdp()
                .is_some_and(heartbeat::Path::has_traffic);
            if busy && !used(neighbour.remote)? {
                actions.extend(of(*conn, neighbour.switch.on_traffic(now, false)));
            }
        }
        Ok(actions)
    }

    /// Something came on sleeve.
    pub fn on_sleeve(&mut self, now: Now, conn: ConnId, arrived: Arrived) -> Actions {
        let Some(neighbour) = self.by_conn.get_mut(&conn) else {
            return Vec::new();
        };
        of(conn, neighbour.switch.on_sleeve(now, arrived))
    }

    /// A control message of an overlay came over TCP.
    pub fn on_control(&mut self, now: Now, conn: ConnId, index: u8, tag: u8, data: &[u8]) -> Actions {
        let Some(neighbour) = self.by_conn.get_mut(&conn) else {
            return Vec::new();
        };
        of(conn, neighbour.switch.on_control(now, index, tag, data))
    }

    /// Logs which overlay is in use now, once at each change.
    pub fn tell_change(&mut self, now: Now, conn: ConnId) {
        let Some(neighbour) = self.by_conn.get_mut(&conn) else {
            return;
        };
        let best = neighbour.switch.best();
        if best == neighbour.told {
            return;
        }
        neighbour.since = now;
        let (before, remote) = (std::mem::replace(&mut neighbour.told, best), neighbour.remote);
        let reason = neighbour.reason().unwrap_or_default();
        match (before, best) {
            (_, None) => {}
            (_, Some(Best::Fastdp)) => tracing::info!("fastdp to {remote} is in use"),
            (Some(Best::Fastdp), Some(Best::Sleeve)) => {
                tracing::warn!("fastdp to {remote} is not in use: {reason}; frames go by sleeve");
            }
            (_, Some(Best::Sleeve)) => tracing::info!("sleeve to {remote} is in use: {reason}"),
        }
    }

    /// Sends a heartbeat to a neighbour on the fast path.
    pub fn send_heartbeat(&mut self, conn: ConnId, dst: Option<ShortId>, src: ShortId, mtu: u32) {
        let Some(neighbour) = self.by_conn.get_mut(&conn) else {
            return;
        };
        let Some(remote) = neighbour.switch.fastdp().map(heartbeat::Path::remote) else {
            return;
        };
        let Some(dst) = dst else {
            neighbour.trouble = Some("the peer has no short ID".to_owned());
            return;
        };
        let packet = heartbeat::packet(dst.get(), src.get(), neighbour.switch.conn_uid(), mtu);
        match self
            .sender
            .send(neighbour.ends.0, remote, neighbour.port, &packet)
        {
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
            let remote = neighbour
                .switch
                .fastdp()
                .map_or(neighbour.ends.1, heartbeat::Path::remote);
            let way = match find_way(nl, remote).await {
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

    /// Fast paths for forwarding: neighbours whose way is known.
    pub fn links(&self, overlay_mtu: u32, vxlan: impl Fn(u16) -> Option<u32>) -> BTreeMap<PeerName, Link> {
        self.by_conn
            .values()
            .filter_map(|n| {
                let (path, way) = (n.switch.fastdp()?, n.way.as_ref()?);
                let mtu = overlay_mtu
                    .min(n.remote_mtu.unwrap_or(overlay_mtu))
                    .min(way.mtu.saturating_sub(OVERHEAD));
                let link = Link {
                    remote: path.remote(),
                    local: n.ends.0,
                    port: n.port,
                    ifindex: way.ifindex,
                    vxlan_ifindex: vxlan(n.port)?,
                    mtu,
                    macs: way.dst_mac.zip(way.src_mac),
                    // The switch may keep to a path that is silent for a moment.
                    usable: n.switch.best() == Some(Best::Fastdp),
                };
                Some((n.remote, link))
            })
            .collect()
    }

    /// Sleeve paths for forwarding.
    #[must_use]
    pub fn sleeves(&self) -> BTreeMap<PeerName, SleeveLink> {
        self.by_conn
            .values()
            .filter_map(|n| {
                let sleeve = n.switch.sleeve()?;
                let link = SleeveLink {
                    mtu: sleeve.limits().mtu.into(),
                    usable: sleeve.usable(),
                };
                Some((n.remote, link))
            })
            .collect()
    }

    /// The overlay to use for each neighbour for which one works.
    #[must_use]
    pub fn best(&self) -> BTreeMap<PeerName, Best> {
        self.by_conn
            .values()
            .filter_map(|n| Some((n.remote, n.switch.best()?)))
            .collect()
    }

    /// Our end of each connection.
    #[must_use]
    pub fn local_ends(&self) -> Vec<(ConnId, Ipv4Addr)> {
        self.by_conn.iter().map(|(conn, n)| (*conn, n.ends.0)).collect()
    }

    /// Our underlay addresses in use.
    #[must_use]
    pub fn local_ips(&self) -> Vec<Ipv4Addr> {
        self.by_conn
            .values()
            .map(|n| n.ends.0)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Largest inner packet that all paths carry on either overlay, in bytes; `None` without any.
    #[must_use]
    pub fn narrowest(&self, sealed: bool) -> Option<(u32, String)> {
        self.by_conn
            .values()
            .filter_map(|n| n.way.as_ref())
            .map(|way| {
                (
                    overlay_mtu(way.mtu, sealed),
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

/// Overlay MTU for an underlay MTU, both in bytes: room for VXLAN and ESP, or for sealed sleeve, and a
/// multiple of four, with which ESP needs no padding.
#[must_use]
pub fn overlay_mtu(underlay: u32, sealed: bool) -> u32 {
    let overhead = if sealed { SEALED_SLEEVE } else { OVERHEAD + ESP };
    underlay.saturating_sub(overhead) & !3
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
    fn room_for_the_outer_headers() {
        assert_eq!(overlay_mtu(1500, false), 1416);
        assert_eq!(overlay_mtu(1460, false), 1376, "the original's default");
        assert_eq!(overlay_mtu(9000, false), 8916);
        assert_eq!(overlay_mtu(0, false), 0);
        assert!(overlay_mtu(1500, true) <= 1414, "wire.md 6.3");
    }
}
