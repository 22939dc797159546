//! XSalsa20-Poly1305 (NaCl secretbox) for one direction of one connection.
//!
//! XSalsa20 makes a subkey of the key and the nonce's first 16 bytes. Those never change here, so that
//! each packet costs no more than Salsa20 with the nonce's last 8 bytes, its number.

mod poly1305;
mod salsa;

use std::hint::black_box;

use ::salsa20::cipher::consts::U10;
use ::salsa20::hsalsa;
use zeroize::Zeroizing;

use self::salsa::{BLOCK, Batch, Salsa20, Variant};
use crate::mesh::crypto::SessionKey;

/// A packet that was not sealed with our key, or was changed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("UDP packet decryption failed")]
pub struct Forged;

/// Bytes of the tag in front of the ciphertext.
pub const TAG: usize = 16;

/// Bytes of keystream in front of that for the data: the key of Poly1305.
const MAC_KEY: usize = 32;

/// Seals or opens the packets of one direction. Nonce (wire.md 6.3): byte 0 is 0x80 if the sender is
/// the outbound end, bytes 1-15 are zero, bytes 16-23 the packet's number, big endian.
pub struct Cipher(Salsa20);

impl Cipher {
    /// `sender_outbound`: the packets' sender is the end that dialled.
    #[must_use]
    pub fn new(key: &SessionKey, sender_outbound: bool) -> Self {
        Self::with_variant(key, sender_outbound, Variant::best())
    }

    fn with_variant(key: &SessionKey, sender_outbound: bool, variant: Variant) -> Self {
        let mut nonce = [0; 16];
        nonce[0] = if sender_outbound { 0x80 } else { 0 };
        let subkey = hsalsa::<U10>(key.as_bytes().into(), &nonce.into());
        Self(Salsa20::new(&Zeroizing::new(subkey.into()), variant))
    }

    /// Encrypts `data` in place. Each number must be used once only.
    #[must_use]
    pub fn seal(&self, number: u64, data: &mut [u8]) -> [u8; TAG] {
        let mut batch = Batch::new();
        let (mac_key, keystream) = self.first(number, data.len(), &mut batch);
        xor(data, keystream);
        let done = keystream.len();
        self.rest(number, data, done, &mut batch);
        poly1305::tag(&mac_key, data)
    }

    /// Checks the tag and decrypts `data` in place; forged data is left as it is.
    pub fn open(&self, number: u64, data: &mut [u8], tag: &[u8; TAG]) -> Result<(), Forged> {
        let mut batch = Batch::new();
        let (mac_key, keystream) = self.first(number, data.len(), &mut batch);
        if !equal(&poly1305::tag(&mac_key, data), tag) {
            return Err(Forged);
        }
        xor(data, keystream);
        let done = keystream.len();
        self.rest(number, data, done, &mut batch);
        Ok(())
    }

    /// Poly1305's key for a packet, and keystream for the beginning of its `len` bytes, or for all.
    fn first<'a>(
        &self,
        number: u64,
        len: usize,
        batch: &'a mut Batch,
    ) -> (Zeroizing<[u8; MAC_KEY]>, &'a [u8]) {
        let blocks = (MAC_KEY + len).div_ceil(BLOCK);
        let (start, keystream) = self.0.keystream(number, 0, blocks, batch).split_at(MAC_KEY);
        let mut mac_key = Zeroizing::new([0; MAC_KEY]);
        mac_key.copy_from_slice(start);
        (mac_key, keystream)
    }

    /// Encrypts or decrypts what comes after the first `done` bytes, if anything.
    fn rest(&self, number: u64, data: &mut [u8], mut done: usize, batch: &mut Batch) {
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let block = (MAC_KEY + done) / BLOCK;
            let blocks = rest.len().div_ceil(BLOCK);
            let keystream = self.0.keystream(number, block as u32, blocks, batch);
            xor(rest, keystream);
            done += keystream.len();
        }
    }
}

/// As far as both go.
fn xor(data: &mut [u8], keystream: &[u8]) {
    for (byte, key) in data.iter_mut().zip(keystream) {
        *byte ^= key;
    }
}

/// In a time that tells nothing of where they differ.
fn equal(a: &[u8; TAG], b: &[u8; TAG]) -> bool {
    black_box(u128::from_ne_bytes(*a) ^ u128::from_ne_bytes(*b)) == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use crypto_secretbox::aead::AeadInPlace;
    use crypto_secretbox::{KeyInit, XSalsa20Poly1305};
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn variants() -> Vec<Variant> {
        Variant::available().collect()
    }

    /// What NaCl makes of it: tag and ciphertext.
    fn secretbox(key: &[u8; 32], sender_outbound: bool, number: u64, data: &[u8]) -> ([u8; TAG], Vec<u8>) {
        let mut nonce = [0; 24];
        nonce[0] = if sender_outbound { 0x80 } else { 0 };
        nonce[16..].copy_from_slice(&number.to_be_bytes());
        let mut sealed = data.to_vec();
        let tag = XSalsa20Poly1305::new(key.into())
            .encrypt_in_place_detached(&nonce.into(), b"", &mut sealed)
            .unwrap();
        (tag.into(), sealed)
    }

    /// Seals as NaCl does, opens it again, and does not open what was changed.
    fn check(variant: Variant, key: [u8; 32], sender_outbound: bool, number: u64, data: &[u8]) {
        let cipher = Cipher::with_variant(&SessionKey::new(key), sender_outbound, variant);
        let mut packet = data.to_vec();
        let tag = cipher.seal(number, &mut packet);
        let expected = secretbox(&key, sender_outbound, number, data);
        assert!(
            (tag, &packet) == (expected.0, &expected.1),
            "{variant:?}, {} bytes",
            data.len()
        );

        let mut forged_tag = tag;
        forged_tag[data.len() % TAG] ^= 1 << (number % 8);
        assert_eq!(cipher.open(number, &mut packet, &forged_tag), Err(Forged));
        assert_eq!(cipher.open(number ^ 1, &mut packet, &tag), Err(Forged));
        if let Some(at) = (number as usize).checked_rem(data.len()) {
            packet[at] ^= 0x80;
            assert_eq!(cipher.open(number, &mut packet, &tag), Err(Forged));
            packet[at] ^= 0x80;
        }
        assert_eq!(packet, expected.1, "forged data is left as it is");
        assert_eq!(cipher.open(number, &mut packet, &tag), Ok(()));
        assert_eq!(packet, data);
    }

    #[test]
    fn every_length_is_as_nacl_has_it() {
        let mut rng = SmallRng::seed_from_u64(3);
        let mut data = [0; 2000];
        for len in 0..=data.len() {
            let mut key = [0; 32];
            rng.fill_bytes(&mut key);
            rng.fill_bytes(&mut data);
            let number = rng.next_u64();
            for variant in variants() {
                check(variant, key, number & 1 != 0, number, &data[..len]);
            }
        }
    }

    #[test]
    fn packets_of_the_fragmentation_test_are_as_nacl_has_them() {
        for variant in variants() {
            for len in [8900, 60_015, 65_507] {
                check(variant, [9; 32], true, 1 << 63 | 7, &vec![0; len]);
            }
        }
    }

    /// wire.md B.2: session key, direction, number, tag and ciphertext of the heartbeat of wire.md 6.2.
    #[test]
    fn heartbeats_of_the_original() {
        let key = hex("571792dbfe9aa4f179b16d315ffec7ad5f7229afd4ddb2d80ccb5e5bd2e1b114");
        let record = hex("02000000000a02000000000b001600000000000000000000000000000123456789abcdef");
        let sealed = [
            (
                true,
                1 << 63,
                "17760f5ed34c7c5ea1ca35b9a8f11b84fa6a5f2a43f7940c537c4a1ef873cf857a9d48e304a3475a71e11f757d9ce117d525651d",
            ),
            (
                true,
                1 << 63 | 1,
                "feeecc397ec6d7c25a54567e5186fb4a757c55cf7535882dd72c7f860a32f2bc42ac123d2ee195b02b2a8a49d2e89e43de6d3a03",
            ),
            (
                false,
                0,
                "94bd61a38401333812788dd1cd2a567bcd3f74dbfea87f64d5e6bc09aa76eb07b34b55cfe4836f1f41a13c787aff679df14a466a",
            ),
        ];
        let key = SessionKey::new(key.try_into().unwrap());
        for variant in variants() {
            for (sender_outbound, number, expected) in sealed {
                let cipher = Cipher::with_variant(&key, sender_outbound, variant);
                let mut data = record.clone();
                let tag = cipher.seal(number, &mut data);
                assert_eq!([&tag, &data[..]].concat(), hex(expected), "{variant:?}");
                assert_eq!(cipher.open(number, &mut data, &tag), Ok(()));
                assert_eq!(data, record);
            }
        }
    }

    fn hex(digits: &str) -> Vec<u8> {
        let pairs = digits.as_bytes().as_chunks::<2>().0;
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        pairs.iter().map(byte).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_packet_is_as_nacl_has_it(
            key: [u8; 32],
            sender_outbound: bool,
            number: u64,
            data in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(0xff)], 0..2000),
        ) {
            for variant in variants() {
                check(variant, key, sender_outbound, number, &data);
            }
        }
    }
}
