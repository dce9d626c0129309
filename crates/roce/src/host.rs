//! What a queue pair asks of the NIC that hosts it: memory, queues, and room to send.
//!
//! The engine decides; the host moves bytes. Both traits are implemented by the software RNIC and by the
//! simulator. A host is made for one queue pair at a time, so no method names one.

use std::net::IpAddr;

use crate::verbs::{Access, Completion, Path, QpEvent, RecvWork, SgeList};
use crate::wire::{Headers, Key};

/// The key, the range or the right did not permit the access. Nothing was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessDenied;

/// An atomic operation on an aligned 64-bit word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicOp {
    /// Adds, wrapping.
    FetchAdd(u64),
    /// Stores `swap` if the word equals `compare`.
    CompareSwap {
        /// What the word must hold.
        compare: u64,
        /// What it then holds.
        swap: u64,
    },
}

/// What the IP and UDP headers said of a packet that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The sender's address.
    pub source: IpAddr,
    /// Ours, of the same family.
    pub destination: IpAddr,
    /// IPv4 TOS or IPv6 traffic class.
    pub traffic_class: u8,
    /// IPv4 TTL or IPv6 hop limit.
    pub hop_limit: u8,
    /// Bytes of the UDP datagram, its header included.
    pub udp_length: u16,
}

/// Memory, queues and events of one queue pair.
pub trait Host {
    /// Whether `rkey` gives peers of this queue pair's protection domain `access` to all of
    /// `va .. va + length`. Asked once a request; placement asks again.
    fn check_remote(
        &mut self,
        rkey: Key,
        va: u64,
        length: u64,
        access: Access,
    ) -> Result<(), AccessDenied>;

    /// Writes a peer's bytes into exposed memory; the last bytes become visible last.
    fn place(&mut self, rkey: Key, va: u64, data: &[u8]) -> Result<(), AccessDenied>;

    /// Carries out an atomic on exposed memory and returns the old value. `va` is a multiple of 8.
    fn atomic(&mut self, rkey: Key, va: u64, op: AtomicOp) -> Result<u64, AccessDenied>;

    /// Invalidates a key for SEND with invalidate.
    fn invalidate(&mut self, rkey: Key) -> Result<(), AccessDenied>;

    /// Writes `data` into local memory, `offset` bytes into the list. The list is at least that long.
    fn scatter(&mut self, to: &SgeList, offset: u64, data: &[u8]) -> Result<(), AccessDenied>;

    /// The next receive of the receive queue or the shared receive queue, in posting order.
    fn take_recv(&mut self) -> Option<RecvWork>;

    /// The same, but only from a receive queue of the queue pair's own: an error flushes these.
    fn take_own_recv(&mut self) -> Option<RecvWork>;

    /// Reports to the send completion queue.
    fn complete_send(&mut self, completion: Completion);

    /// Reports to the receive completion queue.
    fn complete_recv(&mut self, completion: Completion);

    /// Reports an asynchronous event.
    fn event(&mut self, event: QpEvent);
}

/// The payload of a packet, as a reference for the host to resolve.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// None.
    Empty,
    /// `length` bytes from `offset` on in a list of local memory. Stable until the work completes, so it may be gathered
    /// in place.
    Gather {
        /// The work's list.
        from: &'a SgeList,
        /// Bytes to skip.
        offset: u64,
        /// Bytes to take.
        length: u32,
    },
    /// Exposed memory, which peers may be changing: copied first, then checksummed.
    Exposed {
        /// The region's key.
        rkey: Key,
        /// Where it starts.
        va: u64,
        /// Bytes.
        length: u32,
    },
    /// These bytes, copied by the host before it returns.
    Bytes(&'a [u8]),
}

impl Payload<'_> {
    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Gather { length, .. } | Self::Exposed { length, .. } => *length as usize,
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A burst that is being filled.
pub trait Transmit {
    /// Whether one more packet of the largest size fits.
    fn has_room(&self) -> bool;

    /// Whether the burst is filled for a program that drives the NIC itself, and will again in a moment: what can wait
    /// a few microseconds for its deadline may.
    fn is_polled(&self) -> bool;

    /// Bytes that the queue pair may add to what is in flight to its peer, as far as others of the same peer leave room:
    /// asked once for each call of `poll_transmit`.
    fn allowance(&self) -> u32;

    /// Adds a packet: `headers` with the pad count already set, then `payload`. The host appends pad and ICRC.
    /// Refused, with nothing added, when the payload's memory does not resolve.
    fn send(
        &mut self,
        path: &Path,
        headers: &Headers,
        payload: Payload<'_>,
    ) -> Result<(), AccessDenied>;
}
