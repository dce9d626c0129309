//! Opens the two UDP sockets of a device and sets what a driver relies on.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};

use roce::wire::{ROCE_PORT, extension};
use socket2::{Domain, Protocol, Socket, Type};

/// The sockets of one device; both non-blocking, unconnected, and forbidden to fragment.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// Bound to port 4791.
    pub(crate) receiving: UdpSocket,
    /// Bound to a marked source port.
    pub(crate) sending: UdpSocket,
    /// Where the sending socket is bound.
    pub(crate) source: SocketAddr,
    /// Bytes the receive buffer holds, as the kernel accounts them.
    pub(crate) receive_buffer: usize,
}

impl Sockets {
    /// Binds both sockets on `ip`. `scope` is the interface of an IPv6 link-local address, else 0; `buffer` is asked of the
    /// kernel for each direction, which accounts twice that, or is 0 to leave the default.
    ///
    /// # Errors
    /// `AddrInUse` where another socket holds port 4791 of `ip`; else what the system says.
    pub(crate) fn open(ip: IpAddr, scope: u32, buffer: usize) -> io::Result<Self> {
        let receiving = unfragmented(ip)?;
        receiving.bind(&with_port(ip, scope, ROCE_PORT).into())?;
        enlarge(&receiving, buffer);
        let receive_buffer = receiving.recv_buffer_size()?;
        let sending = unfragmented(ip)?;
        enlarge(&sending, buffer);
        bind_marked(&sending, ip, scope)?;
        let sending: UdpSocket = sending.into();
        let source = sending.local_addr()?;
        Ok(Self {
            receiving: receiving.into(),
            sending,
            source,
            receive_buffer,
        })
    }
}

/// Joins `ip` and `port`, with the interface where `ip` needs one.
pub(crate) fn with_port(ip: IpAddr, scope: u32, port: u16) -> SocketAddr {
    match ip {
        IpAddr::V4(v4) => SocketAddrV4::new(v4, port).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(
            v6,
            port,
            0,
            if v6.is_unicast_link_local() { scope } else { 0 },
        )
        .into(),
    }
}

fn unfragmented(ip: IpAddr) -> io::Result<Socket> {
    let domain = if ip.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    match ip {
        IpAddr::V4(_) => set(
            &socket,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        )?,
        IpAddr::V6(_) => {
            set(
                &socket,
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DO,
            )?;
            socket.set_only_v6(true)?;
            // The Linux kernel's soft-RoCE sends no UDP checksum, which IPv6 refuses unless told; the ICRC covers more.
            set(&socket, libc::SOL_UDP, libc::UDP_NO_CHECK6_RX, 1)?;
        }
    }
    Ok(socket)
}

/// Takes a marked port, or any free one of the range where all are taken: the mark helps, nothing depends on it.
fn bind_marked(socket: &Socket, ip: IpAddr, scope: u32) -> io::Result<()> {
    let marked = extension::source_ports(ip);
    let spare = (0..64u16).map(|n| 0xC000 | marked[0].wrapping_add(n.wrapping_mul(257)) & 0x3FFF);
    let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
    for port in marked.into_iter().chain(spare) {
        match socket.bind(&with_port(ip, scope, port).into()) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

/// As much buffer as the system gives: privileged beyond `rmem_max`, else up to it.
fn enlarge(socket: &Socket, buffer: usize) {
    if buffer == 0 {
        return;
    }
    #[cfg(target_os = "linux")]
    {
        let bytes = libc::c_int::try_from(buffer).unwrap_or(libc::c_int::MAX);
        let forced = set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
            .and_then(|()| set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes));
        if forced.is_ok() {
            return;
        }
    }
    // A refusal leaves the default, which `receive_buffer` reports: the flow control goes by what there is.
    let _ = socket.set_recv_buffer_size(buffer);
    let _ = socket.set_send_buffer_size(buffer);
}

#[cfg(target_os = "linux")]
pub(crate) fn set(
    socket: &impl std::os::fd::AsRawFd,
    level: i32,
    option: i32,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: `value` is a live c_int and its own size is passed.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Asked of the kernel for each direction where nothing else is wanted; it accounts twice that.
pub(crate) const LARGE_BUFFER: usize = 4 << 20;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An address of this process's own: many tests bind port 4791 at once.
    pub(crate) fn fresh_loopback() -> IpAddr {
        let mut bytes = [0u8; 3];
        getrandom::fill(&mut bytes).expect("the system has randomness");
        IpAddr::from([127, 1 + bytes[0] % 254, bytes[1], 1 + bytes[2] % 254])
    }

    #[test]
    fn a_device_listens_on_4791_and_sends_from_a_marked_port() {
        let ip = fresh_loopback();
        let sockets = Sockets::open(ip, 0, LARGE_BUFFER).expect("a fresh loopback address is free");
        assert_eq!(sockets.receiving.local_addr().unwrap().port(), ROCE_PORT);
        assert!(
            extension::is_marked(ip, sockets.source.port()),
            "{}",
            sockets.source
        );
        assert!(
            sockets.receive_buffer >= 100_000,
            "{}",
            sockets.receive_buffer
        );
        let taken = Sockets::open(ip, 0, LARGE_BUFFER).expect_err("the port is held");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn the_default_buffer_is_left_alone() {
        let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
        let default = socket2::SockRef::from(&plain).recv_buffer_size().unwrap();
        let sockets = Sockets::open(fresh_loopback(), 0, 0).unwrap();
        assert_eq!(sockets.receive_buffer, default);
    }
}
