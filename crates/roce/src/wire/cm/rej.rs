//! REJ: refuses a request or a reply, or gives an attempt up.
//!
//! IBA Vol. 1, 12.6.7.

use std::fmt;

use super::{Answered, CommId, MAD_BODY, array, ids, put_ids};
use crate::wire::{WireError, be16, take};

/// Rejection.
///
/// ```text
///   0 | Local Communication ID        |  4 | Remote Communication ID
///   8 | Message REJected 2, resv6     |  9 | Reject Info Length 7, resv1
///  10 | Reason 16
///  12 | Additional Reject Information, 72 bytes
///  84 | Private data, 148 bytes
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rej {
    /// The sender's name for the connection; 0 when it has none.
    pub local: CommId,
    /// The receiver's name for it.
    pub remote: CommId,
    /// The message that is refused.
    pub answered: Answered,
    /// Why.
    pub reason: RejectReason,
    /// Bytes of `info` that mean something, 7 bits.
    pub info_length: u8,
    /// What would have been accepted, depending on the reason.
    pub info: [u8; 72],
    /// The application's.
    pub private_data: [u8; 148],
}

impl Rej {
    /// The attribute that names this message.
    pub const ATTRIBUTE: u16 = 0x12;

    /// Reads the message from the body of a datagram; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<MAD_BODY>("REJ", bytes)?;
        let (local, remote) = ids(b);
        let message = Self {
            local,
            remote,
            answered: Answered::from_byte(b[8]),
            reason: be16(b, 10).into(),
            info_length: b[9] >> 1,
            info: array(b, 12),
            private_data: array(b, 84),
        };
        Ok((message, rest))
    }

    /// Writes the message; the length keeps its seven bits.
    pub fn emit(&self, out: &mut [u8; MAD_BODY]) {
        put_ids(out, self.local, self.remote);
        out[8] = self.answered.byte();
        out[9] = self.info_length << 1;
        out[10..12].copy_from_slice(&u16::from(self.reason).to_be_bytes());
        out[12..84].copy_from_slice(&self.info);
        out[84..].copy_from_slice(&self.private_data);
    }
}

/// Declares the reasons once: variant, code, words.
macro_rules! reasons {
    ($($variant:ident = $code:literal, $words:literal;)*) => {
        /// Why communication was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum RejectReason {
            $(#[doc = concat!("Code ", $code, ": ", $words, ".")] $variant,)*
            /// Any other code.
            Unknown(u16),
        }

        impl From<u16> for RejectReason {
            fn from(code: u16) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    other => Self::Unknown(other),
                }
            }
        }

        impl From<RejectReason> for u16 {
            fn from(reason: RejectReason) -> Self {
                match reason {
                    $(RejectReason::$variant => $code,)*
                    RejectReason::Unknown(code) => code,
                }
            }
        }

        impl fmt::Display for RejectReason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($words),)*
                    Self::Unknown(code) => write!(f, "rejected for unknown reason {code}"),
                }
            }
        }
    };
}

reasons! {
    NoQueuePair = 1, "no queue pair available";
    NoEndToEndContext = 2, "no end-to-end context available";
    NoResources = 3, "no resources available";
    Timeout = 4, "the other side gave up waiting";
    UnsupportedRequest = 5, "request not supported";
    InvalidCommId = 6, "invalid communication ID";
    InvalidCommInstance = 7, "invalid communication instance";
    InvalidServiceId = 8, "nobody listens on this service";
    InvalidTransport = 9, "transport service not supported";
    StaleConnection = 10, "the queue pair is of a connection the other side still remembers";
    NoReliableDatagramChannel = 11, "no such reliable datagram channel";
    PrimaryGid = 12, "address of the primary path refused";
    PrimaryLid = 13, "LID of the primary path refused";
    PrimaryServiceLevel = 14, "service level of the primary path refused";
    PrimaryTrafficClass = 15, "traffic class of the primary path refused";
    PrimaryHopLimit = 16, "hop limit of the primary path refused";
    PrimaryRate = 17, "packet rate of the primary path refused";
    AlternateGid = 18, "address of the alternate path refused";
    AlternateLid = 19, "LID of the alternate path refused";
    AlternateServiceLevel = 20, "service level of the alternate path refused";
    AlternateTrafficClass = 21, "traffic class of the alternate path refused";
    AlternateHopLimit = 22, "hop limit of the alternate path refused";
    AlternateRate = 23, "packet rate of the alternate path refused";
    PortAndCmRedirect = 24, "redirected to another port and connection manager";
    PortRedirect = 25, "redirected to another port";
    PathMtu = 26, "path MTU refused";
    ResponderResources = 27, "not enough responder resources";
    Consumer = 28, "refused by the application";
    RnrRetryCount = 29, "RNR retry count refused";
    DuplicateCommId = 30, "communication ID already in use";
    ClassVersion = 31, "class version not supported";
    PrimaryFlowLabel = 32, "flow label of the primary path refused";
    AlternateFlowLabel = 33, "flow label of the alternate path refused";
    VendorOption = 35, "vendor option not supported";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let mut known = [0xEE; MAD_BODY];
        known[..12].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0x80, 10, 0, 28]);
        known[12..84].fill(0xDD);
        let value = Rej {
            local: CommId(1),
            remote: CommId(2),
            answered: Answered::Nothing,
            reason: RejectReason::Consumer,
            info_length: 5,
            info: [0xDD; 72],
            private_data: [0xEE; 148],
        };
        let mut reserved = [0; MAD_BODY];
        reserved[8..10].copy_from_slice(&[0x3F, 1]);
        check::header(value, known, reserved, Rej::parse, Rej::emit);
    }

    #[test]
    fn every_reason_survives() {
        for code in 0..=u16::MAX {
            assert_eq!(u16::from(RejectReason::from(code)), code);
        }
    }
}
