//! The domain below, with one kind of endpoint more.

use std::sync::Arc;

use mem::Memory;

use super::endpoint::Endpoint;
use super::queue::Queue;
use crate::provider::{self, EndpointAttributes, Registration, own};
use crate::{Access, Address, EndpointKind, Error, EventQueue, Info};

pub(super) struct Domain {
    inner: Arc<dyn provider::Domain>,
    info: Info,
    max_connections: usize,
}

impl Domain {
    pub(super) fn new(inner: Arc<dyn provider::Domain>, max_connections: usize) -> Self {
        Self {
            info: super::layered(inner.info().clone()),
            inner,
            max_connections,
        }
    }
}

impl provider::Domain for Domain {
    fn info(&self) -> &Info {
        &self.info
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
        let inner = self.inner.completion_queue(depth)?;
        Ok(Arc::new(Queue::new(inner, depth)))
    }

    fn shared_receive(
        &self,
        depth: usize,
        events: &EventQueue,
    ) -> Result<Arc<dyn provider::SharedReceive>, Error> {
        self.inner.shared_receive(depth, events)
    }

    fn endpoint(
        &self,
        mut attributes: EndpointAttributes,
    ) -> Result<Arc<dyn provider::Endpoint>, Error> {
        let send = own::<Queue>(Arc::clone(&attributes.send_queue), "the completion queue")?;
        let recv = own::<Queue>(Arc::clone(&attributes.recv_queue), "the completion queue")?;
        attributes.send_queue = Arc::clone(send.inner());
        attributes.recv_queue = Arc::clone(recv.inner());
        if attributes.kind != EndpointKind::Rdm {
            return self.inner.endpoint(attributes);
        }
        send.layer();
        recv.layer();
        let inner = Arc::clone(&self.inner);
        let endpoint = Endpoint::open(inner, attributes, send, recv, self.max_connections)?;
        Ok(Arc::new(endpoint))
    }

    fn listen(
        &self,
        address: &Address,
        events: &EventQueue,
    ) -> Result<Box<dyn provider::Listener>, Error> {
        self.inner.listen(address, events)
    }
}
