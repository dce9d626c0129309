//! The heart of a device: what is under its one lock, and the rounds that move it along.
//!
//! Whoever holds the lock moves the whole device along: takes what was posted, sends one burst, receives one batch, and
//! serves what timers are due. There is at most one send call and one receive call in each of these rounds.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use roce::qp::{ModifyError, Qp as Engine};
use roce::time::Instant;
use roce::verbs::{QpAttr, SendWork};

use crate::capture::Writer;
use crate::counters::Counters;
use crate::event::EventQueue;
use crate::faults::{Injector, Packet};
use crate::gsi::Gsi;
use crate::nic::{COALESCE_AT_MOST, LIVE, Nic};
use crate::qp::{PostError, QpInit, QpShared};
use crate::region::{PdId, RegionTable};
use crate::udp::{Driver, Sent};

/// All that the core lock guards.
pub(crate) struct Core {
    driver: Box<dyn Driver>,
    injector: Option<Injector>,
    nic: Nic,
    /// When the core was last driven by a poll.
    last_poll: Instant,
}
/// What a core is made of.
pub(crate) struct Parts {
    pub(crate) driver: Box<dyn Driver>,
    pub(crate) ip: IpAddr,
    pub(crate) injector: Option<Injector>,
    pub(crate) capture: Option<Writer>,
    pub(crate) events: Arc<EventQueue>,
    /// Extensions are off.
    pub(crate) plain: bool,
    /// Random.
    pub(crate) seed: u64,
}

impl Core {
    /// A core without queue pairs.
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            driver,
            ip,
            injector,
            capture,
            events,
            plain,
            seed,
        } = parts;
        let nic = Nic::new(&*driver, ip, capture, events, plain, seed);
        Self {
            driver,
            injector,
            nic,
            last_poll: Instant::ZERO,
        }
    }

    /// The memory table.
    pub(crate) const fn regions(&mut self) -> &mut RegionTable {
        &mut self.nic.regions
    }

    /// Queue pair 1. What it then has to send or tell is seen to by [`Core::has_work`] and [`Core::send`].
    pub(crate) const fn gsi(&mut self) -> &mut Gsi {
        &mut self.nic.gsi
    }

    /// The engine in `slot`, which is in use.
    pub(crate) fn engine(&self, slot: usize) -> &Engine {
        &self.nic.engines[slot].as_ref().expect(LIVE).engine
    }

    /// Whether the queue pair in `slot` uses the extensions with its peer.
    pub(crate) fn is_extended(&self, slot: usize) -> bool {
        self.nic.engines[slot].as_ref().expect(LIVE).is_extended
    }

    /// What the device counted.
    pub(crate) fn counters(&self) -> Counters {
        let live = self.nic.engines.iter().flatten();
        let resent: u64 = live
            .map(|entry| entry.engine.counters().retransmitted)
            .sum();
        Counters {
            retransmitted: self.nic.counters.retransmitted + resent,
            bytes_copied: self.nic.counters.bytes_copied + self.nic.burst.copied(),
            faults: self
                .injector
                .as_ref()
                .map(Injector::counters)
                .unwrap_or_default(),
            ..self.nic.counters.with_driver(self.driver.counters())
        }
    }

    /// Bytes of the receive buffer, as the kernel accounts them.
    pub(crate) fn receive_buffer(&self) -> usize {
        self.driver.receive_buffer()
    }

    /// The receiving socket.
    pub(crate) fn receiving_fd(&self) -> i32 {
        self.driver.receiving_fd()
    }

    /// Makes a queue pair with a number that `random` draws.
    pub(crate) fn insert_qp(
        &mut self,
        pd: PdId,
        init: &QpInit<'_>,
        random: impl FnMut() -> u32,
    ) -> Arc<QpShared> {
        self.nic.insert_qp(pd, init, random)
    }

    /// Destroys a queue pair: nothing of it is sent or received any more.
    pub(crate) fn remove_qp(&mut self, shared: &QpShared) {
        self.nic.remove_qp(shared);
    }

    /// Changes a queue pair's state or attributes.
    pub(crate) fn modify(&mut self, shared: &QpShared, attr: &QpAttr) -> Result<(), ModifyError> {
        self.nic.modify(shared, attr)
    }

    /// Hands work to an engine, after what waits in its ring. How much of it was accepted, and why the next was not. What
    /// fills a burst leaves on the way.
    #[inline]
    pub(crate) fn post(
        &mut self,
        shared: &QpShared,
        works: &[SendWork],
        is_polled: bool,
        clock: impl Fn() -> Instant,
    ) -> (usize, Result<(), PostError>) {
        self.nic.is_polled = is_polled;
        self.nic.accept_waiting(shared.slot);
        for (index, work) in works.iter().enumerate() {
            if self.nic.posted >= COALESCE_AT_MOST {
                self.send(clock());
            }
            if let Err(refused) = self.nic.accept(shared.slot, work) {
                return (index, Err(refused.into()));
            }
        }
        (works.len(), Ok(()))
    }

    /// Takes what was posted while the core was held, from a queue pair that rang.
    pub(crate) fn answer_ring(&mut self, shared: &Arc<QpShared>) {
        let slot = shared.slot;
        // It may have been destroyed since, and its slot given to another.
        let lives = self.nic.engines.get(slot).is_some_and(|entry| {
            entry
                .as_ref()
                .is_some_and(|entry| Arc::ptr_eq(&entry.shared, shared))
        });
        if lives {
            self.nic.accept_waiting(slot);
            self.nic.touch(slot);
        }
    }

    /// Whether what was posted, so that now `outstanding` pieces are and `before` were, should leave now rather than with
    /// the next poll: when nobody polls, when it has nothing to wait for, when it is likely to be an answer, and when enough
    /// has gathered.
    #[inline]
    pub(crate) fn should_send(&mut self, before: u64, outstanding: u64, is_polled: bool) -> bool {
        self.nic.is_polled = is_polled;
        let is_answer = self.nic.was_asked && outstanding <= FEW;
        !is_polled || before == 0 || is_answer || self.nic.posted >= COALESCE_AT_MOST
    }

    /// Sends one burst of what the engines have. Whether anything was sent.
    pub(crate) fn send(&mut self, now: Instant) -> bool {
        let nic = &mut self.nic;
        nic.posted = 0;
        nic.was_asked = false;
        if nic.active.is_empty() && nic.burst.is_empty() && !nic.gsi.has_work() {
            return false;
        }
        if nic.retry_at.is_some_and(|at| now < at) {
            return false;
        }
        nic.retry_at = None;
        nic.see_to_gsi(now);
        nic.fill_burst(now);
        if nic.burst.is_empty() {
            return false;
        }
        nic.counters.bursts += 1;
        if nic.capture.is_some() {
            nic.capture_burst();
        }
        if self.driver.send(&mut nic.burst) == Sent::Blocked {
            nic.burst.detach();
            nic.retry_at = Some(now + RETRY_AFTER);
        }
        true
    }

    /// Receives one batch and hands it to the engines. Whether anything came.
    pub(crate) fn receive(&mut self, now: Instant) -> bool {
        let arrivals = self.driver.receive();
        let Self {
            driver,
            injector,
            nic,
            ..
        } = self;
        for arrival in (0..arrivals).map(|index| driver.arrival(index)) {
            for (index, bytes) in arrival.bytes.chunks(arrival.segment).enumerate() {
                let packet = Packet {
                    source: arrival.source,
                    index: index as u16,
                    bytes,
                };
                match injector {
                    None => nic.handle(now, packet),
                    Some(injector) => {
                        injector.pass(now, packet, &mut |packet| nic.handle(now, packet))
                    }
                }
            }
        }
        nic.end_hearing(now);
        arrivals > 0
    }

    /// Serves the timers that are due. Whether any was.
    pub(crate) fn serve_timers(&mut self, now: Instant) -> bool {
        let Self { injector, nic, .. } = self;
        let mut any = false;
        if let Some(injector) = injector
            && injector.next_release().is_some_and(|at| at <= now)
        {
            injector.release(now, &mut |packet| nic.handle(now, packet));
            nic.end_hearing(now);
            any = true;
        }
        any |= nic.gsi.handle_timeout(now);
        if nic.peers.poll_timeout().is_some_and(|at| at <= now) {
            let Nic { peers, gsi, .. } = nic;
            peers.repeat(now, |peer, hello| gsi.say(peer, hello));
            any = true;
        }
        nic.serve_timers(now) || any
    }

    /// When something has to be done next, if nothing happens before.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let timer = self.nic.timers.peek().map(|Reverse((at, _))| *at);
        let release = self.injector.as_ref().and_then(Injector::next_release);
        let (cm, peers) = (self.nic.gsi.poll_timeout(), self.nic.peers.poll_timeout());
        [timer, release, cm, peers, self.nic.retry_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether something could be sent at once.
    pub(crate) fn has_work(&self) -> bool {
        (!self.nic.active.is_empty() || self.nic.gsi.has_work()) && self.nic.retry_at.is_none()
    }

    /// One round for a program that polls: what it receives now is answered with what it posts next, or by its next
    /// poll; at once where it is `eager` or polls are far apart.
    pub(crate) fn poll(&mut self, clock: impl Fn() -> Instant, eager: bool) {
        self.nic.is_polled = !eager;
        let mut now = clock();
        if self.send(now) {
            // Sending takes a while, and the answer may be here: its round trip was not nothing.
            now = clock();
        }
        let received = self.receive(now);
        let due = self.serve_timers(now);
        if (received || due) && (eager || now.since(self.last_poll) > SPARSE) {
            self.send(now);
        }
        self.last_poll = now;
        self.flush_capture();
    }

    /// One round for nobody in particular: everything is answered at once. Whether there was anything to do.
    pub(crate) fn serve(&mut self, now: Instant) -> bool {
        self.nic.is_polled = false;
        let received = self.receive(now);
        let due = self.serve_timers(now);
        let sent = self.send(now);
        self.flush_capture();
        received || due || sent
    }

    /// When a poll last began.
    pub(crate) const fn last_poll(&self) -> Instant {
        self.last_poll
    }

    fn flush_capture(&mut self) {
        if let Some(capture) = &mut self.nic.capture {
            capture.flush();
        }
    }
}

/// Outstanding sends of an exchange of questions and answers, whose acknowledgements may be kept back for a while.
const FEW: u64 = 8;
/// How long a burst waits that found the host's queue full.
const RETRY_AFTER: Duration = Duration::from_micros(100);
/// Polls farther apart than this do not answer for one another.
const SPARSE: Duration = Duration::from_micros(20);
