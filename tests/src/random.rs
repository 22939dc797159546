//! Random numbers that a seed repeats (xorshift64*): enough for tests, and no dependency.

/// A sequence of numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % limit
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// So many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn repeats_and_covers() {
        let (mut one, mut two, mut other) = (Random::new(7), Random::new(7), Random::new(8));
        assert_eq!(one.bytes(100), two.bytes(100));
        assert_ne!(one.bytes(100), other.bytes(100));
        let hits = (0..10_000).filter(|_| one.chance(10)).count();
        assert!((800..1200).contains(&hits), "{hits} of 10,000 at 10 %");
        assert!(!(0..1000).any(|_| one.chance(0)));
    }
}
