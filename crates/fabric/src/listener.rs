//! Listeners and the requests they hear.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::endpoint::check_private_data;
use crate::provider::{self, PendingConnection};
use crate::{Address, Capabilities, Endpoint, EndpointKind, Error, Event, EventQueue};

/// Hears connection requests until it drops.
pub struct Listener {
    inner: Box<dyn provider::Listener>,
    events: EventQueue,
    owns_events: bool,
}

impl Listener {
    pub(crate) fn new(
        inner: Box<dyn provider::Listener>,
        events: EventQueue,
        owns_events: bool,
    ) -> Self {
        Self {
            inner,
            events,
            owns_events,
        }
    }

    /// Where it listens, with the port that was chosen: what peers connect to.
    #[must_use]
    pub fn address(&self) -> Address {
        self.inner.address()
    }

    /// The next request.
    ///
    /// # Errors
    /// [`Error::TimedOut`]. [`Error::WrongState`] if its events go to a shared queue: take them from there.
    pub fn next(&self, timeout: Duration) -> Result<ConnectionRequest, Error> {
        if !self.owns_events {
            return Err(Error::WrongState(
                "the listener's events go to a shared queue",
            ));
        }
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.wait(left).ok_or(Error::TimedOut)?;
            if let Event::ConnectionRequest(request) = event {
                return Ok(request);
            }
        }
    }

    /// Where its requests go.
    #[must_use]
    pub fn events(&self) -> &EventQueue {
        &self.events
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Requests that nobody will answer are rejected now, not when the last handle to the queue drops.
        if self.owns_events {
            self.events.clear();
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

/// A peer that wants to connect. Dropped without an answer, it is rejected.
pub struct ConnectionRequest {
    pending: Box<dyn PendingConnection>,
    capabilities: Arc<Capabilities>,
    from: Address,
    private_data: Vec<u8>,
}

impl ConnectionRequest {
    /// For providers: a request to put into an event.
    #[must_use]
    pub fn new(
        pending: Box<dyn PendingConnection>,
        capabilities: Arc<Capabilities>,
        from: Address,
        private_data: Vec<u8>,
    ) -> Self {
        Self {
            pending,
            capabilities,
            from,
            private_data,
        }
    }

    /// Where the peer is.
    #[must_use]
    pub fn from(&self) -> &Address {
        &self.from
    }

    /// What it said. It may be longer than what was sent, by zeros, where the wire format has a fixed length.
    #[must_use]
    pub fn private_data(&self) -> &[u8] {
        &self.private_data
    }

    /// Connects the peer with `endpoint`, which gets [`Event::Connected`] when the peer has heard of it.
    ///
    /// # Errors
    /// [`Error::OtherDomain`], [`Error::WrongState`], [`Error::Limit`] for too long private data, [`Error::Disconnected`] if the
    /// peer has given up.
    pub fn accept(self, endpoint: &Endpoint, private_data: &[u8]) -> Result<(), Error> {
        if endpoint.kind() != EndpointKind::Msg {
            return Err(Error::WrongState(
                "only a connected endpoint is accepted with",
            ));
        }
        check_private_data(&self.capabilities, private_data)?;
        self.accept_for(&*endpoint.inner, private_data)
    }

    /// Connects the peer with a provider's endpoint.
    pub(crate) fn accept_for(
        self,
        endpoint: &dyn provider::Endpoint,
        private_data: &[u8],
    ) -> Result<(), Error> {
        let mut inner = endpoint;
        while let Some(below) = inner.decorated() {
            inner = below;
        }
        self.pending.accept(inner, private_data)
    }

    /// Refuses, with a reason for the peer.
    ///
    /// # Errors
    /// [`Error::Limit`] for too long private data; the peer is refused without it.
    pub fn reject(self, private_data: &[u8]) -> Result<(), Error> {
        check_private_data(&self.capabilities, private_data)?;
        self.pending.reject(private_data);
        Ok(())
    }
}

impl fmt::Debug for ConnectionRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionRequest")
            .field("from", &self.from)
            .field("private_data", &self.private_data.len())
            .finish_non_exhaustive()
    }
}
