//! How many bytes a queue pair may have in flight.
//!
//! Towards strangers a fixed, conservative window. Between software peers a window steered by delay, after
//! Swift (Kumar et al., SIGCOMM 2020): it grows by one burst a round trip while round trips stay below a target, and
//! shrinks in proportion to the excess, at most once a round trip. Random loss alone does not shrink it: the
//! receiver's buffer is respected through the budget that the receiver advertises.
//! Decisions are taken once per acknowledgement, never per packet.

use std::time::Duration;

use crate::time::Instant;

/// What a peer that says nothing about itself is trusted to take: two bursts of a UDP segmentation offload.
pub(super) const STRANGER_WINDOW: u32 = 128 << 10;

/// Most packets in flight, whatever their size.
pub(super) const MAX_PACKETS: u32 = 512;

/// What one packet costs at the receiver beside its payload, in bytes.
pub(super) const PACKET_OVERHEAD: u32 = 64;

/// One burst: what a single segmentation offload carries.
const BURST: f64 = 61_440.0;

/// Queueing that is taken for scheduling rather than congestion.
const TOLERANCE: Duration = Duration::from_micros(200);

/// The same while packets are lost: a few bursts.
const QUEUE_UNDER_LOSS: Duration = Duration::from_micros(30);

/// The least that a peer gets to answer. A question too many costs one packet.
const SHORTEST_PROBE: Duration = Duration::from_micros(100);

/// The least that an overtaken packet gets to come.
const SHORTEST_REORDER: Duration = Duration::from_micros(10);

#[derive(Debug)]
pub(super) struct Congestion {
    window: f64,
    /// The peer's budget.
    ceiling: f64,
    delay_based: bool,
    smoothed: Option<Duration>,
    variation: Duration,
    fastest: Duration,
    latest: Duration,
    last_decrease: Instant,
}

impl Congestion {
    /// The fixed window for strangers.
    pub(super) fn fixed() -> Self {
        Self {
            window: f64::from(STRANGER_WINDOW),
            ceiling: f64::from(STRANGER_WINDOW),
            delay_based: false,
            smoothed: None,
            variation: Duration::ZERO,
            fastest: Duration::MAX,
            latest: Duration::ZERO,
            last_decrease: Instant::ZERO,
        }
    }

    /// Steers by delay from here on, up to the peer's budget in bytes.
    pub(super) fn use_delay(&mut self, budget: u32) {
        self.delay_based = true;
        self.set_budget(budget);
        self.window = self.ceiling;
    }

    /// What the peer can take, in bytes.
    pub(super) fn set_budget(&mut self, budget: u32) {
        self.ceiling = f64::from(budget).max(BURST / 4.0);
        self.window = self.window.min(self.ceiling);
    }

    /// Bytes that may be in flight.
    #[inline]
    pub(super) fn window(&self) -> u32 {
        self.window as u32
    }

    /// The smoothed round trip, once one was measured.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.smoothed
    }

    /// How long to wait for a sign of life before probing (after RFC 8985, 7.2, and RFC 6298).
    pub(super) fn probe_timeout(&self) -> Duration {
        match self.smoothed {
            Some(smoothed) => (2 * smoothed)
                .max(smoothed + 4 * self.variation)
                .max(SHORTEST_PROBE),
            None => Duration::from_millis(4),
        }
    }

    /// How long an overtaken packet may take to come after all (RFC 8985, 6.2).
    pub(super) fn reorder_window(&self) -> Duration {
        let smoothed = self.smoothed.unwrap_or(SHORTEST_PROBE);
        (smoothed / 4).max(SHORTEST_REORDER)
    }

    /// A round trip was measured; `acked` bytes were acknowledged since the one before.
    pub(super) fn on_round_trip(&mut self, now: Instant, delay: Duration, acked: u32) {
        self.latest = delay;
        self.fastest = self.fastest.min(delay);
        match self.smoothed {
            None => {
                self.smoothed = Some(delay);
                self.variation = delay / 2;
            }
            Some(smoothed) => {
                self.variation = (3 * self.variation + smoothed.abs_diff(delay)) / 4;
                self.smoothed = Some((7 * smoothed + delay) / 8);
            }
        }
        if !self.delay_based {
            return;
        }
        match self.excess(self.target()) {
            Some(excess) => self.shrink(now, excess),
            None => {
                let growth = BURST * (f64::from(acked) / self.window).min(1.0);
                self.window = (self.window + growth).min(self.ceiling);
            }
        }
    }

    /// Something was lost. Only a loss that comes with delay is congestion; and a queue in front of the peer is what a
    /// repetition has to wait in, so under loss less of one is tolerated.
    pub(super) fn on_loss(&mut self, now: Instant) {
        if self.delay_based {
            let target = self.fastest.min(Duration::from_secs(1)) * 2 + QUEUE_UNDER_LOSS;
            if let Some(excess) = self.excess(target) {
                self.shrink(now, excess);
            }
        }
    }

    /// The peer or the network marked congestion explicitly.
    pub(super) fn on_notification(&mut self, now: Instant) {
        self.shrink(now, 0.5);
    }

    /// Nothing came back for a whole timeout, nor in answer to what was sent again then.
    pub(super) fn on_timeout(&mut self, now: Instant) {
        if self.delay_based {
            self.shrink(now, 0.5);
        }
    }

    /// By what share the newest round trip asks the window to shrink; `None` while it is within `target`.
    fn excess(&self, target: Duration) -> Option<f64> {
        let over = self.latest.checked_sub(target)?;
        Some(0.8 * over.as_secs_f64() / self.latest.as_secs_f64())
    }

    fn target(&self) -> Duration {
        (2 * self.fastest.min(Duration::from_secs(1))).max(self.fastest.saturating_add(TOLERANCE))
    }

    fn shrink(&mut self, now: Instant, by: f64) {
        let round_trip = self.smoothed.unwrap_or(TOLERANCE);
        if now.since(self.last_decrease) >= round_trip {
            self.last_decrease = now;
            self.window = (self.window * (1.0 - by.clamp(0.0, 0.5))).max(BURST / 4.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant::ZERO + Duration::from_micros(micros)
    }

    #[test]
    fn delay_shrinks_the_window_once_a_round_trip_and_its_absence_grows_it_back() {
        let mut congestion = Congestion::fixed();
        congestion.use_delay(200_000);
        congestion.on_round_trip(at(1_000), Duration::from_micros(50), 60_000);
        assert_eq!(congestion.window(), 200_000);

        congestion.on_round_trip(at(3_000), Duration::from_micros(2_000), 60_000);
        let shrunk = congestion.window();
        assert!(shrunk < 150_000, "{shrunk}");
        congestion.on_round_trip(at(3_001), Duration::from_micros(2_000), 60_000);
        assert_eq!(congestion.window(), shrunk);

        for round in 0..20 {
            congestion.on_round_trip(at(4_000 + round), Duration::from_micros(50), 60_000);
        }
        assert_eq!(congestion.window(), 200_000);
    }

    #[test]
    fn loss_without_delay_keeps_the_window() {
        let mut congestion = Congestion::fixed();
        congestion.use_delay(200_000);
        congestion.on_round_trip(at(1_000), Duration::from_micros(50), 60_000);
        congestion.on_loss(at(2_000));
        assert_eq!(congestion.window(), 200_000);
    }
}
