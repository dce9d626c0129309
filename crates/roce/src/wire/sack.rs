//! Selective acknowledgement: an extension between software peers.
//!
//! Not in the specification. It is sent only to a peer that has said it understands it (see
//! [`super::extension`]), as opcode 0xC1 of the manufacturer's range, behind a BTH and an AETH that
//! mean what they mean in an acknowledgement; this header adds which packets beyond a gap have
//! arrived, and how much the receiver can take.

use super::{Psn, WireError, be16, be24, be64, put24, take};

/// Selective acknowledgement header, behind BTH and AETH.
///
/// ```text
/// +---------------+-----------------------------------------------+
/// |     resv8     |                  expected PSN                 |
/// +---------------+---------------+-------------------------------+
/// |            window             |             resv16            |
/// +-------------------------------+-------------------------------+
/// |     bitmap: four 64-bit words, bit 0 of each its lowest       |
/// |                              ...                              |
/// +---------------------------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sack {
    /// The lowest PSN that has not arrived: everything before it has.
    pub expected: Psn,
    /// How many packets from `expected` on the receiver can take.
    pub window: u16,
    /// Bit `i` (bit `i % 64` of word `i / 64`): the packet `expected + 1 + i` has arrived.
    pub bitmap: [u64; 4],
}

impl Sack {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 40;

    /// Packets behind the expected one that a bitmap covers.
    pub const SPAN: u32 = 256;

    /// Reads the header at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("SACK", bytes)?;
        let header = Self {
            expected: Psn::new(be24(b, 1)),
            window: be16(b, 4),
            bitmap: [be64(b, 8), be64(b, 16), be64(b, 24), be64(b, 32)],
        };
        Ok((header, rest))
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        out[0] = 0;
        put24(out, 1, self.expected.value());
        out[4..6].copy_from_slice(&self.window.to_be_bytes());
        out[6..8].fill(0);
        for (word, bytes) in self.bitmap.iter().zip(out[8..].chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
    }

    /// Marks `psn` as arrived. PSNs that the bitmap does not cover are ignored.
    #[inline]
    pub fn mark(&mut self, psn: Psn) {
        let ahead = psn.since(self.expected) - 1;
        if (0..Self::SPAN.cast_signed()).contains(&ahead) {
            self.bitmap[ahead as usize / 64] |= 1 << (ahead % 64);
        }
    }

    /// Has `psn` arrived? PSNs beyond the bitmap have not, as far as this says.
    #[inline]
    pub fn has(&self, psn: Psn) -> bool {
        let ahead = psn.since(self.expected) - 1;
        if ahead < -1 {
            return true;
        }
        (0..Self::SPAN.cast_signed()).contains(&ahead)
            && self.bitmap[ahead as usize / 64] >> (ahead % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let value = Sack {
            expected: Psn::new(0x01_0203),
            window: 0x0405,
            bitmap: [1, 2, 3, 4],
        };
        let mut known = [0; Sack::LEN];
        known[1..6].copy_from_slice(&[1, 2, 3, 4, 5]);
        for (word, byte) in [(0, 1), (1, 2), (2, 3), (3, 4)] {
            known[8 + 8 * word + 7] = byte;
        }
        let mut reserved = [0; Sack::LEN];
        reserved[0] = 0xFF;
        reserved[6..8].fill(0xFF);
        check::header(value, known, reserved, Sack::parse, Sack::emit);
    }

    #[test]
    fn the_bitmap_starts_behind_the_gap_and_wraps_with_the_psn() {
        let expected = Psn::new(0xFF_FFFE);
        let mut sack = Sack {
            expected,
            ..Sack::default()
        };
        for ahead in [1, 3, 256, 257] {
            sack.mark(expected + ahead);
        }
        assert_eq!(sack.bitmap, [0b101, 0, 0, 1 << 63]);
        let arrived: Vec<u32> = (0..300)
            .filter(|&ahead| sack.has(expected + ahead))
            .collect();
        assert_eq!(arrived, [1, 3, 256]);
        assert!(sack.has(expected - 1), "what is before the gap has arrived");
    }
}
