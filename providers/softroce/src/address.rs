//! Addresses as text: `192.0.2.1:7471` of listeners and connections, `192.0.2.1/0x00a1b2/0x01234567` of datagram endpoints.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};

use fabric::{Address, Error};
use roce::wire::Qpn;

/// Reads where to connect to: an IP address or a host's name, and a port. Of several addresses the first of the device's
/// own family counts.
pub(crate) fn target(address: &Address, own: IpAddr) -> Result<SocketAddr, Error> {
    let of_family = |found: &SocketAddr| found.is_ipv4() == own.is_ipv4();
    if let Ok(known) = address.as_str().parse::<SocketAddr>() {
        let known = SocketAddr::new(known.ip().to_canonical(), known.port());
        return match of_family(&known) && known.port() != 0 {
            true => Ok(known),
            false => Err(bad(address, format!("it cannot be reached from {own}"))),
        };
    }
    let mut found = address
        .as_str()
        .to_socket_addrs()
        .map_err(|error| match error.kind() {
            ErrorKind::InvalidInput => bad(address, format!("expected HOST:PORT ({error})")),
            _ => bad(address, error.to_string()),
        })?;
    found
        .find(of_family)
        .ok_or_else(|| bad(address, format!("it has no address that {own} reaches")))
}

/// Reads where to listen: the port, 0 for any. The IP address must be the device's, or none in particular.
pub(crate) fn port(address: &Address, own: IpAddr) -> Result<u16, Error> {
    if address.is_any() {
        return Ok(0);
    }
    let asked: SocketAddr = address
        .as_str()
        .parse()
        .map_err(|_| bad(address, "expected IP:PORT".to_owned()))?;
    let ip = asked.ip().to_canonical();
    if ip != own && !ip.is_unspecified() {
        let reason = format!("the device was opened at {own} (setting address)");
        return Err(bad(address, reason));
    }
    Ok(asked.port())
}

/// The address of a datagram endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DatagramAddress {
    /// The device's.
    pub(crate) ip: IpAddr,
    /// The queue pair.
    pub(crate) qpn: Qpn,
    /// The key that lets datagrams in.
    pub(crate) qkey: u32,
}

impl DatagramAddress {
    /// Reads the text; `None` if it is none.
    pub(crate) fn parse(address: &Address) -> Option<Self> {
        let mut parts = address.as_str().split('/');
        let ip: IpAddr = parts.next()?.parse().ok()?;
        let mut number = || u32::from_str_radix(parts.next()?.strip_prefix("0x")?, 16).ok();
        let (qpn, qkey) = (number()?, number()?);
        let is_whole = parts.next().is_none() && qpn < 1 << 24;
        is_whole.then_some(Self {
            ip: ip.to_canonical(),
            qpn: Qpn::new(qpn),
            qkey,
        })
    }
}

impl fmt::Display for DatagramAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{:#08x}/{:#010x}",
            self.ip,
            self.qpn.value(),
            self.qkey
        )
    }
}

fn bad(address: &Address, reason: String) -> Error {
    Error::BadAddress {
        address: address.clone(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_address_is_read_as_it_is_written() {
        for ip in ["127.1.2.3", "::1"] {
            let address = DatagramAddress {
                ip: ip.parse().unwrap(),
                qpn: Qpn::new(0xa1b2),
                qkey: 7,
            };
            let text = address.to_string();
            assert_eq!(text, format!("{ip}/0x00a1b2/0x00000007"));
            assert_eq!(DatagramAddress::parse(&text.into()), Some(address));
        }
        for wrong in [
            "",
            "127.0.0.1",
            "127.0.0.1/1/2",
            "127.0.0.1/0x1/0x2/0x3",
            "x/0x1/0x2",
            "127.0.0.1/0x1000000/0x2",
        ] {
            assert_eq!(DatagramAddress::parse(&wrong.into()), None, "{wrong}");
        }
    }

    #[test]
    fn a_listener_has_the_address_of_its_device() {
        let own = "127.1.2.3".parse().unwrap();
        assert_eq!(port(&Address::ANY, own).unwrap(), 0);
        assert_eq!(port(&"127.1.2.3:80".into(), own).unwrap(), 80);
        assert_eq!(port(&"0.0.0.0:80".into(), own).unwrap(), 80);
        for wrong in ["127.1.2.4:80", "nonsense", "127.1.2.3"] {
            assert!(port(&wrong.into(), own).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_target_is_of_the_family_of_the_device() {
        let own = "127.1.2.3".parse().unwrap();
        let expected: SocketAddr = "127.0.0.9:80".parse().unwrap();
        assert_eq!(target(&"127.0.0.9:80".into(), own).unwrap(), expected);
        assert_eq!(
            target(&"[::ffff:127.0.0.9]:80".into(), own).unwrap(),
            expected
        );
        for wrong in ["[::1]:80", "127.0.0.9:0", "nonsense, not an address"] {
            assert!(target(&wrong.into(), own).is_err(), "{wrong}");
        }
    }
}
