//! The introduction of two peers: header, encryption flag, features (wire.md 2.2, 2.3, 2.5).

use std::collections::BTreeMap;

use super::name::{PeerName, ShortId};

/// What a peer says of itself when a connection starts (wire.md 2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// `Name`.
    pub name: PeerName,
    /// `NickName`.
    pub nickname: String,
    /// `UID`: which incarnation of that name.
    pub uid: u64,
    /// `ConnID`: the connection's UID is the XOR of both ends' numbers.
    pub conn_id: u64,
    /// `ShortID`.
    pub short_id: Option<ShortId>,
    /// `Trusted`.
    pub trusted: bool,
    /// `Overlays`, most preferred first; `None` when the key is absent (wire.md 7.5).
    pub overlays: Option<Vec<String>>,
    /// Keys that the original does not know; ours are `MTU` (overlay MTU, decimal) and
    /// `Implementation`. An original peer sends none of them.
    pub extra: BTreeMap<String, String>,
}
