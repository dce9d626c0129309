//! The portable driver: the standard library's UDP sockets, one datagram a call.
//!
//! It runs wherever Rust's standard library does. Where the host numbers its datagrams (IPv4 Identification) in a way
//! that we cannot know, strict receivers see wrong ICRCs: use IPv6 there; receivers like ours tolerate any
//! Identification.

use std::io;
use std::net::SocketAddr;

use super::burst::Burst;
use super::socket::Sockets;
use super::{Arrival, Driver, DriverCounters, Sent};

/// Standard UDP sockets.
pub(crate) struct Portable {
    sockets: Sockets,
    buffers: Box<[u8]>,
    arrivals: Vec<(SocketAddr, usize)>,
    packet: Vec<u8>,
    counters: DriverCounters,
}

impl Portable {
    /// A driver over `sockets`.
    pub(crate) fn new(sockets: Sockets) -> Self {
        Self {
            sockets,
            buffers: vec![0; BATCH * BUFFER].into_boxed_slice(),
            arrivals: Vec::with_capacity(BATCH),
            packet: Vec::with_capacity(BUFFER),
            counters: DriverCounters::default(),
        }
    }
}

impl Driver for Portable {
    fn send(&mut self, burst: &mut Burst) -> Sent {
        while let Some(group) = burst.unsent().first() {
            let to = group
                .address()
                .as_socket()
                .expect("built from a socket address");
            burst.packet_alone(group, 0, &mut self.packet);
            self.counters.send_calls += 1;
            match self.sockets.sending.send_to(&self.packet, to) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.counters.send_blocked += 1;
                    return Sent::Blocked;
                }
                Err(error) => {
                    tracing::debug!(%error, %to, "the host refuses to send");
                    self.counters.send_errors += 1;
                }
            }
            burst.mark_sent(1);
        }
        burst.clear();
        Sent::All
    }

    fn receive(&mut self) -> usize {
        self.arrivals.clear();
        for buffer in self.buffers.chunks_exact_mut(BUFFER) {
            self.counters.receive_calls += 1;
            match self.sockets.receiving.recv_from(buffer) {
                Ok((len, source)) => self.arrivals.push((source, len)),
                // Nothing there, or word of an earlier datagram that found nobody: neither is an arrival.
                Err(_) => {
                    self.counters.empty_receive_calls += 1;
                    break;
                }
            }
        }
        self.arrivals.len()
    }

    fn arrival(&self, index: usize) -> Arrival<'_> {
        let (source, len) = self.arrivals[index];
        Arrival {
            source,
            segment: len.max(1),
            bytes: &self.buffers[index * BUFFER..index * BUFFER + len],
        }
    }

    fn max_segments(&self) -> usize {
        1
    }

    fn receive_buffer(&self) -> usize {
        self.sockets.receive_buffer
    }

    fn source(&self) -> SocketAddr {
        self.sockets.source
    }

    #[cfg(unix)]
    fn receiving_fd(&self) -> std::os::fd::RawFd {
        use std::os::fd::AsRawFd;
        self.sockets.receiving.as_raw_fd()
    }

    fn counters(&self) -> DriverCounters {
        self.counters
    }
}

const BATCH: usize = 32;
/// Larger than any single RoCEv2 datagram.
const BUFFER: usize = 8192;
