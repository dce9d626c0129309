//! A completion queue in memory, for providers whose completions are made by software.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::Notify;
use crate::{Completion, Error, PostError};

/// Completions, with slots that are reserved at post and freed at poll. A cheap handle.
#[derive(Debug, Clone)]
pub struct SoftQueue {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    depth: usize,
    /// Slots reserved or holding a completion. Shared with them, and nothing else is: a queue holds slots, so one that slots
    /// held would never drop while completions wait in it.
    taken: Arc<AtomicUsize>,
    state: Mutex<State>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<(Completion, Option<Slot>)>,
    armed: Armed,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Armed {
    #[default]
    No,
    Solicited,
    Any,
}

/// Room for one completion, and for one work of an endpoint; both are free again when this drops.
#[derive(Debug)]
pub struct Slot {
    /// What is taken of the queue that has room for it.
    taken: Option<Arc<AtomicUsize>>,
    outstanding: Arc<AtomicUsize>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
        if let Some(taken) = &self.taken {
            taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Slot {
    /// Room for one work among an endpoint's or shared queue's `outstanding`, of which there are at most `depth`, without room
    /// in a completion queue yet.
    ///
    /// # Errors
    /// [`PostError::QueueFull`].
    pub fn counted(outstanding: &Arc<AtomicUsize>, depth: usize) -> Result<Self, PostError> {
        count(outstanding, depth)?;
        Ok(Self {
            taken: None,
            outstanding: Arc::clone(outstanding),
        })
    }
}

/// How a completion counts for those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Wakes those who armed for anything.
    Plain,
    /// Also wakes those who armed for solicited completions; failures always do.
    Solicited,
}

impl SoftQueue {
    /// A queue of `depth` slots.
    #[must_use]
    pub fn new(depth: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                depth,
                taken: Arc::default(),
                state: Mutex::default(),
                notify: Notify::new(),
            }),
        }
    }

    /// Whether this handle is to the same queue as `other`.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Reserves room for a work's completion, and counts it among an endpoint's `outstanding`, of which there are at most `depth`.
    ///
    /// # Errors
    /// [`PostError::QueueFull`].
    pub fn reserve(&self, outstanding: &Arc<AtomicUsize>, depth: usize) -> Result<Slot, PostError> {
        // A slot frees only what has been counted, so it is made between the two.
        let mut slot = Slot::counted(outstanding, depth)?;
        count(&self.inner.taken, self.inner.depth)?;
        slot.taken = Some(Arc::clone(&self.inner.taken));
        Ok(slot)
    }

    /// Moves a slot to this queue: a shared receive is reported where the endpoint that took it reports.
    ///
    /// Never refuses, since the work was accepted long ago.
    pub fn adopt(&self, slot: &mut Slot) {
        self.inner.taken.fetch_add(1, Ordering::Relaxed);
        if let Some(before) = slot.taken.replace(Arc::clone(&self.inner.taken)) {
            before.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Reports the end of a work, whose slot (if room was reserved here) frees when it is polled.
    pub fn push(&self, completion: Completion, slot: impl Into<Option<Slot>>, report: Report) {
        let mut state = self.lock();
        let solicited = report == Report::Solicited || !completion.status.is_success();
        state.ready.push_back((completion, slot.into()));
        let wake = match state.armed {
            Armed::No => false,
            Armed::Solicited => solicited,
            Armed::Any => true,
        };
        if wake {
            state.armed = Armed::No;
            self.inner.notify.set();
        }
    }

    /// Whether there is nothing to poll.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().ready.is_empty()
    }

    /// Takes at most `max` completions.
    pub fn poll(&self, into: &mut Vec<Completion>, max: usize) -> usize {
        let mut state = self.lock();
        let count = max.min(state.ready.len());
        into.extend(
            state
                .ready
                .drain(..count)
                .map(|(completion, _slot)| completion),
        );
        count
    }

    /// As [`crate::provider::CompletionQueue::arm`].
    #[must_use]
    pub fn arm(&self, solicited_only: bool) -> bool {
        let mut state = self.lock();
        self.inner.notify.clear();
        state.armed = if solicited_only {
            Armed::Solicited
        } else {
            Armed::Any
        };
        !state.ready.is_empty()
    }

    /// As [`crate::provider::CompletionQueue::wait`], without making progress.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.arm(false) || self.inner.notify.wait_until(deadline) || !self.lock().ready.is_empty()
    }

    /// As [`crate::provider::CompletionQueue::fd`].
    ///
    /// # Errors
    /// What creating it answers.
    pub fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        self.inner.notify.fd()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .expect("nothing under the lock panics")
    }
}

fn count(taken: &AtomicUsize, limit: usize) -> Result<(), PostError> {
    taken
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < limit).then_some(taken + 1)
        })
        .map(|_| ())
        .map_err(|_| PostError::QueueFull)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EndpointId, Opcode, Status};

    #[test]
    fn a_queue_dropped_with_completions_in_it_frees_them() {
        let outstanding = Arc::default();
        let queue = SoftQueue::new(1);
        let slot = queue.reserve(&outstanding, 1).unwrap();
        let completion = Completion {
            context: 0,
            status: Status::Flushed,
            opcode: Opcode::Recv,
            len: 0,
            immediate: None,
            invalidated: None,
            endpoint: EndpointId::unique(),
            peer: None,
            local: crate::Segments::default(),
        };
        queue.push(completion, slot, Report::Plain);
        assert_eq!(
            queue.reserve(&outstanding, 2).err(),
            Some(PostError::QueueFull)
        );
        drop(queue);
        // Its slot was dropped, and the memory of the work with it.
        assert_eq!(outstanding.load(Ordering::Relaxed), 0);
    }
}
