//! The introduction of two peers: header, encryption flag, features (wire.md 2.2, 2.3, 2.5).
//!
//! The texts of the errors are those of the original, as people and scripts know them from
//! `weave status connections`.

use std::collections::BTreeMap;

use super::gob::{Decoder, GobError, encode_strings};
use super::name::{InvalidPeerName, PeerName, ShortId};

/// What both sides write first: the protocol's name, lowest and highest version. We speak version 2
/// only, as every peer since release 1.1 does (wire.md 1.7).
pub const HEADER: [u8; 7] = *b"weave\x02\x02";

/// The flag byte of a peer without password (wire.md 2.3).
pub const FLAG_PLAIN: u8 = 0;
/// The flag byte of a peer with password; its public key follows.
pub const FLAG_ENCRYPTED: u8 = 1;

/// Largest features map accepted, in bytes. An original's has about 180; the limit of 10 MiB for
/// messages would let strangers make us hold that much.
pub const MAX_FEATURES: usize = 64 * 1024;

/// Most unknown features kept, and the most bytes of key and value of one.
const MAX_EXTRA: usize = 32;
const MAX_EXTRA_BYTES: usize = 1024;
/// Most overlay names that count (wire.md 7.2).
const MAX_OVERLAYS: usize = 256;

/// The remote's header will not do (wire.md 2.2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not a byte came; the cause.
    #[error("failed to receive remote protocol header: {0}")]
    Nothing(String),
    /// Less than seven bytes came.
    #[error(
        "received incomplete remote protocol header ({} octets instead of 7): {}; error: {cause}",
        got.len(), go_bytes(got)
    )]
    Incomplete {
        /// What came.
        got: Vec<u8>,
        /// Why no more.
        cause: String,
    },
    /// Some other protocol.
    #[error("remote protocol header not recognised: {}", go_bytes(.0))]
    NotRecognised([u8; 5]),
    /// No version in common.
    #[error(
        "remote version range [{min},{max}] is incompatible with ours [{},{}]",
        HEADER[5],
        HEADER[6]
    )]
    Incompatible {
        /// Their lowest version.
        min: u8,
        /// Their highest version.
        max: u8,
    },
}

/// Bytes as Go prints them.
fn go_bytes(bytes: &[u8]) -> String {
    let numbers: Vec<_> = bytes.iter().map(u8::to_string).collect();
    format!("[{}]", numbers.join(" "))
}

/// Accepts a header whose versions include ours.
pub fn check_header(theirs: [u8; 7]) -> Result<(), HeaderError> {
    let ([name @ .., our_min, our_max], [their_name @ .., min, max]) = (HEADER, theirs);
    if name != their_name {
        return Err(HeaderError::NotRecognised(their_name));
    }
    if our_max.min(max) < our_min.max(min) {
        return Err(HeaderError::Incompatible { min, max });
    }
    Ok(())
}

/// The remote's flag byte does not fit ours (wire.md 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// We have a password and the remote has none.
    #[error("password specified, but peer requested an unencrypted connection")]
    Plain,
    /// The remote has a password and we have none. (The spelling is the original's.)
    #[error("no password specificed, but peer requested an encrypted connection")]
    Encrypted,
    /// Neither 0 nor 1.
    #[error("Bad encryption flag {0}")]
    Bad(u8),
}

/// Accepts the remote's flag byte if it is the same as ours: whether we have a password.
pub fn check_flag(flag: u8, password: bool) -> Result<(), FlagError> {
    match (flag, password) {
        (FLAG_PLAIN, false) | (FLAG_ENCRYPTED, true) => Ok(()),
        (FLAG_PLAIN, true) => Err(FlagError::Plain),
        (FLAG_ENCRYPTED, false) => Err(FlagError::Encrypted),
        (other, _) => Err(FlagError::Bad(other)),
    }
}

/// What a peer says of itself when a connection starts (wire.md 2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// `Name`.
    pub name: PeerName,
    /// `NickName`.
    pub nickname: String,
    /// `UID`: which incarnation of that name.
    pub uid: u64,
    /// `ConnID`: the connection's UID is the XOR of both ends' numbers.
    pub conn_id: u64,
    /// `ShortID`.
    pub short_id: Option<ShortId>,
    /// `Trusted`.
    pub trusted: bool,
    /// `Overlays`, most preferred first; `None` when the key is absent (wire.md 7.5).
    pub overlays: Option<Vec<String>>,
    /// Keys that the original does not know; ours are `MTU` (overlay MTU, decimal) and
    /// `Implementation`. An original peer sends none of them.
    pub extra: BTreeMap<String, String>,
}

/// The remote's features will not do (wire.md 2.5).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeaturesError {
    /// No map of strings.
    #[error(transparent)]
    Gob(#[from] GobError),
    /// A required key is not there.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// Another kind of peer names.
    #[error("Peer name flavour mismatch (ours: 'mac', theirs: '{0}')")]
    Flavour(String),
    /// `Name`.
    #[error(transparent)]
    Name(#[from] InvalidPeerName),
    /// `ShortID`, `UID` or `ConnID` is no decimal number.
    #[error("strconv.ParseUint: parsing {0:?}: invalid syntax")]
    NoNumber(String),
    /// `ShortID`, `UID` or `ConnID` is too large.
    #[error("strconv.ParseUint: parsing {0:?}: value out of range")]
    OutOfRange(String),
    /// `Trusted`.
    #[error("strconv.ParseBool: parsing {0:?}: invalid syntax")]
    NoBool(String),
}

const FLAVOUR: &str = "PeerNameFlavour";
const FLAVOUR_MAC: &str = "mac";
const NAME: &str = "Name";
const NICKNAME: &str = "NickName";
const UID: &str = "UID";
const CONN_ID: &str = "ConnID";
const SHORT_ID: &str = "ShortID";
const TRUSTED: &str = "Trusted";
const OVERLAYS: &str = "Overlays";
const KNOWN: [&str; 8] = [FLAVOUR, NAME, NICKNAME, UID, CONN_ID, SHORT_ID, TRUSTED, OVERLAYS];

impl Features {
    /// The gob stream that is the first message's body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut map = vec![
            (FLAVOUR, FLAVOUR_MAC.to_owned()),
            (NAME, self.name.to_string()),
            (NICKNAME, self.nickname.clone()),
            (UID, self.uid.to_string()),
            (CONN_ID, self.conn_id.to_string()),
            (TRUSTED, self.trusted.to_string()),
        ];
        map.extend(self.short_id.map(|id| (SHORT_ID, id.get().to_string())));
        map.extend(self.overlays.as_ref().map(|names| (OVERLAYS, names.join(" "))));
        let unknown = self
            .extra
            .iter()
            .filter(|(key, _)| !KNOWN.contains(&key.as_str()));
        map.extend(unknown.map(|(key, value)| (key.as_str(), value.clone())));
        encode_strings(&map)
    }

    /// From the first message's body; checked in the order of wire.md 2.5. Unknown features beyond
    /// sensible limits are left out.
    pub fn decode(body: &[u8]) -> Result<Self, FeaturesError> {
        let value = Decoder::new(body).require("features")?;
        let map = value.as_strings("features")?;
        let required = |key| map.get(key).copied().ok_or(FeaturesError::Missing(key));
        let (flavour, name, nickname) = (required(FLAVOUR)?, required(NAME)?, required(NICKNAME)?);
        let (uid, conn_id) = (required(UID)?, required(CONN_ID)?);
        if flavour != FLAVOUR_MAC {
            return Err(FeaturesError::Flavour(flavour.to_owned()));
        }
        let out_of_range = |text: &str| FeaturesError::OutOfRange(text.to_owned());
        Ok(Self {
            name: name.parse()?,
            nickname: nickname.to_owned(),
            short_id: match map.get(SHORT_ID) {
                None => None,
                Some(text) => Some(ShortId::new(decimal(text)?).ok_or_else(|| out_of_range(text))?),
            },
            trusted: map.get(TRUSTED).map_or(Ok(false), |text| boolean(text))?,
            uid: decimal(uid)?,
            conn_id: decimal(conn_id)?,
            overlays: map.get(OVERLAYS).map(|names| {
                let names = names.split(' ').filter(|name| !name.is_empty());
                names.take(MAX_OVERLAYS).map(str::to_owned).collect()
            }),
            // Sorted: the same ones are kept each time.
            extra: map
                .iter()
                .filter(|(key, value)| !KNOWN.contains(key) && key.len() + value.len() <= MAX_EXTRA_BYTES)
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .take(MAX_EXTRA)
                .collect(),
        })
    }
}

/// Digits only, unlike `u64::from_str`, which takes a sign.
fn decimal(text: &str) -> Result<u64, FeaturesError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(FeaturesError::NoNumber(text.to_owned()));
    }
    text.parse()
        .map_err(|_| FeaturesError::OutOfRange(text.to_owned()))
}

fn boolean(text: &str) -> Result<bool, FeaturesError> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(FeaturesError::NoBool(text.to_owned())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::gob::tests::unhex;
    use super::*;

    const GOOD: [(&str, &str); 8] = [
        ("PeerNameFlavour", "mac"),
        ("Name", "7a:00:00:00:00:01"),
        ("NickName", ""),
        ("UID", "18446744073709551615"),
        ("ConnID", "0"),
        ("ShortID", "4095"),
        ("Trusted", "T"),
        ("Overlays", "fastdp  sleeve"),
    ];

    /// GOOD with one value changed, or without that key.
    fn with(key: &str, value: Option<&str>) -> Result<Features, FeaturesError> {
        let pairs: Vec<_> = GOOD
            .into_iter()
            .filter_map(|(k, v)| {
                if k == key {
                    value.map(|v| (k, v))
                } else {
                    Some((k, v))
                }
            })
            .collect();
        Features::decode(&encode_strings(&pairs))
    }

    #[test]
    fn captured_features() {
        let body = unhex(
            "0eff81040102ff8200010c010c0000 ffa3 ff82 00 08 08 4f7665726c617973 0d 6661737464702073 6c65657665
             0f 506565724e616d65466c61766f7572 03 6d6163 04 4e616d65 11 30323a30303a30303a30303a30303a3062
             08 4e69636b4e616d65 04 62657461 07 53686f72744944 03 343934
             03 554944 14 3132343530383233333231373938373834353632
             06 436f6e6e4944 14 3137353735343338363836393935373833333136 07 54727573746564 05 66616c7365",
        );
        let features = Features {
            name: "02:00:00:00:00:0b".parse().unwrap(),
            nickname: "beta".into(),
            uid: 12_450_823_321_798_784_562,
            conn_id: 17_575_438_686_995_783_316,
            short_id: ShortId::new(494),
            trusted: false,
            overlays: Some(vec!["fastdp".into(), "sleeve".into()]),
            extra: BTreeMap::new(),
        };
        assert_eq!(Features::decode(&body).unwrap(), features);
        // Only the order of the map differs.
        assert_eq!(features.encode().len(), body.len());
        assert_eq!(Features::decode(&features.encode()).unwrap(), features);
    }

    #[test]
    fn headers() {
        let check = |bytes: &[u8; 7]| check_header(*bytes).map_err(|e| e.to_string());
        for good in [
            b"weave\x01\x02",
            b"weave\x02\x02",
            b"weave\x00\xff",
            b"weave\x02\x03",
        ] {
            assert_eq!(check(good), Ok(()));
        }
        for (bad, text) in [
            (
                b"weave\x01\x01",
                "remote version range [1,1] is incompatible with ours [2,2]",
            ),
            (
                b"weave\x03\x04",
                "remote version range [3,4] is incompatible with ours [2,2]",
            ),
            (
                b"weave\x02\x01",
                "remote version range [2,1] is incompatible with ours [2,2]",
            ),
            (
                b"GET / H",
                "remote protocol header not recognised: [71 69 84 32 47]",
            ),
        ] {
            assert_eq!(check(bad), Err(text.to_owned()));
        }
        let incomplete = HeaderError::Incomplete {
            got: b"wea".to_vec(),
            cause: "unexpected EOF".into(),
        };
        assert_eq!(
            incomplete.to_string(),
            "received incomplete remote protocol header (3 octets instead of 7): [119 101 97]; error: \
             unexpected EOF"
        );
    }

    #[test]
    fn flags() {
        assert_eq!((check_flag(0, false), check_flag(1, true)), (Ok(()), Ok(())));
        let text = |flag, password| check_flag(flag, password).unwrap_err().to_string();
        assert_eq!(
            text(1, false),
            "no password specificed, but peer requested an encrypted connection"
        );
        assert_eq!(
            text(0, true),
            "password specified, but peer requested an unencrypted connection"
        );
        assert_eq!(text(2, false), "Bad encryption flag 2");
        assert_eq!(text(2, true), "Bad encryption flag 2");
    }

    #[test]
    fn checks_and_their_texts() {
        let good = with("", None).unwrap();
        assert_eq!((good.uid, good.conn_id, good.trusted), (u64::MAX, 0, true));
        assert_eq!(good.short_id, ShortId::new(4095));
        assert_eq!(
            good.overlays,
            Some(vec!["fastdp".to_owned(), "sleeve".to_owned()])
        );
        assert_eq!(with("ShortID", None).unwrap().short_id, None);
        assert_eq!(with("Overlays", None).unwrap().overlays, None);
        assert!(!with("Trusted", None).unwrap().trusted);

        for (key, value, text) in [
            ("NickName", None, "field NickName is missing"),
            ("ConnID", None, "field ConnID is missing"),
            (
                "PeerNameFlavour",
                Some("hash"),
                "Peer name flavour mismatch (ours: 'mac', theirs: 'hash')",
            ),
            ("Name", Some("::"), "invalid peer name format: \"::\""),
            (
                "ShortID",
                Some("5000"),
                "strconv.ParseUint: parsing \"5000\": value out of range",
            ),
            (
                "ShortID",
                Some("x"),
                "strconv.ParseUint: parsing \"x\": invalid syntax",
            ),
            (
                "Trusted",
                Some("yes"),
                "strconv.ParseBool: parsing \"yes\": invalid syntax",
            ),
            (
                "UID",
                Some("+1"),
                "strconv.ParseUint: parsing \"+1\": invalid syntax",
            ),
            (
                "UID",
                Some("18446744073709551616"),
                "strconv.ParseUint: parsing \"18446744073709551616\": value out of range",
            ),
            (
                "ConnID",
                Some(""),
                "strconv.ParseUint: parsing \"\": invalid syntax",
            ),
        ] {
            assert_eq!(with(key, value).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn the_first_check_that_fails_counts() {
        let bad = [
            ("PeerNameFlavour", "hash"),
            ("Name", "x"),
            ("NickName", ""),
            ("UID", "x"),
            ("ShortID", "x"),
            ("Trusted", "x"),
        ];
        let error =
            |pairs: &[(&str, &str)]| Features::decode(&encode_strings(pairs)).unwrap_err().to_string();
        assert_eq!(error(&bad[1..]), "field PeerNameFlavour is missing");
        assert_eq!(error(&bad), "field ConnID is missing");
        let mut pairs = [&bad[..], &[("ConnID", "x")]].concat();
        assert!(error(&pairs).starts_with("Peer name flavour"));
        pairs[0].1 = "mac";
        assert!(error(&pairs).starts_with("invalid peer name"));
        pairs[1].1 = "::1";
        pairs[4].1 = "4096";
        assert!(error(&pairs).contains("\"4096\""));
        pairs[4].1 = "1";
        assert!(error(&pairs).contains("ParseBool"));
    }

    #[test]
    fn unknown_keys_are_kept_within_limits() {
        let many: Vec<_> = (0..100).map(|n| format!("x{n:02}")).collect();
        let long = "y".repeat(2000);
        let mut pairs = GOOD.to_vec();
        pairs.extend(many.iter().map(|key| (key.as_str(), "v")));
        pairs.extend([("MTU", "1410"), ("Long", long.as_str())]);
        let extra = Features::decode(&encode_strings(&pairs)).unwrap().extra;
        assert_eq!(extra.len(), 32);
        assert_eq!(extra.get("MTU").map(String::as_str), Some("1410"));
        assert_eq!(extra.get("Long"), None);
    }

    #[test]
    fn only_a_map_of_strings_will_do() {
        for hex in ["", "03 06 00 05", "0cff81020102ff8200010c0000 04ff820000"] {
            assert!(matches!(
                Features::decode(&unhex(hex)),
                Err(FeaturesError::Gob(_))
            ));
        }
    }

    proptest! {
        #[test]
        fn features_come_back(name in 1..1_u64 << 48, nickname in ".{0,20}", uid: u64, conn_id: u64,
                              short_id in prop::option::of(0..4096_u64), trusted: bool,
                              overlays in prop::option::of(prop::collection::vec("[a-z]{1,9}", 0..4)),
                              extra in prop::collection::btree_map("[A-Z]{9}", ".{0,9}", 0..9)) {
            let name = PeerName::from_u64(name).unwrap();
            let short_id = short_id.and_then(ShortId::new);
            let ours = Features { name, nickname, uid, conn_id, short_id, trusted, overlays, extra };
            prop_assert_eq!(Features::decode(&ours.encode()).unwrap(), ours);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Features::decode(&bytes);
        }
    }
}
