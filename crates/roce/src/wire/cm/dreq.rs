//! DREQ: asks to give a connection up.
//!
//! IBA Vol. 1, 12.6.10.

use super::{CommId, MAD_BODY, array, ids, put_ids};
use crate::wire::{Qpn, WireError, be24, put24, take};

/// Request for communication release.
///
/// ```text
///   0 | Local Communication ID        |  4 | Remote Communication ID
///   8 | Remote QPN 24, resv8          | 12 | Private data, 220 bytes
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dreq {
    /// The sender's name for the connection.
    pub local: CommId,
    /// The receiver's name for it.
    pub remote: CommId,
    /// The receiver's queue pair.
    pub remote_qpn: Qpn,
    /// The application's.
    pub private_data: [u8; 220],
}

impl Dreq {
    /// The attribute that names this message.
    pub const ATTRIBUTE: u16 = 0x15;

    /// Reads the message from the body of a datagram; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<MAD_BODY>("DREQ", bytes)?;
        let (local, remote) = ids(b);
        let message = Self {
            local,
            remote,
            remote_qpn: Qpn::new(be24(b, 8)),
            private_data: array(b, 12),
        };
        Ok((message, rest))
    }

    /// Writes the message.
    pub fn emit(&self, out: &mut [u8; MAD_BODY]) {
        put_ids(out, self.local, self.remote);
        put24(out, 8, self.remote_qpn.value());
        out[11] = 0;
        out[12..].copy_from_slice(&self.private_data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let mut known = [0xEE; MAD_BODY];
        known[..12].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 3, 0]);
        let value = Dreq {
            local: CommId(1),
            remote: CommId(2),
            remote_qpn: Qpn::new(3),
            private_data: [0xEE; 220],
        };
        let mut reserved = [0; MAD_BODY];
        reserved[11] = 0xFF;
        check::header(value, known, reserved, Dreq::parse, Dreq::emit);
    }
}
