//! A reader for the few captures of the tests: classic little-endian pcap, Ethernet, IPv4 or IPv6, UDP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ringmail_roce::wire::icrc::Path;

pub(crate) struct Packet {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// Zero over IPv6.
    pub(crate) identification: u16,
    pub(crate) udp_payload: Vec<u8>,
}

impl Packet {
    pub(crate) fn path(&self) -> Path {
        Path::new(self.source, self.destination).expect("one family")
    }
}

/// The packets of `tests/data/NAME.pcap`.
pub(crate) fn read(name: &str) -> Vec<Packet> {
    let path = format!("{}/tests/data/{name}.pcap", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::read(&path).expect(&path);
    assert_eq!(
        file[..4],
        0xa1b2_c3d4_u32.to_le_bytes(),
        "little-endian pcap"
    );
    assert_eq!(file[20..24], [1, 0, 0, 0], "Ethernet");
    let mut packets = Vec::new();
    let mut rest = &file[24..];
    while !rest.is_empty() {
        let len = u32::from_le_bytes(rest[8..12].try_into().expect("four bytes")) as usize;
        packets.push(ethernet(&rest[16..16 + len]));
        rest = &rest[16 + len..];
    }
    packets
}

fn ethernet(frame: &[u8]) -> Packet {
    let ip = &frame[14..];
    match be16(frame, 12) {
        0x0800 => {
            assert_eq!((ip[0], ip[9]), (0x45, 17), "IPv4 without options, UDP");
            let address = |at: usize| {
                let octets: [u8; 4] = ip[at..at + 4].try_into().expect("four bytes");
                IpAddr::from(Ipv4Addr::from(octets))
            };
            udp(
                address(12),
                address(16),
                be16(ip, 4),
                &ip[20..usize::from(be16(ip, 2))],
            )
        }
        0x86DD => {
            assert_eq!((ip[0] >> 4, ip[6]), (6, 17), "IPv6, UDP");
            let address = |at: usize| {
                let octets: [u8; 16] = ip[at..at + 16].try_into().expect("sixteen bytes");
                IpAddr::from(Ipv6Addr::from(octets))
            };
            udp(
                address(8),
                address(24),
                0,
                &ip[40..40 + usize::from(be16(ip, 4))],
            )
        }
        other => panic!("ethertype {other:#06x}"),
    }
}

fn udp(source: IpAddr, destination: IpAddr, identification: u16, udp: &[u8]) -> Packet {
    assert_eq!(be16(udp, 2), 4791);
    Packet {
        source: SocketAddr::new(source, be16(udp, 0)),
        destination: SocketAddr::new(destination, be16(udp, 2)),
        identification,
        udp_payload: udp[8..usize::from(be16(udp, 4))].to_vec(),
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
