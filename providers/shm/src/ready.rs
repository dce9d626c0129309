//! What a completion queue holds: ends of work that wait to be polled, and how much room is spoken for.

use std::collections::VecDeque;

use fabric::Completion;

/// Completions in order.
#[derive(Debug)]
pub(crate) struct Ready {
    depth: usize,
    /// Places that posted work has reserved, and completions that wait.
    reserved: usize,
    entries: VecDeque<Entry>,
    armed: Armed,
    /// Somebody is to be woken when the lock is released.
    pub(crate) wake: bool,
}

/// A completion, and whose work it was.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) completion: Completion,
    /// Where the endpoint is among those of the queue.
    pub(crate) index: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Armed {
    No,
    Solicited,
    Any,
}

impl Ready {
    pub(crate) fn new(depth: usize) -> Self {
        Self {
            depth,
            reserved: 0,
            entries: VecDeque::with_capacity(depth),
            armed: Armed::No,
            wake: false,
        }
    }

    /// How many completions there is room for.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.depth.saturating_sub(self.reserved)
    }

    /// Sets a place aside; beyond the depth for what was accepted elsewhere.
    #[inline]
    pub(crate) fn admit(&mut self) {
        self.reserved += 1;
    }

    /// Gives room back that is not needed.
    #[inline]
    pub(crate) fn release(&mut self) {
        self.reserved -= 1;
    }

    /// Appends a completion, for which there is room.
    #[inline]
    pub(crate) fn push(&mut self, completion: Completion, index: u32, solicited: bool) {
        if self.armed != Armed::No {
            let loud = solicited || !completion.status.is_success();
            if self.armed == Armed::Any || loud {
                self.armed = Armed::No;
                self.wake = true;
            }
        }
        self.entries.push_back(Entry { completion, index });
    }

    /// Takes the next.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.reserved -= 1;
        Some(entry)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn arm(&mut self, solicited_only: bool) {
        self.armed = match solicited_only {
            true => Armed::Solicited,
            false => Armed::Any,
        };
    }
}
