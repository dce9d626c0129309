//! The names that packets carry: queue pair numbers and memory keys.

use std::fmt;

/// A queue pair number: 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Qpn(u32);

impl Qpn {
    /// The general services interface: queue pair 1, where management datagrams go.
    pub const GSI: Self = Self(1);

    /// The queue pair number with the low 24 bits of `value`.
    #[inline]
    pub const fn new(value: u32) -> Self {
        Self(value & 0x00FF_FFFF)
    }

    /// The number, below 2^24.
    #[inline]
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Qpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#08x}", self.0)
    }
}

/// A memory key, local or remote: 32 bits that name a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(pub u32);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_pair_number_has_24_bits() {
        assert_eq!(Qpn::new(0xFF00_0011).value(), 0x11);
        assert_eq!(Qpn::new(0x11).to_string(), "0x000011");
        assert_eq!(Key(0x2a).to_string(), "0x0000002a");
    }
}
