//! SIDR_REP: names the queue pair and key that serve datagrams, or refuses.
//!
//! IBA Vol. 1, 12.11.1.2.

use std::fmt;

use super::{MAD_BODY, ServiceId, array};
use crate::wire::{Qpn, WireError, be24, be32, be64, put24, take};

/// Service ID resolution response.
///
/// ```text
///   0 | RequestID
///   4 | Status 8                      |  5 | Additional Information Length 8, resv16
///   8 | QPN 24, resv8                 | 12 | ServiceID
///  20 | Q_Key                         | 24 | Additional Information, 72 bytes
///  96 | Private data, 136 bytes
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SidrRep {
    /// The receiver's name for the request.
    pub request: u32,
    /// What became of it.
    pub status: SidrStatus,
    /// Bytes of `info` that mean something.
    pub info_length: u8,
    /// The queue pair that serves.
    pub qpn: Qpn,
    /// What was asked for.
    pub service: ServiceId,
    /// The key that lets datagrams in.
    pub qkey: u32,
    /// Depends on the status.
    pub info: [u8; 72],
    /// The application's.
    pub private_data: [u8; 136],
}

/// What became of a service ID resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SidrStatus {
    /// Queue pair and key are valid.
    Valid,
    /// Nobody serves this.
    UnknownService,
    /// The application refuses.
    Rejected,
    /// No queue pair is available.
    NoQueuePair,
    /// Another port serves this.
    Redirect,
    /// The version is not supported.
    Version,
    /// Any other code.
    Unknown(u8),
}

impl From<u8> for SidrStatus {
    fn from(code: u8) -> Self {
        match code {
            0 => Self::Valid,
            1 => Self::UnknownService,
            2 => Self::Rejected,
            3 => Self::NoQueuePair,
            4 => Self::Redirect,
            5 => Self::Version,
            other => Self::Unknown(other),
        }
    }
}

impl From<SidrStatus> for u8 {
    fn from(status: SidrStatus) -> Self {
        match status {
            SidrStatus::Valid => 0,
            SidrStatus::UnknownService => 1,
            SidrStatus::Rejected => 2,
            SidrStatus::NoQueuePair => 3,
            SidrStatus::Redirect => 4,
            SidrStatus::Version => 5,
            SidrStatus::Unknown(code) => code,
        }
    }
}

impl fmt::Display for SidrStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid => f.write_str("resolved"),
            Self::UnknownService => f.write_str("nobody listens on this service"),
            Self::Rejected => f.write_str("refused by the application"),
            Self::NoQueuePair => f.write_str("no queue pair available"),
            Self::Redirect => f.write_str("redirected to another port"),
            Self::Version => f.write_str("class version not supported"),
            Self::Unknown(code) => write!(f, "refused with unknown status {code}"),
        }
    }
}

impl SidrRep {
    /// The attribute that names this message.
    pub const ATTRIBUTE: u16 = 0x18;

    /// Reads the message from the body of a datagram; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<MAD_BODY>("SIDR_REP", bytes)?;
        let message = Self {
            request: be32(b, 0),
            status: b[4].into(),
            info_length: b[5],
            qpn: Qpn::new(be24(b, 8)),
            service: ServiceId(be64(b, 12)),
            qkey: be32(b, 20),
            info: array(b, 24),
            private_data: array(b, 96),
        };
        Ok((message, rest))
    }

    /// Writes the message.
    pub fn emit(&self, out: &mut [u8; MAD_BODY]) {
        out[..4].copy_from_slice(&self.request.to_be_bytes());
        out[4] = self.status.into();
        out[5] = self.info_length;
        out[6..8].fill(0);
        put24(out, 8, self.qpn.value());
        out[11] = 0;
        out[12..20].copy_from_slice(&self.service.0.to_be_bytes());
        out[20..24].copy_from_slice(&self.qkey.to_be_bytes());
        out[24..96].copy_from_slice(&self.info);
        out[96..].copy_from_slice(&self.private_data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let mut known = [0xEE; MAD_BODY];
        known[..24].copy_from_slice(&[
            0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1, 0x11, 0, 7, 1, 0x23, 0x45, 0x67,
        ]);
        known[24..96].fill(0xDD);
        let value = SidrRep {
            request: 1,
            status: SidrStatus::Rejected,
            info_length: 3,
            qpn: Qpn::new(4),
            service: ServiceId(0x0111_0007),
            qkey: 0x0123_4567,
            info: [0xDD; 72],
            private_data: [0xEE; 136],
        };
        let mut reserved = [0; MAD_BODY];
        reserved[6..8].fill(0xFF);
        reserved[11] = 0xFF;
        check::header(value, known, reserved, SidrRep::parse, SidrRep::emit);
    }
}
