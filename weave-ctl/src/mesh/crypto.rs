//! Password, key exchange and sealed messages of the control connection (wire.md 2.3, 2.4).
//!
//! Nothing secret is ever printed, and all of it is wiped from memory when dropped.

use std::convert::Infallible;
use std::str::FromStr;

use crypto_secretbox::aead::AeadInPlace;
use crypto_secretbox::{KeyInit, XSalsa20Poly1305};
use salsa20::cipher::consts::U10;
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of the tag in front of the ciphertext.
pub const TAG: usize = 16;
/// Bytes of a public key.
pub const PUBLIC_KEY: usize = 32;

/// What all peers of a network share: any bytes.
#[derive(Clone, Default, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Password(Vec<u8>);

impl Password {
    /// From its bytes; they are not copied.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// An empty password is none (wire.md 2.3).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Password {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.as_bytes().to_vec()))
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

/// The remote's public key is one of the few that make the shared secret the same for everybody:
/// whoever sends it need not know a private key. (The original takes them.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the remote's public key is of low order and gives no secret")]
pub struct LowOrderKey;

/// Our half of a key exchange; made for one connection only.
pub struct KeyPair(StaticSecret);

impl KeyPair {
    /// From 32 random bytes.
    #[must_use]
    pub fn new(private: Zeroizing<[u8; 32]>) -> Self {
        Self(StaticSecret::from(*private))
    }

    /// What the remote gets.
    #[must_use]
    pub fn public(&self) -> [u8; PUBLIC_KEY] {
        PublicKey::from(&self.0).to_bytes()
    }
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyPair(..)")
    }
}

/// The key of one connection, wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SessionKey([u8; 32]);

impl SessionKey {
    /// The same for both ends if their passwords are the same: SHA-256 of what NaCl's
    /// `crypto_box_beforenm` gives, and the password.
    pub fn derive(
        ours: &KeyPair,
        theirs: [u8; PUBLIC_KEY],
        password: &Password,
    ) -> Result<Self, LowOrderKey> {
        let raw = ours.0.diffie_hellman(&PublicKey::from(theirs));
        if !raw.was_contributory() {
            return Err(LowOrderKey);
        }
        let mut shared = salsa20::hsalsa::<U10>(raw.as_bytes().into(), &[0; 16].into());
        let session = Sha256::new()
            .chain_update(shared.as_slice())
            .chain_update(password.as_bytes())
            .finalize();
        shared.as_mut_slice().zeroize();
        Ok(Self(session.into()))
    }

    /// From its bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey(..)")
    }
}

/// A message that was not sealed with our key or not in this place, or was changed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Unable to decrypt TCP msg")]
pub struct Undecryptable;

/// All 2^64 nonces of a direction are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many messages for one session key")]
pub struct Exhausted;

/// Seals or opens the messages of one direction, in order. Nonce: byte 0 is 0x40, and 0x80 more if the
/// sender is the outbound end; bytes 1-15 are zero; bytes 16-23 the message's number, big endian.
pub struct TcpCipher {
    secretbox: XSalsa20Poly1305,
    first: u8,
    /// Number of the next message; `None` when there are no more.
    next: Option<u64>,
}

impl TcpCipher {
    /// `sender_outbound`: the messages' sender is the end that dialled.
    #[must_use]
    pub fn new(key: &SessionKey, sender_outbound: bool) -> Self {
        Self {
            secretbox: XSalsa20Poly1305::new(key.as_bytes().into()),
            first: if sender_outbound { 0xc0 } else { 0x40 },
            next: Some(0),
        }
    }

    fn nonce(&self, number: u64) -> [u8; 24] {
        let mut nonce = [0; 24];
        nonce[0] = self.first;
        nonce[16..].copy_from_slice(&number.to_be_bytes());
        nonce
    }

    /// Encrypts a message in place; the tag goes in front of it.
    pub fn seal(&mut self, message: &mut [u8]) -> Result<[u8; TAG], Exhausted> {
        let number = self.next.ok_or(Exhausted)?;
        let nonce = self.nonce(number).into();
        let tag = self
            .secretbox
            .encrypt_in_place_detached(&nonce, b"", message)
            .map_err(|_| Exhausted)?;
        self.next = number.checked_add(1);
        Ok(tag.into())
    }

    /// Decrypts a message in place that follows its tag. A message that cannot be opened is left as it
    /// is and does not count.
    pub fn open(&mut self, tag: &[u8; TAG], message: &mut [u8]) -> Result<(), Undecryptable> {
        let number = self.next.ok_or(Undecryptable)?;
        let nonce = self.nonce(number).into();
        self.secretbox
            .decrypt_in_place_detached(&nonce, b"", message, tag.into())
            .map_err(|_| Undecryptable)?;
        self.next = number.checked_add(1);
        Ok(())
    }
}

impl std::fmt::Debug for TcpCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TcpCipher(..)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::gob::tests::unhex;
    use super::*;

    fn bytes(hex: &str) -> [u8; 32] {
        unhex(hex).try_into().unwrap()
    }

    fn pair(private: &str) -> KeyPair {
        KeyPair::new(Zeroizing::new(bytes(private)))
    }

    fn alice() -> KeyPair {
        pair("0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20")
    }

    fn bob() -> KeyPair {
        pair("4142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f60")
    }

    fn wombat() -> Password {
        "wombat".parse().unwrap()
    }

    /// wire.md B.1.
    #[test]
    fn session_key() {
        let (a, b) = (alice(), bob());
        assert_eq!(
            a.public(),
            bytes("07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c")
        );
        assert_eq!(
            b.public(),
            bytes("64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d48466")
        );
        let session = bytes("571792dbfe9aa4f179b16d315ffec7ad5f7229afd4ddb2d80ccb5e5bd2e1b114");
        let derive = |ours: &KeyPair, theirs: &KeyPair, password: &Password| {
            *SessionKey::derive(ours, theirs.public(), password)
                .unwrap()
                .as_bytes()
        };
        assert_eq!(derive(&a, &b, &wombat()), session);
        assert_eq!(derive(&b, &a, &wombat()), session);
        assert_ne!(derive(&b, &a, &"Wombat".parse().unwrap()), session);
    }

    /// wire.md B.1.
    #[test]
    fn sealed_heartbeats() {
        let key = SessionKey::derive(&alice(), bob().public(), &wombat()).unwrap();
        for (outbound, sealed) in [
            (
                true,
                [
                    "91e3c452e7f58a85f35eb71403a46329 de",
                    "c8dba7fca7e2deb872b91b20722df29f bb",
                ]
                .as_slice(),
            ),
            (false, ["2dfa995d3af0b062fe418481b2b828ef 38"].as_slice()),
        ] {
            let (mut sealer, mut opener) = (TcpCipher::new(&key, outbound), TcpCipher::new(&key, outbound));
            for hex in sealed {
                let mut message = [0];
                let tag = sealer.seal(&mut message).unwrap();
                assert_eq!([tag.as_slice(), &message].concat(), unhex(hex));
                opener.open(&tag, &mut message).unwrap();
                assert_eq!(message, [0]);
            }
        }
    }

    #[test]
    fn what_was_changed_or_is_out_of_place_does_not_open() {
        let key = SessionKey::new([7; 32]);
        let mut sealer = TcpCipher::new(&key, true);
        let mut sealed = *b"a message";
        let tag = sealer.seal(&mut sealed).unwrap();
        let mut opener = TcpCipher::new(&key, true);
        for bit in 0..8 * (TAG + sealed.len()) {
            let mut all = [tag.as_slice(), &sealed].concat();
            all[bit / 8] ^= 1 << (bit % 8);
            let (tag, message) = all.split_first_chunk_mut::<TAG>().unwrap();
            let before = message.to_vec();
            assert_eq!(opener.open(tag, message), Err(Undecryptable));
            assert_eq!(message, before);
        }
        // Our own message sent back to us, and with another key.
        assert_eq!(
            TcpCipher::new(&key, false).open(&tag, &mut sealed),
            Err(Undecryptable)
        );
        let other = SessionKey::new([8; 32]);
        assert_eq!(
            TcpCipher::new(&other, true).open(&tag, &mut sealed),
            Err(Undecryptable)
        );
        // None of this has counted; a replay does not open.
        let replay = sealed;
        opener.open(&tag, &mut sealed).unwrap();
        assert_eq!(&sealed, b"a message");
        assert_eq!(opener.open(&tag, &mut { replay }), Err(Undecryptable));
    }

    #[test]
    fn no_nonce_is_used_twice() {
        let key = SessionKey::new([7; 32]);
        let last = || TcpCipher {
            next: Some(u64::MAX),
            ..TcpCipher::new(&key, true)
        };
        let (mut sealer, mut opener) = (last(), last());
        let mut message = [1, 2, 3];
        let tag = sealer.seal(&mut message).unwrap();
        assert_eq!(sealer.seal(&mut [4]), Err(Exhausted));
        opener.open(&tag, &mut message.clone()).unwrap();
        assert_eq!(opener.open(&tag, &mut message), Err(Undecryptable));
    }

    /// All points whose order divides 8, with the encodings that are not canonical.
    #[test]
    fn keys_of_low_order() {
        for hex in [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ] {
            let mut point = bytes(hex);
            // The highest bit is ignored (RFC 7748).
            for high in [0, 0x80] {
                point[31] |= high;
                let key = SessionKey::derive(&alice(), point, &wombat());
                assert_eq!(key, Err(LowOrderKey), "{hex}");
            }
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let key = SessionKey::new([0x77; 32]);
        let cipher = TcpCipher::new(&key, true);
        let printed = format!("{:?} {:?} {:?} {:?}", wombat(), alice(), key, cipher);
        assert_eq!(printed, "Password(..) KeyPair(..) SessionKey(..) TcpCipher(..)");
    }
}
