//! Attaching, detaching and listing, on real namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};

use socket2::{Domain, Protocol, Socket, Type};

use super::*;
use crate::net::bridge::{BridgeConfig, ensure};
use crate::net::container::resolve;
use crate::net::ps;
use crate::net::testing::{Sleeper, ip, ip_link, new_host, new_netns, sysctl, with_own_run};

const MTU: u32 = 1376;

async fn host() -> Option<Netlink> {
    let nl = new_host().await?;
    let config = BridgeConfig {
        name: "weave".to_owned(),
        mac: [0x7a, 0x9f, 0x31, 0xc2, 0x4d, 0x18],
        mtu: MTU,
    };
    ensure(&nl, &config).await.unwrap();
    Some(nl)
}

fn cidrs(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

fn request(ns: &Netns, id7: &str, addrs: &[&str]) -> AttachRequest {
    AttachRequest {
        ns: ns.clone(),
        id7: id7.to_owned(),
        ifname: "ethwe".to_owned(),
        addrs: cidrs(addrs),
        mtu: 0,
        bridge: "weave".to_owned(),
        multicast_route: true,
        hairpin: true,
    }
}

#[tokio::test]
async fn an_attached_container_has_what_the_specification_lists() {
    let Some(nl) = host().await else { return };
    let Some(ns) = new_netns() else { return };
    let request = request(&ns, "1234567", &["10.32.0.1/12", "10.2.1.5/24"]);
    let first = attach(&nl, &request).await.unwrap();
    assert!(first.created);
    assert_eq!(first.added, request.addrs);
    let again = attach(&nl, &request).await.unwrap();
    assert_eq!((again.created, again.mac), (false, first.mac));
    assert!(again.added.is_empty());

    let inside = ip_link(&ns, "ethwe").await;
    assert_eq!(inside["mtu"], MTU);
    assert_eq!(inside["gso_max_size"], GUEST_GSO_MAX);
    assert!(inside["flags"].as_array().unwrap().contains(&"UP".into()));
    assert_eq!(inside["address"], crate::net::mac_text(first.mac));
    let addresses = ip(&ns, "addr show ethwe").await;
    assert!(addresses.contains("10.32.0.1/12") && addresses.contains("10.2.1.5/24"));
    let route = ip(&ns, "route show 224.0.0.0/4").await;
    assert_eq!(route.trim(), "224.0.0.0/4 dev ethwe scope link");
    assert_eq!(sysctl(&ns, "net/ipv4/neigh/ethwe/ucast_solicit").await, "1");
    assert_eq!(
        sysctl(&ns, "net/ipv4/neigh/ethwe/base_reachable_time_ms").await,
        "5000"
    );
    assert_eq!(sysctl(&ns, "net/ipv6/conf/ethwe/accept_ra").await, "0");

    let outside = ip_link(nl.ns(), "vethwepl1234567").await;
    assert_eq!(outside["mtu"], 65535, "oversized packets must come out here");
    assert_eq!(outside["master"], "weave");
    assert_eq!(outside["linkinfo"]["info_slave_data"]["hairpin"], true);
    assert_eq!(
        sysctl(nl.ns(), "net/ipv6/conf/vethwepl1234567/accept_ra").await,
        "0"
    );
    assert_eq!(ip_link(nl.ns(), "weave").await["mtu"], MTU);
}

#[tokio::test]
async fn options_are_obeyed() {
    let Some(nl) = host().await else { return };
    let Some(ns) = new_netns() else { return };
    let wish = AttachRequest {
        ifname: "eth0".to_owned(),
        mtu: 1400,
        multicast_route: false,
        hairpin: false,
        ..request(&ns, "1", &[])
    };
    attach(&nl, &wish).await.unwrap();
    assert_eq!(ip_link(&ns, "eth0").await["mtu"], 1400);
    assert_eq!(ip(&ns, "route show 224.0.0.0/4").await, "");
    let outside = ip_link(nl.ns(), "vethwepl1").await;
    assert_eq!(outside["linkinfo"]["info_slave_data"]["hairpin"], false);
}

#[tokio::test]
async fn two_containers_talk() {
    let Some(nl) = host().await else { return };
    let (Some(one), Some(two)) = (new_netns(), new_netns()) else {
        return;
    };
    attach(&nl, &request(&one, "1", &["10.32.0.1/12"])).await.unwrap();
    attach(&nl, &request(&two, "2", &["10.32.0.2/12"])).await.unwrap();
    let address = SocketAddrV4::new(Ipv4Addr::new(10, 32, 0, 1), 80);
    let listener = one
        .run(move || TcpListener::bind(address).unwrap())
        .await
        .unwrap();
    let server = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello"));
    let heard = two
        .run(move || {
            let mut text = String::new();
            TcpStream::connect(address)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            text
        })
        .await
        .unwrap();
    assert_eq!(heard, "hello");
    server.join().unwrap().unwrap();
}

#[tokio::test]
async fn the_network_hears_of_a_new_address() {
    let Some(nl) = host().await else { return };
    let Some(ns) = new_netns() else { return };
    let socket = nl
        .ns()
        .run(|| {
            let arp = Protocol::from(i32::from(0x0806_u16.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(arp)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket
        })
        .await
        .unwrap();
    let done = attach(&nl, &request(&ns, "7", &["10.32.0.9/12"])).await.unwrap();
    let expected = arp::gratuitous(done.mac, Ipv4Addr::new(10, 32, 0, 9));
    let heard = tokio::task::spawn_blocking(move || {
        let mut frame = [0; 64];
        while let Ok(length) = (&socket).read(&mut frame) {
            if frame.get(..length) == Some(&expected) {
                return true;
            }
        }
        false
    });
    assert!(heard.await.unwrap());
}

#[tokio::test]
async fn a_failure_half_way_leaves_nothing() {
    let Some(nl) = host().await else { return };
    let Some(ns) = new_netns() else { return };
    // The kernel refuses a multicast address on an interface.
    let error = attach(&nl, &request(&ns, "5", &["224.0.0.9/24"]))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("add 224.0.0.9/24 to ethwe"), "{error}");
    assert!(nl.find_link("vethwepl5").await.unwrap().is_none());
    let guest = Netlink::open(&ns).await.unwrap();
    assert!(guest.find_link("ethwe").await.unwrap().is_none());
    attach(&nl, &request(&ns, "5", &["10.32.0.1/12"])).await.unwrap();
}

#[tokio::test]
async fn refusals_say_why() {
    let Some(nl) = host().await else { return };
    let Some(ns) = new_netns() else { return };
    let text = |request: AttachRequest| {
        let nl = nl.clone();
        async move { attach(&nl, &request).await.unwrap_err().to_string() }
    };
    assert_eq!(
        text(request(nl.ns(), "1", &[])).await,
        "Container is running in the host network namespace, and therefore cannot be\n\
         connected to weave - perhaps the container was started with --net=host"
    );
    let no_bridge = AttachRequest {
        bridge: "none".to_owned(),
        ..request(&ns, "1", &[])
    };
    assert_eq!(
        text(no_bridge).await,
        "bridge \"none\" not present; did you launch weave?"
    );
    ip(nl.ns(), "link add vethwepl1 type veth peer name x").await;
    let taken = text(request(&ns, "1", &[])).await;
    assert!(
        taken.starts_with("could not create veth pair vethwepl1-vethwepg1: "),
        "{taken}"
    );
    assert!(
        nl.find_link("vethwepl1").await.unwrap().is_some(),
        "not ours to remove"
    );
}

#[tokio::test]
async fn detaching_takes_addresses_and_at_last_the_interface() {
    let Some(nl) = host().await else { return };
    let Some(ns) = new_netns() else { return };
    let held = ["10.2.1.1/24", "10.2.1.2/24", "10.32.0.1/12"];
    attach(&nl, &request(&ns, "1", &held)).await.unwrap();
    let shown = || async {
        let all = ps::attached(&nl, "weave", &ns).await.unwrap();
        all.into_iter().map(|i| i.cidrs).collect::<Vec<_>>()
    };
    let gone = cidrs(&["10.2.1.1/24", "10.9.9.9/24"]);
    assert_eq!(
        detach(&nl, &ns, "ethwe", &gone).await.unwrap(),
        cidrs(&["10.2.1.1/24"])
    );
    let mut left = shown().await;
    left.iter_mut().for_each(|l| l.sort_unstable());
    // The kernel would drop the second address of the subnet with the first.
    assert_eq!(left, [cidrs(&["10.2.1.2/24", "10.32.0.1/12"])]);
    detach(&nl, &ns, "ethwe", &cidrs(&held)).await.unwrap();
    assert!(shown().await.is_empty());
    assert!(nl.find_link("vethwepl1").await.unwrap().is_none());
    let error = detach(&nl, &ns, "ethwe", &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "Link not found");
}

#[tokio::test]
async fn containers_are_listed_and_follow_the_mtu() {
    let Some(nl) = host().await else { return };
    let (Some(one), Some(two)) = (new_netns(), new_netns()) else {
        return;
    };
    let (first, second) = (Sleeper::in_ns(&one).await, Sleeper::in_ns(&two).await);
    let made = attach(&nl, &request(&one, "1", &["10.32.0.1/12"])).await.unwrap();
    assert!(ps::attached(&nl, "weave", &two).await.unwrap().is_empty());
    attach(&nl, &request(&two, "2", &["10.32.0.2/12"])).await.unwrap();
    // A link to a container that is no port of the bridge is none of our business.
    ip(
        nl.ns(),
        &format!("link add other type veth peer name eth9 netns {}", first.pid()),
    )
    .await;

    let mut listed = ps::list_attached(&nl, "weave").await.unwrap();
    listed.sort_by_key(|c| c.cidrs.clone());
    let displays: Vec<_> = listed.iter().map(|c| c.display.clone()).collect();
    assert_eq!(
        displays,
        [format!("pid:{}", first.pid()), format!("pid:{}", second.pid())]
    );
    let known = resolve(&displays[0]).await.unwrap();
    assert_eq!(listed[0].id, known.id);
    assert_eq!((listed[0].ifname.as_str(), listed[0].mac), ("ethwe", made.mac));
    assert_eq!(listed[0].cidrs, cidrs(&["10.32.0.1/12"]));

    assert_eq!(ps::set_guest_mtu(&nl, "weave", 1300).await.unwrap(), 2);
    assert_eq!(ps::set_guest_mtu(&nl, "weave", 1300).await.unwrap(), 0);
    for ns in [&one, &two] {
        assert_eq!(ip_link(ns, "ethwe").await["mtu"], 1300);
    }
    assert_eq!(ip_link(&one, "eth9").await["mtu"], 1500);
    let error = ps::list_attached(&nl, "absent").await.unwrap_err();
    assert_eq!(error.to_string(), "Link not found");
}

#[test]
fn a_named_namespace_is_one_owner_under_all_its_names() {
    with_own_run(|| async {
        let nl = host().await.unwrap();
        ip(nl.ns(), "netns add web").await;
        let web = resolve("netns:web").await.unwrap();
        let holder = Sleeper::in_ns(&web.ns).await;
        let pid = format!("pid:{}", holder.pid());
        for text in ["netns:/run/netns/web", "netns:/var/run/netns/web", pid.as_str()] {
            let same = resolve(text).await.unwrap();
            assert_eq!(
                (same.id.as_str(), same.ns.id()),
                ("netns:web", web.ns.id()),
                "{text}"
            );
            assert_eq!(same.display, text);
        }
        let wish = request(&web.ns, &web.id7, &["10.32.0.3/12"]);
        let made = attach(&nl, &wish).await.unwrap();
        let listed = ps::list_attached(&nl, "weave").await.unwrap();
        let expected = ps::AttachedContainer {
            id: "netns:web".to_owned(),
            display: "netns:web".to_owned(),
            ifname: "ethwe".to_owned(),
            mac: made.mac,
            cidrs: cidrs(&["10.32.0.3/12"]),
        };
        assert_eq!(listed, [expected]);
    });
}
