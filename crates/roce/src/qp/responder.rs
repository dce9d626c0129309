//! Answers a peer's requests on one reliable connection: orders, checks, places, acknowledges.
//!
//! IBA Vol. 1, 9.7 (reliable service). No I/O, no clock: retransmission is the requester's.

use std::collections::VecDeque;

use crate::host::{AtomicOp, Host, Payload, Transmit};
use crate::time::Instant;
use crate::verbs::{Access, QpEvent};
use crate::wire::{
    Aeth, AtomicAckEth, Headers, Key, NakCode, Opcode, Operation as Packet, Psn, Qpn, Syndrome,
};

use super::hold::Hold;
use super::inbound::{Inbound, MAX_MESSAGE, Refusal, Rules};
use super::link::{Link, pad};
use super::reorder::{REACH, Reorder};

/// Responses that may wait to be sent, beyond those that the peer has a right to.
const SPARE_RESPONSES: usize = 8;

#[derive(Debug)]
pub(super) struct Responder {
    /// The PSN of the next request.
    expected: Psn,
    /// Messages completed, modulo 2^24.
    msn: u32,
    inbound: Inbound,
    /// A NAK was sent; silence until the expected packet comes (IBA 9.7.5.2.8).
    awaiting: bool,
    /// What to say when the responses before it are sent.
    reply: Option<Reply>,
    reply_due: Instant,
    responses: VecDeque<Response>,
    /// Finished and unfinished READs and atomics, oldest first, for duplicates.
    resources: VecDeque<Resource>,
    reorder: Option<Box<Reorder>>,
    hold: Hold,
    /// The NAK that ended the connection: repeated to whoever has not heard it.
    last_word: Option<(Psn, NakCode)>,
    heard: bool,
    out_of_order: u64,
    duplicates: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Ack,
    NotReady,
    Nak(Psn, NakCode),
}

#[derive(Clone, Copy, Debug)]
enum Response {
    Read {
        first: Psn,
        msn: u32,
        rkey: Key,
        va: u64,
        length: u32,
        sent: u32,
    },
    Atomic {
        psn: Psn,
        msn: u32,
        original: u64,
    },
}

#[derive(Clone, Copy, Debug)]
enum Resource {
    Read {
        first: Psn,
        packets: u32,
        msn: u32,
        rkey: Key,
        va: u64,
        length: u32,
    },
    Atomic {
        psn: Psn,
        msn: u32,
        original: u64,
    },
}

/// A request that ends the connection, and the event that says so where no completion does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fatal(pub(super) Option<QpEvent>);

/// How the expected request fared.
enum Outcome {
    /// Carried out; the next expected PSN is so much further.
    Done(u32),
    /// Nothing was done: no receive is posted.
    NotReady,
    /// Refused for good.
    Refused(NakCode, Option<QpEvent>),
}

impl Responder {
    pub(super) fn new() -> Self {
        Self {
            expected: Psn::default(),
            msn: 0,
            inbound: Inbound::default(),
            awaiting: false,
            reply: None,
            reply_due: Instant::ZERO,
            responses: VecDeque::new(),
            resources: VecDeque::new(),
            reorder: None,
            hold: Hold::new(),
            last_word: None,
            heard: false,
            out_of_order: 0,
            duplicates: 0,
        }
    }

    /// Starts expecting the link's first PSN.
    pub(super) fn start(&mut self, link: &Link) {
        self.expected = link.rq_psn;
    }

    /// Takes packets ahead of a gap from here on.
    pub(super) fn use_extensions(&mut self) {
        if self.reorder.is_none() {
            // What comes behind a gap is reported from here on, also where a NAK, perhaps lost, was all there was to say.
            self.awaiting &= self.reply == Some(Reply::NotReady);
            self.reorder = Some(Box::new(Reorder::new()));
        }
    }

    /// Whether the connection was ended by a NAK, which latecomers still have to hear.
    pub(super) fn has_last_word(&self) -> bool {
        self.last_word.is_some()
    }

    /// Requests that came ahead of a gap, and requests that came again.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.out_of_order, self.duplicates)
    }

    /// Whether this is the first request ever heard.
    pub(super) fn is_first_heard(&mut self) -> bool {
        !std::mem::replace(&mut self.heard, true)
    }

    pub(super) fn flush(&mut self, qpn: Qpn, host: &mut impl Host) {
        self.inbound.flush(qpn, host);
        self.responses.clear();
        if self.last_word.is_none() {
            self.reply = None;
        }
    }

    /// A request of the peer.
    pub(super) fn handle_request(
        &mut self,
        now: Instant,
        link: &Link,
        packet: Packet,
        headers: &Headers,
        payload: &[u8],
        host: &mut impl Host,
    ) -> Result<(), Fatal> {
        if let Some((psn, code)) = self.last_word {
            self.reply = Some(Reply::Nak(psn, code));
            self.reply_due = now;
            return Ok(());
        }
        let ahead = headers.bth.psn.since(self.expected);
        if ahead < 0 {
            self.duplicates += 1;
            self.repeat(now, link, packet, headers);
            return Ok(());
        }
        if ahead > 0 {
            self.out_of_order += 1;
            self.on_ahead(now, link, packet, headers, payload, ahead as u32, host);
            return Ok(());
        }
        self.in_order(now, link, packet, headers, payload, host)?;
        self.catch_up(now, link, host)
    }

    /// The expected request.
    fn in_order(
        &mut self,
        now: Instant,
        link: &Link,
        packet: Packet,
        headers: &Headers,
        payload: &[u8],
        host: &mut impl Host,
    ) -> Result<(), Fatal> {
        self.awaiting = false;
        match self.execute(link, packet, headers, payload, host) {
            Outcome::Done(psns) => {
                let next = self.expected + psns;
                if let Some(reorder) = self.reorder.as_mut().filter(|reorder| !reorder.is_empty()) {
                    reorder.forget(self.expected, next);
                }
                self.expected = next;
                self.reply = self.reply.filter(|&reply| reply == Reply::Ack);
                if packet.is_send() || packet.is_write() {
                    let kept_until = self.hold.on_request(now);
                    if headers.bth.ack_request {
                        if self.reply != Some(Reply::Ack) {
                            self.reply_due = now + link.ack_delay;
                        } else if let Some(until) = kept_until {
                            self.reply_due = until;
                        }
                        self.reply = Some(Reply::Ack);
                    }
                } else {
                    // The response to come acknowledges everything before it.
                    self.reply = None;
                    self.hold.on_sent(false);
                }
                Ok(())
            }
            Outcome::NotReady => {
                self.awaiting = true;
                self.reply = Some(Reply::NotReady);
                self.reply_due = now;
                Ok(())
            }
            Outcome::Refused(code, event) => {
                self.refuse(now, self.expected, code);
                Err(Fatal(event))
            }
        }
    }

    fn refuse(&mut self, now: Instant, psn: Psn, code: NakCode) {
        self.last_word = Some((psn, code));
        self.reply = Some(Reply::Nak(psn, code));
        self.reply_due = now;
    }

    fn execute(
        &mut self,
        link: &Link,
        packet: Packet,
        headers: &Headers,
        payload: &[u8],
        host: &mut impl Host,
    ) -> Outcome {
        let invalid = Outcome::Refused(NakCode::InvalidRequest, Some(QpEvent::RequestError));
        if packet.is_send() || packet.is_write() {
            let rules = Rules {
                qpn: link.qpn,
                mtu: link.mtu(),
                access: link.access,
                parts: link.accepts_parts,
            };
            return match self.inbound.accept(rules, packet, headers, payload, host) {
                Ok(ended) => {
                    self.msn = (self.msn + u32::from(ended)) & 0xFF_FFFF;
                    Outcome::Done(1)
                }
                Err(Refusal::NotReady) => Outcome::NotReady,
                Err(Refusal::InvalidRequest) => invalid,
                Err(Refusal::RemoteAccess) => {
                    Outcome::Refused(NakCode::RemoteAccess, Some(QpEvent::AccessError))
                }
                Err(Refusal::TooLongForReceive) => Outcome::Refused(NakCode::InvalidRequest, None),
                Err(Refusal::LocalFault) => Outcome::Refused(NakCode::RemoteOperational, None),
            };
        }
        // Answers to duplicates that the peer no longer waits for may stand in the queue as well.
        let most = 2 * usize::from(link.max_dest_rd_atomic) + SPARE_RESPONSES;
        if self.inbound.is_under_way()
            || link.max_dest_rd_atomic == 0
            || self.responses.len() >= most
        {
            return invalid;
        }
        match (packet, headers.reth, headers.atomic) {
            (Packet::ReadRequest, Some(reth), _) => {
                let length = u64::from(reth.length);
                if !link.access.contains(Access::REMOTE_READ) || length > MAX_MESSAGE {
                    return invalid;
                }
                if length != 0
                    && host
                        .check_remote(reth.rkey, reth.va, length, Access::REMOTE_READ)
                        .is_err()
                {
                    return Outcome::Refused(NakCode::RemoteAccess, Some(QpEvent::AccessError));
                }
                self.msn = (self.msn + 1) & 0xFF_FFFF;
                let (first, msn, packets) =
                    (self.expected, self.msn, packets_of(reth.length, link.mtu()));
                let (rkey, va, length) = (reth.rkey, reth.va, reth.length);
                self.keep(
                    link,
                    Resource::Read {
                        first,
                        packets,
                        msn,
                        rkey,
                        va,
                        length,
                    },
                );
                self.responses.push_back(Response::Read {
                    first,
                    msn,
                    rkey,
                    va,
                    length,
                    sent: 0,
                });
                Outcome::Done(packets)
            }
            (Packet::CompareSwap | Packet::FetchAdd, _, Some(atomic)) => {
                if !link.access.contains(Access::REMOTE_ATOMIC) {
                    return invalid;
                }
                if host
                    .check_remote(atomic.rkey, atomic.va, 8, Access::REMOTE_ATOMIC)
                    .is_err()
                {
                    return Outcome::Refused(NakCode::RemoteAccess, Some(QpEvent::AccessError));
                }
                if atomic.va % 8 != 0 {
                    return invalid;
                }
                let op = if packet == Packet::FetchAdd {
                    AtomicOp::FetchAdd(atomic.swap_or_add)
                } else {
                    AtomicOp::CompareSwap {
                        compare: atomic.compare,
                        swap: atomic.swap_or_add,
                    }
                };
                let Ok(original) = host.atomic(atomic.rkey, atomic.va, op) else {
                    return Outcome::Refused(NakCode::RemoteAccess, Some(QpEvent::AccessError));
                };
                self.msn = (self.msn + 1) & 0xFF_FFFF;
                let (psn, msn) = (self.expected, self.msn);
                self.keep(link, Resource::Atomic { psn, msn, original });
                self.responses
                    .push_back(Response::Atomic { psn, msn, original });
                Outcome::Done(1)
            }
            _ => invalid,
        }
    }

    fn keep(&mut self, link: &Link, resource: Resource) {
        while self.resources.len() >= usize::from(link.max_dest_rd_atomic).max(1) {
            self.resources.pop_front();
        }
        self.resources.push_back(resource);
    }

    /// A request that came before (IBA 9.7.5.1.4): writes and sends are acknowledged again, READs answered again
    /// from memory, atomics from the saved result. Nothing is executed twice.
    fn repeat(&mut self, now: Instant, link: &Link, packet: Packet, headers: &Headers) {
        let psn = headers.bth.psn;
        if packet.is_send() || packet.is_write() {
            if self.reply.is_none() {
                self.reply = Some(Reply::Ack);
            }
            self.reply_due = now;
            self.hold.on_urgent();
            return;
        }
        let response = match (packet, headers.reth) {
            (Packet::ReadRequest, Some(reth)) => self.resources.iter().find_map(|resource| {
                let Resource::Read {
                    first,
                    packets,
                    msn,
                    rkey,
                    va,
                    length,
                } = *resource
                else {
                    return None;
                };
                let skipped = u32::try_from(psn.since(first))
                    .ok()
                    .filter(|&skipped| skipped < packets)?;
                let offset = u64::from(skipped) * u64::from(link.mtu());
                let within = reth.rkey == rkey
                    && reth.va == va.wrapping_add(offset)
                    && u64::from(reth.length) + offset <= u64::from(length);
                within.then_some(Response::Read {
                    first: psn,
                    msn,
                    rkey,
                    va: reth.va,
                    length: reth.length,
                    sent: 0,
                })
            }),
            (Packet::CompareSwap | Packet::FetchAdd, _) => {
                self.resources.iter().find_map(|resource| match *resource {
                    Resource::Atomic {
                        psn: at,
                        msn,
                        original,
                    } if at == psn => Some(Response::Atomic { psn, msn, original }),
                    _ => None,
                })
            }
            _ => None,
        };
        let Some(response) = response else { return };
        // What is still waiting to be sent from there on will be asked for again, or is this very response.
        self.responses
            .retain(|waiting| !response.covers(waiting, link.mtu()));
        if self.responses.len() < usize::from(link.max_dest_rd_atomic) + SPARE_RESPONSES {
            self.responses.push_back(response);
        }
    }

    /// A request ahead of a gap.
    #[expect(
        clippy::too_many_arguments,
        reason = "what arrived, and what judges it"
    )]
    fn on_ahead(
        &mut self,
        now: Instant,
        link: &Link,
        packet: Packet,
        headers: &Headers,
        payload: &[u8],
        ahead: u32,
        host: &mut impl Host,
    ) {
        let Some(reorder) = &mut self.reorder else {
            if !self.awaiting {
                self.awaiting = true;
                self.reply = Some(Reply::Nak(self.expected, NakCode::PsnSequence));
                self.reply_due = now;
            }
            return;
        };
        let psn = headers.bth.psn;
        let count = match (packet, headers.reth) {
            (Packet::ReadRequest, Some(reth)) => packets_of(reth.length, link.mtu()),
            _ => 1,
        };
        if ahead + count <= REACH && !reorder.has(psn) {
            let middle = (packet == Packet::WriteMiddle && payload.len() == link.mtu() as usize)
                .then(|| self.inbound.middle_ahead(link.mtu(), ahead))
                .flatten();
            match middle {
                Some((rkey, va)) => {
                    if host.place(rkey, va, payload).is_ok() {
                        reorder.note_placed(psn);
                    }
                }
                None => reorder.hold(headers, payload, count),
            }
        }
        // While the peer is asked to wait for a receive, that is what it has to hear.
        if !self.awaiting {
            self.reply = Some(Reply::Ack);
            self.reply_due = now;
            self.hold.on_urgent();
        }
    }

    /// Takes what waited behind a gap that is now filled.
    fn catch_up(&mut self, now: Instant, link: &Link, host: &mut impl Host) -> Result<(), Fatal> {
        loop {
            let Some(reorder) = self.reorder.as_mut().filter(|reorder| !reorder.is_empty()) else {
                return Ok(());
            };
            if self.awaiting {
                return Ok(());
            }
            if reorder.take_placed(self.expected) {
                self.inbound.count_placed(link.mtu());
                self.expected = self.expected.next();
                self.reply = Some(Reply::Ack);
                self.reply_due = now;
                self.hold.on_urgent();
            } else if let Some(held) = reorder.take_held(self.expected) {
                if let Some(packet) = held.headers.bth.opcode.operation() {
                    self.in_order(now, link, packet, &held.headers, &held.payload, host)?;
                }
                if let Some(reorder) = &mut self.reorder {
                    reorder.reuse(held);
                }
            } else {
                return Ok(());
            }
        }
    }

    /// When a delayed acknowledgement must go.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.reply.map(|_| self.reply_due)
    }

    /// Whether [`Responder::transmit`] might have something to send at `now`.
    #[inline]
    pub(super) fn has_work(&self, now: Instant) -> bool {
        !self.responses.is_empty() || (self.reply.is_some() && self.reply_due <= now)
    }

    /// Sends responses, then what there is to acknowledge, when it is due or rides along.
    pub(super) fn transmit(
        &mut self,
        now: Instant,
        link: &Link,
        budget: u32,
        rides_along: bool,
        out: &mut impl Transmit,
    ) -> Result<(), Fatal> {
        let mut rides_along = rides_along;
        while let Some(response) = self.responses.front_mut() {
            let Some(path) = &link.path else {
                return Ok(());
            };
            if !out.has_room() {
                return Ok(());
            }
            match response {
                Response::Read {
                    first,
                    msn,
                    rkey,
                    va,
                    length,
                    sent,
                } => {
                    let (psn, done) =
                        (*first + *sent, *sent + 1 == packets_of(*length, link.mtu()));
                    let offset = *sent * link.mtu();
                    let size = (*length - offset).min(link.mtu());
                    // A first or last response is longer than a middle one; where all are alike they fill bursts.
                    let packet = match (*sent == 0, done) {
                        _ if link.sends_parts => Packet::ReadResponseOnly,
                        (true, true) => Packet::ReadResponseOnly,
                        (true, false) => Packet::ReadResponseFirst,
                        (false, false) => Packet::ReadResponseMiddle,
                        (false, true) => Packet::ReadResponseLast,
                    };
                    let mut headers = link.headers(packet, psn);
                    headers.bth.pad = pad(size);
                    headers.aeth = packet.has_aeth().then_some(Aeth {
                        syndrome: Syndrome::ACK,
                        msn: *msn,
                    });
                    let payload = if size == 0 {
                        Payload::Empty
                    } else {
                        Payload::Exposed {
                            rkey: *rkey,
                            va: va.wrapping_add(u64::from(offset)),
                            length: size,
                        }
                    };
                    if out.send(path, &headers, payload).is_err() {
                        // The region went away between the request and its answer.
                        self.refuse(now, psn, NakCode::RemoteAccess);
                        self.responses.clear();
                        self.send_reply(link, budget, out);
                        return Err(Fatal(Some(QpEvent::AccessError)));
                    }
                    *sent += 1;
                    if done {
                        self.responses.pop_front();
                    }
                }
                Response::Atomic { psn, msn, original } => {
                    let mut headers = link.headers(Packet::AtomicAcknowledge, *psn);
                    headers.aeth = Some(Aeth {
                        syndrome: Syndrome::ACK,
                        msn: *msn,
                    });
                    headers.atomic_ack = Some(AtomicAckEth {
                        original: *original,
                    });
                    if out.send(path, &headers, Payload::Empty).is_ok() {
                        self.responses.pop_front();
                    }
                }
            }
            rides_along = true;
        }
        if self.reply.is_none() || !(rides_along || self.reply_due <= now) {
            return Ok(());
        }
        if rides_along && self.may_keep(now, out) {
            return Ok(());
        }
        self.hold.on_sent(!rides_along);
        self.send_reply(link, budget, out);
        Ok(())
    }

    /// Whether the acknowledgement that could ride now is kept back instead.
    fn may_keep(&mut self, now: Instant, out: &impl Transmit) -> bool {
        let is_complete = self.reorder.as_ref().is_some_and(|it| it.is_empty());
        if !is_complete || self.reply != Some(Reply::Ack) || !out.is_polled() {
            return false;
        }
        let kept_until = self.hold.keep(now);
        if let Some(until) = kept_until {
            self.reply_due = until;
        }
        kept_until.is_some()
    }

    fn send_reply(&mut self, link: &Link, budget: u32, out: &mut impl Transmit) {
        let (Some(reply), Some(path), true) = (self.reply, &link.path, out.has_room()) else {
            return;
        };
        let missing = self.reorder.as_ref().filter(|reorder| !reorder.is_empty());
        let mut headers = match (reply, missing) {
            (Reply::Ack, Some(reorder)) => {
                let mut headers = link.headers_with(Opcode::Sack, self.expected - 1);
                let window = (budget / link.mtu()).min(u32::from(u16::MAX)) as u16;
                headers.sack = Some(reorder.report(self.expected, window));
                headers
            }
            (Reply::Ack, None) => link.headers(Packet::Acknowledge, self.expected - 1),
            (Reply::NotReady, _) => link.headers(Packet::Acknowledge, self.expected),
            (Reply::Nak(psn, _), _) => link.headers(Packet::Acknowledge, psn),
        };
        let syndrome = match reply {
            Reply::Ack => Syndrome::ACK,
            Reply::NotReady => Syndrome::RnrNak {
                timer: link.min_rnr_timer,
            },
            Reply::Nak(_, code) => Syndrome::Nak(code),
        };
        headers.aeth = Some(Aeth {
            syndrome,
            msn: self.msn,
        });
        if out.send(path, &headers, Payload::Empty).is_ok() {
            self.reply = None;
        }
    }
}

impl Response {
    /// Whether sending this makes sending `waiting` pointless.
    fn covers(&self, waiting: &Self, mtu: u32) -> bool {
        match (self, waiting) {
            (
                Self::Read { first, length, .. },
                Self::Read {
                    first: waits,
                    length: rest,
                    ..
                },
            ) => {
                // The same last packet: the one asked for now is the tail of the other, or all of it.
                *first + packets_of(*length, mtu) == *waits + packets_of(*rest, mtu)
                    && waits.since(*first) >= 0
            }
            (Self::Atomic { psn, .. }, Self::Atomic { psn: waits, .. }) => psn == waits,
            _ => false,
        }
    }
}

/// Packets of a message: at least one.
fn packets_of(length: u32, mtu: u32) -> u32 {
    length.div_ceil(mtu).max(1)
}
