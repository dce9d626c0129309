//! RDMA extended transport header: the remote memory of an RDMA WRITE or READ.
//!
//! IBA Vol. 1, 9.3.3. With a length of zero neither key nor address is checked (C9-88).

use super::{Key, WireError, be32, be64, take};

/// RDMA extended transport header.
///
/// ```text
/// +---------------------------------------------------------------+
/// |                        VA, high 32 bits                       |
/// |                        VA, low 32 bits                        |
/// +---------------------------------------------------------------+
/// |                             R_Key                             |
/// +---------------------------------------------------------------+
/// |                            DMALen                             |
/// +---------------------------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reth {
    /// Virtual address in the responder's region.
    pub va: u64,
    /// The key that exposes the region.
    pub rkey: Key,
    /// Length of the whole message in bytes.
    pub length: u32,
}

impl Reth {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 16;

    /// Reads the header at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("RETH", bytes)?;
        let header = Self {
            va: be64(b, 0),
            rkey: Key(be32(b, 8)),
            length: be32(b, 12),
        };
        Ok((header, rest))
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        out[..8].copy_from_slice(&self.va.to_be_bytes());
        out[8..12].copy_from_slice(&self.rkey.0.to_be_bytes());
        out[12..].copy_from_slice(&self.length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let value = Reth {
            va: 0x0000_7F12_3456_7890,
            rkey: Key(0x0000_1A2B),
            length: 65536,
        };
        let known = [
            0, 0, 0x7F, 0x12, 0x34, 0x56, 0x78, 0x90, 0, 0, 0x1A, 0x2B, 0, 1, 0, 0,
        ];
        check::header(value, known, [0; Reth::LEN], Reth::parse, Reth::emit);
    }
}
