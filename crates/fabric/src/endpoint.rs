//! Endpoints as users hold them.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::check::{self, Limits};
use crate::provider::{self, EndpointAttributes};
use crate::{
    Address, AddressVector, Capabilities, CompletionQueue, Domain, EndpointKind, Error, Event,
    EventQueue, PostError, Refused, SharedReceive, Work,
};

/// Names an endpoint in completions and events; unique within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct EndpointId(u64);

impl EndpointId {
    /// One that no endpoint has yet.
    #[must_use]
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ep{}", self.0)
    }
}

/// To which work is posted. Dropping it ends all access to memory in flight and flushes what is outstanding.
pub struct Endpoint {
    // Dropped first: blocks until access ends.
    pub(crate) inner: Arc<dyn provider::Endpoint>,
    pub(crate) domain: u64,
    attributes: EndpointAttributes,
    capabilities: Arc<Capabilities>,
    own_events: bool,
}

impl Endpoint {
    /// Its name in completions and events.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        self.attributes.id
    }

    /// How it finds its peer.
    #[must_use]
    pub fn kind(&self) -> EndpointKind {
        self.attributes.kind
    }

    /// Accepts work from the front of the vector and takes out what was accepted; order is kept. Never blocks.
    ///
    /// Each accepted work ends in one completion; refused work stays in the vector with its buffers.
    ///
    /// # Errors
    /// Why the work that is now first was not accepted. After [`PostError::QueueFull`], poll and post again.
    pub fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        let limits = Limits {
            domain: self.domain,
            capabilities: &self.capabilities,
            kind: self.attributes.kind,
            addresses: &self.attributes.addresses,
            max_inline: self.attributes.max_inline,
            shares_receives: self.attributes.shared_receive.is_some(),
        };
        let valid = check::endpoint_work(work, &limits);
        check::post_valid(work, valid, |work| self.inner.post(work))
    }

    /// Posts one work. For many, [`Endpoint::post`] is cheaper.
    ///
    /// # Errors
    /// [`Refused`] with the work.
    pub fn post_one(&self, work: Work) -> Result<(), Refused> {
        let mut works = ROOM_FOR_ONE.take();
        works.push(work);
        let posted = self.post(&mut works).map_err(|error| Refused {
            error,
            work: Box::new(works.pop().expect("refused work stays")),
        });
        ROOM_FOR_ONE.set(works);
        posted
    }

    /// Starts to connect. The outcome is an event: connected, rejected or unreachable.
    ///
    /// # Errors
    /// [`Error::WrongState`], [`Error::BadAddress`], [`Error::Limit`] for too long private data.
    pub fn start_connect(&self, to: &Address, private_data: &[u8]) -> Result<(), Error> {
        if self.kind() != EndpointKind::Msg {
            return Err(Error::WrongState("only a connected endpoint connects"));
        }
        check_private_data(&self.capabilities, private_data)?;
        self.inner.connect(to, private_data)
    }

    /// Connects; answers the private data that the peer accepted with. Receives can be posted before.
    ///
    /// # Errors
    /// As [`Endpoint::start_connect`] and [`Endpoint::wait_connected`].
    pub fn connect(
        &self,
        to: &Address,
        private_data: &[u8],
        timeout: Duration,
    ) -> Result<Vec<u8>, Error> {
        self.start_connect(to, private_data)?;
        match self.wait_connected(timeout) {
            Err(Error::Disconnected) => Err(Error::Unreachable(to.clone())),
            outcome => outcome,
        }
    }

    /// Waits for the end of connecting, on either side; answers the peer's private data.
    ///
    /// With events shared between endpoints ([`EndpointBuilder::events`]), take them from there instead.
    ///
    /// # Errors
    /// [`Error::Rejected`], [`Error::Disconnected`] if there was no answer, [`Error::TimedOut`].
    pub fn wait_connected(&self, timeout: Duration) -> Result<Vec<u8>, Error> {
        if !self.own_events {
            return Err(Error::WrongState(
                "the endpoint's events go to a shared queue",
            ));
        }
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.attributes.events.wait(left).ok_or(Error::TimedOut)? {
                Event::Connected { private_data, .. } => return Ok(private_data),
                Event::Rejected { private_data, .. } => {
                    return Err(Error::Rejected { private_data });
                }
                Event::Unreachable { .. } | Event::Disconnected { .. } => {
                    return Err(Error::Disconnected);
                }
                Event::ConnectionRequest(_) | Event::ReceiveLimit => {}
            }
        }
    }

    /// Ends the connection: outstanding work on both sides is flushed, both get [`Event::Disconnected`].
    pub fn disconnect(&self) {
        self.inner.disconnect();
    }

    /// Its own address: what peers of a datagram kind insert; the local side of a connection.
    ///
    /// # Errors
    /// [`Error::WrongState`] if it has none yet.
    pub fn address(&self) -> Result<Address, Error> {
        self.inner.address()
    }

    /// The peers that it can name.
    #[must_use]
    pub fn addresses(&self) -> &AddressVector {
        &self.attributes.addresses
    }

    /// What happens to its connection.
    #[must_use]
    pub fn events(&self) -> &EventQueue {
        &self.attributes.events
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("id", &self.id())
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// Kept, so that posting one work allocates nothing; empty between calls.
    static ROOM_FOR_ONE: Cell<Vec<Work>> = const { Cell::new(Vec::new()) };
}

pub(crate) fn check_private_data(
    capabilities: &Capabilities,
    private_data: &[u8],
) -> Result<(), Error> {
    if private_data.len() > capabilities.max_private_data {
        return Err(Error::Limit {
            what: "private data",
            limit: capabilities.max_private_data,
            asked: private_data.len(),
        });
    }
    Ok(())
}

/// An endpoint to be opened: made by [`Domain::endpoint`].
#[must_use = "open() makes the endpoint"]
pub struct EndpointBuilder<'a> {
    domain: &'a Domain,
    send_queue: &'a CompletionQueue,
    recv_queue: &'a CompletionQueue,
    shared_receive: Option<&'a SharedReceive>,
    events: Option<EventQueue>,
    kind: EndpointKind,
    address: Address,
    addresses: Option<AddressVector>,
    send_depth: usize,
    recv_depth: usize,
    max_inline: Option<usize>,
    rnr_retries: Option<u8>,
    retries: Option<u8>,
}

impl<'a> EndpointBuilder<'a> {
    pub(crate) fn new(domain: &'a Domain, kind: EndpointKind, cq: &'a CompletionQueue) -> Self {
        Self {
            domain,
            send_queue: cq,
            recv_queue: cq,
            shared_receive: None,
            events: None,
            kind,
            address: Address::ANY,
            addresses: None,
            send_depth: 128,
            recv_depth: 128,
            max_inline: None,
            rnr_retries: None,
            retries: Some(7),
        }
    }

    /// Reports receives to another queue than the rest.
    pub fn receive_queue(mut self, cq: &'a CompletionQueue) -> Self {
        self.recv_queue = cq;
        self
    }

    /// Takes receives from a shared queue instead of posting them here.
    pub fn shared_receive(mut self, shared: &'a SharedReceive) -> Self {
        self.shared_receive = Some(shared);
        self
    }

    /// Sends its events to a queue that others share, instead of one of its own.
    pub fn events(mut self, events: &EventQueue) -> Self {
        self.events = Some(events.clone());
        self
    }

    /// The address of its own that a datagram kind asks for; otherwise the provider chooses.
    pub fn address(mut self, address: impl Into<Address>) -> Self {
        self.address = address.into();
        self
    }

    /// Shares the peers with other endpoints, instead of a vector of its own.
    pub fn addresses(mut self, addresses: &AddressVector) -> Self {
        self.addresses = Some(addresses.clone());
        self
    }

    /// Most work outstanding, receives apart. Default: 128.
    pub fn send_depth(mut self, depth: usize) -> Self {
        self.send_depth = depth;
        self
    }

    /// Most receives outstanding. Default: 128.
    pub fn recv_depth(mut self, depth: usize) -> Self {
        self.recv_depth = depth;
        self
    }

    /// Most bytes of inline work. Default: 64, or less if the device takes less.
    pub fn max_inline(mut self, bytes: usize) -> Self {
        self.max_inline = Some(bytes);
        self
    }

    /// How often a send is tried again when the peer has no receive posted, 0 to 6; `None` (the default): until it has.
    pub fn rnr_retries(mut self, retries: Option<u8>) -> Self {
        self.rnr_retries = retries;
        self
    }

    /// How often a request is sent again when the peer does not answer; `None`: for ever. Default: 7.
    pub fn retries(mut self, retries: Option<u8>) -> Self {
        self.retries = retries;
        self
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for the kind, [`Error::Limit`] for a depth, [`Error::OtherDomain`] for a queue of another domain,
    /// or what the device answers.
    pub fn open(self) -> Result<Endpoint, Error> {
        let capabilities = self.domain.capabilities_arc();
        self.check(&capabilities)?;
        let own_events = self.events.is_none();
        let attributes = EndpointAttributes {
            id: EndpointId::unique(),
            kind: self.kind,
            address: self.address,
            send_queue: Arc::clone(&self.send_queue.inner),
            recv_queue: Arc::clone(&self.recv_queue.inner),
            shared_receive: self.shared_receive.map(|shared| Arc::clone(&shared.inner)),
            events: self.events.unwrap_or_default(),
            addresses: self.addresses.unwrap_or_default(),
            send_depth: self.send_depth,
            recv_depth: self.recv_depth,
            max_inline: self
                .max_inline
                .unwrap_or_else(|| capabilities.max_inline.min(64)),
            rnr_retries: self.rnr_retries,
            retries: self.retries,
        };
        let inner = self.domain.inner().endpoint(attributes.clone())?;
        Ok(Endpoint {
            inner,
            domain: self.domain.id(),
            attributes,
            capabilities,
            own_events,
        })
    }

    fn check(&self, capabilities: &Capabilities) -> Result<(), Error> {
        if !capabilities.kinds.contains(self.kind.into()) {
            return Err(self.domain.unsupported(&self.kind.to_string()));
        }
        let limits = [
            ("send depth", self.send_depth, capabilities.max_depth),
            ("receive depth", self.recv_depth, capabilities.max_depth),
            (
                "inline bytes",
                self.max_inline.unwrap_or(0),
                capabilities.max_inline,
            ),
            (
                "receiver-not-ready retries",
                self.rnr_retries.unwrap_or(0).into(),
                6,
            ),
            ("retries", self.retries.unwrap_or(0).into(), 7),
        ];
        for (what, asked, limit) in limits {
            if asked > limit {
                return Err(Error::Limit { what, limit, asked });
            }
        }
        let domain = self.domain.id();
        if self.send_queue.domain != domain || self.recv_queue.domain != domain {
            return Err(Error::OtherDomain("the completion queue"));
        }
        if self
            .shared_receive
            .is_some_and(|shared| shared.domain != domain)
        {
            return Err(Error::OtherDomain("the shared receive"));
        }
        Ok(())
    }
}
