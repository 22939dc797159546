//! How much is sent, by kind.

use std::collections::BTreeMap;

use weave_ctl::ipam::allocator::CHANNEL;
use weave_ctl::mesh::gob::Decoder;
use weave_ctl::mesh::gossip::TOPOLOGY;

/// Tag of a message, and its channel if it has one.
pub type Kind = (u8, &'static str);

/// Messages and bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// How many.
    pub messages: u64,
    /// Of their bodies, as they would be in clear.
    pub bytes: u64,
}

/// What all peers together have sent.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Traffic(BTreeMap<Kind, Sent>);

impl Traffic {
    /// One message more.
    pub(super) fn count(&mut self, body: &[u8]) {
        let sent = self.0.entry(kind(body)).or_default();
        sent.messages += 1;
        sent.bytes += body.len() as u64;
    }

    /// By kind.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, Sent)> {
        self.0.iter().map(|(kind, sent)| (*kind, *sent))
    }

    /// All kinds together.
    #[must_use]
    pub fn total(&self) -> Sent {
        self.0.values().fold(Sent::default(), |sum, sent| Sent {
            messages: sum.messages + sent.messages,
            bytes: sum.bytes + sent.bytes,
        })
    }

    /// What was sent since an earlier state.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let difference = |(kind, now): (&Kind, &Sent)| {
            let before = earlier.0.get(kind).copied().unwrap_or_default();
            let sent = Sent {
                messages: now.messages - before.messages,
                bytes: now.bytes - before.bytes,
            };
            (*kind, sent)
        };
        Self(self.0.iter().map(difference).collect())
    }
}

fn kind(body: &[u8]) -> Kind {
    let Some((tag, payload)) = body.split_first() else {
        return (0, "");
    };
    if !(4..=6).contains(tag) {
        return (*tag, "");
    }
    let mut decoder = Decoder::new(payload);
    let value = decoder.require("channel").ok();
    let channel = value.as_ref().and_then(|value| value.as_str("channel").ok());
    let known = [TOPOLOGY, CHANNEL]
        .into_iter()
        .find(|name| channel == Some(*name));
    (*tag, known.unwrap_or("other"))
}
