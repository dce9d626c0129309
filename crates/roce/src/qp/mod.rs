//! Queue pairs: one protocol engine each, for the services RC, UC and UD.
//!
//! [`Qp`] owns no memory, queue of receives, socket or clock. What it needs of these it asks of a
//! [`Host`]; packets it fills into a [`Transmit`].

mod congestion;
mod hold;
mod inbound;
mod link;
mod psn_set;
mod reorder;
mod requester;
mod responder;
mod selective;
mod send_queue;
mod state;
mod unreliable;

use std::borrow::Borrow;
use std::time::Duration;

use thiserror::Error;

use crate::host::{Arrival, Host, Transmit};
use crate::time::Instant;
use crate::verbs::{
    Completion, CompletionKind, Local, Operation, QpAttr, QpEvent, QpState, QpType, SendWork,
    Status,
};
use crate::wire::{Headers, Opcode, Operation as Packet, Qpn};

use link::Link;
use requester::Requester;
use responder::{Fatal, Responder};
pub use state::{AttrMask, ModifyError};
use unreliable::{Receiver, Sender};

/// Most packets of one message, so that PSNs in flight stay comparable.
const MAX_MESSAGE_PACKETS: u64 = 1 << 22;

/// Why work was refused at posting. Nothing was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PostError {
    /// Sends are taken in RTS and SQD, and flushed in SQE and error.
    #[error("the queue pair is in state {0:?}, which takes no sends")]
    State(QpState),
    /// The service does not have this operation.
    #[error("the service {0:?} does not have this operation")]
    Operation(QpType),
    /// READs and atomics need registered memory for their result, atomics exactly eight bytes.
    #[error("the local memory does not suit the operation")]
    Local,
    /// A datagram without an address, or a connected send with one.
    #[error("datagrams need a destination, connected sends have none")]
    Destination,
}

/// What a queue pair counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that were sent again.
    pub retransmitted: u64,
    /// Requests that arrived ahead of a gap.
    pub out_of_order: u64,
    /// Requests that had arrived before.
    pub duplicates: u64,
    /// Packets and messages dropped: no receive, wrong Q_Key, a gap, or not from the peer.
    pub dropped: u64,
}

/// One queue pair.
///
/// Its methods come in four families:
/// - getters: [`state`](Self::state), [`qpn`](Self::qpn), [`counters`](Self::counters), …
/// - commands: [`modify`](Self::modify), [`post_send`](Self::post_send), [`flush_receives`](Self::flush_receives)
/// - inputs: [`handle_packet`](Self::handle_packet), [`handle_timeout`](Self::handle_timeout)
/// - outputs: [`poll_transmit`](Self::poll_transmit), [`poll_timeout`](Self::poll_timeout)
///
/// After any command or input call `poll_transmit` until it returns false, then `poll_timeout` for when to come back
/// with `handle_timeout`. A burst of packets may be handed in before `poll_transmit`: acknowledgements then coalesce.
#[derive(Debug)]
pub struct Qp {
    link: Link,
    state: QpState,
    service: Service,
    drain_reported: bool,
    strangers: u64,
}

#[derive(Debug)]
enum Service {
    Rc(Box<(Requester, Responder)>),
    Unreliable(Box<(Sender, Receiver)>),
}

impl Service {
    fn new(qp_type: QpType) -> Self {
        match qp_type {
            QpType::Rc => Self::Rc(Box::new((Requester::new(), Responder::new()))),
            QpType::Uc | QpType::Ud => {
                Self::Unreliable(Box::new((Sender::new(), Receiver::default())))
            }
        }
    }
}

impl Qp {
    /// A queue pair in the reset state.
    pub fn new(qp_type: QpType, qpn: Qpn) -> Self {
        Self {
            link: Link::new(qp_type, qpn),
            state: QpState::Reset,
            service: Service::new(qp_type),
            drain_reported: false,
            strangers: 0,
        }
    }

    /// Its state.
    #[inline]
    pub fn state(&self) -> QpState {
        self.state
    }

    /// Its service.
    #[inline]
    pub fn qp_type(&self) -> QpType {
        self.link.qp_type
    }

    /// Its number.
    #[inline]
    pub fn qpn(&self) -> Qpn {
        self.link.qpn
    }

    /// All attributes, as they are now.
    pub fn attr(&self) -> QpAttr {
        QpAttr {
            state: Some(self.state),
            access: Some(self.link.access),
            pkey: Some(self.link.pkey),
            qkey: Some(self.link.qkey),
            path: self.link.path,
            path_mtu: Some(self.link.mtu),
            dest_qpn: Some(self.link.dest_qpn),
            rq_psn: Some(self.link.rq_psn),
            sq_psn: Some(self.link.sq_psn),
            max_dest_rd_atomic: Some(self.link.max_dest_rd_atomic),
            max_rd_atomic: Some(self.link.max_rd_atomic),
            min_rnr_timer: Some(self.link.min_rnr_timer),
            timeout: Some(self.link.timeout),
            retry_count: Some(self.link.retry_count),
            rnr_retry: Some(self.link.rnr_retry),
        }
    }

    /// What it counted.
    pub fn counters(&self) -> Counters {
        match &self.service {
            Service::Rc(rc) => {
                let (out_of_order, duplicates) = rc.1.counts();
                Counters {
                    retransmitted: rc.0.retransmitted(),
                    out_of_order,
                    duplicates,
                    dropped: self.strangers,
                }
            }
            Service::Unreliable(pair) => Counters {
                dropped: self.strangers + pair.1.dropped,
                ..Counters::default()
            },
        }
    }

    /// Pieces of send work that are posted and not complete, unsignaled ones included.
    #[inline]
    pub fn send_queue_len(&self) -> usize {
        match &self.service {
            Service::Rc(rc) => rc.0.len(),
            Service::Unreliable(pair) => pair.0.len(),
        }
    }

    /// Bytes in flight to the peer, overheads included (RC).
    #[inline]
    pub fn in_flight(&self) -> u32 {
        match &self.service {
            Service::Rc(rc) => rc.0.in_flight(),
            Service::Unreliable(_) => 0,
        }
    }

    /// Whether requests wait to be sent (RC): for room in the burst, in a window, or for a response.
    #[inline]
    pub fn has_unsent(&self) -> bool {
        match &self.service {
            Service::Rc(rc) => rc.0.has_work(),
            Service::Unreliable(_) => false,
        }
    }

    /// The smoothed round trip to the peer (RC), once one was measured.
    pub fn round_trip(&self) -> Option<Duration> {
        match &self.service {
            Service::Rc(rc) => rc.0.round_trip(),
            Service::Unreliable(_) => None,
        }
    }

    /// How long an acknowledgement may wait for a packet to ride with. Zero, the default, sends it with the next
    /// `poll_transmit`.
    pub fn set_ack_delay(&mut self, delay: Duration) {
        self.link.ack_delay = delay;
    }

    /// Bytes in flight towards us that our receive buffer has room for, as told to software peers.
    pub fn set_receive_budget(&mut self, bytes: u32) {
        self.link.receive_budget = bytes;
    }

    /// The peer is a software RNIC that knows the extensions, and takes `budget` bytes in flight: use
    /// selective repeat and delay-based congestion control (RC; nothing on the other services).
    pub fn use_extensions(&mut self, budget: u32) {
        if let Service::Rc(rc) = &mut self.service {
            rc.0.use_extensions(&self.link, budget);
            rc.1.use_extensions();
        }
    }

    /// Takes WRITEs in parts ([`Offer::PARTS`](crate::wire::extension::Offer::PARTS)). For a NIC that offers it: the
    /// first may come before the peer's own offer does.
    pub fn accept_parts(&mut self) {
        self.link.accepts_parts = true;
    }

    /// The peer takes WRITEs in parts: sends those of few packets so. Also answers READs with packets that are all alike.
    pub fn send_parts(&mut self) {
        self.link.sends_parts = true;
    }

    /// Changes state or attributes (IBA 11.2.5.2). Going to error flushes, going to reset forgets everything.
    pub fn modify(&mut self, attr: &QpAttr, host: &mut impl Host) -> Result<(), ModifyError> {
        let from = self.state;
        let to = state::transition(self.link.qp_type, from, attr)?;
        self.link.apply(attr);
        match to {
            QpState::Reset => {
                self.service = Service::new(self.link.qp_type);
                let before = &self.link;
                self.link = Link {
                    ack_delay: before.ack_delay,
                    receive_budget: before.receive_budget,
                    accepts_parts: before.accepts_parts,
                    ..Link::new(self.link.qp_type, self.link.qpn)
                };
            }
            QpState::Err => {
                self.fail(None, None, host);
                return Ok(());
            }
            QpState::Rtr if from == QpState::Init => match &mut self.service {
                Service::Rc(rc) => rc.1.start(&self.link),
                Service::Unreliable(pair) => pair.1.start(&self.link),
            },
            QpState::Rts if from == QpState::Rtr => match &mut self.service {
                Service::Rc(rc) => rc.0.start(&self.link),
                Service::Unreliable(pair) => pair.0.start(&self.link),
            },
            _ => {}
        }
        if let Service::Rc(rc) = &mut self.service {
            rc.0.set_draining(to == QpState::Sqd);
        }
        self.drain_reported &= to == QpState::Sqd;
        self.state = to;
        self.report_drained(host);
        Ok(())
    }

    /// Queues a piece of send work. In error states it is flushed at once.
    pub fn post_send(
        &mut self,
        work: impl Borrow<SendWork>,
        host: &mut impl Host,
    ) -> Result<(), PostError> {
        let work = work.borrow();
        if matches!(self.state, QpState::Reset | QpState::Init | QpState::Rtr) {
            return Err(PostError::State(self.state));
        }
        let failed = self.check(work)?;
        if matches!(self.state, QpState::Sqe | QpState::Err) {
            let kind = work.operation.completion_kind();
            host.complete_send(Completion::of(
                work.wr_id,
                self.link.qpn,
                kind,
                Status::Flushed,
            ));
            return Ok(());
        }
        match &mut self.service {
            Service::Rc(rc) => rc.0.push(&self.link, work, failed),
            Service::Unreliable(pair) => pair.0.push(&self.link, work, failed),
        }
        Ok(())
    }

    /// What is wrong with `work`: refused at once, or, where hardware finds it only when it works on it, failed in its
    /// turn.
    fn check(&self, work: &SendWork) -> Result<Option<Status>, PostError> {
        let qp_type = self.link.qp_type;
        let supported = match work.operation {
            Operation::Send | Operation::SendWithImm(_) => true,
            Operation::Write(_) | Operation::WriteWithImm(..) => qp_type != QpType::Ud,
            _ => qp_type == QpType::Rc,
        };
        if !supported {
            return Err(PostError::Operation(qp_type));
        }
        if work.destination.is_some() != (qp_type == QpType::Ud) {
            return Err(PostError::Destination);
        }
        let length = work.local.total();
        let gathers = matches!(work.local, Local::Gather(_));
        if work.operation.has_response() && !gathers || work.operation.is_atomic() && length != 8 {
            return Err(PostError::Local);
        }
        if work.operation.has_response() && self.link.max_rd_atomic == 0 {
            return Ok(Some(Status::LocalQpOperation));
        }
        let mtu = u64::from(self.link.mtu());
        let longest = match qp_type {
            QpType::Ud => mtu,
            QpType::Rc | QpType::Uc => inbound::MAX_MESSAGE.min(MAX_MESSAGE_PACKETS * mtu),
        };
        Ok((length > longest).then_some(Status::LocalLength))
    }

    /// Receives were posted: in the error state they are flushed.
    pub fn flush_receives(&mut self, host: &mut impl Host) {
        if self.state == QpState::Err {
            while let Some(recv) = host.take_own_recv() {
                host.complete_recv(Completion::of(
                    recv.wr_id,
                    self.link.qpn,
                    CompletionKind::Recv,
                    Status::Flushed,
                ));
            }
        }
    }

    /// A packet for this queue pair whose ICRC was found good.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        headers: &Headers,
        payload: &[u8],
        host: &mut impl Host,
    ) {
        let receives = match self.state {
            QpState::Reset | QpState::Init => false,
            // In error only the last word of a reliable connection is repeated.
            QpState::Err => matches!(&self.service, Service::Rc(rc) if rc.1.has_last_word()),
            QpState::Rtr | QpState::Rts | QpState::Sqd | QpState::Sqe => true,
        };
        let is_peer = match (&self.link.path, self.link.qp_type) {
            (_, QpType::Ud) => true,
            (Some(path), _) => path.destination == arrival.source,
            (None, _) => false,
        };
        // The upper bit of a P_Key tells full from limited membership (IBA 10.9.1).
        let same_partition = headers.bth.pkey & 0x7FFF == self.link.pkey & 0x7FFF;
        if !receives || !is_peer || !same_partition || headers.bth.version != 0 {
            self.strangers += 1;
            return;
        }
        match (&self.service, headers.bth.opcode, self.link.qp_type) {
            (Service::Rc(_), opcode, _) => {
                self.handle_reliable(now, opcode, headers, payload, host)
            }
            (Service::Unreliable(_), Opcode::Uc(packet), QpType::Uc) => {
                let Service::Unreliable(pair) = &mut self.service else {
                    return;
                };
                let first = !std::mem::replace(&mut pair.1.heard, true);
                let taken = pair
                    .1
                    .handle_connected(&self.link, packet, headers, payload, host);
                self.report_established(first, host);
                if taken.is_err() {
                    self.fail(None, None, host);
                }
            }
            (Service::Unreliable(_), Opcode::Ud(_), QpType::Ud) => {
                let Service::Unreliable(pair) = &mut self.service else {
                    return;
                };
                pair.1
                    .handle_datagram(&self.link, arrival, headers, payload, host);
            }
            _ => self.strangers += 1,
        }
    }

    fn handle_reliable(
        &mut self,
        now: Instant,
        opcode: Opcode,
        headers: &Headers,
        payload: &[u8],
        host: &mut impl Host,
    ) {
        let Service::Rc(rc) = &mut self.service else {
            return;
        };
        let (requester, responder) = &mut **rc;
        let sends = matches!(self.state, QpState::Rts | QpState::Sqd);
        match opcode {
            Opcode::Rc(packet) if !packet.is_response() => {
                let first = responder.is_first_heard();
                let taken =
                    responder.handle_request(now, &self.link, packet, headers, payload, host);
                self.report_established(first, host);
                if let Err(Fatal(event)) = taken {
                    self.fail(None, event, host);
                }
                return;
            }
            Opcode::Rc(Packet::Acknowledge) if sends => {
                let Some(aeth) = headers.aeth else { return };
                requester.handle_acknowledge(now, &self.link, headers.bth.psn, aeth, host);
            }
            Opcode::Rc(Packet::AtomicAcknowledge) if sends => {
                requester.handle_atomic_response(now, &self.link, headers, host);
            }
            Opcode::Rc(_) if sends => {
                requester.handle_read_response(now, &self.link, headers, payload, host)
            }
            Opcode::Sack if sends => {
                let Some(sack) = &headers.sack else { return };
                requester.handle_sack(now, &self.link, sack, host);
            }
            Opcode::Cnp => requester.handle_notification(now),
            _ => self.strangers += 1,
        }
        self.settle(host);
    }

    /// Time has passed: call it at [`poll_timeout`](Self::poll_timeout)'s moment; early calls do nothing.
    pub fn handle_timeout(&mut self, now: Instant, host: &mut impl Host) {
        if matches!(self.state, QpState::Rts | QpState::Sqd)
            && let Service::Rc(rc) = &mut self.service
        {
            rc.0.handle_timeout(now, &self.link);
            self.settle(host);
        }
    }

    /// Fills `out` with what is to be sent at `now`. Whether something is left that found no room.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        host: &mut impl Host,
        out: &mut impl Transmit,
    ) -> bool {
        let sends = matches!(self.state, QpState::Rts | QpState::Sqd);
        match &mut self.service {
            Service::Rc(rc) => {
                let (requester, responder) = &mut **rc;
                let sent =
                    sends && requester.has_work() && requester.transmit(now, &self.link, out);
                let mut answered = Ok(());
                if responder.has_work(now) || sent {
                    answered =
                        responder.transmit(now, &self.link, self.link.receive_budget, sent, out);
                }
                let left =
                    !out.has_room() && (responder.has_work(now) || sends && requester.has_work());
                if let Err(Fatal(event)) = answered {
                    self.fail(None, event, host);
                    return false;
                }
                self.settle(host);
                left
            }
            Service::Unreliable(pair) => {
                if !sends {
                    return false;
                }
                let draining = self.state == QpState::Sqd;
                if pair.0.transmit(&self.link, host, out, draining).is_err() {
                    self.state = QpState::Sqe;
                    pair.0.flush(&self.link, host);
                }
                let left = !out.has_room() && pair.0.len() != 0;
                self.report_drained(host);
                left
            }
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) and `poll_transmit` next, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let Service::Rc(rc) = &self.service else {
            return None;
        };
        let sending = match self.state {
            QpState::Rts | QpState::Sqd => rc.0.poll_timeout(),
            _ => None,
        };
        match (sending, rc.1.poll_timeout()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// Draws the consequences of what the requester did.
    fn settle(&mut self, host: &mut impl Host) {
        let Service::Rc(rc) = &self.service else {
            return;
        };
        match rc.0.failure() {
            Some(status) if self.state != QpState::Err => self.fail(Some(status), None, host),
            _ => self.report_drained(host),
        }
    }

    /// Goes to the error state: the oldest send ends with `status`, everything else is flushed.
    fn fail(&mut self, status: Option<Status>, event: Option<QpEvent>, host: &mut impl Host) {
        self.state = QpState::Err;
        match &mut self.service {
            Service::Rc(rc) => {
                rc.0.flush(&self.link, status, host);
                rc.1.flush(self.link.qpn, host);
            }
            Service::Unreliable(pair) => {
                pair.0.flush(&self.link, host);
                pair.1.inbound.flush(self.link.qpn, host);
            }
        }
        self.flush_receives(host);
        if let Some(event) = event {
            host.event(event);
        }
    }

    fn report_established(&mut self, first: bool, host: &mut impl Host) {
        if first && self.state == QpState::Rtr {
            host.event(QpEvent::CommunicationEstablished);
        }
    }

    fn report_drained(&mut self, host: &mut impl Host) {
        let drained = self.state == QpState::Sqd
            && match &self.service {
                Service::Rc(rc) => rc.0.is_drained(),
                Service::Unreliable(pair) => pair.0.is_idle(),
            };
        if drained && !self.drain_reported {
            self.drain_reported = true;
            host.event(QpEvent::SendQueueDrained);
        }
    }
}
