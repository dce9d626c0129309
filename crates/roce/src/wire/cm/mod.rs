//! Messages of the communication manager, one a file.
//!
//! IBA Vol. 1, 12.6. Each is the 232-byte body of a management datagram; [`Message`] is any of them,
//! and puts the common header in front. Load path and alternate path (LAP, APR) are not spoken.

mod drep;
mod dreq;
mod ip_cm;
mod mra;
mod path;
mod rej;
mod rep;
mod req;
mod rtu;
mod service_id;
mod sidr_rep;
mod sidr_req;

pub use drep::Drep;
pub use dreq::Dreq;
pub use ip_cm::{Addresses, IpCm};
pub use mra::{Answered, Mra};
pub use path::PathInfo;
pub use rej::{Rej, RejectReason};
pub use rep::Rep;
pub use req::Req;
pub use rtu::Rtu;
pub use service_id::{PortSpace, ServiceId};
pub use sidr_rep::{SidrRep, SidrStatus};
pub use sidr_req::SidrReq;

use std::fmt;

use super::mad::{MAD_BODY, MAD_LEN, MadHeader, halves};
use super::{WireError, be32};

/// Names one end of a connection to the other, until the connection is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CommId(pub u32);

impl fmt::Display for CommId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// A message of the communication manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each type says what it is")]
pub enum Message {
    Req(Req),
    Mra(Mra),
    Rej(Rej),
    Rep(Rep),
    Rtu(Rtu),
    Dreq(Dreq),
    Drep(Drep),
    SidrReq(SidrReq),
    SidrRep(SidrRep),
}

impl Message {
    const CLASS_VERSION: u8 = 2;

    /// Reads a whole management datagram: transaction and message.
    ///
    /// # Errors
    /// [`WireError::Truncated`]; [`WireError::NotA`] for another class, version, method or attribute.
    pub fn parse(mad: &[u8]) -> Result<(u64, Self), WireError> {
        let (header, body) = MadHeader::parse(mad)?;
        if (
            header.base_version,
            header.class,
            header.class_version,
            header.method,
        ) != (1, MadHeader::CLASS_CM, Self::CLASS_VERSION, MadHeader::SEND)
        {
            return Err(WireError::NotA("connection management datagram"));
        }
        let message = match header.attribute {
            Req::ATTRIBUTE => Self::Req(Req::parse(body)?.0),
            Mra::ATTRIBUTE => Self::Mra(Mra::parse(body)?.0),
            Rej::ATTRIBUTE => Self::Rej(Rej::parse(body)?.0),
            Rep::ATTRIBUTE => Self::Rep(Rep::parse(body)?.0),
            Rtu::ATTRIBUTE => Self::Rtu(Rtu::parse(body)?.0),
            Dreq::ATTRIBUTE => Self::Dreq(Dreq::parse(body)?.0),
            Drep::ATTRIBUTE => Self::Drep(Drep::parse(body)?.0),
            SidrReq::ATTRIBUTE => Self::SidrReq(SidrReq::parse(body)?.0),
            SidrRep::ATTRIBUTE => Self::SidrRep(SidrRep::parse(body)?.0),
            _ => return Err(WireError::NotA("known connection management message")),
        };
        Ok((header.transaction, message))
    }

    /// Writes a whole management datagram.
    pub fn emit(&self, transaction: u64, mad: &mut [u8; MAD_LEN]) {
        let (header, body) = halves(mad);
        MadHeader {
            base_version: 1,
            class: MadHeader::CLASS_CM,
            class_version: Self::CLASS_VERSION,
            method: MadHeader::SEND,
            status: 0,
            class_specific: 0,
            transaction,
            attribute: self.attribute(),
            modifier: 0,
        }
        .emit(header);
        match self {
            Self::Req(message) => message.emit(body),
            Self::Mra(message) => message.emit(body),
            Self::Rej(message) => message.emit(body),
            Self::Rep(message) => message.emit(body),
            Self::Rtu(message) => message.emit(body),
            Self::Dreq(message) => message.emit(body),
            Self::Drep(message) => message.emit(body),
            Self::SidrReq(message) => message.emit(body),
            Self::SidrRep(message) => message.emit(body),
        }
    }

    /// The attribute that names the message in the common header.
    pub const fn attribute(&self) -> u16 {
        match self {
            Self::Req(_) => Req::ATTRIBUTE,
            Self::Mra(_) => Mra::ATTRIBUTE,
            Self::Rej(_) => Rej::ATTRIBUTE,
            Self::Rep(_) => Rep::ATTRIBUTE,
            Self::Rtu(_) => Rtu::ATTRIBUTE,
            Self::Dreq(_) => Dreq::ATTRIBUTE,
            Self::Drep(_) => Drep::ATTRIBUTE,
            Self::SidrReq(_) => SidrReq::ATTRIBUTE,
            Self::SidrRep(_) => SidrRep::ATTRIBUTE,
        }
    }

    /// The message's name in the specification.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Req(_) => "REQ",
            Self::Mra(_) => "MRA",
            Self::Rej(_) => "REJ",
            Self::Rep(_) => "REP",
            Self::Rtu(_) => "RTU",
            Self::Dreq(_) => "DREQ",
            Self::Drep(_) => "DREP",
            Self::SidrReq(_) => "SIDR_REQ",
            Self::SidrRep(_) => "SIDR_REP",
        }
    }
}

/// The two identifiers that open most messages.
fn ids(b: &[u8; MAD_BODY]) -> (CommId, CommId) {
    (CommId(be32(b, 0)), CommId(be32(b, 4)))
}

/// Writes the two identifiers that open most messages.
fn put_ids(out: &mut [u8; MAD_BODY], local: CommId, remote: CommId) {
    out[..4].copy_from_slice(&local.0.to_be_bytes());
    out[4..8].copy_from_slice(&remote.0.to_be_bytes());
}

/// Private data of `N` bytes: what `data` has, zeros behind it; what does not fit is cut off.
pub fn private_data<const N: usize>(data: &[u8]) -> [u8; N] {
    let mut padded = [0; N];
    let len = data.len().min(N);
    padded[..len].copy_from_slice(&data[..len]);
    padded
}

/// The `N` bytes of a body that start at `at`.
fn array<const N: usize>(body: &[u8], at: usize) -> [u8; N] {
    body[at..at + N]
        .try_into()
        .expect("the slice has the array's length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_datagrams_are_refused() {
        let drep = Drep {
            local: CommId(1),
            remote: CommId(2),
            private_data: [3; 224],
        };
        let mut mad = [0xA5; MAD_LEN];
        Message::Drep(drep).emit(7, &mut mad);
        assert_eq!(Message::parse(&mad), Ok((7, Message::Drep(drep))));
        for byte in [0, 1, 2, 3, 16, 17] {
            let mut other = mad;
            other[byte] ^= 0x40;
            assert!(
                matches!(Message::parse(&other), Err(WireError::NotA(_))),
                "byte {byte}"
            );
        }
        for short in 0..MAD_LEN {
            assert!(matches!(
                Message::parse(&mad[..short]),
                Err(WireError::Truncated { .. })
            ));
        }
    }
}
