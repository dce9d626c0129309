//! IP-CM header: the socket addresses behind a request, in front of the application's private data.
//!
//! IBA annex A11.3. The receiver's port is that of the service ID.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::array;
use crate::wire::{WireError, be16, take};

/// The addresses of a request of the IP port spaces.
///
/// ```text
/// +-------+-------+-------+-------+-------------------------------+
/// |  Maj  |  Min  |  IPV  | resv4 |          Source Port          |
/// +-------+-------+-------+-------+-------------------------------+
/// |       Source IP Address, 128 bits: IPv4 in the last 32        |
/// +---------------------------------------------------------------+
/// |     Destination IP Address, 128 bits: IPv4 in the last 32     |
/// +---------------------------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpCm {
    /// Major and minor version, 4 bits each; only 0 exists.
    pub version: u8,
    /// The sender's port.
    pub source_port: u16,
    /// The sender's and the receiver's address.
    pub addresses: Addresses,
}

/// A pair of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    /// IPv4: sender, receiver.
    V4(Ipv4Addr, Ipv4Addr),
    /// IPv6: sender, receiver.
    V6(Ipv6Addr, Ipv6Addr),
}

impl IpCm {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 36;

    /// The header of a request from `source` to `destination`.
    ///
    /// # Errors
    /// [`WireError::MixedFamilies`].
    pub fn new(source: IpAddr, source_port: u16, destination: IpAddr) -> Result<Self, WireError> {
        let addresses = match (source.to_canonical(), destination.to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Addresses::V4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Addresses::V6(source, destination),
            _ => return Err(WireError::MixedFamilies),
        };
        Ok(Self {
            version: 0,
            source_port,
            addresses,
        })
    }

    /// The sender's address.
    pub const fn source(&self) -> IpAddr {
        match self.addresses {
            Addresses::V4(source, _) => IpAddr::V4(source),
            Addresses::V6(source, _) => IpAddr::V6(source),
        }
    }

    /// The receiver's address.
    pub const fn destination(&self) -> IpAddr {
        match self.addresses {
            Addresses::V4(_, destination) => IpAddr::V4(destination),
            Addresses::V6(_, destination) => IpAddr::V6(destination),
        }
    }

    /// Reads the header at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`]; [`WireError::NotA`] for an IP version other than 4 and 6.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("IP-CM header", bytes)?;
        let addresses = match b[1] >> 4 {
            4 => Addresses::V4(array::<4>(b, 16).into(), array::<4>(b, 32).into()),
            6 => Addresses::V6(array::<16>(b, 4).into(), array::<16>(b, 20).into()),
            _ => return Err(WireError::NotA("known IP version in the IP-CM header")),
        };
        Ok((
            Self {
                version: b[0],
                source_port: be16(b, 2),
                addresses,
            },
            rest,
        ))
    }

    /// Writes the header.
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        out.fill(0);
        out[0] = self.version;
        out[2..4].copy_from_slice(&self.source_port.to_be_bytes());
        match self.addresses {
            Addresses::V4(source, destination) => {
                out[1] = 4 << 4;
                out[16..20].copy_from_slice(&source.octets());
                out[32..36].copy_from_slice(&destination.octets());
            }
            Addresses::V6(source, destination) => {
                out[1] = 6 << 4;
                out[4..20].copy_from_slice(&source.octets());
                out[20..36].copy_from_slice(&destination.octets());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_in_and_out() {
        for (source, destination, version) in [
            ("10.9.0.1", "10.9.0.2", 0x40),
            ("fe80::1", "fe80::2", 0x60),
            ("::ffff:10.9.0.1", "10.9.0.2", 0x40),
        ] {
            let address = |text: &str| text.parse::<IpAddr>().expect("an address").to_canonical();
            let header =
                IpCm::new(address(source), 0x1234, address(destination)).expect("one family");
            let mut bytes = [0xA5; IpCm::LEN];
            header.emit(&mut bytes);
            assert_eq!(bytes[..4], [0, version, 0x12, 0x34]);
            assert_eq!((bytes[19], bytes[35]), (1, 2));
            assert_eq!(IpCm::parse(&bytes), Ok((header, &[][..])));
            assert_eq!(header.source(), address(source));
            assert_eq!(header.destination(), address(destination));
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        assert!(matches!(IpCm::parse(&[0; 36]), Err(WireError::NotA(_))));
        assert!(matches!(
            IpCm::parse(&[0x40; 35]),
            Err(WireError::Truncated { .. })
        ));
    }
}
