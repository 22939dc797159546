//! The part of the report that the original does not have: the BPF fast path.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::traffic_report::MapFill;

/// The BPF fast path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FastDatapath {
    /// How programs hang on the interfaces: `tcx` or `clsact`.
    pub attach: String,
    /// The programs.
    pub program: Program,
    /// The optional early programs on the underlay.
    #[serde(rename = "XDP")]
    pub xdp: Xdp,
    /// MTU of the overlay.
    #[serde(rename = "MTU")]
    pub mtu: Overlay,
    /// Interfaces of the host that carry VXLAN.
    pub underlay: Vec<Underlay>,
    /// Peers that the fast path reaches directly or through another peer.
    pub next_hops: Vec<NextHop>,
    /// How full the maps are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<MapFill>,
    /// Packets by verdict; those beginning with [`FastDatapath::DROP_PREFIX`] were dropped.
    pub counters: BTreeMap<String, u64>,
}

impl FastDatapath {
    /// First part of the names of counters of dropped packets.
    pub const DROP_PREFIX: &'static str = "drop_";

    /// Dropped packets: reason (without the prefix) and number, those that happened.
    pub fn drops(&self) -> impl Iterator<Item = (&str, u64)> {
        drops(&self.counters)
    }
}

/// Those of the counters that count dropped packets, without the prefix, if there were any.
pub(super) fn drops(counters: &BTreeMap<String, u64>) -> impl Iterator<Item = (&str, u64)> {
    counters
        .iter()
        .filter_map(|(name, count)| Some((name.strip_prefix(FastDatapath::DROP_PREFIX)?, *count)))
        .filter(|(_, count)| *count > 0)
}

/// The BPF programs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Program {
    /// Are they loaded?
    pub loaded: bool,
    /// Version of the object; when not loaded, why.
    pub version: String,
}

/// The XDP programs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Xdp {
    /// `off`, `native` or `generic`.
    pub mode: String,
    /// Why this mode.
    pub reason: String,
}

/// MTU of the overlay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Overlay {
    /// Bytes.
    pub bytes: u32,
    /// How it was chosen.
    pub reason: String,
}

/// An interface of the host that carries VXLAN.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Underlay {
    /// Interface name.
    pub name: String,
    /// Bytes.
    #[serde(rename = "MTU")]
    pub mtu: u32,
}

/// Where frames for a peer go.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NextHop {
    /// Destination's peer name.
    pub peer: String,
    /// Destination's nickname.
    pub nick_name: String,
    /// Peer name of the next hop; the destination itself when direct.
    pub via: String,
    /// `ip:port` to which VXLAN is sent.
    pub address: String,
    /// Interface of the host.
    pub interface: String,
}
