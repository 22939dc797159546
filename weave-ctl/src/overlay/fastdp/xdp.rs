//! XDP on underlay interfaces: only where it pays, and never over somebody else's program.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{Xdp, XdpMode};

use super::loader::links_dir;
use crate::net::driver::driver;

/// What the user asked for with `--xdp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// Native where the driver gains from it, else off.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the network stack: for tests; slower.
    Generic,
    /// Not at all.
    Off,
}

/// A text that is none of the modes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown XDP mode \"{0}\": use auto, native, generic or off")]
pub struct UnknownMode(String);

impl FromStr for Wanted {
    type Err = UnknownMode;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "native" => Self::Native,
            "generic" => Self::Generic,
            "off" => Self::Off,
            _ => return Err(UnknownMode(text.to_owned())),
        })
    }
}

/// What became of it on one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `native`, `generic` or `off`.
    pub mode: &'static str,
    /// Why it is off, or what it does.
    pub reason: String,
    /// The program relays for other peers.
    pub relays: bool,
}

/// Drivers of network cards on which native XDP turns no offload off that TCP lives from.
/// Virtual drivers do: veth loses its peer's TSO, virtio_net its guest offloads.
const GAINS: [&str; 11] = [
    "atlantic",
    "bnxt_en",
    "enic",
    "gve",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "mlx5_core",
    "nfp",
];

/// Decides on a mode for a driver (`None`: the interface does not tell).
fn decide(wanted: Wanted, driver: Option<&str>) -> Result<(XdpMode, bool), String> {
    let relays = driver.is_some_and(|d| GAINS.contains(&d));
    match (wanted, driver) {
        (Wanted::Off, _) => Err("switched off".to_owned()),
        (Wanted::Native, _) => Ok((XdpMode::Driver, relays)),
        (Wanted::Generic, _) => Ok((XdpMode::Skb, false)),
        (Wanted::Auto, _) if relays => Ok((XdpMode::Driver, true)),
        (Wanted::Auto, Some("veth")) => {
            Err("auto: native XDP on veth turns the peer's offloads off".to_owned())
        }
        (Wanted::Auto, driver) => {
            let driver = driver.unwrap_or("of this interface");
            Err(format!(
                "auto: native XDP on driver {driver} is not known to keep TCP's offloads"
            ))
        }
    }
}

const MODES: [&str; 2] = ["native", "generic"];

/// The pin of the XDP link of an interface. A link keeps the mode it was made with, so the mode
/// is part of the name.
#[must_use]
pub fn link_pin(bpf_dir: &Path, mode: &str, ifindex: u32) -> PathBuf {
    links_dir(bpf_dir).join(format!("xdp-{mode}-{ifindex}"))
}

/// Detaches every mode but `keep`.
fn detach_others(bpf_dir: &Path, ifindex: u32, keep: Option<&str>) {
    for mode in MODES.into_iter().filter(|mode| Some(*mode) != keep) {
        let pin = link_pin(bpf_dir, mode, ifindex);
        if pin.exists()
            && let Err(error) = fs::remove_file(&pin)
        {
            tracing::warn!("cannot remove {}: {error}", pin.display());
        }
    }
}

/// Brings an interface to the wanted mode. Never fails the caller: the outcome says why not.
pub fn attach(program: &mut Xdp, bpf_dir: &Path, interface: &str, ifindex: u32, wanted: Wanted) -> Outcome {
    let off = |reason: String| Outcome {
        mode: "off",
        reason,
        relays: false,
    };
    let (mode, relays) = match decide(wanted, driver(interface).as_deref()) {
        Ok(decided) => decided,
        Err(reason) => {
            detach_others(bpf_dir, ifindex, None);
            return off(reason);
        }
    };
    let name = if matches!(mode, XdpMode::Driver) {
        MODES[0]
    } else {
        MODES[1]
    };
    detach_others(bpf_dir, ifindex, Some(name));
    let pin = link_pin(bpf_dir, name, ifindex);
    if replace(program, &pin).is_err() {
        let _ = fs::remove_file(&pin);
        if let Err(error) = create(program, &pin, ifindex, mode) {
            return off(format!("{name} refused by {interface}: {error:#}"));
        }
    }
    let reason = if relays {
        "drops strangers, relays"
    } else {
        "drops strangers"
    };
    Outcome {
        mode: name,
        reason: reason.to_owned(),
        relays,
    }
}

/// Puts the program in place of an earlier controller's.
fn replace(program: &mut Xdp, pin: &Path) -> anyhow::Result<()> {
    let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(pin)?))?;
    let id = program.attach_to_link(link)?;
    // The pin keeps it; our own descriptor may go.
    drop(program.take_link(id)?);
    Ok(())
}

fn create(program: &mut Xdp, pin: &Path, ifindex: u32, mode: XdpMode) -> anyhow::Result<()> {
    let id = program.attach_to_if_index(ifindex, mode)?;
    FdLink::try_from(program.take_link(id)?)?.pin(pin)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn auto_never_makes_a_path_slower() {
        assert!(
            decide(Wanted::Auto, Some("veth"))
                .unwrap_err()
                .contains("offloads")
        );
        assert!(decide(Wanted::Auto, None).is_err());
        assert!(
            decide(Wanted::Auto, Some("virtio_net"))
                .unwrap_err()
                .contains("virtio_net")
        );
        assert!(matches!(
            decide(Wanted::Auto, Some("mlx5_core")),
            Ok((XdpMode::Driver, true))
        ));
    }

    #[test]
    fn forced_native_on_a_virtual_interface_does_not_relay() {
        // Frames there have partial checksums, which do not survive XDP_TX.
        assert!(matches!(
            decide(Wanted::Native, None),
            Ok((XdpMode::Driver, false))
        ));
        assert!(matches!(
            decide(Wanted::Generic, Some("mlx5_core")),
            Ok((XdpMode::Skb, false))
        ));
        assert!(
            "fast"
                .parse::<Wanted>()
                .unwrap_err()
                .to_string()
                .contains("auto, native, generic or off")
        );
    }
}
