//! One of the two paths that a REQ names.
//!
//! IBA Vol. 1, 12.6.5. RoCE uses the addresses, the hop limit and the timeout; the rest is InfiniBand's.

use super::array;
use crate::wire::{Gid, WireError, be16, be32, take};

/// A path of a connection.
///
/// ```text
/// +-------------------------------+-------------------------------+
/// |           LocalLID            |           RemoteLID           |
/// +-------------------------------+-------------------------------+
/// |                      LocalGID, 128 bits                       |
/// +---------------------------------------------------------------+
/// |                      RemoteGID, 128 bits                      |
/// +---------------------------------------+-----------+-----------+
/// |               FlowLabel               |   resv6   |PacketRate |
/// +---------------+---------------+-------+-+-----+---+-----+-----+
/// | TrafficClass  |   HopLimit    |  SL   |S|resv3|AckTmOut |resv3|
/// +---------------+---------------+-------+-+-----+---------+-----+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathInfo {
    /// InfiniBand port address of the sender; 0xFFFF on RoCE.
    pub local_lid: u16,
    /// InfiniBand port address of the receiver; 0xFFFF on RoCE.
    pub remote_lid: u16,
    /// Address of the sender.
    pub local_gid: Gid,
    /// Address of the receiver.
    pub remote_gid: Gid,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Static rate code, 6 bits.
    pub rate: u8,
    /// Traffic class.
    pub traffic_class: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Service level, 4 bits.
    pub service_level: u8,
    /// S: both ports are of one subnet.
    pub subnet_local: bool,
    /// Local ACK timeout code, 5 bits: 4.096 µs · 2^code.
    pub ack_timeout: u8,
}

impl PathInfo {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 44;

    /// Reads the path at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("CM path", bytes)?;
        let label = be32(b, 36);
        let path = Self {
            local_lid: be16(b, 0),
            remote_lid: be16(b, 2),
            local_gid: Gid(array(b, 4)),
            remote_gid: Gid(array(b, 20)),
            flow_label: label >> 12,
            rate: (label & 0x3F) as u8,
            traffic_class: b[40],
            hop_limit: b[41],
            service_level: b[42] >> 4,
            subnet_local: b[42] & 8 != 0,
            ack_timeout: b[43] >> 3,
        };
        Ok((path, rest))
    }

    /// Writes the path; fields keep the bits they have on the wire.
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        out[..2].copy_from_slice(&self.local_lid.to_be_bytes());
        out[2..4].copy_from_slice(&self.remote_lid.to_be_bytes());
        out[4..20].copy_from_slice(&self.local_gid.0);
        out[20..36].copy_from_slice(&self.remote_gid.0);
        let label = self.flow_label << 12 | u32::from(self.rate & 0x3F);
        out[36..40].copy_from_slice(&label.to_be_bytes());
        out[40] = self.traffic_class;
        out[41] = self.hop_limit;
        out[42] = self.service_level << 4 | u8::from(self.subnet_local) << 3;
        out[43] = self.ack_timeout << 3;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::wire::check;

    #[test]
    fn known_bytes() {
        let value = PathInfo {
            local_lid: 0xFFFF,
            remote_lid: 0xFFFE,
            local_gid: IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)).into(),
            remote_gid: IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)).into(),
            flow_label: 0x1_2345,
            rate: 3,
            traffic_class: 4,
            hop_limit: 64,
            service_level: 5,
            subnet_local: true,
            ack_timeout: 18,
        };
        let mut known = [0; PathInfo::LEN];
        known[..4].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0xFE]);
        known[14..20].copy_from_slice(&[0xFF, 0xFF, 10, 9, 0, 1]);
        known[30..36].copy_from_slice(&[0xFF, 0xFF, 10, 9, 0, 2]);
        known[36..].copy_from_slice(&[0x12, 0x34, 0x50, 3, 4, 64, 0x58, 0x90]);
        let mut reserved = [0; PathInfo::LEN];
        reserved[38..40].copy_from_slice(&[0x0F, 0xC0]);
        reserved[42..].copy_from_slice(&[7, 7]);
        check::header(value, known, reserved, PathInfo::parse, PathInfo::emit);
    }
}
