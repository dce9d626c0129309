//! The 40 bytes in front of every datagram received on a UD queue pair.
//!
//! IBA annex A17.4.5: InfiniBand delivers the global route header there; RoCEv2 delivers the packet's
//! IP header instead, an IPv4 header in the last 20 bytes. The first byte tells which: an IPv6 header
//! starts with 6, and the bytes before an IPv4 header are zero.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{WireError, be16, be32, take};

/// What a UD receive finds in front of its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grh {
    /// Twenty bytes of zero and an IPv4 header without options.
    V4(Ipv4Form),
    /// An IPv6 header.
    V6(Ipv6Form),
}

/// The IPv4 form. The header checksum is computed when emitted and not looked at when parsed.
///
/// ```text
/// +---------------------------------------------------------------+
/// |                     twenty bytes of zero                      |
/// +-------+-------+---------------+-------------------------------+
/// |   4   |   5   |      TOS      |         Total Length          |
/// +-------+-------+---------------+-----+-------------------------+
/// |        Identification         |Flags|     Fragment Offset     |
/// +---------------+---------------+-----+-------------------------+
/// |      TTL      |   Protocol    |        Header Checksum        |
/// +---------------+---------------+-------------------------------+
/// |                        Source Address                         |
/// +---------------------------------------------------------------+
/// |                      Destination Address                      |
/// +---------------------------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Form {
    /// Type of service: DSCP and ECN.
    pub tos: u8,
    /// Length of the IP packet in bytes, this header included.
    pub total_length: u16,
    /// Identification; a UDP socket does not tell it, then 0.
    pub identification: u16,
    /// Flags and fragment offset; 0x4000 is "don't fragment".
    pub flags_and_offset: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol: 17 for UDP.
    pub protocol: u8,
    /// Sender.
    pub source: Ipv4Addr,
    /// Receiver.
    pub destination: Ipv4Addr,
}

/// The IPv6 form.
///
/// ```text
/// +-------+---------------+---------------------------------------+
/// |   6   | Traffic Class |              Flow Label               |
/// +-------+---------------+-------+---------------+---------------+
/// |        Payload Length         |  Next Header  |   Hop Limit   |
/// +-------------------------------+---------------+---------------+
/// |                   Source Address, 128 bits                    |
/// +---------------------------------------------------------------+
/// |                 Destination Address, 128 bits                 |
/// +---------------------------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Form {
    /// Traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Length of what follows this header, in bytes.
    pub payload_length: u16,
    /// Next header: 17 for UDP.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Sender.
    pub source: Ipv6Addr,
    /// Receiver.
    pub destination: Ipv6Addr,
}

impl Grh {
    /// Length of both forms, in bytes.
    pub const LEN: usize = 40;

    /// Reads the header at the front of `bytes`; also returns what follows it. What stands before an
    /// IPv4 header is not looked at beyond its first byte.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::NotIp`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("GRH", bytes)?;
        let header = match (b[0] >> 4, b[20]) {
            (6, _) => Self::V6(Ipv6Form::parse(b)),
            (_, 0x45) => Self::V4(Ipv4Form::parse(b)),
            (_, other) => return Err(WireError::NotIp(other)),
        };
        Ok((header, rest))
    }

    /// Writes the header.
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        match self {
            Self::V4(form) => form.emit(out),
            Self::V6(form) => form.emit(out),
        }
    }
}

impl Ipv4Form {
    fn parse(bytes: &[u8; Grh::LEN]) -> Self {
        let b = &bytes[20..];
        Self {
            tos: b[1],
            total_length: be16(b, 2),
            identification: be16(b, 4),
            flags_and_offset: be16(b, 6),
            ttl: b[8],
            protocol: b[9],
            source: Ipv4Addr::from(be32(b, 12)),
            destination: Ipv4Addr::from(be32(b, 16)),
        }
    }

    fn emit(&self, out: &mut [u8; Grh::LEN]) {
        let (zero, b) = out.split_at_mut(20);
        zero.fill(0);
        b[0] = 0x45;
        b[1] = self.tos;
        b[2..4].copy_from_slice(&self.total_length.to_be_bytes());
        b[4..6].copy_from_slice(&self.identification.to_be_bytes());
        b[6..8].copy_from_slice(&self.flags_and_offset.to_be_bytes());
        b[8] = self.ttl;
        b[9] = self.protocol;
        b[10..12].fill(0);
        b[12..16].copy_from_slice(&self.source.octets());
        b[16..20].copy_from_slice(&self.destination.octets());
        let checksum = header_checksum(b);
        b[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

impl Ipv6Form {
    fn parse(b: &[u8; Grh::LEN]) -> Self {
        let first = be32(b, 0);
        Self {
            traffic_class: (first >> 20) as u8,
            flow_label: first & 0xF_FFFF,
            payload_length: be16(b, 4),
            next_header: b[6],
            hop_limit: b[7],
            source: address(b, 8),
            destination: address(b, 24),
        }
    }

    fn emit(&self, b: &mut [u8; Grh::LEN]) {
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xF_FFFF;
        b[..4].copy_from_slice(&first.to_be_bytes());
        b[4..6].copy_from_slice(&self.payload_length.to_be_bytes());
        b[6] = self.next_header;
        b[7] = self.hop_limit;
        b[8..24].copy_from_slice(&self.source.octets());
        b[24..].copy_from_slice(&self.destination.octets());
    }
}

/// The IPv6 address at `at`.
fn address(bytes: &[u8; Grh::LEN], at: usize) -> Ipv6Addr {
    let octets: [u8; 16] = bytes[at..at + 16]
        .try_into()
        .expect("both addresses are inside");
    Ipv6Addr::from(octets)
}

/// The checksum of an IPv4 header whose checksum field is zero (RFC 1071).
fn header_checksum(header: &[u8]) -> u16 {
    let sum: u32 = header
        .chunks_exact(2)
        .map(|pair| u32::from(be16(pair, 0)))
        .sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    !((folded & 0xFFFF) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check;

    // rxe_cm_ipv4.pcap and rxe_ipv6.pcap: the IP headers of their first packets.
    const V4: [u8; 20] = [
        0x45, 0x00, 0x01, 0x34, 0x38, 0x2e, 0x40, 0x00, 0x40, 0x11, 0xed, 0x76, 10, 9, 0, 1, 10, 9,
        0, 2,
    ];
    const V6: [u8; 8] = [0x60, 0, 0, 0, 0x04, 0x18, 0x11, 0x40];

    #[test]
    fn an_ipv4_header_stands_behind_zeros() {
        let value = Grh::V4(Ipv4Form {
            tos: 0,
            total_length: 0x134,
            identification: 0x382E,
            flags_and_offset: 0x4000,
            ttl: 64,
            protocol: 17,
            source: Ipv4Addr::new(10, 9, 0, 1),
            destination: Ipv4Addr::new(10, 9, 0, 2),
        });
        let mut bytes = [0xA5; Grh::LEN];
        value.emit(&mut bytes);
        assert_eq!(bytes[..20], [0; 20]);
        assert_eq!(bytes[20..], V4, "checksum as the kernel computes it");
        assert_eq!(Grh::parse(&bytes), Ok((value, &[][..])));
    }

    #[test]
    fn an_ipv6_header_fills_the_40_bytes() {
        let source: Ipv6Addr = "fe80::5054:ff:fe00:1".parse().expect("an address");
        let destination: Ipv6Addr = "fe80::5054:ff:fe00:2".parse().expect("an address");
        let form = Ipv6Form {
            traffic_class: 0,
            flow_label: 0,
            payload_length: 0x418,
            next_header: 17,
            hop_limit: 64,
            source,
            destination,
        };
        let mut known = [0; Grh::LEN];
        known[..8].copy_from_slice(&V6);
        known[8..24].copy_from_slice(&source.octets());
        known[24..].copy_from_slice(&destination.octets());
        // The version nibble is what makes it this form.
        let mut reserved = [0; Grh::LEN];
        reserved[0] = 0xF0;
        let emit = |form: &Ipv6Form, out: &mut [u8; Grh::LEN]| {
            form.emit(out);
            out[0] &= 0x0F;
        };
        fn parse(bytes: &[u8]) -> Result<(Ipv6Form, &[u8]), WireError> {
            take("GRH", bytes).map(|(b, rest)| (Ipv6Form::parse(b), rest))
        }
        let mut masked = known;
        masked[0] &= 0x0F;
        check::header(form, masked, reserved, parse, emit);
        assert_eq!(Grh::parse(&known), Ok((Grh::V6(form), &[][..])));
    }

    #[test]
    fn other_bytes_are_refused() {
        assert_eq!(Grh::parse(&[0; 40]), Err(WireError::NotIp(0)));
        assert!(matches!(
            Grh::parse(&[0; 39]),
            Err(WireError::Truncated { .. })
        ));
    }
}
