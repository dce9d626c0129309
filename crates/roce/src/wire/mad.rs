//! Management datagrams: the common header of what is sent to queue pair 1.
//!
//! IBA Vol. 1, 13.4.3. Always 256 bytes, carried by UD SEND Only with the key of
//! [`super::Deth::GSI_QKEY`].

use super::{WireError, be16, be32, be64, take};

/// Length of every management datagram, in bytes.
pub const MAD_LEN: usize = 256;

/// Length of what follows the common header, in bytes.
pub const MAD_BODY: usize = MAD_LEN - MadHeader::LEN;

/// Common header of management datagrams.
///
/// ```text
/// +---------------+---------------+---------------+---------------+
/// |  BaseVersion  |   MgmtClass   | ClassVersion  |    Method     |
/// +---------------+---------------+---------------+---------------+
/// |            Status             |         ClassSpecific         |
/// +-------------------------------+-------------------------------+
/// |                    TransactionID, 64 bits                     |
/// |                                                               |
/// +-------------------------------+-------------------------------+
/// |          AttributeID          |            resv16             |
/// +-------------------------------+-------------------------------+
/// |                       AttributeModifier                       |
/// +---------------------------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MadHeader {
    /// Format of the base; only 1 exists.
    pub base_version: u8,
    /// Management class: 7 is communication management.
    pub class: u8,
    /// Format of the class; 2 for communication management.
    pub class_version: u8,
    /// What to do: see the constants.
    pub method: u8,
    /// Status of a response.
    pub status: u16,
    /// The class's own.
    pub class_specific: u16,
    /// Pairs a response with its request.
    pub transaction: u64,
    /// What the body is.
    pub attribute: u16,
    /// Further qualification of the attribute.
    pub modifier: u32,
}

impl MadHeader {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 24;

    /// The class of communication management.
    pub const CLASS_CM: u8 = 7;

    /// Method: asks for an attribute.
    pub const GET: u8 = 0x01;
    /// Method: sends an attribute and expects no response.
    pub const SEND: u8 = 0x03;
    /// Method: answers [`MadHeader::GET`].
    pub const GET_RESPONSE: u8 = 0x81;

    /// Reads the header at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("MAD header", bytes)?;
        let header = Self {
            base_version: b[0],
            class: b[1],
            class_version: b[2],
            method: b[3],
            status: be16(b, 4),
            class_specific: be16(b, 6),
            transaction: be64(b, 8),
            attribute: be16(b, 16),
            modifier: be32(b, 20),
        };
        Ok((header, rest))
    }

    /// Writes the header.
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        out[..4].copy_from_slice(&[
            self.base_version,
            self.class,
            self.class_version,
            self.method,
        ]);
        out[4..6].copy_from_slice(&self.status.to_be_bytes());
        out[6..8].copy_from_slice(&self.class_specific.to_be_bytes());
        out[8..16].copy_from_slice(&self.transaction.to_be_bytes());
        out[16..18].copy_from_slice(&self.attribute.to_be_bytes());
        out[18..20].fill(0);
        out[20..].copy_from_slice(&self.modifier.to_be_bytes());
    }
}

/// Splits a whole datagram into its two halves.
pub(super) fn halves(mad: &mut [u8; MAD_LEN]) -> (&mut [u8; MadHeader::LEN], &mut [u8; MAD_BODY]) {
    let (header, body) = mad
        .split_first_chunk_mut()
        .expect("a header is shorter than a MAD");
    (
        header,
        body.try_into().expect("the rest of a MAD is its body"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn bytes_of_soft_roce() {
        // rxe_cm_ipv4.pcap: a REQ, with status, class specific and modifier set by hand.
        let value = MadHeader {
            base_version: 1,
            class: MadHeader::CLASS_CM,
            class_version: 2,
            method: MadHeader::SEND,
            status: 0x0102,
            class_specific: 0x0304,
            transaction: 0x0000_0001_89AB_CDEF,
            attribute: 0x0010,
            modifier: 5,
        };
        let known = [
            1, 7, 2, 3, 1, 2, 3, 4, 0, 0, 0, 1, 0x89, 0xAB, 0xCD, 0xEF, 0, 0x10, 0, 0, 0, 0, 0, 5,
        ];
        let mut reserved = [0; MadHeader::LEN];
        reserved[18..20].fill(0xFF);
        check::header(value, known, reserved, MadHeader::parse, MadHeader::emit);
    }
}
