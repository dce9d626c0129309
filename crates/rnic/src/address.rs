//! Finds out about addresses of this host: a fresh loopback address, the MTU behind an address, who holds a port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A random address of 127.0.0.0/8 that is unlikely to be in use. All of them work with no set-up on Linux.
///
/// # Errors
/// The system has no randomness.
pub(crate) fn random_loopback() -> std::io::Result<IpAddr> {
    let mut bytes = [0; 3];
    getrandom::fill(&mut bytes)?;
    // 127.0.x.x is left to people, and .0 and .255 to nobody.
    Ok(Ipv4Addr::new(127, 1 + bytes[0] % 254, bytes[1], 1 + bytes[2] % 254).into())
}

/// What the host says of one of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Bytes of an IP packet on the link.
    pub(crate) mtu: u32,
    /// The interface's index where `ip` is IPv6 link-local, else 0.
    pub(crate) scope: u32,
}

/// The interface that has `ip`; one of 1500 bytes where the host does not say.
pub(crate) fn interface_of(ip: IpAddr) -> Interface {
    #[cfg(target_os = "linux")]
    if let Some(interface) = linux::interface_of(ip) {
        return interface;
    }
    if ip.is_loopback() {
        return Interface {
            mtu: if cfg!(target_os = "linux") {
                65_536
            } else {
                16_384
            },
            scope: 0,
        };
    }
    Interface {
        mtu: 1500,
        scope: 0,
    }
}

/// The addresses of this host, each with the name of its interface, link-local ones apart; none where the host does not say.
#[must_use]
pub fn host_addresses() -> Vec<(String, IpAddr)> {
    #[cfg(target_os = "linux")]
    return linux::addresses();
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

/// Who holds UDP port `port` of `ip`, in words for a human; `None` where the host does not say.
pub(crate) fn holder_of(ip: IpAddr, port: u16) -> Option<String> {
    #[cfg(target_os = "linux")]
    return linux::holder_of(ip, port);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (ip, port);
        None
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;

    /// Walks the interfaces; MTUs come from sysfs.
    pub(super) fn interface_of(ip: IpAddr) -> Option<Interface> {
        let mut list = std::ptr::null_mut();
        // SAFETY: getifaddrs writes a list that we free below.
        if unsafe { libc::getifaddrs(&mut list) } != 0 {
            return None;
        }
        let mut found = None;
        let mut at = list.cast_const();
        while !at.is_null() {
            // SAFETY: an element of the list, which is alive until it is freed.
            let entry = unsafe { &*at };
            at = entry.ifa_next;
            let Some((address, mask)) =
                address_of(entry.ifa_addr).zip(address_of(entry.ifa_netmask))
            else {
                continue;
            };
            // All of 127.0.0.0/8 is local to the loopback interface, not only the address it shows.
            let is_here = address == ip || (ip.is_loopback() && same_network(address, ip, mask));
            if is_here {
                // SAFETY: the name is a C string of the list.
                let name = unsafe { std::ffi::CStr::from_ptr(entry.ifa_name) };
                // SAFETY: the name is a C string.
                let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
                let mtu = std::fs::read_to_string(format!(
                    "/sys/class/net/{}/mtu",
                    name.to_string_lossy()
                ));
                let mtu = mtu
                    .ok()
                    .and_then(|text| text.trim().parse().ok())
                    .unwrap_or(1500);
                let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
                found = Some(Interface {
                    mtu,
                    scope: if link_local { index } else { 0 },
                });
                break;
            }
        }
        // SAFETY: the list that getifaddrs made; no reference into it is left.
        unsafe { libc::freeifaddrs(list) };
        found
    }

    pub(super) fn addresses() -> Vec<(String, IpAddr)> {
        let mut list = std::ptr::null_mut();
        // SAFETY: getifaddrs writes a list that we free below.
        if unsafe { libc::getifaddrs(&mut list) } != 0 {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut at = list.cast_const();
        while !at.is_null() {
            // SAFETY: an element of the list, which is alive until it is freed.
            let entry = unsafe { &*at };
            at = entry.ifa_next;
            let is_up = entry.ifa_flags & libc::IFF_UP as u32 != 0;
            let Some(ip) = address_of(entry.ifa_addr).filter(|_| is_up) else {
                continue;
            };
            if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
                continue;
            }
            // SAFETY: the name is a C string of the list.
            let name = unsafe { std::ffi::CStr::from_ptr(entry.ifa_name) };
            found.push((name.to_string_lossy().into_owned(), ip));
        }
        // SAFETY: the list that getifaddrs made; no reference into it is left.
        unsafe { libc::freeifaddrs(list) };
        found
    }

    fn address_of(address: *const libc::sockaddr) -> Option<IpAddr> {
        if address.is_null() {
            return None;
        }
        // SAFETY: getifaddrs gives socket addresses of the length that their family says; they may lie unaligned.
        unsafe {
            match i32::from((&raw const (*address).sa_family).read_unaligned()) {
                libc::AF_INET => {
                    let address = address.cast::<libc::sockaddr_in>().read_unaligned();
                    Some(Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()).into())
                }
                libc::AF_INET6 => {
                    let address = address.cast::<libc::sockaddr_in6>().read_unaligned();
                    Some(Ipv6Addr::from(address.sin6_addr.s6_addr).into())
                }
                _ => None,
            }
        }
    }

    fn same_network(a: IpAddr, b: IpAddr, mask: IpAddr) -> bool {
        match (a, b, mask) {
            (IpAddr::V4(a), IpAddr::V4(b), IpAddr::V4(mask)) => (a & mask) == (b & mask),
            _ => false,
        }
    }

    /// Finds the socket in /proc/net, then the process that has it open, as far as we may look.
    pub(super) fn holder_of(ip: IpAddr, port: u16) -> Option<String> {
        let (inode, local) = ["/proc/net/udp", "/proc/net/udp6"]
            .iter()
            .find_map(|table| {
                let text = std::fs::read_to_string(table).ok()?;
                text.lines()
                    .skip(1)
                    .find_map(|line| socket_of(line, ip, port))
            })?;
        let on = if local.is_unspecified() {
            format!("all addresses, {local},")
        } else {
            local.to_string()
        };
        if inode == 0 {
            return Some(format!(
                "a socket of the kernel on {on} (rdma_rxe is loaded?)"
            ));
        }
        Some(match process_with(inode) {
            Some((pid, name)) => format!("process {pid} ({name}) on {on}"),
            None => format!("a process of another user on {on} (socket {inode})"),
        })
    }

    /// Inode and address of the socket that a line of /proc/net/udp describes, if it keeps `ip` from binding to `port`.
    fn socket_of(line: &str, ip: IpAddr, port: u16) -> Option<(u64, IpAddr)> {
        let mut fields = line.split_whitespace().skip(1);
        let (address, held) = fields.next()?.split_once(':')?;
        if u16::from_str_radix(held, 16).ok()? != port {
            return None;
        }
        let word = |at: usize| {
            u32::from_str_radix(address.get(at..at + 8)?, 16)
                .ok()
                .map(u32::to_ne_bytes)
        };
        let local: IpAddr = if address.len() == 8 {
            Ipv4Addr::from(word(0)?).into()
        } else {
            let mut octets = [0; 16];
            for n in 0..4 {
                octets[n * 4..n * 4 + 4].copy_from_slice(&word(n * 8)?);
            }
            Ipv6Addr::from(octets).into()
        };
        if local.to_canonical() != ip && !local.is_unspecified() {
            return None;
        }
        let inode = fields.nth(7)?.parse().ok()?;
        Some((inode, local.to_canonical()))
    }

    fn process_with(inode: u64) -> Option<(u32, String)> {
        let wanted = format!("socket:[{inode}]");
        let processes = std::fs::read_dir("/proc").ok()?;
        for process in processes.flatten() {
            let Some(pid) = process
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            let Ok(files) = std::fs::read_dir(process.path().join("fd")) else {
                continue;
            };
            let holds = files.flatten().any(|file| {
                std::fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str())
            });
            if holds {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some((pid, name.trim().to_owned()));
            }
        }
        None
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_holder_of_a_port_is_named() {
            let ip = random_loopback().unwrap();
            let socket = std::net::UdpSocket::bind((ip, 0)).unwrap();
            let port = socket.local_addr().unwrap().port();
            let holder = holder_of(ip, port).expect("the socket is in the table");
            assert!(
                holder.contains(&format!("process {}", std::process::id())),
                "{holder}"
            );
            assert!(holder.contains(&ip.to_string()), "{holder}");
            drop(socket);
            assert_eq!(holder_of(ip, port), None);
        }

        #[test]
        fn the_host_has_a_loopback_address() {
            let all = host_addresses();
            assert!(
                all.contains(&("lo".to_owned(), Ipv4Addr::LOCALHOST.into())),
                "{all:?}"
            );
        }

        #[test]
        fn a_socket_on_all_addresses_holds_each() {
            let line = " 1: 00000000:12B7 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0 0";
            let ip: IpAddr = "10.0.0.7".parse().unwrap();
            assert_eq!(
                socket_of(line, ip, 4791),
                Some((0, Ipv4Addr::UNSPECIFIED.into()))
            );
            assert_eq!(socket_of(line, ip, 4792), None);
        }

        #[test]
        fn loopback_has_a_large_mtu() {
            let interface = super::super::interface_of(random_loopback().unwrap());
            assert!(interface.mtu >= 4176, "{interface:?}");
            assert_eq!(
                super::super::interface_of(Ipv6Addr::LOCALHOST.into()).scope,
                0
            );
        }
    }
}
