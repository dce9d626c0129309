//! MRA: "message receipt acknowledged": the answer will take longer.
//!
//! IBA Vol. 1, 12.6.6.

use super::{CommId, MAD_BODY, array, ids, put_ids};
use crate::wire::{WireError, take};

/// Message receipt acknowledgement.
///
/// ```text
///   0 | Local Communication ID        |  4 | Remote Communication ID
///   8 | Message MRAed 2, resv6        |  9 | Service Timeout 5, resv3
///  10 | Private data, 222 bytes
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mra {
    /// The sender's name for the connection.
    pub local: CommId,
    /// The receiver's name for it.
    pub remote: CommId,
    /// The message that has been received.
    pub answered: Answered,
    /// How long the answer may take from now: code, 5 bits, 4.096 µs · 2^code.
    pub service_timeout: u8,
    /// The application's.
    pub private_data: [u8; 222],
}

/// The message that an MRA or REJ answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// A REQ.
    Req,
    /// A REP.
    Rep,
    /// None: a REJ because nothing came.
    Nothing,
    /// A LAP in an MRA; the specification has no such value in a REJ.
    Other,
}

impl Answered {
    /// From the two top bits of a byte.
    pub(super) const fn from_byte(byte: u8) -> Self {
        match byte >> 6 {
            0 => Self::Req,
            1 => Self::Rep,
            2 => Self::Nothing,
            _ => Self::Other,
        }
    }

    /// The two top bits of a byte.
    pub(super) const fn byte(self) -> u8 {
        (self as u8) << 6
    }
}

impl Mra {
    /// The attribute that names this message.
    pub const ATTRIBUTE: u16 = 0x11;

    /// Reads the message from the body of a datagram; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<MAD_BODY>("MRA", bytes)?;
        let (local, remote) = ids(b);
        let message = Self {
            local,
            remote,
            answered: Answered::from_byte(b[8]),
            service_timeout: b[9] >> 3,
            private_data: array(b, 10),
        };
        Ok((message, rest))
    }

    /// Writes the message; the timeout keeps its five bits.
    pub fn emit(&self, out: &mut [u8; MAD_BODY]) {
        put_ids(out, self.local, self.remote);
        out[8] = self.answered.byte();
        out[9] = self.service_timeout << 3;
        out[10..].copy_from_slice(&self.private_data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let mut known = [0xEE; MAD_BODY];
        known[..10].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0x40, 0xA0]);
        let value = Mra {
            local: CommId(1),
            remote: CommId(2),
            answered: Answered::Rep,
            service_timeout: 20,
            private_data: [0xEE; 222],
        };
        let mut reserved = [0; MAD_BODY];
        reserved[8..10].copy_from_slice(&[0x3F, 7]);
        check::header(value, known, reserved, Mra::parse, Mra::emit);
    }
}
