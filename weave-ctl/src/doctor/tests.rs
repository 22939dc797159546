//! Each check with a report that has the fault, and all of them with one that has none.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::facts::{Answer, Bridge, Data, Disk, Stranger};
use super::text::{self, Colour};
use super::*;

const ONE: &str = "7a:00:00:00:00:01";
const TWO: &str = "7a:00:00:00:00:02";
const THREE: &str = "7a:00:00:00:00:03";

/// The report of h1 in a cluster of three that is well.
fn healthy() -> Value {
    let link = |to: &str, nick: &str, host: u8| {
        json!({"Name": to, "NickName": nick, "Address": format!("172.30.0.{host}:6783"), "Outbound": true,
               "Established": true})
    };
    let (to_one, to_two, to_three) = (link(ONE, "h1", 1), link(TWO, "h2", 2), link(THREE, "h3", 3));
    let peer = |name: &str, nick: &str, id: u16, links: [&Value; 2]| json!({"Name": name, "NickName": nick, "UID": 7, "ShortID": id, "Version": 3, "Connections": links});
    let connection = |name: &str, nick: &str, host: u8| {
        json!({"Address": format!("172.30.0.{host}:6783"), "Outbound": true, "State": "established",
               "Info": "", "Attrs": {"name": "fastdp", "mtu": 1416},
               "Remote": {"Name": name, "NickName": nick, "MTU": 1416, "PathMTU": 1500, "Overlay": "fastdp",
                          "Implementation": format!("weave-ctl {}", crate::VERSION), "OverlaySeconds": 100}})
    };
    let owned = |token: &str, name: &str, nick: &str| {
        json!({"Token": token, "Size": 1024, "Peer": name, "Nickname": nick, "IsKnownPeer": true, "Version": 1,
               "Free": 1000})
    };
    json!({
        "Ready": true, "Version": crate::VERSION,
        "VersionCheck": {"Enabled": false, "Success": false, "NewVersion": "", "NextCheckAt": ""},
        "Router": {
            "Protocol": "weave", "ProtocolMinVersion": 2, "ProtocolMaxVersion": 2, "Encryption": false,
            "PeerDiscovery": true, "Name": ONE, "NickName": "h1", "Port": 6783,
            "Peers": [peer(ONE, "h1", 11, [&to_two, &to_three]), peer(TWO, "h2", 12, [&to_one, &to_three]),
                      peer(THREE, "h3", 13, [&to_one, &to_two])],
            "UnicastRoutes": [{"Dest": ONE, "Via": "00:00:00:00:00:00"}, {"Dest": TWO, "Via": TWO},
                              {"Dest": THREE, "Via": THREE}],
            "BroadcastRoutes": null, "Connections": [connection(TWO, "h2", 2), connection(THREE, "h3", 3)],
            "TerminationCount": 0, "Targets": ["172.30.0.2", "host3"], "OverlayDiagnostics": {},
            "TrustedSubnets": [], "Interface": "weave (via BPF)", "CaptureStats": {}, "MACs": null
        },
        "IPAM": {
            "Paxos": null, "Range": "10.32.0.0/20", "RangeNumIPs": 3072, "ActiveIPs": 1,
            "DefaultSubnet": "10.32.0.0/20",
            "Entries": [owned("10.32.0.0", ONE, "h1"), owned("10.32.4.0", TWO, "h2"), owned("10.32.8.0", THREE, "h3")],
            "PendingClaims": null, "PendingAllocates": null,
            "ClockSkew": [{"Peer": TWO, "Nickname": "h2", "Seconds": 1}, {"Peer": THREE, "Nickname": "h3", "Seconds": -2}]
        },
        "FastDatapath": {
            "Attach": "tcx", "Program": {"Loaded": true, "Version": crate::VERSION},
            "XDP": {"Mode": "off", "Reason": ""}, "MTU": {"Bytes": 1416, "Reason": "auto: underlay 1500 on eth0"},
            "Underlay": [{"Name": "eth0", "MTU": 1500}], "NextHops": [], "Counters": {}
        },
        "Sleeve": {"Counters": {}},
        "Process": {"PID": 4711, "UptimeSeconds": 100, "DataDir": "/var/lib/weave", "OpenFiles": 50,
                    "OpenFilesLimit": 1024, "ConnectionLimit": 200}
    })
}

fn host() -> HostFacts {
    HostFacts {
        version: crate::VERSION.to_owned(),
        root: true,
        address: "127.0.0.1:6784".to_owned(),
        lock_holder: Some(4711),
        kernel: Some((6, 18)),
        bridge_name: "weave".to_owned(),
        bridge: Some(Bridge {
            up: true,
            ports: ["vxlan-6784", "vethwe-sleeve", "vethwepl12"]
                .map(str::to_owned)
                .into(),
            bare: Vec::new(),
        }),
        disk: Some(Disk {
            path: "/var/lib/weave".to_owned(),
            free: 1 << 30,
            total: 2 << 30,
        }),
        ..HostFacts::default()
    }
}

/// Findings for the healthy report with something put in at a place such as `/Router/Targets`; what the
/// place's last key names may be new.
fn with(changes: &[(&str, Value)], facts: &HostFacts) -> Vec<Finding> {
    let mut report = healthy();
    for (place, value) in changes {
        let (parent, key) = place.rsplit_once('/').unwrap();
        let parent = report.pointer_mut(parent).unwrap();
        match key.parse::<usize>() {
            Ok(index) => parent[index] = value.clone(),
            Err(_) => parent[key] = value.clone(),
        }
    }
    let report: Report = serde_json::from_value(report).unwrap();
    findings(Some(&report), facts)
}

fn ids(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.id).collect()
}

/// The only finding; it must have this ID and severity, and say all of these things.
fn only(findings: &[Finding], id: &str, severity: Severity, says: &[&str]) -> Finding {
    assert_eq!(ids(findings), [id], "{findings:#?}");
    let finding = findings.first().unwrap();
    assert_eq!(finding.severity, severity, "{finding:#?}");
    let whole = format!("{} | {}", finding.what, finding.run.join(" | "));
    for word in says {
        assert!(whole.contains(word), "no {word:?} in {whole}");
    }
    finding.clone()
}

/// A fault in the report: its places, and the one finding that it gives.
type Case = (
    &'static str,
    Severity,
    Vec<(&'static str, Value)>,
    &'static [&'static str],
);

fn attempt(error: &str) -> Value {
    json!({"Address": "172.30.0.2:6783", "Outbound": true, "State": "failed", "Info": "", "Attrs": null,
           "Attempt": {"Error": error, "RetrySeconds": 12}})
}

/// Another failing target, besides the connections that are well.
fn failing(error: &str) -> Vec<(&'static str, Value)> {
    let mut connections = healthy()["Router"]["Connections"].clone();
    connections.as_array_mut().unwrap().push(attempt(error));
    vec![("/Router/Connections", connections)]
}

const REMOTE: &str = "/Router/Connections/0/Remote";

fn remote(key: &'static str) -> &'static str {
    match key {
        "Overlay" => "/Router/Connections/0/Remote/Overlay",
        "Fallback" => "/Router/Connections/0/Remote/Fallback",
        "OverlaySeconds" => "/Router/Connections/0/Remote/OverlaySeconds",
        "MTU" => "/Router/Connections/0/Remote/MTU",
        "PathMTU" => "/Router/Connections/0/Remote/PathMTU",
        "Implementation" => "/Router/Connections/0/Remote/Implementation",
        _ => REMOTE,
    }
}

fn cases() -> Vec<Case> {
    use Severity::{Note, Problem, Warning};
    let on_sleeve = |reason: &str| {
        vec![
            (remote("Overlay"), json!("sleeve")),
            (remote("Fallback"), json!(reason)),
        ]
    };
    let skew = |two: i64, three: i64| {
        vec![(
            "/IPAM/ClockSkew",
            json!([{"Peer": TWO, "Nickname": "h2", "Seconds": two},
                   {"Peer": THREE, "Nickname": "h3", "Seconds": three}]),
        )]
    };
    let free = |free: u64| {
        [
            "/IPAM/Entries/0/Free",
            "/IPAM/Entries/1/Free",
            "/IPAM/Entries/2/Free",
        ]
        .map(|place| (place, json!(free)))
        .to_vec()
    };
    let collision =
        json!([{"Name": ONE, "NickName": "clone", "Address": "172.30.0.9:6783", "SecondsAgo": 300}]);
    let waiting = vec![
        ("/IPAM/PendingAllocates", json!(["c1 10.32.0.0/20"])),
        ("/IPAM/PendingSeconds", json!(90)),
    ];
    let mut pending = vec![("/Router/Connections/0/State", json!("pending"))];
    pending.push((remote("Overlay"), json!("none")));
    #[rustfmt::skip]
    let cases: Vec<Case> = vec![
        ("owner-unreachable", Warning,
         vec![("/IPAM/Entries/2/IsKnownPeer", json!(false)), ("/IPAM/Entries/2/UnreachableSeconds", json!(600))],
         &["h3", "10 min", "1024 addresses (33.3%", "weave rmpeer h3, on exactly one host"]),
        ("no-quorum", Problem, vec![("/IPAM/Paxos", json!({"Elector": true, "KnownNodes": 1, "Quorum": 2}))],
         &["2 peers must agree, and 1 are known", "consensus=COUNT"]),
        ("no-ring", Warning, vec![("/IPAM/Paxos", json!({"Elector": false, "KnownNodes": 0, "Quorum": 0}))],
         &["observer"]),
        ("voting", Note, vec![("/IPAM/Paxos", json!({"Elector": true, "KnownNodes": 3, "Quorum": 2}))], &["3 peers"]),
        ("allocation-pending", Problem, waiting, &["1 requests", "90 s", "c1 10.32.0.0/20"]),
        ("space-nearly-exhausted", Warning, free(100), &["300 of 3072"]),
        ("space-exhausted", Problem, free(0), &["0 of 3072"]),
        ("name-collision", Problem, vec![("/Router/Collisions", collision)],
         &["clone at 172.30.0.9:6783", "5 min ago"]),
        ("name-collision", Problem, failing("local \"a(h1)\" and remote \"a(x)\" peer names collision"), &["172.30.0.2"]),
        ("short-id-conflict", Warning, vec![("/Router/Peers/2/ShortID", json!(12))], &["h2, h3", "12"]),
        ("clock-skew", Warning, skew(100, 1), &["the clock of h2 is", "s ahead of most of the 3"]),
        ("clock-skew", Problem, skew(-2000, -1), &["the clock of h2 is 1999 s behind", "timedatectl"]),
        ("clock-skew", Problem, skew(2000, 2001), &["this host's clock is 2000 s behind of most"]),
        ("clock-skew", Problem, failing("host clock skew of -1000s exceeds 900s limit"), &["172.30.0.2"]),
        ("original-peers", Note, vec![(remote("Implementation"), Value::Null)], &["h2 run Weave Net 2"]),
        ("version-mix", Note, vec![(remote("Implementation"), json!("weave-ctl 9.9"))], &["h2 run weave-ctl 9.9"]),
        ("mtu-differs", Warning, vec![(remote("MTU"), json!(1300))], &["1416 here", "1300 on h2", "--mtu 1300"]),
        ("mtu-too-large", Problem, vec![(remote("PathMTU"), json!(1400))], &["1416", "path MTU of 1400 to h2", "--mtu 1350"]),
        ("stuck-on-sleeve", Warning, on_sleeve("no heartbeat received"),
         &["h2 (for 100 s): no heartbeat received", "UDP 6783 and 6784"]),
        ("stuck-on-sleeve", Warning, on_sleeve("the path to 172.30.0.2 is too narrow for an overlay MTU of 1416"),
         &["--mtu auto"]),
        ("on-sleeve", Note, on_sleeve("fastdp cannot encrypt in this version"), &["h2"]),
        ("fast-path-off", Note, vec![("/FastDatapath/Program", json!({"Loaded": false, "Version": "--no-fastdp"}))], &[]),
        ("no-fast-path", Warning, vec![("/FastDatapath/Program", json!({"Loaded": false, "Version": "no rights"}))],
         &["no rights"]),
        ("no-sleeve", Warning, vec![("/Sleeve/Trouble", json!("no TAP"))], &["no TAP"]),
        ("connection-pending", Problem, pending, &["h2 (172.30.0.2:6783) for 100 s"]),
        ("target-unreachable", Warning, failing("connection refused"), &["172.30.0.2:6783 (next try in 12 s): connection refused"]),
        ("target-is-ourselves", Note, failing("cannot connect to ourself"), &["weave forget 172.30.0.2"]),
        ("password-differs", Problem, failing("password specified, but peer requested an unencrypted connection"), &["172.30.0.2"]),
        ("password-differs", Problem, failing("Unable to decrypt TCP msg"), &["WEAVE_PASSWORD"]),
        ("connection-limit", Warning, failing("Connection limit reached (2)"), &["--conn-limit"]),
        ("connection-limit", Warning, vec![("/Process/ConnectionLimit", json!(2))], &["2 connections of at most 2"]),
        ("no-common-overlay", Problem, failing("no overlays in common with peer"), &["172.30.0.2"]),
        ("ring-conflict", Problem, failing("IP allocation was seeded by different peers (received: [a], ours: [b])"),
         &["172.30.0.2", "seeded by different peers", "docs/repair.md"]),
        ("one-sided-connection", Warning, vec![("/Router/Peers/1/Connections/1", json!(
            {"Name": ONE, "NickName": "h1", "Address": "", "Outbound": true, "Established": true}))], &["h3 says so of h2"]),
        ("half-established", Warning, vec![("/Router/Peers/1/Connections/1/Established", json!(false))],
         &["at h3, not yet at h2"]),
        ("no-route", Problem, vec![("/Router/UnicastRoutes/2/Dest", json!(TWO))], &["h3"]),
        ("file-limit", Warning, vec![("/Process/OpenFiles", json!(900))], &["900 of at most 1024"]),
        ("version-differs", Warning, vec![("/Version", json!("9.9")),
            (remote("Implementation"), json!("weave-ctl 9.9")),
            ("/Router/Connections/1/Remote/Implementation", json!("weave-ctl 9.9"))], &["9.9", "--keep-traffic"]),
        ("not-ready", Warning, vec![("/Ready", json!(false))], &[]),
    ];
    cases
}

#[test]
fn a_healthy_cluster_gives_nothing() {
    let found = with(&[], &host());
    assert_eq!(found, []);
    assert!(text::sound(&found));
    assert_eq!(text::for_people(&found, Colour(true)), "nothing to repair\n");
}

#[test]
fn each_fault_in_the_report_gives_its_finding() {
    for (id, severity, changes, says) in cases() {
        only(&with(&changes, &host()), id, severity, says);
    }
}

#[test]
fn each_fault_of_the_host_gives_its_finding() {
    use Severity::{Note, Problem, Warning};
    type Change = fn(&mut HostFacts);
    #[rustfmt::skip]
    let cases: [(&str, Severity, Change, &[&str]); 12] = [
        ("not-root", Note, |f| f.root = false, &["sudo"]),
        ("two-daemons", Problem, |f| f.lock_holder = Some(9), &["4711", "9"]),
        ("other-run-dir", Note, |f| f.lock_holder = None, &["4711"]),
        ("bridge-missing", Problem, |f| f.bridge = None, &["weave"]),
        ("bridge-down", Problem, |f| f.bridge.as_mut().unwrap().up = false, &["ip link set weave up"]),
        ("port-missing", Problem, |f| f.bridge.as_mut().unwrap().ports.retain(|p| p != "vxlan-6784"),
         &["ip link set vxlan-6784 master weave"]),
        ("port-missing", Problem, |f| f.bridge.as_mut().unwrap().ports.retain(|p| p != "vethwe-sleeve"),
         &["vethwe-sleeve"]),
        ("container-unplugged", Problem, |f| f.unplugged.push("vethwepl34".to_owned()), &["vethwepl34"]),
        ("program-detached", Warning, |f| f.bridge.as_mut().unwrap().bare.push("vethwepl12".to_owned()),
         &["vethwepl12"]),
        ("route-overlap", Warning, |f| f.overlap = Some("Network a overlaps b".to_owned()), &["overlaps"]),
        ("disk-full", Warning, |f| f.disk.as_mut().unwrap().free = 10 << 20, &["10 MB of 2048 MB"]),
        ("disk-full", Problem, |f| f.disk.as_mut().unwrap().free = 1 << 20, &["/var/lib/weave"]),
    ];
    for (id, severity, change, says) in cases {
        let mut facts = host();
        change(&mut facts);
        only(&with(&[], &facts), id, severity, says);
    }
}

#[test]
fn without_a_daemon_the_host_is_still_checked() {
    let stopped = || HostFacts {
        answer: Answer::Nobody("connection refused".to_owned()),
        lock_holder: None,
        data: Data::Good,
        ..host()
    };
    let found = findings(None, &stopped());
    only(
        &found,
        "daemon-not-running",
        Severity::Problem,
        &["3 ports", "weave launch --resume"],
    );
    let fresh = HostFacts {
        data: Data::Absent,
        bridge: None,
        ..stopped()
    };
    only(
        &findings(None, &fresh),
        "daemon-not-running",
        Severity::Problem,
        &["none has been here", "weave launch PEER"],
    );
    let all = HostFacts {
        complaint: Some("FATA: it hurts".to_owned()),
        data: Data::Bad("weave.redb is damaged".to_owned()),
        kernel: Some((4, 19)),
        no_bpffs: Some("/sys/fs/bpf/weave".to_owned()),
        no_tun: true,
        no_object: Some("no object".to_owned()),
        stale_pins: vec!["/sys/fs/bpf/weave/links/port-7".to_owned()],
        strangers: vec![Stranger {
            port: "TCP port 6783".to_owned(),
            who: Some("process 12 (nginx)".to_owned()),
        }],
        ..stopped()
    };
    let found = findings(None, &all);
    let expected = [
        "daemon-not-running",
        "port-taken",
        "data-damaged",
        "old-kernel",
        "no-bpffs",
        "no-tun",
        "no-bpf-object",
        "leftovers",
    ];
    assert_eq!(ids(&found), expected, "{found:#?}");
    assert!(found[0].what.ends_with("FATA: it hurts") && found[1].what.ends_with("process 12 (nginx)"));
    let silent = HostFacts {
        answer: Answer::Silence,
        ..host()
    };
    only(
        &findings(None, &silent),
        "daemon-not-answering",
        Severity::Problem,
        &["gives no answer"],
    );
    let foreign = HostFacts {
        answer: Answer::Other("no report".to_owned()),
        ..host()
    };
    only(
        &findings(None, &foreign),
        "not-weave",
        Severity::Problem,
        &["no report"],
    );
}

#[test]
fn all_owners_gone_is_told_once() {
    let entries = json!([{"Token": "10.32.0.0", "Size": 3072, "Peer": "7a:00:00:00:00:09", "Nickname": "gone",
                          "IsKnownPeer": false, "Version": 1, "Free": 3000}]);
    let found = with(&[("/IPAM/Entries", entries)], &host());
    assert!(ids(&found).contains(&"all-owners-unreachable"), "{found:#?}");
    assert!(!ids(&found).contains(&"owner-unreachable"));
    assert!(
        found[0]
            .run
            .iter()
            .any(|step| step.starts_with("weave rmpeer gone")),
        "{found:#?}"
    );
}

#[test]
fn a_nickname_that_two_have_is_not_used_in_commands() {
    let found = with(
        &[
            ("/Router/Peers/2/NickName", json!("h2")),
            ("/IPAM/Entries/2/Nickname", json!("h2")),
            ("/IPAM/Entries/2/IsKnownPeer", json!(false)),
        ],
        &host(),
    );
    assert_eq!(
        ids(&found),
        ["owner-unreachable", "duplicate-nickname"],
        "{found:#?}"
    );
    assert!(
        found[0].run[0].starts_with(&format!("weave rmpeer {THREE}")),
        "{found:#?}"
    );
}

#[test]
fn the_smaller_side_of_a_ring_conflict_gives_way() {
    let conflict = |peers: &[(&str, &str)]| {
        let all: Vec<Value> = peers
            .iter()
            .map(|(peer, nick)| {
                json!({"Peer": peer, "Nickname": nick, "SinceSeconds": 60, "Remedy": "",
                       "Text": "IP allocation was seeded by different peers"})
            })
            .collect();
        ("/IPAM/Conflicts", Value::Array(all))
    };
    let adopts =
        |findings: &[Finding]| -> Vec<Fix> { findings.iter().flat_map(|f| f.safe_fix.clone()).collect() };
    let adopt = |peer: &str| {
        vec![Fix::Adopt {
            peer: peer.to_owned(),
        }]
    };
    // One of three differs: that one is to adopt, not we.
    let found = with(&[conflict(&[(THREE, "h3")])], &host());
    let finding = only(
        &found,
        "ring-conflict",
        Severity::Problem,
        &["with h3 for 60 s", "doctor --fix, on h3"],
    );
    assert_eq!(finding.safe_fix, []);
    // Both others differ from us: we adopt, once.
    let found = with(&[conflict(&[(TWO, "h2"), (THREE, "h3")])], &host());
    assert_eq!(adopts(&found), adopt(TWO));
    // In a tie the higher name does.
    let alone = healthy()["Router"]["Connections"][0].clone();
    let tie = |own: &str| {
        with(
            &[
                ("/Router/Connections", json!([alone])),
                ("/Router/Name", json!(own)),
                conflict(&[(TWO, "h2")]),
            ],
            &host(),
        )
    };
    assert_eq!(adopts(&tie(ONE)), []);
    assert_eq!(adopts(&tie(THREE)), adopt(TWO));
    // An original has no command for it.
    let original = healthy_original();
    let tie = with(
        &[
            ("/Router/Connections", json!([original])),
            conflict(&[(TWO, "h2")]),
        ],
        &host(),
    );
    assert_eq!(adopts(&tie), adopt(TWO));
    // Ranges cannot be adopted.
    let mut range = conflict(&[(TWO, "h2"), (THREE, "h3")]);
    for each in range.1.as_array_mut().unwrap() {
        each["Text"] = json!("Incompatible IP allocation ranges (received: a, ours: b)");
        each["Remedy"] = json!("launch it with the same range");
    }
    let found = with(&[range], &host());
    assert_eq!((ids(&found), adopts(&found)), (vec!["ring-conflict"; 2], vec![]));
    assert_eq!(found[0].run, ["launch it with the same range"]);
}

fn healthy_original() -> Value {
    let mut connection = healthy()["Router"]["Connections"][0].clone();
    connection["Remote"]["Implementation"] = Value::Null;
    connection
}

#[test]
fn a_peer_that_is_only_relayed_is_told_with_the_reason() {
    let mut connections = healthy()["Router"]["Connections"].clone();
    connections[1] = attempt("connection refused");
    connections[1]["Address"] = json!("172.30.0.3:6783");
    let changes = [
        ("/Router/Connections", connections),
        ("/Router/UnicastRoutes/2/Via", json!(TWO)),
        ("/Router/Targets", json!(["172.30.0.2"])),
        (
            "/Router/Peers/0/Connections",
            json!([healthy()["Router"]["Peers"][0]["Connections"][0]]),
        ),
        (
            "/Router/Peers/2/Connections",
            json!([healthy()["Router"]["Peers"][2]["Connections"][1]]),
        ),
    ];
    let found = with(&changes, &host());
    only(
        &found,
        "partial-mesh",
        Severity::Warning,
        &["h3 (through h2): connection refused", "TCP 6783"],
    );
    let quiet: Vec<_> = changes
        .into_iter()
        .chain([("/Router/PeerDiscovery", json!(false))])
        .collect();
    assert_eq!(with(&quiet, &host()), [], "without discovery it is meant so");
}

#[test]
fn targets_are_found_by_name_address_and_port() {
    let report: Report = serde_json::from_value(healthy()).unwrap();
    let mut facts = host();
    facts
        .resolved
        .insert("host3".to_owned(), vec!["172.30.0.3".parse().unwrap()]);
    let mut view = View {
        report: &report,
        facts: &facts,
        names: Names::new(&report),
    };
    assert_eq!(view.target("172.30.0.2:6783").unwrap(), "172.30.0.2");
    assert_eq!(view.target("172.30.0.3:6783").unwrap(), "host3");
    assert_eq!(view.target("172.30.0.2:7000"), None);
    assert_eq!(view.target("nonsense"), None);
    let mut report = report.clone();
    report.router.targets = vec!["172.30.0.2:7000".to_owned(), "host3:7001".to_owned()];
    view.report = &report;
    assert_eq!(view.target("172.30.0.2:7000").unwrap(), "172.30.0.2:7000");
    assert_eq!(view.target("172.30.0.3:7001").unwrap(), "host3:7001");
    assert_eq!(view.target("172.30.0.2:6783"), None);
}

#[test]
fn what_is_printed() {
    let found = with(
        &[
            ("/IPAM/Entries/2/IsKnownPeer", json!(false)),
            ("/Process/OpenFiles", json!(900)),
            (remote("Implementation"), Value::Null),
        ],
        &HostFacts {
            unplugged: vec!["vethwepl34".to_owned()],
            ..host()
        },
    );
    let text = text::for_people(&found, Colour(false));
    let heads: Vec<&str> = text.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(
        heads,
        [
            "PROBLEMS",
            "",
            "WARNINGS",
            "",
            "NOTES",
            "",
            "1 problem, 2 warnings; 1 can be mended with 'weave-ctl doctor --fix'"
        ]
    );
    assert!(!text.contains('\x1b') && text::for_people(&found, Colour(true)).contains('\x1b'));
    let json: Value = serde_json::from_str(&text::for_scripts(&found, None).unwrap()).unwrap();
    assert_eq!(
        (&json["problems"], &json["warnings"], &json["notes"]),
        (&json!(1), &json!(2), &json!(1))
    );
    let first = &json["findings"][0];
    assert_eq!(
        (&first["id"], &first["severity"]),
        (&json!("container-unplugged"), &json!("problem"))
    );
    assert_eq!(
        first["safe_fix"],
        json!([{"action": "replug", "port": "vethwepl34"}])
    );
    assert_eq!(json.get("fixed"), None);
}

#[test]
fn lists_and_times_stay_short() {
    let many: Vec<String> = (1..8).map(|i| i.to_string()).collect();
    assert_eq!(list(&many), "1, 2, 3, 4, 5 and 2 more");
    assert_eq!(list(&many[..5]), "1, 2, 3, 4, 5");
    assert_eq!(list(&[]), "");
    assert_eq!(
        [5, 119, 600, 7200, 172_800].map(seconds),
        ["5 s", "119 s", "10 min", "2 h", "2 days"]
    );
}

#[test]
fn the_report_of_an_original_can_be_looked_at() {
    for scenario in crate::api::golden::SCENARIOS {
        let text = crate::api::golden::text(&format!("{scenario}.report.json"));
        let report: Report = serde_json::from_str(&text).unwrap();
        let found = findings(Some(&report), &host());
        assert!(ids(&found).contains(&"other-daemon"), "{scenario}: {found:#?}");
    }
}
