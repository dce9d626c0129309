//! Datagram extended transport header: who sends a datagram, and the key that lets it in.
//!
//! IBA Vol. 1, 9.3.2.

use super::{Qpn, WireError, be24, be32, put24, take};

/// Datagram extended transport header.
///
/// ```text
/// +---------------------------------------------------------------+
/// |                             Q_Key                             |
/// +---------------+-----------------------------------------------+
/// |     resv8     |                     SrcQP                     |
/// +---------------+-----------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deth {
    /// Must equal the receiving queue pair's.
    pub qkey: u32,
    /// The sending queue pair.
    pub source_qp: Qpn,
}

impl Deth {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 8;

    /// The key of the general services interface (queue pair 1).
    pub const GSI_QKEY: u32 = 0x8001_0000;

    /// Reads the header at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("DETH", bytes)?;
        Ok((
            Self {
                qkey: be32(b, 0),
                source_qp: Qpn::new(be24(b, 5)),
            },
            rest,
        ))
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        out[..4].copy_from_slice(&self.qkey.to_be_bytes());
        out[4] = 0;
        put24(out, 5, self.source_qp.value());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn bytes_of_soft_roce() {
        // rxe_cm_ipv4.pcap: every management datagram.
        let value = Deth {
            qkey: Deth::GSI_QKEY,
            source_qp: Qpn::GSI,
        };
        let known = [0x80, 1, 0, 0, 0, 0, 0, 1];
        check::header(
            value,
            known,
            [0, 0, 0, 0, 0xFF, 0, 0, 0],
            Deth::parse,
            Deth::emit,
        );
    }
}
