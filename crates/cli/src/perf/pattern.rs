//! Contents that are checked: every message of a case has bytes of its own.

/// The bytes of message `sequence` of a lane in one direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pattern {
    seed: u64,
}

impl Pattern {
    pub(super) const fn new(is_client: bool, lane: usize, sequence: u64) -> Self {
        let source = (lane as u64) << 1 | is_client as u64;
        Self {
            seed: mix(mix(source).wrapping_add(sequence)),
        }
    }

    pub(super) fn fill(self, bytes: &mut [u8]) {
        let mut chunks = bytes.chunks_exact_mut(8);
        let mut word = self.seed;
        for chunk in &mut chunks {
            word = word.wrapping_add(STEP);
            chunk.copy_from_slice(&(word ^ word >> 32).to_le_bytes());
        }
        let rest = chunks.into_remainder();
        let len = rest.len();
        let last = mix(word).to_le_bytes();
        rest.copy_from_slice(&last[..len]);
    }
}

/// The first byte that is not as it should be.
pub(super) fn first_difference(found: &[u8], expected: &[u8]) -> Option<usize> {
    if found == expected {
        return None;
    }
    found.iter().zip(expected).position(|(a, b)| a != b)
}

/// SplitMix64's finaliser.
const fn mix(mut word: u64) -> u64 {
    word = word.wrapping_add(STEP);
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_differ_by_direction_lane_and_number() {
        for len in [3, 8, 13, 64] {
            let bytes = |pattern: Pattern| {
                let mut bytes = vec![0; len];
                pattern.fill(&mut bytes);
                bytes
            };
            let first = bytes(Pattern::new(true, 0, 0));
            assert_eq!(first, bytes(Pattern::new(true, 0, 0)));
            for other in [(false, 0, 0), (true, 1, 0), (true, 0, 1)] {
                let other = bytes(Pattern::new(other.0, other.1, other.2));
                assert!(first_difference(&first, &other).is_some(), "{len} bytes");
            }
        }
    }
}
