//! Everything the daemon tells about itself, with the key order of the original's JSON (control.md 3.4).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::fastdp_report::{FastDatapath, NextHop, Overlay, Program, Underlay, Xdp};
pub use super::health_report::{Attempt, ClockSkew, Collision, IpamConflict, LostAddress, Process, Remote};
pub use super::sleeve_report::Sleeve;
pub use super::traffic_report::{Channel, Gossip, MapFill, Traffic, Volume};

/// The whole report. Sections of disabled components are absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// May `/status` answer 200?
    pub ready: bool,
    /// Version of this program.
    pub version: String,
    /// State of the check for newer versions.
    pub version_check: VersionCheck,
    /// Mesh and overlays.
    pub router: Router,
    /// IP allocation.
    #[serde(rename = "IPAM", default, skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// WeaveDNS.
    #[serde(rename = "DNS", default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// The Docker API proxy, while it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// Docker's network plugins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<Plugin>,
    /// Not in the original: the BPF fast path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast_datapath: Option<FastDatapath>,
    /// Not in the original: sleeve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleeve: Option<Sleeve>,
    /// Not in the original: gossip by channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gossip: Option<Gossip>,
    /// Not in the original: the process itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
}

/// The Docker API proxy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Proxy {
    /// Where it listens, in the form of `DOCKER_HOST`.
    #[serde(with = "nullable")]
    pub addresses: Vec<String>,
}

/// Docker's network plugins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Plugin {
    /// How they were asked for.
    pub config: PluginConfig,
    /// Name of the driver without addresses.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub driver_name: String,
    /// Name of the drivers with addresses.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mesh_driver_name: String,
}

/// How Docker's network plugins were asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PluginConfig {
    /// Path of the socket; empty: none.
    pub socket: String,
    /// Path of the other socket; empty: none.
    pub mesh_socket: String,
    /// As legacy plugins.
    pub enable: bool,
    /// As a managed plugin.
    #[serde(rename = "EnableV2")]
    pub enable_v2: bool,
    /// Multicast is routed in the managed plugin's networks.
    #[serde(rename = "EnableV2Multicast")]
    pub enable_v2_multicast: bool,
    /// Containers on their networks get names.
    #[serde(rename = "DNS")]
    pub dns: bool,
    /// Where containers get addresses from unless their network has a subnet of its own.
    pub default_subnet: String,
    /// Of the host.
    pub proc_path: String,
}

/// State of the check for newer versions; its default is "disabled".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VersionCheck {
    /// Is it done at all?
    pub enabled: bool,
    /// Did the latest one succeed?
    pub success: bool,
    /// Empty when ours is the newest.
    pub new_version: String,
    /// RFC 3339.
    pub next_check_at: String,
}

impl Default for VersionCheck {
    fn default() -> Self {
        Self {
            enabled: false,
            success: false,
            new_version: String::new(),
            next_check_at: "0001-01-01T00:00:00Z".to_owned(),
        }
    }
}

/// Mesh and overlays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Router {
    /// Always `weave`.
    pub protocol: String,
    /// Lowest mesh protocol spoken.
    pub protocol_min_version: u8,
    /// Highest mesh protocol spoken.
    pub protocol_max_version: u8,
    /// Was a password given?
    pub encryption: bool,
    /// Do we dial peers that others told us of?
    pub peer_discovery: bool,
    /// Our peer name.
    pub name: String,
    /// Our nickname.
    pub nick_name: String,
    /// TCP port of the mesh.
    pub port: u16,
    /// All known peers, ourselves included.
    #[serde(with = "nullable")]
    pub peers: Vec<Peer>,
    /// Next hop for each peer.
    #[serde(with = "nullable")]
    pub unicast_routes: Vec<UnicastRoute>,
    /// Next hops for broadcasts of each peer.
    #[serde(with = "nullable")]
    pub broadcast_routes: Vec<BroadcastRoute>,
    /// Our connections and attempts.
    #[serde(with = "nullable")]
    pub connections: Vec<Connection>,
    /// Connections ended since the start (not those to ourselves).
    pub termination_count: u64,
    /// Peers as given to `launch` and `connect`.
    #[serde(with = "nullable")]
    pub targets: Vec<String>,
    /// By overlay name; `null` for `sleeve`.
    pub overlay_diagnostics: BTreeMap<String, Value>,
    /// Subnets over which nothing is encrypted; `[]` when empty.
    pub trusted_subnets: Vec<String>,
    /// How frames get in and out of the bridge.
    pub interface: String,
    /// Counters of that interface.
    pub capture_stats: BTreeMap<String, u64>,
    /// Learned addresses.
    #[serde(rename = "MACs", with = "nullable")]
    pub macs: Vec<Mac>,
    /// Not in the original: why we have another name than at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed: Option<String>,
    /// Not in the original: peers with our own name, met within the last ten minutes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collisions: Vec<Collision>,
}

/// A known peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Peer {
    /// Peer name.
    pub name: String,
    /// Nickname.
    pub nick_name: String,
    /// Incarnation.
    #[serde(rename = "UID")]
    pub uid: u64,
    /// Number inside a VXLAN VNI.
    #[serde(rename = "ShortID")]
    pub short_id: u16,
    /// Version of its connection list.
    pub version: u64,
    /// Its connections.
    #[serde(with = "nullable")]
    pub connections: Vec<PeerConnection>,
}

/// A connection as its own peer tells.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerConnection {
    /// The other end.
    pub name: String,
    /// Nickname of the other end.
    pub nick_name: String,
    /// `ip:port` of the other end.
    pub address: String,
    /// Dialled by the peer whose list this is.
    pub outbound: bool,
    /// Established at that peer.
    pub established: bool,
}

/// Next hop of unicasts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UnicastRoute {
    /// Peer name.
    pub dest: String,
    /// Peer name; `00:00:00:00:00:00` for ourselves.
    pub via: String,
}

/// Next hops of one peer's broadcasts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BroadcastRoute {
    /// Peer name.
    pub source: String,
    /// Peer names.
    #[serde(with = "nullable")]
    pub via: Vec<String>,
}

/// One of our connections, or an attempt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Connection {
    /// `ip:port`.
    pub address: String,
    /// We dialled.
    pub outbound: bool,
    /// See [`State`].
    pub state: State,
    /// See the table in cli.md 4.12; [`Connection::peer_info`] and [`Connection::failed_info`] write it.
    pub info: String,
    /// `name`, `mtu`, `encrypted`; none for attempts.
    pub attrs: Option<BTreeMap<String, Value>>,
    /// Not in the original: more about the other end, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    /// Not in the original: more about an attempt that failed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
}

impl Connection {
    /// `Info` of a pending or established connection. `encrypted` is `None` without a password;
    /// `overlay` is `fastdp`, `sleeve` or `none`; `peer` is `NAME(NICK)`.
    #[must_use]
    pub fn peer_info(encrypted: Option<bool>, overlay: &str, peer: &str) -> String {
        let seal = match encrypted {
            None => "",
            Some(true) => "encrypted   ",
            Some(false) => "unencrypted ",
        };
        format!("{seal}{overlay:<6} {peer}")
    }

    /// The overlay's name among the attributes.
    #[must_use]
    pub fn overlay(&self) -> Option<&str> {
        self.attrs.as_ref()?.get("name")?.as_str()
    }

    /// `Info` of a failed attempt; `retry` is `None` when there will be no other.
    #[must_use]
    pub fn failed_info(error: &str, retry: Option<std::time::SystemTime>) -> String {
        let retry = retry.map_or_else(|| "never".to_owned(), super::calendar::with_zone);
        format!("{error}, retry: {retry}")
    }
}

/// State of a connection, in the order in which they are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Both ends have it, and the overlay carries.
    Established,
    /// Handshake done.
    Pending,
    /// Dialling again after an error.
    Retrying,
    /// Waiting to dial again.
    Failed,
    /// Dialling for the first time.
    #[default]
    Connecting,
}

impl State {
    /// All, in the order of the summary.
    pub const ALL: [State; 5] = [
        Self::Established,
        Self::Pending,
        Self::Retrying,
        Self::Failed,
        Self::Connecting,
    ];

    /// As shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Pending => "pending",
            Self::Retrying => "retrying",
            Self::Failed => "failed",
            Self::Connecting => "connecting",
        }
    }
}

/// A learned address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Mac {
    /// MAC address.
    pub mac: String,
    /// Peer behind which it lives.
    pub name: String,
    /// Nickname of that peer.
    pub nick_name: String,
    /// RFC 3339.
    pub last_seen: String,
}

/// IP allocation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ipam {
    /// Only while consensus is awaited.
    pub paxos: Option<Paxos>,
    /// The universe, as CIDR.
    pub range: String,
    /// Its number of addresses.
    #[serde(rename = "RangeNumIPs")]
    pub range_num_ips: u64,
    /// Addresses in use here, inside the universe.
    #[serde(rename = "ActiveIPs")]
    pub active_ips: u64,
    /// CIDR.
    pub default_subnet: String,
    /// The ring, a wrapped range split in two.
    #[serde(with = "nullable")]
    pub entries: Vec<RingEntry>,
    /// Waiting claims.
    #[serde(with = "nullable")]
    pub pending_claims: Vec<PendingClaim>,
    /// Waiting allocations, `ID SUBNET`.
    #[serde(with = "nullable")]
    pub pending_allocates: Vec<String>,
    /// Not in the original: for how long the oldest of those has waited, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_seconds: Option<u64>,
    /// Not in the original: `--reclaim-after`, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaim_after_seconds: Option<u64>,
    /// Not in the original: no new addresses, as no majority of ring owners is in sight and others may take
    /// ours over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withheld: bool,
    /// Not in the original: neighbours whose ring cannot be merged with ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<IpamConflict>,
    /// Not in the original: addresses of containers here that another peer owns and uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LostAddress>,
    /// Not in the original: clocks of neighbours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clock_skew: Vec<ClockSkew>,
}

/// State of the vote.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Paxos {
    /// False for an observer.
    pub elector: bool,
    /// Nodes in the Paxos map.
    pub known_nodes: u64,
    /// Votes needed.
    pub quorum: u64,
}

/// One range of the ring.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RingEntry {
    /// First address.
    pub token: String,
    /// Number of addresses.
    pub size: u64,
    /// Owner's peer name.
    pub peer: String,
    /// Owner's nickname, as far as known.
    pub nickname: String,
    /// Does the router know the owner?
    pub is_known_peer: bool,
    /// Version of the entry.
    pub version: u64,
    /// Not in the original: addresses in it that are free, as its owner tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
    /// Not in the original: for how long the owner has been unknown to the router, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable_seconds: Option<u64>,
}

/// A waiting claim.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PendingClaim {
    /// Who claims.
    pub ident: String,
    /// What is claimed.
    #[serde(rename = "CIDR")]
    pub cidr: ClaimedCidr,
}

/// The address of a waiting claim.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ClaimedCidr {
    /// Address.
    pub addr: String,
    /// Prefix length.
    pub prefix_len: u8,
}

/// WeaveDNS.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Dns {
    /// Local domain, with the final dot.
    pub domain: String,
    /// Upstream servers.
    #[serde(with = "nullable")]
    pub upstream: Vec<String>,
    /// Listen address.
    pub address: String,
    /// Seconds.
    #[serde(rename = "TTL")]
    pub ttl: u32,
    /// All entries, tombstones included.
    #[serde(with = "nullable")]
    pub entries: Vec<DnsEntry>,
    /// Live entries of this peer, where the entries themselves were not asked for.
    #[serde(skip)]
    pub own_live: Option<usize>,
    /// Not in the original: queries since the start, by what became of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub queries: BTreeMap<String, u64>,
}

/// A name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DnsEntry {
    /// With the final dot.
    pub hostname: String,
    /// Peer name.
    pub origin: String,
    /// Full ID.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    /// Address.
    pub address: String,
    /// Version.
    pub version: u64,
    /// Unix time of deletion; 0 while it lives.
    pub tombstone: i64,
}

impl Report {
    /// JSON with an indent of four and no final newline; `<`, `>` and `&` escaped as in the original.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut out = Vec::new();
        let layout = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        self.serialize(&mut serde_json::Serializer::with_formatter(&mut out, layout))?;
        Ok(escape_html(&String::from_utf8_lossy(&out)))
    }
}

/// These characters can only stand inside strings of a JSON text.
pub(super) fn escape_html(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => out.push(c),
        }
    }
    out
}

/// An empty list is `null`.
pub(super) mod nullable {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(list: &Vec<T>, serializer: S) -> Result<S::Ok, S::Error> {
        if list.is_empty() {
            return serializer.serialize_none();
        }
        list.serialize(serializer)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Vec<T>, D::Error> {
        Ok(Option::deserialize(d)?.unwrap_or_default())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::golden;
    use super::*;

    #[test]
    fn json_is_the_originals() {
        for scenario in golden::SCENARIOS {
            let text = golden::text(&format!("{scenario}.report.json"));
            let report: Report = serde_json::from_str(&text).unwrap();
            assert_eq!(report.to_json().unwrap(), text, "{scenario}");
        }
    }

    #[test]
    fn own_data_comes_last_and_only_when_there_is_some() {
        let report = Report {
            fast_datapath: Some(FastDatapath::default()),
            ..Report::default()
        };
        let json = report.to_json().unwrap();
        let keys: Vec<&str> = json
            .lines()
            .filter_map(|l| l.strip_prefix("    \"")?.split('"').next())
            .collect();
        assert_eq!(
            keys,
            ["Ready", "Version", "VersionCheck", "Router", "FastDatapath"]
        );
    }

    #[test]
    fn info_texts() {
        assert_eq!(Connection::peer_info(None, "sleeve", "n(k)"), "sleeve n(k)");
        assert_eq!(Connection::peer_info(None, "none", "n(k)"), "none   n(k)");
        assert_eq!(
            Connection::peer_info(Some(true), "fastdp", "n(k)"),
            "encrypted   fastdp n(k)"
        );
        assert_eq!(
            Connection::peer_info(Some(false), "sleeve", "n(k)"),
            "unencrypted sleeve n(k)"
        );
        assert_eq!(Connection::failed_info("no", None), "no, retry: never");
    }
}
