//! Atomic extended transport header: the word and operands of COMPARE SWAP and FETCH ADD.
//!
//! IBA Vol. 1, 9.3.4. FETCH ADD carries its addend in the swap field and ignores the compare field.

use super::{Key, WireError, be32, be64, take};

/// Atomic extended transport header.
///
/// ```text
/// +---------------------------------------------------------------+
/// |                        VA, high 32 bits                       |
/// |                        VA, low 32 bits                        |
/// +---------------------------------------------------------------+
/// |                             R_Key                             |
/// +---------------------------------------------------------------+
/// |                  Swap (or Add) Data, 64 bits                  |
/// |                                                               |
/// +---------------------------------------------------------------+
/// |                     Compare Data, 64 bits                     |
/// |                                                               |
/// +---------------------------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AtomicEth {
    /// Virtual address of the word; must be a multiple of 8 to be executed.
    pub va: u64,
    /// The key that exposes it.
    pub rkey: Key,
    /// The new value of COMPARE SWAP, the addend of FETCH ADD.
    pub swap_or_add: u64,
    /// The value that COMPARE SWAP compares with.
    pub compare: u64,
}

impl AtomicEth {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 28;

    /// Reads the header at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("AtomicETH", bytes)?;
        let header = Self {
            va: be64(b, 0),
            rkey: Key(be32(b, 8)),
            swap_or_add: be64(b, 12),
            compare: be64(b, 20),
        };
        Ok((header, rest))
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        out[..8].copy_from_slice(&self.va.to_be_bytes());
        out[8..12].copy_from_slice(&self.rkey.0.to_be_bytes());
        out[12..20].copy_from_slice(&self.swap_or_add.to_be_bytes());
        out[20..].copy_from_slice(&self.compare.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let value = AtomicEth {
            va: 0x0102,
            rkey: Key(0x0304),
            swap_or_add: 0x05,
            compare: 0x06,
        };
        let mut known = [0; AtomicEth::LEN];
        known[6..8].copy_from_slice(&[1, 2]);
        known[10..12].copy_from_slice(&[3, 4]);
        known[19] = 5;
        known[27] = 6;
        check::header(
            value,
            known,
            [0; AtomicEth::LEN],
            AtomicEth::parse,
            AtomicEth::emit,
        );
    }
}
