//! A completion queue whose entries of connections are turned into those of their datagram endpoint.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use super::core::Core;
use crate::util::{Report, SoftQueue};
use crate::{Completion, EndpointId, Error, provider};

pub(super) struct Queue {
    inner: Arc<dyn provider::CompletionQueue>,
    /// What has been turned, in order.
    soft: SoftQueue,
    /// Whose connections report here, by the connection's name.
    routes: Mutex<HashMap<EndpointId, Arc<Core>>>,
    /// Held while entries move from `inner` to `soft`, so that they keep their order.
    moving: Mutex<Vec<Completion>>,
    /// Whether some endpoint has work that a full queue below refused.
    backlog: AtomicBool,
    /// Whether a datagram endpoint reports here, or has done so. Until then nothing is turned: what is below is what is polled.
    layered: AtomicBool,
    both: OnceLock<OwnedFd>,
}

impl Queue {
    pub(super) fn new(inner: Arc<dyn provider::CompletionQueue>, depth: usize) -> Self {
        Self {
            inner,
            soft: SoftQueue::new(depth),
            routes: Mutex::default(),
            moving: Mutex::default(),
            backlog: AtomicBool::new(false),
            layered: AtomicBool::new(false),
            both: OnceLock::new(),
        }
    }

    pub(super) fn inner(&self) -> &Arc<dyn provider::CompletionQueue> {
        &self.inner
    }

    pub(super) fn soft(&self) -> &SoftQueue {
        &self.soft
    }

    /// A datagram endpoint is being opened that will report here.
    pub(super) fn layer(&self) {
        // Release: pairs with the acquire load below. It comes before all that the endpoint's connections report, and who
        // polls that sees it.
        self.layered.store(true, Ordering::Release);
    }

    #[inline]
    fn is_layered(&self) -> bool {
        // Acquire: pairs with the release store above.
        self.layered.load(Ordering::Acquire)
    }

    pub(super) fn route(&self, connection: EndpointId, core: &Arc<Core>) {
        self.routes().insert(connection, Arc::clone(core));
    }

    pub(super) fn unroute(&self, connection: EndpointId) {
        self.routes().remove(&connection);
    }

    /// Has work tried again that was refused below, at the next poll.
    pub(super) fn has_backlog(&self) {
        self.backlog.store(true, Ordering::Relaxed);
    }

    /// Moves what has been reported below, at most `max`; answers how many.
    pub(super) fn turn(&self, max: usize) -> usize {
        let mut moving = self.moving.lock().expect("nothing under the lock panics");
        let count = self.inner.poll(&mut moving, max);
        self.sort(moving.drain(..));
        drop(moving);
        if self.backlog.swap(false, Ordering::Relaxed) {
            let cores: Vec<_> = self.routes().values().cloned().collect();
            for core in cores {
                core.post_backlog();
            }
        }
        count
    }

    /// Turns what was polled below.
    fn sort(&self, completions: impl Iterator<Item = Completion>) {
        for completion in completions {
            let core = self.routes().get(&completion.endpoint).cloned();
            match core {
                None => self.soft.push(completion, None, Report::Plain),
                Some(core) => {
                    if let Some((completion, slot)) = core.turn(completion) {
                        self.soft.push(completion, slot, Report::Plain);
                    }
                }
            }
        }
    }

    fn routes(&self) -> MutexGuard<'_, HashMap<EndpointId, Arc<Core>>> {
        self.routes.lock().expect("nothing under the lock panics")
    }
}

impl provider::CompletionQueue for Queue {
    fn poll(&self, into: &mut Vec<Completion>, max: usize) -> usize {
        if !self.is_layered() {
            let before = into.len();
            let count = self.inner.poll(into, max);
            if !self.is_layered() {
                return count;
            }
            // An endpoint was opened meanwhile: what was polled may be of its connections.
            self.sort(into.drain(before..));
        }
        self.turn(max);
        self.soft.poll(into, max)
    }

    fn arm(&self, solicited_only: bool) -> Result<bool, Error> {
        if !self.is_layered() {
            let found = self.inner.arm(solicited_only)?;
            return Ok(self.soft.arm(solicited_only) || found);
        }
        while self.inner.arm(solicited_only)? {
            if self.turn(BATCH) == 0 {
                break;
            }
        }
        Ok(self.soft.arm(solicited_only))
    }

    fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Only the failure of an attempt to connect is reported without the queue below: look for it now and then.
            let nap = left.min(LOOK_AGAIN);
            if !self.is_layered() {
                if self.inner.wait(nap)? {
                    return Ok(true);
                }
            } else {
                self.turn(BATCH);
                if self.soft.wait(Duration::ZERO) {
                    return Ok(true);
                }
                self.inner.wait(nap)?;
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        use rustix::event::epoll;
        if let Some(both) = self.both.get() {
            return Ok(both.as_fd());
        }
        let failed = |error: rustix::io::Errno| Error::io("joining two descriptors", error.into());
        let both = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        for (number, fd) in [(0, self.inner.fd()?), (1, self.soft.fd()?)] {
            let data = epoll::EventData::new_u64(number);
            epoll::add(&both, fd, data, epoll::EventFlags::IN).map_err(failed)?;
        }
        Ok(self.both.get_or_init(|| both).as_fd())
    }

    #[cfg(not(target_os = "linux"))]
    fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        self.inner.fd()
    }
}

/// How many entries are moved at once where nobody said how many they want.
const BATCH: usize = 64;

const LOOK_AGAIN: Duration = Duration::from_millis(10);
