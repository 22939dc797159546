//! Tests of the table of names.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::super::sim::{FakeOutlet, UNIX, peer};
use super::*;
use crate::mesh::channel::Channel;
use crate::mesh::reconcile::Reconcile;

fn outlet() -> FakeOutlet {
    FakeOutlet {
        unix: UNIX,
        known: (0..3).map(peer).collect(),
        ..FakeOutlet::default()
    }
}

fn names() -> Names {
    Names::new(peer(0), "Weave.local")
}

fn hostnames(names: &Names) -> Vec<(&str, State)> {
    names
        .entries()
        .map(|(id, state)| (id.hostname(), state))
        .collect()
}

fn state(version: u64, tombstone: i64) -> State {
    State { version, tombstone }
}

fn heard(origin: usize, container: &str, name: &str, state: State) -> Heard {
    let id = Id::new(container, peer(origin), 1, name).unwrap();
    let age = Duration::ZERO;
    Heard { id, state, age }
}

#[test]
fn which_names_are_kept_and_how() {
    let names = names();
    for (given, kept) in [
        ("one.weave.local", Some("one.weave.local.")),
        ("One.WEAVE.Local.", Some("One.WEAVE.Local.")),
        ("a.sub.weave.local", Some("a.sub.weave.local.")),
        ("weave.local", Some("weave.local.")),
        ("one", Some("one.Weave.local.")),
        ("one.", Some("one.Weave.local.")),
        ("one.example.com", None),
        ("oneweave.local", None),
        ("", None),
        (".", None),
    ] {
        assert_eq!(names.qualified(given).as_deref(), kept, "{given:?}");
    }
    assert_eq!(
        Names::new(peer(0), ".weave.").qualified("weave").as_deref(),
        Some("weave.")
    );
}

#[test]
fn versions_count_deletions_and_revivals() {
    let (mut names, mut out) = (names(), outlet());
    let one = |filter: Filter| Filter {
        name: Some("one.weave.local".to_owned()),
        ..filter
    };
    names.register(&mut out, "c1", 1, "one.weave.local").unwrap();
    names.register(&mut out, "c1", 1, "one.weave.local.").unwrap();
    names.register(&mut out, "c1", 1, "one.example.com").unwrap();
    assert_eq!(hostnames(&names), [("one.weave.local.", state(0, 0))]);
    // Letter case counts here, and only here.
    let other = Some("ONE.weave.local".to_owned());
    assert_eq!(
        names.remove(
            &mut out,
            &Filter {
                name: other,
                ..Filter::default()
            }
        ),
        0
    );
    assert_eq!(names.remove(&mut out, &one(Filter::default())), 1);
    assert_eq!(names.remove(&mut out, &one(Filter::default())), 0);
    assert_eq!(hostnames(&names), [("one.weave.local.", state(1, UNIX))]);
    names.register(&mut out, "c1", 1, "one.weave.local").unwrap();
    assert_eq!(hostnames(&names), [("one.weave.local.", state(2, 0))]);
    // Each change went to all, and nothing else did.
    assert_eq!(out.broadcasts.len(), 3);
    assert_eq!(names.changed().len(), 1);
    assert!(names.register(&mut out, "c1", 1, "o ne").is_err());
}

#[test]
fn removal_takes_what_agrees_with_all_that_is_given() {
    let (mut names, mut out) = (names(), outlet());
    for (container, addr, name) in [("c1", 1, "a"), ("c1", 2, "a"), ("c1", 2, "b"), ("c2", 1, "a")] {
        names.register(&mut out, container, addr, name).unwrap();
    }
    let filter = |container: Option<&str>, addr, name: Option<&str>| Filter {
        container: container.map(str::to_owned),
        addr,
        name: name.map(str::to_owned),
    };
    assert_eq!(names.remove(&mut out, &filter(Some("c1"), Some(2), Some("b"))), 1);
    assert_eq!(names.remove(&mut out, &filter(Some("c1"), Some(2), None)), 1);
    assert_eq!(names.remove(&mut out, &filter(None, None, Some("a.example."))), 0);
    assert_eq!(names.remove(&mut out, &filter(None, None, Some("a"))), 2);
    assert_eq!(out.broadcasts.len(), 4 + 3, "one message for each call");
}

#[test]
fn containers_that_died() {
    let (mut names, mut out) = (names(), outlet());
    for container in ["d1", "d2", "weave:extern"] {
        names.register(&mut out, container, 1, "a").unwrap();
    }
    let live = |names: &Names| {
        let ids = names
            .answers("a.weave.local.")
            .map(|id| id.container().to_owned());
        ids.collect::<Vec<_>>()
    };
    names.container_died(&mut out, "d1");
    assert_eq!(live(&names), ["d2", "weave:extern"]);
    names.containers_died_except(&mut out, &["d3".to_owned()], |id| id.starts_with('d'));
    assert_eq!(live(&names), ["weave:extern"]);
}

#[test]
fn answers_and_reverse_lookups_skip_what_is_deleted() {
    let (mut names, mut out) = (names(), outlet());
    let mut news = News::default();
    names.hear(&out, heard(1, "c", "One.weave.local.", state(0, 0)), &mut news);
    names.register(&mut out, "c", 1, "one.weave.local").unwrap();
    names.register(&mut out, "c", 1, "zwei.weave.local").unwrap();
    let origins = |names: &Names| {
        names
            .answers("one.weave.local.")
            .map(Id::origin)
            .collect::<Vec<_>>()
    };
    assert_eq!(origins(&names), [peer(0), peer(1)]);
    let touched = names.take_touched();
    assert_eq!(touched.addrs, BTreeSet::from([1]));
    assert_eq!(touched.names.len(), 2);
    assert_eq!(names.take_touched(), Touched::default());
    assert_eq!(names.reverse(1).map(Id::hostname), Some("one.weave.local."));
    names.remove(
        &mut out,
        &Filter {
            name: Some("one.weave.local".to_owned()),
            ..Filter::default()
        },
    );
    assert_eq!(names.reverse(1).map(Id::hostname), Some("One.weave.local."));
    names.on_peer_gone(&mut out, peer(1));
    assert_eq!(origins(&names), []);
    assert_eq!(names.reverse(1).map(Id::hostname), Some("zwei.weave.local."));
    assert_eq!(names.reverse(2), None);
    assert_eq!(
        names.take_touched().names,
        BTreeSet::from(["one.weave.local.".into()])
    );
    names.touch_origins(&BTreeSet::from([peer(0)]));
    assert_eq!(names.take_touched().names.len(), 2);
}

#[test]
fn what_others_say_of_our_names() {
    let (mut names, mut out) = (names(), outlet());
    let hear = |names: &mut Names, name: &str, state: State| {
        let mut news = News::default();
        names.hear(&out, heard(0, "c", name, state), &mut news);
        (news.corrected.len(), news.merged.len())
    };
    // An earlier life of ours left a name: it goes.
    assert_eq!(hear(&mut names, "old.weave.local.", state(3, 0)), (1, 0));
    assert_eq!(hostnames(&names), [("old.weave.local.", state(4, UNIX))]);
    // It is told once more: now we have it.
    assert_eq!(hear(&mut names, "old.weave.local.", state(3, 0)), (0, 0));
    // Somebody has a newer version than we do: ours counts.
    assert_eq!(hear(&mut names, "old.weave.local.", state(4, UNIX + 1)), (1, 0));
    assert_eq!(hostnames(&names), [("old.weave.local.", state(5, UNIX))]);
    names.register(&mut out, "c", 1, "new").unwrap();
    let mut news = News::default();
    names.hear(&out, heard(0, "c", "new.Weave.local.", state(7, UNIX)), &mut news);
    assert_eq!(
        names.state(&heard(0, "c", "new.Weave.local.", state(0, 0)).id),
        Some(state(8, 0))
    );
}

#[test]
fn names_of_peers_about_to_be_known_wait_for_a_minute() {
    let (mut names, mut out) = (names(), outlet());
    let mut news = News::default();
    for (origin, name) in [(5, "new.weave.local."), (6, "gone.weave.local.")] {
        names.hear(&out, heard(origin, "c", name, state(0, 0)), &mut news);
    }
    assert!(news.merged.is_empty() && names.stamps().is_empty() && names.size() == 2);
    names.tick(&mut out);
    assert!(hostnames(&names).is_empty());
    out.known.insert(peer(5));
    names.tick(&mut out);
    assert_eq!(hostnames(&names), [("new.weave.local.", state(0, 0))]);
    assert_eq!(out.gossip.len(), 1, "and others hear of it");
    out.now += STRANGER_LIFE;
    out.known.insert(peer(6));
    names.tick(&mut out);
    assert_eq!(names.size(), 1);
}

#[test]
fn tombstones_go_by_their_age_whatever_the_clocks_say() {
    let (mut names, mut out) = (names(), outlet());
    let mut news = News::default();
    let aged = |name: &str, tombstone, age: Duration| Heard {
        age,
        ..heard(1, "c", name, state(1, tombstone))
    };
    let minute = Duration::from_secs(60);
    names.hear(&out, aged("future.", UNIX * 2, Duration::ZERO), &mut news);
    names.hear(&out, aged("past.", 1, 20 * minute), &mut news);
    names.hear(&out, aged("old.", UNIX, 30 * minute), &mut news);
    assert_eq!(names.size(), 2);
    out.now = 10 * minute;
    names.tick(&mut out);
    assert_eq!(hostnames(&names), [("future.", state(1, UNIX * 2))]);
    assert_eq!(names.age(&heard(1, "c", "future.", state(0, 0)).id), 10 * minute);
    out.now = 30 * minute;
    names.tick(&mut out);
    assert_eq!(names.size(), 0);
    // Who has just learned of a deletion keeps the tombstone as long as if it were new.
    names.hear(&out, heard(1, "c", "late.", state(0, 0)), &mut news);
    names.hear(&out, aged("late.", 1, 40 * minute), &mut news);
    out.now = 59 * minute;
    names.tick(&mut out);
    assert_eq!(names.size(), 1);
}

#[test]
fn one_peer_cannot_fill_the_memory() {
    let (mut names, mut out) = (names(), outlet());
    out.known.extend((10..20).map(peer));
    let mut news = News::default();
    for n in 0..MAX_PER_ORIGIN + 5 {
        names.hear(&out, heard(1, &n.to_string(), "a.", state(0, 0)), &mut news);
    }
    assert_eq!((names.size(), names.skipped()), (MAX_PER_ORIGIN, 5));
    for n in 0..MAX_ENTRIES {
        names.hear(
            &out,
            heard(10 + n % 10, &n.to_string(), "b.", state(0, 0)),
            &mut news,
        );
    }
    assert_eq!(names.size(), MAX_ENTRIES);
    for n in 0..MAX_STRANGERS + 1 {
        names.hear(&out, heard(100, &n.to_string(), "c.", state(0, 0)), &mut news);
    }
    assert_eq!(names.size(), MAX_ENTRIES + MAX_STRANGERS);
    // Ours always have room, up to their own limit.
    for n in 0..MAX_PER_ORIGIN {
        names.register(&mut out, &n.to_string(), 1, "d").unwrap();
    }
    assert_eq!(
        names.register(&mut out, "more", 1, "d"),
        Err(NameError::TooMany(MAX_PER_ORIGIN))
    );
    for origin in [1, 100].into_iter().chain(10..20) {
        names.on_peer_gone(&mut out, peer(origin));
    }
    assert_eq!(names.size(), MAX_PER_ORIGIN);
}
