//! Who says what when two peers reconcile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::wire::{Body, List, Packet};
use super::work::{Depth, Listing, MAX_KEYS, Work};
use super::{Stamp, Stamps, buckets_for, differing, digest, in_buckets, topology};
use crate::mesh::channel::{Channels, GossipData};
use crate::mesh::connections::Connection;
use crate::mesh::core::{Call, Mesh};
use crate::mesh::gossip::{Relay, TOPOLOGY};
use crate::mesh::message::Message;
use crate::mesh::name::PeerName;
use crate::mesh::queue::{Item, Slot};
use crate::mesh::{ConnId, Now};

/// How long an answer is waited for before somebody else is asked for the same.
pub const PATIENCE: Duration = Duration::from_millis(1500);
/// Records that may be asked for at a time, of all neighbours.
pub const MAX_ASKED: usize = 32 * 1024;
/// A message with records is cut here.
const CHUNK: usize = 256 << 10;

/// A record that we have asked for.
#[derive(Debug)]
pub(in crate::mesh) struct Asked {
    stamp: Stamp,
    until: Now,
    /// Along whose tree it is passed on.
    origin: Option<PeerName>,
    /// Whoever has it as well.
    other: Option<ConnId>,
}

/// What has been asked for, by channel and key.
#[derive(Debug, Default)]
pub(in crate::mesh) struct Asks {
    table: BTreeMap<(Arc<str>, u64), Asked>,
    /// When to look at them again.
    pub(in crate::mesh) check: Option<Now>,
}

/// How a channel's records are to be handled.
#[derive(Clone, Copy)]
struct Manner {
    scope: u32,
    atomic: bool,
    spreads: bool,
}

/// `None`: we have no such channel, or it cannot reconcile now.
fn manner(channels: &mut dyn Channels, channel: &str) -> Option<Manner> {
    if channel == TOPOLOGY {
        return Some(Manner {
            scope: 0,
            atomic: false,
            spreads: true,
        });
    }
    let records = channels.get(channel)?.reconcile()?;
    Some(Manner {
        scope: records.scope(),
        atomic: records.atomic(),
        spreads: records.spreads(),
    })
}

impl Mesh {
    fn stamps(&self, channels: &mut dyn Channels, channel: &str) -> Stamps {
        if channel == TOPOLOGY {
            return topology::stamps(&self.peers);
        }
        let records = channels.get(channel).and_then(|c| c.reconcile());
        records.map(|r| r.stamps()).unwrap_or_default()
    }

    fn stamp(&self, channels: &mut dyn Channels, channel: &str, key: u64) -> Option<Stamp> {
        if channel == TOPOLOGY {
            return PeerName::from_u64(key)
                .and_then(|name| self.peers.get(name))
                .and_then(topology::stamp);
        }
        channels.get(channel)?.reconcile()?.stamp(key)
    }

    fn records(
        &self,
        channels: &mut dyn Channels,
        channel: &str,
        wanted: &mut Stamps,
        limit: usize,
    ) -> Vec<u8> {
        if channel == TOPOLOGY {
            return topology::records(&self.peers, wanted, limit);
        }
        let records = channels.get(channel).and_then(|c| c.reconcile());
        records.map(|r| r.records(wanted, limit)).unwrap_or_default()
    }

    /// An item for what a channel of ours has to tell: for originals its data, for others what has changed.
    pub(in crate::mesh) fn news(&self, call: &mut Call<'_>, channel: &str, data: GossipData) -> Item {
        match call.channels.get(channel).and_then(|c| c.reconcile()) {
            Some(records) => Item::News(data, records.changed()),
            None => Item::Data(data),
        }
    }

    /// What becomes of an item on its way to a neighbour that reconciles.
    pub(in crate::mesh) fn translate(
        &self,
        call: &mut Call<'_>,
        channel: &str,
        slot: Slot,
        item: Item,
    ) -> Item {
        let reconciles = manner(call.channels, channel).is_some();
        let origin = match slot {
            Slot::Broadcast(origin) => Some(origin),
            _ => None,
        };
        let work = match item {
            Item::AllPeers if origin.is_none() => Work {
                digest: Some(Depth::Short),
                ..Work::default()
            },
            Item::Peers(names) if origin.is_none() => Work {
                announce: names.iter().map(|name| (name.as_u64(), None)).collect(),
                ..Work::default()
            },
            Item::News(_, keys) if reconciles => Work {
                announce: keys.iter().map(|key| (*key, origin)).collect(),
                ..Work::default()
            },
            Item::Data(_) if reconciles && origin.is_none() => Work {
                digest: Some(Depth::Short),
                ..Work::default()
            },
            other => return other,
        };
        Item::Work(work)
    }

    /// More to be told to a neighbour.
    pub(in crate::mesh) fn add_work(&mut self, conn: ConnId, channel: &Arc<str>, work: Work) {
        if !work.is_empty() {
            self.put_item(
                conn,
                (Arc::clone(channel), Slot::Reconcile),
                Item::Work(work),
                None,
            );
        }
    }

    /// Puts the next part of what is to be told into words; the rest waits on.
    pub(in crate::mesh) fn encode_work(
        &mut self,
        conn: ConnId,
        unix_now: i64,
        channels: &mut dyn Channels,
        channel: &Arc<str>,
        mut work: Work,
    ) -> Option<Vec<u8>> {
        let Manner { scope, atomic, .. } = manner(channels, channel).or(work.full.then_some(Manner {
            scope: 0,
            atomic: false,
            spreads: false,
        }))?;
        let body = loop {
            if work.is_empty() {
                return None;
            }
            if let Some(body) = self.next_part(unix_now, channels, channel, atomic, &mut work) {
                break body;
            }
        };
        self.add_work(conn, channel, work);
        let packet = Packet {
            channel: channel.to_string(),
            scope,
            body,
        };
        let bytes = packet.encode();
        self.census.reconcile(channel, &packet.body, bytes.len());
        Some(Message::Reconcile(bytes).encode())
    }

    fn next_part(
        &self,
        clock: i64,
        channels: &mut dyn Channels,
        channel: &str,
        atomic: bool,
        work: &mut Work,
    ) -> Option<Body> {
        if std::mem::take(&mut work.full) {
            return Some(Body::Full);
        }
        if !work.ask.is_empty() {
            return Some(Body::Ask(std::mem::take(&mut work.ask)));
        }
        if let Some(Listing { buckets, mask, reply }) = work.list.take() {
            let stamps = self.stamps(channels, channel);
            return Some(Body::List(List {
                buckets,
                hashes: atomic.then(|| digest(&stamps, buckets)),
                mask,
                reply,
                stamps: in_buckets(&stamps, buckets, mask),
            }));
        }
        if let Some((_, origin)) = work.announce.first_key_value().map(|(k, o)| (*k, *o)) {
            let (now, later) = std::mem::take(&mut work.announce)
                .into_iter()
                .partition(|(_, o)| *o == origin);
            work.announce = later;
            let now: BTreeMap<u64, Option<PeerName>> = now;
            let known = |key: &u64| Some((*key, self.stamp(channels, channel, *key)?));
            let stamps: Stamps = now.keys().filter_map(known).collect();
            return (!stamps.is_empty()).then_some(Body::Announce { origin, stamps });
        }
        if let Some(depth) = work.digest.take() {
            let stamps = self.stamps(channels, channel);
            let buckets = match depth {
                Depth::Short => 1,
                Depth::Long => buckets_for(stamps.len()),
            };
            let hashes = digest(&stamps, buckets);
            return Some(Body::Digest { clock, hashes });
        }
        let payload = self.records(channels, channel, &mut work.records, CHUNK);
        (!payload.is_empty()).then_some(Body::Records(payload))
    }

    /// Tag 17 from a neighbour. Nothing in it can end the connection.
    pub(in crate::mesh) fn on_reconcile(&mut self, call: &mut Call<'_>, conn: ConnId, payload: &[u8]) {
        let Some(from) = self.conns.get(&conn).filter(|c| c.reconciles).map(|c| c.remote) else {
            self.counters.reconcile_skipped += 1;
            return;
        };
        let packet = match Packet::decode(payload) {
            Ok(packet) => packet,
            Err(error) => {
                tracing::debug!(conn, %error, "skipping a reconcile message");
                self.counters.reconcile_skipped += 1;
                return;
            }
        };
        self.census.received(&packet.channel, payload.len());
        let channel: Arc<str> = packet.channel.as_str().into();
        if packet.body == Body::Full {
            self.send_full(call, conn, &channel);
            return;
        }
        let Some(manner) = manner(call.channels, &channel).filter(|m| m.scope == packet.scope) else {
            // A channel that we lack has to be passed on by us all the same: as full states, which need no
            // understanding.
            let ours = packet.channel == TOPOLOGY || call.channels.get(&channel).is_some();
            let full = ours || self.surrogate(call.now, &channel).is_some();
            let told = matches!(
                packet.body,
                Body::Digest { .. } | Body::List(_) | Body::Announce { .. }
            );
            if full && told {
                let work = Work {
                    full,
                    ..Work::default()
                };
                self.add_work(conn, &channel, work);
            }
            return;
        };
        match packet.body {
            Body::Digest { clock, hashes } => {
                let nickname = self.peers.get(from).map_or("", |peer| peer.nickname.as_str());
                if let Some(records) = call.channels.get(&channel).and_then(|c| c.reconcile()) {
                    records.met(from, nickname, (clock, call.unix_now));
                }
                self.on_digest(call, conn, &channel, &hashes);
            }
            Body::List(list) => self.on_list(call, conn, &channel, manner, list),
            Body::Ask(wanted) => {
                let have = |(key, has): &(u64, Stamp)| {
                    let ours = self.stamp(call.channels, &channel, *key);
                    ours.is_some_and(|ours| ours.is_news_to(Some(*has)))
                };
                let records = wanted.into_iter().filter(have).collect();
                self.add_work(
                    conn,
                    &channel,
                    Work {
                        records,
                        ..Work::default()
                    },
                );
            }
            Body::Announce { origin, stamps } => {
                let origin = origin.filter(|o| *o != self.config.name);
                self.want(call, conn, &channel, manner, origin, stamps);
            }
            Body::Records(payload) => self.on_records(call, conn, from, &channel, manner, &payload),
            Body::Full => {}
        }
    }

    fn on_digest(&mut self, call: &mut Call<'_>, conn: ConnId, channel: &Arc<str>, theirs: &[u64]) {
        let stamps = self.stamps(call.channels, channel);
        let buckets = theirs.len();
        let mask = differing(theirs, &digest(&stamps, buckets));
        if mask == 0 {
            return;
        }
        let mut work = Work::default();
        if buckets == 1 && buckets_for(stamps.len()) > 1 {
            work.digest = Some(Depth::Long);
        } else {
            let reply = false;
            work.list = Some(Listing { buckets, mask, reply });
        }
        self.add_work(conn, channel, work);
    }

    /// Sends what they lack, and asks for what we lack.
    fn on_list(&mut self, call: &mut Call<'_>, conn: ConnId, channel: &Arc<str>, manner: Manner, list: List) {
        let ours = self.stamps(call.channels, channel);
        let List {
            buckets, mut mask, ..
        } = list;
        if manner.atomic {
            // All that they lack must go at once, also where we have changed since the digest.
            let Some(hashes) = &list.hashes else { return };
            mask |= differing(hashes, &digest(&ours, buckets));
        }
        let lacking = in_buckets(&ours, buckets, mask)
            .into_iter()
            .filter_map(|(key, stamp)| {
                let has = list.stamps.get(&key).copied();
                stamp.is_news_to(has).then_some((key, has.unwrap_or_default()))
            });
        let mut records: Stamps = lacking.collect();
        if !manner.atomic {
            self.add_work(
                conn,
                channel,
                Work {
                    records,
                    ..Work::default()
                },
            );
            self.want(call, conn, channel, manner, None, list.stamps);
            return;
        }
        if !records.is_empty() {
            let body = Body::Records(self.records(call.channels, channel, &mut records, usize::MAX));
            let packet = Packet {
                channel: channel.to_string(),
                scope: manner.scope,
                body,
            };
            let bytes = packet.encode();
            let room = |c: &Connection| c.queue.has_room_to_relay(bytes.len());
            if self.conns.get(&conn).is_some_and(room) {
                self.census.reconcile(channel, &packet.body, bytes.len());
                self.send(conn, Message::Reconcile(bytes).encode());
            } else {
                self.counters.relays_dropped += 1;
            }
        }
        let news = |(key, stamp): (&u64, &Stamp)| stamp.is_news_to(ours.get(key).copied());
        if !list.reply && (list.stamps.iter().any(news) || mask != list.mask) {
            let reply = true;
            let list = Some(Listing { buckets, mask, reply });
            self.add_work(
                conn,
                channel,
                Work {
                    list,
                    ..Work::default()
                },
            );
        }
    }

    /// Asks for those of these records that are news to us, unless somebody else has been asked just now.
    fn want(
        &mut self,
        call: &mut Call<'_>,
        conn: ConnId,
        channel: &Arc<str>,
        manner: Manner,
        origin: Option<PeerName>,
        stamps: Stamps,
    ) {
        let mut wanted = BTreeMap::new();
        for (key, stamp) in stamps {
            let known = self.stamp(call.channels, channel, key);
            if !stamp.is_news_to(known) {
                continue;
            }
            let entry = (Arc::clone(channel), key);
            if let Some(asked) = self.asks.table.get_mut(&entry)
                && asked.until > call.now
                && !stamp.is_news_to(Some(asked.stamp))
            {
                asked.other.get_or_insert(conn);
                continue;
            }
            if self.asks.table.len() >= MAX_ASKED || wanted.len() >= MAX_KEYS {
                self.counters.asks_refused += 1;
                continue;
            }
            let asked = Asked {
                stamp,
                until: call.now + PATIENCE,
                origin,
                other: None,
            };
            self.asks.table.insert(entry, asked);
            wanted.insert(key, known.unwrap_or_default());
        }
        self.ask(call, conn, channel, manner, wanted);
    }

    fn ask(&mut self, call: &mut Call<'_>, conn: ConnId, channel: &Arc<str>, manner: Manner, wanted: Stamps) {
        if wanted.is_empty() {
            return;
        }
        self.asks.check.get_or_insert(call.now + PATIENCE);
        let mut work = Work::default();
        if manner.atomic {
            let buckets = buckets_for(self.stamps(call.channels, channel).len());
            let mask = wanted
                .keys()
                .fold(0, |mask, key| mask | 1 << super::bucket(*key, buckets));
            let reply = false;
            work.list = Some(Listing { buckets, mask, reply });
        } else {
            work.ask = wanted;
        }
        self.add_work(conn, channel, work);
    }

    /// Whoever has not answered in time: others are asked, if they have said that they could answer.
    pub(in crate::mesh) fn check_asks(&mut self, call: &mut Call<'_>) {
        self.asks.check = None;
        let overdue: VecDeque<((Arc<str>, u64), Asked)> = self
            .asks
            .table
            .extract_if(.., |_, asked| asked.until <= call.now)
            .collect();
        for ((channel, key), asked) in overdue {
            let Some(conn) = asked.other.filter(|c| self.conns.contains_key(c)) else {
                continue;
            };
            if let Some(manner) = manner(call.channels, &channel) {
                let stamps = Stamps::from([(key, asked.stamp)]);
                self.want(call, conn, &channel, manner, asked.origin, stamps);
            }
        }
        if let Some(next) = self.asks.table.values().map(|a| a.until).min() {
            self.asks.check = Some(next.max(call.now + PATIENCE / 4));
        }
    }

    fn on_records(
        &mut self,
        call: &mut Call<'_>,
        conn: ConnId,
        from: PeerName,
        channel: &Arc<str>,
        manner: Manner,
        payload: &[u8],
    ) {
        let changed: BTreeSet<u64> = if **channel == *TOPOLOGY {
            self.on_topology_records(call, conn, channel, payload)
        } else {
            let applied = self.with_channel(call, channel, |c, out| {
                c.reconcile().map(|r| r.apply(out, from, payload))
            });
            match applied.flatten() {
                Some(None) => {
                    let full = true;
                    self.add_work(
                        conn,
                        channel,
                        Work {
                            full,
                            ..Work::default()
                        },
                    );
                    return;
                }
                applied => applied.flatten().unwrap_or_default(),
            }
        };
        // Those that came from the tree of a broadcast go on along it, the others to random neighbours.
        let mut ways: BTreeMap<Option<PeerName>, BTreeSet<u64>> = BTreeMap::new();
        for key in changed {
            let asked = self.asks.table.remove(&(Arc::clone(channel), key));
            ways.entry(asked.and_then(|a| a.origin)).or_default().insert(key);
        }
        for (origin, keys) in ways {
            let relay = match origin {
                Some(origin) => Relay::Broadcast { origin },
                None if manner.spreads => Relay::Gossip { except: from },
                None => continue,
            };
            if **channel == *TOPOLOGY {
                let names = keys.into_iter().filter_map(PeerName::from_u64).collect();
                self.relay(call, Arc::clone(channel), relay, Item::Peers(names));
            } else if let Some(data) = self.data_of(call, channel, &keys) {
                self.relay(call, Arc::clone(channel), relay, Item::News(data, keys));
            }
        }
    }

    /// Records for originals.
    fn data_of(&mut self, call: &mut Call<'_>, channel: &str, keys: &BTreeSet<u64>) -> Option<GossipData> {
        let records = call.channels.get(channel).and_then(|c| c.reconcile());
        let news = records.and_then(|r| r.news(keys));
        news.or_else(|| self.full_state(call, channel))
    }

    fn on_topology_records(
        &mut self,
        call: &mut Call<'_>,
        conn: ConnId,
        channel: &Arc<str>,
        payload: &[u8],
    ) -> BTreeSet<u64> {
        let records = match topology::decode(payload) {
            Ok(records) => records,
            Err(error) => {
                tracing::debug!(conn, %error, "skipping records of the topology");
                self.counters.reconcile_skipped += 1;
                return BTreeSet::new();
            }
        };
        let (mut update, mut ask) = (Vec::new(), Stamps::new());
        for record in records {
            let name = record.peer.name;
            self.asks.table.remove(&(Arc::clone(channel), name.as_u64()));
            if !self.peers.is_news(&record.peer) && name != self.config.name {
                continue;
            }
            match record.complete(self.peers.get(name)) {
                Some(peer) => update.push(peer),
                None if name != self.config.name => {
                    // Changes that do not fit: the whole record, then.
                    ask.insert(name.as_u64(), Stamp::default());
                }
                None => {}
            }
        }
        self.add_work(
            conn,
            channel,
            Work {
                ask,
                ..Work::default()
            },
        );
        if update.is_empty() {
            return BTreeSet::new();
        }
        let applied = self.take_in(call.now, update);
        applied.changed.iter().map(|name| name.as_u64()).collect()
    }
}
