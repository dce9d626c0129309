//! Asynchronous events: what happened to an object and is nobody's completion (IBA Vol. 1, 11.6.3).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use roce::verbs::QpEvent;
use roce::wire::Qpn;

use crate::signal::Signal;

/// A completion queue's number, unique within its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CqId(pub(crate) u64);

/// A shared receive queue's number, unique within its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SrqId(pub(crate) u64);

/// Something that happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AsyncEvent {
    /// To a queue pair.
    Qp(Qpn, QpEvent),
    /// A completion queue had no room for a completion, which is lost.
    CqOverrun(CqId),
    /// A shared receive queue has fewer receives than its limit, which is disarmed now.
    SrqLimit(SrqId),
}

/// The events of one device, and the descriptor that is readable while there are any.
#[derive(Debug)]
pub(crate) struct EventQueue {
    signal: Signal,
    events: Mutex<VecDeque<AsyncEvent>>,
}

impl EventQueue {
    /// No events.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            signal: Signal::new()?,
            events: Mutex::default(),
        })
    }

    /// Adds an event. When nobody ever takes events, the oldest are forgotten.
    #[cold]
    pub(crate) fn push(&self, event: AsyncEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(event);
        self.signal.raise();
    }

    /// Takes the oldest event.
    pub(crate) fn take(&self) -> Option<AsyncEvent> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let event = events.pop_front();
        if events.is_empty() {
            self.signal.lower();
        }
        event
    }

    /// Takes the oldest event, for which it waits up to `timeout` (`None`: for ever).
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<AsyncEvent> {
        self.signal.wait(timeout);
        self.take()
    }

    /// Readable while there are events.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

const KEPT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_and_raise_the_descriptor() {
        let queue = EventQueue::new().unwrap();
        assert_eq!(queue.wait(Some(Duration::ZERO)), None);
        queue.push(AsyncEvent::CqOverrun(CqId(1)));
        queue.push(AsyncEvent::SrqLimit(SrqId(2)));
        assert_eq!(queue.wait(None), Some(AsyncEvent::CqOverrun(CqId(1))));
        assert!(queue.signal.wait(Some(Duration::ZERO)));
        assert_eq!(queue.take(), Some(AsyncEvent::SrqLimit(SrqId(2))));
        assert!(!queue.signal.wait(Some(Duration::ZERO)));
        assert_eq!(queue.take(), None);
    }
}
