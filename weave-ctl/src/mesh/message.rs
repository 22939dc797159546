//! Messages on the TCP control connection, after the handshake (wire.md 2.6, 3.5.2, 4.1, 7.4).

use super::claim::Holder;
use super::gob::{Decoder, Encoder, GobError, Type, Value};
use super::name::PeerName;

/// Largest message body, in bytes, either way (wire.md 2.6).
pub const MAX_BODY: usize = 10 * 1024 * 1024;

/// A gossip message's outer part (wire.md 3.5.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Channel name.
    pub channel: String,
    /// Tag 4: the neighbour that sent it; tags 5 and 6: the originator.
    pub source: PeerName,
    /// Opaque to the mesh.
    pub payload: Vec<u8>,
}

/// One message (tags of wire.md 2.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Tag 0.
    Heartbeat,
    /// Tag 4.
    Gossip(Envelope),
    /// Tag 5. `raw` is the whole body as received, for forwarding byte for byte (`None` when ours).
    Unicast {
        /// Destination.
        to: PeerName,
        /// The rest.
        envelope: Envelope,
        /// Body as received, tag included.
        raw: Option<Vec<u8>>,
    },
    /// Tag 6.
    Broadcast(Envelope),
    /// Tag 7: index into the common overlay list, the overlay's tag, its data.
    OverlayControl {
        /// Index into the list of common overlays.
        index: u8,
        /// Meaning depends on the overlay.
        tag: u8,
        /// Meaning depends on the tag.
        data: Vec<u8>,
    },
    /// Tag 17, only between neighbours with the feature: see [`super::reconcile::wire`].
    Reconcile(Vec<u8>),
    /// Tag 16, only to peers with the feature `Instance`: somebody else has your name.
    NameTaken(Box<Holder>),
}

const HEARTBEAT: u8 = 0;
const GOSSIP: u8 = 4;
const UNICAST: u8 = 5;
const BROADCAST: u8 = 6;
const OVERLAY_CONTROL: u8 = 7;
const RECONCILE: u8 = 17;
/// Ours; an original logs it and goes on.
const NAME_TAKEN: u8 = 16;

/// A message that ends the connection it came from (wire.md 2.6).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The envelope cannot be decoded.
    #[error(transparent)]
    Envelope(#[from] GobError),
}

impl Message {
    /// The message in `body` (without length, opened if it was sealed).
    ///
    /// `None` is something to skip and count, which must not cost the connection: a blank body, an
    /// unknown tag (also 1 to 3, which only releases without overlay negotiation use), overlay
    /// control too short to have an index and a tag, an envelope with an impossible peer name.
    pub fn decode(body: &[u8]) -> Result<Option<Self>, MessageError> {
        let Some((tag, payload)) = body.split_first() else {
            return Ok(None);
        };
        match *tag {
            HEARTBEAT => Ok(Some(Self::Heartbeat)),
            GOSSIP => Ok(decode_envelope(payload, false)?.map(|(_, envelope)| Self::Gossip(envelope))),
            BROADCAST => Ok(decode_envelope(payload, false)?.map(|(_, envelope)| Self::Broadcast(envelope))),
            UNICAST => Ok(
                decode_envelope(payload, true)?.map(|(to, envelope)| Self::Unicast {
                    to,
                    envelope,
                    raw: Some(body.to_vec()),
                }),
            ),
            OVERLAY_CONTROL => Ok(match payload {
                [index, tag, data @ ..] => Some(Self::OverlayControl {
                    index: *index,
                    tag: *tag,
                    data: data.to_vec(),
                }),
                _ => None,
            }),
            RECONCILE => Ok(Some(Self::Reconcile(payload.to_vec()))),
            NAME_TAKEN => Ok(Holder::decode(payload)?.map(|holder| Self::NameTaken(Box::new(holder)))),
            _ => Ok(None),
        }
    }

    /// The body: tag and payload, without length. A unicast that has `raw` is just that.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Heartbeat => vec![HEARTBEAT],
            Self::Gossip(envelope) => encode_envelope(GOSSIP, None, envelope),
            Self::Unicast { raw: Some(raw), .. } => raw.clone(),
            Self::Unicast {
                to,
                envelope,
                raw: None,
            } => encode_envelope(UNICAST, Some(*to), envelope),
            Self::Broadcast(envelope) => encode_envelope(BROADCAST, None, envelope),
            Self::OverlayControl { index, tag, data } => {
                [&[OVERLAY_CONTROL, *index, *tag], data.as_slice()].concat()
            }
            Self::Reconcile(payload) => [&[RECONCILE], payload.as_slice()].concat(),
            Self::NameTaken(holder) => [&[NAME_TAKEN], holder.encode().as_slice()].concat(),
        }
    }
}

/// Destination (the source again if there is none) and envelope.
fn decode_envelope(payload: &[u8], unicast: bool) -> Result<Option<(PeerName, Envelope)>, GobError> {
    let mut decoder = Decoder::new(payload);
    let channel = decoder.require("channel")?.as_str("channel")?.to_owned();
    let source = decoder.require("source")?.as_uint("source")?;
    let to = if unicast {
        decoder.require("destination")?.as_uint("destination")?
    } else {
        source
    };
    let payload = decoder.require("payload")?.as_bytes("payload")?.to_vec();
    Ok(PeerName::from_u64(to)
        .zip(PeerName::from_u64(source))
        .map(|(to, source)| {
            let envelope = Envelope {
                channel,
                source,
                payload,
            };
            (to, envelope)
        }))
}

fn encode_envelope(tag: u8, to: Option<PeerName>, envelope: &Envelope) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.encode(&Type::String, &Value::String(envelope.channel.as_str().into()));
    encoder.encode(&Type::Uint, &Value::Uint(envelope.source.as_u64()));
    if let Some(to) = to {
        encoder.encode(&Type::Uint, &Value::Uint(to.as_u64()));
    }
    encoder.encode(&Type::Bytes, &Value::Bytes(envelope.payload.as_slice().into()));
    let mut body = encoder.finish();
    body.insert(0, tag);
    body
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::super::gob::tests::{unhex, vector};
    use super::*;

    fn name(number: u64) -> PeerName {
        PeerName::from_u64(number).unwrap()
    }

    fn envelope(channel: &str) -> Envelope {
        Envelope {
            channel: channel.into(),
            source: name(0x0200_0000_0001),
            payload: vec![0xaa, 0xbb],
        }
    }

    fn tagged(tag: u8, payload: &[u8]) -> Vec<u8> {
        [&[tag], payload].concat()
    }

    #[test]
    fn envelopes_of_the_original() {
        let body = tagged(4, &vector("envelope"));
        let gossip = Message::Gossip(envelope("topology"));
        assert_eq!(Message::decode(&body).unwrap().unwrap(), gossip);
        assert_eq!(gossip.encode(), body);

        let body = tagged(6, &vector("envelope"));
        let broadcast = Message::Broadcast(envelope("topology"));
        assert_eq!(Message::decode(&body).unwrap().unwrap(), broadcast);
        assert_eq!(broadcast.encode(), body);

        let body = tagged(5, &vector("envelope-unicast"));
        let unicast = |raw| Message::Unicast {
            to: name(0x0200_0000_0002),
            envelope: envelope("IPallocation"),
            raw,
        };
        assert_eq!(
            Message::decode(&body).unwrap().unwrap(),
            unicast(Some(body.clone()))
        );
        assert_eq!(unicast(None).encode(), body);
    }

    #[test]
    fn a_unicast_is_forwarded_byte_for_byte() {
        // Behind the payload there is something that the original ignores and passes on.
        let body = [tagged(5, &vector("envelope-unicast")), unhex("03 06 00 07")].concat();
        let unicast = Message::decode(&body).unwrap().unwrap();
        assert_eq!(unicast.encode(), body);
    }

    #[test]
    fn short_messages() {
        for (hex, message) in [
            ("00", Some(Message::Heartbeat)),
            (
                "07 01 03 059e",
                Some(Message::OverlayControl {
                    index: 1,
                    tag: 3,
                    data: vec![0x05, 0x9e],
                }),
            ),
            ("", None),
            ("07", None),
            ("07 01", None),
            ("01", None),
            ("08 0102", None),
            ("ff", None),
            // Source zero; source of more than 48 bits; destination zero.
            ("04 030c0000 03060000 030a0000", None),
            ("06 030c0000 0a0600f901000000000000 030a0000", None),
            ("05 030c0000 03060001 03060000 030a0000", None),
        ] {
            let decoded = Message::decode(&unhex(hex)).unwrap();
            assert_eq!(decoded, message, "{hex}");
            if let Some(message) = decoded {
                assert_eq!(message.encode(), unhex(hex));
            }
        }
    }

    #[test]
    fn envelopes_that_end_a_connection() {
        for (hex, error) in [
            ("04", GobError::Missing("channel")),
            ("04 030c0000 03060001", GobError::Missing("payload")),
            (
                "05 030c0000 03060001 030a0000",
                GobError::WrongType("destination"),
            ),
            ("04 030c0000 03040001 030a0000", GobError::WrongType("source")),
            ("04 030c0005", GobError::Truncated),
        ] {
            assert_eq!(
                Message::decode(&unhex(hex)),
                Err(MessageError::Envelope(error)),
                "{hex}"
            );
        }
    }

    proptest! {
        #[test]
        fn messages_come_back(channel in ".{0,20}", source in 1..1_u64 << 48, to in 1..1_u64 << 48,
                              payload in prop::collection::vec(any::<u8>(), 0..300), index: u8, tag: u8) {
            let data = payload.clone();
            let envelope = Envelope { channel, source: name(source), payload };
            for message in [
                Message::Gossip(envelope.clone()),
                Message::Broadcast(envelope.clone()),
                Message::OverlayControl { index, tag, data },
            ] {
                prop_assert_eq!(Message::decode(&message.encode()).unwrap(), Some(message));
            }
            let body = Message::Unicast { to: name(to), envelope: envelope.clone(), raw: None }.encode();
            let back = Message::Unicast { to: name(to), envelope, raw: Some(body.clone()) };
            prop_assert_eq!(Message::decode(&body).unwrap(), Some(back));
        }

        #[test]
        fn random_bodies_never_panic(tag in 0..9_u8, bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Message::decode(&tagged(tag, &bytes));
        }
    }
}
