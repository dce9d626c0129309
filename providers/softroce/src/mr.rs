//! Registered memory.

use std::sync::Mutex;

use fabric::provider;
use fabric::{Access, Error};
use mem::Memory;
use rnic::{Mr, Pd};

use crate::convert;
use crate::error::lost;

/// One registration. The device knows the memory until it is taken out.
pub(crate) struct Registration {
    region: Mutex<Option<Mr>>,
    addr: u64,
    key: u64,
}

impl Registration {
    /// Registers all of `memory` at its own address.
    pub(crate) fn new(pd: &Pd, memory: &Memory, access: Access) -> Result<Self, Error> {
        let access = convert::access(access, memory.is_writable());
        let region = pd
            .register(memory.clone(), None, access)
            .map_err(|error| lost("registering memory", error))?;
        Ok(Self {
            addr: region.iova(),
            key: region.rkey().0.into(),
            region: Mutex::new(Some(region)),
        })
    }
}

impl provider::Registration for Registration {
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
        // The drop returns when neither a peer nor the device accesses the memory through it any more.
        let region = self
            .region
            .lock()
            .expect("nothing under the lock panics")
            .take();
        drop(region);
    }
}
