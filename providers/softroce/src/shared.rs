//! Receives that several endpoints share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use fabric::{EventQueue, Opcode, PostError, Work, provider};
use rnic::{Pd, Srq};
use roce::verbs::{MAX_SGE, RecvWork};

use crate::cq::{SHARED, lock, take};
use crate::flight::Flights;
use crate::{convert, error};

/// A shared receive queue of the device, beside what is posted to it.
pub(crate) struct SharedReceive {
    pub(crate) srq: Srq,
    pub(crate) depth: usize,
    pub(crate) events: EventQueue,
    /// Receives that were posted and whose completion was not polled.
    pub(crate) outstanding: Arc<AtomicUsize>,
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

    /// What is in flight. Locked after the table of a completion queue.
    pub(crate) fn flights(&self) -> MutexGuard<'_, Flights> {
        lock(&self.flights)
    }

    fn accept(&self, work: &mut Work) -> Result<(), PostError> {
        if take(&self.outstanding, self.depth, 1) == 0 {
            return Err(PostError::QueueFull);
        }
        let posted = self.post_counted(work);
        if posted.is_err() {
            self.outstanding.fetch_sub(1, Ordering::Relaxed);
        }
        posted
    }

    fn post_counted(&self, work: &mut Work) -> Result<(), PostError> {
        let local = std::mem::take(&mut work.local).expose();
        let mut receive = RecvWork::default();
        if let Err(error) = convert::list(&local, None, &mut receive.sges) {
            work.local = local.conceal();
            return Err(error);
        }
        let mut flights = self.flights();
        let (number, flight) = flights.depart();
        flight.context = work.context;
        flight.opcode = Opcode::Recv;
        flight.local = local;
        flight.peer = None;
        flight.unsignaled = false;
        flight.header = None;
        drop(flights);
        receive.wr_id = SHARED | u64::from(number);
        self.srq.post_recv(&receive).map_err(|refused| {
            let mut flights = self.flights();
            let flight = flights.land(number).expect("it was not posted");
            work.local = std::mem::take(&mut flight.local).conceal();
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
        let mut flights = self.flights();
        let receives = std::iter::from_fn(|| self.srq.take_back());
        let works: Vec<Work> = receives
            .filter_map(|receive| {
                let flight = flights.land(receive.wr_id as u32)?;
                let local = std::mem::take(&mut flight.local);
                Some(Work::recv(flight.context, local.conceal()))
            })
            .collect();
        self.outstanding.fetch_sub(works.len(), Ordering::Relaxed);
        works
    }
}
