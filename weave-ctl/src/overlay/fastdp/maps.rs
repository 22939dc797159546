//! The maps as typed tables.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use weave_common::{
    Config, Counters, FloodHops, Heartbeat, MAX_MACS, MAX_PEERS, MAX_SOURCES, MacEntry, MacKey,
    NeighbourTraffic, NextHop, Sender, Source,
};

use super::loader::maps_dir;

/// Handles on the pinned maps.
pub struct Maps {
    config: Array<MapData, Config>,
    macs: HashMap<MapData, MacKey, MacEntry>,
    peers: HashMap<MapData, u32, NextHop>,
    floods: HashMap<MapData, u32, FloodHops>,
    senders: HashMap<MapData, [u8; 4], Sender>,
    sources: HashMap<MapData, u32, Source>,
    counters: PerCpuArray<MapData, Counters>,
    traffic: Array<MapData, u32>,
    neighbours: PerCpuArray<MapData, NeighbourTraffic>,
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
            sources: open(bpf_dir, "SOURCES")?,
            counters: open(bpf_dir, "COUNTERS")?,
            traffic: open(bpf_dir, "TRAFFIC")?,
            neighbours: open(bpf_dir, "NEIGHBOURS")?,
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
        sync(&mut self.peers, wanted).map_err(failed("PEERS"))
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

    /// Makes the allowed senders exactly these.
    pub fn sync_senders(&mut self, wanted: &BTreeMap<[u8; 4], Sender>) -> Result<(), MapsError> {
        sync(&mut self.senders, wanted)
            .map(drop)
            .map_err(failed("SENDERS"))
    }

    /// Who may send from which port.
    pub fn sources(&self) -> Result<BTreeMap<u32, Source>, MapsError> {
        self.sources
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed("SOURCES"))
    }

    /// Says who may send from a port; `None`: anybody.
    pub fn set_source(&mut self, ifindex: u32, source: Option<&Source>) -> Result<(), MapsError> {
        match source {
            Some(source) => self.sources.insert(ifindex, source, 0),
            None => ignore_missing(self.sources.remove(&ifindex)),
        }
        .map_err(failed("SOURCES"))
    }

    /// Has a frame left for this neighbour since the last call?
    pub fn take_traffic(&mut self, short_id: u32) -> Result<bool, MapsError> {
        let used = self.traffic.get(&short_id, 0).map_err(failed("TRAFFIC"))? != 0;
        if used {
            self.traffic.set(short_id, 0, 0).map_err(failed("TRAFFIC"))?;
        }
        Ok(used)
    }

    /// What went to the neighbour with this short ID and came from it, summed over the CPUs.
    pub fn neighbour(&self, short_id: u32) -> Result<NeighbourTraffic, MapsError> {
        let cpus = self.neighbours.get(&short_id, 0).map_err(failed("NEIGHBOURS"))?;
        let mut sum = NeighbourTraffic::default();
        for cpu in cpus.iter() {
            sum.add(cpu);
        }
        Ok(sum)
    }

    /// Who has this short ID next, if anybody, begins at zero.
    pub fn forget_neighbour(&mut self, short_id: u32) -> Result<(), MapsError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::from(error));
        let zeros = cpus.and_then(|cpus| {
            let zeros = vec![NeighbourTraffic::default(); cpus];
            PerCpuValues::try_from(zeros).map_err(MapError::from)
        });
        zeros
            .and_then(|zeros| self.neighbours.set(short_id, zeros, 0))
            .map_err(failed("NEIGHBOURS"))
    }

    /// How many entries the maps that grow have, and how many they can have.
    pub fn fill(&self) -> Result<[Fill; 5], MapsError> {
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
            fill("SOURCES", count("SOURCES", self.sources.keys())?, MAX_SOURCES),
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
