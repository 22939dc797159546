//! The host around the daemon: ports of the bridge, underlay interfaces, addresses, the MTU.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::core::Daemon;
use super::event::Event;
use super::mtu::Mtu;
use super::neighbours::FEATURE_MTU;
use crate::mesh::core::Input;
use crate::mesh::{ConnId, Now};
use crate::net::bridge::HOST_END;
use crate::net::expose::OWNER as EXPOSE;
use crate::net::identity::Identity;
use crate::net::watch::Change;
use crate::net::{NetError, Netlink, bridge, endpoint, ps};
use crate::overlay::fastdp::datapath::Datapath;

impl Daemon {
    pub(super) async fn on_change(&mut self, change: Change) -> anyhow::Result<()> {
        match change {
            Change::Link {
                index, gone: true, ..
            } => {
                self.port_seen(index, false);
                if let Some(datapath) = self.datapath() {
                    datapath.remove_port(index)?;
                    datapath.remove_underlay(index)?;
                }
            }
            Change::Link {
                index,
                name,
                master,
                alias,
                ..
            } if is_port(&name) => {
                self.port_seen(index, master.is_some());
                if master.is_some() {
                    self.add_port(&name, index, alias.as_deref());
                } else if let Some(datapath) = self.datapath() {
                    datapath.remove_port(index)?;
                }
            }
            Change::Link { index, .. } => {
                let underlay = |datapath: &mut Datapath| datapath.underlays().contains_key(&index);
                if self.datapath().is_some_and(underlay) {
                    self.due.resolve = Now::ZERO;
                }
            }
            Change::Address => {
                self.close_homeless().await?;
                self.dns_addresses().await;
                self.due.resolve = Now::ZERO;
            }
            Change::Route => self.due.resolve = Now::ZERO,
            Change::Neighbour { ip, oif, mac } => {
                self.tables_stale |= self.neighbours.on_neighbour(ip, oif, mac);
            }
            Change::Lost => {
                self.scan_ports().await?;
                self.close_homeless().await?;
                self.dns_addresses().await;
                self.due.resolve = Now::ZERO;
            }
        }
        Ok(())
    }

    /// Closes connections whose local address this host no longer has, rather than wait for TCP to
    /// notice: they are dialled again from the new one.
    pub(super) async fn close_homeless(&mut self) -> anyhow::Result<()> {
        let mut ours = BTreeSet::new();
        for link in self.nl.links().await? {
            let addresses = self.nl.addresses(link.index).await?;
            ours.extend(addresses.into_iter().map(|cidr| Ipv4Addr::from(cidr.addr)));
        }
        for (conn, local) in self.neighbours.local_ends() {
            if !ours.contains(&local) {
                self.connections.close(conn);
                let error = format!("this host no longer has the address {local}");
                self.mesh_input(Input::Closed { conn, error });
            }
        }
        Ok(())
    }

    /// Attaches to ports that are there already, and forgets those that are gone.
    pub(super) async fn scan_ports(&mut self) -> anyhow::Result<()> {
        let links = self.nl.links().await?;
        let alive: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
        let bridge = links
            .iter()
            .find(|link| link.name == self.options.bridge)
            .map(|link| link.index);
        let present: BTreeMap<u32, (String, Option<String>)> = links
            .into_iter()
            .filter(|link| link.master.is_some() && link.master == bridge && is_port(&link.name))
            .map(|link| (link.index, (link.name, link.alias)))
            .collect();
        self.ports = present.keys().copied().collect();
        let Ok(datapath) = &mut self.overlays.fastdp else {
            return Ok(());
        };
        datapath.sweep_links(|index| alive.contains(&index));
        // Those of whom an earlier daemon knew, too.
        let known = datapath.ports().keys().chain(datapath.sources().keys());
        let gone: Vec<u32> = known.filter(|i| !present.contains_key(i)).copied().collect();
        for index in gone {
            datapath.remove_port(index)?;
        }
        for (index, (name, alias)) in present {
            self.add_port(&name, index, alias.as_deref());
        }
        Ok(())
    }

    /// A container came or went.
    fn port_seen(&mut self, index: u32, there: bool) {
        let changed = match there {
            true => self.ports.insert(index),
            false => self.ports.remove(&index),
        };
        if changed {
            self.tell_claim();
        }
    }

    /// A port without our program still works, through the bridge. Its alias says who may send from there.
    pub(super) fn add_port(&mut self, name: &str, index: u32, alias: Option<&str>) {
        let spoof_check = self.options.spoof_check;
        let Some(datapath) = self.datapath() else { return };
        let identity = alias.filter(|_| spoof_check).and_then(Identity::from_alias);
        if let Err(error) = datapath.set_source(index, identity.as_ref()) {
            tracing::warn!("{name} may send from any address: {error}");
        }
        if let Err(error) = datapath.add_port(name, index) {
            tracing::warn!("{name} goes through the bridge: {error}");
        }
    }

    /// Looks for addresses that containers have, which matters when our own state was lost.
    pub(super) fn find_attached(&self) {
        if self.channels.ipam.is_none() {
            return;
        }
        let (nl, bridge, events) = (self.nl.clone(), self.options.bridge.clone(), self.events.clone());
        tokio::spawn(async move {
            let found = async {
                let (_, exposed) = bridge::exposed(&nl, &bridge).await?;
                let containers = ps::list_attached(&nl, &bridge).await?.into_iter();
                let found = containers.map(|c| (c.id, c.cidrs));
                Ok::<_, NetError>(found.chain([(EXPOSE.to_owned(), exposed)]).collect())
            };
            match found.await {
                Ok(found) => events.send(Event::Found(found)).await,
                Err(error) => tracing::warn!("cannot look for attached containers: {error}"),
            }
        });
    }

    /// Sees to it that VXLAN is received on a UDP port (wire.md 8.2).
    pub(super) async fn receive_on(&mut self, port: u16) -> anyhow::Result<()> {
        let Ok(datapath) = &mut self.overlays.fastdp else {
            return Ok(());
        };
        if datapath.vxlan(port).is_some() {
            return Ok(());
        }
        let bridge = self.nl.link(&self.options.bridge).await?;
        let name = format!("vxlan-{port}");
        let link = bridge::ensure_vxlan(&self.nl, &name, port, &bridge, false).await?;
        datapath.add_vxlan(&name, link.index, port)?;
        Ok(())
    }

    /// Finds anew how packets leave, and adapts to it.
    pub(super) async fn resolve(&mut self, only: Option<ConnId>) -> anyhow::Result<()> {
        let changed = self.neighbours.resolve(&self.nl, only).await;
        for conn in changed {
            self.tables_stale = true;
            let Some(neighbour) = self.neighbours.get(conn) else {
                continue;
            };
            let Some(way) = neighbour.way.clone() else {
                continue;
            };
            if neighbour.switch.fastdp().is_some()
                && let Some(datapath) = self.datapath()
                && let Err(error) = datapath.add_underlay(&way.device, way.ifindex, way.mtu)
            {
                tracing::warn!("VXLAN from {} takes the slow path: {error}", way.device);
            }
        }
        let local_ips = self.neighbours.local_ips();
        if let Some(datapath) = self.datapath() {
            datapath.set_local_ips(&local_ips)?;
        }
        if self.mtu.adapt(&self.neighbours) {
            self.change_mtu().await?;
        }
        Ok(())
    }

    pub(super) async fn change_mtu(&mut self) -> anyhow::Result<()> {
        let Mtu { bytes, reason, .. } = &self.mtu;
        tracing::info!("overlay MTU is now {bytes} ({reason})");
        let (bytes, bridge) = (*bytes, self.options.bridge.clone());
        self.tell_features(|features| {
            features.extra.insert(FEATURE_MTU.to_owned(), bytes.to_string());
        });
        let link = self.nl.link(&bridge).await?;
        self.nl.set_mtu(&link, bytes).await?;
        self.tables_stale = true;
        set_guest_mtu(&self.nl, &bridge, bytes);
        Ok(())
    }
}

/// Is this the host's end of a container's veth?
fn is_port(name: &str) -> bool {
    name.starts_with(HOST_END) || name.starts_with(endpoint::HOST_END)
}

/// Gives the interfaces inside all attached containers this MTU, in bytes, without waiting for it.
pub(super) fn set_guest_mtu(nl: &Netlink, bridge: &str, bytes: u32) {
    let (nl, bridge) = (nl.clone(), bridge.to_owned());
    tokio::spawn(async move {
        if let Err(error) = ps::set_guest_mtu(&nl, &bridge, bytes).await {
            tracing::warn!("cannot set the MTU of all containers to {bytes}: {error}");
        }
    });
}
