//! What originals and we tell each other of names: the channel `nameserver` (control.md 2.2, A.3).

use std::sync::Arc;
use std::time::Duration;

use super::entry::{Id, State};
use super::names::{Heard, Ids, Names, News};
use crate::mesh::channel::{Channel, GossipData, Neighbour, Outlet, Rejected};
use crate::mesh::gob::{Decoder, Fields, GobError, Value, put_uint};
use crate::mesh::name::PeerName;
use crate::mesh::reconcile::Reconcile;

/// Originals refuse gossip of somebody whose clock differs by more (control.md 2.2), in seconds.
const MAX_SKEW: u64 = 900;
/// From this difference on they are told the time as they have it, in seconds.
const SKEW: u64 = 300;
/// Clocks remembered.
const MAX_CLOCKS: usize = 1000;
/// Between two lines in the log about gossip that cannot be used, or about clocks.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// The descriptors as an original sends them, with `GossipData` as number 65.
const DESCRIPTORS: &[u8] = b"\x33\xff\x81\x03\x01\x01\x0aGossipData\x01\xff\x82\x00\x01\x02\
    \x01\x09Timestamp\x01\x04\x00\x01\x07Entries\x01\xff\x86\x00\x00\x00\
    \x16\xff\x85\x02\x01\x01\x07Entries\x01\xff\x86\x00\x01\xff\x84\x00\x00\
    \x5e\xff\x83\x03\x01\x01\x05Entry\x01\xff\x84\x00\x01\x06\
    \x01\x0bContainerID\x01\x0c\x00\x01\x06Origin\x01\x06\x00\x01\x04Addr\x01\x06\x00\
    \x01\x08Hostname\x01\x0c\x00\x01\x07Version\x01\x04\x00\x01\x09Tombstone\x01\x04\x00\x00\x00";
/// That number in front of the value.
const GOSSIP_DATA: &[u8] = b"\xff\x82";

/// Queued gossip: encoded from what we have when it is sent.
#[derive(Clone)]
enum Told {
    Everything,
    Some(Ids),
}

/// These entries, for the mesh.
pub(super) fn some(ids: Ids) -> GossipData {
    Arc::new(Told::Some(ids))
}

fn everything() -> GossipData {
    Arc::new(Told::Everything)
}

/// Bytes of a message. `timestamp` in Unix seconds.
fn encode(timestamp: i64, mut entries: Vec<(&Id, State)>) -> Vec<u8> {
    entries.sort_by_key(|(id, _)| id.wire_order());
    let mut value = GOSSIP_DATA.to_vec();
    Fields::new(&mut value)
        .int(timestamp)
        .slice(entries.len(), |out| {
            for (id, state) in entries {
                Fields::new(out)
                    .bytes(id.container().as_bytes())
                    .uint(id.origin().as_u64())
                    .uint(id.addr().into())
                    .bytes(id.hostname().as_bytes())
                    .int(i64::try_from(state.version).unwrap_or(i64::MAX))
                    .int(state.tombstone)
                    .end();
            }
        })
        .end();
    let mut out = DESCRIPTORS.to_vec();
    put_uint(&mut out, value.len() as u64);
    out.extend(value);
    out
}

/// A message as received.
#[derive(Debug)]
struct Decoded {
    /// The sender's clock, in Unix seconds.
    timestamp: i64,
    entries: Vec<(Id, State)>,
    /// Entries that make no sense.
    skipped: u64,
}

fn decode(payload: &[u8]) -> Result<Decoded, GobError> {
    let value = Decoder::new(payload).require("names")?;
    let mut decoded = Decoded {
        timestamp: value.int("Timestamp")?,
        entries: Vec::new(),
        skipped: 0,
    };
    for entry in value.slice("Entries")? {
        match read(entry)? {
            Some(entry) => decoded.entries.push(entry),
            None => decoded.skipped += 1,
        }
    }
    Ok(decoded)
}

fn read(entry: &Value<'_>) -> Result<Option<(Id, State)>, GobError> {
    let (container, hostname) = (entry.str("ContainerID")?, entry.str("Hostname")?);
    let (origin, addr) = (entry.uint("Origin")?, entry.uint("Addr")?);
    let (version, tombstone) = (entry.int("Version")?, entry.int("Tombstone")?);
    let read = || {
        let id = Id::new(
            container,
            PeerName::from_u64(origin)?,
            u32::try_from(addr).ok()?,
            hostname,
        );
        Some((id?, State::new(u64::try_from(version).ok()?, tombstone)?))
    };
    Ok(read())
}

impl Names {
    /// Takes a message in; `None` if it cannot be read. `directly`: its clock is the neighbour's.
    fn receive(&mut self, out: &mut dyn Outlet, payload: &[u8], directly: bool) -> Option<News> {
        let decoded = match decode(payload) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.skip(1);
                self.complain(out, &format!("skipping names: {error}"));
                return None;
            }
        };
        if decoded.skipped > 0 {
            self.skip(decoded.skipped);
            let text = format!("skipping {} names that make no sense", decoded.skipped);
            self.complain(out, &text);
        }
        let skew = decoded.timestamp.saturating_sub(out.unix_now());
        if skew.unsigned_abs() > MAX_SKEW {
            let text =
                format!("clock skew of {skew}s: originals keep no connection with more than {MAX_SKEW}s");
            self.complain(out, &text);
        }
        if let Some(neighbour) = out.neighbour().filter(|n| n.original && directly) {
            self.saw_clock(neighbour.name, skew);
        }
        let mut news = News::default();
        for (id, state) in decoded.entries {
            // By the sender's clock: ours may be another.
            let age = match state.is_live() {
                true => 0,
                false => decoded.timestamp.saturating_sub(state.tombstone),
            };
            let age = Duration::from_secs(u64::try_from(age).unwrap_or_default());
            self.hear(out, Heard { id, state, age }, &mut news);
        }
        let merged = news.merged.iter().map(|id| id.key());
        self.changed.extend(merged);
        self.tell(out, std::mem::take(&mut news.corrected));
        Some(news)
    }

    /// Kept also after the peer has gone: when it comes back, the first message must be right.
    fn saw_clock(&mut self, neighbour: PeerName, skew: i64) {
        if skew.unsigned_abs() <= SKEW {
            self.clocks.remove(&neighbour);
            return;
        }
        if self.clocks.len() >= MAX_CLOCKS {
            self.clocks.clear();
        }
        self.clocks.insert(neighbour, skew);
    }

    /// What cannot be used ends no connection: the next one would bring the same.
    pub(super) fn complain(&mut self, out: &dyn Outlet, what: &str) {
        let now = out.now();
        if self
            .told
            .is_none_or(|told| now.saturating_sub(told) >= TELL_AGAIN)
        {
            self.told = Some(now);
            let from = out.neighbour().map(|n| n.name.to_string());
            let from = from.unwrap_or_else(|| "nobody".to_owned());
            tracing::warn!("[nameserver] gossip from {from}: {what}");
        }
    }
}

impl Channel for Names {
    fn on_unicast(&mut self, _: &mut dyn Outlet, _: PeerName, _: &[u8]) -> Result<(), Rejected> {
        Ok(())
    }

    fn on_broadcast(
        &mut self,
        out: &mut dyn Outlet,
        _: PeerName,
        payload: &[u8],
    ) -> Result<Option<GossipData>, Rejected> {
        let news = self.receive(out, payload, false).unwrap_or_default();
        Ok((!news.present.is_empty()).then(|| some(news.present)))
    }

    fn on_gossip(&mut self, out: &mut dyn Outlet, payload: &[u8]) -> Result<Option<GossipData>, Rejected> {
        let news = self.receive(out, payload, true).unwrap_or_default();
        Ok((!news.merged.is_empty()).then(|| some(news.merged)))
    }

    fn full_state(&mut self, _: &mut dyn Outlet) -> Option<GossipData> {
        Some(everything())
    }

    fn merge(&self, old: GossipData, new: GossipData) -> GossipData {
        match (old.downcast_ref(), new.downcast_ref()) {
            (Some(Told::Some(a)), Some(Told::Some(b))) => some(a.union(b).cloned().collect()),
            _ => everything(),
        }
    }

    fn encode(&mut self, unix_now: i64, data: &GossipData) -> Vec<u8> {
        let entries = match data.downcast_ref() {
            Some(Told::Some(ids)) => ids
                .iter()
                .filter_map(|id| Some((&**id, self.state(id)?)))
                .collect(),
            _ => self.entries().collect(),
        };
        encode(unix_now, entries)
    }

    fn encode_for(&mut self, neighbour: Neighbour, unix_now: i64, data: &GossipData) -> Vec<u8> {
        let skew = self.clocks.get(&neighbour.name).copied().unwrap_or_default();
        self.encode(unix_now.saturating_add(skew), data)
    }

    fn reconcile(&mut self) -> Option<&mut dyn Reconcile> {
        Some(self)
    }

    fn on_peer_gone(&mut self, _: &mut dyn Outlet, peer: PeerName) {
        self.forget(peer);
    }
}

#[cfg(test)]
#[path = "gossip_tests.rs"]
mod tests;
