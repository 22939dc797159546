//! The part of the report that `weave-ctl doctor` needs and the original does not have. All of it is
//! left out where there is nothing to tell.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::traffic_report::Traffic;

/// The process that answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Process {
    /// Its number.
    #[serde(rename = "PID")]
    pub pid: u32,
    /// For how long it has run, in seconds.
    pub uptime_seconds: u64,
    /// Where it keeps its data.
    pub data_dir: String,
    /// Descriptors that it has open.
    pub open_files: u64,
    /// How many it may have open.
    pub open_files_limit: u64,
    /// How many connections the mesh may have; 0: any number.
    pub connection_limit: u64,
}

/// What a neighbour says of itself, and how frames go to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Remote {
    /// Peer name.
    pub name: String,
    /// Nickname.
    pub nick_name: String,
    /// Program and version; `None`: the original, which does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub implementation: Option<String>,
    /// MTU of its overlay in bytes, if it tells.
    #[serde(rename = "MTU", default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// MTU of our way to it (a packet of the underlay), in bytes.
    #[serde(rename = "PathMTU", default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u32>,
    /// `fastdp`, `sleeve`, or `none` while no overlay works yet.
    pub overlay: String,
    /// For how long it has been that, in seconds.
    pub overlay_seconds: u64,
    /// Why it is not the fast path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// The time there and back over TCP, in microseconds, as of its latest message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_micros: Option<u64>,
    /// What went to it and came from it, by overlay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub traffic: BTreeMap<String, Traffic>,
}

/// How an attempt to connect stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Attempt {
    /// Why the latest one failed.
    pub error: String,
    /// Seconds until the next one. `None`: it runs now, or, in state `failed`, there will be none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_seconds: Option<u64>,
}

/// Another peer that uses our name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Collision {
    /// The name.
    pub name: String,
    /// The other peer's nickname.
    pub nick_name: String,
    /// `ip:port` from which it came, or at which it answered.
    pub address: String,
    /// How long ago it was seen last, in seconds.
    pub seconds_ago: u64,
    /// What was done about it, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub outcome: String,
}

/// A neighbour whose address ring cannot be merged with ours.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamConflict {
    /// Its peer name.
    pub peer: String,
    /// Its nickname.
    pub nickname: String,
    /// Why not: the original's error text (control.md 1.7, 1.8).
    pub text: String,
    /// What to do, for people.
    pub remedy: String,
    /// For how long, in seconds.
    pub since_seconds: u64,
}

/// An address that a container here was given before its range went to another peer, which uses it too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LostAddress {
    /// The container's ID.
    pub ident: String,
    /// The address.
    pub address: String,
    /// Peer name of its owner.
    pub peer: String,
    /// The owner's nickname.
    pub nickname: String,
    /// For how long that has been known, in seconds.
    pub since_seconds: u64,
}

/// What a neighbour's clock says, compared with ours.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ClockSkew {
    /// Its peer name.
    pub peer: String,
    /// Its nickname.
    pub nickname: String,
    /// Its clock minus ours, in seconds.
    pub seconds: i64,
}
