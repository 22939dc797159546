//! The TAP of sleeve for real: a bridge, a VXLAN device, a container, and the test in the place of the
//! workers that read and write the TAP. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use weave_common::{FLOOD_SLEEVE, FloodHops, LEAF_TAG, MacEntry, NextHop, Sender, SleevePrefix};
use weave_ctl::net::bridge::{BridgeConfig, PortFlags, add_overlay_port, ensure, ensure_vxlan};
use weave_ctl::net::{Mac, Netlink, Netns};
use weave_ctl::overlay::fastdp::{datapath::Datapath, xdp};
use weave_ctl::overlay::forwarding::Tables;

const TAP: &str = "vethwe-sleeve";
const PORT: &str = "vethwepl1";
/// Local experimental Ethertype 1 (IEEE 802).
const PROTOCOL: u16 = 0x88b5;
/// `struct virtio_net_hdr`.
const VNET: usize = 10;
const PREFIX: usize = size_of::<SleevePrefix>();
const PATIENCE: Duration = Duration::from_secs(20);
const A: u16 = 0x0a1;
const B: u16 = 0x0b2;
/// On the fast path, at 127.0.0.1.
const NEIGHBOUR: u16 = 0xddd;
const MAC_A: Mac = [2, 0, 0, 0, 0, 0xa];
const MAC_B: Mac = [2, 0, 0, 0, 0, 0xb];

/// One host with one container.
struct Host {
    container: Netns,
    tap: Arc<File>,
    datapath: Datapath,
    ns: Netns,
    _dir: PinDir,
}

struct PinDir(PathBuf);

impl Drop for PinDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn new_netns() -> Netns {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        Netns::current().unwrap()
    });
    made.join().unwrap()
}

fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: needs root for namespaces, TAP devices and BPF");
    }
    root
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {args}");
}

/// A TAP as the workers have it: with offloads, read and written with `struct virtio_net_hdr`.
fn open_tap() -> File {
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // SAFETY: the first request takes a pointer to `ifreq`, valid for the call, the second a number.
    let results = unsafe {
        [
            libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &request),
            libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, offloads),
        ]
    };
    assert_eq!(results, [0, 0]);
    tap
}

/// Host `own`, whose container has the address `mac`; `peers` are reached by sleeve, and floods of us
/// and of them go there as well.
async fn host(test: &str, own: u16, mac: Mac, peers: &[u16]) -> Host {
    let (ns, container) = (new_netns(), new_netns());
    let dir = PathBuf::from(format!(
        "/sys/fs/bpf/weave-tap-{}-{test}-{own:x}",
        std::process::id()
    ));
    let pins = PinDir(dir.clone());
    let container_fd = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        container.as_fd().as_raw_fd()
    );
    let mut tables = Tables::default();
    let mut flood = FloodHops {
        count: 1,
        ..FloodHops::default()
    };
    flood.hops[0] = FLOOD_SLEEVE;
    tables.floods.insert(own.into(), flood);
    for peer in peers {
        let hop = NextHop {
            flags: NextHop::USABLE | NextHop::SLEEVE,
            via: (*peer).into(),
            mtu: 1400,
            ..NextHop::default()
        };
        tables.peers.insert((*peer).into(), hop);
        flood.from = NEIGHBOUR.into();
        tables.floods.insert((*peer).into(), flood);
    }
    let short_id = NEIGHBOUR.into();
    tables.senders = [
        ([127, 0, 0, 1], Sender { short_id }),
        ([127, 0, 0, 2], Sender { short_id: 0xeee }),
    ]
    .into();
    let outside = ns.clone();
    let make = move || async move {
        ip("link set lo up");
        let nl = Netlink::open(&outside).await.unwrap();
        let config = BridgeConfig {
            name: "weave".to_owned(),
            mac: [2, 0, 0, 0, 1, mac[5]],
            mtu: 1400,
        };
        let bridge = ensure(&nl, &config).await.unwrap();
        let vxlan = ensure_vxlan(&nl, "vxlan-6784", 6784, &bridge, true)
            .await
            .unwrap();
        let tap = open_tap();
        let link = nl.link(TAP).await.unwrap();
        let mut datapath = Datapath::load(&dir, xdp::Wanted::Off).unwrap();
        datapath.set_short_id(own).unwrap();
        datapath.set_local_ips(&[[127, 0, 0, 1].into()]).unwrap();
        datapath.apply(&tables).unwrap();
        datapath.enable(true).unwrap();
        datapath.add_vxlan("vxlan-6784", vxlan.index, 6784).unwrap();
        datapath.set_sleeve(TAP, link.index).unwrap();
        let flags = PortFlags {
            isolated: true,
            flood: false,
        };
        add_overlay_port(&nl, &link, &bridge, flags).await.unwrap();
        ip(&format!(
            "link add {PORT} type veth peer name c0 netns {container_fd}"
        ));
        ip(&format!("link set {PORT} master weave up"));
        datapath
            .add_port(PORT, nl.link(PORT).await.unwrap().index)
            .unwrap();
        (tap, datapath)
    };
    let (tap, datapath) = ns.run_future(make).await.unwrap();
    let last = mac[5];
    container
        .run(move || {
            let mac = weave_ctl::net::mac_text(mac);
            ip(&format!("link set c0 address {mac} mtu 1400 up"));
            ip(&format!("addr add 10.32.0.{last}/24 dev c0"));
        })
        .await
        .unwrap();
    // The bridge takes up to a second to notice the other end.
    ns.run(|| {
        let deadline = Instant::now() + PATIENCE;
        let show = || {
            Command::new("ip")
                .args(["-d", "link", "show", PORT])
                .output()
                .unwrap()
        };
        while !String::from_utf8_lossy(&show().stdout).contains("state forwarding") {
            assert!(Instant::now() < deadline, "{PORT} does not forward");
            thread::sleep(Duration::from_millis(5));
        }
    })
    .await
    .unwrap();
    Host {
        container,
        tap: Arc::new(tap),
        datapath,
        ns,
        _dir: pins,
    }
}

fn readable(fd: impl AsFd, patience: Duration) -> bool {
    let mut wanted = libc::pollfd {
        fd: fd.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid `pollfd`.
    unsafe { libc::poll(&raw mut wanted, 1, patience.as_millis() as i32) > 0 }
}

fn vnet_word(header: &[u8], word: usize) -> u16 {
    u16::from_ne_bytes([header[word], header[word + 1]])
}

fn set_vnet_word(header: &mut [u8], word: usize, value: u16) {
    header[word..word + 2].copy_from_slice(&value.to_ne_bytes());
}

/// What of the header says: checksum to be filled in, segments of `gso_size` bytes.
const NEEDS_CSUM: u8 = 1;
const GSO_TYPE: usize = 1;
const HDR_LEN: usize = 2;
const GSO_SIZE: usize = 4;
const CSUM_START: usize = 6;
const CSUM_OFFSET: usize = 8;

impl Host {
    /// The next frame with a prefix, all of it but for the vnet header.
    fn read(&self) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 17];
        assert!(readable(&*self.tap, PATIENCE), "nothing from the TAP");
        let len = (&*self.tap).read(&mut buffer).unwrap();
        buffer[VNET..len].to_vec()
    }

    /// A frame by VXLAN from a neighbour's address, between two peers.
    async fn vxlan(&self, from: &'static str, (dst, src): (u16, u16), ttl: u32, frame: &[u8]) {
        let vni = (u32::from(dst) << 12 | u32::from(src)) << 8;
        let packet = [&[8, 0, 0, 0][..], &vni.to_be_bytes(), frame].concat();
        self.ns
            .run(move || {
                let socket = UdpSocket::bind((from, 0)).unwrap();
                socket.set_ttl(ttl).unwrap();
                socket.send_to(&packet, "127.0.0.1:6784").unwrap();
            })
            .await
            .unwrap();
    }

    fn write(&self, frame: &[u8]) {
        let packet = [&[0; VNET][..], frame].concat();
        assert_eq!((&*self.tap).write(&packet).unwrap(), packet.len());
    }

    fn mac(&self, mac: Mac) -> Option<MacEntry> {
        let macs: BTreeMap<_, _> = self.datapath.macs().unwrap().into_iter().collect();
        macs.into_iter().find(|(key, _)| key.mac == mac).map(|(_, e)| e)
    }

    /// A packet socket on the container's interface.
    async fn socket(&self) -> File {
        let open = move || {
            let protocol = (libc::ETH_P_ALL as u16).to_be();
            let on = 1_i32;
            // SAFETY: plain system calls; `address` and `on` are valid for the lengths given.
            unsafe {
                let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
                assert!(fd >= 0);
                for option in [libc::PACKET_IGNORE_OUTGOING, libc::PACKET_AUXDATA] {
                    let set = libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const on).cast(), 4);
                    assert_eq!(set, 0);
                }
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                address.sll_family = libc::AF_PACKET as u16;
                address.sll_protocol = protocol;
                address.sll_ifindex = nix::net::if_::if_nametoindex("c0").unwrap() as i32;
                let len = size_of::<libc::sockaddr_ll>() as u32;
                assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0);
                File::from(OwnedFd::from_raw_fd(fd))
            }
        };
        self.container.run(open).await.unwrap()
    }
}

/// The container's next frame, with the VLAN tag that the kernel keeps beside it.
fn receive(socket: &File) -> Vec<u8> {
    assert!(readable(socket, PATIENCE), "nothing for the container");
    let mut buffer = vec![0; 4096];
    let mut control = [0_u64; 16];
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: `message` names buffers that live through the call; the kernel fills in control data of
    // the layout that the macros walk.
    let tag = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let len = libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0);
        buffer.truncate(usize::try_from(len).unwrap());
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        assert!(!header.is_null() && (*header).cmsg_type == libc::PACKET_AUXDATA);
        let data = libc::CMSG_DATA(header)
            .cast::<libc::tpacket_auxdata>()
            .read_unaligned();
        (data.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some(data.tp_vlan_tci)
    };
    tag.map_or(buffer.clone(), |tag| with_tag(&buffer, tag))
}

fn frame(dst: Mac, src: Mac, text: &str) -> Vec<u8> {
    let mut frame = [&dst[..], &src[..], &PROTOCOL.to_be_bytes(), text.as_bytes()].concat();
    frame.resize(60, 0);
    frame
}

fn with_tag(frame: &[u8], vid: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &vid.to_be_bytes(), &frame[12..]].concat()
}

fn with_prefix(flags: u16, dst: u16, src: u16, frame: &[u8]) -> Vec<u8> {
    let words = [flags, dst, src].map(u16::to_ne_bytes).concat();
    [&SleevePrefix::MAGIC[..], &words, frame].concat()
}

#[tokio::test]
async fn frames_go_through_the_tap_unharmed() {
    if !is_root("frames_go_through_the_tap_unharmed") {
        return;
    }
    let host = host("frames", A, MAC_A, &[B]).await;
    let socket = host.socket().await;

    let own_flood = frame([0xff; 6], MAC_A, "own flood");
    (&socket).write_all(&own_flood).unwrap();
    assert_eq!(
        host.read(),
        with_prefix(0, A, A, &own_flood),
        "dst is ourselves for a flood"
    );

    let flood = frame([0xff; 6], MAC_B, "their flood");
    host.write(&with_tag(&flood, B));
    assert_eq!(
        host.read(),
        with_prefix(0, A, B, &flood),
        "on along the tree of its origin"
    );
    assert_eq!(
        receive(&socket),
        flood,
        "the container's copy has neither tag nor prefix"
    );
    let learnt = host.mac(MAC_B).expect("learnt");
    assert_eq!((learnt.flags, learnt.peer), (0, B));

    let unicast = frame(MAC_A, MAC_B, "to the container");
    host.write(&with_tag(&unicast, B));
    assert_eq!(receive(&socket), unicast);
    host.write(&with_tag(&with_tag(&unicast, 5), B));
    assert_eq!(
        receive(&socket),
        with_tag(&unicast, 5),
        "the container's own VLAN survives"
    );

    let reply = frame(MAC_B, MAC_A, "reply");
    (&socket).write_all(&reply).unwrap();
    assert_eq!(host.read(), with_prefix(0, B, A, &reply));
    (&socket).write_all(&with_tag(&reply, 5)).unwrap();
    let tagged = with_prefix(SleevePrefix::TAGGED, B, A, &reply);
    assert_eq!(
        host.read(),
        with_tag(&tagged, 5),
        "the TAP puts the tag 12 bytes after the start"
    );

    // A neighbour on the fast path sends what is for one on sleeve.
    let relayed = frame(MAC_B, [2, 0, 0, 0, 0, 0xd], "relayed");
    host.vxlan("127.0.0.1", (B, NEIGHBOUR), 64, &relayed).await;
    assert_eq!(host.read(), with_prefix(0, B, NEIGHBOUR, &relayed));

    for (vid, src) in [(A, [2, 0, 0, 0, 0, 1]), (0x999, [2, 0, 0, 0, 0, 2])] {
        host.write(&with_tag(&frame(MAC_A, src, "refused"), vid));
        assert!(host.mac(src).is_none(), "from ourselves or a stranger: {vid:x}");
    }
    host.write(&with_tag(&unicast, B));
    assert_eq!(receive(&socket), unicast, "and nothing of those before it");
    let counters = host.datapath.counters().unwrap();
    assert_eq!((counters.drop_own_source, counters.drop_unknown_source), (1, 1));
    assert_eq!((counters.to_sleeve, counters.from_sleeve), (2, 3));
    assert_eq!((counters.flood_sleeve, counters.relay_sleeve), (2, 1));
}

/// Topologies that disagree must not send a frame round in circles: it goes on only if it comes from the
/// neighbour that the tree of its origin says, and not for ever.
#[tokio::test]
async fn floods_that_go_astray_go_no_further() {
    if !is_root("floods_that_go_astray_go_no_further") {
        return;
    }
    let host = host("astray", A, MAC_A, &[B]).await;
    let socket = host.socket().await;
    let flood = |text| frame([0xff; 6], MAC_B, text);
    let here = async |text, from, ttl| {
        host.vxlan(from, (A, B), ttl, &flood(text)).await;
        assert_eq!(receive(&socket), flood(text), "our own containers have it anyway");
    };
    here("from another", "127.0.0.2", 64).await;
    here("for too long", "127.0.0.1", 1).await;
    host.write(&with_tag(&flood("by sleeve from another"), B | LEAF_TAG));
    assert_eq!(receive(&socket), flood("by sleeve from another"));
    here("in order", "127.0.0.1", 64).await;
    assert_eq!(host.read(), with_prefix(0, A, B, &flood("in order")));
    let counters = host.datapath.counters().unwrap();
    assert_eq!((counters.flood_astray, counters.drop_ttl), (2, 1));
}

/// What a worker does to a frame between two TAPs. Returns whether it was a super-packet.
fn carry(packet: &[u8], to: &File) -> bool {
    let (vnet, rest) = packet.split_at(VNET);
    let (prefix, frame) = rest.split_at(PREFIX);
    assert_eq!(prefix[..2], SleevePrefix::MAGIC);
    let src = u16::from_ne_bytes([prefix[6], prefix[7]]);
    let mut vnet = vnet.to_vec();
    let whole = vnet[GSO_TYPE] != 0 && vnet_word(&vnet, GSO_SIZE) > 0 && frame.len() > 3000;
    if vnet[0] & NEEDS_CSUM != 0 {
        let start = vnet_word(&vnet, CSUM_START);
        assert_eq!(usize::from(start), PREFIX + 14 + 20, "counted from the prefix");
        assert_eq!(vnet_word(&vnet, CSUM_OFFSET), 16, "TCP");
        set_vnet_word(&mut vnet, CSUM_START, start - PREFIX as u16 + 4);
    }
    if vnet[GSO_TYPE] != 0 {
        let header = vnet_word(&vnet, HDR_LEN);
        assert!(usize::from(header) >= PREFIX + 14 + 20 + 20, "{header}");
        set_vnet_word(&mut vnet, HDR_LEN, 14 + 4 + 20 + 20);
    }
    let packet = [vnet, with_tag(frame, src)].concat();
    match { to }.write(&packet) {
        Ok(len) => assert_eq!(len, packet.len()),
        Err(error) => panic!("{error} on {} bytes", packet.len()),
    }
    whole
}

#[tokio::test]
async fn a_tcp_stream_crosses_in_super_packets() {
    if !is_root("a_tcp_stream_crosses_in_super_packets") {
        return;
    }
    let a = host("tcp", A, MAC_A, &[B]).await;
    let b = host("tcp", B, MAC_B, &[A]).await;
    let ended = Arc::new(AtomicBool::new(false));
    let pump = |from: &Host, to: &Host| {
        let (from, to, ended) = (from.tap.clone(), to.tap.clone(), ended.clone());
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 17];
            let mut whole = 0;
            while !ended.load(Ordering::Relaxed) {
                if readable(&*from, Duration::from_millis(100)) {
                    let len = (&*from).read(&mut buffer).unwrap();
                    whole += usize::from(carry(&buffer[..len], &to));
                }
            }
            whole
        })
    };
    let pumps = [pump(&a, &b), pump(&b, &a)];
    let total = 4 << 20;
    let listener = b
        .container
        .run(|| TcpListener::bind("10.32.0.11:7000").unwrap())
        .await
        .unwrap();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    let data: Vec<u8> = (0..total)
        .map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let sent = data.clone();
    a.container
        .run(move || {
            let mut stream = connect("10.32.0.11:7000");
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&sent).unwrap();
        })
        .await
        .unwrap();
    assert!(receiver.join().unwrap() == data, "all bytes arrive as they were");
    ended.store(true, Ordering::Relaxed);
    let [there, _] = pumps.map(|pump| pump.join().unwrap());
    assert!(there > 10, "{there} super-packets");
    let peer = |host: &Host, mac| host.mac(mac).map(|entry| (entry.flags, entry.peer));
    assert_eq!(peer(&a, MAC_B), Some((0, B)));
    assert_eq!(peer(&b, MAC_A), Some((0, A)));
    assert!(b.datapath.counters().unwrap().from_sleeve > 10, "past the bridge");
}

/// Also while the first ARP request was too early for the other end's port.
fn connect(to: &str) -> TcpStream {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&to.parse().unwrap(), PATIENCE) {
            Ok(stream) => return stream,
            Err(error) if error.kind() == ErrorKind::HostUnreachable && start.elapsed() < PATIENCE => {}
            Err(error) => panic!("{error}"),
        }
    }
}
