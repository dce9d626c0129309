//! Shared receive queues (IBA Vol. 1, 10.2.9): receives that any of several queue pairs takes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use roce::verbs::RecvWork;

use crate::device::Device;
use crate::event::{AsyncEvent, EventQueue, SrqId};
use crate::qp::PostError;
use crate::recv_queue::RecvQueue;
use crate::region::PdId;

/// The part of a shared receive queue that the core knows.
pub(crate) struct SrqShared {
    id: SrqId,
    pub(crate) pd: PdId,
    receives: RecvQueue,
    /// Fewer receives than this raise an event, once; 0 is disarmed.
    limit: AtomicU32,
}

impl SrqShared {
    /// Takes the receive posted first; raises the limit event where it is due.
    pub(crate) fn take(&self, events: &EventQueue) -> Option<RecvWork> {
        let work = self.receives.pop()?;
        self.check_limit(events);
        Some(work)
    }

    fn check_limit(&self, events: &EventQueue) {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit != 0
            && self.receives.len() < limit as usize
            && self
                .limit
                .compare_exchange(limit, 0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            events.push(AsyncEvent::SrqLimit(self.id));
        }
    }
}

/// A shared receive queue. Clones are handles to the same queue.
#[derive(Clone)]
pub struct Srq {
    device: Device,
    pub(crate) shared: Arc<SrqShared>,
}

impl Srq {
    pub(crate) fn new(device: Device, pd: PdId, depth: u32, max_sge: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let shared = SrqShared {
            id: SrqId(NEXT.fetch_add(1, Ordering::Relaxed)),
            pd,
            receives: RecvQueue::new(depth as usize, max_sge),
            limit: AtomicU32::new(0),
        };
        Self {
            device,
            shared: Arc::new(shared),
        }
    }

    /// The queue's number: what events name it by.
    #[must_use]
    pub fn id(&self) -> SrqId {
        self.shared.id
    }

    /// Appends a receive.
    ///
    /// # Errors
    /// [`PostError::QueueFull`], [`PostError::TooManyPieces`], [`PostError::DeviceLost`]; nothing was queued.
    pub fn post_recv(&self, work: &RecvWork) -> Result<(), PostError> {
        self.device.alive()?;
        Ok(self.shared.receives.push(work)?)
    }

    /// Takes back the receive posted first that nothing has arrived in.
    #[must_use]
    pub fn take_back(&self) -> Option<RecvWork> {
        self.shared.receives.pop()
    }

    /// Raises [`AsyncEvent::SrqLimit`] once when fewer than `limit` receives are left, at once if that is so already; 0 disarms.
    pub fn arm_limit(&self, limit: u32) {
        self.shared.limit.store(limit, Ordering::Relaxed);
        self.shared.check_limit(self.device.events());
    }

    /// The armed limit; 0 when disarmed.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.shared.limit.load(Ordering::Relaxed)
    }

    /// Receives that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.receives.len()
    }

    /// Whether no receive waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Srq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Srq")
            .field("id", &self.id().0)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
