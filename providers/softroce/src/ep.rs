//! Endpoints: a queue pair, with what the fabric wants to know of it.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use fabric::provider::{self, EndpointAttributes, own};
use fabric::{
    Address, Completion, EndpointId, EndpointKind, Error, Event, EventQueue, Op, Opcode, PostError,
    Status, Work, WorkFlags,
};
use rnic::{Pd, Qp, QpInit};
use roce::verbs::{
    self, Access, CompletionKind, MAX_SGE, QpAttr, QpState, QpType, RecvWork, SendWork,
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
    /// Its seats at both.
    send_seat: OnceLock<u32>,
    recv_seat: OnceLock<u32>,
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
            send_seat: OnceLock::new(),
            recv_seat: OnceLock::new(),
            send_depth: attributes.send_depth,
            recv_depth: attributes.recv_depth,
            sends: Arc::default(),
            recvs: Arc::default(),
        });
        // Dropped on the way out, it leaves its seats.
        let endpoint = Self { core };
        let core = &endpoint.core;
        core.send_seat
            .get_or_init(|| core.send_queue.table().seat(core));
        let seat = core
            .recv_seat
            .get_or_init(|| core.recv_queue.table().seat(core));
        if core.shared.is_some() {
            core.recv_queue.admit(core, *seat)?;
        }
        adapter.watch(core);
        Ok(endpoint)
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
        for (queue, seat) in [
            (&core.send_queue, &core.send_seat),
            (&core.recv_queue, &core.recv_seat),
        ] {
            if let Some(seat) = seat.get() {
                queue.dismiss(core, *seat);
            }
        }
    }
}

impl provider::Endpoint for Endpoint {
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        let mut accepted = 0;
        let mut outcome = Ok(());
        while outcome.is_ok() && accepted < work.len() {
            let rest = &mut work[accepted..];
            let (count, then) = match rest[0].op {
                Op::Recv => self.core.accept_receives(rest),
                _ => self.core.accept_sends(rest),
            };
            accepted += count;
            outcome = then;
        }
        work.drain(..accepted);
        outcome
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

    /// Accepts sends from the front, up to a batch of them, leaving them without their memory: how many, and why the next
    /// was not, which is left as it was.
    fn accept_sends(&self, work: &mut [Work]) -> (usize, Result<(), PostError>) {
        if matches!(self.state(), State::Idle | State::Connecting) {
            return (0, Err(PostError::NotConnected));
        }
        let sends = work.iter().take(BATCH);
        let wanted = sends
            .take_while(|work| !matches!(work.op, Op::Recv))
            .count();
        let queue = &self.send_queue;
        let room = queue.reserve(&self.sends, self.send_depth, wanted);
        if room == 0 {
            return (0, Err(PostError::QueueFull));
        }
        let mut batch = ROOM.take();
        if batch.len() < room {
            batch.resize(room.next_power_of_two(), SendWork::EMPTY);
        }
        let (ready, converted) = self.depart(&mut work[..room], &mut batch);
        let (posted, refused) = self.qp.post_sends(&batch[..ready]);
        if posted < ready {
            let mut table = queue.table();
            for (work, refused) in work[posted..ready].iter_mut().zip(&batch[posted..]) {
                let flight = table.flights.land(refused.wr_id as u32);
                let flight = flight.expect("it was not posted, so nobody reports it");
                work.local = std::mem::take(&mut flight.local).conceal();
            }
        }
        ROOM.set(batch);
        if posted < room {
            queue.give_up(&self.sends, room - posted);
        }
        (posted, refused.map_err(error::post).and(converted))
    }

    /// Notes sends as being in flight and says them in the words of verbs; how many, and why the next cannot be.
    fn depart(&self, work: &mut [Work], batch: &mut [SendWork]) -> (usize, Result<(), PostError>) {
        let seat = *self.send_seat.get().expect("seated when it was made");
        let mut table = self.send_queue.table();
        for (index, (work, send)) in work.iter_mut().zip(batch).enumerate() {
            let destination = match &self.datagrams {
                Some(datagrams) => match datagrams.destination(work.peer) {
                    Ok(destination) => Some(destination),
                    Err(error) => return (index, Err(error)),
                },
                None => None,
            };
            let operation = convert::operation(&work.op).expect("only receives are none");
            let local = std::mem::take(&mut work.local).expose();
            if let Err(error) = convert::gather(&local, work.flags, &mut send.local) {
                work.local = local.conceal();
                return (index, Err(error));
            }
            let (number, flight) = table.flights.depart();
            flight.context = work.context;
            flight.opcode = work.op.opcode();
            flight.local = local;
            flight.peer = work.peer.filter(|_| destination.is_some());
            flight.unsignaled = work.flags.contains(WorkFlags::UNSIGNALED);
            flight.header = None;
            flight.seat = seat;
            send.wr_id = number.into();
            send.operation = operation;
            send.flags = convert::flags(work.flags);
            send.destination = destination;
        }
        (work.len(), Ok(()))
    }

    /// The same for receives.
    fn accept_receives(&self, work: &mut [Work]) -> (usize, Result<(), PostError>) {
        let receives = work.iter().take(BATCH);
        let wanted = receives
            .take_while(|work| matches!(work.op, Op::Recv))
            .count();
        let queue = &self.recv_queue;
        let room = queue.reserve(&self.recvs, self.recv_depth, wanted);
        if room == 0 {
            return (0, Err(PostError::QueueFull));
        }
        let mut posted = 0;
        let mut outcome = Ok(());
        let mut receive = RecvWork::default();
        for work in &mut work[..room] {
            outcome = self.accept_receive(work, &mut receive);
            if outcome.is_err() {
                queue.give_up(&self.recvs, room - posted);
                break;
            }
            posted += 1;
        }
        (posted, outcome)
    }

    fn accept_receive(&self, work: &mut Work, receive: &mut RecvWork) -> Result<(), PostError> {
        let (header, front) = match &self.datagrams {
            Some(datagrams) => {
                let (header, front) = datagrams.reserve_header();
                (Some(header), Some(front))
            }
            None => (None, None),
        };
        let local = std::mem::take(&mut work.local).expose();
        if let Err(error) = convert::list(&local, front, &mut receive.sges) {
            work.local = local.conceal();
            self.release_header(header);
            return Err(error);
        }
        let mut table = self.recv_queue.table();
        let (number, flight) = table.flights.depart();
        flight.context = work.context;
        flight.opcode = Opcode::Recv;
        flight.local = local;
        flight.peer = None;
        flight.unsignaled = false;
        flight.header = header;
        flight.seat = *self.recv_seat.get().expect("seated when it was made");
        drop(table);
        receive.wr_id = number.into();
        self.qp.post_recv(receive).map_err(|refused| {
            let mut table = self.recv_queue.table();
            let flight = table.flights.land(number);
            let flight = flight.expect("it was not posted, so nobody reports it");
            work.local = std::mem::take(&mut flight.local).conceal();
            drop(table);
            self.release_header(header);
            error::post(refused)
        })
    }

    /// What counts work of a kind that is outstanding.
    #[inline]
    pub(crate) fn outstanding(&self, opcode: Opcode) -> &Arc<AtomicUsize> {
        match (&self.shared, opcode.is_receive()) {
            (_, false) => &self.sends,
            (None, true) => &self.recvs,
            (Some(shared), true) => &shared.outstanding,
        }
    }

    /// Makes the end of a work that the device reports one that the program understands; `None` if it asked not to hear of
    /// it, and then the work keeps its memory.
    #[inline]
    pub(crate) fn arrive(
        &self,
        flight: &mut Flight,
        ended: &verbs::Completion,
    ) -> Option<Completion> {
        if ended.status != verbs::Status::Success {
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
        let mut completion = self.finish(flight, opcode, Status::Success);
        completion.peer = peer;
        completion.len = len;
        completion.immediate = ended.imm;
        completion.invalidated = ended.invalidated.map(|key| key.0.into());
        Some(completion)
    }

    /// Ends a work: its memory is the program's again.
    #[inline]
    pub(crate) fn finish(&self, flight: &mut Flight, opcode: Opcode, status: Status) -> Completion {
        self.release_header(flight.header);
        Completion {
            context: flight.context,
            status,
            opcode,
            len: 0,
            immediate: None,
            invalidated: None,
            endpoint: self.id,
            peer: flight.peer,
            local: std::mem::take(&mut flight.local).conceal(),
        }
    }

    /// A work has failed, and with it a connection.
    #[cold]
    pub(crate) fn suffer(self: &Arc<Self>, ended: &verbs::Completion) {
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

thread_local! {
    /// Kept, so that posting allocates nothing.
    static ROOM: Cell<Vec<SendWork>> = const { Cell::new(Vec::new()) };
}

/// Work that goes to the device at once.
const BATCH: usize = 64;
