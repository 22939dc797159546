//! What allocators say to each other on the mesh channel (control.md 1.6, 1.9).

use std::collections::BTreeMap;

use super::address::Range;
use super::paxos::{Accepted, Claims, MAX_NODES, NodeId, Nodes, Proposal};
use super::ring::{Entry, MAX_ENTRIES, Ring};
use crate::mesh::gob::{Decoder, Encoder, GobError, Type, Value};
use crate::mesh::name::PeerName;

/// Most nicknames taken from one message, and kept.
pub const MAX_NICKNAMES: usize = 1 << 14;
/// Longest nickname taken, in bytes.
pub const MAX_NICKNAME: usize = 1024;

/// A peer's state, the payload of gossip and broadcasts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Every peer name the sender knows, with its nickname.
    pub nicknames: BTreeMap<PeerName, String>,
    /// The vote: present, even if empty, when the sender votes and has no ring.
    pub paxos: Option<Nodes>,
    /// The ring, once there is one.
    pub ring: Option<Ring>,
}

/// A message to one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unicast {
    /// Please give us space in this range.
    SpaceRequest(Range),
    /// Our state.
    RingUpdate(State),
    /// We have nothing to give in this range.
    SpaceDenied(Range),
}

/// A payload cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// No such gob value.
    #[error(transparent)]
    Gob(#[from] GobError),
    /// A number that is no address, version, count or peer name.
    #[error("IPallocation: {0} is out of range")]
    OutOfRange(&'static str),
    /// A ring of more than [`MAX_ENTRIES`] entries, or as many seeds.
    #[error("IPallocation: too many {0}")]
    TooMany(&'static str),
    /// A kind that does not exist (or no kind at all).
    #[error("IPallocation: unknown kind of unicast")]
    UnknownKind,
}

static RANGE: Type = Type::Struct("Range", &[("Start", Type::Uint), ("End", Type::Uint)]);
const NODE_FIELDS: &[(&str, Type)] = &[("Name", Type::Uint), ("UID", Type::Uint)];
static NODE: Type = Type::Struct("", NODE_FIELDS);
const PROPOSAL: Type = Type::Struct(
    "ProposalID",
    &[("Round", Type::Uint), ("Proposer", Type::Struct("", NODE_FIELDS))],
);
const ACCEPTED_VALUE: Type = Type::Struct(
    "AcceptedValue",
    &[("Value", Type::Slice(&Type::Uint)), ("Origin", PROPOSAL)],
);
static CLAIMS: Type = Type::Struct(
    "",
    &[
        ("Promise", PROPOSAL),
        ("Accepted", PROPOSAL),
        ("AcceptedVal", ACCEPTED_VALUE),
    ],
);
static ENTRY: Type = Type::Struct(
    "",
    &[
        ("Token", Type::Uint),
        ("Peer", Type::Uint),
        ("Version", Type::Uint),
        ("Free", Type::Uint),
    ],
);
const RING: Type = Type::Struct(
    "Ring",
    &[
        ("Start", Type::Uint),
        ("End", Type::Uint),
        ("Peer", Type::Uint),
        ("Entries", Type::Slice(&ENTRY)),
        ("Seeds", Type::Slice(&Type::Uint)),
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

impl State {
    /// Bytes of a gossip or broadcast; `unix_now` in seconds.
    #[must_use]
    pub fn encode(&self, unix_now: i64) -> Vec<u8> {
        let nicknames = self.nicknames.iter();
        let nicknames = nicknames.map(|(p, n)| (name_value(*p), Value::String(n.as_str().into())));
        let mut fields = vec![
            ("Now", Value::Int(unix_now)),
            ("Nicknames", Value::Map(nicknames.collect())),
        ];
        if let Some(nodes) = &self.paxos {
            let nodes = nodes.iter().map(|(n, c)| (node_value(n), claims_value(c)));
            fields.push(("Paxos", Value::Map(nodes.collect())));
        }
        if let Some(ring) = &self.ring {
            fields.push(("Ring", ring_value(ring)));
        }
        encode(&STATE, &Value::Struct(fields))
    }

    /// As [`State::decode`], with the sender's clock (Unix time in seconds).
    pub fn decode_with_clock(payload: &[u8]) -> Result<(Self, i64), MessageError> {
        let value = Decoder::new(payload).require("IPallocation state")?;
        Ok((Self::of(&value)?, value.int("Now")?))
    }

    /// Reads one state. Nicknames and voters that make no sense are left out; a ring must be right.
    pub fn decode(payload: &[u8]) -> Result<Self, MessageError> {
        Self::decode_with_clock(payload).map(|(state, _)| state)
    }

    fn of(value: &Value<'_>) -> Result<Self, MessageError> {
        let mut state = Self::default();
        for (name, nickname) in value.map("Nicknames")?.unwrap_or_default() {
            let nickname = nickname.as_str("Nicknames")?;
            let Some(name) = PeerName::from_u64(name.as_uint("Nicknames")?) else {
                continue;
            };
            if state.nicknames.len() < MAX_NICKNAMES && nickname.len() <= MAX_NICKNAME {
                state.nicknames.insert(name, nickname.to_owned());
            }
        }
        if let Some(nodes) = value.map("Paxos")? {
            let mut known = Nodes::new();
            for (node, claims) in nodes {
                if known.len() < MAX_NODES
                    && let Some(node) = node_of(node)?
                    && let Some(claims) = claims_of(claims)?
                {
                    known.insert(node, claims);
                }
            }
            state.paxos = Some(known);
        }
        state.ring = value.get("Ring")?.map(ring_of).transpose()?;
        Ok(state)
    }
}

impl Unicast {
    /// Bytes of the message; `unix_now` in seconds.
    #[must_use]
    pub fn encode(&self, unix_now: i64) -> Vec<u8> {
        let (kind, rest) = match self {
            Self::SpaceRequest(range) => (0, encode(&RANGE, &range_value(*range))),
            Self::RingUpdate(state) => (1, state.encode(unix_now)),
            Self::SpaceDenied(range) => (2, encode(&RANGE, &range_value(*range))),
        };
        [&[kind], rest.as_slice()].concat()
    }

    /// Reads a message.
    pub fn decode(payload: &[u8]) -> Result<Self, MessageError> {
        let (kind, rest) = payload.split_first().ok_or(MessageError::UnknownKind)?;
        match kind {
            0 => Ok(Self::SpaceRequest(range_of(rest)?)),
            1 => Ok(Self::RingUpdate(State::decode(rest)?)),
            2 => Ok(Self::SpaceDenied(range_of(rest)?)),
            _ => Err(MessageError::UnknownKind),
        }
    }
}

fn encode(ty: &Type, value: &Value<'_>) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.encode(ty, value);
    encoder.finish()
}

fn number(value: u32) -> Value<'static> {
    Value::Uint(value.into())
}

fn name_value(name: PeerName) -> Value<'static> {
    Value::Uint(name.as_u64())
}

fn names_value(names: &[PeerName]) -> Value<'static> {
    Value::Slice(names.iter().copied().map(name_value).collect())
}

fn node_value(node: &NodeId) -> Value<'static> {
    Value::Struct(vec![
        ("Name", name_value(node.name)),
        ("UID", Value::Uint(node.uid)),
    ])
}

fn proposal_value(proposal: Option<&Proposal>) -> Value<'static> {
    let round = proposal.map_or(0, |p| p.round);
    let proposer = proposal.map_or(Value::Struct(Vec::new()), |p| node_value(&p.proposer));
    Value::Struct(vec![("Round", Value::Uint(round)), ("Proposer", proposer)])
}

fn claims_value(claims: &Claims) -> Value<'static> {
    let accepted = claims.accepted.as_ref();
    let value = accepted.map_or(&[] as &[_], |a| &a.value);
    let value = vec![
        ("Value", names_value(value)),
        ("Origin", proposal_value(accepted.map(|a| &a.origin))),
    ];
    Value::Struct(vec![
        ("Promise", proposal_value(claims.promise.as_ref())),
        ("Accepted", proposal_value(accepted.map(|a| &a.proposal))),
        ("AcceptedVal", Value::Struct(value)),
    ])
}

fn ring_value(ring: &Ring) -> Value<'static> {
    let entry = |e: &Entry| {
        Value::Struct(vec![
            ("Token", number(e.token)),
            ("Peer", name_value(e.peer)),
            ("Version", number(e.version)),
            ("Free", number(e.free)),
        ])
    };
    Value::Struct(vec![
        ("Start", number(ring.range.start)),
        ("End", number(ring.range.end)),
        ("Peer", name_value(ring.peer)),
        ("Entries", Value::Slice(ring.entries.iter().map(entry).collect())),
        ("Seeds", names_value(&ring.seeds)),
    ])
}

fn range_value(range: Range) -> Value<'static> {
    Value::Struct(vec![("Start", number(range.start)), ("End", number(range.end))])
}

fn uint32(value: &Value<'_>, field: &'static str) -> Result<u32, MessageError> {
    u32::try_from(value.uint(field)?).map_err(|_| MessageError::OutOfRange(field))
}

fn range_of(payload: &[u8]) -> Result<Range, MessageError> {
    let value = Decoder::new(payload).require("IPallocation range")?;
    fields_to_range(&value)
}

fn fields_to_range(value: &Value<'_>) -> Result<Range, MessageError> {
    let (start, end) = (uint32(value, "Start")?, uint32(value, "End")?);
    if start > end {
        return Err(MessageError::OutOfRange("Start"));
    }
    Ok(Range { start, end })
}

/// `None`: no valid peer name.
fn node_of(value: &Value<'_>) -> Result<Option<NodeId>, MessageError> {
    let uid = value.uint("UID")?;
    Ok(PeerName::from_u64(value.uint("Name")?).map(|name| NodeId { name, uid }))
}

/// `Err(())` inside: a proposal without a valid proposer.
fn proposal_of(value: &Value<'_>, field: &'static str) -> Result<Result<Option<Proposal>, ()>, MessageError> {
    let value = value.child(field)?;
    let round = value.uint("Round")?;
    let proposer = node_of(value.child("Proposer")?)?;
    Ok(match (round, proposer) {
        (0, _) => Ok(None),
        (_, Some(proposer)) => Ok(Some(Proposal { round, proposer })),
        (_, None) => Err(()),
    })
}

/// `None`: claims that make no sense.
fn claims_of(value: &Value<'_>) -> Result<Option<Claims>, MessageError> {
    let promise = proposal_of(value, "Promise")?;
    let accepted = proposal_of(value, "Accepted")?;
    let chosen = value.child("AcceptedVal")?;
    let origin = proposal_of(chosen, "Origin")?;
    let names = chosen.slice("Value")?;
    let (Ok(promise), Ok(accepted), Ok(origin)) = (promise, accepted, origin) else {
        return Ok(None);
    };
    let Some(proposal) = accepted else {
        let accepted = None;
        return Ok(Some(Claims { promise, accepted }));
    };
    let (Some(origin), Ok(value)) = (origin, names_of(names, "Value")) else {
        return Ok(None);
    };
    if value.len() > MAX_NODES {
        return Ok(None);
    }
    let accepted = Some(Accepted {
        proposal,
        value,
        origin,
    });
    Ok(Some(Claims { promise, accepted }))
}

fn names_of(values: &[Value<'_>], field: &'static str) -> Result<Vec<PeerName>, MessageError> {
    let name = |v: &Value<'_>| {
        let name = PeerName::from_u64(v.as_uint(field)?);
        name.ok_or(MessageError::OutOfRange(field))
    };
    values.iter().map(name).collect()
}

fn ring_of(value: &Value<'_>) -> Result<Ring, MessageError> {
    let name = |value: &Value<'_>| {
        let name = PeerName::from_u64(value.uint("Peer")?);
        name.ok_or(MessageError::OutOfRange("Peer"))
    };
    let entry = |value: &Value<'_>| {
        Ok::<_, MessageError>(Entry {
            token: uint32(value, "Token")?,
            peer: name(value)?,
            version: uint32(value, "Version")?,
            free: uint32(value, "Free")?,
        })
    };
    let (entries, seeds) = (value.slice("Entries")?, value.slice("Seeds")?);
    if entries.len() > MAX_ENTRIES {
        return Err(MessageError::TooMany("ring entries"));
    }
    if seeds.len() > MAX_ENTRIES {
        return Err(MessageError::TooMany("seeds"));
    }
    Ok(Ring {
        range: fields_to_range(value)?,
        peer: name(value)?,
        entries: entries.iter().map(entry).collect::<Result<_, _>>()?,
        seeds: names_of(seeds, "Seeds")?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mesh::gob::tests::vector;

    fn peer(number: u64) -> PeerName {
        PeerName::from_u64(number).unwrap()
    }

    fn named_one() -> State {
        State {
            nicknames: BTreeMap::from([(peer(1), "one".to_owned())]),
            ..State::default()
        }
    }

    fn proposal(uid: u64) -> Proposal {
        let proposer = NodeId { name: peer(1), uid };
        Proposal { round: 1, proposer }
    }

    /// The states of control.md A.1.
    fn states() -> Vec<(&'static str, State)> {
        let entry = |token, peer| Entry {
            token,
            peer,
            version: 0,
            free: 524_288,
        };
        let other = peer(0x8a3e_3e3e_3e3e);
        let ring = Ring {
            range: Range {
                start: 0x0a20_0000,
                end: 0x0a30_0000,
            },
            peer: peer(1),
            entries: vec![entry(0x0a20_0000, peer(1)), entry(0x0a28_0000, other)],
            seeds: vec![peer(1), other],
        };
        let promised = |uid, value: Option<Vec<PeerName>>| {
            let p = proposal(uid);
            let accepted = value.map(|value| Accepted {
                proposal: p,
                value,
                origin: p,
            });
            let promise = Some(p);
            Some(Nodes::from([(p.proposer, Claims { promise, accepted })]))
        };
        let with_paxos = |paxos| State { paxos, ..named_one() };
        let with_ring = State {
            ring: Some(ring),
            ..named_one()
        };
        vec![
            ("ipam-ring", with_ring),
            ("ipam-proposed", with_paxos(promised(0x1122_3344_5566_7788, None))),
            ("ipam-accepted", with_paxos(promised(5, Some(vec![peer(1)])))),
            ("ipam-empty-paxos", with_paxos(Some(Nodes::new()))),
            ("ipam-observer", with_paxos(None)),
        ]
    }

    #[test]
    fn states_of_the_specification() {
        for (name, state) in states() {
            assert_eq!(State::decode(&vector(name)).as_ref(), Ok(&state), "{name}");
            // Ours holds the same as an original's, down to what is left out.
            let (ours, theirs) = (state.encode(1_600_000_000), vector(name));
            let value = |bytes: &[u8]| format!("{:?}", Decoder::new(bytes).require("state").unwrap());
            assert_eq!(value(&ours), value(&theirs), "{name}");
        }
    }

    #[test]
    fn ranges_of_the_specification() {
        let range = Range {
            start: 0x0a20_0000,
            end: 0x0a30_0000,
        };
        for (kind, message) in [
            (0, Unicast::SpaceRequest(range)),
            (2, Unicast::SpaceDenied(range)),
        ] {
            let theirs = [&[kind], vector("ipam-range").as_slice()].concat();
            assert_eq!(Unicast::decode(&theirs).as_ref(), Ok(&message));
            assert_eq!(Unicast::decode(&message.encode(0)), Ok(message));
        }
    }

    #[test]
    fn unknown_kinds() {
        assert_eq!(Unicast::decode(&[]), Err(MessageError::UnknownKind));
        assert_eq!(Unicast::decode(&[3, 1, 2]), Err(MessageError::UnknownKind));
        assert!(Unicast::decode(&[0]).is_err());
    }

    #[test]
    fn nonsense_is_refused_or_left_out() {
        let mut strange = states().remove(0).1;
        strange.nicknames.insert(peer(2), "x".repeat(MAX_NICKNAME + 1));
        let decoded = State::decode(&strange.encode(0)).unwrap();
        assert_eq!(decoded.nicknames, named_one().nicknames);

        let backwards = range_value(Range { start: 5, end: 4 });
        assert_eq!(
            range_of(&encode(&RANGE, &backwards)),
            Err(MessageError::OutOfRange("Start"))
        );
        let wide = Value::Struct(vec![("End", Value::Uint(1 << 32))]);
        assert_eq!(
            range_of(&encode(&RANGE, &wide)),
            Err(MessageError::OutOfRange("End"))
        );
    }

    proptest! {
        #[test]
        fn damaged_messages_never_panic(which in 0..5usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let (name, _) = states().remove(which);
            let mut bytes = vector(name);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = State::decode(&bytes);
        }
    }
}
