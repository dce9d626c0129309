//! What a connection is asked of: on IP, a port.
//!
//! IBA annex A11.2: the port spaces that `rdma_cm` maps sockets addresses to.

use std::fmt;

/// What is asked for when communication is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ServiceId(pub u64);

/// A port space of the IP addressing convention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortSpace {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl PortSpace {
    /// The IP protocol number that stands for the space.
    const fn protocol(self) -> u64 {
        match self {
            Self::Tcp => 0x06,
            Self::Udp => 0x11,
        }
    }
}

impl ServiceId {
    /// The prefix of the IP addressing convention.
    const IP: u64 = 0x0100_0000;

    /// A port of a port space.
    pub const fn new(space: PortSpace, port: u16) -> Self {
        Self(Self::IP | space.protocol() << 16 | port as u64)
    }

    /// A port of the TCP port space, where connections are asked for.
    pub const fn tcp(port: u16) -> Self {
        Self::new(PortSpace::Tcp, port)
    }

    /// A port of the UDP port space, where datagrams are resolved.
    pub const fn udp(port: u16) -> Self {
        Self::new(PortSpace::Udp, port)
    }

    /// The port space and port, if this is one of them: then an IP-CM header opens the private data.
    pub const fn port(self) -> Option<(PortSpace, u16)> {
        let port = self.0 as u16;
        if self.0 == Self::tcp(port).0 {
            Some((PortSpace::Tcp, port))
        } else if self.0 == Self::udp(port).0 {
            Some((PortSpace::Udp, port))
        } else {
            None
        }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port() {
            Some((PortSpace::Tcp, port)) => write!(f, "tcp:{port}"),
            Some((PortSpace::Udp, port)) => write!(f, "udp:{port}"),
            None => write!(f, "{:#018x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_services() {
        assert_eq!(ServiceId::tcp(7587), ServiceId(0x0106_1DA3));
        assert_eq!(ServiceId::udp(7).port(), Some((PortSpace::Udp, 7)));
        assert_eq!(ServiceId(0x0107_0007).port(), None);
        assert_eq!(ServiceId(0x1_0106_0007).port(), None);
        assert_eq!(ServiceId::tcp(7587).to_string(), "tcp:7587");
        assert_eq!(ServiceId(9).to_string(), "0x0000000000000009");
    }
}
