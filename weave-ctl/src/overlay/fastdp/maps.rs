//! The maps as typed tables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf};
use weave_common::{
    Config, Counters, FloodHops, Heartbeat, MAX_MACS, MAX_PEERS, MacEntry, MacKey, NextHop, Sender, Sent,
};

use super::loader::maps_dir;

/// Handles on the pinned maps.
pub struct Maps {
    config: Array<MapData, Config>,
    macs: HashMap<MapData, MacKey, MacEntry>,
    peers: HashMap<MapData, u32, NextHop>,
    floods: HashMap<MapData, u32, FloodHops>,
    senders: PerCpuHashMap<MapData, [u8; 4], Sender>,
    counters: PerCpuArray<MapData, Counters>,
    traffic: PerCpuArray<MapData, Sent>,
    /// Frames that had left for a neighbour when [`Maps::take_traffic`] looked last.
    seen: BTreeMap<u32, u64>,
}

/// Frames and bytes between us and a neighbour on the fast path, without outer headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames that left for it; a super-packet counts as one.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Frames that came from it; a super-packet counts as one.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
}

/// A map could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[error("BPF map {name}: {error}")]
pub struct MapsError {
    /// Which map.
    pub name: &'static str,
    /// Why.
    pub error: MapError,
}

fn failed(name: &'static str) -> impl Fn(MapError) -> MapsError {
    move |error| MapsError { name, error }
}

fn open<T: TryFrom<Map, Error = MapError>>(bpf_dir: &Path, name: &'static str) -> Result<T, MapsError> {
    MapData::from_pin(maps_dir(bpf_dir).join(name))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(failed(name))
}

/// Opens the ring of heartbeats; there must be only one reader.
pub fn open_events(bpf_dir: &Path) -> Result<RingBuf<MapData>, MapsError> {
    open(bpf_dir, "EVENTS")
}

/// Reads an item of the ring; `None` when its size is not that of its items.
#[must_use]
pub fn heartbeat(item: &[u8]) -> Option<Heartbeat> {
    (item.len() == size_of::<Heartbeat>()).then(|| {
        // SAFETY: the size was checked, and any bytes make a valid `Heartbeat` (integers only).
        unsafe { item.as_ptr().cast::<Heartbeat>().read_unaligned() }
    })
}

/// Makes `map` hold exactly `wanted`, touching only entries that differ. Writes come before
/// deletions, so that nothing that stays is ever missing.
fn sync<K: aya::Pod + Ord, V: aya::Pod + PartialEq>(
    map: &mut HashMap<MapData, K, V>,
    wanted: &BTreeMap<K, V>,
) -> Result<Vec<K>, MapError> {
    let present: BTreeMap<K, V> = map.iter().collect::<Result<_, _>>()?;
    for (key, value) in wanted {
        if present.get(key) != Some(value) {
            map.insert(key, value, 0)?;
        }
    }
    let gone: Vec<K> = present
        .into_keys()
        .filter(|key| !wanted.contains_key(key))
        .collect();
    for key in &gone {
        ignore_missing(map.remove(key))?;
    }
    Ok(gone)
}

/// The same for every CPU.
fn per_cpu<V: aya::Pod>(value: V) -> Result<PerCpuValues<V>, MapError> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
    Ok(PerCpuValues::try_from(vec![value; cpus])?)
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Its name.
    pub name: &'static str,
    /// Entries in use.
    pub entries: usize,
    /// Room for entries.
    pub most: u32,
}

fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Maps {
    /// Opens the pinned maps.
    pub fn open(bpf_dir: &Path) -> Result<Self, MapsError> {
        Ok(Self {
            config: open(bpf_dir, "CONFIG")?,
            macs: open(bpf_dir, "MACS")?,
            peers: open(bpf_dir, "PEERS")?,
            floods: open(bpf_dir, "FLOODS")?,
            senders: open(bpf_dir, "SENDERS")?,
            counters: open(bpf_dir, "COUNTERS")?,
            traffic: open(bpf_dir, "TRAFFIC")?,
            seen: BTreeMap::new(),
        })
    }

    /// The configuration as the programs see it.
    pub fn config(&self) -> Result<Config, MapsError> {
        self.config.get(&0, 0).map_err(failed("CONFIG"))
    }

    /// Replaces the configuration.
    pub fn set_config(&mut self, config: Config) -> Result<(), MapsError> {
        self.config.set(0, config, 0).map_err(failed("CONFIG"))
    }

    /// All MAC addresses known.
    pub fn macs(&self) -> Result<Vec<(MacKey, MacEntry)>, MapsError> {
        self.macs.iter().collect::<Result<_, _>>().map_err(failed("MACS"))
    }

    /// Writes one MAC address.
    pub fn set_mac(&mut self, mac: MacKey, entry: MacEntry) -> Result<(), MapsError> {
        self.macs.insert(mac, entry, 0).map_err(failed("MACS"))
    }

    /// Forgets the MAC addresses that `unwanted` picks; returns how many.
    pub fn forget_macs(&mut self, unwanted: impl Fn(&MacKey, &MacEntry) -> bool) -> Result<usize, MapsError> {
        let mut count = 0;
        for (mac, entry) in self.macs()? {
            if unwanted(&mac, &entry) {
                ignore_missing(self.macs.remove(&mac)).map_err(failed("MACS"))?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// All next hops.
    pub fn peers(&self) -> Result<BTreeMap<u32, NextHop>, MapsError> {
        self.peers
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed("PEERS"))
    }

    /// Makes the next hops exactly these; returns the short IDs that are gone.
    pub fn sync_peers(&mut self, wanted: &BTreeMap<u32, NextHop>) -> Result<Vec<u32>, MapsError> {
        let gone = sync(&mut self.peers, wanted).map_err(failed("PEERS"))?;
        for id in &gone {
            // Another peer may get the short ID.
            self.seen.remove(id);
            per_cpu(Sent::default())
                .and_then(|zero| self.traffic.set(*id, zero, 0))
                .map_err(failed("TRAFFIC"))?;
        }
        Ok(gone)
    }

    /// All flood trees.
    pub fn floods(&self) -> Result<BTreeMap<u32, FloodHops>, MapsError> {
        self.floods
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed("FLOODS"))
    }

    /// Makes the flood trees exactly these.
    pub fn sync_floods(&mut self, wanted: &BTreeMap<u32, FloodHops>) -> Result<(), MapsError> {
        sync(&mut self.floods, wanted).map(drop).map_err(failed("FLOODS"))
    }

    /// Makes the allowed senders exactly these. What has come from one is kept as long as its short ID stays.
    pub fn sync_senders(&mut self, wanted: &BTreeMap<[u8; 4], Sender>) -> Result<(), MapsError> {
        self.try_sync_senders(wanted).map_err(failed("SENDERS"))
    }

    fn try_sync_senders(&mut self, wanted: &BTreeMap<[u8; 4], Sender>) -> Result<(), MapError> {
        let mut present = BTreeMap::new();
        for entry in self.senders.iter() {
            let (address, copies) = entry?;
            present.insert(address, copies.first().map(|copy| copy.short_id));
        }
        for (address, sender) in wanted {
            if present.get(address) != Some(&Some(sender.short_id)) {
                self.senders.insert(address, per_cpu(*sender)?, 0)?;
            }
        }
        for address in present.keys().filter(|address| !wanted.contains_key(*address)) {
            ignore_missing(self.senders.remove(address))?;
        }
        Ok(())
    }

    fn sent(&self, short_id: u32) -> Result<(u64, u64), MapsError> {
        let copies = self.traffic.get(&short_id, 0).map_err(failed("TRAFFIC"))?;
        let sum = copies
            .iter()
            .fold((0, 0), |(n, bytes), s| (n + s.packets, bytes + s.bytes));
        Ok(sum)
    }

    /// Has a frame left for this neighbour since the last call?
    pub fn take_traffic(&mut self, short_id: u32) -> Result<bool, MapsError> {
        let (packets, _) = self.sent(short_id)?;
        Ok(self.seen.insert(short_id, packets).unwrap_or(0) != packets)
    }

    /// What has gone to and come from those of these neighbours that may send to us, by short ID.
    pub fn traffic(&self, neighbours: &BTreeSet<u32>) -> Result<BTreeMap<u32, Traffic>, MapsError> {
        let mut traffic: BTreeMap<u32, Traffic> = BTreeMap::new();
        for id in neighbours {
            let (packets_out, bytes_out) = self.sent(*id)?;
            traffic.insert(
                *id,
                Traffic {
                    packets_out,
                    bytes_out,
                    ..Traffic::default()
                },
            );
        }
        for entry in self.senders.iter() {
            let (_, copies) = entry.map_err(failed("SENDERS"))?;
            let id = copies.first().map_or(0, |copy| copy.short_id);
            if let Some(traffic) = traffic.get_mut(&id) {
                traffic.packets_in += copies.iter().map(|s| s.packets).sum::<u64>();
                traffic.bytes_in += copies.iter().map(|s| s.bytes).sum::<u64>();
            }
        }
        Ok(traffic)
    }

    /// How many entries the maps that grow have, and how many they can have.
    pub fn fill(&self) -> Result<[Fill; 4], MapsError> {
        fn count<K>(
            name: &'static str,
            keys: impl Iterator<Item = Result<K, MapError>>,
        ) -> Result<usize, MapsError> {
            keys.map(|key| key.map(drop))
                .try_fold(0, |n, key| key.map(|()| n + 1))
                .map_err(failed(name))
        }
        let fill = |name, entries, most: u32| Fill { name, entries, most };
        Ok([
            fill("MACS", count("MACS", self.macs.keys())?, MAX_MACS),
            fill("PEERS", count("PEERS", self.peers.keys())?, MAX_PEERS),
            fill("FLOODS", count("FLOODS", self.floods.keys())?, MAX_PEERS),
            fill("SENDERS", count("SENDERS", self.senders.keys())?, MAX_PEERS),
        ])
    }

    /// The counters, summed over the CPUs.
    pub fn counters(&self) -> Result<Counters, MapsError> {
        let mut sum = Counters::default();
        for cpu in self.counters.get(&0, 0).map_err(failed("COUNTERS"))?.iter() {
            sum.add(cpu);
        }
        Ok(sum)
    }
}
