//! On a file that Weave Net 2.8.1 has written: two seeds, three containers, an anonymous address, an exposed one.

use std::net::Ipv4Addr;

use super::*;

const FILE: &[u8] = include_bytes!("testdata/weavedata.db");

fn name(text: &str) -> PeerName {
    text.parse().unwrap()
}

fn records(legacy: &Legacy) -> Vec<(String, bool, Vec<String>)> {
    let owned = &legacy.ipam.as_ref().unwrap().owned;
    let mut records: Vec<_> = owned
        .values()
        .map(|r| {
            let cidrs = r
                .cidrs
                .iter()
                .map(|c| format!("{}/{}", Ipv4Addr::from(c.addr), c.prefix_len));
            (r.id.clone(), r.is_container, cidrs.collect())
        })
        .collect();
    records.sort();
    records
}

#[test]
fn all_that_the_original_kept() {
    let legacy = parse(FILE).unwrap();
    let ipam = legacy.ipam.as_ref().unwrap();
    let (one, two) = (name("7a:00:00:00:00:01"), name("7a:00:00:00:00:02"));
    assert_eq!((ipam.peer, ipam.ring.peer), (one, one));
    assert_eq!(ipam.ring.seeds, [one, two]);
    let entries: Vec<_> = ipam
        .ring
        .entries
        .iter()
        .map(|e| (Ipv4Addr::from(e.token).to_string(), e.peer))
        .collect();
    assert_eq!(
        entries,
        [("10.32.0.0".to_owned(), one), ("10.40.0.0".to_owned(), two)]
    );
    let record = |id: &str, cidrs: &[&str]| {
        (
            id.to_owned(),
            false,
            cidrs.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>(),
        )
    };
    assert_eq!(
        records(&legacy),
        [
            record("10.32.7.7", &["10.32.7.7/12"]),
            record(&"a".repeat(64), &["10.32.0.1/12"]),
            record(&"b".repeat(64), &["10.32.0.2/12", "10.36.1.1/24"]),
            record(&"c".repeat(64), &["192.168.5.5/24"]),
            record("weave:expose", &["10.32.0.3/12"]),
        ]
    );
    assert_eq!(legacy.direct_peers, ["10.77.0.9:7000", "10.77.0.2"]);
    assert_eq!(
        legacy.flags,
        BTreeMap::from([("peer-reclaim".to_owned(), "ok".to_owned())])
    );
    assert_eq!(legacy.addresses(), 6);
}

#[test]
fn found_where_it_may_be_and_never_half_believed() {
    let dir = tempfile::tempdir().unwrap();
    let find = |dir: &Path| find(dir, name("7a:00:00:00:00:01"));
    assert!(find(dir.path()).unwrap().is_none());
    let path = dir.path().join("weave-netdata.db");
    std::fs::write(&path, FILE).unwrap();
    let (found, legacy) = find(dir.path()).unwrap().unwrap();
    assert_eq!((found, legacy), (path.clone(), parse(FILE).unwrap()));
    assert_eq!(std::fs::read(&path).unwrap(), FILE, "the file stays as it is");

    let error = super::find(dir.path(), name("::2")).unwrap_err().to_string();
    assert!(error.contains("launch with --name 7a:00:00:00:00:01"), "{error}");

    std::fs::write(dir.path().join("weavedata.db"), b"half a fi").unwrap();
    let error = find(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("weavedata.db") && error.contains("no BoltDB file"),
        "{error}"
    );
}

#[test]
fn a_ring_that_contradicts_itself_is_refused() {
    // The second entry's token, 10.40.0.0, becomes 10.16.0.0.
    let mut bytes = FILE.to_vec();
    let token = [0xfc, 0x0a, 0x28, 0, 0];
    let places: Vec<usize> = (0..bytes.len() - 5)
        .filter(|at| bytes[*at..].starts_with(&token))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at + 2] = 0x10;
    }
    assert!(matches!(parse(&bytes), Err(Reason::Ring(_))));
}
