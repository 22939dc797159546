//! What new peers tell each other about takeovers, on a mesh channel of their own. Originals do not have it and
//! relay it unread (wire.md 4.1); nothing of it is ever sent on the IPAM channel, where they would hang.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::mesh::channel::{Channel, GossipData, Outlet, Rejected};
use crate::mesh::name::PeerName;

/// Name of the mesh channel.
pub const CHANNEL: &str = "weave-takeover";
/// Largest payload read or sent, in bytes.
const MAX_PAYLOAD: usize = 16 * 1024;
/// Messages that may wait to be handled.
const MAX_HEARD: usize = 256;

/// One message: a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Say {
    /// To all: an administrator has me take over from `peer`. Who does the same?
    Intend {
        /// From whom.
        peer: PeerName,
    },
    /// To one who intends: I do, or have just done so.
    Object {
        /// From whom.
        peer: PeerName,
    },
    /// To all: shall I take over from `peer`, absent for long?
    Ask {
        /// From whom.
        peer: PeerName,
        /// Number of the proposal.
        number: u64,
        /// Hash of tokens and versions of its entries in the ring.
        entries: u64,
    },
    /// To one who asks: yes.
    Vote {
        /// From whom.
        peer: PeerName,
        /// Number of the proposal.
        number: u64,
    },
}

impl Say {
    /// Bytes of a message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// All that can be understood.
    fn decode(payload: &[u8]) -> Vec<Self> {
        if payload.len() > MAX_PAYLOAD {
            return Vec::new();
        }
        let lines = payload.split(|byte| *byte == b'\n');
        lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }
}

/// The channel: keeps what it hears until the allocator is told.
#[derive(Debug, Default)]
pub struct Talk {
    heard: Vec<(PeerName, Say)>,
}

impl Talk {
    /// What came since the last call, with who said it.
    pub fn take_heard(&mut self) -> Vec<(PeerName, Say)> {
        std::mem::take(&mut self.heard)
    }

    fn hear(&mut self, from: PeerName, payload: &[u8]) -> bool {
        let said = Say::decode(payload);
        let any = !said.is_empty();
        let room = MAX_HEARD.saturating_sub(self.heard.len());
        self.heard
            .extend(said.into_iter().take(room).map(|say| (from, say)));
        any
    }
}

impl Channel for Talk {
    fn on_unicast(&mut self, _: &mut dyn Outlet, from: PeerName, payload: &[u8]) -> Result<(), Rejected> {
        self.hear(from, payload);
        Ok(())
    }

    fn on_broadcast(
        &mut self,
        _: &mut dyn Outlet,
        from: PeerName,
        payload: &[u8],
    ) -> Result<Option<GossipData>, Rejected> {
        let pass_on = self.hear(from, payload);
        Ok(pass_on.then(|| Arc::new(payload.to_vec()) as GossipData))
    }

    fn on_gossip(&mut self, _: &mut dyn Outlet, _: &[u8]) -> Result<Option<GossipData>, Rejected> {
        Ok(None)
    }

    fn full_state(&mut self, _: &mut dyn Outlet) -> Option<GossipData> {
        None
    }

    fn merge(&self, old: GossipData, new: GossipData) -> GossipData {
        match (old.downcast_ref::<Vec<u8>>(), new.downcast_ref::<Vec<u8>>()) {
            (Some(a), Some(b)) if a.len() + b.len() <= MAX_PAYLOAD => Arc::new([a.as_slice(), b].concat()),
            _ => new,
        }
    }

    fn encode(&mut self, _: i64, data: &GossipData) -> Vec<u8> {
        data.downcast_ref::<Vec<u8>>().cloned().unwrap_or_default()
    }

    fn on_peer_gone(&mut self, _: &mut dyn Outlet, _: PeerName) {}
}
