//! ACK extended transport header: what became of the requests.
//!
//! IBA Vol. 1, 9.3.5 and 9.7.5. The time behind an RNR timer code is the engine's business.

use std::fmt;

use super::{WireError, be24, put24, take};

/// ACK extended transport header.
///
/// ```text
/// +---------------+-----------------------------------------------+
/// |   Syndrome    |                      MSN                      |
/// +---------------+-----------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aeth {
    /// Acknowledged, or why not.
    pub syndrome: Syndrome,
    /// Message sequence number: messages completed by the responder, 24 bits that wrap.
    pub msn: u32,
}

/// Acknowledged, or why not.
///
/// ```text
/// bits 7-5: 000 ACK, 001 RNR NAK, 011 NAK; bits 4-0: credits, timer, code
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syndrome {
    /// Done, up to and including this PSN.
    Ack {
        /// End-to-end credit code, 0 to 31; 31 means that no credits are counted.
        credits: u8,
    },
    /// No receive buffer was posted: ask again after the time of the timer code.
    RnrNak {
        /// Timer code, 0 to 31.
        timer: u8,
    },
    /// Refused.
    Nak(NakCode),
    /// A code point the specification reserves: the whole byte.
    Reserved(u8),
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NakCode {
    /// A packet is missing: the PSN of the packet is the one expected.
    PsnSequence,
    /// The request was malformed or not allowed by the queue pair.
    InvalidRequest,
    /// The key, bounds or rights of the remote memory refuse it.
    RemoteAccess,
    /// The responder failed while executing it.
    RemoteOperational,
    /// Not of the responder's reliable datagram domain.
    InvalidRd,
    /// A code that the specification reserves, 5 to 31.
    Unknown(u8),
}

impl Aeth {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 4;

    /// Reads the header at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("AETH", bytes)?;
        Ok((
            Self {
                syndrome: b[0].into(),
                msn: be24(b, 1),
            },
            rest,
        ))
    }

    /// Writes the header; of `msn` the low 24 bits.
    #[inline]
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        out[0] = self.syndrome.into();
        put24(out, 1, self.msn);
    }
}

impl Syndrome {
    /// The credit code of a responder that counts no credits.
    pub const NO_CREDITS: u8 = 0x1F;

    /// An acknowledgement without credits.
    pub const ACK: Self = Self::Ack {
        credits: Self::NO_CREDITS,
    };
}

impl From<u8> for Syndrome {
    #[inline]
    fn from(byte: u8) -> Self {
        let value = byte & 0x1F;
        match byte >> 5 {
            0b000 => Self::Ack { credits: value },
            0b001 => Self::RnrNak { timer: value },
            0b011 => Self::Nak(value.into()),
            _ => Self::Reserved(byte),
        }
    }
}

impl From<Syndrome> for u8 {
    #[inline]
    fn from(syndrome: Syndrome) -> Self {
        match syndrome {
            Syndrome::Ack { credits } => credits & 0x1F,
            Syndrome::RnrNak { timer } => 0b001 << 5 | timer & 0x1F,
            Syndrome::Nak(code) => 0b011 << 5 | Self::from(code) & 0x1F,
            Syndrome::Reserved(byte) => byte,
        }
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ack { .. } => f.write_str("ACK"),
            Self::RnrNak { timer } => write!(f, "RNR NAK timer {timer}"),
            Self::Nak(code) => write!(f, "NAK {code}"),
            Self::Reserved(byte) => write!(f, "reserved syndrome {byte:#04x}"),
        }
    }
}

impl From<u8> for NakCode {
    #[inline]
    fn from(code: u8) -> Self {
        match code {
            0 => Self::PsnSequence,
            1 => Self::InvalidRequest,
            2 => Self::RemoteAccess,
            3 => Self::RemoteOperational,
            4 => Self::InvalidRd,
            code => Self::Unknown(code),
        }
    }
}

impl From<NakCode> for u8 {
    #[inline]
    fn from(code: NakCode) -> Self {
        match code {
            NakCode::PsnSequence => 0,
            NakCode::InvalidRequest => 1,
            NakCode::RemoteAccess => 2,
            NakCode::RemoteOperational => 3,
            NakCode::InvalidRd => 4,
            NakCode::Unknown(code) => code,
        }
    }
}

impl fmt::Display for NakCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PsnSequence => f.write_str("PSN sequence error"),
            Self::InvalidRequest => f.write_str("invalid request"),
            Self::RemoteAccess => f.write_str("remote access error"),
            Self::RemoteOperational => f.write_str("remote operational error"),
            Self::InvalidRd => f.write_str("invalid RD request"),
            Self::Unknown(code) => write!(f, "code {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let known = [
            (Syndrome::ACK, 0x1F),
            (Syndrome::RnrNak { timer: 12 }, 0x2C),
            (Syndrome::Nak(NakCode::RemoteAccess), 0x62),
        ];
        for (syndrome, byte) in known {
            let value = Aeth {
                syndrome,
                msn: 0x00_0102,
            };
            check::header(
                value,
                [byte, 0, 1, 2],
                [0; Aeth::LEN],
                Aeth::parse,
                Aeth::emit,
            );
        }
    }

    #[test]
    fn every_syndrome_survives() {
        for byte in 0..=u8::MAX {
            assert_eq!(u8::from(Syndrome::from(byte)), byte);
        }
    }
}
