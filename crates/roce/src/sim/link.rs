//! One direction of a faulty link.

use std::time::Duration;

use super::rng::Rng;
use crate::time::Instant;

/// What a link does to packets: probabilities, and times.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// A packet vanishes.
    pub loss: f64,
    /// A packet arrives twice.
    pub duplication: f64,
    /// A packet is overtaken by later ones.
    pub reordering: f64,
    /// A bit of a packet is flipped.
    pub corruption: f64,
    /// How long every packet takes at least.
    pub delay: Duration,
}

impl Faults {
    /// A link that only delays.
    pub const fn none() -> Self {
        Self {
            loss: 0.0,
            duplication: 0.0,
            reordering: 0.0,
            corruption: 0.0,
            delay: Duration::from_micros(5),
        }
    }

    /// Everything at once, up to `most` each.
    pub fn random(rng: &mut Rng, most: f64) -> Self {
        let mut some = || {
            if rng.chance(0.3) {
                0.0
            } else {
                rng.below(1_000) as f64 / 1_000.0 * most
            }
        };
        let (loss, duplication, reordering, corruption) = (some(), some(), some(), some());
        let delay = Duration::from_nanos(rng.below(50_000));
        Self {
            loss,
            duplication,
            reordering,
            corruption,
            delay,
        }
    }

    /// When, and as what bytes, a packet sent at `now` arrives.
    pub fn carry(
        &self,
        rng: &mut Rng,
        now: Instant,
        packet: &[u8],
        mut arrive: impl FnMut(Instant, Vec<u8>),
    ) {
        let copies = if rng.chance(self.loss) {
            0
        } else {
            1 + u32::from(rng.chance(self.duplication))
        };
        for _ in 0..copies {
            let mut at = now + self.delay;
            if rng.chance(self.reordering) {
                at += Duration::from_nanos(rng.below(200_000));
            }
            let mut bytes = packet.to_vec();
            if rng.chance(self.corruption) {
                let bit = rng.below(bytes.len() as u64 * 8) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            arrive(at, bytes);
        }
    }
}
