//! Sealed packets: numbers that never repeat on the way out, a replay window on the way in
//! (wire.md 6.3). Both ends of a connection may be used from several threads at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Session;
use super::cipher::{Cipher, Forged, TAG};
use super::packet::{NAME, NUMBER, SEALED_OVERHEAD};

/// In a packet's number: sent on the DF path.
const DF: u64 = 1 << 63;

/// Why a packet cannot be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The connection has used up its numbers and must be closed: a new one has a new key.
    #[error("UDP sequence numbers used up")]
    Exhausted,
    /// There is no room for name, number and tag.
    #[error("packet of {0} bytes cannot be sealed")]
    Short(usize),
}

/// Why a packet cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Less than name, number and tag.
    #[error("UDP packet too short")]
    Short,
    /// Not sealed with the connection's key, or changed.
    #[error("UDP packet decryption failed")]
    Forged,
    /// Seen before, or too old to tell. To be dropped silently.
    #[error("UDP packet replayed")]
    Replay,
}

impl From<Forged> for OpenError {
    fn from(_: Forged) -> Self {
        Self::Forged
    }
}

/// Seals what we send on one connection.
pub struct Sealer {
    cipher: Cipher,
    /// Next numbers: non-DF, DF. They start at 0 with every connection, which has a key of its own.
    next: [AtomicU64; 2],
}

impl Sealer {
    /// For our direction of the connection.
    #[must_use]
    pub fn new(session: &Session) -> Self {
        Self {
            cipher: Cipher::new(&session.key, session.outbound),
            next: [const { AtomicU64::new(0) }; 2],
        }
    }

    /// Seals a packet in place: name, room for number and tag ([`SEALED_OVERHEAD`] in all), records.
    pub fn seal(&self, df: bool, packet: &mut [u8]) -> Result<(), SealError> {
        let len = packet.len();
        let Some((head, records)) = packet.split_first_chunk_mut::<SEALED_OVERHEAD>() else {
            return Err(SealError::Short(len));
        };
        // Threads race for numbers only, not for what they stand for: no ordering is needed. To wrap to
        // zero takes as many refusals as there are numbers.
        let number = self.next[usize::from(df)].fetch_add(1, Ordering::Relaxed);
        if number & DF != 0 {
            return Err(SealError::Exhausted);
        }
        let number = if df { number | DF } else { number };
        let tag = self.cipher.seal(number, records);
        head[NAME..NAME + NUMBER].copy_from_slice(&number.to_be_bytes());
        head[NAME + NUMBER..].copy_from_slice(&tag);
        Ok(())
    }
}

/// Opens what the remote sends on one connection.
pub struct Opener {
    cipher: Cipher,
    /// Non-DF, DF.
    windows: [Mutex<Window>; 2],
}

impl Opener {
    /// For the remote's direction of the connection.
    #[must_use]
    pub fn new(session: &Session) -> Self {
        Self {
            cipher: Cipher::new(&session.key, !session.outbound),
            windows: Default::default(),
        }
    }

    /// Opens a whole packet in place and returns its records, in clear. What is forged changes nothing,
    /// neither the bytes nor the replay window.
    pub fn open<'a>(&self, packet: &'a mut [u8]) -> Result<&'a mut [u8], OpenError> {
        let (head, records) = packet
            .split_first_chunk_mut::<SEALED_OVERHEAD>()
            .ok_or(OpenError::Short)?;
        let [_, _, _, _, _, _, rest @ ..] = head;
        let (number, tag) = rest.split_first_chunk::<NUMBER>().ok_or(OpenError::Short)?;
        let tag: &[u8; TAG] = tag.try_into().map_err(|_| OpenError::Short)?;
        let number = u64::from_be_bytes(*number);
        self.cipher.open(number, records, tag)?;
        let window = &self.windows[usize::from(number & DF != 0)];
        // A few instructions under the lock, none of which can panic.
        let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
        match window.accept(number & !DF) {
            true => Ok(records),
            false => Err(OpenError::Replay),
        }
    }
}

/// How many numbers back from the highest one are remembered. The original remembers a million or
/// more; the sender cannot tell (wire.md W23). At a million packets a second this still lets one be
/// overtaken for 16 ms, and by all that wait in the queues of our own workers.
const WINDOW: u64 = 16384;

/// The numbers accepted: a bit each for the last [`WINDOW`], in a ring.
struct Window {
    /// One more than the highest accepted.
    next: u64,
    seen: [u64; (WINDOW / 64) as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self {
            next: 0,
            seen: [0; (WINDOW / 64) as usize],
        }
    }
}

impl Window {
    /// True once for each number, unless it is [`WINDOW`] or more behind the highest. Below 2^63.
    fn accept(&mut self, number: u64) -> bool {
        if let Some(skipped) = number.checked_sub(self.next) {
            self.forget(skipped);
            self.next = number + 1;
        } else if self.next - number > WINDOW || self.seen[word(number)] & bit(number) != 0 {
            return false;
        }
        self.seen[word(number)] |= bit(number);
        true
    }

    /// Makes room for the numbers from `next` to `next + skipped`, which take the places of old ones.
    fn forget(&mut self, skipped: u64) {
        if skipped >= WINDOW {
            return self.seen.fill(0);
        }
        let (mut at, end) = (self.next, self.next + skipped + 1);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            self.seen[word(at)] &= !(u64::MAX >> (64 - count) << (at % 64));
            at += count;
        }
    }
}

fn word(number: u64) -> usize {
    (number / 64 % (WINDOW / 64)) as usize
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::super::Special;
    use super::super::packet::{append_special, start};
    use super::*;
    use crate::mesh::crypto::SessionKey;
    use crate::mesh::name::PeerName;

    const KEY: &str = "571792dbfe9aa4f179b16d315ffec7ad5f7229afd4ddb2d80ccb5e5bd2e1b114";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    fn session(outbound: bool) -> Session {
        Session {
            key: SessionKey::new(bytes(KEY).try_into().unwrap()),
            outbound,
        }
    }

    fn heartbeat() -> Vec<u8> {
        let name = |n: u64| PeerName::from_u64(0x0200_0000_0000 + n).unwrap();
        let mut packet = Vec::new();
        start(&mut packet, name(0xa), true);
        let special = Special::Heartbeat {
            conn_uid: 0x0123_4567_89ab_cdef,
        };
        append_special(&mut packet, name(0xa), name(0xb), special);
        packet
    }

    fn sealed(sealer: &Sealer, df: bool) -> Vec<u8> {
        let mut packet = heartbeat();
        sealer.seal(df, &mut packet).unwrap();
        packet
    }

    #[test]
    fn vectors_of_the_specification() {
        let outbound = Sealer::new(&session(true));
        let inbound = Sealer::new(&session(false));
        for (sealer, df, expected) in [
            (
                &outbound,
                true,
                "02000000000a8000000000000000\
                 17760f5ed34c7c5ea1ca35b9a8f11b84fa6a5f2a43f7940c537c4a1ef873cf857a9d48e304a3475a71e11f757d9ce117d525651d",
            ),
            (
                &outbound,
                true,
                "02000000000a8000000000000001\
                 feeecc397ec6d7c25a54567e5186fb4a757c55cf7535882dd72c7f860a32f2bc42ac123d2ee195b02b2a8a49d2e89e43de6d3a03",
            ),
            (
                &inbound,
                false,
                "02000000000a0000000000000000\
                 94bd61a38401333812788dd1cd2a567bcd3f74dbfea87f64d5e6bc09aa76eb07b34b55cfe4836f1f41a13c787aff679df14a466a",
            ),
        ] {
            assert_eq!(sealed(sealer, df), bytes(expected));
        }
    }

    #[test]
    fn opened_once_by_the_other_end() {
        let sealer = Sealer::new(&session(true));
        let opener = Opener::new(&session(false));
        for df in [true, false, true] {
            let packet = sealed(&sealer, df);
            let records = &heartbeat()[SEALED_OVERHEAD..];
            assert_eq!(opener.open(&mut packet.clone()).unwrap(), records);
            assert_eq!(opener.open(&mut packet.clone()), Err(OpenError::Replay));
            let own = Opener::new(&session(true)).open(&mut packet.clone()).err();
            assert_eq!(
                own,
                Some(OpenError::Forged),
                "a packet thrown back at its sender is none"
            );
        }
    }

    #[test]
    fn forged_packets_leave_no_trace() {
        let sealer = Sealer::new(&session(true));
        let opener = Opener::new(&session(false));
        let good = sealed(&sealer, true);
        for at in NAME..good.len() {
            let mut forged = good.clone();
            forged[at] ^= 1 << (at % 8);
            let before = forged.clone();
            assert_eq!(opener.open(&mut forged), Err(OpenError::Forged), "byte {at}");
            assert_eq!(forged, before);
        }
        // A number far ahead, had it counted, would have made the good one too old.
        let mut ahead = good.clone();
        ahead[NAME..NAME + NUMBER].copy_from_slice(&(DF | 1 << 40).to_be_bytes());
        assert_eq!(opener.open(&mut ahead), Err(OpenError::Forged));
        assert!(opener.open(&mut good.clone()).is_ok());
        for len in 0..SEALED_OVERHEAD {
            assert_eq!(opener.open(&mut good[..len].to_vec()), Err(OpenError::Short));
            assert_eq!(
                sealer.seal(true, &mut good[..len].to_vec()),
                Err(SealError::Short(len))
            );
        }
    }

    #[test]
    fn numbers_end() {
        let sealer = Sealer::new(&session(true));
        sealer.next[1].store(DF - 1, Ordering::Relaxed);
        assert_eq!(sealed(&sealer, true)[NAME..NAME + NUMBER], [0xff; NUMBER]);
        for _ in 0..2 {
            assert_eq!(sealer.seal(true, &mut heartbeat()), Err(SealError::Exhausted));
        }
        assert!(
            sealer.seal(false, &mut heartbeat()).is_ok(),
            "the other path has its own"
        );
    }

    #[test]
    fn threads_never_share_a_number() {
        let sealer = Sealer::new(&session(true));
        let opener = Opener::new(&session(false));
        let accepted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..500)
                            .filter(|i| opener.open(&mut sealed(&sealer, i % 3 == 0)).is_ok())
                            .count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(accepted, 2000);
    }

    #[test]
    fn the_edge_of_the_window() {
        let mut window = Window::default();
        let top = 5 * WINDOW + 17;
        assert!(window.accept(top));
        assert!(!window.accept(top - WINDOW));
        assert!(window.accept(top - WINDOW + 1));
        assert!(!window.accept(top - WINDOW + 1));
        assert!(window.accept(DF - 1), "the highest number");
        assert!(!window.accept(DF - 1));
        assert!(!window.accept(top));
    }

    /// Steps from one number to the next: near, about a window, anywhere.
    fn steps() -> impl Strategy<Value = Vec<i64>> {
        let window = WINDOW as i64;
        let step = prop_oneof![
            6 => -70..70i64,
            2 => -window - 70..window + 70,
            1 => -5 * window..5 * window,
            1 => -(1i64 << 62)..1i64 << 62,
        ];
        prop::collection::vec(step, 1..300)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_order_within_the_window_is_accepted_once(
            start in 0..DF / 2,
            order in Just((0..WINDOW).collect::<Vec<u64>>()).prop_shuffle(),
        ) {
            let mut window = Window::default();
            prop_assert!(order.iter().all(|offset| window.accept(start + offset)));
            prop_assert!(!order.iter().any(|offset| window.accept(start + offset)));
        }

        #[test]
        fn the_window_is_what_it_says(start in 0..DF, steps in steps()) {
            let (mut window, mut seen, mut highest) = (Window::default(), HashSet::new(), None);
            let mut number = start;
            for step in steps {
                let fresh = !seen.contains(&number) && highest.is_none_or(|h| h < number + WINDOW);
                prop_assert_eq!(window.accept(number), fresh, "{}", number);
                if fresh {
                    seen.insert(number);
                    highest = highest.max(Some(number));
                }
                number = number.saturating_add_signed(step).min(DF - 1);
            }
        }
    }
}
