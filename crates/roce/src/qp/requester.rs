//! Sends the requests of one reliable connection and brings each to its end.
//!
//! IBA Vol. 1, 9.7 (reliable service): segmentation, acknowledgement, READ and atomic responses, retries. Towards
//! anyone go-back-N; between software peers selective repeat ([`super::selective`]). No I/O and no clock; what the
//! packets look like is [`super::link`]'s, how many may be in flight [`super::congestion`]'s.
//!
//! What decides a retransmission is [`Requester::handle_timeout`] for silence, [`Requester::on_gap`] for evidence; both
//! lead to [`recovery`] between software peers.

mod recovery;

use std::collections::VecDeque;
use std::time::Duration;

use crate::host::{Host, Transmit};
use crate::time::Instant;
use crate::verbs::{Completion, Local, Retries, SendFlags, SendWork, Status, rnr_delay};
use crate::wire::{Aeth, Headers, NakCode, Psn, Syndrome};

use super::congestion::{Congestion, MAX_PACKETS, PACKET_OVERHEAD};
use super::link::Link;
use super::psn_set::PsnSet;
use super::selective::Selective;
use super::send_queue::{Cursor, SendQueue, Wqe};

#[derive(Debug)]
pub(super) struct Requester {
    queue: SendQueue,
    /// The next packet to send, and its PSN.
    cursor: Cursor,
    next: Psn,
    /// The oldest PSN that is not finished, and the first that was never sent.
    una: Psn,
    high: Psn,
    /// Everything before this was acknowledged, READs and atomics perhaps without their responses.
    acked: Psn,
    /// Behind the last packet that asked for an answer.
    asked: Psn,
    /// Response PSNs beyond `una` that arrived.
    answered: PsnSet,
    /// Ends of the READ requests and atomics in flight.
    reads: VecDeque<Psn>,
    /// Bytes on their way: sent, and neither acknowledged nor known to have arrived or to be lost.
    in_flight: u32,
    congestion: Congestion,
    selective: Option<Box<Selective>>,
    /// When silence counts as loss.
    timer: Option<Instant>,
    /// When what was overtaken counts as lost.
    reorder_timer: Option<Instant>,
    /// One packet goes out whatever the window says: silence asks for it.
    must_probe: bool,
    /// The peer asked us to wait until then.
    not_ready_until: Option<Instant>,
    retries: u8,
    rnr_retries: u8,
    /// Probes since the oldest packet was last acknowledged.
    probes: u32,
    /// How often the probe timer was doubled since a round trip was last measured: as long as packets are sent again
    /// for want of patience no round trip can be measured, so patience must outlast what comes back (Karn's rule).
    /// Evidence of loss takes it back: the silence was not for want of patience.
    backoff: u32,
    /// Bytes acknowledged since a round trip was last measured.
    acked_since: u32,
    last_progress: Instant,
    /// A packet whose round trip is being measured.
    timed: Option<(Psn, Instant)>,
    /// A gap at this PSN was already acted upon.
    rewound: Option<Psn>,
    /// What the peer said last of gaps is that it throws away what comes behind one.
    goes_back: bool,
    draining: bool,
    retransmitted: u64,
}

impl Requester {
    pub(super) fn new() -> Self {
        Self {
            queue: SendQueue::new(),
            cursor: Cursor::default(),
            next: Psn::default(),
            una: Psn::default(),
            high: Psn::default(),
            acked: Psn::default(),
            asked: Psn::default(),
            answered: PsnSet::new(),
            reads: VecDeque::new(),
            in_flight: 0,
            congestion: Congestion::fixed(),
            selective: None,
            timer: None,
            reorder_timer: None,
            must_probe: false,
            not_ready_until: None,
            retries: 0,
            rnr_retries: 0,
            probes: 0,
            backoff: 0,
            acked_since: 0,
            last_progress: Instant::ZERO,
            timed: None,
            rewound: None,
            goes_back: false,
            draining: false,
            retransmitted: 0,
        }
    }

    /// Starts sending at the link's first PSN.
    pub(super) fn start(&mut self, link: &Link) {
        self.queue.set_psn(link.sq_psn);
        self.una = link.sq_psn;
        self.next = self.una;
        self.high = self.una;
        self.acked = self.una;
        self.asked = self.una;
        self.refill_retries(link);
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn retransmitted(&self) -> u64 {
        self.retransmitted
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.congestion.round_trip()
    }

    pub(super) fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// Whether nothing that was started is unfinished.
    pub(super) fn is_drained(&self) -> bool {
        self.una == self.high
    }

    pub(super) fn push(&mut self, link: &Link, work: &SendWork, failed: Option<Status>) {
        self.queue.push(link, work, failed);
    }

    /// How the oldest work failed, when it did: the queue pair is then in error.
    pub(super) fn failure(&self) -> Option<Status> {
        self.queue.front().and_then(|wqe| wqe.failed)
    }

    /// Ends all work: the oldest with `first`, the others flushed.
    pub(super) fn flush(&mut self, link: &Link, first: Option<Status>, host: &mut impl Host) {
        let mut status = first.unwrap_or(Status::Flushed);
        while let Some(wqe) = self.queue.pop() {
            host.complete_send(completion_of(link, &wqe, status));
            status = Status::Flushed;
        }
        self.timer = None;
        self.reorder_timer = None;
        self.not_ready_until = None;
        self.una = self.high;
        self.next = self.high;
        self.cursor = Cursor::default();
        self.in_flight = 0;
        self.reads.clear();
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.not_ready_until {
            Some(until) => Some(until),
            None => match (self.timer, self.reorder_timer) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            },
        }
    }

    /// Bytes in flight, as they count for the window.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether [`Requester::transmit`] might have something to send.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        let has_packets = self.cursor.index < self.queue.len() || self.has_lost();
        let lacks_timer = self.timer.is_none() && self.una != self.high;
        self.not_ready_until.is_none() && (has_packets || lacks_timer)
    }

    fn has_lost(&self) -> bool {
        self.selective.as_ref().is_some_and(|s| s.has_lost())
    }

    /// Sends what may be sent. Whether anything was.
    pub(super) fn transmit(&mut self, now: Instant, link: &Link, out: &mut impl Transmit) -> bool {
        if self.not_ready_until.is_some_and(|until| now < until) {
            return false;
        }
        self.not_ready_until = None;
        if self.una == self.high {
            self.last_progress = now;
        }
        let mut sent = false;
        let cap = match out.allowance() {
            0 => 0,
            more => self.in_flight.saturating_add(more),
        };
        while out.has_room() && (self.send_lost(link, out) || self.send_next(now, link, cap, out)) {
            sent = true;
        }
        if self.timer.is_none() && self.una != self.high {
            self.arm(now, link);
        }
        sent
    }

    /// Sends the packet at the cursor, if everything permits it; with at most about `cap` bytes in flight.
    fn send_next(&mut self, now: Instant, link: &Link, cap: u32, out: &mut impl Transmit) -> bool {
        if self.in_flight >= cap {
            return false;
        }
        let Cursor { index, packet } = self.cursor;
        match self.queue.get(index) {
            Some(wqe) if wqe.failed.is_none() => {
                let fenced = wqe.work.flags.contains(SendFlags::FENCE) && !self.reads.is_empty();
                if packet == 0 && (fenced || self.draining) {
                    return false;
                }
            }
            _ => return false,
        }
        if packet == 0 {
            self.queue.start(index);
        }
        let Some(wqe) = self.queue.get(index) else {
            return false;
        };
        let count = packets_asked(wqe, packet);
        if wqe.has_response() && self.reads.len() >= usize::from(link.max_rd_atomic) {
            return false;
        }
        let cost = cost(link, wqe, packet, packet + count);
        let distance = self.next.since(self.una).max(0) as u32;
        let after = self.in_flight + cost;
        let window = self.congestion.window().min(cap);
        // A window that shrank may be full of packets that ask for nothing: one more then asks.
        let is_unasked = self.asked.since(self.una) <= 0;
        if after > window && self.in_flight != 0 && !is_unasked || distance + count > self.reach() {
            return false;
        }
        let psn = self.next;
        let ends = packet + count == wqe.packets;
        let closes = after + link.mtu() + PACKET_OVERHEAD > window;
        let ack_request = ends || closes || psn.value() & 15 == 15;
        let (headers, payload) = link.request(wqe, packet, count, ack_request);
        let Some(path) = &link.path else { return false };
        if out.send(path, &headers, payload).is_err() {
            self.queue.fail(index, Status::LocalProtection);
            return false;
        }
        let end = psn + count;
        let has_response = wqe.has_response();
        if has_response {
            self.reads.push_back(end);
        }
        if ack_request || has_response {
            self.asked = end;
        }
        self.cursor = if ends {
            Cursor {
                index: index + 1,
                packet: 0,
            }
        } else {
            Cursor {
                index,
                packet: packet + count,
            }
        };
        self.in_flight = after;
        self.next = end;
        if end.since(self.high) > 0 {
            self.high = end;
            if self.timed.is_none() && (ack_request || has_response) {
                self.timed = Some((psn, now));
            }
        } else {
            self.retransmitted += 1;
        }
        true
    }

    /// An acknowledgement without data.
    pub(super) fn handle_acknowledge(
        &mut self,
        now: Instant,
        link: &Link,
        psn: Psn,
        aeth: Aeth,
        host: &mut impl Host,
    ) {
        // One that was never asked for, or is older than what is known, says nothing.
        if psn.since(self.high) >= 0 || psn.next().since(self.una) < 0 {
            return;
        }
        match aeth.syndrome {
            Syndrome::Ack { .. } => {
                let (before, was_asked) = (self.una, self.probes > 0);
                if self.goes_back && was_asked {
                    self.timed = None;
                }
                self.acknowledge(psn.next());
                self.advance(now, link, host);
                if self.goes_back && was_asked && self.una != before {
                    // The question filled the gap, behind which nothing was kept.
                    self.backoff = 0;
                    self.give_up_from(link, self.una);
                }
                self.answer_gap(now, link);
            }
            Syndrome::RnrNak { timer } => {
                self.acknowledge(psn);
                self.advance(now, link, host);
                self.on_not_ready(now, link, psn, timer);
            }
            Syndrome::Nak(NakCode::PsnSequence) => {
                self.acknowledge(psn);
                self.advance(now, link, host);
                match self.selective {
                    // The peer does not use the extensions yet: it threw away everything behind the gap.
                    Some(_) => {
                        self.goes_back = true;
                        self.backoff = 0;
                        self.timed = None;
                        self.give_up_from(link, psn);
                        self.judge(now, link);
                    }
                    None => self.on_gap(now, link),
                }
            }
            Syndrome::Nak(code) => {
                self.acknowledge(psn);
                self.advance(now, link, host);
                self.on_refusal(now, link, psn, code);
            }
            Syndrome::Reserved(_) => {}
        }
    }

    /// A packet of a READ response. The last, in whatever order they come, completes the READ.
    pub(super) fn handle_read_response(
        &mut self,
        now: Instant,
        link: &Link,
        headers: &Headers,
        payload: &[u8],
        host: &mut impl Host,
    ) {
        let psn = headers.bth.psn;
        let Some((index, packet)) = self.awaited(psn) else {
            return;
        };
        let Some(wqe) = self.queue.get(index) else {
            return;
        };
        let offset = wqe.bytes_before(packet, link.mtu());
        let length = wqe.bytes_before(packet + 1, link.mtu()) - offset;
        let Local::Gather(list) = &wqe.work.local else {
            return;
        };
        if wqe.work.operation.is_atomic() || payload.len() != length as usize {
            return;
        }
        if length != 0 && host.scatter(list, u64::from(offset), payload).is_err() {
            self.queue.fail(index, Status::LocalProtection);
        }
        self.answer(now, link, psn, length + PACKET_OVERHEAD, host);
    }

    /// The response to an atomic.
    pub(super) fn handle_atomic_response(
        &mut self,
        now: Instant,
        link: &Link,
        headers: &Headers,
        host: &mut impl Host,
    ) {
        let (psn, Some(response)) = (headers.bth.psn, headers.atomic_ack) else {
            return;
        };
        let Some((index, _)) = self.awaited(psn) else {
            return;
        };
        let Some(wqe) = self.queue.get(index) else {
            return;
        };
        let Local::Gather(list) = &wqe.work.local else {
            return;
        };
        if !wqe.work.operation.is_atomic() {
            return;
        }
        let cost = cost(link, wqe, 0, 1);
        if host
            .scatter(list, 0, &response.original.to_ne_bytes())
            .is_err()
        {
            self.queue.fail(index, Status::LocalProtection);
        }
        self.answer(now, link, psn, cost, host);
    }

    /// The work and packet that a response with `psn` would answer.
    fn awaited(&self, psn: Psn) -> Option<(usize, u32)> {
        if psn.since(self.una) < 0 || psn.since(self.high) >= 0 || self.answered.contains(psn) {
            return None;
        }
        let Cursor { index, packet } = self.queue.locate(psn);
        let wqe = self.queue.get(index)?;
        wqe.has_response().then_some((index, packet))
    }

    /// The response with `psn` came, which counts for `cost` in the window.
    fn answer(&mut self, now: Instant, link: &Link, psn: Psn, cost: u32, host: &mut impl Host) {
        self.answered.insert(psn);
        if self.selective.is_some() {
            self.on_answer(now, link, psn, cost);
        }
        // IBA 9.7.5.1.2: a response also acknowledges every request before its own.
        self.acknowledge(psn);
        self.advance(now, link, host);
        self.answer_gap(now, link);
    }

    #[inline]
    fn acknowledge(&mut self, upto: Psn) {
        if upto.since(self.acked) > 0 && upto.since(self.high) <= 0 {
            self.acked = upto;
        }
    }

    /// Moves `una` over everything that is finished and completes the work that ends on the way.
    fn advance(&mut self, now: Instant, link: &Link, host: &mut impl Host) {
        let before = self.una;
        let mut freed = 0;
        while self.una != self.high {
            let Some(wqe) = self.queue.front() else { break };
            let end = wqe.end();
            let mut to = self.una;
            if wqe.has_response() {
                while to != end && self.answered.remove(to) {
                    to = to.next();
                }
            } else if self.acked.since(to) > 0 {
                to = if self.acked.since(end) < 0 {
                    self.acked
                } else {
                    end
                };
            }
            if to == self.una {
                break;
            }
            let from_packet = self.una.since(wqe.first).max(0) as u32;
            let to_packet = to.since(wqe.first).max(0) as u32;
            freed += match &self.selective {
                // Responses were freed as they came.
                Some(_) if wqe.has_response() => 0,
                Some(selective) if selective.has_settled() => (from_packet..to_packet)
                    .filter(|&packet| !selective.is_settled(wqe.first + packet))
                    .map(|packet| cost(link, wqe, packet, packet + 1))
                    .sum(),
                _ => cost(link, wqe, from_packet, to_packet),
            };
            self.una = to;
            if to != end || wqe.failed.is_some() {
                break;
            }
            if wqe.is_signaled() {
                host.complete_send(completion_of(link, wqe, Status::Success));
            }
            self.queue.drop_front();
            self.cursor.index = self.cursor.index.saturating_sub(1);
        }
        if self.una == before {
            return;
        }
        self.in_flight = self.in_flight.saturating_sub(freed);
        self.acked_since = self.acked_since.saturating_add(freed);
        while self
            .reads
            .front()
            .is_some_and(|end| end.since(self.una) <= 0)
        {
            self.reads.pop_front();
        }
        if let Some(selective) = &mut self.selective {
            selective.forget(before, self.una);
        }
        if self.next.since(self.una) < 0 {
            // An acknowledgement came for what was about to be sent again.
            self.next = self.una;
            self.cursor = self.queue.locate(self.una);
            self.in_flight = 0;
        }
        if self.timed.is_some_and(|(psn, _)| self.una.since(psn) > 0) {
            self.measure(now);
        }
        self.last_progress = now;
        self.probes = 0;
        self.must_probe = false;
        self.refill_retries(link);
        self.timer = None;
        if self.una == self.high {
            self.in_flight = 0;
            self.reorder_timer = None;
        } else {
            self.arm(now, link);
        }
    }

    /// The packet that is timed has arrived.
    fn measure(&mut self, now: Instant) {
        if let Some((_, sent)) = self.timed.take() {
            self.backoff = 0;
            self.congestion
                .on_round_trip(now, now - sent, self.acked_since);
            self.acked_since = 0;
        }
    }

    /// Acknowledgements went past a READ or atomic whose response is missing.
    fn answer_gap(&mut self, now: Instant, link: &Link) {
        if self.acked.since(self.una) > 0 {
            self.on_gap(now, link);
        }
    }

    /// There is evidence that the packet at `una`, or the response to it, was lost.
    fn on_gap(&mut self, now: Instant, link: &Link) {
        if self.selective.is_some() {
            self.judge(now, link);
        } else if self.rewound != Some(self.una) {
            self.rewound = Some(self.una);
            self.retry(now, link);
        }
    }

    /// Goes back to the oldest unfinished packet, if a try is left.
    fn retry(&mut self, now: Instant, link: &Link) {
        if link.retry_count != Retries::Unlimited {
            if self.retries == 0 {
                self.queue.fail(0, Status::RetryExceeded);
                return;
            }
            self.retries -= 1;
        }
        self.congestion.on_timeout(now);
        self.rewind();
    }

    fn rewind(&mut self) {
        self.next = self.una;
        self.asked = self.una;
        self.cursor = self.queue.locate(self.una);
        self.in_flight = 0;
        self.timed = None;
        while self.reads.back().is_some_and(|end| end.since(self.una) > 0) {
            self.reads.pop_back();
        }
    }

    fn on_not_ready(&mut self, now: Instant, link: &Link, psn: Psn, timer: u8) {
        if psn != self.una {
            // A response before it is missing; that comes first.
            return self.on_gap(now, link);
        }
        if self.not_ready_until.is_some() {
            return;
        }
        if link.rnr_retry != Retries::Unlimited {
            if self.rnr_retries == 0 {
                self.queue.fail(0, Status::RnrRetryExceeded);
                return;
            }
            self.rnr_retries -= 1;
        }
        self.not_ready_until = Some(now + rnr_delay(timer));
        self.last_progress = now;
        self.timer = None;
        match self.selective {
            Some(_) => self.give_up(link, psn),
            None => self.rewind(),
        }
    }

    /// The peer refused the request at `psn` for good.
    fn on_refusal(&mut self, now: Instant, link: &Link, psn: Psn, code: NakCode) {
        let status = match code {
            NakCode::InvalidRequest | NakCode::InvalidRd => Status::RemoteInvalidRequest,
            NakCode::RemoteAccess => Status::RemoteAccess,
            NakCode::RemoteOperational => Status::RemoteOperation,
            NakCode::PsnSequence | NakCode::Unknown(_) => return,
        };
        let is_oldest = self
            .queue
            .front()
            .is_some_and(|wqe| psn.since(wqe.first) >= 0 && psn.since(wqe.end()) < 0);
        if is_oldest && self.una != self.high {
            self.queue.fail(0, status);
        } else if self.una != self.high {
            self.on_gap(now, link);
        }
    }

    /// Congestion notification from the network.
    pub(super) fn handle_notification(&mut self, now: Instant) {
        self.congestion.on_notification(now);
    }

    /// Decides what silence means.
    pub(super) fn handle_timeout(&mut self, now: Instant, link: &Link) {
        if self.not_ready_until.is_some_and(|until| until <= now) {
            self.not_ready_until = None;
        }
        if self.reorder_timer.is_some_and(|timer| timer <= now) {
            self.judge_overtaken(link);
        }
        if self.timer.is_none_or(|timer| now < timer) {
            return;
        }
        self.timer = None;
        if self.una == self.high {
            return;
        }
        match self.selective {
            Some(_) => self.probe(now, link),
            None => {
                self.rewound = None;
                self.retry(now, link);
            }
        }
    }

    fn arm(&mut self, now: Instant, link: &Link) {
        let patience = if self.selective.is_some() {
            let probe = self.congestion.probe_timeout() * (1 << self.backoff);
            Some(link.timeout.map_or(probe, |timeout| probe.min(timeout)))
        } else {
            link.timeout
        };
        self.timer = patience.map(|patience| now + patience);
    }

    fn refill_retries(&mut self, link: &Link) {
        let count = |retries| match retries {
            Retries::Limited(count) => count,
            Retries::Unlimited => 0,
        };
        self.retries = count(link.retry_count);
        self.rnr_retries = count(link.rnr_retry);
        self.rewound = None;
    }
}

/// Packets that the request at `packet` of `wqe` stands for: one, or for READs the rest of its chunk. Chunks
/// begin at fixed places, so that a repeated request never asks beyond what the first one asked.
fn packets_asked(wqe: &Wqe, packet: u32) -> u32 {
    if !wqe.has_response() {
        return 1;
    }
    (wqe.chunk - packet % wqe.chunk).min(wqe.packets - packet)
}

/// Bytes that packets `from .. to` of `wqe` count for in the window.
#[inline]
fn cost(link: &Link, wqe: &Wqe, from: u32, to: u32) -> u32 {
    wqe.bytes_before(to, link.mtu()) - wqe.bytes_before(from, link.mtu())
        + (to - from) * PACKET_OVERHEAD
}

fn completion_of(link: &Link, wqe: &Wqe, status: Status) -> Completion {
    let byte_len = if status == Status::Success && wqe.has_response() {
        wqe.length
    } else {
        0
    };
    Completion {
        byte_len,
        ..Completion::of(
            wqe.work.wr_id,
            link.qpn,
            wqe.work.operation.completion_kind(),
            status,
        )
    }
}
