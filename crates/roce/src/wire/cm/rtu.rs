//! RTU: ready to use, the answer to REP.
//!
//! IBA Vol. 1, 12.6.9.

use super::{CommId, MAD_BODY, array, ids, put_ids};
use crate::wire::{WireError, take};

/// Ready to use.
///
/// ```text
///   0 | Local Communication ID        |  4 | Remote Communication ID
///   8 | Private data, 224 bytes
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtu {
    /// The sender's name for the connection.
    pub local: CommId,
    /// The receiver's name for it.
    pub remote: CommId,
    /// The application's.
    pub private_data: [u8; 224],
}

impl Rtu {
    /// The attribute that names this message.
    pub const ATTRIBUTE: u16 = 0x14;

    /// Reads the message from the body of a datagram; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<MAD_BODY>("RTU", bytes)?;
        let (local, remote) = ids(b);
        Ok((
            Self {
                local,
                remote,
                private_data: array(b, 8),
            },
            rest,
        ))
    }

    /// Writes the message.
    pub fn emit(&self, out: &mut [u8; MAD_BODY]) {
        put_ids(out, self.local, self.remote);
        out[8..].copy_from_slice(&self.private_data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let mut known = [0xEE; MAD_BODY];
        known[..8].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2]);
        let value = Rtu {
            local: CommId(1),
            remote: CommId(2),
            private_data: [0xEE; 224],
        };
        check::header(value, known, [0; MAD_BODY], Rtu::parse, Rtu::emit);
    }
}
