//! Base transport header: the front of every packet.
//!
//! IBA Vol. 1, 9.2. Versions other than 0 and unknown opcodes are parsed; refusing them is the engine's.

use super::{Opcode, Psn, Qpn, WireError, be16, be24, put24, take};

/// Base transport header.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +---------------+-+-+---+-------+-------------------------------+
/// |    OpCode     |S|M|Pad| TVer  |             P_Key             |
/// +-+-+-----------+-+-+---+-------+-------------------------------+
/// |F|B|   resv6   |                    DestQP                     |
/// +-+-+-----------+-----------------------------------------------+
/// |A|    resv7    |                      PSN                      |
/// +-+-------------+-----------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bth {
    /// Transport service and operation.
    pub opcode: Opcode,
    /// S: the receiver's completion raises a solicited event.
    pub solicited: bool,
    /// M: migration state; hardware normally sends 1, the kernel's soft-RoCE 0, receivers do not care.
    pub migrated: bool,
    /// Bytes of zero behind the payload, 0 to 3.
    pub pad: u8,
    /// Transport header version, 0 to 15; only 0 exists.
    pub version: u8,
    /// Partition key.
    pub pkey: u16,
    /// F: congestion was met on the way here.
    pub fecn: bool,
    /// B: congestion was met on the way back.
    pub becn: bool,
    /// The receiving queue pair.
    pub dest_qp: Qpn,
    /// A: the responder is asked to acknowledge.
    pub ack_request: bool,
    /// The packet's sequence number.
    pub psn: Psn,
}

impl Bth {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 12;

    /// A header of the default partition with nothing asked and nothing flagged.
    #[inline]
    pub const fn new(opcode: Opcode, dest_qp: Qpn, psn: Psn) -> Self {
        Self {
            opcode,
            solicited: false,
            migrated: false,
            pad: 0,
            version: 0,
            pkey: super::DEFAULT_PKEY,
            fecn: false,
            becn: false,
            dest_qp,
            ack_request: false,
            psn,
        }
    }

    /// Reads the header at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("BTH", bytes)?;
        let header = Self {
            opcode: b[0].into(),
            solicited: b[1] & 0x80 != 0,
            migrated: b[1] & 0x40 != 0,
            pad: b[1] >> 4 & 3,
            version: b[1] & 0x0F,
            pkey: be16(b, 2),
            fecn: b[4] & 0x80 != 0,
            becn: b[4] & 0x40 != 0,
            dest_qp: Qpn::new(be24(b, 5)),
            ack_request: b[8] & 0x80 != 0,
            psn: Psn::new(be24(b, 9)),
        };
        Ok((header, rest))
    }

    /// Writes the header; `pad` and `version` keep the bits they have on the wire.
    #[inline]
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        out[0] = self.opcode.into();
        out[1] = u8::from(self.solicited) << 7
            | u8::from(self.migrated) << 6
            | (self.pad & 3) << 4
            | self.version & 0x0F;
        out[2..4].copy_from_slice(&self.pkey.to_be_bytes());
        out[4] = u8::from(self.fecn) << 7 | u8::from(self.becn) << 6;
        put24(out, 5, self.dest_qp.value());
        out[8] = u8::from(self.ack_request) << 7;
        put24(out, 9, self.psn.value());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Operation, check};

    #[test]
    fn bytes_of_soft_roce() {
        // rxe_ipv4.pcap, first packet (to QP 0x11, PSN 0x464ca3), with opcode and flags set by hand.
        let value = Bth {
            opcode: Opcode::Rc(Operation::WriteLastImm),
            solicited: true,
            migrated: false,
            pad: 3,
            version: 0,
            pkey: 0xFFFF,
            fecn: false,
            becn: true,
            dest_qp: Qpn::new(0x11),
            ack_request: true,
            psn: Psn::new(0x46_4CA3),
        };
        let known = [
            0x09, 0xB0, 0xFF, 0xFF, 0x40, 0, 0, 0x11, 0x80, 0x46, 0x4C, 0xA3,
        ];
        let mut reserved = [0; Bth::LEN];
        reserved[4] = 0x3F;
        reserved[8] = 0x7F;
        check::header(value, known, reserved, Bth::parse, Bth::emit);
    }
}
