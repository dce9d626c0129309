//! The Linux driver: segmentation offload (UDP_SEGMENT), coalescing (UDP_GRO), and whole batches per system call.
//!
//! A packet costs some two microseconds however it is sent alone; only a segmented send changes that. Where the
//! host refuses one (`EIO`, `EINVAL`: no checksum offload, IPsec, a segment larger than the path), its packets are sent
//! one by one from then on, and that is said once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, RawFd};

use super::burst::{Burst, Group, MAX_GROUPS, Piece};
use super::socket::{Sockets, set};
use super::{Arrival, Driver, DriverCounters, Sent};

/// UDP sockets with offloads.
pub(crate) struct Linux {
    sockets: Sockets,
    segmentation: bool,
    outgoing: Box<[libc::mmsghdr]>,
    outgoing_control: Box<[SendControl]>,
    incoming: Incoming,
    counters: DriverCounters,
    /// One packet, where packets are sent one by one.
    scratch: Vec<u8>,
}

// SAFETY: the raw pointers inside are `mmsghdr`s that point into this value's own boxes; they are rebuilt or used
// only by methods that take `&mut self`.
unsafe impl Send for Linux {}

impl Linux {
    /// A driver over `sockets`.
    pub(crate) fn new(sockets: Sockets) -> Self {
        // Both options are asked, not demanded: the kernel may be older than either.
        if let Err(error) = set(&sockets.receiving, libc::SOL_UDP, libc::UDP_GRO, 1) {
            tracing::info!(%error, "UDP receive coalescing is not available");
        }
        let _ = set(&sockets.receiving, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
        let segmentation = set(&sockets.sending, libc::SOL_UDP, libc::UDP_SEGMENT, 0);
        if let Err(error) = &segmentation {
            tracing::info!(%error, "UDP segmentation offload is not available");
        }
        Self {
            sockets,
            segmentation: segmentation.is_ok(),
            outgoing: vec![EMPTY_MESSAGE; MAX_GROUPS].into_boxed_slice(),
            outgoing_control: vec![SendControl([0; SEND_CONTROL]); MAX_GROUPS].into_boxed_slice(),
            incoming: Incoming::new(),
            counters: DriverCounters::default(),
            scratch: Vec::with_capacity(8192),
        }
    }

    /// One `sendmmsg` of all unsent groups; how many the kernel took.
    fn send_groups(&mut self, burst: &Burst) -> io::Result<usize> {
        let groups = burst.unsent();
        for ((group, message), control) in groups
            .iter()
            .zip(&mut self.outgoing)
            .zip(&mut self.outgoing_control)
        {
            let pieces = burst.pieces(group);
            let header = &mut message.msg_hdr;
            header.msg_name = group.address().as_ptr().cast_mut().cast();
            header.msg_namelen = group.address().len();
            header.msg_iov = pieces.as_ptr().cast_mut().cast();
            header.msg_iovlen = pieces.len();
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control.fill(group);
            if header.msg_controllen == 0 {
                header.msg_control = std::ptr::null_mut();
            }
        }
        self.counters.send_calls += 1;
        if groups.len() == 1 {
            let first = &self.outgoing[0].msg_hdr;
            // SAFETY: as below, for the first message alone.
            let sent = unsafe { sendmsg(self.sockets.sending.as_raw_fd(), first) };
            return if sent < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(1)
            };
        }
        // SAFETY: the first `groups.len()` messages were just filled; they point to an address, pieces and control
        // bytes that `burst` and `self` keep alive over the call, and the pieces' memory is readable (`Burst::push`).
        let sent = unsafe {
            libc::sendmmsg(
                self.sockets.sending.as_raw_fd(),
                self.outgoing.as_mut_ptr(),
                groups.len().min(MAX_GROUPS) as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// The first unsent group's packets one by one, after the kernel refused it as a whole with `refusal`.
    fn send_singly(&mut self, burst: &mut Burst, refusal: &io::Error) {
        let group = &burst.unsent()[0];
        let mut packet = std::mem::take(&mut self.scratch);
        let mut refused = 0;
        for index in 0..group.count() {
            burst.packet_alone(group, index, &mut packet);
            self.counters.send_calls += 1;
            let address = group.address();
            // SAFETY: `packet` and `address` are alive over the call, and their own lengths are passed.
            let sent = unsafe {
                libc::sendto(
                    self.sockets.sending.as_raw_fd(),
                    packet.as_ptr().cast(),
                    packet.len(),
                    libc::MSG_DONTWAIT,
                    address.as_ptr().cast(),
                    address.len(),
                )
            };
            refused += usize::from(sent < 0);
        }
        if refused == group.count() {
            self.counters.send_errors += 1;
        } else if self.segmentation {
            tracing::warn!(error = %refusal, "UDP segmentation offload is refused; sending packets one by one");
            self.segmentation = false;
        }
        self.scratch = packet;
        burst.mark_sent(1);
        if !self.segmentation {
            burst.forbid_segmentation();
        }
    }
}

impl Driver for Linux {
    fn send(&mut self, burst: &mut Burst) -> Sent {
        while !burst.is_empty() {
            let segmented = burst.unsent()[0].count() > 1;
            if segmented && !self.segmentation {
                self.send_singly(burst, &io::Error::from_raw_os_error(libc::EOPNOTSUPP));
                continue;
            }
            match self.send_groups(burst) {
                Ok(sent) => burst.mark_sent(sent),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::ENOBUFS) => {
                        self.counters.send_blocked += 1;
                        return Sent::Blocked;
                    }
                    Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE) if segmented => {
                        self.send_singly(burst, &error)
                    }
                    _ => {
                        tracing::debug!(%error, to = ?burst.unsent()[0].to().ip, "the host refuses to send");
                        self.counters.send_errors += 1;
                        burst.mark_sent(1);
                    }
                },
            }
        }
        burst.clear();
        Sent::All
    }

    fn receive(&mut self) -> usize {
        self.counters.receive_calls += 1;
        self.incoming.receive(self.sockets.receiving.as_raw_fd());
        self.counters.empty_receive_calls += u64::from(self.incoming.filled == 0);
        self.counters.overflows = u64::from(self.incoming.overflows);
        self.incoming.filled
    }

    fn arrival(&self, index: usize) -> Arrival<'_> {
        self.incoming.arrival(index)
    }

    fn max_segments(&self) -> usize {
        if self.segmentation { usize::MAX } else { 1 }
    }

    fn receive_buffer(&self) -> usize {
        self.sockets.receive_buffer
    }

    fn source(&self) -> SocketAddr {
        self.sockets.source
    }

    fn receiving_fd(&self) -> RawFd {
        self.sockets.receiving.as_raw_fd()
    }

    fn counters(&self) -> DriverCounters {
        self.counters
    }
}

/// Room for the control messages of one send: segment size and traffic class.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
struct SendControl([u8; SEND_CONTROL]);

// SAFETY: CMSG_SPACE only computes.
const SEND_CONTROL: usize = unsafe { (libc::CMSG_SPACE(2) + libc::CMSG_SPACE(4)) as usize };

impl SendControl {
    /// Writes what `group` needs; returns the bytes used.
    fn fill(&mut self, group: &Group) -> usize {
        let mut used = 0;
        if group.count() > 1 {
            let segment = (group.segment() as u16).to_ne_bytes();
            used += self.write(used, libc::SOL_UDP, libc::UDP_SEGMENT, &segment);
        }
        if group.to().traffic_class != 0 {
            let class = libc::c_int::from(group.to().traffic_class).to_ne_bytes();
            used += match group.to().ip {
                IpAddr::V4(_) => self.write(used, libc::IPPROTO_IP, libc::IP_TOS, &class),
                IpAddr::V6(_) => self.write(used, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class),
            };
        }
        used
    }

    fn write(&mut self, at: usize, level: libc::c_int, kind: libc::c_int, value: &[u8]) -> usize {
        // SAFETY: both macros only compute.
        let (len, space) = unsafe {
            (
                libc::CMSG_LEN(value.len() as u32) as usize,
                libc::CMSG_SPACE(value.len() as u32) as usize,
            )
        };
        let header = len - value.len();
        let message = &mut self.0[at..at + space];
        message[..8].copy_from_slice(&len.to_ne_bytes());
        message[8..12].copy_from_slice(&level.to_ne_bytes());
        message[12..16].copy_from_slice(&kind.to_ne_bytes());
        message[header..len].copy_from_slice(value);
        space
    }
}

/// Buffers of one receive batch.
struct Incoming {
    buffers: Box<[u8]>,
    names: Box<[libc::sockaddr_in6]>,
    controls: Box<[ReceiveControl]>,
    pieces: Box<[libc::iovec]>,
    messages: Box<[libc::mmsghdr]>,
    segments: [usize; BATCH],
    filled: usize,
    /// Messages to ask for next, and how often all that were asked for came.
    wanted: usize,
    full_rounds: u32,
    overflows: u32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
struct ReceiveControl([u8; 64]);

impl Incoming {
    fn new() -> Self {
        let mut buffers = vec![0u8; BATCH * BUFFER].into_boxed_slice();
        let pieces = buffers
            .chunks_exact_mut(BUFFER)
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: BUFFER,
            })
            .collect();
        // SAFETY: a `sockaddr_in6` of zero bytes is a valid value.
        let name: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        Self {
            buffers,
            names: vec![name; BATCH].into_boxed_slice(),
            controls: vec![ReceiveControl([0; 64]); BATCH].into_boxed_slice(),
            pieces,
            messages: vec![EMPTY_MESSAGE; BATCH].into_boxed_slice(),
            segments: [0; BATCH],
            filled: 0,
            wanted: BATCH,
            full_rounds: 0,
            overflows: 0,
        }
    }

    fn receive(&mut self, socket: RawFd) {
        // The kernel wrote lengths into the headers it used last time, and only into those.
        let stale = self.filled.max(1);
        let all = if self.messages[BATCH - 1].msg_hdr.msg_iovlen == 0 {
            BATCH
        } else {
            stale
        };
        for index in 0..all {
            let header = &mut self.messages[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            header.msg_iov = &raw mut self.pieces[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = size_of::<ReceiveControl>();
        }
        self.filled = if self.wanted == 1 {
            let first = &mut self.messages[0];
            // SAFETY: as below, for the first message alone.
            let received = unsafe { recvmsg(socket, &mut first.msg_hdr) };
            first.msg_len = received.max(0) as libc::c_uint;
            usize::from(received >= 0)
        } else {
            // SAFETY: every message points to a name, a buffer and control bytes of `self`, with their sizes; the boxes
            // do not move, and nothing else refers to them during the call.
            let received = unsafe {
                libc::recvmmsg(
                    socket,
                    self.messages.as_mut_ptr(),
                    self.wanted as libc::c_uint,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                )
            };
            usize::try_from(received).unwrap_or(0)
        };
        // Finding out that there is no second message costs as much as a tenth of the first: as many are asked for as
        // came last time, and twice as many when all that were asked for came twice in a row.
        if self.filled < self.wanted {
            self.full_rounds = 0;
            if self.filled > 0 {
                self.wanted = self.filled;
            }
        } else if self.full_rounds == 0 {
            self.full_rounds = 1;
        } else {
            self.full_rounds = 0;
            self.wanted = (2 * self.wanted).min(BATCH);
        }
        for index in 0..self.filled {
            self.segments[index] = self.read_control(index);
        }
    }

    /// The segment size of a coalesced message, or its whole length; notes the kernel's count of drops.
    fn read_control(&mut self, index: usize) -> usize {
        let message = &self.messages[index];
        let len = message.msg_len as usize;
        if message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return 0;
        }
        let mut segment = len;
        let control = &self.controls[index].0[..message.msg_hdr.msg_controllen.min(64)];
        let mut at = 0;
        // SAFETY: both macros only compute.
        let header = unsafe { libc::CMSG_LEN(0) as usize };
        while let Some(message) = control.get(at..).filter(|rest| rest.len() >= header + 4) {
            let word = |from: usize| {
                u32::from_ne_bytes([
                    message[from],
                    message[from + 1],
                    message[from + 2],
                    message[from + 3],
                ])
            };
            // Little- or big-endian, a control message is far shorter than 4 GiB.
            let len = usize::from_ne_bytes(
                message[..size_of::<usize>()]
                    .try_into()
                    .expect("longer than a header"),
            );
            let (level, kind) = (
                word(header - 8) as libc::c_int,
                word(header - 4) as libc::c_int,
            );
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => segment = word(header) as usize,
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => self.overflows = word(header),
                _ => {}
            }
            at += len.max(header).next_multiple_of(size_of::<usize>());
        }
        segment
    }

    fn arrival(&self, index: usize) -> Arrival<'_> {
        assert!(index < self.filled, "arrival {index} of {}", self.filled);
        let len = (self.messages[index].msg_len as usize).min(BUFFER);
        let segment = self.segments[index];
        // Segment 0 marks a datagram that did not fit, or an empty one: nothing of it is RoCE.
        let len = if segment == 0 { 0 } else { len };
        Arrival {
            source: address(&self.names[index]),
            segment: segment.max(1),
            bytes: &self.buffers[index * BUFFER..index * BUFFER + len],
        }
    }
}

/// `recvmsg(2)` that does not wait, past the C library: there the call is a point where the thread may be cancelled, which
/// costs as much again as finding out that nothing came.
///
/// # Safety
/// As `recvmsg(2)`: `message` points to memory that is writable and as long as it says.
#[inline]
unsafe fn recvmsg(socket: RawFd, message: &mut libc::msghdr) -> isize {
    // SAFETY: the caller's.
    unsafe {
        libc::syscall(
            libc::SYS_recvmsg,
            socket,
            std::ptr::from_mut(message),
            libc::MSG_DONTWAIT,
        ) as isize
    }
}

/// `sendmsg(2)` in the same way.
///
/// # Safety
/// As `sendmsg(2)`: `message` points to memory that is readable and as long as it says.
#[inline]
unsafe fn sendmsg(socket: RawFd, message: &libc::msghdr) -> isize {
    // SAFETY: the caller's.
    unsafe {
        libc::syscall(
            libc::SYS_sendmsg,
            socket,
            std::ptr::from_ref(message),
            libc::MSG_DONTWAIT,
        ) as isize
    }
}

/// Reads what the kernel wrote: a `sockaddr_in6`, or a `sockaddr_in` in its place.
fn address(name: &libc::sockaddr_in6) -> SocketAddr {
    if i32::from(name.sin6_family) == libc::AF_INET {
        // sockaddr_in: family, port, address; the address lies where the flow information of IPv6 does.
        let ip = Ipv4Addr::from(name.sin6_flowinfo.to_ne_bytes());
        SocketAddrV4::new(ip, u16::from_be(name.sin6_port)).into()
    } else {
        let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
        SocketAddrV6::new(ip, u16::from_be(name.sin6_port), 0, name.sin6_scope_id).into()
    }
}

/// Messages of one receive call. More would not save much, and spreads a bulk transfer over more cache.
const BATCH: usize = 8;
/// The largest datagram, or coalesced run of datagrams.
const BUFFER: usize = 65_536;

// SAFETY: an `mmsghdr` of zero bytes is a valid value: null pointers and lengths of 0.
const EMPTY_MESSAGE: libc::mmsghdr = unsafe { std::mem::zeroed() };

const _: () = assert!(size_of::<Piece>() == size_of::<libc::iovec>());
const _: () = assert!(align_of::<Piece>() == align_of::<libc::iovec>());
