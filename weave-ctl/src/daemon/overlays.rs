//! What this host can carry frames with, found out by trying: the fast path, sleeve, or both.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::bail;

use super::event::{Event, Events};
use crate::cli::launch::LaunchOptions;
use crate::mesh::name::{PeerName, ShortId};
use crate::net::Netlink;
use crate::net::bridge::{self, BridgeConfig, PortFlags};
use crate::net::link::Link;
use crate::overlay::fastdp::attach;
use crate::overlay::fastdp::datapath::Datapath;
use crate::overlay::sleeve::engine::{self, Engine};
use crate::overlay::sleeve::{FrameSource, SLEEVE};
use crate::overlay::switch::FASTDP;

/// The TAP of sleeve, a port of the bridge. `weave reset` of the original takes it along by its name.
pub const TAP: &str = "vethwe-sleeve";
/// More threads than this gain nothing: the frames of one flow stay on one.
const MAX_WORKERS: usize = 8;

/// Each overlay, or why this host does not have it.
pub struct Overlays {
    /// Programs and maps.
    pub fastdp: Result<Datapath, String>,
    /// Threads between the TAP and UDP.
    pub sleeve: Result<Engine, String>,
}

impl Overlays {
    /// Makes the bridge and its overlay ports. Fails if no overlay can be had.
    pub async fn make(
        options: &LaunchOptions,
        nl: &Netlink,
        events: &Events,
        (name, short_id): (PeerName, ShortId),
        mtu: u32,
    ) -> anyhow::Result<Self> {
        let config = BridgeConfig {
            name: options.bridge.clone(),
            mac: name.to_bytes(),
            mtu,
        };
        let bridge = bridge::ensure(nl, &config).await?;
        let mut fastdp = match options.no_fastdp {
            true => Err("--no-fastdp".to_owned()),
            false => fast_path(options, nl, &bridge, short_id)
                .await
                .map_err(|e| one_line(&e)),
        };
        if let Err(why) = &fastdp {
            match options.no_fastdp {
                true => tracing::info!("The fast path is switched off (--no-fastdp): frames go by sleeve"),
                false => tracing::warn!(
                    "No fast path on this host ({why}): frames go by sleeve, through userspace"
                ),
            }
            clear_fast_path(options, nl, &bridge).await;
        }
        let sleeve = userspace(options, nl, &bridge, &mut fastdp, events, name)
            .await
            .map_err(|e| one_line(&e));
        match (&fastdp, &sleeve) {
            (Err(fastdp), Err(sleeve)) => bail!(
                "this host can carry no frames. Fast path: {fastdp}. Sleeve: {sleeve}. Launch as root, or in a \
                 container with --privileged --net=host"
            ),
            (Ok(_), Err(why)) => {
                tracing::warn!("No sleeve on this host ({why}): only the fast path carries frames")
            }
            _ => {}
        }
        Ok(Self { fastdp, sleeve })
    }

    /// Why no connection has a fast path, if so: in short, as the whole story is in `status` and the log.
    #[must_use]
    pub fn no_fastdp(&self, options: &LaunchOptions) -> Option<&'static str> {
        match (&self.fastdp, options.no_fastdp) {
            (Ok(_), _) => None,
            (Err(_), true) => Some("--no-fastdp"),
            (Err(_), false) => Some("this host has no fast path: see weave status"),
        }
    }

    /// The names to offer, best first (wire.md 7.1).
    #[must_use]
    pub fn offer(&self) -> Vec<String> {
        let fastdp = self.fastdp.is_ok().then(|| FASTDP.to_owned());
        let sleeve = self.sleeve.is_ok().then(|| SLEEVE.to_owned());
        fastdp.into_iter().chain(sleeve).collect()
    }

    /// The original's word for it (wire.md 9.1).
    #[must_use]
    pub fn bridge_type(&self) -> &'static str {
        match self.fastdp {
            Ok(_) => "bridged_fastdp",
            Err(_) => "bridge",
        }
    }
}

/// An error with its causes; the verifier's log, which has many lines, goes to the debug log.
fn one_line(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    // Some repeat their cause in their own text.
    let repeated = |at: usize| {
        causes
            .get(at..at + 2)
            .is_some_and(|pair| pair[0].ends_with(&pair[1]))
    };
    let told = causes.iter().enumerate().filter(|(at, _)| !repeated(*at));
    let text = told.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(": ");
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    if lines.next().is_some() {
        tracing::debug!("{text}");
    }
    first
}

async fn fast_path(
    options: &LaunchOptions,
    nl: &Netlink,
    bridge: &Link,
    short_id: ShortId,
) -> anyhow::Result<Datapath> {
    let mut datapath = Datapath::load(&options.paths.bpf_dir, options.xdp)?;
    let port = options.port.wrapping_add(1);
    let vxlan = format!("vxlan-{port}");
    let link = bridge::ensure_vxlan(nl, &vxlan, port, bridge, true).await?;
    datapath.add_vxlan(&vxlan, link.index, port)?;
    datapath.set_short_id(short_id.get())?;
    datapath.enable(true)?;
    Ok(datapath)
}

/// What an earlier run with a fast path has left would go on taking frames out of the bridge's hands.
async fn clear_fast_path(options: &LaunchOptions, nl: &Netlink, bridge: &Link) {
    let pins = &options.paths.bpf_dir;
    match std::fs::remove_dir_all(pins) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", pins.display());
        }
        _ => {}
    }
    let network = async {
        // Filters, unlike pinned links, stay without their pins.
        for link in nl.links().await? {
            attach::remove_filter(&link.name);
        }
        bridge::delete_vxlans(nl, bridge).await
    };
    if let Err(error) = network.await {
        tracing::warn!("{error}");
    }
}

async fn userspace(
    options: &LaunchOptions,
    nl: &Netlink,
    bridge: &Link,
    fastdp: &mut Result<Datapath, String>,
    events: &Events,
    name: PeerName,
) -> anyhow::Result<Engine> {
    let host = match options.host {
        None => None,
        Some(IpAddr::V4(ip)) => Some(ip),
        Some(IpAddr::V6(ip)) => bail!("--host {ip} is not IPv4"),
    };
    let source = match fastdp {
        Ok(_) => FrameSource::Bpf,
        Err(_) => FrameSource::Bridge,
    };
    let workers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_WORKERS);
    let events = events.clone();
    let engine = Engine::start(
        engine::Config {
            own: name,
            port: options.port,
            host,
            tap: TAP.to_owned(),
            source,
            workers,
        },
        Arc::new(move |conn, arrived| events.offer(Event::Sleeve { conn, arrived })),
    )?;
    // Before frames can reach it, so that none comes without its prefix.
    if let Ok(datapath) = fastdp {
        datapath.set_sleeve(TAP, engine.ifindex())?;
    }
    let tap = nl.link(TAP).await?;
    let flags = PortFlags {
        isolated: true,
        // With BPF the VXLAN device's program serves sleeve as well.
        flood: source == FrameSource::Bridge,
    };
    bridge::add_overlay_port(nl, &tap, bridge, flags).await?;
    Ok(engine)
}
