//! Completion queues, and the halves of endpoints that report to them.
//!
//! A queue's lock guards all of that: posting takes it once, polling takes it once, and nothing else is taken meanwhile. Polling
//! moves the endpoints of the queue along. What must not happen under the lock (failing an endpoint, whose other half may be with
//! another queue; waking somebody) is noted and done after its release.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fabric::util::Notify;
use fabric::{Completion, EndpointId, Error, provider};

use crate::ep::{Core, Tell};
use crate::fork;
use crate::helper::Home;
use crate::lock::{Guard, Spin};
use crate::ready::{Entry, Ready};
use crate::recv::RecvHalf;
use crate::send::SendHalf;

/// A completion queue.
pub(crate) struct Queue {
    pub(crate) home: Arc<Home>,
    state: Spin<State>,
    /// Written under the lock.
    polls: AtomicU64,
    /// How many there were when the helper last looked, and when it went to sleep on the bell.
    polls_seen: AtomicU64,
    polls_before: AtomicU64,
    notify: Notify,
}

/// What the lock guards.
pub(crate) struct State {
    pub(crate) ready: Ready,
    pub(crate) sends: Vec<Option<SendHalf>>,
    pub(crate) recvs: Vec<Option<RecvHalf>>,
    pub(crate) after: Vec<After>,
}

/// What is done when the lock has been released.
pub(crate) enum After {
    /// An endpoint has failed.
    Fail(Arc<Core>, Tell),
    /// A message waits for a receive, and will not do so for ever.
    Impatient,
}

impl Queue {
    pub(crate) fn new(home: &Arc<Home>, depth: usize) -> Arc<Self> {
        let queue = Arc::new(Self {
            home: Arc::clone(home),
            state: Spin::new(State {
                ready: Ready::new(depth),
                sends: Vec::new(),
                recvs: Vec::new(),
                after: Vec::new(),
            }),
            polls: AtomicU64::new(0),
            polls_seen: AtomicU64::new(0),
            polls_before: AtomicU64::new(0),
            notify: Notify::new(),
        });
        home.node.add_queue(&queue);
        queue
    }

    /// Does something under the lock, and afterwards what it leaves to be done.
    #[inline]
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = act(&mut state);
        self.release(state);
        result
    }

    #[inline]
    fn release(&self, mut state: Guard<'_, State>) {
        if state.ready.wake || !state.after.is_empty() {
            let wake = std::mem::take(&mut state.ready.wake);
            let after = std::mem::take(&mut state.after);
            drop(state);
            self.catch_up(wake, after);
        }
    }

    #[cold]
    fn catch_up(&self, wake: bool, after: Vec<After>) {
        for after in after {
            match after {
                After::Fail(core, tell) => core.fail(tell),
                After::Impatient => self.home.node.be_impatient(),
            }
        }
        if wake {
            self.notify.set();
        }
    }

    /// Moves everything along that reports here, and tells peers how far it is. Answers whether anything happened.
    pub(crate) fn drive(&self) -> bool {
        self.with(|state| {
            let mut any = false;
            while state.advance(true) {
                any = true;
            }
            any
        })
    }

    fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    /// Whether a program polls in a loop: asked now and then by the helper.
    pub(crate) fn is_polled(&self) -> bool {
        let polls = self.polls();
        polls - self.polls_seen.swap(polls, Ordering::Relaxed) >= HABIT
    }

    /// The helper goes to sleep on the bell.
    pub(crate) fn note_sleep(&self) {
        self.polls_before.store(self.polls(), Ordering::Relaxed);
    }

    #[inline]
    fn note_poll(&self) {
        // Only the lock's holder writes.
        let polls = self.polls() + 1;
        self.polls.store(polls, Ordering::Relaxed);
        let node = &self.home.node;
        if node.is_on_bell() && polls - self.polls_before.load(Ordering::Relaxed) >= HABIT {
            node.relieve();
        }
    }

    /// Whether there is something to poll, after having looked.
    fn look(&self) -> bool {
        let Some(mut state) = self.state.try_lock() else {
            return false;
        };
        self.note_poll();
        if state.ready.is_empty() {
            state.advance(false);
        }
        let found = !state.ready.is_empty();
        self.release(state);
        found
    }

    fn is_inherited(&self) -> bool {
        self.home.generation != fork::generation()
    }
}

impl State {
    /// Moves everything along a bit.
    #[inline]
    fn advance(&mut self, at_once: bool) -> bool {
        let Self {
            ready,
            sends,
            recvs,
            after,
        } = self;
        let mut any = false;
        for half in recvs.iter_mut().flatten() {
            any |= half.consume(ready, after, at_once);
        }
        for half in sends.iter_mut().flatten() {
            if half.is_busy() {
                any |= half.advance(ready, after);
            }
        }
        any
    }

    /// Takes a completion; its work is outstanding no more.
    #[inline]
    fn pop(&mut self) -> Option<Completion> {
        let Entry { completion, index } = self.ready.pop()?;
        let index = index as usize;
        let id = completion.endpoint;
        if completion.opcode.is_receive() {
            if let Some(Some(half)) = self.recvs.get_mut(index)
                && half.core.id == id
            {
                half.polled();
            }
        } else if let Some(Some(half)) = self.sends.get_mut(index)
            && half.core.id == id
        {
            half.polled();
        }
        Some(completion)
    }

    /// Adds a half made for its place.
    pub(crate) fn add<T>(halves: &mut Vec<Option<T>>, make: impl FnOnce(u32) -> T) -> u32 {
        let index = match halves.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                halves.push(None);
                halves.len() - 1
            }
        };
        halves[index] = Some(make(index as u32));
        index as u32
    }

    /// The sending half of an endpoint.
    #[inline]
    pub(crate) fn send_half(&mut self, index: u32, id: EndpointId) -> Option<&mut SendHalf> {
        let half = self.sends.get_mut(index as usize)?.as_mut()?;
        (half.core.id == id).then_some(half)
    }

    /// The receiving half of an endpoint.
    #[inline]
    pub(crate) fn recv_half(&mut self, index: u32, id: EndpointId) -> Option<&mut RecvHalf> {
        let half = self.recvs.get_mut(index as usize)?.as_mut()?;
        (half.core.id == id).then_some(half)
    }
}

impl provider::CompletionQueue for Queue {
    fn poll(&self, into: &mut Vec<Completion>, max: usize) -> usize {
        if self.is_inherited() {
            return 0;
        }
        // Who holds it moves things along, and gives out what we would find.
        let Some(mut state) = self.state.try_lock() else {
            return 0;
        };
        self.note_poll();
        if state.ready.is_empty() {
            state.advance(false);
        }
        let mut count = 0;
        while count < max
            && let Some(completion) = state.pop()
        {
            into.push(completion);
            count += 1;
        }
        self.release(state);
        count
    }

    fn arm(&self, solicited_only: bool) -> Result<bool, Error> {
        if self.is_inherited() {
            return Err(fork::error());
        }
        self.notify.clear();
        let found = self.with(|state| {
            state.ready.arm(solicited_only);
            while state.advance(true) {}
            !state.ready.is_empty()
        });
        self.home.node.take_over();
        Ok(found)
    }

    fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        if self.is_inherited() {
            return Err(fork::error());
        }
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
            if provider::CompletionQueue::arm(self, false)? {
                return Ok(true);
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            // With several waiters the one who is late finds the flag cleared by another, so nobody waits for ever.
            self.notify.wait_until(Instant::now() + left.min(NAP));
            if self.look() {
                return Ok(true);
            }
        }
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        self.notify.fd()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        tracing::trace!(
            contended = self.state.contended(),
            "completion queue closed"
        );
    }
}

/// So many polls since the helper last looked, or went to sleep, are a program that polls in a loop, not one that was woken and looks around.
const HABIT: u64 = 16;
/// How long a wait looks for itself before it sleeps: about what waking up costs.
const SPIN: Duration = Duration::from_micros(50);
/// How long a waiter sleeps before it looks for itself.
const NAP: Duration = Duration::from_millis(100);
