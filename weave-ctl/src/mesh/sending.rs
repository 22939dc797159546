//! The outgoing side: queues of the connections, and encoding just before writing (wire.md 4.5).

use std::collections::BTreeSet;

use super::ConnId;
use super::channel::{Channel, Channels};
use super::core::{Call, Mesh, Output};
use super::message::{Envelope, MAX_BODY, Message};
use super::name::PeerName;
use super::queue::{Item, Key, Next, Slot};
use super::summary::{PeerSummary, encode_topology};

/// Bytes that sealing adds to a body.
const SEAL: usize = 16;
/// A topology message is cut here, so that a large mesh never exceeds the frame limit (W3).
const TOPOLOGY_CHUNK: usize = 4 << 20;

impl Mesh {
    /// Queues a message that keeps its order; a full queue ends the connection.
    pub(super) fn send(&mut self, conn: ConnId, body: Vec<u8>) {
        if body.len() + SEAL > MAX_BODY {
            self.counters.oversized += 1;
            tracing::warn!(
                conn,
                bytes = body.len(),
                "not sending a message larger than a frame may be"
            );
            return;
        }
        let Some(connection) = self.conns.get_mut(&conn) else {
            return;
        };
        if let Err(overflow) = connection.queue.push(body) {
            self.doomed.push((conn, overflow.to_string()));
        }
        self.announce(conn);
    }

    /// Puts an item into a slot of a connection.
    pub(super) fn put(&mut self, call: &mut Call<'_>, conn: ConnId, mut key: Key, mut item: Item) {
        if self.conns.get(&conn).is_some_and(|c| c.reconciles) {
            item = self.translate(call, &key.0, key.1, item);
        }
        match item {
            Item::Work(work) if work.is_empty() => return,
            Item::Work(_) => key.1 = Slot::Reconcile,
            Item::News(data, _) => item = Item::Data(data),
            _ => {}
        }
        let channel = if matches!(item, Item::Data(_)) {
            call.channels.get(&key.0)
        } else {
            None
        };
        self.put_item(conn, key, item, channel);
    }

    /// Puts an item into a slot of a connection as it is.
    pub(super) fn put_item(&mut self, conn: ConnId, key: Key, item: Item, channel: Option<&mut dyn Channel>) {
        let Some(connection) = self.conns.get_mut(&conn) else {
            return;
        };
        match connection.queue.put(key, item, channel) {
            Ok(taken) => self.counters.relays_dropped += u64::from(!taken),
            Err(overflow) => self.doomed.push((conn, overflow.to_string())),
        }
        self.announce(conn);
    }

    fn announce(&mut self, conn: ConnId) {
        if let Some(connection) = self.conns.get_mut(&conn)
            && !connection.queue.is_empty()
            && !std::mem::replace(&mut connection.queue.announced, true)
        {
            self.out.push(Output::Ready { conn });
        }
    }

    /// The next message body (tag first, not sealed) to write on a connection; slots are encoded
    /// now. `None`: nothing more until the next [`Output::Ready`]. `unix_now` in seconds.
    pub fn poll_send(&mut self, conn: ConnId, unix_now: i64, channels: &mut dyn Channels) -> Option<Vec<u8>> {
        loop {
            let connection = self.conns.get_mut(&conn)?;
            let Some(next) = connection.queue.pop() else {
                connection.queue.announced = false;
                return None;
            };
            let body = match next {
                Next::Heartbeat => Some(Message::Heartbeat.encode()),
                Next::Body(body) => Some(body),
                Next::Slot(key, item) => self.encode(conn, unix_now, channels, key, item),
            };
            match body {
                Some(body) if body.len() + SEAL > MAX_BODY => {
                    self.counters.oversized += 1;
                    tracing::warn!(
                        conn,
                        bytes = body.len(),
                        "not sending gossip larger than a frame may be"
                    );
                }
                Some(body) => return Some(body),
                None => {}
            }
        }
    }

    fn encode(
        &mut self,
        conn: ConnId,
        unix_now: i64,
        channels: &mut dyn Channels,
        key: Key,
        item: Item,
    ) -> Option<Vec<u8>> {
        let payload = match item {
            Item::AllPeers => {
                let all = self.peers.iter().map(|p| p.name).collect();
                self.encode_peers(conn, &key, all)?
            }
            Item::Peers(names) => self.encode_peers(conn, &key, names)?,
            Item::Data(data) => {
                let channel = channels.get(&key.0)?;
                let neighbour = self.neighbour(conn)?;
                if !channel.wants_gossip(neighbour) {
                    return None;
                }
                channel.encode_for(neighbour, unix_now, &data)
            }
            Item::Relayed(list) => list.into_iter().next()?.to_vec(),
            Item::Work(work) => return self.encode_work(conn, unix_now, channels, &key.0, work),
            Item::News(..) => return None,
        };
        let (channel, slot) = (key.0.to_string(), key.1);
        self.census.full(&channel, payload.len());
        let message = match slot {
            Slot::Reconcile => return None,
            Slot::Gossip => Message::Gossip(Envelope {
                channel,
                source: self.config.name,
                payload,
            }),
            Slot::Broadcast(source) => Message::Broadcast(Envelope {
                channel,
                source,
                payload,
            }),
        };
        Some(message.encode())
    }

    /// As many of the peers as fit into one message; the others go back into the slot.
    fn encode_peers(&mut self, conn: ConnId, key: &Key, mut names: BTreeSet<PeerName>) -> Option<Vec<u8>> {
        let mut size = 0;
        let mut now: Vec<&PeerSummary> = Vec::new();
        while size < TOPOLOGY_CHUNK
            && let Some(name) = names.pop_first()
        {
            if let Some(peer) = self.peers.get(name) {
                size += 64 + peer.nickname.len();
                size += peer
                    .connections
                    .iter()
                    .map(|c| 32 + c.remote_addr.len())
                    .sum::<usize>();
                now.push(peer);
            }
        }
        let payload = (!now.is_empty()).then(|| encode_topology(now));
        if !names.is_empty()
            && let Some(connection) = self.conns.get_mut(&conn)
        {
            // The slot was emptied just now, so there is room.
            let _ = connection.queue.put(key.clone(), Item::Peers(names), None);
        }
        payload
    }
}
