//! Counts posts and completions.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::{Hook, PostedTo};
use crate::{Completion, PostError, Work};

/// The hook; see the module. Keep a clone of its `Arc` to read it.
#[derive(Debug, Default)]
pub struct Stats {
    posted: AtomicU64,
    posts: AtomicU64,
    refused: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    polls: AtomicU64,
    empty_polls: AtomicU64,
}

/// What was counted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Work accepted.
    pub posted: u64,
    /// Calls that posted.
    pub posts: u64,
    /// Calls that were refused something.
    pub refused: u64,
    /// Completions that were successes.
    pub succeeded: u64,
    /// Completions that were not.
    pub failed: u64,
    /// Bytes of the successes.
    pub bytes: u64,
    /// Calls that polled.
    pub polls: u64,
    /// Those that found nothing.
    pub empty_polls: u64,
}

impl Stats {
    /// What was counted so far.
    #[must_use]
    pub fn snapshot(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            posted: read(&self.posted),
            posts: read(&self.posts),
            refused: read(&self.refused),
            succeeded: read(&self.succeeded),
            failed: read(&self.failed),
            bytes: read(&self.bytes),
            polls: read(&self.polls),
            empty_polls: read(&self.empty_polls),
        }
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Hook for Stats {
    fn post(
        &self,
        _: PostedTo,
        work: &mut Vec<Work>,
        next: &dyn Fn(&mut Vec<Work>) -> Result<(), PostError>,
    ) -> Result<(), PostError> {
        let before = work.len();
        let outcome = next(work);
        add(&self.posts, 1);
        add(&self.posted, before - work.len());
        add(&self.refused, outcome.is_err().into());
        outcome
    }

    fn poll(
        &self,
        _: u64,
        into: &mut Vec<Completion>,
        max: usize,
        next: &dyn Fn(&mut Vec<Completion>, usize) -> usize,
    ) -> usize {
        let count = next(into, max);
        add(&self.polls, 1);
        add(&self.empty_polls, (count == 0).into());
        let from = into.len() - count;
        for done in &into[from..] {
            if done.status.is_success() {
                add(&self.succeeded, 1);
                add(&self.bytes, done.len);
            } else {
                add(&self.failed, 1);
            }
        }
        count
    }
}
