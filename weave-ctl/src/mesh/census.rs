//! What each gossip channel costs: messages and bytes, sent and received.

use std::collections::BTreeMap;

use super::core::Mesh;
use super::events::Sent;
use super::gossip::TOPOLOGY;
use super::message::Message;
use super::reconcile::wire::Body;

/// Where channels are counted that we do not have: their names are the neighbours' choice.
pub const OTHERS: &str = "other";

/// Messages on one channel since the start; bytes are those of their payloads.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// State and changes sent as the originals do: gossip and broadcasts.
    pub full: Sent,
    /// Digests sent.
    pub digests: Sent,
    /// Lists of stamps, announcements and questions sent.
    pub lists: Sent,
    /// Single records sent.
    pub records: Sent,
    /// Our own messages to one peer.
    pub unicasts: Sent,
    /// Received, of all kinds.
    pub received: Sent,
}

impl Traffic {
    /// What was sent, by kind.
    #[must_use]
    pub fn sent(&self) -> [(&'static str, Sent); 5] {
        [
            ("full", self.full),
            ("digests", self.digests),
            ("lists", self.lists),
            ("records", self.records),
            ("unicasts", self.unicasts),
        ]
    }
}

/// All channels that are counted.
#[derive(Debug)]
pub(super) struct Census(BTreeMap<&'static str, Traffic>);

impl Default for Census {
    fn default() -> Self {
        Self([(TOPOLOGY, Traffic::default()), (OTHERS, Traffic::default())].into())
    }
}

impl Census {
    fn of(&mut self, channel: &str) -> &mut Traffic {
        let channel = self.0.get_key_value(channel).map_or(OTHERS, |(name, _)| *name);
        self.0.entry(channel).or_default()
    }

    pub(super) fn full(&mut self, channel: &str, bytes: usize) {
        self.of(channel).full.add(bytes);
    }

    pub(super) fn unicast(&mut self, channel: &str, bytes: usize) {
        self.of(channel).unicasts.add(bytes);
    }

    pub(super) fn reconcile(&mut self, channel: &str, body: &Body, bytes: usize) {
        let traffic = self.of(channel);
        let sent = match body {
            Body::Digest { .. } => &mut traffic.digests,
            Body::Records(_) => &mut traffic.records,
            Body::List(_) | Body::Ask(_) | Body::Announce { .. } | Body::Full => &mut traffic.lists,
        };
        sent.add(bytes);
    }

    pub(super) fn received(&mut self, channel: &str, bytes: usize) {
        self.of(channel).received.add(bytes);
    }

    /// Counts what has come, but for reconcile messages: their channel is known once they are decoded.
    pub(super) fn came(&mut self, message: &Message) {
        let (Message::Gossip(envelope) | Message::Broadcast(envelope) | Message::Unicast { envelope, .. }) =
            message
        else {
            return;
        };
        self.received(&envelope.channel, envelope.payload.len());
    }
}

impl Mesh {
    /// These channels are ours: each is counted by itself.
    pub fn count_channels(&mut self, names: impl IntoIterator<Item = &'static str>) {
        for name in names {
            self.census.0.entry(name).or_default();
        }
    }

    /// What the channels cost, by name.
    pub fn gossip_traffic(&self) -> impl Iterator<Item = (&'static str, &Traffic)> {
        self.census.0.iter().map(|(name, traffic)| (*name, traffic))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::message::Envelope;
    use super::super::name::PeerName;
    use super::*;

    #[test]
    fn names_of_neighbours_are_counted_together() {
        let mut census = Census::default();
        census.0.entry("ours").or_default();
        for channel in ["ours", "theirs", "and theirs", TOPOLOGY] {
            let source = PeerName::from_bytes(&[1; 6]).unwrap();
            let payload = vec![0; 5];
            let channel = channel.to_owned();
            census.came(&Message::Gossip(Envelope {
                channel,
                source,
                payload,
            }));
        }
        let counted: Vec<_> = census
            .0
            .iter()
            .map(|(name, t)| (*name, t.received.messages))
            .collect();
        assert_eq!(counted, [("other", 2), ("ours", 1), (TOPOLOGY, 1)]);
        assert_eq!(census.of("ours").received.bytes, 5);
    }
}
