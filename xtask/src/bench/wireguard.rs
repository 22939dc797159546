//! A userspace tunnel to compare sleeve with: Debian's wireguard-go between the hosts, containers
//! routed through it. It is sealed, has a TUN device, and carries IP instead of Ethernet frames, so it
//! does somewhat less than sleeve.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use weave_tests::lab::{Container, Host, Lab, netns};
use weave_tests::process::{self, Background, LIMIT};

use super::measure::{Path, warm_up};
use crate::setup;

const PORT: &str = "51820";
/// wireguard-go's own default for an underlay of 1500.
const MTU: &str = "1420";

/// The tunnel's two daemons; killed when dropped.
pub struct Tunnel {
    ends: [End; 2],
}

/// `None` if this machine has no wireguard-go and cannot install it.
pub fn between(lab: &Lab) -> Result<Option<Tunnel>> {
    let wanted = [("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools")];
    if let Err(error) = setup::need(&wanted) {
        println!("skipped: wireguard-go: {error:#}");
        return Ok(None);
    }
    let ends = [End::new(lab.host(1)?)?, End::new(lab.host(2)?)?];
    let [first, second] = &ends;
    first.know(second)?;
    second.know(first)?;
    Ok(Some(Tunnel { ends }))
}

impl Tunnel {
    /// From the container of the first host to that of the second.
    pub fn path(&self) -> Result<Path> {
        let [first, second] = &self.ends;
        warm_up(first.container.netns(), second.address)?;
        let (from, to) = (first.container.netns(), second.container.netns());
        Path::new("wireguard-go", from, to, second.address)
    }

    /// Process IDs of the daemons.
    pub fn pids(&self) -> Vec<i32> {
        let pids = self.ends.iter().map(|end| end.daemon.pid().cast_signed());
        pids.collect()
    }
}

struct End {
    host: Host,
    container: Container,
    /// Also the name of the daemon's control socket, which is the machine's: so it has our number.
    device: String,
    address: Ipv4Addr,
    key: String,
    daemon: Background,
}

impl End {
    fn new(host: &Host) -> Result<Self> {
        let number = host.address().octets()[3];
        let device = format!("wg{}h{number}", std::process::id());
        let (address, gateway) = (Ipv4Addr::new(10, 78, number, 2), Ipv4Addr::new(10, 78, number, 1));
        let secret = host.run_dir().join("../wireguard");
        let secret = secret.to_str().context("odd folder")?;
        let make = r#"umask 077; wg genkey >"$0" && wg pubkey <"$0""#;
        let key = host.exec(&["sh", "-c", make, secret])?.ok()?.trim().to_owned();
        let daemon = host.spawn(&["wireguard-go", "-f", &device])?;
        process::wait_for("wireguard-go to make its device", LIMIT, || {
            let made = host.exec(&["wg", "show", &device])?;
            Ok(made.success().then_some(()))
        })
        .with_context(|| daemon.printed().unwrap_or_default())?;
        host.exec(&["wg", "set", &device, "private-key", secret, "listen-port", PORT])?
            .ok()?;
        fs::remove_file(secret)?;

        let container = host.container("wg")?;
        let (here, there) = (host.netns(), container.netns());
        #[rustfmt::skip]
        let steps: [&[&str]; 7] = [
            &["-n", here, "link", "set", &device, "mtu", MTU, "up"],
            &["-n", here, "link", "add", "wgc", "mtu", MTU, "type", "veth",
              "peer", "name", "eth0", "mtu", MTU, "netns", there],
            &["-n", here, "address", "add", &format!("{gateway}/24"), "dev", "wgc"],
            &["-n", here, "link", "set", "wgc", "up"],
            &["-n", there, "address", "add", &format!("{address}/24"), "dev", "eth0"],
            &["-n", there, "link", "set", "eth0", "up"],
            &["-n", there, "route", "add", "default", "via", &gateway.to_string()],
        ];
        for step in steps {
            netns::ip(step)?;
        }
        host.exec(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?.ok()?;
        Ok(Self {
            host: host.clone(),
            container,
            device,
            address,
            key,
            daemon,
        })
    }

    fn know(&self, other: &Self) -> Result<()> {
        let endpoint = format!("{}:{PORT}", other.host.address());
        let number = other.host.address().octets()[3];
        let network = format!("10.78.{number}.0/24");
        #[rustfmt::skip]
        let words = ["wg", "set", &self.device, "peer", &other.key, "allowed-ips", &network, "endpoint", &endpoint];
        self.host.exec(&words)?.ok()?;
        #[rustfmt::skip]
        netns::ip(&["-n", self.host.netns(), "route", "add", &network, "dev", &self.device])?;
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // The daemon is killed, and would leave it.
        let socket = format!("/var/run/wireguard/{}.sock", self.device);
        let _not_there = fs::remove_file(socket);
    }
}
