//! Builds the paths that are compared. Each overlay has hosts of its own, so that none pays for
//! what another has attached.

use std::net::Ipv4Addr;

use anyhow::Result;
use weave_tests::lab::{Container, Host, Lab, Plan, netns};

use super::measure::{Path, warm_up};
use crate::shell::target;

/// Host to host, over the underlay alone.
pub fn native(lab: &Lab) -> Result<Path> {
    let (first, second) = (lab.host(1)?, lab.host(2)?);
    warm_up(first.netns(), second.address())?;
    Path::new("native", first.netns(), second.netns(), second.address())
}

/// What simple overlays do: a VXLAN device on a bridge, every address known beforehand, nothing
/// learnt or flooded.
pub fn kernel_vxlan(lab: &Lab) -> Result<Path> {
    let ends = [End::new(lab.host(1)?)?, End::new(lab.host(2)?)?];
    let [first, second] = &ends;
    first.know(second)?;
    second.know(first)?;
    warm_up(first.container.netns(), second.address)?;
    Path::new(
        "kernel vxlan",
        first.container.netns(),
        second.container.netns(),
        second.address,
    )
}

/// Our overlay between the first and the last host of the lab, when all connections are in `state`.
pub fn weave(name: &'static str, lab: &Lab, state: &str) -> Result<Path> {
    let (first, last) = (lab.host(1)?, lab.host(lab.hosts().len())?);
    lab.launch_all(&[])?;
    let (one, _) = first.attached("c1")?;
    let (two, address) = last.attached("c2")?;
    one.wait_ping(address)?;
    for host in [first, last] {
        host.wait_connections(1, state)?;
    }
    Path::new(name, one.netns(), two.netns(), address)
}

/// The plan of a lab with the release build.
pub fn released(plan: Plan) -> Plan {
    plan.binary(target().join("release/weave-ctl"))
}

/// One end of the kernel's overlay.
struct End<'a> {
    host: &'a Host,
    container: Container,
    address: Ipv4Addr,
    mac: String,
}

impl<'a> End<'a> {
    fn new(host: &'a Host) -> Result<Self> {
        let number = host.address().octets()[3];
        let (address, mac) = (
            Ipv4Addr::new(10, 77, 0, number),
            format!("02:77:00:00:00:{number:02x}"),
        );
        let container = host.container("vx")?;
        let (here, there, local) = (host.netns(), container.netns(), host.address().to_string());
        #[rustfmt::skip]
        let steps: [&[&str]; 9] = [
            &["-n", here, "link", "add", "vxbr", "type", "bridge"],
            &["-n", here, "link", "add", "vx", "type", "vxlan", "id", "77", "local", &local,
              "dev", "eth0", "dstport", "8472", "nolearning"],
            &["-n", here, "link", "add", "vxc", "mtu", "1450", "type", "veth",
              "peer", "name", "eth0", "address", &mac, "mtu", "1450", "netns", there],
            &["-n", here, "link", "set", "vx", "master", "vxbr", "up"],
            &["-n", here, "link", "set", "vxc", "master", "vxbr", "up"],
            &["-n", here, "link", "set", "vx", "type", "bridge_slave", "learning", "off"],
            &["-n", here, "link", "set", "vxbr", "up"],
            &["-n", there, "address", "add", &format!("{address}/24"), "dev", "eth0"],
            &["-n", there, "link", "set", "eth0", "up"],
        ];
        for step in steps {
            netns::ip(step)?;
        }
        host.exec(&["bridge", "fdb", "replace", &mac, "dev", "vxc", "master", "static"])?
            .ok()?;
        Ok(Self {
            host,
            container,
            address,
            mac,
        })
    }

    fn know(&self, other: &Self) -> Result<()> {
        let (remote, mac) = (other.host.address().to_string(), other.mac.as_str());
        self.host
            .exec(&["bridge", "fdb", "append", mac, "dev", "vx", "dst", &remote])?
            .ok()?;
        self.host
            .exec(&["bridge", "fdb", "replace", mac, "dev", "vx", "master", "static"])?
            .ok()?;
        let address = other.address.to_string();
        #[rustfmt::skip]
        netns::ip(&["-n", self.container.netns(), "neighbor", "add", &address,
                    "lladdr", mac, "dev", "eth0", "nud", "permanent"])?;
        Ok(())
    }
}
