//! What must be true of a mesh that has settled.

use std::collections::{BTreeMap, BTreeSet};

use weave_ctl::mesh::name::PeerName;

use super::{Site, World, name};

/// Broadcast trees checked in a large mesh.
const ORIGINS: usize = 12;

impl<S: Site> World<S> {
    /// The running peers agree on a topology of exactly themselves, and data finds its way.
    pub fn settled(&mut self) -> Result<(), String> {
        self.settled_among(&self.up())
    }

    /// The same for some of them, between which there is no barrier.
    pub fn settled_among(&mut self, group: &[usize]) -> Result<(), String> {
        self.topology_agrees(group)?;
        self.short_ids_unique(group)?;
        self.unicast_arrives(group)?;
        self.broadcast_covers(group)
    }

    fn topology_agrees(&self, group: &[usize]) -> Result<(), String> {
        for &here in group {
            let known: Vec<PeerName> = self.nodes[here].mesh.peers().map(|p| p.name).collect();
            let expected: Vec<PeerName> = group.iter().map(|n| name(*n)).collect();
            if known != expected {
                return Err(format!(
                    "{here} knows {} peers of {}",
                    known.len(),
                    expected.len()
                ));
            }
            for &there in group {
                let own = self.nodes[there].mesh.own().unwrap();
                let seen = self.nodes[here].mesh.peer(own.name).unwrap();
                if (seen.uid, seen.version) != (own.uid, own.version) {
                    return Err(format!(
                        "{here} knows version {} of {there}, not {}",
                        seen.version, own.version
                    ));
                }
            }
        }
        for &here in group {
            for &there in group {
                let own = self.nodes[there].mesh.own().unwrap();
                assert_eq!(
                    self.nodes[here].mesh.peer(own.name),
                    Some(own),
                    "one version, two contents"
                );
            }
            for link in &self.nodes[here].mesh.own().unwrap().connections {
                let back = self.nodes[here].mesh.peer(link.name).unwrap();
                let mirrored = back.connections.iter().find(|l| l.name == name(here));
                if !link.established || mirrored.is_none_or(|l| l.outbound == link.outbound) {
                    return Err(format!(
                        "{here} and {} do not agree on their connection",
                        link.name
                    ));
                }
            }
        }
        Ok(())
    }

    fn short_ids_unique(&self, group: &[usize]) -> Result<(), String> {
        let mut owners = BTreeMap::new();
        for &there in group {
            let own = self.nodes[there].mesh.own().unwrap();
            if let Some(other) = owners.insert(own.short_id.unwrap(), own.name) {
                return Err(format!("{other} and {} have the same short ID", own.name));
            }
        }
        for &here in group {
            for (id, owner) in &owners {
                assert_eq!(
                    self.nodes[here].mesh.short_id_owner(*id),
                    Some(*owner),
                    "table of {here}"
                );
                assert_eq!(self.nodes[here].mesh.short_id_of(*owner), Some(*id));
            }
        }
        Ok(())
    }

    fn unicast_arrives(&self, group: &[usize]) -> Result<(), String> {
        let index: BTreeMap<PeerName, usize> = group.iter().map(|n| (name(*n), *n)).collect();
        for &from in group {
            for &to in group {
                let (mut at, mut hops) = (from, 0);
                while at != to {
                    let mesh = &self.nodes[at].mesh;
                    let hop = mesh
                        .unicast_next_hop(name(to))
                        .ok_or(format!("{at} has no route to {to}"))?;
                    mesh.connection_to(hop)
                        .ok_or(format!("{at} is not connected to its next hop"))?;
                    at = index[&hop];
                    hops += 1;
                    if hops > group.len() {
                        return Err(format!("loop from {from} to {to}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn broadcast_covers(&mut self, group: &[usize]) -> Result<(), String> {
        let index: BTreeMap<PeerName, usize> = group.iter().map(|n| (name(*n), *n)).collect();
        let step = group.len().div_ceil(ORIGINS).max(1);
        for &origin in group.iter().step_by(step) {
            let mut reached = BTreeSet::from([origin]);
            let mut worklist = vec![origin];
            while let Some(at) = worklist.pop() {
                for hop in self.nodes[at].mesh.broadcast_hops(name(origin)) {
                    if !reached.insert(index[&hop]) {
                        return Err(format!("a broadcast from {origin} reaches {hop} twice"));
                    }
                    worklist.push(index[&hop]);
                }
            }
            if reached.len() != group.len() {
                return Err(format!(
                    "a broadcast from {origin} reaches {} of {}",
                    reached.len(),
                    group.len()
                ));
            }
        }
        Ok(())
    }

    /// Every peer has a connection to every other.
    pub fn full_mesh(&mut self) -> Result<(), String> {
        let up = self.up();
        for &node in &up {
            let links = self.nodes[node].mesh.own().unwrap().connections.len();
            if links + 1 != up.len() {
                return Err(format!("{node} has {links} connections"));
            }
        }
        self.settled()
    }
}
