//! Completion queues: the device's, with the memory of each work given back.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fabric::provider::Exposed;
use fabric::{Completion, Error, Status, provider};
use rnic::{CompletionChannel, Cq, Device};
use roce::verbs;

use crate::ep::Core;
use crate::error::lost;
use crate::flight::{Flights, Table};

/// A queue of the device beside what is in flight towards it.
pub(crate) struct CompletionQueue {
    pub(crate) cq: Cq,
    channel: CompletionChannel,
    depth: usize,
    /// Completions that there are or will be, of at most `depth`.
    taken: AtomicUsize,
    /// Locked after `taker`, by whoever needs both.
    table: Mutex<Table>,
    /// Held by whoever takes completions from the device, so that they stay in order.
    taker: Mutex<Taker>,
    sleepers: AtomicUsize,
}

/// What is on its way from the device to the program.
#[derive(Default)]
struct Taker {
    ended: Vec<verbs::Completion>,
    /// Completions that were taken from the device for another reason than a poll: these come first.
    ready: VecDeque<(Completion, Place)>,
    /// Memory of work that nobody is to hear of, to be dropped.
    spent: Vec<Exposed>,
    /// What endpoints are to suffer from.
    failed: Vec<(Arc<Core>, verbs::Completion)>,
}

/// A place among what is outstanding, which frees when it drops.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
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
            depth,
            taken: AtomicUsize::new(0),
            table: Mutex::new(Table {
                flights: Flights::with_capacity(depth.min(PREPARED)),
                ..Table::default()
            }),
            taker: Mutex::new(Taker {
                ended: Vec::with_capacity(PREPARED),
                ..Taker::default()
            }),
            sleepers: AtomicUsize::new(0),
        })
    }

    /// Room for up to `wanted` completions among an endpoint's `outstanding`, of which there are at most `depth`; how many.
    #[inline]
    pub(crate) fn reserve(&self, outstanding: &AtomicUsize, depth: usize, wanted: usize) -> usize {
        match self.try_reserve(outstanding, depth, wanted) {
            0 => {
                // Unsignalled work that has ended still has its place until somebody looks.
                if let Ok(mut taker) = self.taker.try_lock() {
                    self.collect(&mut taker);
                }
                self.try_reserve(outstanding, depth, wanted)
            }
            room => room,
        }
    }

    #[inline]
    fn try_reserve(&self, outstanding: &AtomicUsize, depth: usize, wanted: usize) -> usize {
        let room = take(outstanding, depth, wanted);
        let both = take(&self.taken, self.depth, room);
        if both < room {
            outstanding.fetch_sub(room - both, Ordering::Relaxed);
        }
        both
    }

    /// Gives up room for `places` completions that there will not be.
    pub(crate) fn give_up(&self, outstanding: &AtomicUsize, places: usize) {
        outstanding.fetch_sub(places, Ordering::Relaxed);
        self.taken.fetch_sub(places, Ordering::Relaxed);
    }

    /// What is in flight. Nothing may be dropped under its lock that a device knows.
    #[inline]
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Lets an endpoint with shared receives report here.
    ///
    /// # Errors
    /// [`Error::Limit`] if all receives that are shared here might find no room at once.
    pub(crate) fn admit(&self, endpoint: &Core, seat: u32) -> Result<(), Error> {
        let mut table = self.table();
        let mut depths: HashMap<_, usize> = HashMap::new();
        let seats = table.receivers.values().chain([&seat]);
        let receivers = seats.filter_map(|seat| table.seats.get(*seat as usize)?.as_ref());
        for receiver in receivers {
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
        table.receivers.insert(endpoint.qp.qpn().value(), seat);
        Ok(())
    }

    /// Reports all that is left of an endpoint whose queue pair is in error, so that nothing of it comes later.
    pub(crate) fn dismiss(&self, endpoint: &Core, seat: u32) {
        let mut taker = lock(&self.taker);
        self.collect(&mut taker);
        let mut table = self.table();
        for number in table.flights.of(seat) {
            if let Some(flight) = table.flights.land(number) {
                let opcode = flight.opcode;
                let completion = endpoint.finish(flight, opcode, Status::Flushed);
                let place = Place(Arc::clone(endpoint.outstanding(opcode)));
                taker.ready.push_back((completion, place));
            }
        }
        table.receivers.remove(&endpoint.qp.qpn().value());
        let seated = table.seats[seat as usize].take();
        drop((table, taker));
        drop(seated);
    }

    /// Takes everything from the device.
    fn collect(&self, taker: &mut Taker) {
        // In a forked child the device has nothing to tell.
        while self.cq.poll(&mut taker.ended, PREPARED).unwrap_or(0) > 0 {
            let mut ready = std::mem::take(&mut taker.ready);
            self.settle(taker, |completion, outstanding| {
                outstanding.fetch_add(1, Ordering::Relaxed);
                self.taken.fetch_add(1, Ordering::Relaxed);
                ready.push_back((completion, Place(Arc::clone(outstanding))));
            });
            taker.ready = ready;
        }
    }

    /// Gives completions of the device their work back. What is reported no longer has room kept for it here.
    #[inline]
    fn settle(&self, taker: &mut Taker, mut report: impl FnMut(Completion, &Arc<AtomicUsize>)) {
        let Taker {
            ended,
            spent,
            failed,
            ..
        } = taker;
        let mut freed = 0;
        let mut table = self.table();
        let Table {
            flights,
            seats,
            receivers,
        } = &mut *table;
        for ended in ended.drain(..) {
            let number = ended.wr_id as u32;
            let mut shared = None;
            let (seat, flight) = if ended.wr_id & SHARED == 0 {
                let Some(flight) = flights.land(number) else {
                    continue;
                };
                freed += 1;
                (flight.seat, Some(flight))
            } else {
                let Some(&seat) = receivers.get(&ended.qpn.value()) else {
                    continue;
                };
                (seat, None)
            };
            let Some(Some(endpoint)) = seats.get(seat as usize) else {
                continue;
            };
            let flight = match (flight, &endpoint.shared) {
                (Some(flight), _) => flight,
                (None, Some(receives)) => {
                    let flights = shared.insert(receives.flights());
                    match flights.land(number) {
                        Some(flight) => flight,
                        None => continue,
                    }
                }
                (None, None) => continue,
            };
            if ended.status != verbs::Status::Success {
                failed.push((Arc::clone(endpoint), ended));
            }
            let outstanding = endpoint.outstanding(flight.opcode);
            outstanding.fetch_sub(1, Ordering::Relaxed);
            match endpoint.arrive(flight, &ended) {
                Some(completion) => report(completion, outstanding),
                None => spent.push(std::mem::take(&mut flight.local)),
            }
        }
        drop(table);
        self.taken.fetch_sub(freed, Ordering::Relaxed);
        spent.clear();
        for (endpoint, ended) in failed.drain(..) {
            endpoint.suffer(&ended);
        }
    }

    /// Whether there is something to poll. Drives the device.
    fn look(&self) -> bool {
        let mut taker = lock(&self.taker);
        self.collect(&mut taker);
        !taker.ready.is_empty()
    }
}

/// Counts up to `wanted` more, to at most `limit`; how many.
#[inline]
pub(crate) fn take(counter: &AtomicUsize, limit: usize, wanted: usize) -> usize {
    let mut got = 0;
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
        got = wanted.min(limit.saturating_sub(taken));
        (got > 0).then_some(taken + got)
    });
    got
}

impl provider::CompletionQueue for CompletionQueue {
    fn poll(&self, into: &mut Vec<Completion>, max: usize) -> usize {
        // Who holds it is about to give out the very completions that we would find.
        let Ok(mut taker) = self.taker.try_lock() else {
            return 0;
        };
        let before = into.len();
        let first = max.min(taker.ready.len());
        if first > 0 {
            into.extend(taker.ready.drain(..first).map(|(completion, _)| completion));
            self.taken.fetch_sub(first, Ordering::Relaxed);
        }
        loop {
            let wanted = max - (into.len() - before);
            if wanted == 0 || self.cq.poll(&mut taker.ended, wanted).unwrap_or(0) == 0 {
                break;
            }
            self.settle(&mut taker, |completion, _| into.push(completion));
            // Looking again would drive the device again, unless all that came was unsignalled.
            if into.len() > before {
                break;
            }
        }
        into.len() - before
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
