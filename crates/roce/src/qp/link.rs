//! What a queue pair knows of its peer and of itself, and the packets that follow from it.

use std::time::Duration;

use crate::host::Payload;
use crate::verbs::{
    Access, Local, Mtu, Operation, Path, QpAttr, QpType, Retries, SendFlags, SendWork,
};
use crate::wire::{
    AtomicEth, Bth, DEFAULT_PKEY, Headers, Ieth, Immediate, Opcode, Operation as Packet, Psn, Qpn,
    Reth,
};

use super::congestion::STRANGER_WINDOW;
use super::send_queue::Wqe;

/// Payload of a READ request's responses, where no more is known: as many packets as one offloaded burst carries.
const READ_BURST: u32 = 61_440;

/// Most packets and bursts that a READ request asks for.
const MOST_READ_PACKETS: u32 = 240;
const MOST_READ_BURSTS: u32 = 4;

/// Most packets of a WRITE that leaves in parts: ahead of a gap, parts wait in bounded memory, while the packets of an
/// ordinary WRITE are placed.
const MOST_PARTS: u32 = 16;

/// The attributes of a queue pair, as `modify` set them.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) qp_type: QpType,
    pub(super) qpn: Qpn,
    pub(super) path: Option<Path>,
    pub(super) mtu: Mtu,
    pub(super) dest_qpn: Qpn,
    pub(super) pkey: u16,
    pub(super) qkey: u32,
    pub(super) access: Access,
    pub(super) max_rd_atomic: u8,
    pub(super) max_dest_rd_atomic: u8,
    pub(super) min_rnr_timer: u8,
    pub(super) timeout: Option<Duration>,
    pub(super) retry_count: Retries,
    pub(super) rnr_retry: Retries,
    pub(super) rq_psn: Psn,
    pub(super) sq_psn: Psn,
    /// How long an acknowledgement may wait for company.
    pub(super) ack_delay: Duration,
    /// Bytes that we can take in flight, told to software peers.
    pub(super) receive_budget: u32,
    /// WRITEs in parts are taken, and sent.
    pub(super) accepts_parts: bool,
    pub(super) sends_parts: bool,
}

impl Link {
    pub(super) fn new(qp_type: QpType, qpn: Qpn) -> Self {
        Self {
            qp_type,
            qpn,
            path: None,
            mtu: Mtu::B4096,
            dest_qpn: Qpn::default(),
            pkey: DEFAULT_PKEY,
            qkey: 0,
            access: Access::empty(),
            max_rd_atomic: 0,
            max_dest_rd_atomic: 0,
            min_rnr_timer: 0,
            timeout: None,
            retry_count: Retries::Limited(0),
            rnr_retry: Retries::Limited(0),
            rq_psn: Psn::default(),
            sq_psn: Psn::default(),
            ack_delay: Duration::ZERO,
            receive_budget: STRANGER_WINDOW,
            accepts_parts: false,
            sends_parts: false,
        }
    }

    pub(super) fn apply(&mut self, attr: &QpAttr) {
        fn set<T: Copy>(field: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *field = value;
            }
        }
        self.path = attr.path.or(self.path);
        set(&mut self.mtu, attr.path_mtu);
        set(&mut self.dest_qpn, attr.dest_qpn);
        set(&mut self.pkey, attr.pkey);
        set(&mut self.qkey, attr.qkey);
        set(&mut self.access, attr.access);
        set(&mut self.max_rd_atomic, attr.max_rd_atomic);
        set(&mut self.max_dest_rd_atomic, attr.max_dest_rd_atomic);
        set(&mut self.min_rnr_timer, attr.min_rnr_timer);
        set(&mut self.timeout, attr.timeout);
        set(&mut self.retry_count, attr.retry_count);
        set(&mut self.rnr_retry, attr.rnr_retry);
        set(&mut self.rq_psn, attr.rq_psn);
        set(&mut self.sq_psn, attr.sq_psn);
    }

    /// Path MTU in bytes.
    #[inline]
    pub(super) fn mtu(&self) -> u32 {
        self.mtu.bytes()
    }

    /// Packets that the responses to one READ request have at most. Longer READs are asked for in several
    /// requests with PSNs that follow each other, which keeps what a peer sends at once within our buffer: a quarter of
    /// what we can take from a software peer.
    #[inline]
    pub(super) fn read_chunk(&self) -> u32 {
        let bursts = match self.sends_parts {
            true => (self.receive_budget / 4 / READ_BURST).clamp(1, MOST_READ_BURSTS),
            false => 1,
        };
        (bursts * READ_BURST / self.mtu()).min(MOST_READ_PACKETS)
    }

    /// A packet to the peer without extension headers.
    #[inline]
    pub(super) fn headers(&self, packet: Packet, psn: Psn) -> Headers {
        let opcode = if self.qp_type == QpType::Uc {
            Opcode::Uc(packet)
        } else {
            Opcode::Rc(packet)
        };
        self.headers_with(opcode, psn)
    }

    /// The same for any opcode.
    #[inline]
    pub(super) fn headers_with(&self, opcode: Opcode, psn: Psn) -> Headers {
        let mut bth = Bth::new(opcode, self.dest_qpn, psn);
        bth.pkey = self.pkey;
        bth.migrated = true;
        Headers::new(bth)
    }

    /// Whether `work` leaves in parts. The first packet of an ordinary WRITE is longer than the others and leaves alone,
    /// which costs as much as a burst does; parts are all alike, and those of several messages share bursts. With an immediate
    /// value it does not: the receiver reports the length of the whole message, which no part tells.
    pub(super) fn is_in_parts(&self, work: &SendWork, packets: u32) -> bool {
        let is_write = matches!(work.operation, Operation::Write(_));
        self.sends_parts && is_write && (2..=MOST_PARTS).contains(&packets)
    }

    /// Packet `index` of `wqe`; a READ request asks for `count` packets from there on.
    pub(super) fn request<'a>(
        &self,
        wqe: &'a Wqe,
        index: u32,
        count: u32,
        ack_request: bool,
    ) -> (Headers, Payload<'a>) {
        let offset = wqe.bytes_before(index, self.mtu());
        let length = wqe.bytes_before(index + count, self.mtu()) - offset;
        let first = index == 0 || wqe.in_parts;
        let last = index + 1 == wqe.packets;
        let operation = &wqe.work.operation;
        let packet = if wqe.in_parts && !last {
            Packet::WriteOnly
        } else {
            packet_of(operation, first, last)
        };
        let mut headers = self.headers(packet, wqe.first + index);
        headers.bth.ack_request = ack_request;
        match *operation {
            Operation::Send => {}
            Operation::SendWithImm(imm) => headers.imm = last.then_some(Immediate(imm)),
            Operation::SendWithInvalidate(rkey) => headers.ieth = last.then_some(Ieth { rkey }),
            Operation::Write(remote) | Operation::WriteWithImm(remote, _) => {
                headers.reth = first.then_some(Reth {
                    va: remote.addr.wrapping_add(u64::from(offset)),
                    rkey: remote.rkey,
                    length: wqe.length - offset,
                });
                if let Operation::WriteWithImm(_, imm) = *operation {
                    headers.imm = last.then_some(Immediate(imm));
                }
            }
            Operation::Read(remote) => {
                let va = remote.addr.wrapping_add(u64::from(offset));
                headers.reth = Some(Reth {
                    va,
                    rkey: remote.rkey,
                    length,
                });
                return (headers, Payload::Empty);
            }
            Operation::FetchAdd { remote, add } => {
                headers.atomic = Some(AtomicEth {
                    va: remote.addr,
                    rkey: remote.rkey,
                    swap_or_add: add,
                    compare: 0,
                });
                return (headers, Payload::Empty);
            }
            Operation::CompareSwap {
                remote,
                compare,
                swap,
            } => {
                headers.atomic = Some(AtomicEth {
                    va: remote.addr,
                    rkey: remote.rkey,
                    swap_or_add: swap,
                    compare,
                });
                return (headers, Payload::Empty);
            }
        }
        headers.bth.solicited = last
            && wqe.work.flags.contains(SendFlags::SOLICITED)
            && !matches!(operation, Operation::Write(_));
        headers.bth.pad = pad(length);
        (headers, local_payload(&wqe.work.local, offset, length))
    }
}

/// The bytes of a work's local side as a payload.
pub(super) fn local_payload(local: &Local, offset: u32, length: u32) -> Payload<'_> {
    match local {
        _ if length == 0 => Payload::Empty,
        Local::Gather(from) => Payload::Gather {
            from,
            offset: u64::from(offset),
            length,
        },
        Local::Inline(inline) => {
            Payload::Bytes(&inline.as_slice()[offset as usize..(offset + length) as usize])
        }
    }
}

/// Pad bytes that bring a payload to a multiple of four.
#[inline]
pub(super) fn pad(length: u32) -> u8 {
    (length.wrapping_neg() & 3) as u8
}

#[inline]
fn packet_of(operation: &Operation, first: bool, last: bool) -> Packet {
    match operation {
        Operation::Send | Operation::SendWithImm(_) | Operation::SendWithInvalidate(_) => {
            match (first, last) {
                (true, false) => Packet::SendFirst,
                (false, false) => Packet::SendMiddle,
                (true, true) => match operation {
                    Operation::SendWithImm(_) => Packet::SendOnlyImm,
                    Operation::SendWithInvalidate(_) => Packet::SendOnlyInvalidate,
                    _ => Packet::SendOnly,
                },
                (false, true) => match operation {
                    Operation::SendWithImm(_) => Packet::SendLastImm,
                    Operation::SendWithInvalidate(_) => Packet::SendLastInvalidate,
                    _ => Packet::SendLast,
                },
            }
        }
        Operation::Write(_) => match (first, last) {
            (true, true) => Packet::WriteOnly,
            (true, false) => Packet::WriteFirst,
            (false, false) => Packet::WriteMiddle,
            (false, true) => Packet::WriteLast,
        },
        Operation::WriteWithImm(..) => match (first, last) {
            (true, true) => Packet::WriteOnlyImm,
            (true, false) => Packet::WriteFirst,
            (false, false) => Packet::WriteMiddle,
            (false, true) => Packet::WriteLastImm,
        },
        Operation::Read(_) => Packet::ReadRequest,
        Operation::FetchAdd { .. } => Packet::FetchAdd,
        Operation::CompareSwap { .. } => Packet::CompareSwap,
    }
}
