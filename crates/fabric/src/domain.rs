//! Domains as users hold them: where memory, queues and endpoints come from.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mem::Memory;

use crate::hook::{self, Hook};
use crate::memory::{Buf, LocalRegistration};
use crate::{
    Access, Address, Capabilities, CompletionQueue, EndpointBuilder, EndpointKind, Error,
    EventQueue, Info, Listener, MemoryRegion, SharedReceive, provider,
};

/// An opened device. A cheap handle; what comes from it keeps it open.
#[derive(Clone)]
pub struct Domain {
    inner: Arc<dyn provider::Domain>,
    capabilities: Arc<Capabilities>,
    id: u64,
}

impl Domain {
    /// Wraps a provider's domain; [`crate::Registry::open`] does this.
    #[must_use]
    pub fn new(inner: Arc<dyn provider::Domain>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let capabilities = Arc::new(inner.info().capabilities.clone());
        Self {
            inner,
            capabilities,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// The same device with a hook before it. Memory and queues of this domain are not those of the hooked one.
    #[must_use]
    pub fn hooked(&self, hook: impl Hook) -> Self {
        Self::new(hook::decorate(Arc::clone(&self.inner), Arc::new(hook)))
    }

    /// What was opened.
    #[must_use]
    pub fn info(&self) -> &Info {
        self.inner.info()
    }

    /// What it can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// What the device has counted since it was opened, by name: `packets_sent`, `packets_received`, `packets_dropped`,
    /// `packets_retransmitted` and what else the provider counts. Empty where there are no packets to count.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.inner.counters()
    }

    /// Private memory of `len` zeroed bytes, registered if the device wants that.
    ///
    /// # Errors
    /// [`Error::Io`] where there is not so much memory, or what registering answers.
    pub fn buf(&self, len: usize) -> Result<Buf, Error> {
        let bytes = mem::Buf::try_zeroed(len).ok_or_else(|| {
            let what = format!("allocating {len} bytes");
            Error::io(what, io::ErrorKind::OutOfMemory.into())
        })?;
        self.adopt(bytes.into())
    }

    /// Private memory with a copy of `bytes`.
    ///
    /// # Errors
    /// What registering answers.
    pub fn buf_from(&self, bytes: &[u8]) -> Result<Buf, Error> {
        self.adopt(Buf::from(bytes))
    }

    /// Makes private memory usable here, if the device wants it registered.
    ///
    /// # Errors
    /// What registering answers.
    pub fn adopt(&self, buf: Buf) -> Result<Buf, Error> {
        if !self.capabilities.registers_private_memory || buf.domain() == Some(self.id) {
            return Ok(buf);
        }
        let bytes = buf.into_bytes();
        // SAFETY: the handle goes to the provider, which touches the bytes only while a work in flight owns the buffer
        // (sentence one of its contract), and is dropped with the registration at the latest.
        let memory = unsafe { bytes.share() };
        let registration = self.inner.register_private(&memory)?;
        let local = LocalRegistration {
            registration,
            domain: self.id,
        };
        Ok(Buf::registered(bytes, local))
    }

    /// Exposes memory to peers: fresh ([`Memory::allocate`]), a buffer's ([`Buf::into_memory`]) or a file's
    /// ([`mem::FileMapping`]). With [`Access::LOCAL`] it is only usable for local work.
    ///
    /// Memory that has no other handle may move: its address is settled when this returns.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] if peers shall write to read-only memory, or what the device answers.
    pub fn register(&self, mut memory: Memory, access: Access) -> Result<MemoryRegion, Error> {
        let writes = Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
        if access.intersects(writes) && !memory.is_writable() {
            return Err(Error::ReadOnly);
        }
        let registration = self.inner.register(&mut memory, access)?;
        let keeps_alive = Arc::clone(&self.inner);
        Ok(MemoryRegion::new(
            registration,
            memory,
            access,
            self.id,
            keeps_alive,
        ))
    }

    /// A queue for `depth` completions.
    ///
    /// # Errors
    /// What the device answers.
    pub fn completion_queue(&self, depth: usize) -> Result<CompletionQueue, Error> {
        Ok(CompletionQueue {
            inner: self.inner.completion_queue(depth)?,
            domain: self.id,
        })
    }

    /// A queue of `depth` receives that several endpoints share. Its events go to `events`.
    ///
    /// # Errors
    /// [`Error::Unsupported`], or what the device answers.
    pub fn shared_receive(
        &self,
        depth: usize,
        events: &EventQueue,
    ) -> Result<SharedReceive, Error> {
        let operations = self.capabilities.operations;
        if !operations.contains(crate::Operations::SHARED_RECEIVE) {
            return Err(self.unsupported("shared receives"));
        }
        Ok(SharedReceive {
            inner: self.inner.shared_receive(depth, events)?,
            domain: self.id,
            capabilities: Arc::clone(&self.capabilities),
        })
    }

    /// An endpoint that reports to `cq`, to be refined and opened.
    pub fn endpoint<'a>(
        &'a self,
        kind: EndpointKind,
        cq: &'a CompletionQueue,
    ) -> EndpointBuilder<'a> {
        EndpointBuilder::new(self, kind, cq)
    }

    /// Listens for connections to `address`; [`Address::ANY`] lets the provider choose one.
    ///
    /// # Errors
    /// [`Error::AddressInUse`], [`Error::BadAddress`], [`Error::Unsupported`].
    pub fn listen(&self, address: impl Into<Address>) -> Result<Listener, Error> {
        let events = EventQueue::new();
        let inner = self.inner.listen(&address.into(), &events)?;
        Ok(Listener::new(inner, events, true))
    }

    /// As [`Domain::listen`], with the requests going to a queue that others share.
    ///
    /// # Errors
    /// As [`Domain::listen`].
    pub fn listen_on(
        &self,
        address: impl Into<Address>,
        events: &EventQueue,
    ) -> Result<Listener, Error> {
        let inner = self.inner.listen(&address.into(), events)?;
        Ok(Listener::new(inner, events.clone(), false))
    }

    pub(crate) fn inner(&self) -> &Arc<dyn provider::Domain> {
        &self.inner
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn capabilities_arc(&self) -> Arc<Capabilities> {
        Arc::clone(&self.capabilities)
    }

    pub(crate) fn unsupported(&self, what: &str) -> Error {
        Error::Unsupported {
            provider: self.info().provider.to_owned(),
            what: what.to_owned(),
        }
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("provider", &self.info().provider)
            .field("device", &self.info().device)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Registry, loopback::Loopback};

    #[test]
    fn memory_that_there_is_not_is_an_error() {
        let registry = Registry::new().with(Loopback::new());
        let domain = registry.open("loopback", &registry.defaults()).unwrap();
        for len in [usize::MAX, usize::MAX / 2, 1 << 60] {
            let error = domain.buf(len).expect_err("nobody has so much");
            assert!(error.to_string().contains("allocating"), "{error}");
        }
    }
}
