//! The names that packets carry: queue pair numbers, memory keys, addresses, devices.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A queue pair number: 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Qpn(u32);

impl Qpn {
    /// The general services interface: queue pair 1, where management datagrams go.
    pub const GSI: Self = Self(1);

    /// The queue pair number with the low 24 bits of `value`.
    #[inline]
    pub const fn new(value: u32) -> Self {
        Self(value & 0x00FF_FFFF)
    }

    /// The number, below 2^24.
    #[inline]
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Qpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#08x}", self.0)
    }
}

/// A memory key, local or remote: 32 bits that name a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(pub u32);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// A global identifier: on RoCEv2 an IPv6 address, or an IPv4 address mapped into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The IP address that packets to it go to.
    pub fn ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }
}

impl From<IpAddr> for Gid {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(self.0).fmt(f)
    }
}

/// A globally unique identifier: 64 bits that name a channel adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Guid(pub u64);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_pair_number_has_24_bits() {
        assert_eq!(Qpn::new(0xFF00_0011).value(), 0x11);
        assert_eq!(Qpn::new(0x11).to_string(), "0x000011");
        assert_eq!(Key(0x2a).to_string(), "0x0000002a");
    }

    #[test]
    fn a_gid_is_an_ip_address() {
        let v4 = IpAddr::from([10, 9, 0, 1]);
        let v6: IpAddr = "fe80::1".parse().expect("an address");
        assert_eq!(Gid::from(v4).to_string(), "::ffff:10.9.0.1");
        assert_eq!((Gid::from(v4).ip(), Gid::from(v6).ip()), (v4, v6));
    }
}
