//! Completion queues as users hold them.

use std::cell::Cell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Completion, Error, provider};

/// Where the ends of work are reported. A cheap handle.
#[derive(Clone)]
pub struct CompletionQueue {
    pub(crate) inner: Arc<dyn provider::CompletionQueue>,
    pub(crate) domain: u64,
}

impl CompletionQueue {
    /// Appends at most `max` completions to `into`; answers how many. Never blocks.
    pub fn poll(&self, into: &mut Vec<Completion>, max: usize) -> usize {
        self.inner.poll(into, max)
    }

    /// One completion, if there is one.
    #[must_use]
    pub fn poll_one(&self) -> Option<Completion> {
        let mut one = ROOM_FOR_ONE.take();
        self.poll(&mut one, 1);
        let completion = one.pop();
        ROOM_FOR_ONE.set(one);
        completion
    }

    /// Waits until there is something to poll: true; or until the time is over: false.
    ///
    /// # Errors
    /// What the device answers.
    pub fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        self.inner.wait(timeout)
    }

    /// The next completion.
    ///
    /// # Errors
    /// [`Error::TimedOut`], or what the device answers.
    pub fn next(&self, timeout: Duration) -> Result<Completion, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(completion) = self.poll_one() {
                return Ok(completion);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::TimedOut);
            }
            self.wait(left)?;
        }
    }

    /// Asks for the next completion to make [`CompletionQueue::fd`] readable. Answers true if there is something to poll
    /// already: then do not wait.
    ///
    /// ```no_run
    /// # fn wait_readable(_: std::os::fd::BorrowedFd<'_>) {}
    /// # fn serve(cq: &ringmail_fabric::CompletionQueue) -> Result<(), ringmail_fabric::Error> {
    /// if !cq.arm()? {
    ///     wait_readable(cq.fd()?); // by poll(2), epoll or an async runtime
    /// }
    /// while let Some(completion) = cq.poll_one() {
    ///     println!("{completion:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What the device answers.
    pub fn arm(&self) -> Result<bool, Error> {
        self.inner.arm(false)
    }

    /// As [`CompletionQueue::arm`], for the next completion that was solicited or that failed.
    ///
    /// # Errors
    /// What the device answers.
    pub fn arm_solicited(&self) -> Result<bool, Error> {
        self.inner.arm(true)
    }

    /// A descriptor for poll, epoll or an async runtime; see [`CompletionQueue::arm`]. Not to be read from.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is none.
    pub fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        self.inner.fd()
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue").finish_non_exhaustive()
    }
}

thread_local! {
    /// Kept, so that polling for one completion allocates nothing; empty between calls.
    static ROOM_FOR_ONE: Cell<Vec<Completion>> = const { Cell::new(Vec::new()) };
}
