//! The requester's scoreboard of a connection with selective repeat: what arrived, what is lost, what was sent again.
//!
//! An extension between software peers, after IRN (Mittal et al., SIGCOMM 2018) and RACK-TLP (RFC 8985). A packet
//! counts as lost as soon as something sent after it has arrived: at once when that lies [`REORDER`] packets behind it,
//! a moment later when it lies nearer. The same holds for a packet that was sent again. Silence alone makes nothing
//! lost: it is the requester's to ask, with one packet, what arrived.
//!
//! Requests are judged by what the peer reports; responses by what it has acknowledged, as it answers in order.

use std::collections::VecDeque;

use crate::wire::{Psn, Sack};

use super::psn_set::PsnSet;

/// How much later something must have been sent to make what is missing before it a lost packet at once.
pub(super) const REORDER: u32 = 3;

/// The same once time has passed in which an overtaken packet would have come.
pub(super) const IN_ORDER: u32 = 1;

#[derive(Debug)]
pub(super) struct Selective {
    /// Requests behind a gap that the peer has.
    arrived: PsnSet,
    lost: PsnSet,
    resent: PsnSet,
    /// What was sent again and waits for word, in the order of sending.
    order: VecDeque<Again>,
    /// The newest PSN that is known to have arrived.
    newest: Psn,
    /// Requests and responses before these were judged: what is missing of them is lost or was sent again.
    judged: Psn,
    judged_responses: Psn,
}

/// A packet that was sent again.
#[derive(Clone, Copy, Debug)]
struct Again {
    psn: Psn,
    /// The first PSN that had never been sent then.
    high: Psn,
    /// Packets sent again after it that have arrived.
    overtaken: u32,
}

impl Selective {
    pub(super) fn new(una: Psn) -> Self {
        Self {
            arrived: PsnSet::new(),
            lost: PsnSet::new(),
            resent: PsnSet::new(),
            order: VecDeque::new(),
            newest: una - 1,
            judged: una,
            judged_responses: una,
        }
    }

    /// The window moved on from `from` to `to`.
    #[inline]
    pub(super) fn forget(&mut self, from: Psn, to: Psn) {
        for set in [&mut self.arrived, &mut self.lost, &mut self.resent] {
            set.remove_range(from, to);
        }
        self.see(to - 1);
        later(&mut self.judged, to);
        later(&mut self.judged_responses, to);
        if !self.order.is_empty() {
            self.order.retain(|again| again.psn.since(to) >= 0);
        }
    }

    /// Something with `psn` is known to have arrived.
    #[inline]
    pub(super) fn see(&mut self, psn: Psn) {
        later(&mut self.newest, psn);
    }

    /// Notes what the peer reports of `from .. high` and names what of it is news, `true` with what had been taken for
    /// lost.
    pub(super) fn note(
        &mut self,
        sack: &Sack,
        from: Psn,
        high: Psn,
        mut news: impl FnMut(Psn, bool),
    ) {
        for (word, mut bits) in (0..).zip(sack.bitmap) {
            while bits != 0 {
                let psn = sack.expected + 1 + (64 * word + bits.trailing_zeros());
                bits &= bits - 1;
                if psn.since(high) >= 0 {
                    return;
                }
                if psn.since(from) >= 0 {
                    self.see(psn);
                    if self.arrived.insert(psn) {
                        news(psn, self.lost.remove(psn));
                    }
                }
            }
        }
    }

    /// The response with `psn` came. Whether it had been taken for lost.
    #[inline]
    pub(super) fn note_answer(&mut self, psn: Psn) -> bool {
        self.see(psn);
        self.lost.remove(psn)
    }

    /// Judges the requests from `from` on, which is the first that is not acknowledged, by what arrived `reorder` packets
    /// behind them; names the lost.
    #[inline]
    pub(super) fn judge(&mut self, from: Psn, reorder: u32, mut lost: impl FnMut(Psn)) {
        later(&mut self.judged, from);
        while self.newest.since(self.judged) >= reorder as i32 {
            let psn = self.judged;
            self.judged = psn.next();
            if !self.arrived.contains(psn) && !self.resent.contains(psn) && self.lost.insert(psn) {
                lost(psn);
            }
        }
    }

    /// Judges the responses in `from .. acked`, which are due as the peer has acknowledged what comes behind them, by
    /// `reorder`; names the lost.
    #[inline]
    pub(super) fn judge_responses(
        &mut self,
        from: Psn,
        acked: Psn,
        reorder: u32,
        is_missing: impl Fn(Psn) -> bool,
        mut lost: impl FnMut(Psn),
    ) {
        later(&mut self.judged_responses, from);
        while acked.since(self.judged_responses) >= reorder as i32 {
            let psn = self.judged_responses;
            self.judged_responses = psn.next();
            if !self.resent.contains(psn) && is_missing(psn) && self.lost.insert(psn) {
                lost(psn);
            }
        }
    }

    /// Judges what was sent again by `reorder` packets that were sent after it and have arrived; names the lost.
    pub(super) fn judge_resent(
        &mut self,
        reorder: u32,
        is_done: impl Fn(Psn) -> bool,
        mut lost: impl FnMut(Psn),
    ) {
        let mut overtaking = 0;
        for again in self.order.iter_mut().rev() {
            again.overtaken += overtaking;
            if is_done(again.psn) || self.arrived.contains(again.psn) {
                self.resent.remove(again.psn);
                overtaking += 1;
            } else if again.overtaken + sent_since(self.newest, again.high) >= reorder {
                self.resent.remove(again.psn);
                if self.lost.insert(again.psn) {
                    lost(again.psn);
                }
            }
        }
        let resent = &self.resent;
        self.order.retain(|again| resent.contains(again.psn));
    }

    /// Whether something that was sent again waits for word.
    #[inline]
    pub(super) fn has_resent(&self) -> bool {
        !self.order.is_empty()
    }

    /// Whether `psn` was sent again and nothing is known of it since.
    #[inline]
    pub(super) fn was_resent(&self, psn: Psn) -> bool {
        self.resent.contains(psn)
    }

    /// Whether something is missing that [`IN_ORDER`] would tell to be lost, and [`REORDER`] did not.
    pub(super) fn has_suspects(&self, acked: Psn, is_missing: impl Fn(Psn) -> bool) -> bool {
        let between = |from: Psn, to: Psn| (0..to.since(from).max(0) as u32).map(move |n| from + n);
        let unknown = |psn| !self.resent.contains(psn) && !self.lost.contains(psn);
        between(self.judged, self.newest).any(|psn| !self.arrived.contains(psn) && unknown(psn))
            || between(self.judged_responses, acked).any(|psn| is_missing(psn) && unknown(psn))
            || self
                .order
                .front()
                .is_some_and(|again| again.overtaken + sent_since(self.newest, again.high) > 0)
    }

    /// Marks `psn` as lost whatever is known of it. Whether it had arrived as a request, and whether it is news that it is lost.
    pub(super) fn give_up(&mut self, psn: Psn) -> (bool, bool) {
        self.resent.remove(psn);
        self.order.retain(|again| again.psn != psn);
        (self.arrived.remove(psn), self.lost.insert(psn))
    }

    /// The next PSN to send again.
    #[inline]
    pub(super) fn next_lost(&self, una: Psn, high: Psn) -> Option<Psn> {
        self.lost.first_in(una, high)
    }

    #[inline]
    pub(super) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    #[inline]
    pub(super) fn is_lost(&self, psn: Psn) -> bool {
        self.lost.contains(psn)
    }

    /// Whether the peer has packets behind a gap.
    #[inline]
    pub(super) fn has_arrived_beyond(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Whether `psn` is neither on its way nor to come: it arrived, or it is lost and not yet sent again.
    #[inline]
    pub(super) fn is_settled(&self, psn: Psn) -> bool {
        self.arrived.contains(psn) || self.lost.contains(psn)
    }

    /// Whether [`Selective::is_settled`] holds for any.
    #[inline]
    pub(super) fn has_settled(&self) -> bool {
        !self.arrived.is_empty() || !self.lost.is_empty()
    }

    /// `psn` was sent again. Whether it had been taken for lost.
    pub(super) fn sent_again(&mut self, psn: Psn, high: Psn) -> bool {
        if !self.resent.insert(psn) {
            self.order.retain(|again| again.psn != psn);
        }
        self.order.push_back(Again {
            psn,
            high,
            overtaken: 0,
        });
        self.lost.remove(psn)
    }
}

/// How many packets first sent from `high` on the arrival of `newest` tells of.
#[inline]
fn sent_since(newest: Psn, high: Psn) -> u32 {
    (newest.since(high) + 1).max(0) as u32
}

/// Moves `psn` on to `to`, never back.
#[inline]
fn later(psn: &mut Psn, to: Psn) {
    if to.since(*psn) > 0 {
        *psn = to;
    }
}
