//! Completion queues and completion channels (IBA Vol. 1, 10.8).
//!
//! The core pushes, any thread polls; neither waits for the other. A channel says which armed queues have news.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use crossbeam_queue::ArrayQueue;
use roce::verbs::{Completion, Status};

use crate::device::{Device, DeviceLost};
use crate::event::{AsyncEvent, CqId, EventQueue};
use crate::signal::Signal;

/// The part of a completion queue that the core knows.
pub(crate) struct CqShared {
    id: CqId,
    ring: ArrayQueue<Completion>,
    armed: AtomicU8,
    overrun: AtomicBool,
    lost: AtomicU64,
    channel: Option<Arc<ChannelShared>>,
}

impl CqShared {
    fn new(depth: usize, channel: Option<Arc<ChannelShared>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: CqId(NEXT.fetch_add(1, Ordering::Relaxed)),
            ring: ArrayQueue::new(depth.max(1)),
            armed: AtomicU8::new(NOT_ARMED),
            overrun: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            channel,
        }
    }

    /// Adds a completion; whether it counts as solicited. A full queue loses it, as hardware does, and says so once. After
    /// the last of several comes [`CqShared::notify`].
    #[inline]
    #[must_use]
    pub(crate) fn push(&self, completion: Completion, events: &EventQueue) -> bool {
        let solicited = completion.solicited || completion.status != Status::Success;
        if self.ring.push(completion).is_err() {
            self.overrun(events);
        }
        solicited
    }

    /// Tells who armed the queue of completions that were added, one of them perhaps `solicited`. Once for all of them: the
    /// fence costs more than adding one.
    #[inline]
    pub(crate) fn notify(&self, solicited: bool) {
        let Some(channel) = &self.channel else { return };
        // SeqCst fence: pairs with the one in `arm`. Either the armer's next poll finds the completion, or we find it
        // armed.
        fence(Ordering::SeqCst);
        let wanted = match self.armed.load(Ordering::Relaxed) {
            ARMED => true,
            ARMED_SOLICITED => solicited,
            _ => false,
        };
        if wanted && self.armed.swap(NOT_ARMED, Ordering::AcqRel) != NOT_ARMED {
            channel.push(self.id);
        }
    }

    #[cold]
    fn overrun(&self, events: &EventQueue) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        if !self.overrun.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                cq = self.id.0,
                depth = self.ring.capacity(),
                "completion queue overrun"
            );
            events.push(AsyncEvent::CqOverrun(self.id));
        }
    }
}

/// A completion queue. Clones are handles to the same queue.
#[derive(Clone)]
pub struct Cq {
    device: Device,
    pub(crate) shared: Arc<CqShared>,
}

impl Cq {
    pub(crate) fn new(device: Device, depth: usize, channel: Option<&CompletionChannel>) -> Self {
        let channel = channel.map(|channel| Arc::clone(&channel.shared));
        Self {
            device,
            shared: Arc::new(CqShared::new(depth, channel)),
        }
    }

    /// The queue's number: what a channel names it by.
    #[must_use]
    pub fn id(&self) -> CqId {
        self.shared.id
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How many completions it holds.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.shared.ring.capacity()
    }

    /// Completions that were lost because the queue was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Moves up to `at_most` completions to the end of `out`; returns how many. Drives the device when there are none
    /// yet.
    ///
    /// # Errors
    /// [`DeviceLost`] in a process that inherited the device by `fork`.
    #[inline]
    pub fn poll(&self, out: &mut Vec<Completion>, at_most: usize) -> Result<usize, DeviceLost> {
        // Looking is cheaper than trying: an attempt on an empty ring is a full fence.
        if self.shared.ring.is_empty() {
            self.device.drive()?;
            if self.shared.ring.is_empty() {
                return Ok(0);
            }
        }
        Ok(self.pop(out, at_most))
    }

    /// The next completion, if there is one. Drives the device when there is none yet.
    ///
    /// # Errors
    /// As [`Cq::poll`].
    #[inline]
    pub fn poll_one(&self) -> Result<Option<Completion>, DeviceLost> {
        // Looking is cheaper than trying: an attempt on an empty ring is a full fence.
        if self.shared.ring.is_empty() {
            self.device.drive()?;
            if self.shared.ring.is_empty() {
                return Ok(None);
            }
        }
        Ok(self.shared.ring.pop())
    }

    /// Has the queue's channel told of the next completion (or the next solicited or failed one), once. Whoever arms
    /// polls once more before sleeping: a completion that came before is not told of.
    ///
    /// # Errors
    /// As [`Cq::poll`].
    pub fn arm(&self, solicited_only: bool) -> Result<(), DeviceLost> {
        self.device.alive()?;
        let level = if solicited_only {
            ARMED_SOLICITED
        } else {
            ARMED
        };
        self.shared.armed.fetch_max(level, Ordering::AcqRel);
        // SeqCst fence: pairs with the one in `notify`.
        fence(Ordering::SeqCst);
        self.device.expect_sleep();
        Ok(())
    }

    fn pop(&self, out: &mut Vec<Completion>, at_most: usize) -> usize {
        let before = out.len();
        while out.len() - before < at_most
            && let Some(completion) = self.shared.ring.pop()
        {
            out.push(completion);
        }
        out.len() - before
    }
}

impl fmt::Debug for Cq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cq")
            .field("id", &self.id().0)
            .field("depth", &self.depth())
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct ChannelShared {
    signal: Signal,
    ready: Mutex<VecDeque<CqId>>,
}

impl ChannelShared {
    fn push(&self, id: CqId) {
        self.ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(id);
        self.signal.raise();
    }

    fn take(&self) -> Option<CqId> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let id = ready.pop_front();
        if ready.is_empty() {
            self.signal.lower();
            // A push between the look and the lowering raised a signal that is now lowered; its entry is behind the
            // lock.
        }
        id
    }
}

/// Tells which armed completion queues have news; has a file descriptor to sleep on. Clones are handles to the same
/// channel.
#[derive(Debug, Clone)]
pub struct CompletionChannel {
    shared: Arc<ChannelShared>,
}

impl CompletionChannel {
    /// A channel without queues.
    ///
    /// # Errors
    /// The process has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        let shared = ChannelShared {
            signal: Signal::new()?,
            ready: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The next queue that has news, if any.
    #[must_use]
    pub fn try_event(&self) -> Option<CqId> {
        self.shared.take()
    }

    /// Sleeps until a queue has news, at most for `timeout` (`None`: for ever).
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> Option<CqId> {
        self.shared.signal.wait(timeout);
        self.shared.take()
    }
}

impl AsFd for CompletionChannel {
    /// Readable while a queue has news that was not taken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.signal.as_fd()
    }
}

const NOT_ARMED: u8 = 0;
const ARMED_SOLICITED: u8 = 1;
/// The higher level includes the lower one: arming for less does not undo arming for more (IBA 11.4.2.2).
const ARMED: u8 = 2;
