//! Receives that several endpoints share.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use fabric::util::Slot;
use fabric::{EventQueue, Opcode, PostError, Work, provider};
use rnic::{Pd, Srq};
use roce::verbs::{MAX_SGE, RecvWork};

use crate::cq::{SHARED, lock};
use crate::flight::{Flight, Flights};
use crate::{convert, error};

/// A shared receive queue of the device, beside what is posted to it.
pub(crate) struct SharedReceive {
    pub(crate) srq: Srq,
    pub(crate) depth: usize,
    pub(crate) events: EventQueue,
    outstanding: Arc<AtomicUsize>,
    flights: Mutex<Flights>,
}

impl SharedReceive {
    pub(crate) fn new(pd: &Pd, depth: usize, events: &EventQueue) -> Self {
        Self {
            srq: pd.create_srq(u32::try_from(depth).unwrap_or(u32::MAX), MAX_SGE),
            depth,
            events: events.clone(),
            outstanding: Arc::default(),
            flights: Mutex::default(),
        }
    }

    /// Takes a receive out that has ended.
    pub(crate) fn take(&self, number: u32) -> Option<Flight> {
        lock(&self.flights).remove(number)
    }

    fn accept(&self, work: &mut Work) -> Result<(), PostError> {
        let slot = Slot::counted(&self.outstanding, self.depth)?;
        let local = std::mem::take(&mut work.local).expose();
        let sges = match convert::list(&local, None) {
            Ok(sges) => sges,
            Err(error) => {
                work.local = local.conceal();
                return Err(error);
            }
        };
        let number = lock(&self.flights).insert(Flight {
            context: work.context,
            opcode: Opcode::Recv,
            local,
            peer: None,
            unsignaled: false,
            header: None,
            endpoint: None,
            slot,
        });
        let wr_id = SHARED | u64::from(number);
        self.srq
            .post_recv(&RecvWork { wr_id, sges })
            .map_err(|refused| {
                let flight = self.take(number).expect("it was not posted");
                work.local = flight.local.conceal();
                error::post(refused)
            })
    }
}

impl provider::SharedReceive for SharedReceive {
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        crate::ep::accept_front(work, |work| self.accept(work))
    }

    fn arm_limit(&self, limit: usize) {
        self.srq.arm_limit(u32::try_from(limit).unwrap_or(u32::MAX));
    }

    fn drain(&self) -> Vec<Work> {
        let receives = std::iter::from_fn(|| self.srq.take_back());
        let flights = receives.filter_map(|receive| self.take(receive.wr_id as u32));
        flights
            .map(|flight| Work::recv(flight.context, flight.local.conceal()))
            .collect()
    }
}
