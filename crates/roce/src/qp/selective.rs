//! The requester's scoreboard of a connection with selective repeat: what arrived, what is lost, what was sent again.
//!
//! An extension between software peers (after IRN, Mittal et al., SIGCOMM 2018). A packet counts as lost when
//! [`REORDER`] later ones arrived, or when a timeout passes; a packet that was sent again counts as lost again only
//! when packets first sent after it arrived, or on a timeout.

use crate::wire::{Psn, Sack};

use super::psn_set::PsnSet;

/// Later arrivals that make a missing packet a lost one.
pub(super) const REORDER: u32 = 3;

/// The same once silence has shown that nothing is still on its way.
pub(super) const IN_ORDER: u32 = 1;

#[derive(Debug)]
pub(super) struct Selective {
    arrived: PsnSet,
    lost: PsnSet,
    resent: PsnSet,
    /// What had been sent when the present round of resending began.
    round_end: Psn,
}

impl Selective {
    pub(super) fn new(psn: Psn) -> Self {
        Self {
            arrived: PsnSet::new(),
            lost: PsnSet::new(),
            resent: PsnSet::new(),
            round_end: psn,
        }
    }

    /// Requests in `una .. acked` were carried out: what is unfinished of them waits for responses.
    pub(super) fn carried_out(&mut self, una: Psn, acked: Psn) {
        self.arrived.remove_range(una, acked);
    }

    /// The window moved on from `from` to `to`.
    pub(super) fn forget(&mut self, from: Psn, to: Psn) {
        for set in [&mut self.arrived, &mut self.lost, &mut self.resent] {
            set.remove_range(from, to);
        }
    }

    /// Notes what arrived; returns the highest PSN of that. `high` is the first PSN never sent.
    pub(super) fn note(&mut self, sack: &Sack, una: Psn, high: Psn) -> Option<Psn> {
        let mut highest = None;
        for index in 0..256u32 {
            if sack.bitmap[(index / 64) as usize] >> (index % 64) & 1 == 0 {
                continue;
            }
            let psn = sack.expected + 1 + index;
            if psn.since(high) >= 0 {
                break;
            }
            if psn.since(una) >= 0 {
                self.arrived.insert(psn);
                highest = Some(psn);
            }
        }
        highest
    }

    /// Marks what is missing in `from .. highest` as lost, when `reorder` later ones arrived, unless it was sent
    /// again this round or `is_answered`.
    /// Whether something new was found.
    pub(super) fn mark_lost(
        &mut self,
        from: Psn,
        highest: Psn,
        high: Psn,
        reorder: u32,
        is_answered: impl Fn(Psn) -> bool,
    ) -> bool {
        if highest.since(self.round_end) >= REORDER as i32 {
            self.resent.clear();
            self.round_end = high;
        }
        let count = (highest.since(from) - reorder as i32 + 1).max(0) as u32;
        let mut found = false;
        for psn in (0..count).map(|step| from + step) {
            if !self.arrived.contains(psn) && !self.resent.contains(psn) && !is_answered(psn) {
                found |= self.lost.insert(psn);
            }
        }
        found
    }

    /// Marks `psn` as lost whatever was sent again before.
    pub(super) fn give_up(&mut self, psn: Psn) {
        self.resent.remove(psn);
        self.lost.insert(psn);
    }

    /// Marks everything in `una .. high` as lost that was not answered. What arrived may have been thrown away
    /// since: a READ request arrives long before its response does.
    pub(super) fn give_up_all(&mut self, una: Psn, high: Psn, is_answered: impl Fn(Psn) -> bool) {
        self.arrived.clear();
        self.resent.clear();
        self.round_end = high;
        for psn in (0..high.since(una).max(0) as u32).map(|step| una + step) {
            if !is_answered(psn) {
                self.lost.insert(psn);
            }
        }
    }

    /// The next PSN to send again.
    pub(super) fn next_lost(&self, una: Psn, high: Psn) -> Option<Psn> {
        self.lost.first_in(una, high)
    }

    pub(super) fn is_lost(&self, psn: Psn) -> bool {
        self.lost.contains(psn)
    }

    /// `count` PSNs from `psn` on were sent again.
    pub(super) fn sent_again(&mut self, psn: Psn, count: u32, high: Psn) {
        if self.resent.is_empty() {
            self.round_end = high;
        }
        for psn in (0..count).map(|step| psn + step) {
            self.lost.remove(psn);
            self.resent.insert(psn);
        }
    }
}
