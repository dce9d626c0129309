//! The reference provider: everything within one process, at once, without I/O, threads or clocks.
//!
//! It does all that the API knows and answers misuse as hardware does, so it shows what other providers are measured by. One
//! lock guards all of it: it is made to be right and to be read, not to be fast.
//!
//! Work is carried out while it is posted. A send whose receiver has no receive posted waits in its queue until there is one
//! (with limited [`crate::EndpointBuilder::rnr_retries`], until so many polls found none).

mod connect;
mod cq;
mod domain;
mod endpoint;
mod execute;
mod shared;
mod transfer;
mod world;

use std::sync::Arc;

use crate::provider::{self, Provider};
use crate::{Atomics, Capabilities, Config, Error, Info, Kinds, Operations, Reach};

/// The provider; see the module.
#[derive(Debug, Clone, Copy)]
pub struct Loopback {
    kinds: Kinds,
}

impl Loopback {
    /// With all kinds of endpoints.
    #[must_use]
    pub fn new() -> Self {
        Self {
            kinds: Kinds::all(),
        }
    }

    /// Without reliable datagrams of its own: for what is layered on connections.
    #[must_use]
    pub fn without_rdm() -> Self {
        Self {
            kinds: Kinds::MSG | Kinds::DGRAM,
        }
    }

    fn info(self) -> Info {
        Info {
            provider: self.name(),
            device: "process".to_owned(),
            address: None,
            description: "within this process, for tests and as a reference".to_owned(),
            rank: 0,
            capabilities: Capabilities {
                kinds: self.kinds,
                operations: Operations::all(),
                reach: Reach::Process,
                atomics: Atomics::Processor,
                ordered_placement: true,
                max_message: 1 << 30,
                max_datagram: 4096,
                max_inline: 256,
                max_segments: 16,
                max_depth: 65_536,
                max_private_data: 56,
                faults: false,
                capture: false,
                registers_private_memory: false,
            },
        }
    }
}

impl Default for Loopback {
    fn default() -> Self {
        Self::new()
    }
}

impl Provider for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn discover(&self, _: &Config) -> Result<Vec<Info>, Error> {
        Ok(vec![self.info()])
    }

    fn open(&self, info: &Info, _: &Config) -> Result<Arc<dyn provider::Domain>, Error> {
        Ok(Arc::new(domain::Domain::new(info.clone())))
    }
}
