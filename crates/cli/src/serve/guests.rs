//! Who is connected: so many in all, and so many of one host, so that no host keeps the others out.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use fabric::Address;

/// The clients that are here, by host.
#[derive(Debug, Default)]
pub(super) struct Guests(Mutex<HashMap<String, usize>>);

/// A client's place, free again however its thread ends.
#[derive(Debug)]
pub(super) struct Place {
    guests: Arc<Guests>,
    host: String,
}

impl Guests {
    /// A place for a client from that address.
    ///
    /// # Errors
    /// Why there is none, for the client.
    pub(super) fn admit(self: &Arc<Self>, from: &Address) -> Result<Place, &'static str> {
        let host = host(from);
        let mut guests = self.lock();
        if guests.values().sum::<usize>() >= MAX_CLIENTS {
            return Err("the server has too many clients");
        }
        let here = guests.entry(host.clone()).or_default();
        if *here >= MAX_OF_ONE_HOST {
            return Err("the server has too many clients of this host");
        }
        *here += 1;
        Ok(Place {
            guests: Arc::clone(self),
            host,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().expect("nothing under the lock panics")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guests = self.guests.lock();
        if let Some(here) = guests.get_mut(&self.host) {
            *here -= 1;
            if *here == 0 {
                guests.remove(&self.host);
            }
        }
    }
}

/// What of an address its owner cannot choose freely: where addresses are of hosts, the port does not count. Of IPv6 a host
/// has a whole network.
fn host(from: &Address) -> String {
    match from.as_str().parse() {
        Ok(SocketAddr::V4(address)) => address.ip().to_string(),
        Ok(SocketAddr::V6(address)) if address.ip().is_unicast_link_local() => {
            address.ip().to_string()
        }
        Ok(SocketAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.ip().segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
        Err(_) => from.to_string(),
    }
}

/// Most clients at once.
const MAX_CLIENTS: usize = 64;

/// Most of them from one host.
const MAX_OF_ONE_HOST: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_does_not_keep_the_others_out() {
        let guests = Arc::new(Guests::default());
        let admit = |from: &str| guests.admit(&from.into());
        let ports = 1..=MAX_OF_ONE_HOST;
        let mut crowd: Vec<_> = ports
            .map(|port| admit(&format!("192.0.2.1:{port}")).expect("there is room"))
            .collect();
        let refused = admit("192.0.2.1:999").expect_err("a host has its share");
        assert!(refused.contains("of this host"), "{refused}");
        let other = admit("192.0.2.2:1").expect("another host has a place");
        crowd.pop();
        admit("192.0.2.1:999").expect("a place is free again");
        drop((crowd, other));
        assert!(guests.lock().is_empty(), "whoever is gone is forgotten");
    }

    #[test]
    fn a_server_is_full_at_last_and_a_network_of_ipv6_is_one_host() {
        let guests = Arc::new(Guests::default());
        let crowd: Vec<_> = (0..MAX_CLIENTS)
            .map(|number| guests.admit(&format!("198.51.100.{number}:1").as_str().into()))
            .collect();
        assert!(crowd.iter().all(Result::is_ok));
        let refused = guests.admit(&"192.0.2.1:1".into()).expect_err("it is full");
        assert!(refused.contains("too many clients"), "{refused}");
        assert_eq!(
            host(&"[2001:db8::1]:1".into()),
            host(&"[2001:db8::2:3]:4".into())
        );
        assert_ne!(
            host(&"[2001:db8::1]:1".into()),
            host(&"[2001:db8:1::1]:1".into())
        );
    }
}
