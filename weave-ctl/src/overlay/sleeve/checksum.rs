//! The Internet checksum (RFC 1071), fast: sums are kept unfolded and in host byte order, which the
//! checksum allows as long as it is also stored that way.

/// Sum of the 16-bit words of `data`, to be added to others and folded. All but the last part of what
/// is summed must have an even length.
#[must_use]
#[inline]
pub fn sum(data: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if data.len() >= LONG && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has it.
        return unsafe { sum_avx2(data) };
    }
    sum_words(data)
}

/// Bytes from which wider registers are worth the question.
#[cfg(target_arch = "x86_64")]
const LONG: usize = 128;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(data: &[u8]) -> u64 {
    sum_words(data)
}

#[inline(always)]
fn sum_words(data: &[u8]) -> u64 {
    // 32-bit words fold to the same as their halves, and are what the compiler makes vectors of.
    let (words, rest) = data.as_chunks::<4>();
    let total: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)))
        .sum();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total + u64::from(u32::from_ne_bytes(last))
}

/// The 16-bit one's complement sum in host byte order.
#[must_use]
#[inline]
pub fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A number as it takes part in a sum.
#[must_use]
#[inline]
pub fn word(number: u16) -> u64 {
    u64::from(number.to_be())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the RFC says it.
    fn reference(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn as_the_rfc_says(data in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(fold(sum(&data)).to_ne_bytes(), reference(&data).to_be_bytes());
        }
    }

    #[test]
    fn of_ones() {
        assert_eq!(
            fold(sum(&[0xff; 65535])).to_ne_bytes(),
            reference(&[0xff; 65535]).to_be_bytes()
        );
        assert_eq!(fold(word(0x1234)).to_ne_bytes(), [0x12, 0x34]);
    }
}
