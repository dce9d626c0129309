//! REP: accepts a request.
//!
//! IBA Vol. 1, 12.6.8.

use super::{CommId, MAD_BODY, array, ids, put_ids};
use crate::wire::{Guid, Psn, Qpn, WireError, be24, be32, be64, put24, take};

/// Reply to a request for communication.
///
/// ```text
///   0 | Local Communication ID        |  4 | Remote Communication ID
///   8 | Local Q_Key                   | 12 | Local QPN 24, resv8
///  16 | Local EECN 24, resv8          | 20 | Starting PSN 24, resv8
///  24 | Responder Resources 8         | 25 | Initiator Depth 8
///  26 | Target ACK Delay 5, Failover Accepted 2, E2E flow control 1
///  27 | RNR Retry Count 3, SRQ 1, resv4
///  28 | Local CA GUID                 | 36 | Private data, 196 bytes
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rep {
    /// The sender's name for the connection.
    pub local: CommId,
    /// The receiver's name for it.
    pub remote: CommId,
    /// Key for datagrams; 0 for connections.
    pub qkey: u32,
    /// The sender's queue pair.
    pub qpn: Qpn,
    /// End-to-end context, 24 bits: RD only.
    pub eecn: u32,
    /// PSN at which the receiver of this message is to start: the first that its sender expects.
    pub psn: Psn,
    /// READs and atomics that the sender can answer at once.
    pub responder_resources: u8,
    /// READs and atomics that the sender wants to have outstanding.
    pub initiator_depth: u8,
    /// How long the sender may take to acknowledge: code, 5 bits, 4.096 µs · 2^code.
    pub ack_delay: u8,
    /// What became of the alternate path, 2 bits.
    pub failover: u8,
    /// The sender counts end-to-end credits.
    pub flow_control: bool,
    /// How often the receiver's queue pair is to retry when not ready, 3 bits; 7 is for ever.
    pub rnr_retry_count: u8,
    /// The sender's queue pair receives from a shared receive queue.
    pub srq: bool,
    /// The sender's channel adapter.
    pub ca_guid: Guid,
    /// The application's.
    pub private_data: [u8; 196],
}

impl Rep {
    /// The attribute that names this message.
    pub const ATTRIBUTE: u16 = 0x13;

    /// Reads the message from the body of a datagram; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<MAD_BODY>("REP", bytes)?;
        let (local, remote) = ids(b);
        let message = Self {
            local,
            remote,
            qkey: be32(b, 8),
            qpn: Qpn::new(be24(b, 12)),
            eecn: be24(b, 16),
            psn: Psn::new(be24(b, 20)),
            responder_resources: b[24],
            initiator_depth: b[25],
            ack_delay: b[26] >> 3,
            failover: b[26] >> 1 & 3,
            flow_control: b[26] & 1 != 0,
            rnr_retry_count: b[27] >> 5,
            srq: b[27] & 0x10 != 0,
            ca_guid: Guid(be64(b, 28)),
            private_data: array(b, 36),
        };
        Ok((message, rest))
    }

    /// Writes the message; fields keep the bits they have on the wire.
    pub fn emit(&self, out: &mut [u8; MAD_BODY]) {
        put_ids(out, self.local, self.remote);
        out[8..12].copy_from_slice(&self.qkey.to_be_bytes());
        for (at, value) in [
            (12, self.qpn.value()),
            (16, self.eecn),
            (20, self.psn.value()),
        ] {
            put24(out, at, value);
            out[at + 3] = 0;
        }
        out[24] = self.responder_resources;
        out[25] = self.initiator_depth;
        out[26] = self.ack_delay << 3 | (self.failover & 3) << 1 | u8::from(self.flow_control);
        out[27] = self.rnr_retry_count << 5 | u8::from(self.srq) << 4;
        out[28..36].copy_from_slice(&self.ca_guid.0.to_be_bytes());
        out[36..].copy_from_slice(&self.private_data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let mut known = [0; MAD_BODY];
        known[..28].copy_from_slice(&[
            0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 6, 0, 7, 8, 0x7B,
            0xF0,
        ]);
        known[35] = 9;
        known[36..].fill(0xEE);
        let value = Rep {
            local: CommId(1),
            remote: CommId(2),
            qkey: 3,
            qpn: Qpn::new(4),
            eecn: 5,
            psn: Psn::new(6),
            responder_resources: 7,
            initiator_depth: 8,
            ack_delay: 15,
            failover: 1,
            flow_control: true,
            rnr_retry_count: 7,
            srq: true,
            ca_guid: Guid(9),
            private_data: [0xEE; 196],
        };
        let mut reserved = [0; MAD_BODY];
        for byte in [15, 19, 23] {
            reserved[byte] = 0xFF;
        }
        reserved[27] = 0x0F;
        check::header(value, known, reserved, Rep::parse, Rep::emit);
    }
}
