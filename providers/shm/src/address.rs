//! Addresses as text: `shm:7471`, a number that one listener of the user has on this machine.
//!
//! So that one command line serves every provider, a name or an IP address of this machine may stand before the number:
//! `localhost:7471`, `127.0.0.1:7471`, `[::1]:7471`, `:7471`.

use std::net::IpAddr;

use fabric::{Address, Error};

/// Reads the number; `None` for [`Address::ANY`].
///
/// # Errors
/// [`Error::BadAddress`].
pub(crate) fn number(address: &Address) -> Result<Option<u32>, Error> {
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
    if !is_here(host) {
        return Err(bad("shared memory reaches this machine only"));
    }
    Ok((number != 0).then_some(number))
}

/// The text of a number.
pub(crate) fn text(number: u32) -> Address {
    format!("{HOST}:{number}").into()
}

/// Whether a name is this machine's.
fn is_here(host: &str) -> bool {
    if matches!(host, "" | HOST | "localhost") {
        return true;
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback() || ip.is_unspecified(),
        Err(_) => rustix::system::uname().nodename().to_str() == Ok(host),
    }
}

const HOST: &str = "shm";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_lead_to_the_number() {
        for text in [
            "shm:7471",
            ":7471",
            "localhost:7471",
            "127.0.0.9:7471",
            "[::1]:7471",
            "0.0.0.0:7471",
        ] {
            assert_eq!(number(&text.into()).unwrap(), Some(7471), "{text}");
        }
        assert_eq!(number(&Address::ANY).unwrap(), None);
        assert_eq!(number(&"shm:0".into()).unwrap(), None);
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
            assert!(number(&text.into()).is_err(), "{text}");
        }
    }
}
