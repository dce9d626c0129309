//! Invalidate extended transport header: the key a SEND with invalidate revokes.
//!
//! IBA Vol. 1, 9.3.7.

use super::{Key, WireError, be32, take};

/// Invalidate extended transport header.
///
/// ```text
/// +---------------------------------------------------------------+
/// |                             R_Key                             |
/// +---------------------------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ieth {
    /// The key to invalidate at the receiver.
    pub rkey: Key,
}

impl Ieth {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 4;

    /// Reads the header at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("IETH", bytes)?;
        Ok((
            Self {
                rkey: Key(be32(b, 0)),
            },
            rest,
        ))
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        *out = self.rkey.0.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let value = Ieth {
            rkey: Key(0x0102_0304),
        };
        check::header(value, [1, 2, 3, 4], [0; 4], Ieth::parse, Ieth::emit);
    }
}
