//! The provider traits over the provider traits, with a hook in between.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mem::Memory;

use super::{Hook, PostedTo};
use crate::provider::{self, EndpointAttributes, Registration, own};
use crate::{Access, Address, Completion, EndpointId, Error, EventQueue, Info, PostError, Work};

/// `inner` with `hook` before it.
pub(crate) fn decorate(
    inner: Arc<dyn provider::Domain>,
    hook: Arc<dyn Hook>,
) -> Arc<dyn provider::Domain> {
    Arc::new(Domain { inner, hook })
}

struct Domain {
    inner: Arc<dyn provider::Domain>,
    hook: Arc<dyn Hook>,
}

struct Endpoint {
    inner: Arc<dyn provider::Endpoint>,
    id: EndpointId,
    hook: Arc<dyn Hook>,
}

struct CompletionQueue {
    inner: Arc<dyn provider::CompletionQueue>,
    number: u64,
    hook: Arc<dyn Hook>,
}

struct SharedReceive {
    inner: Arc<dyn provider::SharedReceive>,
    number: u64,
    hook: Arc<dyn Hook>,
}

fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl provider::Domain for Domain {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.inner.counters()
    }

    fn register(
        &self,
        memory: &mut Memory,
        access: Access,
    ) -> Result<Box<dyn Registration>, Error> {
        self.inner.register(memory, access)
    }

    fn register_private(&self, memory: &Memory) -> Result<Box<dyn Registration>, Error> {
        self.inner.register_private(memory)
    }

    fn completion_queue(&self, depth: usize) -> Result<Arc<dyn provider::CompletionQueue>, Error> {
        Ok(Arc::new(CompletionQueue {
            inner: self.inner.completion_queue(depth)?,
            number: unique(),
            hook: Arc::clone(&self.hook),
        }))
    }

    fn shared_receive(
        &self,
        depth: usize,
        events: &EventQueue,
    ) -> Result<Arc<dyn provider::SharedReceive>, Error> {
        Ok(Arc::new(SharedReceive {
            inner: self.inner.shared_receive(depth, events)?,
            number: unique(),
            hook: Arc::clone(&self.hook),
        }))
    }

    fn endpoint(
        &self,
        mut attributes: EndpointAttributes,
    ) -> Result<Arc<dyn provider::Endpoint>, Error> {
        for queue in [&mut attributes.send_queue, &mut attributes.recv_queue] {
            let decorated = own::<CompletionQueue>(Arc::clone(queue), "the completion queue")?;
            *queue = Arc::clone(&decorated.inner);
        }
        if let Some(shared) = &mut attributes.shared_receive {
            let decorated = own::<SharedReceive>(Arc::clone(shared), "the shared receive")?;
            *shared = Arc::clone(&decorated.inner);
        }
        let id = attributes.id;
        Ok(Arc::new(Endpoint {
            inner: self.inner.endpoint(attributes)?,
            id,
            hook: Arc::clone(&self.hook),
        }))
    }

    fn listen(
        &self,
        address: &Address,
        events: &EventQueue,
    ) -> Result<Box<dyn provider::Listener>, Error> {
        self.inner.listen(address, events)
    }
}

impl provider::Endpoint for Endpoint {
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        self.hook.post(PostedTo::Endpoint(self.id), work, &|work| {
            self.inner.post(work)
        })
    }

    fn connect(&self, to: &Address, private_data: &[u8]) -> Result<(), Error> {
        self.inner.connect(to, private_data)
    }

    fn disconnect(&self) {
        self.inner.disconnect();
    }

    fn address(&self) -> Result<Address, Error> {
        self.inner.address()
    }

    fn decorated(&self) -> Option<&dyn provider::Endpoint> {
        Some(&*self.inner)
    }
}

impl provider::CompletionQueue for CompletionQueue {
    fn poll(&self, into: &mut Vec<Completion>, max: usize) -> usize {
        self.hook.poll(self.number, into, max, &|into, max| {
            self.inner.poll(into, max)
        })
    }

    fn arm(&self, solicited_only: bool) -> Result<bool, Error> {
        Ok(self.inner.arm(solicited_only)? || self.hook.holds(self.number))
    }

    fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        if self.hook.holds(self.number) {
            return Ok(true);
        }
        self.inner.wait(timeout)
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        self.inner.fd()
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        self.hook.forget(self.number);
    }
}

impl provider::SharedReceive for SharedReceive {
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        self.hook
            .post(PostedTo::Shared(self.number), work, &|work| {
                self.inner.post(work)
            })
    }

    fn arm_limit(&self, limit: usize) {
        self.inner.arm_limit(limit);
    }

    fn drain(&self) -> Vec<Work> {
        self.inner.drain()
    }
}
