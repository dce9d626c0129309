//! Domains: what is opened, and where everything else comes from.

use std::sync::Arc;

use fabric::provider::{self, EndpointAttributes};
use fabric::{Access, Address, Capabilities, Error, EventQueue, Info};
use mem::Memory;

use crate::cq::Queue;
use crate::ep::Endpoint;
use crate::helper::Home;
use crate::listener::Listener;
use crate::ring::Geometry;
use crate::shared::Pool;

pub(crate) struct Domain {
    info: Info,
    capabilities: Arc<Capabilities>,
    home: Arc<Home>,
}

impl Domain {
    pub(crate) fn open(info: Info, geometry: Geometry) -> Result<Self, Error> {
        Ok(Self {
            capabilities: Arc::new(info.capabilities.clone()),
            info,
            home: Home::open(geometry)?,
        })
    }
}

impl provider::Domain for Domain {
    fn info(&self) -> &Info {
        &self.info
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        // There are no packets.
        Vec::new()
    }

    fn register(
        &self,
        memory: &mut Memory,
        access: Access,
    ) -> Result<Box<dyn provider::Registration>, Error> {
        Ok(Box::new(self.home.node.exports.register(memory, access)?))
    }

    fn completion_queue(&self, depth: usize) -> Result<Arc<dyn provider::CompletionQueue>, Error> {
        let limit = self.capabilities.max_depth;
        if depth > limit {
            return Err(Error::Limit {
                what: "the depth of a completion queue",
                limit,
                asked: depth,
            });
        }
        Ok(Queue::new(&self.home, depth))
    }

    fn shared_receive(
        &self,
        depth: usize,
        events: &EventQueue,
    ) -> Result<Arc<dyn provider::SharedReceive>, Error> {
        let limit = self.capabilities.max_depth;
        if depth > limit {
            return Err(Error::Limit {
                what: "the depth of a shared queue of receives",
                limit,
                asked: depth,
            });
        }
        Ok(Arc::new(Pool::new(&self.home, depth, events)))
    }

    fn endpoint(
        &self,
        attributes: EndpointAttributes,
    ) -> Result<Arc<dyn provider::Endpoint>, Error> {
        Ok(Arc::new(Endpoint::open(&self.home, attributes)?))
    }

    fn listen(
        &self,
        address: &Address,
        events: &EventQueue,
    ) -> Result<Box<dyn provider::Listener>, Error> {
        let listener = Listener::open(&self.home, address, events, &self.capabilities)?;
        Ok(Box::new(listener))
    }
}
