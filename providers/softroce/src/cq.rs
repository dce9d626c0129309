//! Completion queues: the device's, with the memory of each work given back.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fabric::util::{Report, Slot, SoftQueue};
use fabric::{Completion, Error, PostError, Status, provider};
use rnic::{CompletionChannel, Cq, Device};
use roce::verbs;

use crate::ep::Core;
use crate::error::lost;
use crate::flight::{Flight, Flights};

/// A queue of the device beside what is in flight towards it.
pub(crate) struct CompletionQueue {
    pub(crate) cq: Cq,
    channel: CompletionChannel,
    flights: Mutex<Flights>,
    /// Room, and completions that were taken from the device for another reason than a poll: these come first.
    ready: SoftQueue,
    /// Held by whoever takes completions from the device, so that they stay in order.
    taker: Mutex<Vec<verbs::Completion>>,
    /// Endpoints with shared receives that report here, by queue pair.
    receivers: Mutex<HashMap<u32, Arc<Core>>>,
    sleepers: AtomicUsize,
}

impl CompletionQueue {
    pub(crate) fn new(device: &Device, depth: usize) -> Result<Self, Error> {
        let channel =
            CompletionChannel::new().map_err(|error| Error::io("creating a channel", error))?;
        let cq = device
            .create_cq(depth + SHARED_ROOM, Some(&channel))
            .map_err(|error| lost("creating a completion queue", error))?;
        Ok(Self {
            cq,
            channel,
            flights: Mutex::new(Flights::with_capacity(depth.min(PREPARED))),
            ready: SoftQueue::new(depth),
            taker: Mutex::new(Vec::with_capacity(PREPARED)),
            receivers: Mutex::default(),
            sleepers: AtomicUsize::new(0),
        })
    }

    /// Room for one completion among an endpoint's `outstanding`, of which there are at most `depth`.
    pub(crate) fn reserve(
        &self,
        outstanding: &Arc<AtomicUsize>,
        depth: usize,
    ) -> Result<Slot, PostError> {
        self.ready.reserve(outstanding, depth).or_else(|_| {
            // Unsignalled work that has ended still has its place until somebody looks.
            if let Ok(mut taken) = self.taker.try_lock() {
                self.collect(&mut taken);
            }
            self.ready.reserve(outstanding, depth)
        })
    }

    /// Notes work that is about to be posted; answers the number to post it under.
    pub(crate) fn depart(&self, flight: Flight) -> u64 {
        lock(&self.flights).insert(flight).into()
    }

    /// Takes back work that was not posted after all.
    pub(crate) fn recall(&self, number: u64) -> Flight {
        lock(&self.flights)
            .remove(number as u32)
            .expect("it was not posted, so nobody reports it")
    }

    /// Lets an endpoint with shared receives report here.
    ///
    /// # Errors
    /// [`Error::Limit`] if all receives that are shared here might find no room at once.
    pub(crate) fn admit(&self, endpoint: &Arc<Core>) -> Result<(), Error> {
        let mut receivers = lock(&self.receivers);
        let mut depths: HashMap<_, usize> = HashMap::new();
        for receiver in receivers.values().chain([endpoint]) {
            if let Some(shared) = &receiver.shared {
                depths.insert(shared.srq.id(), shared.depth);
            }
        }
        let asked = depths.values().sum();
        if asked > SHARED_ROOM {
            return Err(Error::Limit {
                what: "the number of shared receives that report to one queue",
                limit: SHARED_ROOM,
                asked,
            });
        }
        receivers.insert(endpoint.qp.qpn().value(), Arc::clone(endpoint));
        Ok(())
    }

    /// Reports all that is left of an endpoint whose queue pair is in error, so that nothing of it comes later.
    pub(crate) fn dismiss(&self, endpoint: &Arc<Core>) {
        {
            let mut taken = lock(&self.taker);
            self.collect(&mut taken);
            let left = lock(&self.flights).remove_of(endpoint);
            for flight in left {
                let opcode = flight.opcode;
                let (completion, slot) = endpoint.finish(flight, opcode, Status::Flushed);
                self.ready.push(completion, slot, Report::Plain);
            }
        }
        let receiver = lock(&self.receivers).remove(&endpoint.qp.qpn().value());
        drop(receiver);
    }

    /// Takes everything from the device.
    fn collect(&self, taken: &mut Vec<verbs::Completion>) {
        // In a forked child the device has nothing to tell.
        while self.cq.poll(taken, PREPARED).unwrap_or(0) > 0 {
            for ended in taken.drain(..) {
                if let Some((completion, slot)) = self.arrive(&ended) {
                    self.ready.push(completion, slot, Report::Plain);
                }
            }
        }
    }

    /// Gives a completion of the device its work back; `None` if nobody is to hear of it.
    fn arrive(&self, ended: &verbs::Completion) -> Option<(Completion, Slot)> {
        let (flight, endpoint) = if ended.wr_id & SHARED == 0 {
            let flight = lock(&self.flights).remove(ended.wr_id as u32)?;
            let endpoint = flight.endpoint.clone()?;
            (flight, endpoint)
        } else {
            let endpoint = lock(&self.receivers).get(&ended.qpn.value()).cloned()?;
            let mut flight = endpoint.shared.as_ref()?.take(ended.wr_id as u32)?;
            self.ready.adopt(&mut flight.slot);
            (flight, endpoint)
        };
        endpoint.arrive(flight, ended)
    }

    /// Whether there is something to poll. Drives the device.
    fn look(&self) -> bool {
        self.collect(&mut lock(&self.taker));
        !self.ready.is_empty()
    }
}

impl provider::CompletionQueue for CompletionQueue {
    fn poll(&self, into: &mut Vec<Completion>, max: usize) -> usize {
        // Who holds it is about to give out the very completions that we would find.
        let Ok(mut taken) = self.taker.try_lock() else {
            return 0;
        };
        let mut count = self.ready.poll(into, max);
        while count < max && self.cq.poll(&mut taken, max - count).unwrap_or(0) > 0 {
            let before = count;
            for ended in taken.drain(..) {
                if let Some((completion, _slot)) = self.arrive(&ended) {
                    into.push(completion);
                    count += 1;
                }
            }
            // Looking again would drive the device again, unless all that came was unsignalled.
            if count > before {
                break;
            }
        }
        count
    }

    fn arm(&self, solicited_only: bool) -> Result<bool, Error> {
        while self.channel.try_event().is_some() {}
        self.cq
            .arm(solicited_only)
            .map_err(|error| lost("arming a completion queue", error))?;
        Ok(self.look())
    }

    fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        let start = Instant::now();
        let spin = SPIN.min(timeout);
        loop {
            if self.look() {
                return Ok(true);
            }
            if start.elapsed() >= spin {
                break;
            }
            std::thread::yield_now();
        }
        loop {
            if self.arm(false)? {
                return Ok(true);
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            // An event wakes one sleeper; with several, each looks for itself now and then.
            let several = self.sleepers.fetch_add(1, Ordering::Relaxed) > 0;
            let nap = if several { SHORT_NAP } else { NAP };
            let _ = self.channel.wait(Some(left.min(nap)));
            self.sleepers.fetch_sub(1, Ordering::Relaxed);
            if self.look() {
                return Ok(true);
            }
        }
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        Ok(self.channel.as_fd())
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing under the lock panics")
}

/// The bit of a work's number that says that it is a shared receive, which is in another table.
pub(crate) const SHARED: u64 = 1 << 63;
/// Shared receives have no room of their own here when they are posted; this is kept for them.
const SHARED_ROOM: usize = 1024;
/// What is prepared for without growing.
const PREPARED: usize = 256;
/// How long a wait drives the device before it sleeps: about what waking up costs.
const SPIN: Duration = Duration::from_micros(50);
/// How long a waiter sleeps before it looks for itself, alone and among several.
const NAP: Duration = Duration::from_millis(100);
const SHORT_NAP: Duration = Duration::from_millis(1);
