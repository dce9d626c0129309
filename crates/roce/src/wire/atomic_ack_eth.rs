//! Atomic ACK extended transport header: what the word held before.
//!
//! IBA Vol. 1, 9.5.3.

use super::{WireError, be64, take};

/// Atomic ACK extended transport header.
///
/// ```text
/// +---------------------------------------------------------------+
/// |             Original Remote Data Value, 64 bits               |
/// |                                                               |
/// +---------------------------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AtomicAckEth {
    /// The word's value before the operation.
    pub original: u64,
}

impl AtomicAckEth {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 8;

    /// Reads the header at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("AtomicAckETH", bytes)?;
        Ok((
            Self {
                original: be64(b, 0),
            },
            rest,
        ))
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        *out = self.original.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let value = AtomicAckEth {
            original: 0x0102_0304_0506_0708,
        };
        let known = [1, 2, 3, 4, 5, 6, 7, 8];
        check::header(
            value,
            known,
            [0; 8],
            AtomicAckEth::parse,
            AtomicAckEth::emit,
        );
    }
}
