//! Poly1305 (RFC 8439, 2.5) of one whole message, in 64-bit words.
//!
//! The `poly1305` crate spends most of a microsecond on preparing its vectors for each key, several times
//! what a whole packet takes here.

/// The tag of `message`. `key` must be used once only.
pub fn tag(key: &[u8; 32], message: &[u8]) -> [u8; 16] {
    let (r, s) = key.split_at(16);
    let (r, s) = (little_endian(r), little_endian(s));
    let r = r & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;
    let mut hash = Hash {
        r0: low(r),
        r1: high(r),
        h0: 0,
        h1: 0,
        h2: 0,
    };
    let (blocks, rest) = message.as_chunks::<16>();
    for block in blocks {
        hash.block(u128::from_le_bytes(*block), 1);
    }
    if !rest.is_empty() {
        hash.block(little_endian(rest) | 1 << (8 * rest.len()), 0);
    }
    hash.finish().wrapping_add(s).to_le_bytes()
}

/// At most 16 bytes.
fn little_endian(bytes: &[u8]) -> u128 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u128::from(*byte))
}

const fn low(number: u128) -> u64 {
    number as u64
}

const fn high(number: u128) -> u64 {
    (number >> 64) as u64
}

const fn multiply(a: u64, b: u64) -> u128 {
    a as u128 * b as u128
}

/// The polynomial so far: h = h0 + 2^64 h1 + 2^128 h2, h2 at most 4 between blocks.
struct Hash {
    r0: u64,
    r1: u64,
    h0: u64,
    h1: u64,
    h2: u64,
}

impl Hash {
    /// h = (h + block + 2^128 top) r mod 2^130 - 5, not fully reduced.
    #[inline(always)]
    fn block(&mut self, block: u128, top: u64) {
        let (h0, carry) = self.h0.overflowing_add(low(block));
        let t = u128::from(self.h1) + u128::from(high(block)) + u128::from(carry);
        let (h1, h2) = (low(t), self.h2 + high(t) + top);

        // 2^128 r1 = 5/4 r1 (mod 2^130 - 5), whole because the lowest two bits of r1 are zero. All
        // products fit, as r0 and r1 are below 2^60 and h2 below 8.
        let (r0, r1, s1) = (self.r0, self.r1, self.r1 + (self.r1 >> 2));
        let d0 = multiply(h0, r0) + multiply(h1, s1);
        let d1 = multiply(h0, r1) + multiply(h1, r0) + u128::from(h2 * s1) + u128::from(high(d0));
        let d2 = h2 * r0 + high(d1);

        // What is above 2^130 comes back times 5: the quotient once and four times.
        let (h0, carry) = low(d0).overflowing_add((d2 >> 2) + (d2 & !3));
        let (h1, carry) = low(d1).overflowing_add(u64::from(carry));
        (self.h0, self.h1, self.h2) = (h0, h1, (d2 & 3) + u64::from(carry));
    }

    /// h mod 2^130 - 5, its lowest 128 bits.
    fn finish(self) -> u128 {
        let h = u128::from(self.h1) << 64 | u128::from(self.h0);
        // h + 5 reaches 2^130 just if h is not reduced, and then its lower bits are the remainder: `over`
        // is 1 then, else 0, as h2 is at most 4.
        let (reduced, carry) = h.overflowing_add(5);
        let over = (self.h2 + u64::from(carry)) >> 2;
        let mask = u128::from(over).wrapping_neg();
        (h & !mask) | (reduced & mask)
    }
}

#[cfg(test)]
mod tests {
    use ::poly1305::universal_hash::KeyInit;
    use proptest::prelude::*;

    use super::*;

    fn check(key: [u8; 32], message: &[u8]) {
        let expected = ::poly1305::Poly1305::new(&key.into()).compute_unpadded(message);
        assert_eq!(tag(&key, message), *expected, "{key:?} {message:?}");
    }

    /// Around 2^130 - 5, where carries and the last reduction happen that random messages never need.
    #[test]
    fn values_close_to_the_modulus() {
        for r in [0, 1, 2, 4, 5, u128::MAX] {
            for s in [0, 1, u128::MAX] {
                let mut key = [0; 32];
                key[..16].copy_from_slice(&u128::to_le_bytes(r));
                key[16..].copy_from_slice(&u128::to_le_bytes(s));
                for difference in 0..300 {
                    let block = (u128::MAX - difference).to_le_bytes();
                    check(key, &block);
                    check(key, &[[0xff; 16], block].concat());
                    check(key, &[[0xff; 16], block, difference.to_le_bytes()].concat());
                    check(
                        key,
                        &[[0xff; 16], difference.to_le_bytes(), [0; 16], block].concat(),
                    );
                }
            }
        }
    }

    /// RFC 8439, A.3, vectors 8 and 9.
    #[test]
    fn vectors_of_the_rfc() {
        let mut key = [0; 32];
        key[0] = 1;
        let blocks = [
            [0xff; 16],
            0xfefe_fefe_fefe_fefe_fefe_fefe_fefe_fefb_u128.to_le_bytes(),
            [1; 16],
        ];
        assert_eq!(tag(&key, &blocks.concat()), [0; 16]);
        key[0] = 2;
        let expected = u128::MAX - 5;
        assert_eq!(tag(&key, &(u128::MAX - 2).to_le_bytes()), expected.to_le_bytes());
    }

    proptest! {
        #[test]
        fn extreme_bytes(
            key in prop::array::uniform32(prop_oneof![any::<u8>(), Just(0), Just(0xff)]),
            message in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(0xff)], 0..200),
        ) {
            check(key, &message);
        }
    }
}
