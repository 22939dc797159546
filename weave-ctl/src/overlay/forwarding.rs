//! From topology and paths to what the BPF maps shall hold. Pure.
//!
//! A peer whose controller has died or restarts vanishes from the topology at once, but its
//! kernel goes on forwarding. So its next hop is *held* for a while: known traffic goes on. Not so on
//! sleeve, which ends with its controller.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use weave_common::{FLOOD_SLEEVE, FloodHops, MAX_FLOOD_HOPS, NextHop, Sender};

use crate::mesh::Now;
use crate::mesh::name::{PeerName, ShortId};
use crate::mesh::routes::Tree;

/// How long a vanished peer's next hop is kept: as long as a silent path is trusted (wire.md 8.6).
pub const HOLD: Duration = Duration::from_secs(60);

/// How frames reach a neighbour, resolved down to the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Outer destination.
    pub remote: Ipv4Addr,
    /// Outer source.
    pub local: Ipv4Addr,
    /// UDP port.
    pub port: u16,
    /// Underlay interface.
    pub ifindex: u32,
    /// VXLAN device for that port.
    pub vxlan_ifindex: u32,
    /// Largest inner IP packet in bytes.
    pub mtu: u32,
    /// Outer Ethernet destination and source, if known.
    pub macs: Option<([u8; 6], [u8; 6])>,
    /// The path is established and healthy.
    pub usable: bool,
}

/// How frames reach a neighbour by sleeve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SleeveLink {
    /// Largest inner IP packet in bytes.
    pub mtu: u32,
    /// The path is established and healthy.
    pub usable: bool,
}

/// The overlay in use towards a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Best {
    /// VXLAN, by the programs.
    Fastdp,
    /// UDP, by userspace.
    Sleeve,
}

/// What the mesh knows.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Our own short ID's number.
    pub own: u32,
    /// Every other peer that owns its short ID.
    pub peers: BTreeMap<PeerName, ShortId>,
    /// Next hop for data to each reachable peer.
    pub routes: BTreeMap<PeerName, PeerName>,
    /// Neighbours with a fast path, usable or not.
    pub links: BTreeMap<PeerName, Link>,
    /// Neighbours with a path by sleeve, usable or not.
    pub sleeves: BTreeMap<PeerName, SleeveLink>,
    /// Which of its paths each neighbour is on; absent, if none can be used.
    pub best: BTreeMap<PeerName, Best>,
    /// Where we pass on floods, by origin; our own under our own name.
    pub floods: BTreeMap<PeerName, Tree>,
    /// Our own name.
    pub own_name: Option<PeerName>,
    /// Peers that we have no connection with, and whose own record says that they have one with us. Most likely
    /// their controller is dead and their kernel goes on.
    pub orphans: BTreeSet<PeerName>,
}

impl View {
    /// The short ID of another peer as the maps have it.
    fn number(&self, name: &PeerName) -> Option<u32> {
        self.peers.get(name).map(|id| id.get().into())
    }
}

/// What the maps shall hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// `PEERS`.
    pub peers: BTreeMap<u32, NextHop>,
    /// `FLOODS`.
    pub floods: BTreeMap<u32, FloodHops>,
    /// `SENDERS`.
    pub senders: BTreeMap<[u8; 4], Sender>,
    /// Peers that changed their short ID: MAC addresses at the first are now at the second.
    pub renumbered: Vec<(u32, u32)>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    hop: NextHop,
    until: Now,
}

/// Computes [`Tables`] and remembers what it must hold.
#[derive(Debug, Default)]
pub struct Forwarding {
    /// Last known way to each short ID.
    usable: BTreeMap<u32, NextHop>,
    held: BTreeMap<u32, Held>,
    numbers: BTreeMap<PeerName, u32>,
}

impl Forwarding {
    /// Starts with what an earlier controller left in the maps: all of it is held but for sleeve, whose
    /// TAP was that controller's.
    #[must_use]
    pub fn adopt(now: Now, peers: BTreeMap<u32, NextHop>) -> Self {
        let held = peers
            .into_iter()
            .filter(|(_, hop)| outlives_controller(hop))
            .map(|(id, hop)| {
                (
                    id,
                    Held {
                        hop,
                        until: now + HOLD,
                    },
                )
            })
            .collect();
        Self {
            held,
            ..Self::default()
        }
    }

    /// When something held runs out.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Now> {
        self.held.values().map(|held| held.until).min()
    }

    /// What the maps shall hold now.
    pub fn update(&mut self, now: Now, view: &View) -> Tables {
        let mut tables = Tables {
            renumbered: self.renumber(view),
            ..Tables::default()
        };
        for (name, id) in &view.peers {
            let hop = view.routes.get(name).and_then(|via| next_hop(view, *via));
            tables.peers.insert(id.get().into(), hop.unwrap_or_default());
        }
        let routed: BTreeSet<u32> = view.routes.keys().filter_map(|name| view.number(name)).collect();
        let orphans = view.orphans.iter().filter_map(|name| view.number(name));
        let orphans: BTreeSet<u32> = orphans.filter(|id| self.is_direct(*id)).collect();
        self.hold(now, view, &routed.difference(&orphans).copied().collect());
        for (id, held) in &self.held {
            tables.peers.insert(*id, held.hop);
        }
        self.usable = tables
            .peers
            .iter()
            .filter(|(_, hop)| hop.flags & NextHop::USABLE != 0)
            .map(|(id, hop)| (*id, *hop))
            .collect();
        tables.floods = self.floods(view, &routed);
        tables.senders = self.senders(view);
        tables
    }

    /// Notes who has which number, and who has another than before.
    fn renumber(&mut self, view: &View) -> Vec<(u32, u32)> {
        let mut changed = Vec::new();
        for (name, id) in &view.peers {
            let id = u32::from(id.get());
            if let Some(old) = self.numbers.insert(*name, id)
                && old != id
            {
                changed.push((old, id));
                self.held.remove(&old);
                self.usable.remove(&old);
            }
        }
        changed
    }

    /// Did frames go there without a relay? That way is better than the one by a neighbour who may not have noticed
    /// yet that the controller is dead, or who cannot reach it.
    fn is_direct(&self, id: u32) -> bool {
        let held = self.held.get(&id).map(|held| &held.hop);
        self.usable.get(&id).or(held).is_some_and(|hop| hop.via == id)
    }

    /// Peers without a route keep their last way for a while; peers with one need none.
    fn hold(&mut self, now: Now, view: &View, routed: &BTreeSet<u32>) {
        for (id, hop) in std::mem::take(&mut self.usable) {
            if !routed.contains(&id) && outlives_controller(&hop) {
                self.held.entry(id).or_insert(Held {
                    hop,
                    until: now + HOLD,
                });
            }
        }
        self.held
            .retain(|id, held| !routed.contains(id) && held.until > now && *id != view.own);
    }

    fn floods(&self, view: &View, routed: &BTreeSet<u32>) -> BTreeMap<u32, FloodHops> {
        let number = |name: &PeerName| -> Option<u32> {
            if Some(*name) == view.own_name {
                return Some(view.own);
            }
            view.number(name)
        };
        let mut floods = BTreeMap::new();
        for (origin, tree) in &view.floods {
            let Some(origin) = number(origin) else {
                continue;
            };
            let on_sleeve = |name: &PeerName| view.best.get(name) == Some(&Best::Sleeve);
            let sleeve = tree.to.iter().any(on_sleeve);
            let mut hops: BTreeSet<u16> = tree
                .to
                .iter()
                .filter(|name| !on_sleeve(name))
                .filter_map(number)
                .filter_map(|id| u16::try_from(id).ok())
                .collect();
            if origin == view.own {
                // A held neighbour still hears our own floods: nobody else passes them on to it,
                // and it does not send them back.
                let alone = |id: &u32, held: &Held| held.hop.via == *id && !routed.contains(id);
                let held = self.held.iter().filter(|(id, held)| alone(id, held));
                hops.extend(held.filter_map(|(id, _)| u16::try_from(*id).ok()));
            }
            let mut entry = FloodHops {
                from: tree.from.as_ref().and_then(number).unwrap_or_default(),
                ..FloodHops::default()
            };
            // First, as the last ones are cut off if there are too many.
            let hops = sleeve.then_some(FLOOD_SLEEVE).into_iter().chain(hops);
            for (slot, hop) in entry.hops.iter_mut().zip(hops) {
                *slot = hop;
                entry.count += 1;
            }
            debug_assert!(entry.count as usize <= MAX_FLOOD_HOPS);
            if entry.count > 0 {
                floods.insert(origin, entry);
            }
        }
        floods
    }

    fn senders(&self, view: &View) -> BTreeMap<[u8; 4], Sender> {
        let mut senders = BTreeMap::new();
        for (id, held) in &self.held {
            senders.insert(held.hop.remote_ip, Sender { short_id: *id });
        }
        for (name, link) in &view.links {
            let short_id = view.peers.get(name).map_or(0, |id| id.get().into());
            senders.insert(link.remote.octets(), Sender { short_id });
        }
        senders
    }
}

/// Does a hop go on working when our controller, or the one at its end, is gone?
fn outlives_controller(hop: &NextHop) -> bool {
    hop.flags & (NextHop::USABLE | NextHop::SLEEVE) == NextHop::USABLE
}

fn next_hop(view: &View, via: PeerName) -> Option<NextHop> {
    let id = *view.peers.get(&via)?;
    match view.best.get(&via)? {
        Best::Fastdp => fastdp_hop(view.links.get(&via)?, id),
        Best::Sleeve => sleeve_hop(view.sleeves.get(&via)?, id),
    }
}

fn sleeve_hop(link: &SleeveLink, via: ShortId) -> Option<NextHop> {
    link.usable.then(|| NextHop {
        flags: NextHop::USABLE | NextHop::SLEEVE,
        via: via.get().into(),
        mtu: link.mtu,
        ..NextHop::default()
    })
}

fn fastdp_hop(link: &Link, via: ShortId) -> Option<NextHop> {
    if !link.usable {
        return None;
    }
    let (dst_mac, src_mac) = link.macs.unwrap_or_default();
    Some(NextHop {
        flags: NextHop::USABLE | if link.macs.is_some() { NextHop::HAS_MACS } else { 0 },
        via: via.get().into(),
        remote_ip: link.remote.octets(),
        local_ip: link.local.octets(),
        ifindex: link.ifindex,
        vxlan_ifindex: link.vxlan_ifindex,
        mtu: link.mtu,
        port: link.port,
        dst_mac,
        src_mac,
        zero: 0,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(n: u64) -> PeerName {
        PeerName::from_u64(n).unwrap()
    }

    fn link(n: u8) -> Link {
        Link {
            remote: Ipv4Addr::new(172, 31, 0, n),
            local: Ipv4Addr::new(172, 31, 0, 1),
            port: 6784,
            ifindex: 3,
            vxlan_ifindex: 9,
            mtu: 1416,
            macs: Some(([n; 6], [1; 6])),
            usable: true,
        }
    }

    fn tree(from: u64, to: &[u64]) -> Tree {
        Tree {
            from: Some(name(from)),
            to: to.iter().map(|n| name(*n)).collect(),
        }
    }

    /// We are 1; 2 is a neighbour, 3 lies behind it.
    fn view() -> View {
        View {
            own: 101,
            own_name: Some(name(1)),
            peers: [
                (name(2), ShortId::new(102).unwrap()),
                (name(3), ShortId::new(103).unwrap()),
            ]
            .into(),
            routes: [(name(2), name(2)), (name(3), name(2))].into(),
            links: [(name(2), link(2))].into(),
            sleeves: [(
                name(2),
                SleeveLink {
                    mtu: 1400,
                    usable: true,
                },
            )]
            .into(),
            best: [(name(2), Best::Fastdp)].into(),
            floods: [
                (name(1), tree(1, &[2])),
                (name(2), tree(2, &[])),
                (name(3), tree(2, &[])),
            ]
            .into(),
            orphans: BTreeSet::new(),
        }
    }

    fn at(seconds: u64) -> Now {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_far_peer_is_reached_through_its_neighbour() {
        let tables = Forwarding::default().update(at(0), &view());
        let hop = tables.peers[&103];
        assert_eq!(
            (hop.remote_ip, hop.via, hop.dst_mac),
            ([172, 31, 0, 2], 102, [2; 6])
        );
        assert_eq!(hop.flags, NextHop::USABLE | NextHop::HAS_MACS);
        assert_eq!(hop.port, 6784);
        assert_eq!(tables.floods.keys().copied().collect::<Vec<_>>(), [101]);
        assert_eq!((tables.floods[&101].count, tables.floods[&101].hops[0]), (1, 102));
        assert_eq!(
            tables.senders.keys().copied().collect::<Vec<_>>(),
            [[172, 31, 0, 2]]
        );
    }

    #[test]
    fn a_vanished_controller_is_held_for_a_minute() {
        let mut forwarding = Forwarding::default();
        let before = forwarding.update(at(0), &view());
        let gone = View {
            own: 101,
            own_name: Some(name(1)),
            floods: [(name(1), tree(1, &[]))].into(),
            ..View::default()
        };
        let during = forwarding.update(at(10), &gone);
        assert_eq!(during.peers, before.peers, "known traffic goes on");
        assert_eq!(
            during.senders.keys().collect::<Vec<_>>(),
            before.senders.keys().collect::<Vec<_>>()
        );
        assert_eq!(during.floods[&101].hops[0], 102, "and so does ARP");
        assert_eq!(forwarding.next_deadline(), Some(at(70)));
        assert_eq!(
            forwarding.update(at(69), &gone).peers,
            before.peers,
            "other changes do not prolong it"
        );
        let after = forwarding.update(at(70), &gone);
        assert_eq!(
            (after.peers.len(), after.senders.len(), after.floods.len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_dead_path_is_not_held_nor_a_better_route_ignored() {
        let mut forwarding = Forwarding::default();
        forwarding.update(at(0), &view());
        let mut silent = view();
        silent.links.insert(
            name(2),
            Link {
                usable: false,
                ..link(2)
            },
        );
        assert_eq!(
            forwarding.update(at(1), &silent).peers[&102],
            NextHop::default(),
            "known, but no way"
        );
        let mut detour = view();
        detour.links.insert(name(3), link(3));
        detour.best.insert(name(3), Best::Fastdp);
        detour.routes.insert(name(2), name(3));
        assert_eq!(
            forwarding.update(at(2), &detour).peers[&102].remote_ip,
            [172, 31, 0, 3]
        );
    }

    /// Others still list their connections with it, so there is a route; it may lead nowhere.
    #[test]
    fn an_orphan_is_reached_as_before_and_not_through_a_relay() {
        let mut forwarding = Forwarding::default();
        let mut both = view();
        both.links.insert(name(3), link(3));
        both.best.insert(name(3), Best::Fastdp);
        both.routes.insert(name(3), name(3));
        both.floods.insert(name(1), tree(1, &[2, 3]));
        let before = forwarding.update(at(0), &both);
        let mut orphaned = View {
            orphans: [name(3)].into(),
            ..view()
        };
        let during = forwarding.update(at(1), &orphaned);
        assert_eq!(during.peers[&103], before.peers[&103]);
        assert!(during.senders.contains_key(&[172, 31, 0, 3]), "and is heard");
        assert_eq!(during.floods[&101].count, 1, "the relay floods to it if it can");
        assert_eq!(
            forwarding.update(at(60), &orphaned).peers[&103],
            before.peers[&103]
        );
        assert_eq!(
            forwarding.update(at(61), &orphaned).peers[&103].via,
            102,
            "not for ever"
        );
        forwarding.update(at(70), &both);
        orphaned.orphans.clear();
        assert_eq!(
            forwarding.update(at(71), &orphaned).peers[&103].via,
            102,
            "its controller lives, and says that the connection is gone"
        );
    }

    #[test]
    fn what_an_earlier_controller_left_is_held() {
        let left = Forwarding::default().update(at(0), &view()).peers;
        let mut forwarding = Forwarding::adopt(at(100), left.clone());
        let alone = View {
            own: 101,
            own_name: Some(name(1)),
            ..View::default()
        };
        assert_eq!(forwarding.update(at(101), &alone).peers, left);
        assert!(forwarding.update(at(160), &alone).peers.is_empty());
    }

    #[test]
    fn a_renumbered_peer_takes_its_addresses_along() {
        let mut forwarding = Forwarding::default();
        forwarding.update(at(0), &view());
        let mut renumbered = view();
        renumbered.peers.insert(name(3), ShortId::new(200).unwrap());
        let tables = forwarding.update(at(1), &renumbered);
        assert_eq!(tables.renumbered, [(103, 200)]);
        assert!(tables.peers.contains_key(&200) && !tables.peers.contains_key(&103));
    }

    /// As [`view`], with 2 on sleeve.
    fn on_sleeve() -> View {
        View {
            best: [(name(2), Best::Sleeve)].into(),
            ..view()
        }
    }

    #[test]
    fn a_neighbour_on_sleeve_is_reached_through_the_tap() {
        let tables = Forwarding::default().update(at(0), &on_sleeve());
        let hop = NextHop {
            flags: NextHop::USABLE | NextHop::SLEEVE,
            via: 102,
            mtu: 1400,
            ..NextHop::default()
        };
        assert_eq!(tables.peers, [(102, hop), (103, hop)].into());
        assert_eq!(
            tables.senders.keys().copied().collect::<Vec<_>>(),
            [[172, 31, 0, 2]],
            "its end of the fast path may be the first to work"
        );
        let mut dead = on_sleeve();
        dead.sleeves.insert(
            name(2),
            SleeveLink {
                mtu: 1400,
                usable: false,
            },
        );
        assert_eq!(
            Forwarding::default().update(at(0), &dead).peers[&102],
            NextHop::default()
        );
        dead.best.clear();
        assert_eq!(
            Forwarding::default().update(at(0), &dead).peers[&102],
            NextHop::default()
        );
    }

    #[test]
    fn a_flood_goes_to_sleeve_once_and_to_the_others_by_number() {
        let mut view = on_sleeve();
        for n in [4, 5, 6] {
            view.peers.insert(name(n), ShortId::new(100 + n).unwrap());
            view.best.insert(name(n), Best::Fastdp);
        }
        view.best.insert(name(5), Best::Sleeve);
        view.floods.insert(name(1), tree(1, &[2, 4, 5, 6]));
        view.floods.insert(name(3), tree(2, &[6]));
        let tables = Forwarding::default().update(at(0), &view);
        let hops = |origin: u32| {
            let entry = &tables.floods[&origin];
            entry.hops[..entry.count as usize].to_vec()
        };
        assert_eq!(hops(101), [FLOOD_SLEEVE, 104, 106]);
        assert_eq!(hops(103), [106]);
        assert_eq!(tables.floods[&103].from, 102);
    }

    #[test]
    fn sleeve_ends_with_its_controller() {
        let mut forwarding = Forwarding::default();
        let left = forwarding.update(at(0), &on_sleeve()).peers;
        let alone = View {
            own: 101,
            own_name: Some(name(1)),
            ..View::default()
        };
        assert!(forwarding.update(at(1), &alone).peers.is_empty(), "theirs");
        let mut successor = Forwarding::adopt(at(1), left);
        assert!(successor.update(at(1), &alone).peers.is_empty(), "ours");
    }
}
