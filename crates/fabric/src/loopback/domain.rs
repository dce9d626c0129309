//! Opening things, and registered memory.

use std::sync::Arc;

use mem::Memory;

use super::world::{self, Region};
use super::{connect, cq, endpoint, shared};
use crate::provider::{self, EndpointAttributes, Registration};
use crate::{Access, Address, Capabilities, Error, EventQueue, Info};

pub(super) struct Domain {
    info: Info,
    capabilities: Arc<Capabilities>,
    id: u64,
}

impl Domain {
    pub(super) fn new(info: Info) -> Self {
        Self {
            capabilities: Arc::new(info.capabilities.clone()),
            info,
            id: world::lock().unique(),
        }
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
    ) -> Result<Box<dyn Registration>, Error> {
        let mut world = world::lock();
        let key = loop {
            let key = random_key()?;
            if !world.regions.contains_key(&(self.id, key)) {
                break key;
            }
        };
        let region = Region {
            memory: memory.clone(),
            access,
        };
        world.regions.insert((self.id, key), region);
        Ok(Box::new(Registered {
            domain: self.id,
            key,
            addr: memory.addr(),
        }))
    }

    fn completion_queue(&self, depth: usize) -> Result<Arc<dyn provider::CompletionQueue>, Error> {
        Ok(Arc::new(cq::CompletionQueue::new(depth)))
    }

    fn shared_receive(
        &self,
        depth: usize,
        events: &EventQueue,
    ) -> Result<Arc<dyn provider::SharedReceive>, Error> {
        Ok(Arc::new(shared::SharedReceive::new(depth, events)))
    }

    fn endpoint(
        &self,
        attributes: EndpointAttributes,
    ) -> Result<Arc<dyn provider::Endpoint>, Error> {
        Ok(Arc::new(endpoint::Endpoint::open(self.id, attributes)?))
    }

    fn listen(
        &self,
        address: &Address,
        events: &EventQueue,
    ) -> Result<Box<dyn provider::Listener>, Error> {
        let listener = connect::Listener::open(address, events, &self.capabilities)?;
        Ok(Box::new(listener))
    }
}

fn random_key() -> Result<u64, Error> {
    getrandom::u64()
        .map_err(|error| Error::io("drawing a random key", std::io::Error::other(error)))
}

struct Registered {
    domain: u64,
    key: u64,
    addr: u64,
}

impl Registration for Registered {
    fn remote_addr(&self) -> u64 {
        self.addr
    }

    fn remote_key(&self) -> u64 {
        self.key
    }

    fn local_key(&self) -> u64 {
        self.key
    }

    fn deregister(&self) {
        // Access happens under the lock: once we have it, there is none.
        let region = world::lock().regions.remove(&(self.domain, self.key));
        drop(region);
    }
}
