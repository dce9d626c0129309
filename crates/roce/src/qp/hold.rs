//! Decides which acknowledgements are kept back for a moment, between software peers.
//!
//! Two programs that answer each other need no acknowledgement of every message: each answer shows that its request came.
//! An acknowledgement that rides with an answer costs a tenth of the round trip all the same. So one that would ride with
//! an answer is kept back, and the next ones with it, while the peer goes on without them. A peer that waits for its
//! acknowledgement is found out by the first one that is sent for want of anything else; then they ride again, and the next try
//! comes later than the last.
//!
//! Only few packets are ever kept unacknowledged: bulk transfers live by acknowledgements.

use std::time::Duration;

use crate::time::Instant;

/// Most packets kept unacknowledged.
const MOST: u32 = 8;
/// How long after the latest request or answer, and at most after the first request.
const PATIENCE: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_micros(200);
/// Acknowledgements that ride before the first try, and at most between tries.
const FIRST_TRY: u32 = 16;
const LATEST_TRY: u32 = 4096;

#[derive(Debug)]
pub(super) struct Hold {
    /// Requests taken since the last acknowledgement, in packets.
    packets: u32,
    /// When the oldest acknowledgement that is kept back was due.
    since: Option<Instant>,
    /// The peer went on without the last one that was kept back.
    is_welcome: bool,
    /// Acknowledgements to ride before the next try, and how many there were before this one.
    until_try: u32,
    interval: u32,
}

impl Hold {
    pub(super) fn new() -> Self {
        Self {
            packets: 0,
            since: None,
            is_welcome: false,
            until_try: FIRST_TRY,
            interval: FIRST_TRY,
        }
    }

    /// A request packet was taken. Until when its acknowledgement may wait, if one is kept back already.
    #[inline]
    pub(super) fn on_request(&mut self, now: Instant) -> Option<Instant> {
        self.packets += 1;
        let since = self.since?;
        self.is_welcome = true;
        self.interval = FIRST_TRY;
        let may_wait = self.packets < MOST && now.since(since) < LONGEST;
        Some(if may_wait { now + PATIENCE } else { now })
    }

    /// An acknowledgement could ride with an answer. Until when it is kept back instead.
    #[inline]
    pub(super) fn keep(&mut self, now: Instant) -> Option<Instant> {
        if self.packets >= MOST {
            return None;
        }
        if !self.is_welcome && self.until_try > 0 {
            self.until_try -= 1;
            return None;
        }
        self.since.get_or_insert(now);
        Some(now + PATIENCE)
    }

    /// The peer asks again, or packets were lost: the next acknowledgement is not kept back.
    #[inline]
    pub(super) fn on_urgent(&mut self) {
        self.packets = MOST;
    }

    /// An acknowledgement is sent, with something else or `alone`.
    #[inline]
    pub(super) fn on_sent(&mut self, alone: bool) {
        if self.since.take().is_some() && alone && self.packets < MOST {
            self.is_welcome = false;
            self.interval = (2 * self.interval).min(LATEST_TRY);
            self.until_try = self.interval;
        }
        self.packets = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant::ZERO + Duration::from_micros(micros)
    }

    /// One that has seen enough acknowledgements ride, and keeps the next one back.
    fn tried() -> Hold {
        let mut hold = Hold::new();
        for _ in 0..FIRST_TRY {
            assert_eq!(hold.on_request(at(0)), None);
            assert_eq!(hold.keep(at(0)), None, "it rides");
            hold.on_sent(false);
        }
        assert_eq!(hold.on_request(at(10)), None);
        assert_eq!(hold.keep(at(10)), Some(at(30)));
        hold
    }

    #[test]
    fn acknowledgements_wait_for_one_another_while_the_peer_goes_on() {
        let mut hold = tried();
        for trip in 2..u64::from(MOST) {
            let now = at(10 * trip);
            assert_eq!(hold.on_request(now), Some(now + PATIENCE), "trip {trip}");
            assert!(hold.keep(now).is_some(), "trip {trip}");
        }
        assert_eq!(hold.on_request(at(90)), Some(at(90)), "that is enough");
        assert_eq!(hold.keep(at(90)), None);
        hold.on_sent(false);
        assert_eq!(hold.on_request(at(100)), None);
        assert!(hold.keep(at(100)).is_some(), "the peer goes on without");
    }

    #[test]
    fn a_peer_that_waits_is_tried_again_later_and_later() {
        let mut hold = tried();
        for tries in 1..4 {
            hold.on_sent(true);
            for _ in 0..FIRST_TRY << tries {
                hold.on_request(at(50));
                assert_eq!(hold.keep(at(50)), None);
                hold.on_sent(false);
            }
            hold.on_request(at(60));
            assert!(hold.keep(at(60)).is_some());
        }
    }

    #[test]
    fn what_is_asked_for_again_is_not_kept_back() {
        let mut hold = tried();
        hold.on_sent(false);
        hold.on_request(at(10));
        hold.on_urgent();
        assert_eq!(hold.keep(at(10)), None);
    }
}
