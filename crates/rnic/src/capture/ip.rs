//! IP and UDP headers of captured packets: made up when writing, taken apart when reading.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Addresses and what else a capture keeps of the headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) identification: u16,
}

impl Envelope {
    /// Appends the headers of a packet with `payload` to `out`, then the payload. Checksums are right.
    pub(super) fn wrap(&self, payload: &[u8], out: &mut Vec<u8>) {
        let udp_length = (8 + payload.len()) as u16;
        let mut pseudo = Sum::default();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = [0; 20];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&(20 + udp_length).to_be_bytes());
                header[4..6].copy_from_slice(&self.identification.to_be_bytes());
                header[6] = 0x40;
                header[8] = 64;
                header[9] = UDP;
                header[12..16].copy_from_slice(&source.octets());
                header[16..].copy_from_slice(&destination.octets());
                let mut sum = Sum::default();
                sum.add(&header);
                header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
                pseudo.add(&header[12..]);
                out.extend_from_slice(&header);
            }
            (source, destination) => {
                let mut header = [0; 40];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&udp_length.to_be_bytes());
                header[6] = UDP;
                header[7] = 64;
                header[8..24].copy_from_slice(&to_v6(source).octets());
                header[24..].copy_from_slice(&to_v6(destination).octets());
                pseudo.add(&header[8..]);
                out.extend_from_slice(&header);
            }
        }
        let mut udp = [0; 8];
        udp[..2].copy_from_slice(&self.source.port().to_be_bytes());
        udp[2..4].copy_from_slice(&self.destination.port().to_be_bytes());
        udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
        pseudo.add(&[0, UDP]);
        pseudo.add(&udp_length.to_be_bytes());
        pseudo.add(&udp);
        pseudo.add(payload);
        // RFC 768: a sum of zero is sent as ones, zero says that there is none.
        let checksum = match pseudo.finish() {
            0 => 0xFFFF,
            sum => sum,
        };
        udp[6..].copy_from_slice(&checksum.to_be_bytes());
        out.extend_from_slice(&udp);
        out.extend_from_slice(payload);
    }

    /// Takes an IP packet apart; `None` where it is no unfragmented UDP datagram or is cut short.
    pub(super) fn unwrap(packet: &[u8]) -> Option<(Self, &[u8])> {
        let first = *packet.first()?;
        let (source, destination, identification, rest): (IpAddr, IpAddr, u16, &[u8]) =
            match first >> 4 {
                4 => {
                    let header: &[u8; 20] = packet.first_chunk()?;
                    let length = usize::from(be16(header, 2));
                    let rest = packet.get(usize::from(first & 15) * 4..length.min(packet.len()))?;
                    // More fragments, or not the first.
                    if header[9] != UDP || be16(header, 6) & 0x3FFF != 0 {
                        return None;
                    }
                    let address = |at: usize| {
                        Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3])
                    };
                    (
                        address(12).into(),
                        address(16).into(),
                        be16(header, 4),
                        rest,
                    )
                }
                6 => {
                    let (header, rest) = packet.split_first_chunk::<40>()?;
                    if header[6] != UDP {
                        return None;
                    }
                    let address = |at: usize| {
                        let octets: [u8; 16] =
                            header[at..at + 16].try_into().expect("within the header");
                        Ipv6Addr::from(octets)
                    };
                    (address(8).into(), address(24).into(), 0, rest)
                }
                _ => return None,
            };
        let (udp, rest) = rest.split_first_chunk::<8>()?;
        let payload = rest.get(..usize::from(be16(udp, 4)).checked_sub(8)?)?;
        let envelope = Self {
            source: SocketAddr::new(source, be16(udp, 0)),
            destination: SocketAddr::new(destination, be16(udp, 2)),
            identification,
        };
        Some((envelope, payload))
    }
}

/// The ones' complement sum of RFC 1071, over pieces of even length (but for the last).
#[derive(Default)]
struct Sum(u64);

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        for pair in bytes.chunks(2) {
            self.0 += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
    }

    fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        !(sum as u16)
    }
}

fn to_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

const UDP: u8 = 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_go_around_a_payload_and_off_again() {
        for (source, destination) in [
            ("127.0.0.1:49152", "127.0.0.2:4791"),
            ("[fd00::1]:49152", "[fd00::2]:4791"),
        ] {
            let source: SocketAddr = source.parse().unwrap();
            let destination: SocketAddr = destination.parse().unwrap();
            let identification = if source.is_ipv4() { 7 } else { 0 };
            let envelope = Envelope {
                source,
                destination,
                identification,
            };
            let mut packet = Vec::new();
            envelope.wrap(b"payload", &mut packet);
            assert_eq!(Envelope::unwrap(&packet), Some((envelope, &b"payload"[..])));
            for short in 0..packet.len() {
                assert_eq!(Envelope::unwrap(&packet[..short]), None, "{short} bytes");
            }
        }
    }

    #[test]
    fn the_checksum_of_the_ip_header_adds_up() {
        let envelope = Envelope {
            source: "10.1.2.3:50000".parse().unwrap(),
            destination: "10.3.2.1:4791".parse().unwrap(),
            identification: 0x1234,
        };
        let mut packet = Vec::new();
        envelope.wrap(&[0xAB; 33], &mut packet);
        let mut sum = Sum::default();
        sum.add(&packet[..20]);
        assert_eq!(
            sum.finish(),
            0,
            "RFC 1071: the sum over a right header is ones"
        );
    }
}
