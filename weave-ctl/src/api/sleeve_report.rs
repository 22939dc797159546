//! The part of the report that the original does not have: sleeve's counters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Sleeve: frames in UDP through userspace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Sleeve {
    /// Why it does not work on this host; absent when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Packets by verdict; those beginning with [`super::report::FastDatapath::DROP_PREFIX`] were dropped.
    pub counters: BTreeMap<String, u64>,
}
