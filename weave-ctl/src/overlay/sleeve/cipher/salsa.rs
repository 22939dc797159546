//! Salsa20's keystream, 8 or 16 blocks at once where the machine has vectors for it.
//!
//! Each 32-bit lane of a vector belongs to one block: vector `w` holds word `w` of the states of
//! consecutive blocks, so that the rounds need no shuffling. Without such vectors the `salsa20` crate
//! makes one block after the other.

use salsa20::SalsaCore;
use salsa20::cipher::StreamCipherCore;
use salsa20::cipher::consts::U10;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of one block.
pub const BLOCK: usize = 64;

/// Most blocks made at once.
const BATCH: usize = 16;

/// "expand 32-byte k"
const SIGMA: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// Consecutive blocks of keystream.
#[repr(align(64))]
pub struct Batch([[u8; BLOCK]; BATCH]);

impl Batch {
    /// Room for keystream.
    pub const fn new() -> Self {
        Self([[0; BLOCK]; BATCH])
    }
}

/// Which instructions make the keystream; exists for what this machine has only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Variant {
    /// The fastest one.
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self(Kind::Portable))
    }

    /// All, the fastest last.
    pub fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let vector = [
            is_x86_feature_detected!("avx2").then_some(Self(Kind::Avx2)),
            // The first is what `x86` asks for, the second what that implies to the compiler.
            (is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512f"))
                .then_some(Self(Kind::Avx512)),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let vector: [Option<Self>; 0] = [];
        std::iter::once(Self(Kind::Portable)).chain(vector.into_iter().flatten())
    }
}

/// Salsa20 with one key, wiped from memory when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Salsa20 {
    /// State of block 0 of nonce 0.
    state: [u32; 16],
    #[zeroize(skip)]
    variant: Variant,
}

impl Salsa20 {
    /// For this key.
    pub fn new(key: &[u8; 32], variant: Variant) -> Self {
        let mut state = [0; 16];
        let (words, _) = key.as_chunks::<4>();
        for (at, word) in [1, 2, 3, 4, 11, 12, 13, 14].into_iter().zip(words) {
            state[at] = u32::from_le_bytes(*word);
        }
        for (at, word) in [0, 5, 10, 15].into_iter().zip(SIGMA) {
            state[at] = word;
        }
        Self { state, variant }
    }

    /// Makes keystream from block number `block` on, `wanted` blocks or as many as go at once. Nonce:
    /// `number`, big endian. Gives what was made: not empty, perhaps more than was wanted.
    pub fn keystream<'a>(&self, number: u64, block: u32, wanted: usize, batch: &'a mut Batch) -> &'a [u8] {
        let mut state = self.state;
        let [high, low] = [(number >> 32) as u32, number as u32];
        state[6] = high.swap_bytes();
        state[7] = low.swap_bytes();
        state[8] = block;
        // For so few blocks most lanes would work in vain.
        let kind = if wanted <= 2 {
            Kind::Portable
        } else {
            self.variant.0
        };
        let made = match kind {
            Kind::Portable => {
                let made = wanted.clamp(1, BATCH);
                let mut core = SalsaCore::<U10>::from_raw_state(state);
                for block in batch.0.iter_mut().take(made) {
                    core.write_keystream_block(block.into());
                }
                made
            }
            // SAFETY: these `Kind`s are made only where the machine has the instructions.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { x86::avx2(&state, batch) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 if wanted <= 8 => unsafe { x86::avx512_half(&state, batch) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { x86::avx512(&state, batch) },
        };
        batch.0.split_at(made.min(BATCH)).0.as_flattened()
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Batch;

    /// Functions that make `$lanes` blocks with vectors `$vector`; they return `$lanes`.
    macro_rules! salsa20 {
        ($lanes:literal, $vector:ty, [$($name:ident $features:literal),+],
         $set1:ident, $add:ident, $xor:ident, $or:ident, $shl:ident, $shr:ident,
         $low32:ident, $high32:ident, $low64:ident, $high64:ident) => {$(
            #[target_feature(enable = $features)]
            pub fn $name(state: &[u32; 16], batch: &mut Batch) -> usize {
                // With AVX-512 the compiler makes a rotation of the shifts.
                macro_rules! step {
                    ($x:ident, $to:literal, $p:literal, $q:literal, $left:literal) => {
                        let sum = $add($x[$p], $x[$q]);
                        let rotated = $or($shl::<$left>(sum), $shr::<{ 32 - $left }>(sum));
                        $x[$to] = $xor($x[$to], rotated);
                    };
                }
                macro_rules! quarter_round {
                    ($x:ident, $a:literal, $b:literal, $c:literal, $d:literal) => {
                        step!($x, $b, $a, $d, 7);
                        step!($x, $c, $b, $a, 9);
                        step!($x, $d, $c, $b, 13);
                        step!($x, $a, $d, $c, 18);
                    };
                }
                let mut start: [$vector; 16] = state.map(|word| $set1(word.cast_signed()));
                let numbers: [i32; $lanes] = std::array::from_fn(|lane| lane as i32);
                // SAFETY: integers of the same size, and all bit patterns are valid.
                let numbers = unsafe { std::mem::transmute::<[i32; $lanes], $vector>(numbers) };
                // The upper half of the block number stays zero: 2^32 blocks are longer than any packet.
                start[8] = $add(start[8], numbers);
                let mut x = start;
                for _ in 0..10 {
                    quarter_round!(x, 0, 4, 8, 12);
                    quarter_round!(x, 5, 9, 13, 1);
                    quarter_round!(x, 10, 14, 2, 6);
                    quarter_round!(x, 15, 3, 7, 11);
                    quarter_round!(x, 0, 1, 2, 3);
                    quarter_round!(x, 5, 6, 7, 4);
                    quarter_round!(x, 10, 11, 8, 9);
                    quarter_round!(x, 15, 12, 13, 14);
                }
                for (x, start) in x.iter_mut().zip(start) {
                    *x = $add(*x, start);
                }
                // Back from lanes to blocks. Each four words of each four lanes are transposed: then
                // `rows[i]` has four words of block i in its first 16 bytes, of block 4 + i in the next.
                for (quad, words) in x.as_chunks::<4>().0.iter().enumerate() {
                    let [w0, w1, w2, w3] = *words;
                    let (a, b) = ($low32(w0, w1), $low32(w2, w3));
                    let (c, d) = ($high32(w0, w1), $high32(w2, w3));
                    let rows = [$low64(a, b), $high64(a, b), $low64(c, d), $high64(c, d)];
                    for (i, row) in rows.into_iter().enumerate() {
                        // SAFETY: integers of the same size, and all bit patterns are valid.
                        let quads = unsafe { std::mem::transmute::<$vector, [[u8; 16]; $lanes / 4]>(row) };
                        for (j, bytes) in quads.into_iter().enumerate() {
                            batch.0[4 * j + i].as_chunks_mut::<16>().0[quad] = bytes;
                        }
                    }
                }
                $lanes
            }
        )+};
    }

    salsa20!(
        8, __m256i, [avx2 "avx2", avx512_half "avx512vl"],
        _mm256_set1_epi32, _mm256_add_epi32, _mm256_xor_si256, _mm256_or_si256,
        _mm256_slli_epi32, _mm256_srli_epi32, _mm256_unpacklo_epi32, _mm256_unpackhi_epi32,
        _mm256_unpacklo_epi64, _mm256_unpackhi_epi64
    );
    salsa20!(
        16, __m512i, [avx512 "avx512f"],
        _mm512_set1_epi32, _mm512_add_epi32, _mm512_xor_si512, _mm512_or_si512,
        _mm512_slli_epi32, _mm512_srli_epi32, _mm512_unpacklo_epi32, _mm512_unpackhi_epi32,
        _mm512_unpacklo_epi64, _mm512_unpackhi_epi64
    );
}
