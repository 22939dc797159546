//! A channel to test with: a set of numbers that only grows, unicasts and broadcasts that are kept.

use std::collections::BTreeSet;
use std::sync::Arc;

use weave_ctl::mesh::channel::{Channel, Channels, GossipData, Outlet, Rejected};
use weave_ctl::mesh::name::PeerName;

use super::Site;

/// The toy channel's name.
pub const TOY: &str = "toy";
/// Who hears this closes the connection.
pub const POISON: &[u8] = b"poison!!";

/// Numbers known here, and what arrived.
#[derive(Default)]
pub struct Toy {
    /// The state.
    pub numbers: BTreeSet<u64>,
    /// By whom, and what.
    pub unicasts: Vec<(PeerName, Vec<u8>)>,
    /// By whom, and what.
    pub broadcasts: Vec<(PeerName, Vec<u8>)>,
    /// Peers that the mesh has dropped.
    pub gone: Vec<PeerName>,
}

/// The channels of a simulated peer; without a toy, it relays for the others.
#[derive(Default)]
pub struct Toys {
    /// It.
    pub toy: Option<Toy>,
}

fn decode(payload: &[u8]) -> BTreeSet<u64> {
    payload
        .chunks_exact(8)
        .map(|c| u64::from_be_bytes(c.try_into().unwrap()))
        .collect()
}

fn numbers(data: &GossipData) -> &BTreeSet<u64> {
    data.downcast_ref().unwrap()
}

/// Gossip data of the toy channel.
pub fn data(numbers: impl IntoIterator<Item = u64>) -> GossipData {
    Arc::new(numbers.into_iter().collect::<BTreeSet<u64>>())
}

impl Channel for Toy {
    fn on_unicast(&mut self, _: &mut dyn Outlet, from: PeerName, payload: &[u8]) -> Result<(), Rejected> {
        self.unicasts.push((from, payload.to_vec()));
        Ok(())
    }
    fn on_broadcast(
        &mut self,
        _: &mut dyn Outlet,
        from: PeerName,
        payload: &[u8],
    ) -> Result<Option<GossipData>, Rejected> {
        self.broadcasts.push((from, payload.to_vec()));
        Ok(Some(data(decode(payload))))
    }
    fn on_gossip(&mut self, _: &mut dyn Outlet, payload: &[u8]) -> Result<Option<GossipData>, Rejected> {
        if payload == POISON {
            return Err(Rejected("the toy is broken".to_owned()));
        }
        let new: BTreeSet<u64> = decode(payload).difference(&self.numbers).copied().collect();
        self.numbers.extend(&new);
        Ok((!new.is_empty()).then(|| data(new)))
    }
    fn full_state(&mut self, _: &mut dyn Outlet) -> Option<GossipData> {
        Some(data(self.numbers.iter().copied()))
    }
    fn merge(&self, old: GossipData, new: GossipData) -> GossipData {
        data(numbers(&old).union(numbers(&new)).copied())
    }
    fn encode(&mut self, _: i64, data: &GossipData) -> Vec<u8> {
        numbers(data).iter().flat_map(|n| n.to_be_bytes()).collect()
    }
    fn on_peer_gone(&mut self, _: &mut dyn Outlet, peer: PeerName) {
        self.gone.push(peer);
    }
}

impl Site for Toys {
    const CHANNEL: &'static str = TOY;
}

impl Channels for Toys {
    fn names(&self) -> Vec<&'static str> {
        self.toy.iter().map(|_| TOY).collect()
    }
    fn get(&mut self, name: &str) -> Option<&mut dyn Channel> {
        self.toy
            .as_mut()
            .filter(|_| name == TOY)
            .map(|toy| toy as &mut dyn Channel)
    }
}
