//! Recovery between software peers: what is lost, when it is sent again, and what silence means.
//!
//! Evidence makes a packet lost (see [`Selective`]), and only evidence. Silence has one packet sent again, whose answer
//! tells what is missing: a peer whose core was taken away for a while is asked a few times, farther and farther apart, and
//! gets nothing twice but these questions.
//!
//! **When a peer is given up.** IBA lets a requester take up to four times the local ACK timeout for each try
//! (9.7.6.1.3). Here all of that is used: the oldest request fails when it has made no progress for four timeouts times
//! one more than the retry count, which is 4.3 s for 134 ms and 7, and that many probes went unanswered.

use super::*;
use crate::qp::selective::{IN_ORDER, REORDER};
use crate::wire::Sack;

/// Longest wait between probes, as a power of two of the first; never longer than the local ACK timeout.
const MAX_BACKOFF: u32 = 10;

/// How many local ACK timeouts a try may take.
const PATIENCE: u32 = 4;

/// Unanswered probes that are a path which cannot cope, rather than a lost packet or a peer that slept.
const TOO_SILENT: u32 = 4;

impl Requester {
    /// Switches to selective repeat and delay-based congestion control, for a peer that takes `budget` bytes.
    pub(in crate::qp) fn use_extensions(&mut self, link: &Link, budget: u32) {
        if self.selective.is_some() {
            return self.congestion.set_budget(budget);
        }
        self.selective = Some(Box::new(Selective::new(self.una)));
        self.congestion.use_delay(budget);
        // What was on its way is counted anew, by packets; what was about to be sent again is lost.
        let going_back = self.next;
        self.next = self.high;
        self.cursor = self.queue.locate(self.high);
        self.in_flight = 0;
        self.reads.clear();
        let mut psn = self.una;
        while psn != self.high {
            let Cursor { index, packet } = self.queue.locate(psn);
            let Some(wqe) = self.queue.get(index) else {
                break;
            };
            if !self.answered.contains(psn) {
                self.in_flight += cost(link, wqe, packet, packet + 1);
            }
            if wqe.has_response() && packets_asked(wqe, packet) == 1 {
                self.reads.push_back(psn.next());
            }
            psn = psn.next();
        }
        self.give_up_from(link, going_back);
        // A stranger's patience is the local ACK timeout.
        self.timer = None;
    }

    /// How far the next packet may be from the oldest. With a gap no farther than the peer can tell of.
    #[inline]
    pub(super) fn reach(&self) -> u32 {
        match &self.selective {
            Some(selective) if selective.has_arrived_beyond() => Sack::SPAN,
            _ => MAX_PACKETS,
        }
    }

    /// Sends a lost packet again.
    pub(super) fn send_lost(&mut self, link: &Link, out: &mut impl Transmit) -> bool {
        let Some(selective) = &mut self.selective else {
            return false;
        };
        let Some(psn) = selective.next_lost(self.una, self.high) else {
            return false;
        };
        let Cursor { index, packet } = self.queue.locate(psn);
        let Some(wqe) = self.queue.get(index) else {
            return false;
        };
        let most = packets_asked(wqe, packet);
        // A READ that may never have arrived is asked for as it was the first time: the responder remembers how
        // long the request was that it executed, and answers only within that.
        let may_be_new = packet % wqe.chunk == 0 && self.acked.since(psn) <= 0;
        let lost = (1..most)
            .take_while(|&step| selective.is_lost(psn + step))
            .count() as u32
            + 1;
        let count = if may_be_new { most } else { lost };
        let fits =
            self.in_flight + cost(link, wqe, packet, packet + lost) <= self.congestion.window();
        if !fits && self.in_flight != 0 && !self.must_probe {
            return false;
        }
        let (headers, payload) = link.request(wqe, packet, count, true);
        let Some(path) = &link.path else { return false };
        if out.send(path, &headers, payload).is_err() {
            self.queue.fail(index, Status::LocalProtection);
            return false;
        }
        self.must_probe = false;
        for step in 0..count {
            if selective.sent_again(psn + step, self.high) {
                self.in_flight += cost(link, wqe, packet + step, packet + step + 1);
            }
        }
        // Its acknowledgement might answer either copy (Karn). Where nothing is known even that is worth keeping.
        if self
            .timed
            .is_some_and(|(timed, _)| timed.since(psn) >= 0 && timed.since(psn) < count as i32)
            && self.congestion.round_trip().is_some()
        {
            self.timed = None;
        }
        self.retransmitted += 1;
        true
    }

    /// A selective acknowledgement (extension).
    pub(in crate::qp) fn handle_sack(
        &mut self,
        now: Instant,
        link: &Link,
        sack: &Sack,
        host: &mut impl Host,
    ) {
        if sack.expected.since(self.high) > 0 {
            return;
        }
        if self.selective.is_none() {
            // The peer uses the extensions already, this side does not yet: it says what a NAK would.
            self.acknowledge(sack.expected);
            self.advance(now, link, host);
            return self.on_gap(now, link);
        }
        self.goes_back = false;
        if sack.window != 0 {
            self.congestion
                .set_budget(u32::from(sack.window) * link.mtu());
        }
        self.acknowledge(sack.expected);
        self.advance(now, link, host);
        let Some(selective) = &mut self.selective else {
            return;
        };
        let (queue, in_flight) = (&self.queue, &mut self.in_flight);
        let mut is_news = false;
        let mut newest = None;
        let from = if self.acked.since(self.una) > 0 {
            self.acked
        } else {
            self.una
        };
        selective.note(sack, from, self.high, |psn, was_lost| {
            is_news = true;
            newest = Some(psn);
            let (cost, has_response) = weigh(queue, link, psn);
            match (has_response, was_lost) {
                // Of a READ only the request arrived: its responses are still to come.
                (true, true) => *in_flight += cost,
                (true, false) | (false, true) => {}
                (false, false) => *in_flight = in_flight.saturating_sub(cost),
            }
        });
        if is_news {
            if let Some(newest) = newest {
                self.measure_by(now, newest);
            }
            self.arm(now, link);
        }
        self.judge(now, link);
    }

    /// The response with `psn` came.
    #[inline]
    pub(super) fn on_answer(&mut self, now: Instant, link: &Link, psn: Psn, cost: u32) {
        let Some(selective) = &mut self.selective else {
            return;
        };
        if !selective.note_answer(psn) {
            self.in_flight = self.in_flight.saturating_sub(cost);
        }
        self.acked_since = self.acked_since.saturating_add(cost);
        self.measure_by(now, psn);
        if psn != self.una {
            self.arm(now, link);
        }
    }

    /// What was first sent with `psn` has arrived: if the timed packet was sent no later, as long as this took is a round trip.
    /// Waiting for that very packet, which may be lost, would measure recovery.
    #[inline]
    fn measure_by(&mut self, now: Instant, psn: Psn) {
        let was_resent = self.selective.as_ref().is_some_and(|s| s.was_resent(psn));
        if !was_resent && self.timed.is_some_and(|(timed, _)| psn.since(timed) >= 0) {
            self.measure(now);
        }
    }

    /// Draws the conclusions from what arrived: what is lost, and what will be unless it comes in a moment.
    pub(super) fn judge(&mut self, now: Instant, link: &Link) {
        let reorder = if self.probes == 0 { REORDER } else { IN_ORDER };
        if self.mark_lost(link, reorder) {
            self.backoff = 0;
            self.congestion.on_loss(now);
        }
        let has_suspects = self.selective.as_ref().is_some_and(|selective| {
            selective.has_suspects(self.acked, |psn| self.is_missing_response(link, psn))
        });
        if !has_suspects {
            self.reorder_timer = None;
        } else if self.reorder_timer.is_none() {
            self.reorder_timer = Some(now + self.congestion.reorder_window());
        }
    }

    /// Time has passed in which what was overtaken would have come.
    pub(super) fn judge_overtaken(&mut self, link: &Link) {
        self.reorder_timer = None;
        self.mark_lost(link, IN_ORDER);
    }

    /// Marks as lost what `reorder` later packets tell. Whether anything was.
    fn mark_lost(&mut self, link: &Link, reorder: u32) -> bool {
        let Some(mut selective) = self.selective.take() else {
            return false;
        };
        let mut freed = 0;
        let mut found = false;
        let mut lost = |psn| {
            found = true;
            freed += weigh(&self.queue, link, psn).0;
        };
        if selective.has_resent() {
            let is_done = |psn: Psn| {
                self.answered.contains(psn)
                    || self.acked.since(psn) > 0 && !weigh(&self.queue, link, psn).1
            };
            selective.judge_resent(reorder, is_done, &mut lost);
        }
        selective.judge(self.acked, reorder, &mut lost);
        let is_missing = |psn| self.is_missing_response(link, psn);
        selective.judge_responses(self.una, self.acked, reorder, is_missing, &mut lost);
        self.in_flight = self.in_flight.saturating_sub(freed);
        // How long a lost packet takes to be acknowledged would measure recovery.
        self.timed = self.timed.filter(|&(psn, _)| !selective.is_lost(psn));
        self.selective = Some(selective);
        found
    }

    fn is_missing_response(&self, link: &Link, psn: Psn) -> bool {
        !self.answered.contains(psn) && weigh(&self.queue, link, psn).1
    }

    /// Takes `psn` for lost whatever is known of it.
    pub(super) fn give_up(&mut self, link: &Link, psn: Psn) {
        let Some(selective) = &mut self.selective else {
            return;
        };
        let (had_arrived, is_news) = selective.give_up(psn);
        let (cost, has_response) = weigh(&self.queue, link, psn);
        if is_news && (has_response || !had_arrived) {
            self.in_flight = self.in_flight.saturating_sub(cost);
        }
    }

    /// Takes everything from `from` on for lost.
    pub(super) fn give_up_from(&mut self, link: &Link, from: Psn) {
        let from = if from.since(self.una) > 0 {
            from
        } else {
            self.una
        };
        for step in 0..self.high.since(from).max(0) as u32 {
            if !self.answered.contains(from + step) {
                self.give_up(link, from + step);
            }
        }
    }

    /// Nothing was heard for a while: asks with one packet, in turn the newest that a report reaches, whose answer tells what is missing, and
    /// the oldest, which a peer that waits for a receive answers alone, as does one without extensions that waits for a gap
    /// to be filled.
    pub(super) fn probe(&mut self, now: Instant, link: &Link) {
        if let (Some(timeout), Retries::Limited(count)) = (link.timeout, link.retry_count)
            && self.probes > u32::from(count)
            && now.since(self.last_progress) >= PATIENCE * timeout * (u32::from(count) + 1)
        {
            self.queue.fail(0, Status::RetryExceeded);
            return;
        }
        // Of what lies farther ahead than a report reaches no answer tells.
        let from = if self.acked.since(self.una) > 0 {
            self.acked
        } else {
            self.una
        };
        let newest = match self.high.since(from) > Sack::SPAN as i32 {
            true => from + (Sack::SPAN - 1),
            false => self.high - 1,
        };
        let has_lost = self.selective.as_ref().is_some_and(|s| s.has_lost());
        if !has_lost {
            let tells = !self.goes_back && !self.answered.contains(newest);
            let psn = if tells && self.probes.is_multiple_of(2) {
                newest
            } else {
                self.una
            };
            self.give_up(link, psn);
        }
        self.must_probe = true;
        self.probes += 1;
        self.backoff = (self.backoff + 1).min(MAX_BACKOFF);
        if self.probes >= TOO_SILENT {
            self.congestion.on_timeout(now);
        }
        self.arm(now, link);
    }
}

/// What the packet with `psn` counts for in the window, and whether it stands for a response.
fn weigh(queue: &SendQueue, link: &Link, psn: Psn) -> (u32, bool) {
    let Cursor { index, packet } = queue.locate(psn);
    queue.get(index).map_or((0, false), |wqe| {
        (cost(link, wqe, packet, packet + 1), wqe.has_response())
    })
}
