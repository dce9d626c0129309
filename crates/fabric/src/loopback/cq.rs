//! Completion queues: filled while work is posted.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::execute;
use crate::util::SoftQueue;
use crate::{Completion, Error, provider};

pub(super) struct CompletionQueue {
    pub(super) queue: SoftQueue,
}

impl CompletionQueue {
    pub(super) fn new(depth: usize) -> Self {
        Self {
            queue: SoftQueue::new(depth),
        }
    }
}

impl provider::CompletionQueue for CompletionQueue {
    fn poll(&self, into: &mut Vec<Completion>, max: usize) -> usize {
        match self.queue.poll(into, max) {
            0 if max > 0 => {
                execute::retry_impatient(&self.queue);
                self.queue.poll(into, max)
            }
            count => count,
        }
    }

    fn arm(&self, solicited_only: bool) -> Result<bool, Error> {
        Ok(self.queue.arm(solicited_only))
    }

    fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let waiting = execute::retry_impatient(&self.queue);
            // Sends that give up after some tries are tried again each millisecond; nothing else needs a clock.
            let slice = if waiting {
                RETRY_INTERVAL.min(left)
            } else {
                left
            };
            if self.queue.wait(slice) {
                return Ok(true);
            }
            if left <= slice {
                return Ok(false);
            }
        }
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        self.queue.fd()
    }
}

const RETRY_INTERVAL: Duration = Duration::from_millis(1);
