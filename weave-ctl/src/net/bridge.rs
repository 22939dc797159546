//! The bridge `weave` and the VXLAN devices that are its overlay ports (wire.md 9.2-9.4).

use netlink_packet_route::link::{BridgeStpState, InfoKind, InfoVxlan};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::link::{Link, check_name};
use super::{Mac, NetError, Netlink};

/// Beginning of the names of host ends of containers' interfaces.
pub const HOST_END: &str = "vethwepl";
/// Beginning of the names of everything of ours that is a veth.
const OURS: &str = "vethwe";
/// Beginning of the names of overlay ports.
const VXLAN: &str = "vxlan-";
/// The largest MTU an Ethernet-like device takes, in bytes.
pub const MAX_MTU: u32 = 65535;
/// Outer IPv4, UDP and VXLAN headers and the inner Ethernet header, in bytes.
const VXLAN_OVERHEAD: u32 = 50;

/// How the bridge should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Its name, `weave` unless asked otherwise.
    pub name: String,
    /// Its Ethernet address: the peer name.
    pub mac: Mac,
    /// MTU of the overlay, in bytes: what containers inherit.
    pub mtu: u32,
}

/// Makes the bridge as configured, or brings an existing one in line. Addresses and ports of an
/// existing bridge stay.
pub async fn ensure(nl: &Netlink, config: &BridgeConfig) -> Result<Link, NetError> {
    let name = &config.name;
    if nl.find_link(name).await?.is_none() {
        let message = LinkMessageBuilder::<LinkBridge>::new(name).build();
        nl.create_link(&format!("create bridge {name}"), message).await?;
    }
    let bridge = nl.link(name).await?;
    check_kind(&bridge)?;
    // Snooping would keep multicast floods from the overlay port, which joins no group.
    // No name in it: before Linux 6.2 any name in a change is refused while the device is up.
    let options = LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge)
        .index(bridge.index)
        .stp_state(BridgeStpState::Disabled)
        .mcast_snooping(false)
        .build();
    nl.change_link(&format!("set up bridge {name}"), options).await?;
    // Set explicitly after creation, so that the kernel never changes it with the ports.
    nl.set_mac(&bridge, config.mac).await?;
    nl.set_mtu(&bridge, config.mtu).await?;
    settle(nl, name).await?;
    nl.set_up(&bridge).await?;
    nl.link(name).await
}

/// `Err` unless the device is a Linux bridge.
pub(crate) fn check_kind(bridge: &Link) -> Result<(), NetError> {
    match bridge.kind.as_deref() {
        _ if bridge.is(&InfoKind::Bridge) => Ok(()),
        // Older kernels report no kind for a datapath (wire.md 9.1).
        None | Some("openvswitch") => Err(NetError::OvsBridge),
        Some(kind) => Err(NetError::WrongKind {
            name: bridge.name.clone(),
            found: kind.to_owned(),
            wanted: "bridge",
        }),
    }
}

/// Kernel settings of the bridge and of containers' interfaces (wire.md 9.4).
pub(crate) async fn settle(nl: &Netlink, name: &str) -> Result<(), NetError> {
    check_name(name)?;
    nl.ns()
        .sysctl(vec![
            (format!("net/ipv6/conf/{name}/accept_ra"), "0"),
            (format!("net/ipv4/neigh/{name}/base_reachable_time_ms"), "5000"),
            (format!("net/ipv4/neigh/{name}/delay_first_probe_time"), "2"),
            (format!("net/ipv4/neigh/{name}/ucast_solicit"), "1"),
            // Or the kernel removes all addresses of a subnet together with the first of them.
            (format!("net/ipv4/conf/{name}/promote_secondaries"), "1"),
        ])
        .await
}

/// How the bridge treats an overlay port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortFlags {
    /// Nothing goes from this port to another isolated one.
    pub isolated: bool,
    /// Frames of unknown destination, multicast and broadcast leave through it.
    pub flood: bool,
}

/// Makes a device (VXLAN, or the TAP of sleeve) a port of the bridge, and sets it up.
pub async fn add_overlay_port(
    nl: &Netlink,
    link: &Link,
    bridge: &Link,
    flags: PortFlags,
) -> Result<Link, NetError> {
    // The bridge must never be limited by this port: how much fits is decided per packet.
    if nl.set_mtu(link, MAX_MTU).await.is_err() {
        nl.set_mtu(link, MAX_MTU - VXLAN_OVERHEAD).await?;
    }
    enslave(nl, link, bridge).await?;
    let options = LinkBridgePort::new(link.index)
        .learning(true)
        .isolated(flags.isolated)
        .flood(flags.flood)
        .mcast_flood(flags.flood)
        .bcast_flood(flags.flood)
        .build();
    nl.change_link(&format!("set bridge port options of {}", link.name), options)
        .await?;
    // A port needs no addresses, and its own neighbour discovery would be flooded to all peers.
    nl.ns()
        .sysctl(vec![(format!("net/ipv6/conf/{}/disable_ipv6", link.name), "1")])
        .await?;
    nl.set_up(link).await?;
    nl.link(&link.name).await
}

/// Makes the VXLAN device `name`, which takes its tunnel from metadata (BPF or tc sets the key and
/// asks for a zero UDP checksum), a port of the bridge.
///
/// `flood`: frames of unknown destination leave through it. True for the main device only, or they
/// would be sent twice.
pub async fn ensure_vxlan(
    nl: &Netlink,
    name: &str,
    port: u16,
    bridge: &Link,
    flood: bool,
) -> Result<Link, NetError> {
    let in_use = |e: NetError| match e.errno() {
        Some(libc::EADDRINUSE | libc::EEXIST) => NetError::PortInUse {
            port,
            name: name.to_owned(),
        },
        _ => e,
    };
    let mut created = false;
    let found = match nl.find_link(name).await? {
        Some(link) if !link.is(&InfoKind::Vxlan) => {
            return Err(NetError::WrongKind {
                name: link.name,
                found: link.kind.unwrap_or_else(|| "hardware".to_owned()),
                wanted: "vxlan",
            });
        }
        // Somebody else's, such as the port of an Open vSwitch datapath.
        Some(link) if link.master.is_some_and(|m| m != bridge.index) => {
            return Err(NetError::PortInUse {
                port,
                name: name.to_owned(),
            });
        }
        Some(link) if link.vxlan != Some((port, true)) => {
            nl.delete(&link).await?;
            None
        }
        found => found,
    };
    if found.is_none() {
        let message = LinkMessageBuilder::<LinkVxlan>::new(name)
            .append_info_data(InfoVxlan::CollectMetadata(true))
            .append_info_data(InfoVxlan::Port(port))
            .append_info_data(InfoVxlan::Learning(false))
            .build();
        nl.create_link(&format!("create {name}"), message)
            .await
            .map_err(in_use)?;
        created = true;
    }
    let link = nl.link(name).await?;
    let flags = PortFlags {
        isolated: true,
        flood,
    };
    // Setting it up, the kernel opens the UDP socket.
    let result = add_overlay_port(nl, &link, bridge, flags).await.map_err(in_use);
    if result.is_err() && created {
        // The first error is the one to tell.
        let _ = nl.delete(&link).await;
    }
    result
}

/// Makes a device a port of the bridge.
pub async fn enslave(nl: &Netlink, link: &Link, bridge: &Link) -> Result<(), NetError> {
    let message = LinkUnspec::new_with_index(link.index)
        .controller(bridge.index)
        .build();
    nl.change_link(&format!("make {} a port of {}", link.name, bridge.name), message)
        .await
}

/// Removes what is ours (control.md 8.5): the overlay ports of the bridge, its ports named
/// `vethwe...`, host ends that lost their bridge, and the bridge itself. Returns the names; what
/// cannot be removed does not keep the rest from being removed.
pub async fn delete_all(nl: &Netlink, bridge: &str) -> Result<Vec<String>, NetError> {
    let bridge = nl
        .find_link(bridge)
        .await?
        .filter(|link| link.is(&InfoKind::Bridge));
    let master = bridge.as_ref().map(|b| b.index);
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    let ours = nl.links().await?.into_iter().filter(|link| is_ours(link, master));
    for link in ours.chain(bridge.clone()) {
        match nl.delete(&link).await {
            Ok(()) => removed.push(link.name),
            Err(e) => errors.push(e),
        }
    }
    NetError::all(errors).map(|()| removed)
}

fn is_ours(link: &Link, bridge: Option<u32>) -> bool {
    let port = bridge.is_some() && link.master == bridge;
    let vxlan = link.is(&InfoKind::Vxlan) && link.name.starts_with(VXLAN);
    let veth = link.is(&InfoKind::Veth);
    port && (vxlan || veth && link.name.starts_with(OURS))
        || veth && link.master.is_none() && link.name.starts_with(HOST_END)
}

/// Address and IPv4 addresses of the bridge: the `weave:expose` line of `weave ps` (cli.md 4.14).
pub async fn exposed(nl: &Netlink, bridge: &str) -> Result<(Mac, Vec<crate::ipam::address::Cidr>), NetError> {
    let link = nl.find_link(bridge).await?.ok_or(NetError::NotAttached)?;
    let addresses = nl.addresses(link.index).await?;
    Ok((link.mac.unwrap_or_default(), addresses))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::net::testing::{ip, ip_link, new_host, sysctl};

    const MAC: Mac = [0x7a, 0x9f, 0x31, 0xc2, 0x4d, 0x18];

    fn config(mtu: u32) -> BridgeConfig {
        BridgeConfig {
            name: "weave".to_owned(),
            mac: MAC,
            mtu,
        }
    }

    #[tokio::test]
    async fn a_bridge_is_made_kept_and_repaired() {
        let Some(nl) = new_host().await else { return };
        let made = ensure(&nl, &config(1376)).await.unwrap();
        ip(nl.ns(), "addr add 10.32.0.1/12 dev weave").await;
        ip(nl.ns(), "link add vethwepl1 mtu 900 type veth peer name x").await;
        ip(nl.ns(), "link set vethwepl1 master weave").await;
        ip(nl.ns(), "link set weave down address 02:00:00:00:00:01").await;
        let kept = ensure(&nl, &config(65535)).await.unwrap();
        assert_eq!(kept.index, made.index);

        let seen = ip_link(nl.ns(), "weave").await;
        assert_eq!(seen["address"], "7a:9f:31:c2:4d:18");
        assert_eq!(seen["mtu"], 65535, "not limited by a port");
        assert!(seen["flags"].as_array().unwrap().contains(&"UP".into()));
        assert_eq!(seen["linkinfo"]["info_data"]["stp_state"], 0);
        assert_eq!(seen["linkinfo"]["info_data"]["mcast_snooping"], 0);
        for (path, value) in [
            ("net/ipv4/neigh/weave/base_reachable_time_ms", "5000"),
            ("net/ipv4/neigh/weave/delay_first_probe_time", "2"),
            ("net/ipv4/neigh/weave/ucast_solicit", "1"),
            ("net/ipv6/conf/weave/accept_ra", "0"),
        ] {
            assert_eq!(sysctl(nl.ns(), path).await, value, "{path}");
        }
        let exposed = exposed(&nl, "weave").await.unwrap();
        assert_eq!(exposed, (MAC, vec!["10.32.0.1/12".parse().unwrap()]));
    }

    #[tokio::test]
    async fn another_kind_of_that_name_is_refused() {
        let Some(nl) = new_host().await else { return };
        ip(nl.ns(), "link add weave type veth peer name x").await;
        let error = ensure(&nl, &config(1376)).await.unwrap_err().to_string();
        assert!(error.contains("\"weave\" exists and is of kind veth"), "{error}");
        let ovs = Link {
            kind: Some("openvswitch".to_owned()),
            ..Link::default()
        };
        assert!(matches!(check_kind(&ovs), Err(NetError::OvsBridge)));
    }

    #[tokio::test]
    async fn overlay_ports_flood_only_through_the_main_one() {
        let Some(nl) = new_host().await else { return };
        let bridge = ensure(&nl, &config(1376)).await.unwrap();
        for (name, port, flood) in [
            ("vxlan-6784", 6784, true),
            ("vxlan-7000", 7000, false),
            ("vxlan-6784", 6784, true),
        ] {
            let link = ensure_vxlan(&nl, name, port, &bridge, flood).await.unwrap();
            assert_eq!((link.master, link.up), (Some(bridge.index), true));
            assert!(link.mtu >= 65535 - VXLAN_OVERHEAD);
        }
        for (name, port, flood) in [("vxlan-6784", 6784, true), ("vxlan-7000", 7000, false)] {
            let seen = ip_link(nl.ns(), name).await;
            let (info, slave) = (
                &seen["linkinfo"]["info_data"],
                &seen["linkinfo"]["info_slave_data"],
            );
            assert_eq!(info["external"], true);
            assert_eq!(info["port"], port);
            assert_eq!(info["learning"], false);
            assert_eq!(
                (&slave["learning"], &slave["isolated"]),
                (&true.into(), &true.into())
            );
            let ipv6 = format!("net/ipv6/conf/{name}/disable_ipv6");
            assert_eq!(sysctl(nl.ns(), &ipv6).await, "1");
            for flag in ["flood", "mcast_flood", "bcast_flood"] {
                assert_eq!(slave[flag], flood, "{name} {flag}");
            }
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_named_and_nothing_is_left_behind() {
        let Some(nl) = new_host().await else { return };
        let bridge = ensure(&nl, &config(1376)).await.unwrap();
        let _holder = nl
            .ns()
            .run(|| UdpSocket::bind("0.0.0.0:6784").unwrap())
            .await
            .unwrap();
        let error = ensure_vxlan(&nl, "vxlan-6784", 6784, &bridge, true)
            .await
            .unwrap_err();
        assert!(
            matches!(error, NetError::PortInUse { port: 6784, .. }),
            "{error:?}"
        );
        assert!(nl.find_link("vxlan-6784").await.unwrap().is_none());

        ip(nl.ns(), "link add other type vxlan external dstport 7000").await;
        ip(nl.ns(), "link set other up").await;
        let error = ensure_vxlan(&nl, "vxlan-7000", 7000, &bridge, true)
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("UDP port 7000 is in use by another program"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_overlay_port_with_other_settings_is_replaced() {
        let Some(nl) = new_host().await else { return };
        let bridge = ensure(&nl, &config(1376)).await.unwrap();
        ip(nl.ns(), "link add vxlan-6784 type vxlan id 1 dstport 6784").await;
        let link = ensure_vxlan(&nl, "vxlan-6784", 6784, &bridge, true)
            .await
            .unwrap();
        assert_eq!(link.vxlan, Some((6784, true)));
    }

    #[tokio::test]
    async fn removal_takes_ours_and_leaves_others() {
        let Some(nl) = new_host().await else { return };
        let bridge = ensure(&nl, &config(1376)).await.unwrap();
        ensure_vxlan(&nl, "vxlan-6784", 6784, &bridge, true)
            .await
            .unwrap();
        for command in [
            "link add docker0 type bridge",
            "link add vethwepl123 master weave type veth peer name g1",
            "link add vethwepl9 type veth peer name g2",
            "link add vethweother master docker0 type veth peer name g3",
            "link add vethwl1 master weave type veth peer name g4",
            "link add vxlan-1 type vxlan id 5 dstport 9999",
        ] {
            ip(nl.ns(), command).await;
        }
        let mut removed = delete_all(&nl, "weave").await.unwrap();
        removed.sort();
        assert_eq!(removed, ["vethwepl123", "vethwepl9", "vxlan-6784", "weave"]);
        for left in ["docker0", "vethweother", "vethwl1", "vxlan-1"] {
            assert!(nl.find_link(left).await.unwrap().is_some(), "{left}");
        }
        assert!(delete_all(&nl, "weave").await.unwrap().is_empty());
    }
}
