//! The vectors of the specification, hostile input and random round trips.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;

/// A vector of `testdata/gob-vectors.txt`.
pub(crate) fn vector(name: &str) -> Vec<u8> {
    include_str!("../testdata/gob-vectors.txt")
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(n, _)| *n == name)
        .map(|(_, hex)| unhex(hex))
        .unwrap_or_else(|| panic!("no vector {name}"))
}

/// Bytes from hex, white space ignored.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

fn all(stream: &[u8]) -> Result<Vec<Value<'_>>, GobError> {
    let mut decoder = Decoder::new(stream);
    std::iter::from_fn(|| decoder.next_value().transpose()).collect()
}

fn one(stream: &[u8]) -> Value<'_> {
    let mut values = all(stream).unwrap();
    assert_eq!(values.len(), 1);
    values.remove(0)
}

/// Value as compact text, to compare with what the specification says a vector holds.
fn show(value: &Value<'_>) -> String {
    let list = |parts: Vec<String>| parts.join(" ");
    match value {
        Value::Bool(v) => v.to_string(),
        Value::Int(v) => format!("{v:+}"),
        Value::Uint(v) => format!("{v:x}"),
        Value::Bytes(v) => format!("{v:02x?}"),
        Value::String(v) => format!("{v:?}"),
        Value::Slice(v) => format!("[{}]", list(v.iter().map(show).collect())),
        Value::Map(v) => {
            format!(
                "{{{}}}",
                list(
                    v.iter()
                        .map(|(k, v)| format!("{}:{}", show(k), show(v)))
                        .collect()
                )
            )
        }
        Value::Struct(v) => {
            format!(
                "({})",
                list(v.iter().map(|(k, v)| format!("{k}={}", show(v))).collect())
            )
        }
    }
}

static UINTS: Type = Type::Slice(&Type::Uint);
static NODE: Type = Type::Struct("NodeID", &[("Name", Type::Uint), ("UID", Type::Uint)]);
static PROPOSAL: Type = Type::Struct("", &[("Round", Type::Uint), ("Proposer", NODE)]);
static CLAIMS: Type = Type::Struct(
    "NodeClaims",
    &[
        ("Promise", PROPOSAL),
        ("Accepted", PROPOSAL),
        (
            "AcceptedVal",
            Type::Struct("", &[("Value", Type::Slice(&Type::Uint)), ("Origin", PROPOSAL)]),
        ),
    ],
);
static ENTRIES: Type = Type::Slice(&Type::Struct(
    "entry",
    &[
        ("Token", Type::Uint),
        ("Peer", Type::Uint),
        ("Version", Type::Uint),
        ("Free", Type::Uint),
    ],
));
static RING: Type = Type::Struct(
    "Ring",
    &[
        ("Start", Type::Uint),
        ("End", Type::Uint),
        ("Peer", Type::Uint),
        ("Entries", ENTRIES),
        ("Seeds", UINTS),
    ],
);
static STATE: Type = Type::Struct(
    "gossipState",
    &[
        ("Now", Type::Int),
        ("Nicknames", Type::Map(&Type::Uint, &Type::String)),
        ("Paxos", Type::Map(&NODE, &CLAIMS)),
        ("Ring", RING),
    ],
);
static RANGE: Type = Type::Struct("Range", &[("Start", Type::Uint), ("End", Type::Uint)]);
static DNS: Type = Type::Struct(
    "GossipData",
    &[
        ("Timestamp", Type::Int),
        (
            "Entries",
            Type::Slice(&Type::Struct(
                "Entry",
                &[
                    ("ContainerID", Type::String),
                    ("Origin", Type::Uint),
                    ("Addr", Type::Uint),
                    ("Hostname", Type::String),
                    ("Version", Type::Int),
                    ("Tombstone", Type::Int),
                ],
            )),
        ),
    ],
);
static OWNED: Type = Type::Map(
    &Type::String,
    &Type::Struct(
        "ownedData",
        &[
            ("IsContainer", Type::Bool),
            (
                "Cidrs",
                Type::Slice(&Type::Struct(
                    "CIDR",
                    &[("Addr", Type::Uint), ("PrefixLen", Type::Int)],
                )),
            ),
        ],
    ),
);
static STRINGS: Type = Type::Slice(&Type::String);
static FEATURES: Type = Type::Map(&Type::String, &Type::String);

#[test]
fn vectors_decode_to_what_the_specification_says() {
    let ring = "Ring=(Start=a200000 End=a300000 Peer=1 Entries=[(Token=a200000 Peer=1 Free=80000) \
                (Token=a280000 Peer=8a3e3e3e3e3e Free=80000)] Seeds=[1 8a3e3e3e3e3e])";
    let head = "Now=+1600000000 Nicknames={1:\"one\"}";
    let five = "(Round=1 Proposer=(Name=1 UID=5))";
    for (name, ty, text) in [
        ("ipam-ring", STATE, format!("({head} {ring})")),
        (
            "ipam-proposed",
            STATE,
            format!(
                "({head} Paxos={{(Name=1 UID=1122334455667788):(Promise=(Round=1 Proposer=(Name=1 \
                 UID=1122334455667788)) Accepted=(Proposer=()) AcceptedVal=(Origin=(Proposer=())))}})"
            ),
        ),
        (
            "ipam-accepted",
            STATE,
            format!(
                "({head} Paxos={{(Name=1 UID=5):(Promise={five} Accepted={five} \
                 AcceptedVal=(Value=[1] Origin={five}))}})"
            ),
        ),
        ("ipam-empty-paxos", STATE, format!("({head} Paxos={{}})")),
        ("ipam-observer", STATE, format!("({head})")),
        ("ipam-range", RANGE, "(Start=a200000 End=a300000)".into()),
        ("range-32", RANGE, "(Start=a200000 End=a200004)".into()),
        ("db-peername", Type::Uint, "8a3e3e3e3e3e".into()),
        ("db-flag", Type::String, "\"ok\"".into()),
        ("db-direct-peers", STRINGS, "[\"10.0.0.1\"]".into()),
        (
            "db-owned",
            OWNED,
            "{\"weave:expose\":(Cidrs=[(Addr=a200001 PrefixLen=+12)])}".into(),
        ),
        ("db-ring", RING, ring.trim_start_matches("Ring=").into()),
        (
            "dns-two",
            DNS,
            "(Timestamp=+1600000000 Entries=[(ContainerID=\"c2\" Origin=1 Addr=a200002 \
             Hostname=\"Two.weave.local.\" Version=+1 Tombstone=+1600000001) (ContainerID=\"c1\" Origin=1 \
             Addr=a200001 Hostname=\"one.weave.local.\")])"
                .into(),
        ),
        ("dns-none", DNS, "(Timestamp=+1600000000)".into()),
        ("features", FEATURES, "{\"Name\":\"7a:9f:31:c2:4d:18\"}".into()),
    ] {
        let stream = vector(name);
        let value = one(&stream);
        assert_eq!(show(&value), text, "{name}");

        let mut encoder = Encoder::new();
        encoder.encode(&ty, &value);
        encoder.encode(&ty, &value);
        let ours = encoder.finish();
        assert_eq!(all(&ours).unwrap(), [value.clone(), value.clone()], "{name}");

        // Where the original's stream begins with the same ids, so do all bytes.
        if ["range-32", "features", "db-peername", "db-flag"].contains(&name) {
            let mut encoder = Encoder::new();
            encoder.encode(&ty, &value);
            assert_eq!(encoder.finish(), stream, "{name}");
        }
    }
}

#[test]
fn an_empty_map_is_not_a_missing_one() {
    let (elector, observer) = (vector("ipam-empty-paxos"), vector("ipam-observer"));
    assert_eq!(one(&elector).map("Paxos"), Ok(Some(&[][..])));
    assert_eq!(one(&observer).map("Paxos"), Ok(None));
}

#[test]
fn fields_are_read_by_name_and_kind() {
    let stream = vector("topology-foreign");
    let value = one(&stream);
    assert_eq!(value.uint("UID"), Ok(77));
    assert_eq!(value.bytes("NameByte"), Ok(&[2, 0, 0, 0, 0, 9][..]));
    assert_eq!(value.uint("Version"), Ok(0));
    assert_eq!(value.str("UID"), Err(GobError::WrongType("UID")));
    assert_eq!(value.child("None").unwrap().bool("x"), Ok(false));
    assert_eq!(Value::Uint(1).int("x"), Err(GobError::WrongType("x")));
}

#[test]
fn consecutive_values_share_descriptors() {
    let stream = vector("topology-two");
    let values = all(&stream).unwrap();
    assert_eq!(values.len(), 4);
    assert_eq!(values[2].str("NickName"), Ok("host2"));
    assert_eq!(values[3], Value::Slice(vec![]));
}

#[test]
fn numbers_have_the_shortest_form() {
    for (value, hex) in [
        (Value::Uint(0), "03 06 00 00"),
        (Value::Uint(5), "03 06 00 05"),
        (Value::Uint(127), "03 06 00 7f"),
        (Value::Uint(128), "04 06 00 ff80"),
        (Value::Uint(0x123), "05 06 00 fe0123"),
        (Value::Uint(u64::MAX), "0b 06 00 f8ffffffffffffffff"),
        (Value::Int(5), "03 04 00 0a"),
        (Value::Int(-1), "03 04 00 01"),
        (Value::Int(-65), "04 04 00 ff81"),
        (Value::Int(65), "04 04 00 ff82"),
        (Value::Int(i64::MIN), "0b 04 00 f8ffffffffffffffff"),
        (Value::Int(i64::MAX), "0b 04 00 f8fffffffffffffffe"),
    ] {
        let ty = if matches!(value, Value::Int(_)) {
            Type::Int
        } else {
            Type::Uint
        };
        let mut encoder = Encoder::new();
        encoder.encode(&ty, &value);
        assert_eq!(encoder.finish(), unhex(hex));
        assert_eq!(one(&unhex(hex)), value);
    }
}

/// A stream of messages, each with its length put in front.
fn stream(messages: &[&str]) -> Vec<u8> {
    messages
        .iter()
        .map(|hex| unhex(hex))
        .flat_map(|body| [vec![body.len() as u8], body].concat())
        .collect()
}

#[test]
fn malformed_streams_are_refused() {
    // Id 66: struct of one field "a", unsigned or of type 68. Id 65: slice of unsigned.
    let uint_field = "ff83 03 01 02 ff84 00 01 01 01 01 61 01 06 00 00 00";
    let other_field = "ff83 03 01 02 ff84 00 01 01 01 01 61 01 ff88 00 00 00";
    let slice = "ff81 02 01 02 ff82 00 01 06 00 00";
    assert_eq!(show(&one(&stream(&[uint_field, "ff84 01 07 00"]))), "(a=7)");
    assert_eq!(show(&one(&stream(&[slice, "ff82 00 02 07 08"]))), "[7 8]");
    for (messages, error) in [
        (&["06 00"][..], GobError::Truncated),
        (&[""], GobError::Truncated),
        (&["06 01 05"], GobError::Number),
        (&["06 00 f7 00"], GobError::Number),
        (&["06 00 fe 01"], GobError::Truncated),
        (&["06 00 05 05"], GobError::Trailing),
        (&["0c 00 05 61"], GobError::Truncated),
        (&["08 00 00"], GobError::UnknownType(4)),
        (&["ff84 00 00"], GobError::UnknownType(66)),
        // Counts greater than the bytes left, however large.
        (&[slice, "ff82 00 02 07"], GobError::Truncated),
        (&[slice, "ff82 00 f8 ffffffffffffffff"], GobError::Truncated),
        (&[uint_field, uint_field], GobError::DuplicateType),
        (&[other_field, "ff84 01 01 00"], GobError::UnknownType(68)),
        (&[uint_field, "ff84 02 01 00"], GobError::Field),
        (&[uint_field, "ff84 01 01 f8 ffffffffffffffff"], GobError::Field),
        // An array, a descriptor for a built-in id, one without content, one with two.
        (&["ff83 01 01 02 ff84 00 01 06 01 04 00 00"], GobError::Descriptor),
        (&["0b 02 01 02 0c 00 01 06 00 00"], GobError::Descriptor),
        (&["ff83 00"], GobError::Descriptor),
        (
            &["ff83 02 01 02 ff84 00 01 06 00 01 01 02 ff84 00 00 00"],
            GobError::Descriptor,
        ),
    ] {
        assert_eq!(all(&stream(messages)).unwrap_err(), error, "{messages:?}");
    }
    assert_eq!(all(&unhex("05 06 00")), Err(GobError::Truncated));
}

#[test]
fn nesting_is_bounded() {
    // Id 66 is a slice of itself.
    let nested = |depth| {
        let value = format!("ff84 00 {} 00", "01".repeat(depth - 1));
        all(&stream(&["ff83 02 01 02 ff84 00 01 ff84 00 00", &value])).map(|values| values.len())
    };
    assert_eq!(nested(MAX_DEPTH), Ok(1));
    assert_eq!(nested(MAX_DEPTH + 1), Err(GobError::TooDeep));
}

#[test]
fn the_number_of_values_is_bounded() {
    // A slice of empty structs: one byte each.
    let mut encoder = Encoder::new();
    encoder.encode(
        &Type::Slice(&Type::Struct("", &[("A", Type::Uint)])),
        &Value::Slice(vec![Value::Struct(vec![]); MAX_VALUES]),
    );
    assert_eq!(all(&encoder.finish()), Err(GobError::TooMany));
}

#[test]
fn text_that_is_no_utf8_is_replaced() {
    assert_eq!(one(&unhex("05 0c 00 02 ff61")), Value::String("\u{fffd}a".into()));
}

fn entry() -> impl Strategy<Value = Value<'static>> {
    (any::<u64>(), any::<u64>(), 0..3_u64).prop_map(|(token, peer, version)| {
        let fields = [("Token", token), ("Peer", peer), ("Version", version)];
        Value::Struct(
            fields
                .into_iter()
                .filter(|(_, v)| *v != 0)
                .map(|(name, v)| (name, Value::Uint(v)))
                .collect(),
        )
    })
}

proptest! {
    #[test]
    fn rings_come_back(entries in prop::collection::vec(entry(), 1..20), now in any::<i64>(),
                       names in prop::collection::vec((any::<u64>(), ".{0,9}"), 0..5)) {
        let mut fields = vec![("Now", Value::Int(now))];
        fields.retain(|_| now != 0);
        let names = names.into_iter().map(|(n, s)| (Value::Uint(n), Value::String(s.into()))).collect();
        fields.push(("Nicknames", Value::Map(names)));
        fields.push(("Ring", Value::Struct(vec![("Entries", Value::Slice(entries))])));
        let value = Value::Struct(fields);
        let mut encoder = Encoder::new();
        encoder.encode(&STATE, &value);
        let stream = encoder.finish();
        prop_assert_eq!(one(&stream), value);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = all(&bytes);
    }

    #[test]
    fn damaged_vectors_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for name in ["ipam-ring", "ipam-accepted", "dns-two", "db-owned", "topology-two"] {
            let mut stream = vector(name);
            let at = at.index(stream.len());
            stream[at] = byte;
            let _ = all(&stream);
            let _ = all(&stream[..at]);
        }
    }
}
