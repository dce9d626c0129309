//! The contract that a provider implements.
//!
//! Users never see these traits: they hold [`crate::Domain`], [`crate::Endpoint`] and so on, which check what can be checked
//! without the device (bounds, rights of local memory, capabilities, limits, ownership of buffers) and then call here.
//! Hooks are decorators: providers over a provider.
//!
//! # Five sentences
//!
//! A provider upholds these; each has its test in the conformance suite.
//!
//! 1. **Memory is touched only while it may be.** A work's memory is touched only between the post that accepted it and
//!    the poll that reports it, or the drop of its endpoint, which blocks until all access has ended.
//! 2. **Each context is reported exactly once.** A slot of the completion queue is reserved at post, else the post
//!    answers [`PostError::QueueFull`]. Work outstanding when its endpoint drops is reported as flushed.
//!    (Unsignalled work is reported only if it fails.)
//! 3. **No access after `deregister` returns.** Neither a peer nor the device touches the region any more, and the
//!    provider has dropped its handles to the memory.
//! 4. **Exposed memory is accessed only through `mem`'s copies and words, or by hardware.** Never by a reference.
//! 5. **A flag written after data is never seen before the data**, where the provider says
//!    [`crate::Capabilities::ordered_placement`].
//!
//! Everything is `Send + Sync` and takes `&self`: what a provider locks is its own affair.

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use mem::Memory;

pub use crate::memory::{Exposed, ExposedSegment};
use crate::{
    Access, Address, AddressVector, Completion, Config, EndpointId, EndpointKind, Error, Event,
    EventQueue, Info, PostError, Setting, Work,
};

/// A way to move bytes: hardware, a foreign library, or a software path.
pub trait Provider: Any + Send + Sync {
    /// Its name: short, lower case, unique in a registry.
    fn name(&self) -> &'static str;

    /// The settings that it reads, each named `NAME.something`, or without its name where other providers may read it too.
    fn settings(&self) -> &'static [Setting] {
        &[]
    }

    /// The devices that are here.
    ///
    /// # Errors
    /// [`Error::Absent`] with what is missing.
    fn discover(&self, config: &Config) -> Result<Vec<Info>, Error>;

    /// Opens one of the devices that [`Provider::discover`] found.
    ///
    /// # Errors
    /// What the device answers.
    fn open(&self, info: &Info, config: &Config) -> Result<Arc<dyn Domain>, Error>;
}

/// An opened device. Its objects keep what they need of it alive.
pub trait Domain: Any + Send + Sync {
    /// What was opened.
    fn info(&self) -> &Info;

    /// What the device has counted since it was opened, by name. A provider that counts packets uses the names
    /// `packets_sent`, `packets_received`, `packets_dropped` and `packets_retransmitted` for those.
    fn counters(&self) -> Vec<(&'static str, u64)>;

    /// Makes memory reachable for peers. `access` has been checked against the memory's being writable.
    ///
    /// Memory that has no handle but this one may be moved to another address, so that peers can map it
    /// ([`Memory::share`]). [`crate::MemoryRegion`] takes it back after [`Registration::deregister`].
    ///
    /// # Errors
    /// What the device answers.
    fn register(&self, memory: &mut Memory, access: Access)
    -> Result<Box<dyn Registration>, Error>;

    /// Makes private memory reachable for the device, if [`crate::Capabilities::registers_private_memory`] says that it
    /// must be. The memory is touched only while it is part of a work in flight.
    ///
    /// # Errors
    /// What the device answers.
    fn register_private(&self, memory: &Memory) -> Result<Box<dyn Registration>, Error> {
        self.register(&mut memory.clone(), Access::LOCAL)
    }

    /// A queue for `depth` completions.
    ///
    /// # Errors
    /// What the device answers.
    fn completion_queue(&self, depth: usize) -> Result<Arc<dyn CompletionQueue>, Error>;

    /// A queue of `depth` receives that several endpoints share.
    ///
    /// # Errors
    /// [`Error::Unsupported`], or what the device answers.
    fn shared_receive(
        &self,
        depth: usize,
        events: &EventQueue,
    ) -> Result<Arc<dyn SharedReceive>, Error>;

    /// An endpoint; its kind and limits have been checked against the capabilities.
    ///
    /// # Errors
    /// What the device answers.
    fn endpoint(&self, attributes: EndpointAttributes) -> Result<Arc<dyn Endpoint>, Error>;

    /// Listens for connections to `address` ([`Address::ANY`]: one of the provider's choice). Requests go to `events`
    /// as [`Event::ConnectionRequest`].
    ///
    /// # Errors
    /// [`Error::AddressInUse`], [`Error::BadAddress`].
    fn listen(&self, address: &Address, events: &EventQueue) -> Result<Box<dyn Listener>, Error>;
}

/// A registration of memory.
pub trait Registration: Send + Sync {
    /// The address by which peers name the first byte.
    fn remote_addr(&self) -> u64;

    /// The key that peers must show. Random, and never one that was used before within reason.
    fn remote_key(&self) -> u64;

    /// The key by which the device knows it locally; means nothing above.
    fn local_key(&self) -> u64;

    /// Ends it; see sentence three. Called once.
    ///
    /// Memory that peers have mapped stays so; that no peer reaches it any more is seen to by the caller, who alone
    /// knows whether its content is still wanted ([`Memory::unshare`]). Until then the provider has called
    /// [`Memory::withdraw`], and told the peers of other registrations of the same memory to map it no longer.
    fn deregister(&self);
}

/// What an endpoint is made of.
#[derive(Clone)]
pub struct EndpointAttributes {
    /// Names it in completions and events.
    pub id: EndpointId,
    /// How it finds its peer.
    pub kind: EndpointKind,
    /// The address of its own that it asks for, for datagram kinds; [`Address::ANY`]: of the provider's choice.
    pub address: Address,
    /// Where the ends of its sends and one-sided work are reported.
    pub send_queue: Arc<dyn CompletionQueue>,
    /// Where the ends of its receives are reported.
    pub recv_queue: Arc<dyn CompletionQueue>,
    /// Where its receives come from, if not from its own posts.
    pub shared_receive: Option<Arc<dyn SharedReceive>>,
    /// Where connection events go.
    pub events: EventQueue,
    /// Peers, for datagram kinds.
    pub addresses: AddressVector,
    /// Most work outstanding, receives apart.
    pub send_depth: usize,
    /// Most receives outstanding.
    pub recv_depth: usize,
    /// Most inline bytes of one work.
    pub max_inline: usize,
    /// How often a send is tried again when the peer has no receive; `None`: until it has.
    pub rnr_retries: Option<u8>,
    /// How often a request is sent again when the peer does not answer; `None`: for ever.
    pub retries: Option<u8>,
}

/// A queue of work.
pub trait Endpoint: Any + Send + Sync {
    /// Accepts work from the front of the vector and takes it out. Never blocks.
    ///
    /// # Errors
    /// Why the work that is now first was not accepted.
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError>;

    /// Starts to connect ([`EndpointKind::Msg`]). The outcome is an event.
    ///
    /// # Errors
    /// [`Error::WrongState`], [`Error::BadAddress`].
    fn connect(&self, to: &Address, private_data: &[u8]) -> Result<(), Error>;

    /// Ends the connection: outstanding work on both sides is flushed, both get [`Event::Disconnected`].
    fn disconnect(&self);

    /// Its own address: where peers of a datagram kind reach it; the local side of a connection.
    ///
    /// # Errors
    /// [`Error::WrongState`] if it has none yet.
    fn address(&self) -> Result<Address, Error>;

    /// For decorators of an endpoint: the one below, which the provider knows.
    fn decorated(&self) -> Option<&dyn Endpoint> {
        None
    }
}

/// Where ends of work are reported.
pub trait CompletionQueue: Any + Send + Sync {
    /// Appends at most `max` completions; answers how many. Also gives the provider a chance to make progress.
    fn poll(&self, into: &mut Vec<Completion>, max: usize) -> usize;

    /// Asks for the next completion (or the next solicited or failed one) to make [`CompletionQueue::fd`] readable.
    /// Answers true if there is something to poll already: then do not wait.
    ///
    /// # Errors
    /// What the device answers.
    fn arm(&self, solicited_only: bool) -> Result<bool, Error>;

    /// Waits until there is something to poll: true; or until the time is over: false.
    ///
    /// # Errors
    /// What the device answers.
    fn wait(&self, timeout: Duration) -> Result<bool, Error>;

    /// A descriptor that becomes readable as [`CompletionQueue::arm`] says. It is for polling, not for reading.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is none.
    fn fd(&self) -> Result<BorrowedFd<'_>, Error>;
}

/// Receives that several endpoints share.
pub trait SharedReceive: Any + Send + Sync {
    /// Accepts receives from the front of the vector and takes them out.
    ///
    /// # Errors
    /// Why the work that is now first was not accepted.
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError>;

    /// Asks for one [`Event::ReceiveLimit`] as soon as fewer than `limit` receives are left.
    fn arm_limit(&self, limit: usize);

    /// Takes back the receives that nothing has arrived in. Called when no endpoint uses them any more.
    fn drain(&self) -> Vec<Work>;
}

/// Hears connection requests until it drops.
pub trait Listener: Any + Send + Sync {
    /// Where it listens, with the port that was chosen.
    fn address(&self) -> Address;
}

/// A request that waits for an answer. Dropped without one, it is rejected.
pub trait PendingConnection: Send + Sync {
    /// Connects `endpoint`, which is an unconnected one of the same domain.
    ///
    /// # Errors
    /// [`Error::OtherDomain`], [`Error::WrongState`], [`Error::Disconnected`] if the peer has given up.
    fn accept(self: Box<Self>, endpoint: &dyn Endpoint, private_data: &[u8]) -> Result<(), Error>;

    /// Refuses.
    fn reject(self: Box<Self>, private_data: &[u8]);
}

/// The provider's own type behind a trait object, for objects that come back as attributes.
///
/// # Errors
/// [`Error::OtherDomain`] naming `what`, if the object is another provider's.
pub fn own<T: Any + Send + Sync>(
    object: Arc<impl AnyArc + ?Sized>,
    what: &'static str,
) -> Result<Arc<T>, Error> {
    object
        .any_arc()
        .downcast::<T>()
        .map_err(|_| Error::OtherDomain(what))
}

/// Trait objects that can be asked what they really are.
pub trait AnyArc: Send + Sync {
    /// The same object, as anything.
    fn any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl AnyArc for dyn CompletionQueue {
    fn any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl AnyArc for dyn SharedReceive {
    fn any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl AnyArc for dyn Endpoint {
    fn any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

// Named here so that the documentation above can link to it.
#[expect(unused_imports)]
use Event as _;
