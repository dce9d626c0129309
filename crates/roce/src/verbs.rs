//! The vocabulary of verbs: work, completions, access rights, queue-pair attributes. Plain data.
//!
//! IBA Vol. 1, chapters 10 and 11. The names are the specification's; what a field may hold is said here,
//! what is done with it in [`crate::qp`].

use std::net::IpAddr;
use std::time::Duration;

use bitflags::bitflags;

use crate::wire::{Key, Psn, Qpn};

/// The service of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QpType {
    /// Reliable connection: in order, exactly once, acknowledged.
    Rc,
    /// Unreliable connection: in order, a message with a lost packet is dropped whole.
    Uc,
    /// Unreliable datagram: single packets to any queue pair.
    Ud,
}

/// The states of a queue pair (IBA 10.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QpState {
    /// Fresh: nothing may be posted, packets are dropped.
    Reset,
    /// Initialised: receives may be posted, packets are dropped.
    Init,
    /// Ready to receive.
    Rtr,
    /// Ready to send.
    Rts,
    /// Send queue drained: work in flight finishes, no new work starts.
    Sqd,
    /// Send queue error (UC and UD): sends flush, receives go on.
    Sqe,
    /// Error: everything flushes.
    Err,
}

/// A piece of local memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sge {
    /// Virtual address, in the address space of the memory region.
    pub addr: u64,
    /// Bytes.
    pub length: u32,
    /// The region's local key.
    pub lkey: Key,
}

/// Most pieces in one gather or scatter list.
pub const MAX_SGE: usize = 16;

/// Most bytes that work can carry inline: the room of a full gather list.
pub const MAX_INLINE: usize = 256;

/// A gather or scatter list of at most [`MAX_SGE`] pieces, kept inline so that posting allocates nothing.
#[derive(Clone, Copy)]
pub struct SgeList {
    len: u8,
    pieces: [Sge; MAX_SGE],
}

impl SgeList {
    /// No pieces.
    pub const EMPTY: Self = Self {
        len: 0,
        pieces: [Sge {
            addr: 0,
            length: 0,
            lkey: Key(0),
        }; MAX_SGE],
    };

    /// The list of `pieces`; `None` when there are more than [`MAX_SGE`].
    pub fn new(pieces: &[Sge]) -> Option<Self> {
        let mut list = Self::EMPTY;
        list.pieces.get_mut(..pieces.len())?.copy_from_slice(pieces);
        list.len = pieces.len() as u8;
        Some(list)
    }

    /// The pieces, in order.
    #[inline]
    pub fn as_slice(&self) -> &[Sge] {
        &self.pieces[..usize::from(self.len)]
    }

    /// Takes all pieces out.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends a piece; whether there was room for it.
    #[inline]
    #[must_use]
    pub fn push(&mut self, piece: Sge) -> bool {
        let Some(place) = self.pieces.get_mut(usize::from(self.len)) else {
            return false;
        };
        *place = piece;
        self.len += 1;
        true
    }

    /// Becomes `other`, copying no more than its pieces.
    #[inline]
    pub fn assign(&mut self, other: &Self) {
        let pieces = other.as_slice();
        self.pieces[..pieces.len()].copy_from_slice(pieces);
        self.len = other.len;
    }

    /// Bytes of all pieces together.
    #[inline]
    pub fn total(&self) -> u64 {
        self.as_slice()
            .iter()
            .map(|sge| u64::from(sge.length))
            .sum()
    }
}

impl Default for SgeList {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl std::fmt::Debug for SgeList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

/// Bytes carried in the work itself, at most [`MAX_INLINE`].
#[derive(Clone, Copy)]
pub struct InlineBytes {
    len: u16,
    bytes: [u8; MAX_INLINE],
}

impl InlineBytes {
    /// A copy of `data`; `None` when it is longer than [`MAX_INLINE`].
    pub fn new(data: &[u8]) -> Option<Self> {
        let mut inline = Self {
            len: data.len() as u16,
            bytes: [0; MAX_INLINE],
        };
        inline.bytes.get_mut(..data.len())?.copy_from_slice(data);
        Some(inline)
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for InlineBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inline({} bytes)", self.len)
    }
}

/// Where the bytes of a send or write come from, or where those of a read go.
#[derive(Clone, Copy, Debug)]
pub enum Local {
    /// Registered memory, read (or, for READ and atomics, written) in place.
    Gather(SgeList),
    /// Bytes that were copied when the work was made.
    Inline(InlineBytes),
}

impl Local {
    /// Bytes of the whole list.
    #[inline]
    pub fn total(&self) -> u64 {
        match self {
            Self::Gather(list) => list.total(),
            Self::Inline(inline) => u64::from(inline.len),
        }
    }
}

/// What a piece of send-queue work does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A message into the peer's next receive.
    Send,
    /// The same, with 32 bits of immediate data in its completion.
    SendWithImm(u32),
    /// The same, invalidating one of the receiver's keys on arrival (RC only).
    SendWithInvalidate(Key),
    /// Bytes into the peer's memory.
    Write(Remote),
    /// The same, consuming a receive of the peer to tell it so.
    WriteWithImm(Remote, u32),
    /// Bytes from the peer's memory (RC only).
    Read(Remote),
    /// Adds to an aligned 64-bit word of the peer and returns its old value (RC only).
    FetchAdd {
        /// The word.
        remote: Remote,
        /// What is added, wrapping.
        add: u64,
    },
    /// Replaces an aligned 64-bit word of the peer if it equals `compare`, and returns its old value (RC only).
    CompareSwap {
        /// The word.
        remote: Remote,
        /// What it must hold.
        compare: u64,
        /// What it then holds.
        swap: u64,
    },
}

impl Operation {
    /// What its completion is called.
    #[inline]
    pub fn completion_kind(&self) -> CompletionKind {
        match self {
            Self::Send | Self::SendWithImm(_) | Self::SendWithInvalidate(_) => CompletionKind::Send,
            Self::Write(_) | Self::WriteWithImm(..) => CompletionKind::Write,
            Self::Read(_) => CompletionKind::Read,
            Self::FetchAdd { .. } => CompletionKind::FetchAdd,
            Self::CompareSwap { .. } => CompletionKind::CompareSwap,
        }
    }

    /// READ or atomic: occupies a responder resource and is completed by a response of its own.
    #[inline]
    pub fn has_response(&self) -> bool {
        matches!(
            self,
            Self::Read(_) | Self::FetchAdd { .. } | Self::CompareSwap { .. }
        )
    }

    /// FETCH_ADD or COMPARE_SWAP.
    #[inline]
    pub fn is_atomic(&self) -> bool {
        matches!(self, Self::FetchAdd { .. } | Self::CompareSwap { .. })
    }
}

/// A place in the peer's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// Virtual address, in the address space of the peer's region.
    pub addr: u64,
    /// The region's remote key.
    pub rkey: Key,
}

bitflags! {
    /// How a piece of send work is treated.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SendFlags: u8 {
        /// A completion is reported also on success.
        const SIGNALED = 1;
        /// Starts only after every earlier READ and atomic of this queue pair has finished.
        const FENCE = 2;
        /// The receiver's completion counts as solicited.
        const SOLICITED = 4;
    }
}

/// One piece of send-queue work.
#[derive(Clone, Copy, Debug)]
pub struct SendWork {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// What to do.
    pub operation: Operation,
    /// How to treat it.
    pub flags: SendFlags,
    /// The local bytes.
    pub local: Local,
    /// Where to (UD only).
    pub destination: Option<UdDestination>,
}

impl SendWork {
    /// A send of nothing: where other work is to be put.
    pub const EMPTY: Self = Self {
        wr_id: 0,
        operation: Operation::Send,
        flags: SendFlags::empty(),
        local: Local::Gather(SgeList::EMPTY),
        destination: None,
    };

    /// Becomes `other`. Where both gather, only the pieces that there are get copied: most lists have one of sixteen.
    #[inline]
    pub fn assign(&mut self, other: &Self) {
        self.wr_id = other.wr_id;
        self.operation = other.operation;
        self.flags = other.flags;
        self.destination = other.destination;
        match (&mut self.local, &other.local) {
            (Local::Gather(list), Local::Gather(other)) => list.assign(other),
            (local, other) => *local = *other,
        }
    }
}

/// One piece of receive-queue work.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecvWork {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// Where the message goes; UD puts 40 bytes of addressing in front.
    pub sges: SgeList,
}

/// How packets get to a peer. The NIC adds UDP ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// Our address.
    pub source: IpAddr,
    /// The peer's address, of the same family.
    pub destination: IpAddr,
    /// IPv4 TOS or IPv6 traffic class.
    pub traffic_class: u8,
    /// IPv4 TTL or IPv6 hop limit.
    pub hop_limit: u8,
}

impl Path {
    /// From `source` to `destination` with traffic class 0 and hop limit 64.
    pub fn new(source: IpAddr, destination: IpAddr) -> Self {
        Self {
            source,
            destination,
            traffic_class: 0,
            hop_limit: 64,
        }
    }
}

/// The receiver of a datagram: an address handle and a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdDestination {
    /// The way.
    pub path: Path,
    /// The peer's queue pair.
    pub qpn: Qpn,
    /// Its Q_Key; with the top bit set, the sender's own Q_Key is used (IBA 10.2.5).
    pub qkey: u32,
}

bitflags! {
    /// What may be done with a memory region (IBA 11.2.8). Local reading is always allowed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// Receives, READ responses and atomic results may be placed in it.
        const LOCAL_WRITE = 1;
        /// Peers may write.
        const REMOTE_WRITE = 2;
        /// Peers may read.
        const REMOTE_READ = 4;
        /// Peers may use atomics.
        const REMOTE_ATOMIC = 8;
    }
}

/// How a piece of work ended (IBA 11.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Done.
    Success,
    /// The message did not fit the receive, or the work was longer than a message may be.
    LocalLength,
    /// The engine found its own state inconsistent with the work (a queue pair of the wrong type, say).
    LocalQpOperation,
    /// A local key does not cover the work's memory or lacks the right.
    LocalProtection,
    /// The queue pair went into error before this work's turn.
    Flushed,
    /// The peer found the request malformed, too long, or more than it had resources for.
    RemoteInvalidRequest,
    /// The peer's key does not cover the memory or lacks the right.
    RemoteAccess,
    /// The peer could not carry the request out.
    RemoteOperation,
    /// The peer did not answer in any of the tries.
    RetryExceeded,
    /// The peer had no receive posted in any of the tries.
    RnrRetryExceeded,
}

/// What a completion is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompletionKind {
    /// A send of any form.
    Send,
    /// A write of any form.
    Write,
    /// A read.
    Read,
    /// A fetch-and-add.
    FetchAdd,
    /// A compare-and-swap.
    CompareSwap,
    /// A received message.
    Recv,
    /// A receive consumed by a write with immediate.
    RecvWriteWithImm,
}

/// The end of one piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The work's.
    pub wr_id: u64,
    /// How it ended; with anything but success only `wr_id`, `qpn` and `kind` mean something.
    pub status: Status,
    /// What it was.
    pub kind: CompletionKind,
    /// Received or read bytes (UD: with the 40 in front).
    pub byte_len: u32,
    /// Immediate data, when the peer sent some.
    pub imm: Option<u32>,
    /// The key that the message invalidated.
    pub invalidated: Option<Key>,
    /// The local queue pair.
    pub qpn: Qpn,
    /// The sender (UD only).
    pub source_qpn: Qpn,
    /// The 40 bytes of addressing are valid (UD only).
    pub has_grh: bool,
    /// The sender asked for a solicited event.
    pub solicited: bool,
}

impl Completion {
    /// A completion that says only how the work ended.
    pub fn of(wr_id: u64, qpn: Qpn, kind: CompletionKind, status: Status) -> Self {
        Self {
            wr_id,
            status,
            kind,
            byte_len: 0,
            imm: None,
            invalidated: None,
            qpn,
            source_qpn: Qpn::default(),
            has_grh: false,
            solicited: false,
        }
    }
}

/// Something that happened to a queue pair and is nobody's completion (IBA 11.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QpEvent {
    /// The first packet arrived while the queue pair was still in RTR.
    CommunicationEstablished,
    /// After a move to SQD everything in flight has finished.
    SendQueueDrained,
    /// The queue pair went into error because of a peer's malformed request.
    RequestError,
    /// The queue pair went into error because of a peer's access to memory that it may not access.
    AccessError,
    /// The queue pair went into error for a local reason.
    Fatal,
    /// The last receive that a queue pair on a shared receive queue had taken is done; it is in error.
    LastReceiveReached,
}

/// How often something is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retries {
    /// This many times.
    Limited(u8),
    /// For ever.
    Unlimited,
}

/// What moves a queue pair between its states. Every field is optional; which are needed for a transition
/// is checked by [`crate::qp::Qp::modify`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QpAttr {
    /// The state to go to; without one, attributes change within the state.
    pub state: Option<QpState>,
    /// What peers may do through this queue pair at all.
    pub access: Option<Access>,
    /// P_Key; 0xFFFF is the default partition.
    pub pkey: Option<u16>,
    /// Q_Key (UD only).
    pub qkey: Option<u32>,
    /// The way to the peer (RC, UC).
    pub path: Option<Path>,
    /// Largest payload of a packet.
    pub path_mtu: Option<Mtu>,
    /// The peer's queue pair (RC, UC).
    pub dest_qpn: Option<Qpn>,
    /// First PSN expected.
    pub rq_psn: Option<Psn>,
    /// First PSN sent.
    pub sq_psn: Option<Psn>,
    /// READs and atomics of the peer that we keep resources for, 0 to 255 (RC).
    pub max_dest_rd_atomic: Option<u8>,
    /// READs and atomics that we may have outstanding at the peer, 0 to 255 (RC).
    pub max_rd_atomic: Option<u8>,
    /// How long the peer is asked to wait when no receive is posted: code 0 to 31 (IBA 9.7.5.2.8).
    pub min_rnr_timer: Option<u8>,
    /// Local ACK timeout: `None` waits for ever (RC).
    pub timeout: Option<Option<Duration>>,
    /// How often a silent or gapped peer is tried again (RC).
    pub retry_count: Option<Retries>,
    /// How often a peer without a receive is tried again (RC).
    pub rnr_retry: Option<Retries>,
}

/// Path MTU: the largest payload of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mtu {
    /// 256 bytes.
    B256,
    /// 512 bytes.
    B512,
    /// 1024 bytes.
    B1024,
    /// 2048 bytes.
    B2048,
    /// 4096 bytes.
    B4096,
}

impl Mtu {
    /// All of them, smallest first.
    pub const ALL: [Self; 5] = [
        Self::B256,
        Self::B512,
        Self::B1024,
        Self::B2048,
        Self::B4096,
    ];

    /// In bytes.
    #[inline]
    pub const fn bytes(self) -> u32 {
        256 << self as u32
    }

    /// The specification's code, 1 to 5.
    pub const fn code(self) -> u8 {
        self as u8 + 1
    }

    /// From the specification's code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }

    /// The largest that fits an interface of `link_mtu` bytes with 80 bytes kept for headers, as the kernel
    /// reckons it.
    pub fn for_link(link_mtu: u32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .rev()
            .find(|mtu| mtu.bytes() + 80 <= link_mtu)
    }
}

/// The time that an RNR NAK timer code asks for (IBA table 45).
pub fn rnr_delay(code: u8) -> Duration {
    const MICROS: [u32; 32] = [
        655_360, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1_280, 1_920, 2_560,
        3_840, 5_120, 7_680, 10_240, 15_360, 20_480, 30_720, 40_960, 61_440, 81_920, 122_880,
        163_840, 245_760, 327_680, 491_520,
    ];
    Duration::from_micros(u64::from(MICROS[usize::from(code & 31)]))
}

/// The time that a local ACK timeout code asks for: 4.096 µs · 2^code; code 0 waits for ever (IBA 9.7.6.1.3).
pub fn ack_timeout(code: u8) -> Option<Duration> {
    match code & 31 {
        0 => None,
        code => Some(Duration::from_nanos(4_096 << code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtu_codes_are_the_specification_s() {
        assert_eq!(Mtu::ALL.map(Mtu::bytes), [256, 512, 1024, 2048, 4096]);
        for mtu in Mtu::ALL {
            assert_eq!(Mtu::from_code(mtu.code()), Some(mtu));
        }
        assert_eq!(Mtu::from_code(0), None);
        assert_eq!(Mtu::from_code(6), None);
        assert_eq!(Mtu::for_link(1500), Some(Mtu::B1024));
        assert_eq!(Mtu::for_link(65_536), Some(Mtu::B4096));
        assert_eq!(Mtu::for_link(300), None);
    }

    #[test]
    fn timer_codes_are_the_specification_s() {
        assert_eq!(rnr_delay(0), Duration::from_micros(655_360));
        assert_eq!(rnr_delay(1), Duration::from_micros(10));
        assert_eq!(rnr_delay(31), Duration::from_micros(491_520));
        assert_eq!(ack_timeout(0), None);
        assert_eq!(ack_timeout(14), Some(Duration::from_nanos(67_108_864)));
    }

    #[test]
    fn a_gather_list_longer_than_the_limit_is_refused() {
        assert!(SgeList::new(&[Sge::default(); MAX_SGE]).is_some());
        assert!(SgeList::new(&[Sge::default(); MAX_SGE + 1]).is_none());
        assert!(InlineBytes::new(&[0; MAX_INLINE + 1]).is_none());
    }
}
