//! XSalsa20-Poly1305 (NaCl secretbox) for one direction of one connection.

use crypto_secretbox::aead::AeadInPlace;
use crypto_secretbox::{KeyInit, XSalsa20Poly1305};

use crate::mesh::crypto::SessionKey;

/// A packet that was not sealed with our key, or was changed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("UDP packet decryption failed")]
pub struct Forged;

/// Bytes of the tag in front of the ciphertext.
pub const TAG: usize = 16;

/// Seals or opens the packets of one direction. Nonce (wire.md 6.3): byte 0 is 0x80 if the sender is
/// the outbound end, bytes 1-15 are zero, bytes 16-23 the packet's number, big endian.
pub struct Cipher {
    secretbox: XSalsa20Poly1305,
    first: u8,
}

impl Cipher {
    /// `sender_outbound`: the packets' sender is the end that dialled.
    #[must_use]
    pub fn new(key: &SessionKey, sender_outbound: bool) -> Self {
        let first = if sender_outbound { 0x80 } else { 0 };
        Self {
            secretbox: XSalsa20Poly1305::new(key.as_bytes().into()),
            first,
        }
    }

    fn nonce(&self, number: u64) -> [u8; 24] {
        let mut nonce = [0; 24];
        nonce[0] = self.first;
        nonce[16..].copy_from_slice(&number.to_be_bytes());
        nonce
    }

    /// Encrypts `data` in place. Each number must be used once only.
    #[must_use]
    pub fn seal(&self, number: u64, data: &mut [u8]) -> [u8; TAG] {
        let sealed = self
            .secretbox
            .encrypt_in_place_detached(&self.nonce(number).into(), b"", data);
        // It fails only for more bytes than any packet has.
        sealed.map(Into::into).unwrap_or_default()
    }

    /// Checks the tag and decrypts `data` in place; forged data is left as it is.
    pub fn open(&self, number: u64, data: &mut [u8], tag: &[u8; TAG]) -> Result<(), Forged> {
        self.secretbox
            .decrypt_in_place_detached(&self.nonce(number).into(), b"", data, tag.into())
            .map_err(|_| Forged)
    }
}
