//! Domains: a protection domain of the device each.

use std::sync::Arc;

use fabric::provider::{self, EndpointAttributes};
use fabric::{Access, Address, Capabilities, Error, EventQueue, Info};
use mem::Memory;
use rnic::{Device, Pd};

use crate::adapter::Adapter;
use crate::config::Tuning;
use crate::cq::CompletionQueue;
use crate::ep::Endpoint;
use crate::error::lost;
use crate::listener::Listener;
use crate::mr::Registration;
use crate::shared::SharedReceive;

pub(crate) struct Domain {
    info: Info,
    capabilities: Arc<Capabilities>,
    tuning: Tuning,
    pd: Pd,
    adapter: Arc<Adapter>,
}

impl Domain {
    pub(crate) fn new(device: &Device, info: Info, tuning: Tuning) -> Result<Self, Error> {
        let pd = device
            .alloc_pd()
            .map_err(|error| lost("allocating a protection domain", error))?;
        Ok(Self {
            capabilities: Arc::new(info.capabilities.clone()),
            info,
            tuning,
            pd,
            adapter: Adapter::of(device)?,
        })
    }
}

impl provider::Domain for Domain {
    fn info(&self) -> &Info {
        &self.info
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        // A forked child has counted nothing.
        let counted = self.pd.device().counters().unwrap_or_default();
        // Packets for queue pairs that are gone are not lost, but late.
        let dropped =
            counted.faults.lost + counted.overflows + counted.bad_icrc + counted.malformed;
        vec![
            ("packets_sent", counted.packets_sent),
            ("packets_received", counted.packets_received),
            ("packets_dropped", dropped),
            ("packets_retransmitted", counted.retransmitted),
            ("bytes_sent", counted.bytes_sent),
            ("bytes_received", counted.bytes_received),
            ("dropped_by_faults", counted.faults.lost),
            ("dropped_by_overflow", counted.overflows),
            ("dropped_bad_icrc", counted.bad_icrc),
            ("dropped_malformed", counted.malformed),
            ("dropped_unknown_qp", counted.unknown_qp),
            ("send_errors", counted.send_errors),
            ("send_calls", counted.send_calls),
            ("receive_calls", counted.receive_calls),
            ("lock_contended", counted.contended),
            ("receive_calls_empty", counted.empty_receive_calls),
            ("bursts", counted.bursts),
            ("bytes_copied", counted.bytes_copied),
        ]
    }

    fn register(
        &self,
        memory: &mut Memory,
        access: Access,
    ) -> Result<Box<dyn provider::Registration>, Error> {
        Ok(Box::new(Registration::new(&self.pd, memory, access)?))
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
        Ok(Arc::new(CompletionQueue::new(self.pd.device(), depth)?))
    }

    fn shared_receive(
        &self,
        depth: usize,
        events: &EventQueue,
    ) -> Result<Arc<dyn provider::SharedReceive>, Error> {
        let shared = Arc::new(SharedReceive::new(&self.pd, depth, events));
        self.adapter.watch_shared(&shared);
        Ok(shared)
    }

    fn endpoint(
        &self,
        attributes: EndpointAttributes,
    ) -> Result<Arc<dyn provider::Endpoint>, Error> {
        let endpoint = Endpoint::open(&self.pd, &self.adapter, self.tuning, attributes)?;
        Ok(Arc::new(endpoint))
    }

    fn listen(
        &self,
        address: &Address,
        events: &EventQueue,
    ) -> Result<Box<dyn provider::Listener>, Error> {
        let listener = Listener::open(&self.adapter, address, events, &self.capabilities)?;
        Ok(Box::new(listener))
    }
}
