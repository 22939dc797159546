//! What the targets in `fuzz/` do with their input, so that the ordinary tests can do it as well.
//!
//! Each takes any bytes, must not panic, and checks that what has been understood survives our own
//! encoder. A new one needs a function here, samples for it in the tests below,
//! and a target with its `[[bin]]` in `fuzz/`.

use super::gob::Decoder;
use super::handshake::Features;
use super::message::Message;
use super::summary::{decode_topology, encode_topology};
use crate::ipam::message::{State, Unicast};

/// Any gob stream.
pub fn gob(data: &[u8]) {
    let mut decoder = Decoder::new(data);
    while let Ok(Some(_)) = decoder.next_value() {}
}

/// A topology payload.
pub fn topology(data: &[u8]) {
    if let Ok(peers) = decode_topology(data) {
        assert_eq!(decode_topology(&encode_topology(&peers)), Ok(peers));
    }
}

/// A message's body; the payload of topology gossip as well.
pub fn message(data: &[u8]) {
    let Ok(Some(message)) = Message::decode(data) else {
        return;
    };
    assert_eq!(Message::decode(&message.encode()), Ok(Some(message.clone())));
    match message {
        Message::Gossip(envelope) | Message::Broadcast(envelope) if envelope.channel == "topology" => {
            topology(&envelope.payload);
        }
        _ => {}
    }
}

/// A features map.
pub fn features(data: &[u8]) {
    if let Ok(features) = Features::decode(data) {
        assert_eq!(Features::decode(&features.encode()), Ok(features));
    }
}

/// Payloads of the IP allocation channel, gossip and unicast.
pub fn ipam(data: &[u8]) {
    if let Ok(state) = State::decode(data) {
        assert_eq!(State::decode(&state.encode(0)).ok(), Some(state));
    }
    if let Ok(unicast) = Unicast::decode(data) {
        assert_eq!(Unicast::decode(&unicast.encode(0)).ok(), Some(unicast));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::super::capture;
    use super::super::gob::tests::vector;
    use super::super::summary::tests::decoders_agree;

    const ROUNDS: usize = 4000;

    /// Bodies of real peers: the features maps, the other messages.
    fn captured() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let (mut features, mut messages) = (Vec::new(), Vec::new());
        for stream in capture::streams(capture::IPAM).values() {
            let (_, _, bodies) = capture::parts(stream);
            let mut bodies = bodies.into_iter().map(<[u8]>::to_vec);
            features.extend(bodies.next());
            messages.extend(bodies);
        }
        (features, messages)
    }

    /// Runs `target` on samples as they are, then on damaged ones; the same ones every time.
    pub(crate) fn run(target: fn(&[u8]), samples: &[Vec<u8>]) {
        assert!(!samples.is_empty());
        samples.iter().for_each(|sample| target(sample));
        let mut rng = SmallRng::seed_from_u64(6783);
        for round in 0..ROUNDS {
            let mut data = samples[round % samples.len()].clone();
            for _ in 0..rng.random_range(1..4) {
                damage(&mut data, &mut rng);
            }
            target(&data);
        }
    }

    /// Changes bytes somewhere, or cuts, repeats or inserts some.
    pub(crate) fn damage(data: &mut Vec<u8>, rng: &mut SmallRng) {
        if data.is_empty() {
            return data.push(rng.random());
        }
        let at = rng.random_range(0..data.len());
        match rng.random_range(0..6) {
            0 => data[at] = rng.random(),
            1 => data[at] ^= 1 << rng.random_range(0..8),
            2 => data[at] = [0, 1, 0x7f, 0x80, 0xf8, 0xff][rng.random_range(0..6)],
            3 => data.truncate(at),
            4 => data.insert(at, rng.random()),
            _ => {
                let end = rng.random_range(at..data.len());
                let piece = data[at..end].to_vec();
                let to = rng.random_range(0..data.len());
                data.splice(to..to, piece);
            }
        }
    }

    #[test]
    fn gob() {
        run(
            super::gob,
            &["ipam-accepted", "ipam-ring", "db-owned", "dns-two", "features"].map(vector),
        );
    }

    #[test]
    fn topology() {
        run(
            |data| {
                super::topology(data);
                decoders_agree(data);
            },
            &["topology-one", "topology-two", "topology-foreign"].map(vector),
        );
    }

    #[test]
    fn message() {
        run(super::message, &captured().1);
    }

    #[test]
    fn ipam() {
        let states = ["ipam-accepted", "ipam-ring"].map(vector);
        let unicasts = states.iter().map(|state| [&[1], state.as_slice()].concat());
        run(super::ipam, &unicasts.chain(states.clone()).collect::<Vec<_>>());
    }

    #[test]
    fn features() {
        run(super::features, &captured().0);
    }
}
