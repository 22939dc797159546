//! What waits to be sent on one connection: messages in order, and slots that merge (wire.md 4.5).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use super::channel::{Channel, GossipData};
use super::message::MAX_BODY;
use super::name::PeerName;
use super::reconcile::work::Work;

/// Messages queued in order at most; slots come on top.
pub const MAX_MESSAGES: usize = 1024;
/// Their bytes at most: room for one message of any size.
pub const MAX_BYTES: usize = MAX_BODY + (6 << 20);
/// Occupied slots at most.
pub const MAX_SLOTS: usize = 8192;
/// Payloads at most of channels that we only relay, per connection.
pub const MAX_RELAYED: usize = 2048;
/// Their bytes at most.
pub const MAX_RELAYED_BYTES: usize = MAX_BODY + (6 << 20);

/// The remote does not take what is meant for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "remote does not keep up: {messages} messages with {bytes} bytes and {slots} gossip slots are waiting"
)]
pub struct Overflow {
    /// Waiting in order.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Occupied.
    pub slots: usize,
}

/// Which slot of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// Tag 4.
    Gossip,
    /// Tag 6, by originator.
    Broadcast(PeerName),
    /// Tag 17.
    Reconcile,
}

/// Channel and slot.
pub type Key = (Arc<str>, Slot);

/// What can be in a slot.
#[derive(Clone)]
pub enum Item {
    /// Topology: the state of these peers at the time of sending.
    Peers(BTreeSet<PeerName>),
    /// Topology: everybody.
    AllPeers,
    /// Of one of our channels.
    Data(GossipData),
    /// The same, with the keys of what is new in it for neighbours that reconcile.
    News(GossipData, BTreeSet<u64>),
    /// For such a neighbour.
    Work(Work),
    /// Of a channel that we relay: payloads as received.
    Relayed(VecDeque<Arc<[u8]>>),
}

impl Item {
    /// Both in one. `channel` is the one that `Data` belongs to.
    #[must_use]
    pub fn merge(self, new: Item, channel: Option<&mut dyn Channel>) -> Item {
        match (self, new, channel) {
            (Item::Peers(mut old), Item::Peers(new), _) => {
                old.extend(new);
                Item::Peers(old)
            }
            (Item::AllPeers, _, _) => Item::AllPeers,
            (Item::Relayed(mut old), Item::Relayed(new), _) => {
                old.extend(new);
                Item::Relayed(old)
            }
            (Item::Data(old), Item::Data(new), Some(channel)) => Item::Data(channel.merge(old, new)),
            (Item::News(old, mut keys), Item::News(new, more), Some(channel)) => {
                keys.extend(more);
                Item::News(channel.merge(old, new), keys)
            }
            (Item::Work(old), Item::Work(new), _) => Item::Work(old.merge(new)),
            (_, new, _) => new,
        }
    }

    /// Payloads and bytes of a relayed item.
    #[must_use]
    pub fn relayed(&self) -> (usize, usize) {
        match self {
            Item::Relayed(list) => (list.len(), list.iter().map(|p| p.len()).sum()),
            _ => (0, 0),
        }
    }
}

/// The next thing to send.
pub enum Next {
    /// A message body.
    Body(Vec<u8>),
    /// A heartbeat.
    Heartbeat,
    /// A slot's content, to be encoded now.
    Slot(Key, Item),
}

/// All that waits on one connection.
#[derive(Default)]
pub struct Queue {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
    heartbeat: bool,
    slots: BTreeMap<Key, Item>,
    relayed: (usize, usize),
    /// The slot served last: the others come first now.
    served: Option<Key>,
    slots_next: bool,
    /// The driver knows that there is something.
    pub announced: bool,
}

impl Queue {
    /// One heartbeat more; two that wait are one.
    pub fn push_heartbeat(&mut self) {
        self.heartbeat = true;
    }

    /// A message that keeps its place in the order.
    pub fn push(&mut self, body: Vec<u8>) -> Result<(), Overflow> {
        if self.messages.len() >= MAX_MESSAGES || self.bytes + body.len() > MAX_BYTES {
            return Err(self.overflow());
        }
        self.bytes += body.len();
        self.messages.push_back(body);
        Ok(())
    }

    /// May a message of that size be relayed here? Those of others get half of the queue, so that
    /// they cannot break the connection.
    #[must_use]
    pub fn has_room_to_relay(&self, bytes: usize) -> bool {
        self.messages.len() < MAX_MESSAGES / 2
            && (self.messages.is_empty() || self.bytes + bytes <= MAX_BYTES / 2)
    }

    /// Into a slot, merged with what is there. False: relayed data that had to be dropped.
    pub fn put(&mut self, key: Key, item: Item, channel: Option<&mut dyn Channel>) -> Result<bool, Overflow> {
        let (payloads, bytes) = item.relayed();
        let relays = payloads > 0;
        if relays && (self.relayed.0 + payloads > MAX_RELAYED || self.relayed.1 + bytes > MAX_RELAYED_BYTES) {
            return Ok(false);
        }
        let item = match self.slots.remove(&key) {
            Some(old) => old.merge(item, channel),
            None if self.slots.len() >= MAX_SLOTS => {
                return if relays { Ok(false) } else { Err(self.overflow()) };
            }
            None => item,
        };
        self.relayed = (self.relayed.0 + payloads, self.relayed.1 + bytes);
        self.slots.insert(key, item);
        Ok(true)
    }

    /// Takes the next thing to send: messages and slots by turns, each slot in its turn.
    pub fn pop(&mut self) -> Option<Next> {
        if std::mem::take(&mut self.heartbeat) {
            return Some(Next::Heartbeat);
        }
        if !self.messages.is_empty() && (self.slots.is_empty() || !self.slots_next) {
            let body = self.messages.pop_front()?;
            self.bytes -= body.len();
            self.slots_next = true;
            return Some(Next::Body(body));
        }
        self.slots_next = false;
        let after = self.served.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next = self
            .slots
            .range((after, Bound::Unbounded))
            .next()
            .or_else(|| self.slots.iter().next());
        let key = next.map(|(key, _)| key.clone())?;
        let mut item = self.slots.remove(&key)?;
        if let Item::Relayed(list) = &mut item
            && let Some(payload) = list.pop_front()
        {
            self.relayed = (self.relayed.0 - 1, self.relayed.1 - payload.len());
            if !list.is_empty() {
                self.slots.insert(key.clone(), item);
            }
            item = Item::Relayed(VecDeque::from([payload]));
        }
        self.served = Some(key.clone());
        Some(Next::Slot(key, item))
    }

    /// Nothing to send?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.heartbeat && self.messages.is_empty() && self.slots.is_empty()
    }

    /// Messages, bytes, slots.
    #[must_use]
    pub fn overflow(&self) -> Overflow {
        Overflow {
            messages: self.messages.len(),
            bytes: self.bytes,
            slots: self.slots.len(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(channel: &str, slot: Slot) -> Key {
        (channel.into(), slot)
    }

    fn names(list: &[u64]) -> BTreeSet<PeerName> {
        list.iter().map(|n| PeerName::from_u64(*n).unwrap()).collect()
    }

    fn drain(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop())
            .map(|next| match next {
                Next::Body(body) => format!("{body:?}"),
                Next::Heartbeat => "heartbeat".to_owned(),
                Next::Slot((channel, _), Item::Peers(names)) => format!("{channel} {}", names.len()),
                Next::Slot((channel, _), Item::AllPeers) => format!("{channel} all"),
                Next::Slot((channel, _), Item::Relayed(list)) => format!("{channel} {:?}", list[0]),
                Next::Slot((channel, _), _) => channel.to_string(),
            })
            .collect()
    }

    fn relayed(bytes: &[u8]) -> Item {
        Item::Relayed(VecDeque::from([Arc::from(bytes)]))
    }

    #[test]
    fn slots_merge_and_take_turns_with_messages() {
        let mut queue = Queue::default();
        queue
            .put(key("t", Slot::Gossip), Item::Peers(names(&[1, 2])), None)
            .unwrap();
        queue
            .put(key("t", Slot::Gossip), Item::Peers(names(&[2, 3])), None)
            .unwrap();
        queue.put(key("x", Slot::Gossip), relayed(&[7]), None).unwrap();
        queue.put(key("x", Slot::Gossip), relayed(&[8]), None).unwrap();
        for n in 1..=4 {
            queue.push(vec![n]).unwrap();
        }
        queue.push_heartbeat();
        queue.push_heartbeat();
        assert_eq!(
            drain(&mut queue),
            ["heartbeat", "[1]", "t 3", "[2]", "x [7]", "[3]", "x [8]", "[4]"]
        );
        assert!(queue.is_empty());
        queue.put(key("t", Slot::Gossip), Item::AllPeers, None).unwrap();
        queue
            .put(key("t", Slot::Gossip), Item::Peers(names(&[1])), None)
            .unwrap();
        assert_eq!(drain(&mut queue), ["t all"]);
    }

    #[test]
    fn messages_overflow_by_count_and_by_bytes() {
        let mut queue = Queue::default();
        while queue.push(vec![0]).is_ok() {}
        assert_eq!(queue.messages.len(), MAX_MESSAGES);
        assert!(!queue.has_room_to_relay(1));
        let mut queue = Queue::default();
        queue.push(vec![0; MAX_BODY]).unwrap();
        assert!(!queue.has_room_to_relay(1));
        let text = queue.push(vec![0; MAX_BODY]).unwrap_err().to_string();
        assert_eq!(
            text,
            "remote does not keep up: 1 messages with 10485760 bytes and 0 gossip slots are waiting"
        );
        assert!(queue.push(vec![0; 1 << 20]).is_ok());
    }

    #[test]
    fn relayed_gossip_is_dropped_not_fatal() {
        let mut queue = Queue::default();
        let many = |n: usize| key("x", Slot::Broadcast(PeerName::from_u64(n as u64 + 1).unwrap()));
        for n in 0..3 * MAX_RELAYED {
            assert_eq!(queue.put(many(n), relayed(&[1]), None), Ok(n < MAX_RELAYED));
        }
        assert_eq!(drain(&mut queue).len(), MAX_RELAYED);
        assert_eq!(queue.relayed, (0, 0));
        let big = vec![0; MAX_BODY];
        assert_eq!(queue.put(many(0), relayed(&big), None), Ok(true));
        assert_eq!(queue.put(many(0), relayed(&big), None), Ok(false));
        for n in 1..MAX_SLOTS {
            queue.put(many(n), Item::AllPeers, None).unwrap();
        }
        assert!(queue.put(many(MAX_SLOTS), Item::AllPeers, None).is_err());
    }
}
