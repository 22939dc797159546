//! Against the original's text, and against the rules of the text format.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::super::golden;
use super::super::report::{Channel, FastDatapath, MapFill, Sleeve, Traffic, Volume};
use super::*;

/// Without the values of `process_*`, which are this process's, and with numbers in one form.
fn comparable(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| match line.rsplit_once(' ') {
            Some((name, _)) if name.starts_with("process_") => name.to_owned(),
            Some((name, value)) if !name.starts_with('#') => {
                format!("{name} {}", value.parse::<f64>().unwrap_or(f64::NAN))
            }
            _ => line.to_owned(),
        })
        .collect();
    lines.sort_unstable();
    lines
}

#[test]
fn names_labels_helps_and_values_are_the_originals() {
    for scenario in ["04-three-dns.h1", "06-connect-unreachable.h1", "08-h3-gone.h1"] {
        let ours = render(&golden::report(scenario));
        let theirs = golden::text(&format!("{scenario}_metrics.txt"));
        let (mut ours, theirs) = (comparable(&ours), comparable(&theirs));
        ours.retain(|line| !line.contains("weave_ipam_owned_ips"));
        assert_eq!(ours, theirs, "{scenario}");
    }
}

#[test]
fn encrypted_connections() {
    let text = render(&golden::report("12-encrypted-seed-observer.h1"));
    assert!(
        text.contains("\nweave_connections{encryption=\"yes\",state=\"established\",type=\"sleeve\"} 2\n")
    );
    assert!(text.contains("\nweave_connections{encryption=\"\",state=\"established\",type=\"sleeve\"} 0\n"));
}

#[test]
fn without_ipam_its_metrics_are_absent() {
    let text = render(&Report::default());
    assert!(!text.contains("ipam") && !text.contains("weave_ips"), "{text}");
    assert!(text.contains("weave_connection_terminations_total 0\n"));
}

#[test]
fn fast_path_counters() {
    let report = Report {
        fast_datapath: Some(FastDatapath {
            counters: [("drop_no_peer".to_owned(), 3), ("enc\"ap".to_owned(), 7)].into(),
            ..FastDatapath::default()
        }),
        ..Report::default()
    };
    let text = render(&report);
    assert!(
        text.contains("\nweave_fastdp_packets_total{verdict=\"drop_no_peer\"} 3\n"),
        "{text}"
    );
    assert!(
        text.contains("\nweave_fastdp_packets_total{verdict=\"enc\\\"ap\"} 7\n"),
        "{text}"
    );
}

/// A report with everything in it that metrics are made from.
fn full() -> Report {
    let mut report = golden::report("08-h3-gone.h1");
    let traffic = Traffic {
        packets_in: 1,
        bytes_in: 2,
        packets_out: 3,
        bytes_out: 4,
    };
    let connection = report.router.connections.first_mut().unwrap();
    connection.remote = Some(Remote {
        name: "7a:00:00:00:00:02".to_owned(),
        nick_name: "host \"two\"\n\\".to_owned(),
        round_trip_micros: Some(1500),
        traffic: ["fastdp", "sleeve"].map(|o| (o.to_owned(), traffic)).into(),
        ..Remote::default()
    });
    let attrs = [("name", "sleeve"), ("reason", "no heartbeat for 3 s, \"why\"")];
    connection.attrs = Some(attrs.map(|(k, v)| (k.to_owned(), v.into())).into());
    let counters = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), 7)).collect();
    report.fast_datapath = Some(FastDatapath {
        counters: counters(&weave_common::Counters::NAMES),
        maps: vec![MapFill {
            name: "MACS".to_owned(),
            entries: 3,
            most: 65536,
        }],
        ..FastDatapath::default()
    });
    report.sleeve = Some(Sleeve {
        counters: counters(&crate::overlay::sleeve::counters::Counters::NAMES),
        ..Sleeve::default()
    });
    report.dns.as_mut().unwrap().queries = counters(&["local", "forwarded"]);
    let volume = Volume {
        messages: 2,
        bytes: 99,
    };
    let channel = Channel {
        sent: [("full".to_owned(), volume)].into(),
        received: volume,
        skipped: 1,
    };
    report.gossip = Some(Gossip {
        channels: [("topology".to_owned(), channel)].into(),
        refused: counters(&["loops_cut"]),
    });
    report
}

/// A name as Prometheus takes it.
fn is_name(text: &str) -> bool {
    let fits = |(i, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (i > 0 && c.is_ascii_digit());
    !text.is_empty() && text.chars().enumerate().all(fits)
}

/// Labels `{a="b",c="d"}` at the start, unescaped, and what follows them.
fn labels(mut rest: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    let Some(inside) = rest.strip_prefix('{') else {
        return (labels, rest);
    };
    rest = inside;
    loop {
        let (name, value) = rest.split_once("=\"").expect(rest);
        assert!(is_name(name) && !name.starts_with("__"), "label {name}");
        let (mut text, mut chars) = (String::new(), value.char_indices());
        let end = loop {
            match chars.next().expect("closing quote") {
                (at, '"') => break at,
                (_, '\\') => text.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("escaped {c}"),
                }),
                (_, c) => text.push(c),
            }
        };
        assert!(
            labels.insert(name.to_owned(), text).is_none(),
            "label {name} twice"
        );
        rest = &value[end + 1..];
        match (rest.strip_prefix(','), rest.strip_prefix('}')) {
            (Some(more), _) => rest = more,
            (_, Some(after)) => return (labels, after),
            _ => panic!("after a label: {rest}"),
        }
    }
}

/// Reads the text format strictly; type and samples of each family. What `promtool check metrics` objects to is
/// an error: samples without family, a family twice or in pieces, counters without `_total`, units left out.
fn parse(text: &str) -> BTreeMap<String, (String, Vec<BTreeMap<String, String>>)> {
    let mut families: BTreeMap<String, (String, Vec<BTreeMap<String, String>>)> = BTreeMap::new();
    let (mut current, mut helped) = (String::new(), String::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty(), "{line}");
            helped = name.to_owned();
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(helped, name, "no help, or for another");
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            current = name.to_owned();
            let before = families.insert(current.clone(), (kind.to_owned(), Vec::new()));
            assert!(before.is_none(), "{name} twice");
            continue;
        }
        let end = line.find(['{', ' ']).unwrap();
        assert_eq!(&line[..end], current, "sample outside of its family");
        let (labels, value) = labels(&line[end..]);
        let value = value.strip_prefix(' ').unwrap();
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
        let samples = &mut families.get_mut(&current).unwrap().1;
        assert!(!samples.contains(&labels), "twice: {line}");
        samples.push(labels);
    }
    assert!(families.values().all(|(_, samples)| !samples.is_empty()));
    families
}

#[test]
fn the_text_is_well_formed() {
    let families = parse(&render(&full()));
    let (_, bytes) = &families["weave_peer_bytes_total"];
    assert_eq!(bytes.len(), 4, "{bytes:?}");
    assert_eq!(bytes[0]["nickname"], "host \"two\"\n\\");
    let (_, fallback) = &families["weave_connection_fallback"];
    assert_eq!(fallback[0]["reason"], "no heartbeat for 3 s, \"why\"");
    parse(&render(&Report::default()));
    for scenario in golden::SCENARIOS {
        parse(&render(&golden::report(scenario)));
    }
}

#[test]
fn values_of_neighbours() {
    let text = render(&full());
    for line in [
        "direction=\"in\",nickname=\"host \\\"two\\\"\\n\\\\\",overlay=\"sleeve\",peer=\"7a:00:00:00:00:02\"} 2\n",
        "weave_peer_round_trip_seconds{nickname=\"host \\\"two\\\"\\n\\\\\",peer=\"7a:00:00:00:00:02\"} 0.0015\n",
        "weave_bpf_map_max_entries{map=\"MACS\"} 65536\n",
        "weave_gossip_sent_bytes_total{channel=\"topology\",kind=\"full\"} 99\n",
        "weave_ipam_owned_ips{nickname=\"host3\",peer=\"7a:00:00:00:00:03\",reachable=\"no\"} ",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

/// Names of our metrics in a text of any kind.
fn mentioned(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| c != '_' && !c.is_ascii_alphanumeric())
        .filter(|word| word.starts_with("weave_") || word.starts_with("process_"))
        .collect()
}

#[test]
fn dashboard_alerts_and_docs_name_only_what_there_is() {
    let families = parse(&render(&full()));
    let root = format!("{}/..", env!("CARGO_MANIFEST_DIR"));
    for file in [
        "contrib/grafana-dashboard.json",
        "contrib/alerts.yml",
        "docs/monitoring.md",
    ] {
        let text = std::fs::read_to_string(format!("{root}/{file}")).unwrap();
        let names = mentioned(&text);
        assert!(names.len() > 5, "{file}");
        for name in names {
            assert!(families.contains_key(name), "{file}: {name}");
        }
    }
    // And the documentation names all of them.
    let docs = std::fs::read_to_string(format!("{root}/docs/monitoring.md")).unwrap();
    for name in families.keys() {
        assert!(
            mentioned(&docs).contains(name.as_str()),
            "docs/monitoring.md lacks {name}"
        );
    }
}

#[test]
fn the_dashboard_is_one() {
    let path = format!("{}/../contrib/grafana-dashboard.json", env!("CARGO_MANIFEST_DIR"));
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(json["schemaVersion"].as_u64().unwrap() >= 36, "Grafana 9");
    let panels = json["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "id twice");
        assert!(panel["gridPos"]["w"].as_u64().unwrap() <= 24);
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty());
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            let balance = query.chars().map(|c| i32::from(c == '(') - i32::from(c == ')'));
            assert_eq!(balance.sum::<i32>(), 0, "{query}");
        }
    }
    assert!(panels.len() >= 10);
}
