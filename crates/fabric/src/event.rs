//! What happens to endpoints and listeners beside completions.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::util::Notify;
use crate::{ConnectionRequest, EndpointId, Error};

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A peer asks a listener for a connection.
    ConnectionRequest(ConnectionRequest),
    /// The endpoint is connected: work can be posted.
    Connected {
        /// Which.
        endpoint: EndpointId,
        /// What the accepting side said; empty on that side itself.
        private_data: Vec<u8>,
    },
    /// The peer refused to connect.
    Rejected {
        /// Which.
        endpoint: EndpointId,
        /// What it said.
        private_data: Vec<u8>,
    },
    /// Nobody answered, or nobody listens there.
    Unreachable {
        /// Which.
        endpoint: EndpointId,
    },
    /// The connection ended: the peer closed it or died, or an operation failed. Outstanding work is flushed.
    Disconnected {
        /// Which.
        endpoint: EndpointId,
    },
    /// Fewer receives are left in the shared queue than were asked to be.
    ReceiveLimit,
}

impl Event {
    /// The endpoint that it is about.
    #[must_use]
    pub fn endpoint(&self) -> Option<EndpointId> {
        match self {
            Self::Connected { endpoint, .. }
            | Self::Rejected { endpoint, .. }
            | Self::Unreachable { endpoint }
            | Self::Disconnected { endpoint } => Some(*endpoint),
            Self::ConnectionRequest(_) | Self::ReceiveLimit => None,
        }
    }
}

/// Where events wait to be taken. A cheap handle; endpoints and listeners can share one.
#[derive(Debug, Clone, Default)]
pub struct EventQueue {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Mutex<VecDeque<Event>>,
    notify: Notify,
}

impl EventQueue {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next event.
    #[must_use]
    pub fn poll(&self) -> Option<Event> {
        let mut events = self
            .inner
            .events
            .lock()
            .expect("nothing under the lock panics");
        let event = events.pop_front();
        if events.is_empty() {
            self.inner.notify.clear();
        }
        event
    }

    /// The next event, if there is one within `timeout`.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> Option<Event> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.poll() {
                return Some(event);
            }
            if !self.inner.notify.wait_until(deadline) {
                return self.poll();
            }
        }
    }

    /// A descriptor that is readable while events wait.
    ///
    /// # Errors
    /// What creating it answers.
    pub fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        self.inner.notify.fd()
    }

    /// For providers: appends an event.
    pub fn push(&self, event: Event) {
        let mut events = self
            .inner
            .events
            .lock()
            .expect("nothing under the lock panics");
        events.push_back(event);
        self.inner.notify.set();
    }

    /// Forgets what waits; requests among it are rejected.
    pub(crate) fn clear(&self) {
        while self.poll().is_some() {}
    }
}
