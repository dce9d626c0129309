//! The endpoint itself: opening, posting, closing.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::connect::serve;
use super::core::{Core, State};
use super::hello::Hello;
use super::queue::Queue;
use crate::provider::{self, EndpointAttributes};
use crate::util::Report;
use crate::{
    Address, Completion, Error, Event, EventQueue, Op, Opcode, PostError, Segments, Status, Work,
};

pub(super) struct Endpoint {
    core: Arc<Core>,
    events: EventQueue,
    listener: Option<Box<dyn provider::Listener>>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    pub(super) fn open(
        domain: Arc<dyn provider::Domain>,
        mut attributes: EndpointAttributes,
        send_queue: Arc<Queue>,
        recv_queue: Arc<Queue>,
        max_connections: usize,
    ) -> Result<Self, Error> {
        let events = EventQueue::new();
        let listener = domain.listen(&attributes.address, &events)?;
        let address = listener.address();
        let incarnation = getrandom::u32()
            .map_err(|error| Error::io("drawing a random number", std::io::Error::other(error)))?;
        let hello = Hello {
            incarnation,
            attempt: 0,
            address: address.clone(),
        };
        if hello.to_bytes().is_none() {
            return Err(Error::BadAddress {
                address,
                reason: "it is too long to be told to peers".to_owned(),
            });
        }
        let (receives, owns_receives) = match &attributes.shared_receive {
            Some(shared) => (Arc::clone(shared), false),
            None => (domain.shared_receive(attributes.recv_depth, &events)?, true),
        };
        attributes.events = events.clone();
        let core = Arc::new(Core {
            domain,
            attributes,
            send_queue,
            recv_queue,
            receives,
            owns_receives,
            address,
            incarnation,
            max_connections,
            sends_outstanding: Arc::default(),
            recvs_outstanding: Arc::default(),
            state: Mutex::new(State::default()),
        });
        let thread = std::thread::Builder::new()
            .name("ringmail-rdm".to_owned())
            .spawn({
                let (core, events) = (Arc::clone(&core), events.clone());
                move || serve(&core, &events)
            })
            .map_err(|error| Error::io("starting a thread", error))?;
        Ok(Self {
            core,
            events,
            listener: Some(listener),
            thread: Some(thread),
        })
    }

    /// Accepts one receive, unless it is refused for want of room.
    fn accept_receive(&self, work: &mut Work) -> Result<(), PostError> {
        let core = &self.core;
        let depth = core.attributes.recv_depth;
        let queue = core.recv_queue.soft();
        let slot = queue.reserve(&core.recvs_outstanding, depth)?;
        let empty = Work::recv(0, Segments::none());
        let mut one = vec![std::mem::replace(work, empty)];
        // First, since a message may arrive in it at once.
        core.lock().recv_slots.push(slot);
        let outcome = core.receives.post(&mut one);
        if let Some(refused) = one.pop() {
            *work = refused;
            core.lock().recv_slots.pop();
        }
        outcome
    }
}

impl provider::Endpoint for Endpoint {
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        let mut accepted = 0;
        let mut outcome = Ok(());
        for work in work.iter_mut() {
            outcome = match work.op {
                Op::Recv => self.accept_receive(work),
                _ => self.core.accept(work),
            };
            if outcome.is_err() {
                break;
            }
            accepted += 1;
        }
        work.drain(..accepted);
        outcome
    }

    fn connect(&self, _: &Address, _: &[u8]) -> Result<(), Error> {
        Err(Error::WrongState("only a connected endpoint connects"))
    }

    fn disconnect(&self) {}

    fn address(&self) -> Result<Address, Error> {
        Ok(self.core.address.clone())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let core = &self.core;
        // Nobody connects any more, and the thread ends.
        core.lock().closed = true;
        self.events.push(Event::ReceiveLimit);
        drop(self.listener.take());
        if let Some(thread) = self.thread.take() {
            // It handles its own errors; if it panicked, that was printed, and the rest must be cleaned up all the same.
            let _ = thread.join();
        }
        while self.events.poll().is_some() {}
        // The connections' drops flush what they had outstanding into the queues below.
        let doomed: Vec<_> = {
            let mut state = core.lock();
            let connections = state.connections.values_mut();
            connections
                .filter_map(|connection| connection.endpoint.take())
                .collect()
        };
        drop(doomed);
        let left = match core.owns_receives {
            true => core.receives.drain(),
            false => Vec::new(),
        };
        self.take_reports(left.len());
        let mut state = core.lock();
        let state = &mut *state;
        for peer in state.peers.values_mut() {
            core.fail_pending(peer, Status::Flushed);
        }
        for id in state.connections.keys() {
            core.send_queue.unroute(*id);
            core.recv_queue.unroute(*id);
        }
        for work in left {
            let slot = state.recv_slots.pop();
            core.recv_queue
                .soft()
                .push(self.flushed(work), slot, Report::Plain);
        }
    }
}

impl Endpoint {
    /// Takes what the connections reported last, until all but `left` receives have been. It is in the queues below already;
    /// only somebody who polls those at the same time can make us look again, and not for long.
    fn take_reports(&self, left: usize) {
        let core = &self.core;
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            let moved = core.send_queue.turn(64) + core.recv_queue.turn(64);
            let state = core.lock();
            let receives = core.owns_receives && state.recv_slots.len() > left;
            if moved == 0 && !receives && !state.has_work_in_flight() {
                return;
            }
            drop(state);
            std::thread::yield_now();
        }
    }

    fn flushed(&self, work: Work) -> Completion {
        Completion {
            context: work.context,
            status: Status::Flushed,
            opcode: Opcode::Recv,
            len: 0,
            immediate: None,
            invalidated: None,
            endpoint: self.core.attributes.id,
            peer: None,
            local: work.local,
        }
    }
}
