//! Moves RoCEv2 datagrams between a device and the host's UDP stack.
//!
//! A [`Driver`] sends what a [`Burst`] holds and receives datagrams into its own buffers. It knows nothing of queue
//! pairs: which packet goes where and when is the engine's decision, and what a packet means is the wire's.
//!
//! Two sockets serve one device. The *receiving* socket is bound to UDP 4791, where every RoCEv2 peer sends to. The
//! *sending* socket has a source port from 0xC000-0xFFFF that marks this software (see [`roce::wire::extension`]); nothing that we need
//! arrives there. Both stay unconnected and forbid fragmentation: only then does Linux give every datagram the
//! IPv4 Identification 0 (and the i-th segment of a segmented send the Identification i), which the ICRC covers.
//!
//! On Linux the driver uses segmentation and coalescing offload ([`linux`]); everywhere, and where
//! `RINGMAIL_UDP=portable` asks for it, one datagram is one call of the standard library ([`portable`]).

pub(crate) mod burst;
#[cfg(target_os = "linux")]
pub(crate) mod linux;
pub(crate) mod portable;
pub(crate) mod socket;

use std::io;
use std::net::{IpAddr, SocketAddr};

pub(crate) use burst::Burst;

/// Datagrams of one source that arrived back to back: one, or several that the kernel coalesced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival<'a> {
    /// Who sent it.
    pub(crate) source: SocketAddr,
    /// Every datagram's length but the last one's, which may be shorter; never 0.
    pub(crate) segment: usize,
    /// The datagrams, one after the other.
    pub(crate) bytes: &'a [u8],
}

/// What a driver has counted since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DriverCounters {
    /// System calls that sent something or tried to.
    pub(crate) send_calls: u64,
    /// System calls that received something or tried to.
    pub(crate) receive_calls: u64,
    /// Those of them that found nothing.
    pub(crate) empty_receive_calls: u64,
    /// Sends (of one or many packets) that the host refused for another reason than a full queue.
    pub(crate) send_errors: u64,
    /// Sends that found the queue full and were tried again.
    pub(crate) send_blocked: u64,
    /// Datagrams that the kernel dropped because the receive buffer was full.
    pub(crate) overflows: u64,
}

/// What became of a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Everything left the burst, which is empty now.
    All,
    /// The host's queue is full: the rest stays in the burst and wants another call.
    Blocked,
}

/// Moves datagrams. Neither method ever blocks.
pub(crate) trait Driver: Send {
    /// Sends what `burst` holds, in order, with one system call where the host can. A datagram that the host refuses
    /// for good (no route, larger than the path) is counted and left to the protocol's recovery, like any loss.
    fn send(&mut self, burst: &mut Burst) -> Sent;

    /// Receives one batch with at most one system call where the host can; returns how many [`Driver::arrival`]s
    /// there are.
    fn receive(&mut self) -> usize;

    /// The `index`-th arrival of the latest [`Driver::receive`].
    fn arrival(&self, index: usize) -> Arrival<'_>;

    /// Most packets that may share one segmented send; 1 where the host has no such thing.
    fn max_segments(&self) -> usize;

    /// Bytes that the receive buffer holds, as the kernel accounts them.
    fn receive_buffer(&self) -> usize;

    /// Address and port that our datagrams come from.
    fn source(&self) -> SocketAddr;

    /// The receiving socket, for `poll(2)`.
    #[cfg(unix)]
    fn receiving_fd(&self) -> std::os::fd::RawFd;

    /// What happened so far.
    fn counters(&self) -> DriverCounters;
}

/// Which driver to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UdpKind {
    /// The best that the host has.
    #[default]
    Best,
    /// The standard library's sockets, one datagram a call.
    Portable,
}

impl UdpKind {
    /// Reads `RINGMAIL_UDP`: unset, empty or `best`, or `portable`.
    ///
    /// # Errors
    /// A word that is neither.
    pub fn from_env() -> Result<Self, String> {
        match std::env::var("RINGMAIL_UDP").as_deref() {
            Err(_) | Ok("" | "best") => Ok(Self::Best),
            Ok("portable") => Ok(Self::Portable),
            Ok(other) => Err(format!(
                "RINGMAIL_UDP is `{other}`: expected `best` or `portable`"
            )),
        }
    }
}

/// Opens a driver on `ip`, whose port 4791 must be free. `buffer` is asked of the kernel for each direction, 0 for its default.
pub(crate) fn open(
    ip: IpAddr,
    scope: u32,
    kind: UdpKind,
    buffer: Option<usize>,
) -> io::Result<Box<dyn Driver>> {
    let sockets = socket::Sockets::open(ip, scope, buffer.unwrap_or(socket::LARGE_BUFFER))?;
    #[cfg(target_os = "linux")]
    if kind == UdpKind::Best {
        return Ok(Box::new(linux::Linux::new(sockets)));
    }
    let _ = kind;
    Ok(Box::new(portable::Portable::new(sockets)))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use mem::Memory;
    use roce::wire::icrc::{IdBasis, Identification, Path, Verdict};

    use super::burst::{Destination, Source, Span};
    use super::socket::Sockets;
    use super::socket::tests::fresh_loopback;
    use super::*;

    /// What `receiver` gets after `sender` sent `payload` in `count` packets of each of two shapes; checks every ICRC.
    fn exchange(
        sender: &mut dyn Driver,
        receiver: &mut dyn Driver,
        count: usize,
    ) -> (usize, usize) {
        let memory = Memory::allocate(4096);
        memory.copy_in(0, &[0xA7; 4096]).unwrap();
        let mut burst = Burst::new(sender.source(), sender.max_segments());
        let ip = receiver.source().ip();
        let path = Path::new(sender.source(), SocketAddr::new(ip, roce::wire::ROCE_PORT)).unwrap();
        let to = Destination {
            ip,
            traffic_class: 0,
        };
        let (mut packets, mut runs) = (0, 0);
        for len in [8, 4096] {
            for _ in 0..count {
                // SAFETY: `memory` outlives the burst.
                unsafe {
                    burst.push(
                        to,
                        &[0; 12],
                        Source::Stable(&[Span {
                            memory: &memory,
                            offset: 0,
                            len,
                        }]),
                    )
                }
                .unwrap();
            }
            assert_eq!(sender.send(&mut burst), Sent::All);
            assert!(burst.is_empty());
            // Loopback delivers within the send: what was sent is there.
            loop {
                let arrivals = receiver.receive();
                if arrivals == 0 {
                    break;
                }
                for arrival in (0..arrivals).map(|index| receiver.arrival(index)) {
                    assert_eq!(arrival.source, sender.source());
                    runs += 1;
                    for (index, packet) in arrival.bytes.chunks(arrival.segment).enumerate() {
                        let expected = Identification::Known(index as u16);
                        assert_eq!(
                            path.verify(packet, expected, &mut IdBasis::new()),
                            Verdict::Exact
                        );
                        assert_eq!(packet.len(), 12 + len + 4);
                        packets += 1;
                    }
                }
            }
        }
        (packets, runs)
    }

    #[test]
    fn portable_sockets_move_packets_one_by_one() {
        let open = || open(fresh_loopback(), 0, UdpKind::Portable, None).unwrap();
        let (mut sender, mut receiver) = (open(), open());
        assert_eq!(exchange(&mut *sender, &mut *receiver, 5), (10, 10));
        assert!(sender.counters().send_calls >= 10);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn segmented_sends_arrive_as_they_left() {
        let open = || open(fresh_loopback(), 0, UdpKind::Best, None).unwrap();
        let (mut sender, mut receiver) = (open(), open());
        assert_eq!(exchange(&mut *sender, &mut *receiver, 15), (30, 2));
        assert_eq!(sender.counters().send_calls, 2);
        assert_eq!(sender.counters().send_errors, 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_segmented_send_reaches_a_portable_receiver_packet_by_packet() {
        let mut sender = open(fresh_loopback(), 0, UdpKind::Best, None).unwrap();
        let mut receiver = open(fresh_loopback(), 0, UdpKind::Portable, None).unwrap();
        let memory = Memory::allocate(8);
        let mut burst = Burst::new(sender.source(), sender.max_segments());
        let ip = receiver.source().ip();
        for _ in 0..3 {
            let to = Destination {
                ip,
                traffic_class: 0x20,
            };
            // SAFETY: `memory` outlives the burst.
            unsafe {
                burst.push(
                    to,
                    &[0; 12],
                    Source::Changing(Span {
                        memory: &memory,
                        offset: 0,
                        len: 8,
                    }),
                )
            }
            .unwrap();
        }
        assert_eq!(sender.send(&mut burst), Sent::All);
        assert_eq!(receiver.receive(), 3);
        // The kernel cut the send apart: the i-th packet has Identification i.
        let path = Path::new(sender.source(), SocketAddr::new(ip, roce::wire::ROCE_PORT)).unwrap();
        for index in 0..3 {
            let expected = Identification::Known(index as u16);
            let verdict = path.verify(receiver.arrival(index).bytes, expected, &mut IdBasis::new());
            assert_eq!(verdict, Verdict::Exact);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_host_that_refuses_segmentation_gets_single_packets() {
        let sockets = Sockets::open(fresh_loopback(), 0, socket::LARGE_BUFFER).unwrap();
        // Without checksums the kernel refuses to segment.
        socket::set(&sockets.sending, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        let mut sender = linux::Linux::new(sockets);
        let mut receiver = open(fresh_loopback(), 0, UdpKind::Best, None).unwrap();
        // Each packet is its own run now, checksummed with Identification 0.
        assert_eq!(exchange(&mut sender, &mut *receiver, 5), (10, 10));
        assert_eq!(sender.max_segments(), 1);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_refused_destination_does_not_hold_up_the_others() {
        let mut sender = open(fresh_loopback(), 0, UdpKind::Best, None).unwrap();
        let mut receiver = open(fresh_loopback(), 0, UdpKind::Best, None).unwrap();
        let mut burst = Burst::new(sender.source(), sender.max_segments());
        // From 127.x nothing leaves the host.
        for ip in [IpAddr::from([192, 0, 2, 1]), receiver.source().ip()] {
            let to = Destination {
                ip,
                traffic_class: 0,
            };
            // SAFETY: bytes are copied.
            unsafe { burst.push(to, &[0; 12], Source::Bytes(&[1, 2, 3, 4])) }.unwrap();
        }
        assert_eq!(sender.send(&mut burst), Sent::All);
        assert_eq!(sender.counters().send_errors, 1);
        assert_eq!(receiver.receive(), 1);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn ipv6_works_alike() {
        // There is one loopback address only, which another test may hold: sender and receiver are one device.
        let Ok(mut device) = open(Ipv6Addr::LOCALHOST.into(), 0, UdpKind::Best, None) else {
            return;
        };
        let mut burst = Burst::new(device.source(), device.max_segments());
        let to = Destination {
            ip: Ipv6Addr::LOCALHOST.into(),
            traffic_class: 4,
        };
        for _ in 0..3 {
            // SAFETY: bytes are copied.
            unsafe { burst.push(to, &[0; 12], Source::Bytes(&[9; 20])) }.unwrap();
        }
        assert_eq!(device.send(&mut burst), Sent::All);
        assert_eq!(device.receive(), 1);
        let arrival = device.arrival(0);
        assert_eq!(
            (arrival.source, arrival.segment, arrival.bytes.len()),
            (device.source(), 36, 108)
        );
        let path = Path::new(
            device.source(),
            SocketAddr::new(to.ip, roce::wire::ROCE_PORT),
        )
        .unwrap();
        let verdict = path.verify(
            &arrival.bytes[36..72],
            Identification::Unknown,
            &mut IdBasis::new(),
        );
        assert_eq!(verdict, Verdict::Exact);
    }
}
