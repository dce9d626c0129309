//! Addresses as text: `shm:7471`, a number that one listener of the user has on this machine.
//!
//! So that one command line serves every provider, other names of this machine may stand before the number: `localhost:7471`,
//! `[::1]:7471`, `0.0.0.0:7471` and `:7471` all are `shm:7471`. Further loopback addresses have numbers of their own, as they have
//! ports of their own: `127.1.2.3:7471`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::{Address, Error};

/// Reads an address as it is spelled here; `None` where the number is left open.
///
/// # Errors
/// [`Error::BadAddress`].
pub(crate) fn name(address: &Address) -> Result<Option<String>, Error> {
    if address.is_any() {
        return Ok(None);
    }
    let bad = |reason: &str| Error::BadAddress {
        address: address.clone(),
        reason: reason.to_owned(),
    };
    let expected = "expected shm:NUMBER, or a name of this machine and a number";
    let (host, number) = address
        .as_str()
        .rsplit_once(':')
        .ok_or_else(|| bad(expected))?;
    let number: u32 = number.parse().map_err(|_| bad(expected))?;
    let host = known(host).ok_or_else(|| bad("shared memory reaches this machine only"))?;
    Ok((number != 0).then(|| format!("{host}:{number}")))
}

/// The name of a number.
pub(crate) fn of_number(number: u32) -> String {
    format!("{HOST}:{number}")
}

/// How a name of this machine is spelled here; `None` if it is another's.
fn known(host: &str) -> Option<String> {
    if matches!(host, "" | HOST | "localhost") {
        return Some(HOST.to_owned());
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let ip = match bare.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical(),
        Err(_) => {
            let own = rustix::system::uname().nodename().to_str() == Ok(host);
            return own.then(|| HOST.to_owned());
        }
    };
    if ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST {
        return Some(HOST.to_owned());
    }
    ip.is_loopback().then(|| ip.to_string())
}

const HOST: &str = "shm";

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(text: &str) -> Option<String> {
        name(&text.into()).expect("an address")
    }

    #[test]
    fn names_of_this_machine_lead_to_the_number() {
        for text in [
            "shm:7471",
            ":7471",
            "localhost:7471",
            "127.0.0.1:7471",
            "[::1]:7471",
            "0.0.0.0:7471",
        ] {
            assert_eq!(name_of(text).as_deref(), Some("shm:7471"), "{text}");
        }
        assert_eq!(name_of("127.1.2.3:7471").as_deref(), Some("127.1.2.3:7471"));
        assert_eq!(name_of(""), None);
        assert_eq!(name_of("shm:0"), None);
    }

    #[test]
    fn other_machines_and_nonsense_are_refused() {
        for text in [
            "192.0.2.1:7471",
            "shm",
            "shm:x",
            "nonsense, not an address",
            "shm:4294967296",
        ] {
            assert!(name(&text.into()).is_err(), "{text}");
        }
    }
}
