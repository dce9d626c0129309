//! An endpoint's state: its peers, their connections, and the work on each.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::hello::Hello;
use super::queue::Queue;
use crate::provider::{self, EndpointAttributes};
use crate::util::{Report, Slot};
use crate::{
    Address, Buf, Completion, EndpointId, EndpointKind, Error, Opcode, Peer, PostError, Segment,
    Segments, Status, Work, WorkFlags,
};

/// Shared by the endpoint, its thread and its queues.
pub(super) struct Core {
    pub(super) domain: Arc<dyn provider::Domain>,
    pub(super) attributes: EndpointAttributes,
    pub(super) send_queue: Arc<Queue>,
    pub(super) recv_queue: Arc<Queue>,
    pub(super) receives: Arc<dyn provider::SharedReceive>,
    /// Whether `receives` is the endpoint's own.
    pub(super) owns_receives: bool,
    pub(super) address: Address,
    pub(super) incarnation: u32,
    pub(super) max_connections: usize,
    pub(super) sends_outstanding: Arc<AtomicUsize>,
    pub(super) recvs_outstanding: Arc<AtomicUsize>,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) closed: bool,
    pub(super) peers: HashMap<Address, PeerState>,
    pub(super) connections: HashMap<EndpointId, Connection>,
    /// One for each posted receive of our own.
    pub(super) recv_slots: Vec<Slot>,
    next_token: u64,
    /// Connections tried so far, with whatever peer: each hello has a higher number than those before.
    attempts: u32,
    /// Counts uses, to find what is idle for longest.
    clock: u64,
}

/// What is known of a peer.
#[derive(Default)]
pub(super) struct PeerState {
    /// The connection for work to it.
    pub(super) current: Option<EndpointId>,
    /// Its life that we have met.
    pub(super) incarnation: Option<u32>,
    /// Our request yielded to theirs: since when we wait for it.
    pub(super) yielded: Option<Instant>,
    /// Accepted work that is not posted below yet.
    pub(super) pending: VecDeque<(Work, Meta)>,
}

pub(super) struct Connection {
    /// Taken out when it failed; what it had outstanding is reported still.
    pub(super) endpoint: Option<Arc<dyn provider::Endpoint>>,
    pub(super) peer: Address,
    pub(super) stage: Stage,
    /// The peer's attempt that this connection comes from.
    pub(super) peer_attempt: u32,
    in_flight: HashMap<u64, Meta>,
    last_used: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Connecting,
    Accepting,
    Connected,
    Failed,
}

/// What a work looked like to the user.
pub(super) struct Meta {
    context: u64,
    flags: WorkFlags,
    peer: Option<Peer>,
    opcode: Opcode,
    slot: Slot,
    /// The local memory of inline work that had to wait: its bytes were copied.
    original: Option<Segments>,
}

/// Connections that were taken out, to be dropped without the lock, since that waits for the device.
pub(super) type Doomed = Vec<Arc<dyn provider::Endpoint>>;

impl Core {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing under the lock panics")
    }

    /// Accepts one work, unless it is refused for want of room; posts it, or keeps it until there is a connection.
    pub(super) fn accept(self: &Arc<Self>, work: &mut Work) -> Result<(), PostError> {
        let peer = work.peer.ok_or(PostError::NoPeer)?;
        let address = self
            .attributes
            .addresses
            .lookup(peer)
            .ok_or(PostError::NoPeer)?;
        let depth = self.attributes.send_depth;
        let queue = self.send_queue.soft();
        let slot = queue.reserve(&self.sends_outstanding, depth).or_else(|_| {
            // Unsignalled work that has ended still has its place until somebody looks.
            self.send_queue.turn(64);
            queue.reserve(&self.sends_outstanding, depth)
        })?;
        let mut work = std::mem::replace(work, Work::recv(0, Segments::none()));
        let meta = Meta {
            context: work.context,
            flags: work.flags,
            peer: work.peer.take(),
            opcode: work.op.opcode(),
            slot,
            original: None,
        };
        // Reported to us in any case: the slot must be freed.
        work.flags -= WorkFlags::UNSIGNALED;
        let mut state = self.lock();
        let state_of_peer = state.peers.entry(address.clone()).or_default();
        state_of_peer.pending.push_back((work, meta));
        let doomed = self.advance(&mut state, &address);
        // What still waits is the newest: inline work must not see what becomes of its memory.
        let waiting = state
            .peers
            .get_mut(&address)
            .and_then(|peer| peer.pending.back_mut());
        if let Some((work, meta)) = waiting
            && work.flags.contains(WorkFlags::INLINE)
            && meta.original.is_none()
        {
            let copy = copy_of(&work.local);
            meta.original = Some(std::mem::replace(&mut work.local, copy.into()));
        }
        drop(state);
        drop(doomed);
        Ok(())
    }

    /// Posts what is pending for a peer if there is a connection; starts to connect if there is none.
    pub(super) fn advance(self: &Arc<Self>, state: &mut State, address: &Address) -> Doomed {
        let Some(peer) = state.peers.get(address) else {
            return Doomed::new();
        };
        if peer.pending.is_empty() {
            return Doomed::new();
        }
        let stage = peer
            .current
            .and_then(|current| state.connections.get(&current))
            .map(|connection| connection.stage);
        match stage {
            Some(Stage::Connected) => {
                self.post_pending(state, address);
                Doomed::new()
            }
            Some(Stage::Connecting | Stage::Accepting) => Doomed::new(),
            Some(Stage::Failed) | None if peer.yielded.is_some() => Doomed::new(),
            Some(Stage::Failed) | None => self.start_connect(state, address),
        }
    }

    /// Posts pending work in order until the queue below is full.
    fn post_pending(&self, state: &mut State, address: &Address) {
        state.clock += 1;
        let State {
            peers,
            connections,
            next_token,
            clock,
            ..
        } = state;
        let Some(peer) = peers.get_mut(address) else {
            return;
        };
        let Some(connection) = peer.current.and_then(|id| connections.get_mut(&id)) else {
            return;
        };
        let Some(endpoint) = &connection.endpoint else {
            return;
        };
        connection.last_used = *clock;
        let mut works = Vec::with_capacity(peer.pending.len());
        let mut metas = VecDeque::with_capacity(peer.pending.len());
        for (mut work, meta) in peer.pending.drain(..) {
            work.context = *next_token;
            *next_token += 1;
            works.push(work);
            metas.push_back(meta);
        }
        let first = works.first().map_or(0, |work| work.context);
        let count = works.len();
        let outcome = endpoint.post(&mut works);
        let accepted = count - works.len();
        for (token, meta) in (first..).zip(metas.drain(..accepted)) {
            connection.in_flight.insert(token, meta);
        }
        peer.pending = works.into_iter().zip(metas).collect();
        match outcome {
            Ok(()) => {}
            Err(PostError::QueueFull) => self.send_queue.has_backlog(),
            // Everything else was checked before: the connection is gone, which its event will say.
            Err(_) => self.fail_pending(peer, Status::LocalOperation),
        }
    }

    /// Tries again what a full queue below refused.
    pub(super) fn post_backlog(self: &Arc<Self>) {
        let mut state = self.lock();
        let waiting: Vec<_> = state
            .peers
            .iter()
            .filter(|(_, peer)| !peer.pending.is_empty())
            .map(|(address, _)| address.clone())
            .collect();
        let mut doomed = Doomed::new();
        for address in waiting {
            doomed.extend(self.advance(&mut state, &address));
        }
        drop(state);
        drop(doomed);
    }

    /// Turns a connection's completion into one of this endpoint; none if nobody wants to know.
    pub(super) fn turn(
        self: &Arc<Self>,
        mut completion: Completion,
    ) -> Option<(Completion, Option<Slot>)> {
        let id = completion.endpoint;
        let mut guard = self.lock();
        let state = &mut *guard;
        completion.endpoint = self.attributes.id;
        state.clock += 1;
        let connection = state.connections.get_mut(&id)?;
        connection.last_used = state.clock;
        let peer = connection.peer.clone();
        let turned = if completion.opcode.is_receive() {
            completion.peer = self.attributes.addresses.insert(&peer).ok();
            let slot = state.recv_slots.pop();
            Some((completion, slot))
        } else {
            let meta = connection.in_flight.remove(&completion.context)?;
            completion.context = meta.context;
            completion.peer = meta.peer;
            completion.opcode = meta.opcode;
            if let Some(original) = meta.original {
                completion.local = original;
            }
            let silent =
                completion.status.is_success() && meta.flags.contains(WorkFlags::UNSIGNALED);
            let failed = !completion.status.is_success();
            // Before what this failure flushes.
            let turned = (!silent).then_some((completion, Some(meta.slot)));
            if failed {
                if let Some((completion, slot)) = turned {
                    self.send_queue.soft().push(completion, slot, Report::Plain);
                }
                let doomed = self.fail(state, id, Status::Flushed);
                drop(guard);
                drop(doomed);
                return None;
            }
            turned
        };
        let failed_receive = turned
            .as_ref()
            .is_some_and(|(done, _)| !done.status.is_success());
        if failed_receive {
            let doomed = self.fail(state, id, Status::Flushed);
            drop(guard);
            drop(doomed);
        }
        turned
    }

    /// Ends a connection: what it had outstanding is flushed by its drop, what was pending behind it here.
    pub(super) fn fail(&self, state: &mut State, id: EndpointId, status: Status) -> Doomed {
        let Some(connection) = state.connections.get_mut(&id) else {
            return Doomed::new();
        };
        let before = std::mem::replace(&mut connection.stage, Stage::Failed);
        let doomed = connection.endpoint.take().into_iter().collect();
        let address = connection.peer.clone();
        if let Some(peer) = state.peers.get_mut(&address)
            && peer.current == Some(id)
        {
            peer.current = None;
            if before != Stage::Failed {
                self.fail_pending(peer, status);
            }
        }
        state.forget_unused(&address);
        self.forget_finished(state);
        doomed
    }

    /// Reports all that is pending for a peer.
    pub(super) fn fail_pending(&self, peer: &mut PeerState, status: Status) {
        for (work, meta) in peer.pending.drain(..) {
            let completion = Completion {
                context: meta.context,
                status,
                opcode: meta.opcode,
                len: 0,
                immediate: None,
                invalidated: None,
                endpoint: self.attributes.id,
                peer: meta.peer,
                local: meta.original.unwrap_or(work.local),
            };
            self.send_queue
                .soft()
                .push(completion, Some(meta.slot), Report::Plain);
        }
    }

    /// Forgets failed connections that have reported everything, save the latest: their last receives may not be polled yet.
    fn forget_finished(&self, state: &mut State) {
        let is_finished = |connection: &Connection| {
            connection.stage == Stage::Failed && connection.in_flight.is_empty()
        };
        let connections = state.connections.values();
        if connections
            .filter(|connection| is_finished(connection))
            .count()
            <= KEPT
        {
            return;
        }
        let finished = state
            .connections
            .iter()
            .filter(|(_, connection)| is_finished(connection));
        let oldest = finished
            .min_by_key(|(_, connection)| connection.last_used)
            .map(|(id, _)| *id);
        if let Some(id) = oldest {
            state.connections.remove(&id);
            self.send_queue.unroute(id);
            self.recv_queue.unroute(id);
        }
    }

    /// A new connection's endpoint, known to the queues.
    pub(super) fn open_connection(
        self: &Arc<Self>,
        state: &mut State,
        peer: &Address,
        stage: Stage,
        peer_attempt: u32,
    ) -> Result<(EndpointId, Arc<dyn provider::Endpoint>, Doomed), Error> {
        let doomed = self.make_room(state);
        let attributes = EndpointAttributes {
            id: EndpointId::unique(),
            kind: EndpointKind::Msg,
            address: Address::ANY,
            shared_receive: Some(Arc::clone(&self.receives)),
            ..self.attributes.clone()
        };
        let id = attributes.id;
        self.send_queue.route(id, self);
        self.recv_queue.route(id, self);
        let endpoint = self.domain.endpoint(attributes).inspect_err(|_| {
            self.send_queue.unroute(id);
            self.recv_queue.unroute(id);
        })?;
        let connection = Connection {
            endpoint: Some(Arc::clone(&endpoint)),
            peer: peer.clone(),
            stage,
            peer_attempt,
            in_flight: HashMap::new(),
            last_used: state.clock,
        };
        state.connections.insert(id, connection);
        Ok((id, endpoint, doomed))
    }

    /// Takes out the connection idle for longest if there are too many.
    fn make_room(&self, state: &mut State) -> Doomed {
        if state.live() < self.max_connections {
            return Doomed::new();
        }
        match state.idle_for_longest() {
            Some(id) => self.fail(state, id, Status::Flushed),
            // All are busy: the limit gives way rather than the work.
            None => Doomed::new(),
        }
    }

    /// Whether one connection more keeps the limit.
    pub(super) fn has_room(&self, state: &State) -> bool {
        state.live() < self.max_connections || state.idle_for_longest().is_some()
    }

    /// What to tell a peer with the next attempt.
    pub(super) fn hello(&self, state: &mut State, address: Address) -> Vec<u8> {
        state.attempts += 1;
        let hello = Hello {
            incarnation: self.incarnation,
            attempt: state.attempts,
            address,
        };
        hello
            .to_bytes()
            .expect("the address was checked when it was opened")
    }
}

impl State {
    /// Connections that are not over.
    fn live(&self) -> usize {
        let connections = self.connections.values();
        connections
            .filter(|connection| connection.endpoint.is_some())
            .count()
    }

    /// The connection that nobody needs now, and that nobody has used for longest.
    fn idle_for_longest(&self) -> Option<EndpointId> {
        let is_idle = |connection: &Connection| {
            let peer = self.peers.get(&connection.peer);
            let pending = peer.is_some_and(|peer| !peer.pending.is_empty());
            connection.stage == Stage::Connected && connection.in_flight.is_empty() && !pending
        };
        let idle = self
            .connections
            .iter()
            .filter(|(_, connection)| is_idle(connection));
        idle.min_by_key(|(_, connection)| connection.last_used)
            .map(|(id, _)| *id)
    }

    /// What strangers claimed is not remembered for longer than their connections.
    pub(super) fn forget_unused(&mut self, address: &Address) {
        if let Some(peer) = self.peers.get(address)
            && peer.current.is_none()
            && peer.yielded.is_none()
            && peer.pending.is_empty()
        {
            self.peers.remove(address);
        }
    }

    /// Whether connections have work whose end is not reported yet.
    pub(super) fn has_work_in_flight(&self) -> bool {
        self.connections
            .values()
            .any(|connection| !connection.in_flight.is_empty())
    }
}

fn copy_of(local: &Segments) -> Buf {
    let mut copy = Buf::zeroed(local.len());
    let mut rest = &mut copy[..];
    for segment in local.as_slice() {
        let (part, later) = std::mem::take(&mut rest).split_at_mut(segment.len());
        match segment {
            Segment::Buf(buf) => part.copy_from_slice(buf),
            // In bounds by construction; a truncated file shows zeros.
            Segment::Region { region, offset, .. } => drop(region.read(*offset, part)),
        }
        rest = later;
    }
    copy
}

/// Failed connections that are remembered for their last receives.
const KEPT: usize = 1024;
