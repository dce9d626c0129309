//! Immediate data: four bytes for the receiver's completion.
//!
//! IBA Vol. 1, 9.3.6. They travel as they are; a program that means a number puts it in network order,
//! and here the four bytes are read as that number.

use super::{WireError, be32, take};

/// Immediate data: the four bytes of the wire read as a big-endian number.
///
/// ```text
/// +---------------------------------------------------------------+
/// |                        Immediate Data                         |
/// +---------------------------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Immediate(pub u32);

impl Immediate {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 4;

    /// Reads the header at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("ImmDt", bytes)?;
        Ok((Self(be32(b, 0)), rest))
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        *out = self.0.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let value = Immediate(0x0102_0304);
        check::header(
            value,
            [1, 2, 3, 4],
            [0; 4],
            Immediate::parse,
            Immediate::emit,
        );
    }
}
