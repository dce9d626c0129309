//! REQ: asks for a connection.
//!
//! IBA Vol. 1, 12.6.5. RoCE has no end-to-end contexts and no alternate path; they are carried, not used.

use super::{CommId, MAD_BODY, PathInfo, ServiceId, array};
use crate::wire::{Guid, Psn, Qpn, WireError, be16, be24, be32, be64, put24, take};

/// Request for communication.
///
/// ```text
///   0 | Local Communication ID        |  4 | resv32
///   8 | ServiceID                     | 16 | Local CA GUID
///  24 | resv32                        | 28 | Local Q_Key
///  32 | Local QPN 24                  | 35 | Responder Resources 8
///  36 | Local EECN 24                 | 39 | Initiator Depth 8
///  40 | Remote EECN 24                | 43 | Remote CM Response Timeout 5, Transport Service 2, E2E flow control 1
///  44 | Starting PSN 24               | 47 | Local CM Response Timeout 5, Retry Count 3
///  48 | P_Key 16                      | 50 | Path MTU 4, RDC exists 1, RNR Retry Count 3
///  51 | Max CM Retries 4, SRQ 1, extended transport 3
///  52 | Primary path, 44 bytes        | 96 | Alternate path, 44 bytes
/// 140 | Private data, 92 bytes
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Req {
    /// The sender's name for the connection.
    pub local: CommId,
    /// What is asked for.
    pub service: ServiceId,
    /// The sender's channel adapter.
    pub ca_guid: Guid,
    /// Key for datagrams; 0 for connections.
    pub qkey: u32,
    /// The sender's queue pair.
    pub qpn: Qpn,
    /// READs and atomics that the sender can answer at once.
    pub responder_resources: u8,
    /// End-to-end context, 24 bits: RD only.
    pub local_eecn: u32,
    /// READs and atomics that the sender wants to have outstanding.
    pub initiator_depth: u8,
    /// End-to-end context, 24 bits: RD only.
    pub remote_eecn: u32,
    /// How long the sender may wait for the receiver's answer: code, 5 bits, 4.096 µs · 2^code.
    pub remote_timeout: u8,
    /// Transport service, 2 bits: 0 reliable connection, 1 unreliable connection.
    pub transport: u8,
    /// The sender counts end-to-end credits.
    pub flow_control: bool,
    /// PSN at which the receiver of this message is to start: the first that its sender expects.
    pub psn: Psn,
    /// How long the receiver is to wait for the sender's answer: code, 5 bits.
    pub local_timeout: u8,
    /// How often the receiver's queue pair is to retry, 3 bits.
    pub retry_count: u8,
    /// Partition.
    pub pkey: u16,
    /// Path MTU code, 4 bits: 1 is 256 bytes, 5 is 4096.
    pub path_mtu: u8,
    /// A reliable datagram channel exists.
    pub rdc_exists: bool,
    /// How often the receiver's queue pair is to retry when not ready, 3 bits; 7 is for ever.
    pub rnr_retry_count: u8,
    /// How often this message is sent before the sender gives up, 4 bits.
    pub max_cm_retries: u8,
    /// The sender's queue pair receives from a shared receive queue.
    pub srq: bool,
    /// Extended transport, 3 bits; 1 is XRC.
    pub extended_transport: u8,
    /// The path of the connection.
    pub primary: PathInfo,
    /// The path to migrate to; all zero when there is none.
    pub alternate: PathInfo,
    /// The application's, behind an IP-CM header if the service is of the IP port spaces.
    pub private_data: [u8; 92],
}

impl Req {
    /// The attribute that names this message.
    pub const ATTRIBUTE: u16 = 0x10;

    /// Reads the message from the body of a datagram; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<MAD_BODY>("REQ", bytes)?;
        let message = Self {
            local: CommId(be32(b, 0)),
            service: ServiceId(be64(b, 8)),
            ca_guid: Guid(be64(b, 16)),
            qkey: be32(b, 28),
            qpn: Qpn::new(be24(b, 32)),
            responder_resources: b[35],
            local_eecn: be24(b, 36),
            initiator_depth: b[39],
            remote_eecn: be24(b, 40),
            remote_timeout: b[43] >> 3,
            transport: b[43] >> 1 & 3,
            flow_control: b[43] & 1 != 0,
            psn: Psn::new(be24(b, 44)),
            local_timeout: b[47] >> 3,
            retry_count: b[47] & 7,
            pkey: be16(b, 48),
            path_mtu: b[50] >> 4,
            rdc_exists: b[50] & 8 != 0,
            rnr_retry_count: b[50] & 7,
            max_cm_retries: b[51] >> 4,
            srq: b[51] & 8 != 0,
            extended_transport: b[51] & 7,
            primary: PathInfo::parse(&b[52..])?.0,
            alternate: PathInfo::parse(&b[96..])?.0,
            private_data: array(b, 140),
        };
        Ok((message, rest))
    }

    /// Writes the message; fields keep the bits they have on the wire.
    pub fn emit(&self, out: &mut [u8; MAD_BODY]) {
        out[..4].copy_from_slice(&self.local.0.to_be_bytes());
        out[4..8].fill(0);
        out[8..16].copy_from_slice(&self.service.0.to_be_bytes());
        out[16..24].copy_from_slice(&self.ca_guid.0.to_be_bytes());
        out[24..28].fill(0);
        out[28..32].copy_from_slice(&self.qkey.to_be_bytes());
        put24(out, 32, self.qpn.value());
        out[35] = self.responder_resources;
        put24(out, 36, self.local_eecn);
        out[39] = self.initiator_depth;
        put24(out, 40, self.remote_eecn);
        out[43] =
            self.remote_timeout << 3 | (self.transport & 3) << 1 | u8::from(self.flow_control);
        put24(out, 44, self.psn.value());
        out[47] = self.local_timeout << 3 | self.retry_count & 7;
        out[48..50].copy_from_slice(&self.pkey.to_be_bytes());
        out[50] = self.path_mtu << 4 | u8::from(self.rdc_exists) << 3 | self.rnr_retry_count & 7;
        out[51] = self.max_cm_retries << 4 | u8::from(self.srq) << 3 | self.extended_transport & 7;
        for (path, at) in [(&self.primary, 52), (&self.alternate, 96)] {
            path.emit(out[at..].first_chunk_mut().expect("both paths are inside"));
        }
        out[140..].copy_from_slice(&self.private_data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        // The captures in tests/ hold real ones; here every field has a value of its own.
        let mut known = [0; MAD_BODY];
        known[..4].copy_from_slice(&[0xC0, 0, 0, 1]);
        known[8..16].copy_from_slice(&[0, 0, 0, 0, 1, 6, 0x1D, 0xA3]);
        known[16..24].copy_from_slice(&[0x50, 0x54, 0, 0xFF, 0xFE, 0, 0, 1]);
        known[31] = 9;
        known[32..52].copy_from_slice(&[
            0, 0, 0x11, 4, 0, 0, 2, 5, 0, 0, 3, 0xA3, 0x12, 0x34, 0x56, 0xA7, 0xFF, 0xFF, 0x37,
            0xF8,
        ]);
        known[95] = 14 << 3;
        known[140..].fill(0xEE);
        let value = Req {
            local: CommId(0xC000_0001),
            service: ServiceId(0x0106_1DA3),
            ca_guid: Guid(0x5054_00FF_FE00_0001),
            qkey: 9,
            qpn: Qpn::new(0x11),
            responder_resources: 4,
            local_eecn: 2,
            initiator_depth: 5,
            remote_eecn: 3,
            remote_timeout: 20,
            transport: 1,
            flow_control: true,
            psn: Psn::new(0x12_3456),
            local_timeout: 20,
            retry_count: 7,
            pkey: 0xFFFF,
            path_mtu: 3,
            rdc_exists: false,
            rnr_retry_count: 7,
            max_cm_retries: 15,
            srq: true,
            extended_transport: 0,
            primary: PathInfo {
                ack_timeout: 14,
                ..PathInfo::default()
            },
            alternate: PathInfo::default(),
            private_data: [0xEE; 92],
        };
        let mut reserved = [0; MAD_BODY];
        reserved[4..8].fill(0xFF);
        reserved[24..28].fill(0xFF);
        for path in [52, 96] {
            reserved[path + 38..path + 40].copy_from_slice(&[0x0F, 0xC0]);
            reserved[path + 42..path + 44].copy_from_slice(&[7, 7]);
        }
        check::header(value, known, reserved, Req::parse, Req::emit);
    }
}
