//! What a packet is: transport service and operation in one byte.
//!
//! IBA Vol. 1, 9.2.1. The upper three bits are the service, the lower five the operation;
//! only the combinations that exist become known variants. RD and XRC are not spoken and stay
//! `Unknown`, as do FLUSH and ATOMIC WRITE. Code points from 0xC0 are the manufacturer's.

use std::fmt;

/// What a packet asks or answers, within its transport service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum Operation {
    SendFirst = 0x00,
    SendMiddle = 0x01,
    SendLast = 0x02,
    SendLastImm = 0x03,
    SendOnly = 0x04,
    SendOnlyImm = 0x05,
    WriteFirst = 0x06,
    WriteMiddle = 0x07,
    WriteLast = 0x08,
    WriteLastImm = 0x09,
    WriteOnly = 0x0A,
    WriteOnlyImm = 0x0B,
    ReadRequest = 0x0C,
    ReadResponseFirst = 0x0D,
    ReadResponseMiddle = 0x0E,
    ReadResponseLast = 0x0F,
    ReadResponseOnly = 0x10,
    Acknowledge = 0x11,
    AtomicAcknowledge = 0x12,
    CompareSwap = 0x13,
    FetchAdd = 0x14,
    SendLastInvalidate = 0x16,
    SendOnlyInvalidate = 0x17,
}

use Operation::*;

impl Operation {
    /// First packet of several.
    #[inline]
    pub const fn is_first(self) -> bool {
        matches!(self, SendFirst | WriteFirst | ReadResponseFirst)
    }

    /// Neither first nor last packet of several.
    #[inline]
    pub const fn is_middle(self) -> bool {
        matches!(self, SendMiddle | WriteMiddle | ReadResponseMiddle)
    }

    /// Last packet of several.
    #[inline]
    pub const fn is_last(self) -> bool {
        matches!(
            self,
            SendLast
                | SendLastImm
                | SendLastInvalidate
                | WriteLast
                | WriteLastImm
                | ReadResponseLast
        )
    }

    /// A message of one packet: also every request and response that never has more.
    #[inline]
    pub const fn is_only(self) -> bool {
        !self.is_first() && !self.is_middle() && !self.is_last()
    }

    /// The first packet of a message, or its only one.
    #[inline]
    pub const fn starts_message(self) -> bool {
        self.is_first() || self.is_only()
    }

    /// The last packet of a message, or its only one.
    #[inline]
    pub const fn ends_message(self) -> bool {
        self.is_last() || self.is_only()
    }

    /// A SEND of any form.
    #[inline]
    pub const fn is_send(self) -> bool {
        matches!(
            self,
            SendFirst
                | SendMiddle
                | SendLast
                | SendLastImm
                | SendOnly
                | SendOnlyImm
                | SendLastInvalidate
                | SendOnlyInvalidate
        )
    }

    /// An RDMA WRITE of any form.
    #[inline]
    pub const fn is_write(self) -> bool {
        matches!(
            self,
            WriteFirst | WriteMiddle | WriteLast | WriteLastImm | WriteOnly | WriteOnlyImm
        )
    }

    /// COMPARE SWAP or FETCH ADD.
    #[inline]
    pub const fn is_atomic(self) -> bool {
        matches!(self, CompareSwap | FetchAdd)
    }

    /// An RDMA READ response of any form.
    #[inline]
    pub const fn is_read_response(self) -> bool {
        matches!(
            self,
            ReadResponseFirst | ReadResponseMiddle | ReadResponseLast | ReadResponseOnly
        )
    }

    /// What a responder sends: READ responses and acknowledgements. Everything else is a request.
    #[inline]
    pub const fn is_response(self) -> bool {
        self.is_read_response() || matches!(self, Acknowledge | AtomicAcknowledge)
    }

    /// A RETH follows the BTH.
    #[inline]
    pub const fn has_reth(self) -> bool {
        matches!(self, WriteFirst | WriteOnly | WriteOnlyImm | ReadRequest)
    }

    /// An AETH follows the BTH.
    #[inline]
    pub const fn has_aeth(self) -> bool {
        matches!(
            self,
            ReadResponseFirst
                | ReadResponseLast
                | ReadResponseOnly
                | Acknowledge
                | AtomicAcknowledge
        )
    }

    /// An AtomicETH follows the BTH.
    #[inline]
    pub const fn has_atomic_eth(self) -> bool {
        self.is_atomic()
    }

    /// An AtomicAckETH follows the AETH.
    #[inline]
    pub const fn has_atomic_ack(self) -> bool {
        matches!(self, AtomicAcknowledge)
    }

    /// Immediate data follows the other headers.
    #[inline]
    pub const fn has_immediate(self) -> bool {
        matches!(
            self,
            SendLastImm | SendOnlyImm | WriteLastImm | WriteOnlyImm
        )
    }

    /// An IETH follows the other headers.
    #[inline]
    pub const fn has_ieth(self) -> bool {
        matches!(self, SendLastInvalidate | SendOnlyInvalidate)
    }

    /// A payload may follow the headers.
    #[inline]
    pub const fn has_payload(self) -> bool {
        self.is_send() || self.is_write() || self.is_read_response()
    }

    /// The operation of the low five opcode bits, if RC has it.
    #[inline]
    const fn from_low_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x00 => SendFirst,
            0x01 => SendMiddle,
            0x02 => SendLast,
            0x03 => SendLastImm,
            0x04 => SendOnly,
            0x05 => SendOnlyImm,
            0x06 => WriteFirst,
            0x07 => WriteMiddle,
            0x08 => WriteLast,
            0x09 => WriteLastImm,
            0x0A => WriteOnly,
            0x0B => WriteOnlyImm,
            0x0C => ReadRequest,
            0x0D => ReadResponseFirst,
            0x0E => ReadResponseMiddle,
            0x0F => ReadResponseLast,
            0x10 => ReadResponseOnly,
            0x11 => Acknowledge,
            0x12 => AtomicAcknowledge,
            0x13 => CompareSwap,
            0x14 => FetchAdd,
            0x16 => SendLastInvalidate,
            0x17 => SendOnlyInvalidate,
            _ => return None,
        })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SendFirst => "SEND First",
            SendMiddle => "SEND Middle",
            SendLast => "SEND Last",
            SendLastImm => "SEND Last Immediate",
            SendOnly => "SEND Only",
            SendOnlyImm => "SEND Only Immediate",
            WriteFirst => "RDMA WRITE First",
            WriteMiddle => "RDMA WRITE Middle",
            WriteLast => "RDMA WRITE Last",
            WriteLastImm => "RDMA WRITE Last Immediate",
            WriteOnly => "RDMA WRITE Only",
            WriteOnlyImm => "RDMA WRITE Only Immediate",
            ReadRequest => "RDMA READ Request",
            ReadResponseFirst => "RDMA READ Response First",
            ReadResponseMiddle => "RDMA READ Response Middle",
            ReadResponseLast => "RDMA READ Response Last",
            ReadResponseOnly => "RDMA READ Response Only",
            Acknowledge => "Acknowledge",
            AtomicAcknowledge => "ATOMIC Acknowledge",
            CompareSwap => "Compare Swap",
            FetchAdd => "Fetch Add",
            SendLastInvalidate => "SEND Last Invalidate",
            SendOnlyInvalidate => "SEND Only Invalidate",
        })
    }
}

/// The opcode of a packet. Every byte is one, and none is lost: `u8::from(Opcode::from(b)) == b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// Reliable connection.
    Rc(Operation),
    /// Unreliable connection: only SEND and RDMA WRITE without invalidate parse to this.
    Uc(Operation),
    /// Unreliable datagram: only SEND Only, with or without immediate, parses to this.
    Ud(Operation),
    /// Congestion notification packet (RoCEv2, IBA annex A17.9.3).
    Cnp,
    /// Selective acknowledgement: an extension between software peers, see [`super::Sack`].
    Sack,
    /// Any other code point.
    Unknown(u8),
}

impl Opcode {
    const UC: u8 = 0x20;
    const UD: u8 = 0x60;
    const CNP: u8 = 0x81;
    const SACK: u8 = 0xC1;

    /// The operation of a known transport service.
    #[inline]
    pub const fn operation(self) -> Option<Operation> {
        match self {
            Self::Rc(operation) | Self::Uc(operation) | Self::Ud(operation) => Some(operation),
            Self::Cnp | Self::Sack | Self::Unknown(_) => None,
        }
    }
}

impl From<u8> for Opcode {
    #[inline]
    fn from(byte: u8) -> Self {
        let operation = Operation::from_low_bits(byte & 0x1F);
        match (byte & 0xE0, operation) {
            (0, Some(operation)) => Self::Rc(operation),
            (Self::UC, Some(operation)) if (operation as u8) <= WriteOnlyImm as u8 => {
                Self::Uc(operation)
            }
            (Self::UD, Some(operation @ (SendOnly | SendOnlyImm))) => Self::Ud(operation),
            _ if byte == Self::CNP => Self::Cnp,
            _ if byte == Self::SACK => Self::Sack,
            _ => Self::Unknown(byte),
        }
    }
}

impl From<Opcode> for u8 {
    #[inline]
    fn from(opcode: Opcode) -> Self {
        match opcode {
            Opcode::Rc(operation) => operation as Self,
            Opcode::Uc(operation) => Opcode::UC | operation as Self,
            Opcode::Ud(operation) => Opcode::UD | operation as Self,
            Opcode::Cnp => Opcode::CNP,
            Opcode::Sack => Opcode::SACK,
            Opcode::Unknown(byte) => byte,
        }
    }
}

/// The name that packet analysers show: `RC RDMA WRITE First`.
impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rc(operation) => write!(f, "RC {operation}"),
            Self::Uc(operation) => write!(f, "UC {operation}"),
            Self::Ud(operation) => write!(f, "UD {operation}"),
            Self::Cnp => f.write_str("CNP"),
            Self::Sack => f.write_str("SACK"),
            Self::Unknown(byte) => write!(f, "Unknown opcode {byte:#04x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives() {
        for byte in 0..=u8::MAX {
            assert_eq!(u8::from(Opcode::from(byte)), byte);
        }
    }

    #[test]
    fn the_code_points_are_the_specifications() {
        for (byte, name) in [
            (0x00, "RC SEND First"),
            (0x0B, "RC RDMA WRITE Only Immediate"),
            (0x0C, "RC RDMA READ Request"),
            (0x10, "RC RDMA READ Response Only"),
            (0x11, "RC Acknowledge"),
            (0x13, "RC Compare Swap"),
            (0x15, "Unknown opcode 0x15"),
            (0x17, "RC SEND Only Invalidate"),
            (0x1C, "Unknown opcode 0x1c"),
            (0x24, "UC SEND Only"),
            (0x2B, "UC RDMA WRITE Only Immediate"),
            (0x2C, "Unknown opcode 0x2c"),
            (0x44, "Unknown opcode 0x44"),
            (0x60, "Unknown opcode 0x60"),
            (0x64, "UD SEND Only"),
            (0x65, "UD SEND Only Immediate"),
            (0x81, "CNP"),
            (0xC1, "SACK"),
        ] {
            assert_eq!(Opcode::from(byte).to_string(), name);
        }
    }

    #[test]
    fn a_packet_has_one_place_in_its_message() {
        for operation in (0..0x20).filter_map(Operation::from_low_bits) {
            let places = [
                operation.is_first(),
                operation.is_middle(),
                operation.is_last(),
                operation.is_only(),
            ];
            assert_eq!(
                places.iter().filter(|&&place| place).count(),
                1,
                "{operation}"
            );
        }
    }
}
