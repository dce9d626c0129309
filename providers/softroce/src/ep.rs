//! Endpoints: a queue pair, with what the fabric wants to know of it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use fabric::provider::{self, EndpointAttributes, own};
use fabric::util::Slot;
use fabric::{
    Address, Completion, EndpointId, EndpointKind, Error, Event, EventQueue, Op, Opcode, PostError,
    Status, Work, WorkFlags,
};
use rnic::{Pd, Qp, QpInit};
use roce::verbs::{
    self, Access, CompletionKind, Local, MAX_SGE, QpAttr, QpState, QpType, RecvWork, SendWork,
};
use roce::wire::DEFAULT_PKEY;

use crate::adapter::Adapter;
use crate::connect::{self, Attempt};
use crate::cq::CompletionQueue;
use crate::dgram::Datagrams;
use crate::error::{self, lost};
use crate::flight::Flight;
use crate::shared::SharedReceive;
use crate::{config::Tuning, convert};

/// What the fabric holds. Dropping it ends all access to memory in flight.
pub(crate) struct Endpoint {
    pub(crate) core: Arc<Core>,
}

/// What everybody else holds: queues, work in flight, the adapter.
pub(crate) struct Core {
    pub(crate) id: EndpointId,
    pub(crate) qp: Qp,
    pub(crate) adapter: Arc<Adapter>,
    pub(crate) tuning: Tuning,
    pub(crate) shared: Option<Arc<SharedReceive>>,
    pub(crate) events: EventQueue,
    pub(crate) rnr_retries: Option<u8>,
    pub(crate) retries: Option<u8>,
    /// The connection, or the attempt at one.
    pub(crate) attempt: Mutex<Attempt>,
    state: AtomicU8,
    /// The peer's request was refused, and the refusal may have been lost on the way.
    owes_answer: AtomicBool,
    datagrams: Option<Datagrams>,
    send_queue: Arc<CompletionQueue>,
    recv_queue: Arc<CompletionQueue>,
    send_depth: usize,
    recv_depth: usize,
    sends: Arc<AtomicUsize>,
    recvs: Arc<AtomicUsize>,
}

/// Where an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Not connected. Receives are taken.
    Idle,
    /// Asked, or accepted and not confirmed.
    Connecting,
    /// Sends are taken. Datagram endpoints are born so.
    Connected,
    /// The queue pair is in error: work is taken and flushed.
    Failed,
}

impl State {
    fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Idle,
            1 => Self::Connecting,
            2 => Self::Connected,
            _ => Self::Failed,
        }
    }
}

/// Who has to hear of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tell {
    /// The program only: the peer knows, or will learn by the answer to its own request.
    Program,
    /// The peer, too.
    Peer,
}

impl Endpoint {
    pub(crate) fn open(
        pd: &Pd,
        adapter: &Arc<Adapter>,
        tuning: Tuning,
        attributes: EndpointAttributes,
    ) -> Result<Self, Error> {
        let queue = |queue: &Arc<dyn provider::CompletionQueue>| {
            own::<CompletionQueue>(Arc::clone(queue), "the completion queue")
        };
        let send_queue = queue(&attributes.send_queue)?;
        let recv_queue = queue(&attributes.recv_queue)?;
        let shared = match &attributes.shared_receive {
            Some(shared) => Some(own::<SharedReceive>(
                Arc::clone(shared),
                "the shared receive",
            )?),
            None => None,
        };
        let qp_type = match attributes.kind {
            EndpointKind::Msg => QpType::Rc,
            EndpointKind::Dgram => QpType::Ud,
            EndpointKind::Rdm => return Err(unsupported("reliable datagrams")),
        };
        let depth = |depth: usize| u32::try_from(depth).unwrap_or(u32::MAX);
        let qp = pd
            .create_qp(&QpInit {
                qp_type,
                send_cq: &send_queue.cq,
                recv_cq: &recv_queue.cq,
                srq: shared.as_ref().map(|shared| &shared.srq),
                max_send: depth(attributes.send_depth),
                max_recv: depth(attributes.recv_depth),
                max_recv_sge: MAX_SGE,
            })
            .map_err(|error| lost("creating a queue pair", error))?;
        let (datagrams, state) = match attributes.kind {
            EndpointKind::Dgram if shared.is_some() => {
                return Err(unsupported("shared receives of datagrams"));
            }
            EndpointKind::Dgram => (
                Some(Datagrams::open(pd, &qp, &attributes)?),
                State::Connected,
            ),
            EndpointKind::Msg | EndpointKind::Rdm => {
                initialise(&qp)?;
                (None, State::Idle)
            }
        };
        let core = Arc::new(Core {
            id: attributes.id,
            qp,
            adapter: Arc::clone(adapter),
            tuning,
            shared,
            events: attributes.events,
            rnr_retries: attributes.rnr_retries,
            retries: attributes.retries,
            attempt: Mutex::default(),
            state: AtomicU8::new(state as u8),
            owes_answer: AtomicBool::new(false),
            datagrams,
            send_queue,
            recv_queue,
            send_depth: attributes.send_depth,
            recv_depth: attributes.recv_depth,
            sends: Arc::default(),
            recvs: Arc::default(),
        });
        if core.shared.is_some() {
            core.recv_queue.admit(&core)?;
        }
        adapter.watch(&core);
        Ok(Self { core })
    }
}

/// Makes a queue pair take receives. What peers may do is said by each region.
fn initialise(qp: &Qp) -> Result<(), Error> {
    let access =
        Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
    qp.modify(&QpAttr {
        state: Some(QpState::Init),
        pkey: Some(DEFAULT_PKEY),
        access: Some(access),
        ..QpAttr::default()
    })
    .map_err(|error| lost("initialising a queue pair", error))
}

fn unsupported(what: &str) -> Error {
    Error::Unsupported {
        provider: crate::NAME.to_owned(),
        what: what.to_owned(),
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let core = &self.core;
        core.adapter.forget(core);
        // Access happens under the device's lock: when this returns, there is none any more.
        core.fail(Tell::Peer);
        core.send_queue.dismiss(core);
        core.recv_queue.dismiss(core);
    }
}

impl provider::Endpoint for Endpoint {
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        accept_front(work, |work| self.core.accept(work))
    }

    fn connect(&self, to: &Address, private_data: &[u8]) -> Result<(), Error> {
        connect::ask(&self.core, to, private_data)
    }

    fn disconnect(&self) {
        if self.core.datagrams.is_none() {
            self.core.fail(Tell::Peer);
        }
    }

    fn address(&self) -> Result<Address, Error> {
        match &self.core.datagrams {
            Some(datagrams) => Ok(datagrams.address()),
            None => connect::local_address(&self.core),
        }
    }
}

/// Accepts work from the front of the vector and takes it out.
pub(crate) fn accept_front(
    work: &mut Vec<Work>,
    accept: impl Fn(&mut Work) -> Result<(), PostError>,
) -> Result<(), PostError> {
    let mut accepted = 0;
    let mut outcome = Ok(());
    for work in work.iter_mut() {
        outcome = accept(work);
        if outcome.is_err() {
            break;
        }
        accepted += 1;
    }
    work.drain(..accepted);
    outcome
}

impl Core {
    pub(crate) fn state(&self) -> State {
        // Acquire: pairs with the changes below; what came before them is seen.
        State::of(self.state.load(Ordering::Acquire))
    }

    /// Moves on from `from`; false if it is not there.
    pub(crate) fn advance(&self, from: State, to: State) -> bool {
        self.state
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Accepts one work, leaving it without its memory; or leaves it as it was.
    fn accept(self: &Arc<Self>, work: &mut Work) -> Result<(), PostError> {
        match convert::operation(&work.op) {
            Some(operation) => self.accept_send(work, operation),
            None => self.accept_receive(work),
        }
    }

    fn accept_send(
        self: &Arc<Self>,
        work: &mut Work,
        operation: verbs::Operation,
    ) -> Result<(), PostError> {
        if matches!(self.state(), State::Idle | State::Connecting) {
            return Err(PostError::NotConnected);
        }
        let destination = match &self.datagrams {
            Some(datagrams) => Some(datagrams.destination(work.peer)?),
            None => None,
        };
        let slot = self.send_queue.reserve(&self.sends, self.send_depth)?;
        let local = std::mem::take(&mut work.local).expose();
        let gathered = if work.flags.contains(WorkFlags::INLINE) {
            convert::inline(&local)
        } else {
            convert::list(&local, None).map(Local::Gather)
        };
        let gathered = match gathered {
            Ok(gathered) => gathered,
            Err(error) => {
                work.local = local.conceal();
                return Err(error);
            }
        };
        let wr_id = self.send_queue.depart(Flight {
            context: work.context,
            opcode: work.op.opcode(),
            local,
            peer: work.peer.filter(|_| self.datagrams.is_some()),
            unsignaled: work.flags.contains(WorkFlags::UNSIGNALED),
            header: None,
            endpoint: Some(Arc::clone(self)),
            slot,
        });
        let posted = self.qp.post_send(SendWork {
            wr_id,
            operation,
            flags: convert::flags(work.flags),
            local: gathered,
            destination,
        });
        posted.map_err(|refused| {
            work.local = self.send_queue.recall(wr_id).local.conceal();
            error::post(refused)
        })
    }

    fn accept_receive(self: &Arc<Self>, work: &mut Work) -> Result<(), PostError> {
        debug_assert_eq!(work.op, Op::Recv, "all else is sent");
        let slot = self.recv_queue.reserve(&self.recvs, self.recv_depth)?;
        let (header, front) = match &self.datagrams {
            Some(datagrams) => {
                let (header, front) = datagrams.reserve_header();
                (Some(header), Some(front))
            }
            None => (None, None),
        };
        let local = std::mem::take(&mut work.local).expose();
        let sges = match convert::list(&local, front) {
            Ok(sges) => sges,
            Err(error) => {
                work.local = local.conceal();
                self.release_header(header);
                return Err(error);
            }
        };
        let wr_id = self.recv_queue.depart(Flight {
            context: work.context,
            opcode: Opcode::Recv,
            local,
            peer: None,
            unsignaled: false,
            header,
            endpoint: Some(Arc::clone(self)),
            slot,
        });
        let posted = self.qp.post_recv(&RecvWork { wr_id, sges });
        posted.map_err(|refused| {
            work.local = self.recv_queue.recall(wr_id).local.conceal();
            self.release_header(header);
            error::post(refused)
        })
    }

    /// Makes the end of a work that the device reports one that the program understands; `None` if it asked not to hear of
    /// it.
    pub(crate) fn arrive(
        self: &Arc<Self>,
        flight: Flight,
        ended: &verbs::Completion,
    ) -> Option<(Completion, Slot)> {
        if ended.status != verbs::Status::Success {
            self.suffer(ended);
            let opcode = flight.opcode;
            return Some(self.finish(flight, opcode, convert::status(ended.status)));
        }
        if flight.unsignaled {
            return None;
        }
        let (mut peer, mut len) = (flight.peer, flight.local.total());
        let opcode = convert::opcode(ended.kind);
        if opcode.is_receive() {
            len = ended.byte_len as usize;
            if let (Some(datagrams), Some(header)) = (&self.datagrams, flight.header) {
                peer = datagrams.sender(header, ended.source_qpn);
                len = len.saturating_sub(Datagrams::HEADER);
            }
        }
        let (mut completion, slot) = self.finish(flight, opcode, Status::Success);
        completion.peer = peer;
        completion.len = len;
        completion.immediate = ended.imm;
        completion.invalidated = ended.invalidated.map(|key| key.0.into());
        Some((completion, slot))
    }

    /// Ends a work: its memory is the program's again.
    pub(crate) fn finish(
        &self,
        flight: Flight,
        opcode: Opcode,
        status: Status,
    ) -> (Completion, Slot) {
        self.release_header(flight.header);
        let completion = Completion {
            context: flight.context,
            status,
            opcode,
            len: 0,
            immediate: None,
            invalidated: None,
            endpoint: self.id,
            peer: flight.peer,
            local: flight.local.conceal(),
        };
        (completion, flight.slot)
    }

    /// A work has failed, and with it a connection.
    #[cold]
    fn suffer(self: &Arc<Self>, ended: &verbs::Completion) {
        let is_send = !matches!(
            ended.kind,
            CompletionKind::Recv | CompletionKind::RecvWriteWithImm
        );
        match &self.datagrams {
            Some(datagrams) => {
                if is_send {
                    datagrams.recover(&self.qp);
                }
            }
            None if is_send && ended.status != verbs::Status::Flushed => {
                self.owes_answer.store(false, Ordering::Relaxed);
                self.fail(Tell::Peer);
            }
            // The queue pair failed while it answered the peer.
            None => self.refuse(),
        }
    }

    /// The peer's request was refused, which ended the connection. The peer is told by the refusal: a goodbye must not overtake it.
    #[cold]
    pub(crate) fn refuse(self: &Arc<Self>) {
        // Requests may come before word of the connection does.
        if matches!(self.state(), State::Connecting | State::Connected) {
            self.owes_answer.store(true, Ordering::Relaxed);
        }
        self.fail(Tell::Program);
    }

    /// Ends the endpoint's working life: everything outstanding is flushed by the time this returns. The first time counts.
    #[cold]
    pub(crate) fn fail(self: &Arc<Self>, tell: Tell) {
        let before = State::of(self.state.swap(State::Failed as u8, Ordering::AcqRel));
        if before != State::Failed {
            // A forked child has nothing to end.
            let _ = self.qp.modify(&QpAttr {
                state: Some(QpState::Err),
                ..QpAttr::default()
            });
            if before != State::Idle && self.datagrams.is_none() {
                self.events.push(Event::Disconnected { endpoint: self.id });
            }
        }
        if tell == Tell::Peer {
            if self.owes_answer.swap(false, Ordering::Relaxed) {
                self.adapter.let_answer(self);
            } else {
                connect::end(self);
            }
        }
    }

    fn release_header(&self, header: Option<u32>) {
        if let (Some(datagrams), Some(header)) = (&self.datagrams, header) {
            datagrams.release_header(header);
        }
    }
}
