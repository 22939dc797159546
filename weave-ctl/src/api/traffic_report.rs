//! The part of the report that tells who costs how much: neighbours by overlay, gossip by channel, maps by fill.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Packets between us and a neighbour on one overlay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Traffic {
    /// UDP packets received.
    pub packets_in: u64,
    /// Their payload.
    pub bytes_in: u64,
    /// UDP packets sent.
    pub packets_out: u64,
    /// Their payload.
    pub bytes_out: u64,
}

/// Gossip with all neighbours.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Gossip {
    /// By name of the channel; `other` for those that we do not have.
    pub channels: BTreeMap<String, Channel>,
    /// What was refused or dropped, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// One gossip channel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Channel {
    /// What we sent, by kind.
    pub sent: BTreeMap<String, Volume>,
    /// What came.
    pub received: Volume,
    /// Messages that came and made no sense.
    pub skipped: u64,
}

/// Messages and their payloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Volume {
    /// How many.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A map of the BPF programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MapFill {
    /// Its name.
    pub name: String,
    /// Entries in use.
    pub entries: u64,
    /// Room for entries.
    pub most: u64,
}
