//! Who of two live peers keeps the name that both have: a pure decision, the same at both ends
//! (wire.md 2.7, weakness W24).

use std::cmp::Reverse;
use std::net::SocketAddr;

use super::gob::{Decoder, GobError, encode_strings};
use super::handshake::Features;
use super::name::PeerName;

/// Feature: when the name was chosen, Unix seconds in decimal.
pub const FEATURE_NAME_SINCE: &str = "NameSince";
/// Feature: random number persisted with the name, 16 hex digits. Who has it understands tag 16, too.
pub const FEATURE_INSTANCE: &str = "Instance";
/// Feature: what would be lost with the name, a digit (see [`Stake`]).
pub const FEATURE_STAKE: &str = "Stake";

const KEYS: [&str; 3] = [FEATURE_STAKE, FEATURE_NAME_SINCE, FEATURE_INSTANCE];

/// Longest nickname in a message, in bytes; a longer one is left out.
const MAX_NICKNAME: usize = 256;

/// What a peer would lose with its name, the least first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stake {
    /// It owns nothing yet.
    #[default]
    Nothing,
    /// It owns a part of the address range.
    Space,
    /// Containers are attached on this host.
    Containers,
    /// An administrator chose it (`--name`): it is never given up.
    Chosen,
}

/// What a peer's right to its name rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// What it would lose.
    pub stake: Stake,
    /// When the name was chosen, Unix seconds.
    pub since: u64,
    /// Persisted with the name: equal only where a data directory was copied.
    pub instance: u64,
    /// Of the process (wire.md 1.2).
    pub uid: u64,
}

impl Claim {
    /// What the remote says in its features; `None` for an original peer.
    #[must_use]
    pub fn of(features: &Features) -> Option<Self> {
        let get = |key| features.extra.get(key).map(String::as_str);
        Self::parse(features.uid, KEYS.map(get))
    }

    /// From the values of [`KEYS`].
    fn parse(uid: u64, [stake, since, instance]: [Option<&str>; 3]) -> Option<Self> {
        Some(Self {
            stake: match stake {
                Some("1") => Stake::Space,
                Some("2") => Stake::Containers,
                Some("3") => Stake::Chosen,
                _ => Stake::Nothing,
            },
            since: since?.parse().ok()?,
            instance: u64::from_str_radix(instance?, 16).ok()?,
            uid,
        })
    }

    /// The features that say this.
    #[must_use]
    pub fn features(&self) -> [(String, String); 3] {
        let [stake, since, instance] = KEYS.map(str::to_owned);
        [
            (stake, (self.stake as u8).to_string()),
            (since, self.since.to_string()),
            (instance, format!("{:016x}", self.instance)),
        ]
    }

    /// Must this one give the name up if the other one is alive, too? Of two claims of different processes
    /// one yields, unless both names were chosen. An original (`None`) cannot yield.
    #[must_use]
    pub fn yields_to(&self, other: Option<&Self>) -> bool {
        let order = |claim: &Self| (Reverse(claim.stake), claim.since, claim.instance, claim.uid);
        self.stake != Stake::Chosen && other.is_none_or(|other| order(self) > order(other))
    }
}

/// Another peer that has a name, as told to one that says the same of itself (tag 16).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The name.
    pub name: PeerName,
    /// Its nickname.
    pub nickname: String,
    /// Where it is, as far as the teller knows.
    pub address: Option<SocketAddr>,
    /// What its right rests on.
    pub claim: Claim,
}

const NAME: &str = "Name";
const NICKNAME: &str = "NickName";
const ADDRESS: &str = "Address";
const UID: &str = "UID";

impl Holder {
    /// A gob map of strings; most keys as in the features.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut map = vec![
            (NAME.to_owned(), self.name.to_string()),
            (NICKNAME.to_owned(), self.nickname.clone()),
            (UID.to_owned(), self.claim.uid.to_string()),
        ];
        map.extend(
            self.address
                .map(|address| (ADDRESS.to_owned(), address.to_string())),
        );
        map.extend(self.claim.features());
        encode_strings(&map)
    }

    /// `None` if it lacks what matters.
    pub fn decode(payload: &[u8]) -> Result<Option<Self>, GobError> {
        let value = Decoder::new(payload).require("holder")?;
        let map = value.as_strings("holder")?;
        let get = |key: &str| map.get(key).copied();
        let parse = || {
            Some(Self {
                name: get(NAME)?.parse().ok()?,
                nickname: get(NICKNAME)
                    .filter(|nickname| nickname.len() <= MAX_NICKNAME)
                    .unwrap_or_default()
                    .to_owned(),
                address: get(ADDRESS).and_then(|address| address.parse().ok()),
                claim: Claim::parse(get(UID)?.parse().ok()?, KEYS.map(get))?,
            })
        };
        Ok(parse())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(stake: Stake, since: u64, instance: u64, uid: u64) -> Claim {
        Claim {
            stake,
            since,
            instance,
            uid,
        }
    }

    #[test]
    fn who_yields() {
        use Stake::{Chosen, Containers, Nothing, Space};
        for (what, keeps, yields) in [
            ("less to lose", claim(Space, 9, 9, 9), claim(Nothing, 1, 1, 1)),
            ("no containers", claim(Containers, 9, 9, 9), claim(Space, 1, 1, 1)),
            (
                "not chosen by hand",
                claim(Chosen, 9, 9, 9),
                claim(Containers, 1, 1, 1),
            ),
            ("the later name", claim(Space, 5, 9, 9), claim(Space, 6, 1, 1)),
            (
                "same time: the higher instance",
                claim(Space, 5, 3, 9),
                claim(Space, 5, 4, 1),
            ),
            (
                "copied directory: the higher UID",
                claim(Space, 5, 3, 1),
                claim(Space, 5, 3, 2),
            ),
        ] {
            assert!(yields.yields_to(Some(&keeps)), "{what}");
            assert!(!keeps.yields_to(Some(&yields)), "{what}: the other stays");
        }
        let ours = claim(Containers, 0, 0, 0);
        assert!(ours.yields_to(None), "an original cannot");
        let (one, other) = (claim(Chosen, 1, 1, 1), claim(Chosen, 2, 2, 2));
        assert!(!one.yields_to(Some(&other)) && !other.yields_to(Some(&one)));
        assert!(!one.yields_to(None));
    }

    fn claims() -> impl Strategy<Value = Claim> {
        let stake = prop::sample::select(vec![Stake::Nothing, Stake::Space, Stake::Containers]);
        // Small numbers, so that many are equal.
        (stake, 0..3_u64, 0..3_u64, 0..3_u64).prop_map(|(s, since, i, uid)| claim(s, since, i, uid))
    }

    proptest! {
        #[test]
        fn exactly_one_yields(one in claims(), other in claims()) {
            prop_assume!(one != other);
            prop_assert_ne!(one.yields_to(Some(&other)), other.yields_to(Some(&one)));
        }

        #[test]
        fn holders_come_back(name in 1..1_u64 << 48, nickname in ".{0,20}", claim in claims(),
                             address in prop::option::of(any::<([u8; 4], u16)>())) {
            let name = PeerName::from_u64(name).unwrap();
            let holder = Holder { name, nickname, address: address.map(SocketAddr::from), claim };
            prop_assert_eq!(Holder::decode(&holder.encode()).unwrap(), Some(holder));
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Holder::decode(&bytes);
        }
    }
}
