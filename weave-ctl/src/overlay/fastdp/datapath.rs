//! The fast path of this host: programs at interfaces and the maps they read, in one place.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::{SchedClassifier, Xdp};
use weave_common::{
    Config, Counters, MAX_LOCAL_IPS, MAX_PORTS, MacEntry, MacKey, NeighbourTraffic, NextHop, Source,
};

use super::attach::{self, AttachError, Hook, Mode};
use super::loader::{self, LoadError, XDP_PROGRAM};
use super::maps::{Fill, Maps, MapsError};
use super::xdp;
use crate::net::identity::Identity;
use crate::overlay::forwarding::Tables;

/// Something about the fast path failed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// Loading.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Attaching.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A map.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// More VXLAN ports than the programs look for.
    #[error("more than {MAX_PORTS} VXLAN ports: {0} is not received")]
    TooManyPorts(u16),
}

/// An underlay interface with our program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// What became of XDP there.
    pub xdp: xdp::Outcome,
}

/// Programs and maps of this host.
pub struct Datapath {
    bpf_dir: PathBuf,
    ebpf: Ebpf,
    maps: Maps,
    mode: Mode,
    xdp: xdp::Wanted,
    config: Config,
    ports: BTreeMap<u32, String>,
    /// As in the map.
    sources: BTreeMap<u32, Source>,
    underlays: BTreeMap<u32, Underlay>,
    vxlans: BTreeMap<u16, u32>,
    sleeve: Option<(String, u32)>,
}

impl Datapath {
    /// Loads programs and maps; an earlier controller's maps are adopted as they are.
    pub fn load(bpf_dir: &Path, wanted: xdp::Wanted) -> Result<Self, DatapathError> {
        let loaded = loader::load(bpf_dir)?;
        let maps = Maps::open(bpf_dir)?;
        // The TAP of an earlier controller went with it.
        let config = Config {
            sleeve_ifindex: 0,
            ..maps.config()?
        };
        let sources = maps.sources()?;
        Ok(Self {
            bpf_dir: bpf_dir.to_owned(),
            ebpf: loaded.ebpf,
            maps,
            mode: Mode::from_env(),
            xdp: wanted,
            config,
            ports: BTreeMap::new(),
            sources,
            underlays: BTreeMap::new(),
            vxlans: BTreeMap::new(),
            sleeve: None,
        })
    }

    /// The next hops that an earlier controller left behind and that still carry traffic.
    pub fn left_behind(&self) -> Result<BTreeMap<u32, NextHop>, DatapathError> {
        if self.config.flags & Config::ENABLED == 0 {
            return Ok(BTreeMap::new());
        }
        Ok(self.maps.peers()?)
    }

    /// The clock on which MAC addresses age, as the maps have it: ours goes on from there.
    #[must_use]
    pub fn clock_s(&self) -> u32 {
        self.config.clock_s
    }

    fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier, DatapathError> {
        let missing = || LoadError::Missing(hook.program());
        let program = self.ebpf.program_mut(hook.program()).ok_or_else(missing)?;
        Ok(program.try_into().map_err(|_| missing())?)
    }

    fn attach(&mut self, hook: Hook, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        let (bpf_dir, mode) = (self.bpf_dir.clone(), self.mode);
        self.mode = attach::attach(self.program(hook)?, &bpf_dir, hook, name, ifindex, mode)?;
        Ok(())
    }

    /// A container's host-side veth is a port of the bridge now.
    pub fn add_port(&mut self, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        if self.ports.get(&ifindex).is_some_and(|known| known == name) {
            return Ok(());
        }
        self.attach(Hook::Port, name, ifindex)?;
        self.ports.insert(ifindex, name.to_owned());
        Ok(())
    }

    /// Says who may send from a port; `None`: anybody.
    pub fn set_source(&mut self, ifindex: u32, identity: Option<&Identity>) -> Result<(), DatapathError> {
        let source = identity.map(source);
        if self.sources.get(&ifindex) == source.as_ref() {
            return Ok(());
        }
        self.maps.set_source(ifindex, source.as_ref())?;
        match source {
            Some(source) => self.sources.insert(ifindex, source),
            None => self.sources.remove(&ifindex),
        };
        Ok(())
    }

    /// Ports of which it is known who may send from them.
    #[must_use]
    pub fn sources(&self) -> &BTreeMap<u32, Source> {
        &self.sources
    }

    /// A port is gone, and with it the MAC addresses behind it.
    pub fn remove_port(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.set_source(ifindex, None)?;
        if let Some(name) = self.ports.remove(&ifindex) {
            attach::detach(&self.bpf_dir, Hook::Port, &name, ifindex);
            self.maps
                .forget_macs(|_, entry| is_local(entry) && entry.ifindex == ifindex)?;
        }
        Ok(())
    }

    /// Takes over a VXLAN device for a UDP port; the first one is the main one.
    pub fn add_vxlan(&mut self, name: &str, ifindex: u32, port: u16) -> Result<(), DatapathError> {
        if self.vxlans.get(&port) == Some(&ifindex) {
            return Ok(());
        }
        if self.vxlans.len() >= MAX_PORTS && !self.vxlans.contains_key(&port) {
            return Err(DatapathError::TooManyPorts(port));
        }
        self.attach(Hook::VxlanIn, name, ifindex)?;
        self.attach(Hook::VxlanOut, name, ifindex)?;
        if self.vxlans.is_empty() {
            self.config.vxlan_ifindex = ifindex;
        }
        self.vxlans.insert(port, ifindex);
        self.config.ports = [0; MAX_PORTS];
        for (slot, port) in self.config.ports.iter_mut().zip(self.vxlans.keys()) {
            *slot = *port;
        }
        self.write_config()
    }

    /// The VXLAN device for a UDP port.
    #[must_use]
    pub fn vxlan(&self, port: u16) -> Option<u32> {
        self.vxlans.get(&port).copied()
    }

    /// Hands frames of peers on sleeve to userspace through this TAP, and takes theirs from it. Attach
    /// before the TAP becomes a port of the bridge: what is in front of its frames is decided here.
    pub fn set_sleeve(&mut self, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        let wanted = Some((name.to_owned(), ifindex));
        if self.sleeve == wanted {
            return Ok(());
        }
        self.clear_sleeve()?;
        self.attach(Hook::SleeveIn, name, ifindex)?;
        self.attach(Hook::SleeveOut, name, ifindex)?;
        self.sleeve = wanted;
        self.config.sleeve_ifindex = ifindex;
        self.write_config()
    }

    /// There is no TAP any more: frames of peers on sleeve are dropped.
    pub fn clear_sleeve(&mut self) -> Result<(), DatapathError> {
        let Some((name, ifindex)) = self.sleeve.take() else {
            return Ok(());
        };
        self.config.sleeve_ifindex = 0;
        self.write_config()?;
        attach::detach(&self.bpf_dir, Hook::SleeveIn, &name, ifindex);
        attach::detach(&self.bpf_dir, Hook::SleeveOut, &name, ifindex);
        Ok(())
    }

    /// VXLAN arrives on this interface.
    pub fn add_underlay(&mut self, name: &str, ifindex: u32, mtu: u32) -> Result<(), DatapathError> {
        if let Some(known) = self.underlays.get_mut(&ifindex)
            && known.name == name
        {
            known.mtu = mtu;
            return Ok(());
        }
        self.attach(Hook::Underlay, name, ifindex)?;
        let missing = || LoadError::Missing(XDP_PROGRAM);
        let program = self.ebpf.program_mut(XDP_PROGRAM).ok_or_else(missing)?;
        let program: &mut Xdp = program.try_into().map_err(|_| missing())?;
        let xdp = xdp::attach(program, &self.bpf_dir, name, ifindex, self.xdp);
        tracing::info!(
            "Underlay interface {name}: {} attached, XDP {} ({})",
            self.mode,
            xdp.mode,
            xdp.reason
        );
        self.underlays.insert(
            ifindex,
            Underlay {
                name: name.to_owned(),
                mtu,
                xdp,
            },
        );
        self.relay_in_xdp()
    }

    /// An interface is gone.
    pub fn remove_underlay(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        if self.underlays.remove(&ifindex).is_some() {
            attach::sweep(&self.bpf_dir, |other| other != ifindex);
            self.relay_in_xdp()?;
        }
        Ok(())
    }

    /// XDP relays only if it may do so on every interface, as the setting is one for all.
    fn relay_in_xdp(&mut self) -> Result<(), DatapathError> {
        let relays = !self.underlays.is_empty() && self.underlays.values().all(|u| u.xdp.relays);
        self.set_flag(Config::XDP_RELAY, relays)
    }

    fn set_flag(&mut self, flag: u32, on: bool) -> Result<(), DatapathError> {
        self.config.flags = if on {
            self.config.flags | flag
        } else {
            self.config.flags & !flag
        };
        self.write_config()
    }

    fn write_config(&mut self) -> Result<(), DatapathError> {
        Ok(self.maps.set_config(self.config)?)
    }

    /// Lets frames go to and come from other peers, or stops them; local traffic goes on.
    pub fn enable(&mut self, on: bool) -> Result<(), DatapathError> {
        self.set_flag(Config::ENABLED, on)
    }

    /// Our own short ID.
    pub fn set_short_id(&mut self, id: u16) -> Result<(), DatapathError> {
        self.config.short_id = id.into();
        self.write_config()
    }

    /// Our underlay addresses: VXLAN to others is not ours.
    pub fn set_local_ips(&mut self, addresses: &[Ipv4Addr]) -> Result<(), DatapathError> {
        if addresses.len() > MAX_LOCAL_IPS {
            tracing::warn!("only the first {MAX_LOCAL_IPS} underlay addresses take the fast path");
        }
        let mut local_ips = [[0; 4]; MAX_LOCAL_IPS];
        for (slot, address) in local_ips.iter_mut().zip(addresses) {
            *slot = address.octets();
        }
        if self.config.local_ips != local_ips {
            self.config.local_ips = local_ips;
            self.write_config()?;
        }
        Ok(())
    }

    /// Steps the clock on which MAC addresses age.
    pub fn set_clock(&mut self, seconds: u32) -> Result<(), DatapathError> {
        self.config.clock_s = seconds;
        self.write_config()
    }

    /// Forgets MAC addresses not seen for [`MacEntry::MAX_AGE_S`].
    pub fn sweep_macs(&mut self) -> Result<usize, DatapathError> {
        let now = self.config.clock_s;
        Ok(self
            .maps
            .forget_macs(|_, entry| now.wrapping_sub(entry.last_seen_s) > MacEntry::MAX_AGE_S)?)
    }

    /// Writes next hops, floods and senders. MAC addresses follow peers that got another short ID
    /// and go with peers that are gone; traffic counters go with either.
    pub fn apply(&mut self, tables: &Tables) -> Result<(), DatapathError> {
        if !tables.renumbered.is_empty() {
            self.renumber(&tables.renumbered)?;
        }
        self.maps.sync_senders(&tables.senders)?;
        let gone = self.maps.sync_peers(&tables.peers)?;
        self.maps.sync_floods(&tables.floods)?;
        let renumbered = tables.renumbered.iter().flat_map(|(old, new)| [*old, *new]);
        for id in gone.iter().copied().chain(renumbered) {
            self.maps.forget_neighbour(id)?;
        }
        if !gone.is_empty() {
            self.maps
                .forget_macs(|_, entry| !is_local(entry) && gone.contains(&entry.peer.into()))?;
        }
        Ok(())
    }

    fn renumber(&mut self, renumbered: &[(u32, u32)]) -> Result<(), DatapathError> {
        let new: BTreeMap<u32, u32> = renumbered.iter().copied().collect();
        for (mac, entry) in self.maps.macs()? {
            if let Some(id) = new.get(&entry.peer.into()).filter(|_| !is_local(&entry)) {
                self.maps.set_mac(
                    mac,
                    MacEntry {
                        peer: *id as u16,
                        ..entry
                    },
                )?;
            }
        }
        Ok(())
    }

    /// All MAC addresses known.
    pub fn macs(&self) -> Result<Vec<(MacKey, MacEntry)>, DatapathError> {
        Ok(self.maps.macs()?)
    }

    /// All next hops.
    pub fn next_hops(&self) -> Result<BTreeMap<u32, NextHop>, DatapathError> {
        Ok(self.maps.peers()?)
    }

    /// Has a frame left for this neighbour since the last call?
    pub fn take_traffic(&mut self, short_id: u16) -> Result<bool, DatapathError> {
        Ok(self.maps.take_traffic(short_id.into())?)
    }

    /// What went to the neighbour with this short ID and came from it, since it has that ID.
    pub fn traffic(&self, short_id: u16) -> Result<NeighbourTraffic, DatapathError> {
        Ok(self.maps.neighbour(short_id.into())?)
    }

    /// How full the maps are.
    pub fn fill(&self) -> Result<[Fill; 5], DatapathError> {
        Ok(self.maps.fill()?)
    }

    /// Counters since the maps were made.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        Ok(self.maps.counters()?)
    }

    /// How programs are attached.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Underlay interfaces by number.
    #[must_use]
    pub fn underlays(&self) -> &BTreeMap<u32, Underlay> {
        &self.underlays
    }

    /// Ports with our program, by number.
    #[must_use]
    pub fn ports(&self) -> &BTreeMap<u32, String> {
        &self.ports
    }

    /// Removes pins of interfaces that went while no controller looked.
    pub fn sweep_links(&self, alive: impl Fn(u32) -> bool) {
        attach::sweep(&self.bpf_dir, alive);
    }
}

/// As the programs have it.
#[must_use]
pub fn source(identity: &Identity) -> Source {
    let mut source = Source {
        mac: identity.mac,
        count: Source::ANY,
        ..Source::default()
    };
    if let Some(addrs) = &identity.addrs {
        source.count = addrs.len() as u16;
        for (slot, addr) in source.ips.iter_mut().zip(addrs) {
            *slot = addr.octets();
        }
    }
    source
}

/// Is the address on this host?
#[must_use]
pub fn is_local(entry: &MacEntry) -> bool {
    entry.flags & MacEntry::LOCAL != 0
}
