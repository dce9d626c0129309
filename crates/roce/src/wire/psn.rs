//! Packet sequence numbers: 24 bits that wrap.
//!
//! IBA Vol. 1, 9.7.1. There is deliberately no `Ord`: which of two PSNs comes first is a question
//! about their distance, and [`Psn::since`] answers it.

use std::fmt;
use std::ops::{Add, Sub};

/// A packet sequence number: 24 bits, arithmetic modulo 2^24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Psn(u32);

impl Psn {
    const MASK: u32 = 0x00FF_FFFF;

    /// The PSN with the low 24 bits of `value`.
    #[inline]
    pub const fn new(value: u32) -> Self {
        Self(value & Self::MASK)
    }

    /// The number, below 2^24.
    #[inline]
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The PSN that follows.
    #[inline]
    pub const fn next(self) -> Self {
        Self::new(self.0 + 1)
    }

    /// The signed distance from `earlier` to this one, in `-2^23 .. 2^23`: positive when this PSN is
    /// ahead of `earlier`, zero when they are equal.
    #[inline]
    pub const fn since(self, earlier: Self) -> i32 {
        (self.0.wrapping_sub(earlier.0) << 8).cast_signed() >> 8
    }
}

impl Add<u32> for Psn {
    type Output = Self;

    #[inline]
    fn add(self, packets: u32) -> Self {
        Self::new(self.0.wrapping_add(packets))
    }
}

impl Sub<u32> for Psn {
    type Output = Self;

    #[inline]
    fn sub(self, packets: u32) -> Self {
        Self::new(self.0.wrapping_sub(packets))
    }
}

impl fmt::Display for Psn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: Psn = Psn::new(0xFF_FFFF);

    #[test]
    fn numbers_wrap_at_24_bits() {
        assert_eq!(LAST.next(), Psn::new(0));
        assert_eq!(LAST + 2, Psn::new(1));
        assert_eq!(Psn::new(1) - 2, LAST);
        assert_eq!(Psn::new(0x1234_5678).value(), 0x34_5678);
    }

    #[test]
    fn distance_is_signed_across_the_wrap() {
        assert_eq!(Psn::new(3).since(Psn::new(1)), 2);
        assert_eq!(Psn::new(1).since(Psn::new(3)), -2);
        assert_eq!(Psn::new(1).since(LAST), 2);
        assert_eq!(LAST.since(Psn::new(1)), -2);
        assert_eq!(Psn::new(0x7F_FFFF).since(Psn::new(0)), 0x7F_FFFF);
        assert_eq!(Psn::new(0x80_0000).since(Psn::new(0)), -0x80_0000);
    }
}
