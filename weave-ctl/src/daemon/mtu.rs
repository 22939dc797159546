//! The overlay's MTU: chosen at start, lowered when a path or a peer needs it, never raised while
//! we run, as a cluster whose MTU goes up and down helps nobody.

use super::neighbours::{Neighbours, overlay_mtu};
use crate::net::{NetError, Netlink};

/// What the original uses, whatever its underlay (wire.md 8.10), in bytes.
pub const ORIGINAL: u32 = 1376;
/// Below this IPv4 does not work well (RFC 791: every host takes 576), in bytes.
const LOWEST: u32 = 576;

/// The MTU and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mtu {
    /// Bytes.
    pub bytes: u32,
    /// For people.
    pub reason: String,
    auto: bool,
    sealed: bool,
}

impl Mtu {
    /// Set by the user.
    #[must_use]
    pub fn fixed(bytes: u32) -> Self {
        Self {
            bytes,
            reason: "set with --mtu".to_owned(),
            auto: false,
            sealed: false,
        }
    }

    /// From this host's interfaces, as no path is known yet. `sealed`: sleeve will seal packets.
    pub async fn auto(nl: &Netlink, bridge: &str, sealed: bool) -> Result<Self, NetError> {
        let mut narrowest: Option<(u32, String)> = None;
        for link in nl.links().await? {
            let ours = link.name == bridge || link.master.is_some() || link.vxlan.is_some();
            let container_side = link.kind.as_deref() == Some("bridge");
            if !link.up || link.mac.is_none() || link.name == "lo" || ours || container_side {
                continue;
            }
            if nl.addresses(link.index).await?.is_empty() {
                continue;
            }
            let candidate = (link.mtu, link.name);
            narrowest = Some(narrowest.map_or(candidate.clone(), |known| known.min(candidate)));
        }
        let (bytes, from) = match narrowest {
            Some((mtu, name)) => (overlay_mtu(mtu, sealed), format!("underlay {mtu} on {name}")),
            None => (overlay_mtu(1500, sealed), "no underlay yet".to_owned()),
        };
        Ok(Self {
            bytes: bytes.max(LOWEST),
            reason: format!("auto: {from}"),
            auto: true,
            sealed,
        })
    }

    /// Lowers it if a neighbour needs that; returns whether it changed.
    pub fn adapt(&mut self, neighbours: &Neighbours) -> bool {
        if !self.auto {
            return false;
        }
        let sealed = self.sealed;
        let original = neighbours
            .original()
            .map(|peer| (ORIGINAL, format!("{peer} runs Weave Net 2")));
        let Some((bytes, from)) = neighbours.narrowest(sealed).into_iter().chain(original).min() else {
            return false;
        };
        let bytes = bytes.max(LOWEST);
        if bytes >= self.bytes {
            return false;
        }
        *self = Self {
            bytes,
            reason: format!("auto: {from}"),
            auto: true,
            sealed,
        };
        true
    }
}
