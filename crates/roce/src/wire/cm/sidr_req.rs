//! SIDR_REQ: asks which queue pair and key serve datagrams.
//!
//! IBA Vol. 1, 12.11.1.1 ("service ID resolution").

use super::{MAD_BODY, ServiceId, array};
use crate::wire::{WireError, be16, be32, be64, take};

/// Service ID resolution request.
///
/// ```text
///   0 | RequestID                     |  4 | P_Key 16, resv16
///   8 | ServiceID                     | 16 | Private data, 216 bytes
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SidrReq {
    /// The sender's name for the request.
    pub request: u32,
    /// Partition.
    pub pkey: u16,
    /// What is asked for.
    pub service: ServiceId,
    /// The application's, behind an IP-CM header if the service is of the IP port spaces.
    pub private_data: [u8; 216],
}

impl SidrReq {
    /// The attribute that names this message.
    pub const ATTRIBUTE: u16 = 0x17;

    /// Reads the message from the body of a datagram; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<MAD_BODY>("SIDR_REQ", bytes)?;
        let message = Self {
            request: be32(b, 0),
            pkey: be16(b, 4),
            service: ServiceId(be64(b, 8)),
            private_data: array(b, 16),
        };
        Ok((message, rest))
    }

    /// Writes the message.
    pub fn emit(&self, out: &mut [u8; MAD_BODY]) {
        out[..4].copy_from_slice(&self.request.to_be_bytes());
        out[4..6].copy_from_slice(&self.pkey.to_be_bytes());
        out[6..8].fill(0);
        out[8..16].copy_from_slice(&self.service.0.to_be_bytes());
        out[16..].copy_from_slice(&self.private_data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let mut known = [0xEE; MAD_BODY];
        known[..16].copy_from_slice(&[0, 0, 0, 1, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 1, 0x11, 0, 7]);
        let value = SidrReq {
            request: 1,
            pkey: 0xFFFF,
            service: ServiceId(0x0111_0007),
            private_data: [0xEE; 216],
        };
        let mut reserved = [0; MAD_BODY];
        reserved[6..8].fill(0xFF);
        check::header(value, known, reserved, SidrReq::parse, SidrReq::emit);
    }
}
