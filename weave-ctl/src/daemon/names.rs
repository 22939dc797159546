//! WeaveDNS in the loop: who registers and deletes names, and what the zone is told (control.md 2.3).

use std::collections::BTreeSet;

use super::core::{Daemon, OurChannels, unix_now};
use super::handle::Handle;
use super::requests::is_docker_id;
use crate::api::backend::{Backend, BackendError, Detail};
use crate::api::report;
use crate::dns::entry::{Id, State};
use crate::dns::names::{CHANNEL, Names, Touched};
use crate::dns::zone::Answer;
use crate::docker;
use crate::docker::events::ContainerEvent;
use crate::ipam::address::Address;
use crate::mesh::channel::Outlet;
use crate::mesh::name::PeerName;
use crate::net::{Netlink, ps};

impl Daemon {
    /// Lets the names act on their own behalf; `None` when WeaveDNS is off.
    pub(super) fn with_names<R>(&mut self, act: impl FnOnce(&mut Names, &mut dyn Outlet) -> R) -> Option<R> {
        let now = self.now();
        let act = |channels: &mut OurChannels, out: &mut dyn Outlet| {
            channels.names.as_mut().map(|names| act(names, out))
        };
        let (result, outputs) = self
            .mesh
            .with_outlet(now, unix_now(), CHANNEL, &mut self.channels, act);
        self.outputs.extend(outputs);
        result
    }

    /// `PUT /name`. What is answered at once can be asked for at once.
    pub(super) fn add_name(&mut self, id: &str, addr: Address, name: &str) -> Result<(), BackendError> {
        let added = self.with_names(|names, out| names.register(out, id, addr, name));
        self.feed_zone();
        let added = added.unwrap_or(Ok(()));
        added.map_err(|error| BackendError::BadRequest(error.to_string()))
    }

    /// A container's names end with it.
    pub(super) fn names_of_container(&mut self, event: &ContainerEvent) {
        self.with_names(|names, out| match event {
            ContainerEvent::Died(id) => names.container_died(out, id),
            ContainerEvent::Running { ids, first: false } => {
                names.containers_died_except(out, ids, is_docker_id);
            }
            // All names of ours are younger than our first look.
            ContainerEvent::Running { first: true, .. }
            | ContainerEvent::Started(_)
            | ContainerEvent::Destroyed(_) => {}
        });
    }

    /// Peers may have come, and others may be out of reach.
    pub(super) fn names_on_new_routes(&mut self) {
        if self.channels.names.is_none() {
            return;
        }
        let reachable: BTreeSet<PeerName> = self.mesh.unicast_routes().map(|(peer, _)| peer).collect();
        let changed = &reachable ^ &self.reachable;
        self.reachable = reachable;
        self.with_names(|names, out| {
            names.touch_origins(&changed);
            names.adopt_strangers(out);
        });
    }

    /// Brings the zone up to date.
    pub(super) fn feed_zone(&mut self) {
        let Some(names) = &mut self.channels.names else {
            return;
        };
        let touched = names.take_touched();
        if touched == Touched::default() {
            return;
        }
        let mut zone = self.zone.write();
        for name in &touched.names {
            let answers = names.answers(name).map(|id| Answer {
                addr: id.ip(),
                origin: id.origin(),
                local: id.origin() == self.name,
                reachable: id.origin() == self.name || self.reachable.contains(&id.origin()),
            });
            zone.set(name, answers.collect());
        }
        for addr in touched.addrs {
            let id = names.reverse(addr);
            zone.set_reverse(addr.into(), id.map(|id| id.hostname()));
        }
    }

    /// WeaveDNS for the report.
    pub(super) fn dns(&self, detail: Detail) -> Option<report::Dns> {
        let names = self.channels.names.as_ref()?;
        let options = self.options.dns.as_ref()?;
        // Names are gossiped even where nobody can ask for them.
        let server = self.resolver.as_ref();
        let (entries, own_live) = match detail {
            Detail::All => (dns_entries(names), None),
            Detail::Metrics => {
                let ours = |(id, state): &(&Id, State)| id.origin() == self.name && state.tombstone == 0;
                (Vec::new(), Some(names.entries().filter(ours).count()))
            }
        };
        Some(report::Dns {
            domain: names.domain().to_owned(),
            upstream: server.map(|server| server.upstream()).unwrap_or_default(),
            address: server
                .map(|server| server.address().to_string())
                .unwrap_or_default(),
            ttl: options.ttl,
            entries,
            own_live,
            queries: server
                .map(|server| server.counts().named().map(|(how, n)| (how.to_owned(), n)).into())
                .unwrap_or_default(),
        })
    }
}

fn dns_entries(names: &Names) -> Vec<report::DnsEntry> {
    names
        .entries()
        .map(|(id, state)| report::DnsEntry {
            hostname: id.hostname().to_owned(),
            origin: id.origin().to_string(),
            container_id: id.container().to_owned(),
            address: id.ip().to_string(),
            version: state.version,
            tombstone: state.tombstone,
        })
        .collect()
}

/// Registers anew the names of containers that are attached and that Docker knows: nobody has kept them while we
/// were away.
pub(super) async fn repopulate(handle: Handle, nl: Netlink, bridge: String, docker: String) {
    let attached = match ps::list_attached(&nl, &bridge).await {
        Ok(attached) => attached,
        Err(error) => {
            tracing::warn!("cannot look for the names of attached containers: {error}");
            return;
        }
    };
    for container in attached.into_iter().filter(|c| is_docker_id(&c.id)) {
        let Ok(found) = docker::resolve_at(&docker, &container.id).await else {
            continue;
        };
        let Some(name) = found.fqdn() else { continue };
        for cidr in container.cidrs {
            let added = handle.add_name(found.id.clone(), cidr.addr, name.clone(), true);
            if let Err(error) = added.await {
                tracing::warn!("cannot register {name}: {error}");
            }
        }
    }
}
