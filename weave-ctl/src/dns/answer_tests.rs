#![allow(clippy::unwrap_used, clippy::expect_used)]
//! Answers as another implementation (hickory) reads them, and bytes that are no queries.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::answer::{Answerer, Asker, Local, Verdict, failure};
use super::cache::put_answer;
use super::zone::{Answer, Zone};
use crate::mesh::name::PeerName;

const UDP: Asker = Asker {
    tcp: false,
    subnet: None,
};

fn at(addr: [u8; 4]) -> Answer {
    Answer {
        addr: addr.into(),
        origin: PeerName::from_u64(1).unwrap(),
        local: false,
        reachable: true,
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn answerer(seed: u64) -> Answerer<StdRng> {
    Answerer::new(Local::new("Weave.local", 1).unwrap(), StdRng::seed_from_u64(seed))
}

fn zone() -> Zone {
    let mut zone = Zone::default();
    zone.set("seven.weave.local.", vec![at([10, 32, 0, 7])]);
    zone.set("a.sub.weave.local.", vec![at([10, 32, 0, 8])]);
    zone.set_reverse([10, 32, 0, 7].into(), Some("Seven.weave.local."));
    let many = (0..50).map(|i| at([10, 32, 1, i])).collect();
    zone.set("many.weave.local.", many);
    zone
}

/// What hickory reads in our answer.
fn answered(request: &Message, asker: Asker) -> (Verdict, Message) {
    let mut out = Vec::new();
    let request = request.to_vec().unwrap();
    let verdict = answerer(1).answer(&request, &zone(), asker, &mut out);
    (verdict, Message::from_vec(&out).unwrap())
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let address = |data: &RData| match data {
        RData::A(a) => a.0,
        other => panic!("{other:?}"),
    };
    message
        .answers
        .iter()
        .map(|record| address(&record.data))
        .collect()
}

#[test]
fn names_and_types() {
    use RecordType as T;
    use ResponseCode as R;
    for (name, kind, verdict, code, count) in [
        ("seven.weave.local.", T::A, Verdict::Local, R::NoError, 1),
        ("sEVEN.WEAVE.locaL.", T::A, Verdict::Local, R::NoError, 1),
        ("seven.", T::A, Verdict::Local, R::NoError, 1),
        ("a.sub.weave.local.", T::A, Verdict::Local, R::NoError, 1),
        ("seven.weave.local.", T::AAAA, Verdict::Local, R::NoError, 0),
        ("seven.weave.local.", T::SRV, Verdict::Local, R::NoError, 0),
        ("seven.weave.local.", T::MX, Verdict::Local, R::NoError, 0),
        ("seven.weave.local.", T::ANY, Verdict::Local, R::NoError, 0),
        ("eight.weave.local.", T::A, Verdict::Missing, R::NXDomain, 0),
        ("eight.weave.local.", T::AAAA, Verdict::Missing, R::NXDomain, 0),
        ("sub.weave.local.", T::A, Verdict::Missing, R::NXDomain, 0),
        ("weave.local.", T::A, Verdict::Missing, R::NXDomain, 0),
        ("eight.", T::A, Verdict::Missing, R::NXDomain, 0),
        ("7.0.32.10.in-addr.arpa.", T::PTR, Verdict::Reverse, R::NoError, 1),
        ("7.0.32.10.IN-ADDR.ARPA.", T::PTR, Verdict::Reverse, R::NoError, 1),
        ("7.0.32.10.in-addr.arpa.", T::A, Verdict::Missing, R::NXDomain, 0),
        ("32.10.in-addr.arpa.", T::PTR, Verdict::Missing, R::NXDomain, 0),
        (
            "07.0.32.10.in-addr.arpa.",
            T::PTR,
            Verdict::Missing,
            R::NXDomain,
            0,
        ),
        (
            "256.0.32.10.in-addr.arpa.",
            T::PTR,
            Verdict::Missing,
            R::NXDomain,
            0,
        ),
        ("in-addr.arpa.", T::PTR, Verdict::Missing, R::NXDomain, 0),
    ] {
        let asked = query(name, kind);
        let (got, message) = answered(&asked, UDP);
        let context = format!("{name} {kind}");
        assert_eq!(
            (got, message.metadata.response_code),
            (verdict, code),
            "{context}"
        );
        assert_eq!(message.answers.len(), count, "{context}");
        let meta = message.metadata;
        assert_eq!(
            (meta.id, meta.message_type),
            (0x1234, MessageType::Response),
            "{context}"
        );
        assert!(
            meta.recursion_desired && meta.recursion_available && !meta.truncation,
            "{context}"
        );
        assert_eq!(meta.authoritative, code == R::NoError, "{context}");
        assert_eq!(
            message.queries[0].name.to_ascii(),
            asked.queries[0].name.to_ascii(),
            "letter case is kept: {context}"
        );
        for record in &message.answers {
            assert_eq!(
                (record.name.to_ascii(), record.ttl),
                (asked.queries[0].name.to_ascii(), 1)
            );
        }
        assert!(message.edns.is_none() && message.additionals.is_empty() && message.authorities.is_empty());
    }
}

#[test]
fn a_reverse_answer_has_the_name_as_registered() {
    let (_, message) = answered(&query("7.0.32.10.in-addr.arpa.", RecordType::PTR), UDP);
    let RData::PTR(name) = &message.answers[0].data else {
        panic!("{:?}", message.answers)
    };
    assert_eq!(name.0.to_ascii(), "Seven.weave.local.");
}

#[test]
fn what_others_know() {
    for (name, kind) in [
        ("example.com.", RecordType::A),
        ("notweave.local.", RecordType::A),
        ("weave.local.example.com.", RecordType::A),
        (".", RecordType::NS),
        ("9.0.32.10.in-addr.arpa.", RecordType::PTR),
    ] {
        let mut out = vec![1];
        let request = query(name, kind).to_vec().unwrap();
        let verdict = answerer(1).answer(&request, &zone(), UDP, &mut out);
        assert_eq!((verdict, out.len()), (Verdict::Forward, 0), "{name}");
    }
    // The domain's bytes, of which the first is inside a label.
    let mut request = query("a.x.", RecordType::A).to_vec().unwrap();
    request.splice(12..17, *b"\x01a\x07x\x05weave\x05local\0");
    assert_eq!(
        answerer(1).answer(&request, &zone(), UDP, &mut Vec::new()),
        Verdict::Forward
    );
}

#[test]
fn as_much_as_the_asker_takes() {
    let all: BTreeSet<Ipv4Addr> = (0..50).map(|i| [10, 32, 1, i].into()).collect();
    for (size, tcp, limit) in [
        (None, false, 512),
        (Some(100), false, 512),
        (Some(700), false, 700),
        (Some(4096), false, 4096),
        (Some(65535), false, 4096),
        (None, true, 65535),
    ] {
        let mut asked = query("many.weave.local.", RecordType::A);
        if let Some(size) = size {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            // The library raises what is too small.
            asked.set_edns(edns);
        }
        let mut bytes = asked.to_vec().unwrap();
        if let (Some(size), Some(place)) = (size, bytes.len().checked_sub(8)) {
            bytes[place..place + 2].copy_from_slice(&u16::to_be_bytes(size));
        }
        let mut out = Vec::new();
        answerer(2).answer(&bytes, &zone(), Asker { tcp, ..UDP }, &mut out);
        let message = Message::from_vec(&out).unwrap();
        let whole = 12 + 22 + 50 * 16;
        assert!(out.len() <= limit, "{size:?} {tcp}");
        assert_eq!(message.metadata.truncation, whole > limit, "{size:?} {tcp}");
        assert!(
            out.len() + 16 > limit.min(whole),
            "as many as fit: {size:?} {tcp}"
        );
        let got: BTreeSet<_> = addresses(&message).into_iter().collect();
        assert_eq!(got.len(), message.answers.len());
        assert!(got.is_subset(&all) && (message.metadata.truncation || got == all));
    }
}

#[test]
fn one_of_ours_goes_first_and_any_may() {
    let mut zone = Zone::default();
    let all: Vec<Answer> = (0..6)
        .map(|i| Answer {
            local: i < 2,
            ..at([10, 32, 0, i])
        })
        .collect();
    zone.set("x.weave.local.", all.clone());
    let request = query("x.weave.local.", RecordType::A).to_vec().unwrap();
    let mut answerer = answerer(3);
    let mut out = Vec::new();
    let mut ask = |zone: &Zone, asker| {
        answerer.answer(&request, zone, asker, &mut out);
        let octets = addresses(&Message::from_vec(&out).unwrap())
            .into_iter()
            .map(|a| a.octets()[3]);
        octets.collect::<Vec<u8>>()
    };
    let (mut firsts, mut thirds) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..200 {
        let got = ask(&zone, UDP);
        assert_eq!(got.len(), 6);
        firsts.insert(got[0]);
        thirds.insert(got[2]);
    }
    assert_eq!((firsts, thirds), ([0, 1].into(), [2, 3, 4, 5].into()));

    let near = Asker {
        subnet: Some(([10, 32, 0, 5].into(), [255, 255, 255, 254].into())),
        ..UDP
    };
    let got = ask(&zone, near);
    assert_eq!(BTreeSet::from([got[0], got[1]]), [4, 5].into(), "{got:?}");

    let gone = |reachable: fn(u8) -> bool| {
        let set = |a: &Answer| Answer {
            reachable: reachable(a.addr.octets()[3]),
            ..*a
        };
        all.iter().map(set).collect()
    };
    zone.set("x.weave.local.", gone(|last| last == 3));
    assert_eq!(ask(&zone, UDP), [3], "those without a route are left out");
    zone.set("x.weave.local.", gone(|_| false));
    assert_eq!(ask(&zone, UDP).len(), 6, "unless there are no others");
}

#[test]
fn no_queries() {
    let good = query("seven.weave.local.", RecordType::A).to_vec().unwrap();
    let ask = |request: &[u8]| {
        let mut out = Vec::new();
        let verdict = answerer(1).answer(request, &zone(), UDP, &mut out);
        (verdict, out)
    };
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut request = good.clone();
        change(&mut request);
        ask(&request)
    };
    assert_eq!(with(&|r| r[2] |= 0x80), (Verdict::Ignore, vec![]), "a response");
    assert_eq!(ask(&good[..11]), (Verdict::Ignore, vec![]));
    for (request, what) in [
        (with(&|r| r[5] = 0), "no question"),
        (with(&|r| r[11] = 1), "a record that is missing"),
        (with(&|r| r[12] = 0xc0), "a compressed question"),
        (ask(&good[..good.len() - 1]), "cut off"),
    ] {
        let (verdict, out) = request;
        assert_eq!((verdict, out.len()), (Verdict::Malformed, 12), "{what}");
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::FormErr, "{what}");
    }
    let two = with(&|r| {
        let question = r[12..].to_vec();
        r.extend(question);
        r[5] = 2;
    });
    assert_eq!((two.0, two.1[3] & 15), (Verdict::Missing, 3));
    // Of another kind: ours are answered all the same, others get told.
    assert_eq!(with(&|r| r[2] |= 0x28).0, Verdict::Local);
    let mut update = query("example.com.", RecordType::A).to_vec().unwrap();
    update[2] |= 0x28;
    let (verdict, out) = ask(&update);
    assert_eq!(
        (verdict, out[2] & 0x78, out[3] & 15),
        (Verdict::Malformed, 0x28, 4)
    );
}

#[test]
fn local_domains() {
    for good in ["weave.local", "weave.local.", "WEAVE.local.", "corp."] {
        assert!(Local::new(good, 1).is_ok(), "{good}");
    }
    for bad in ["", ".", "a..b", &"x".repeat(64)] {
        assert!(Local::new(bad, 1).is_err(), "{bad}");
    }
    assert_eq!(Local::new("WEAVE.local", 1), Local::new("weave.local.", 1));
    // A bare name that becomes too long with the domain.
    let domain = format!("{0}.{0}.{0}", "d".repeat(63));
    let mut answerer = Answerer::new(Local::new(&domain, 1).unwrap(), StdRng::seed_from_u64(1));
    let request = query(&"x".repeat(63), RecordType::A).to_vec().unwrap();
    let verdict = answerer.answer(&request, &zone(), UDP, &mut Vec::new());
    assert_eq!(verdict, Verdict::Missing);
}

#[test]
fn a_failure_repeats_the_question() {
    let mut out = Vec::new();
    failure(&query("Example.com.", RecordType::A).to_vec().unwrap(), &mut out);
    let message = Message::from_vec(&out).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(message.queries[0].name.to_ascii(), "Example.com.");
}

/// Bytes of a query with some changed, cut off or added.
fn mangled() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "seven.weave.local.",
        "many.",
        "7.0.32.10.in-addr.arpa.",
        "example.com.",
    ];
    let base = prop::sample::select(names.to_vec()).prop_map(|name| {
        let mut asked = query(name, RecordType::A);
        asked.set_edns(Edns::new());
        asked.to_vec().unwrap()
    });
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let tail = prop::collection::vec(any::<u8>(), 0..40);
    (base, changes, tail, any::<prop::sample::Index>()).prop_map(|(mut bytes, changes, tail, cut)| {
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        bytes.extend(tail);
        bytes.truncate(12 + cut.index(bytes.len()));
        bytes
    })
}

proptest! {
    /// Whatever comes in: no panic, no answer to a response, none that is larger than the asker takes, none without
    /// the asker's ID, and to nonsense only a header.
    #[test]
    fn hostile_queries(request in prop_oneof![prop::collection::vec(any::<u8>(), 0..600), mangled()], tcp: bool) {
        let mut out = Vec::new();
        let verdict = answerer(1).answer(&request, &zone(), Asker { tcp, ..UDP }, &mut out);
        prop_assert_eq!(out.is_empty(), matches!(verdict, Verdict::Forward | Verdict::Ignore));
        if !out.is_empty() {
            prop_assert_eq!(&out[..2], &request[..2]);
            prop_assert!(request[2] & 0x80 == 0 && out[2] & 0x80 != 0);
            prop_assert!(tcp || out.len() <= 4096);
            prop_assert!(verdict != Verdict::Malformed || out.len() <= request.len());
        }
        let mut out = Vec::new();
        failure(&request, &mut out);
        put_answer(&request, &request, 5, &mut out);
        prop_assert_eq!(out.len(), request.len());
    }
}
