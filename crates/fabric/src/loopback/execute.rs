//! Carrying out work: the rules of a responder and the ends of work on both sides.
//!
//! IBA vol. 1, 9.7.4 (what a responder checks) and 10.7 (what completions say), without packets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::shared::check_limit;
use super::transfer::{self, Bytes, Side};
use super::world::{self, Endpoint, Pending, Region, State, World};
use crate::provider::Exposed;
use crate::util::{Report, SoftQueue};
use crate::{
    Access, Completion, EndpointId, EndpointKind, Event, Op, Opcode, Peer, RemoteAddr, Status,
    WorkFlags,
};

/// What became of the work at the head of a lane.
enum Outcome {
    Done,
    /// The target has no receive.
    NotReady,
    Failed(Status),
}

/// Carries out the work of a lane until it is empty or its head has to wait.
pub(super) fn run(world: &mut World, id: EndpointId, lane: Option<Peer>) {
    while let Some(pending) = pop(world, id, lane) {
        match attempt(world, id, &pending) {
            Outcome::Done => {
                set_attempts(world, id, lane, 0);
                finish(world, id, pending, Status::Success);
            }
            Outcome::NotReady => {
                wait_for_receive(world, id, lane, pending);
                return;
            }
            Outcome::Failed(status) => {
                finish(world, id, pending, status);
                fail_lane(world, id, lane);
            }
        }
    }
}

/// Counts an empty poll of `queue` against those who report there and do not wait for ever; answers whether some still wait.
pub(super) fn retry_impatient(queue: &SoftQueue) -> bool {
    // Relaxed: who must be counted has posted before, on this thread or by a hand-over to it.
    if IMPATIENT.load(Ordering::Relaxed) == 0 {
        return false;
    }
    let mut world = world::lock();
    let world = &mut *world;
    let reports_here = |endpoints: &HashMap<EndpointId, Endpoint>, id: EndpointId| {
        endpoints
            .get(&id)
            .is_some_and(|endpoint| endpoint.send_queue.is_same(queue))
    };
    let (here, elsewhere) = std::mem::take(&mut world.impatient)
        .into_iter()
        .partition(|(id, _)| reports_here(&world.endpoints, *id));
    world.impatient = elsewhere;
    let here: Vec<_> = here;
    for (id, lane) in here {
        if let Some(lane) = lane_of(world, id, lane) {
            lane.attempts = lane.attempts.saturating_add(1);
        }
        run(world, id, lane);
    }
    world
        .impatient
        .retain(|(id, _)| world.endpoints.contains_key(id));
    IMPATIENT.store(world.impatient.len(), Ordering::Relaxed);
    let mut waiting = world.impatient.iter();
    waiting.any(|(id, _)| reports_here(&world.endpoints, *id))
}

/// How many lanes are impatient, so that a poll need not take the lock for none.
static IMPATIENT: AtomicUsize = AtomicUsize::new(0);

/// Breaks a connection: both ends fail, are flushed and told.
pub(super) fn fail_endpoint(world: &mut World, id: EndpointId) {
    let Some(endpoint) = world.endpoints.get_mut(&id) else {
        return;
    };
    if endpoint.attributes.kind != EndpointKind::Msg || endpoint.state == State::Failed {
        return;
    }
    let before = std::mem::replace(&mut endpoint.state, State::Failed);
    if before != State::Idle {
        let event = Event::Disconnected { endpoint: id };
        endpoint.attributes.events.push(event);
    }
    flush(world, id);
    if let State::Connected(peer) = before {
        fail_endpoint(world, peer);
    }
}

/// Ends all outstanding work of an endpoint.
pub(super) fn flush(world: &mut World, id: EndpointId) {
    let Some(endpoint) = world.endpoints.get_mut(&id) else {
        return;
    };
    let sends = std::mem::take(&mut endpoint.lanes);
    let receives = std::mem::take(&mut endpoint.receives);
    for pending in sends.into_values().flat_map(|lane| lane.queue) {
        report(endpoint, pending, Status::Flushed);
    }
    for pending in receives {
        report(endpoint, pending, Status::Flushed);
    }
}

/// After a failure: a connection breaks; a datagram endpoint only flushes what was for that peer.
fn fail_lane(world: &mut World, id: EndpointId, lane: Option<Peer>) {
    let Some(endpoint) = world.endpoints.get_mut(&id) else {
        return;
    };
    if endpoint.attributes.kind == EndpointKind::Msg {
        fail_endpoint(world, id);
        return;
    }
    let rest = endpoint.lanes.remove(&lane).unwrap_or_default();
    for pending in rest.queue {
        report(endpoint, pending, Status::Flushed);
    }
}

fn pop(world: &mut World, id: EndpointId, lane: Option<Peer>) -> Option<Pending> {
    lane_of(world, id, lane)?.queue.pop_front()
}

fn lane_of(world: &mut World, id: EndpointId, lane: Option<Peer>) -> Option<&mut world::Lane> {
    world.endpoints.get_mut(&id)?.lanes.get_mut(&lane)
}

fn set_attempts(world: &mut World, id: EndpointId, lane: Option<Peer>, attempts: u8) {
    if let Some(lane) = lane_of(world, id, lane) {
        lane.attempts = attempts;
    }
}

/// Puts work back until its target posts a receive, or fails it if it was tried often enough.
fn wait_for_receive(world: &mut World, id: EndpointId, lane: Option<Peer>, pending: Pending) {
    let target = target_of(world, id, &pending);
    let endpoint = world.endpoints.get_mut(&id).expect("it has work");
    let tries = endpoint.attributes.rnr_retries;
    let queue = endpoint.lanes.entry(lane).or_default();
    if tries.is_some_and(|tries| queue.attempts >= tries) {
        queue.attempts = 0;
        finish(world, id, pending, Status::RnrRetryExceeded);
        fail_lane(world, id, lane);
        // What was behind it on a datagram endpoint is flushed, so nothing is left to run.
        return;
    }
    queue.queue.push_front(pending);
    if tries.is_some() && !world.impatient.contains(&(id, lane)) {
        world.impatient.push((id, lane));
        IMPATIENT.store(world.impatient.len(), Ordering::Relaxed);
    }
    let waiting = target.and_then(|target| world.endpoints.get_mut(&target));
    let Some(waiting) = waiting else {
        return;
    };
    let blocked = match waiting.shared {
        Some(shared) => {
            &mut world
                .shared
                .get_mut(&shared)
                .expect("kept by its endpoint")
                .blocked
        }
        None => &mut waiting.blocked,
    };
    if !blocked.contains(&(id, lane)) {
        blocked.push((id, lane));
    }
}

fn target_of(world: &World, id: EndpointId, pending: &Pending) -> Option<EndpointId> {
    let endpoint = world.endpoints.get(&id)?;
    match endpoint.attributes.kind {
        EndpointKind::Msg => match endpoint.state {
            State::Connected(peer) => Some(peer),
            _ => None,
        },
        EndpointKind::Rdm | EndpointKind::Dgram => {
            let address = endpoint.attributes.addresses.lookup(pending.peer?)?;
            let target = *world.addresses.get(&address)?;
            let same_kind =
                world.endpoints.get(&target)?.attributes.kind == endpoint.attributes.kind;
            same_kind.then_some(target)
        }
    }
}

fn attempt(world: &mut World, id: EndpointId, pending: &Pending) -> Outcome {
    let kind = world.endpoints[&id].attributes.kind;
    let Some(target) = target_of(world, id, pending) else {
        return match kind {
            EndpointKind::Dgram => Outcome::Done,
            EndpointKind::Rdm => Outcome::Failed(Status::RetryExceeded),
            EndpointKind::Msg => Outcome::Failed(Status::Flushed),
        };
    };
    if pending.local.iter().any(|segment| segment.is_revoked()) {
        return Outcome::Failed(Status::LocalProtection);
    }
    match pending.op {
        Op::Send { invalidate, .. } => send(world, id, target, pending, invalidate),
        Op::Recv => unreachable!("receives are in a queue of their own"),
        Op::Write { remote, immediate } => write(world, id, target, pending, remote, immediate),
        Op::Read { remote } => read(world, target, pending, remote),
        Op::FetchAdd { remote, add } => atomic(world, target, pending, remote, |region, offset| {
            region.memory.fetch_add(offset, add)
        }),
        Op::CompareSwap {
            remote,
            expected,
            new,
        } => atomic(world, target, pending, remote, |region, offset| {
            region.memory.compare_swap(offset, expected, new)
        }),
    }
}

fn send(
    world: &mut World,
    id: EndpointId,
    target: EndpointId,
    pending: &Pending,
    invalidate: Option<u64>,
) -> Outcome {
    let dgram = world.endpoints[&id].attributes.kind == EndpointKind::Dgram;
    let len = pending.local.total();
    let domain = world.endpoints[&target].domain;
    if let Some(key) = invalidate {
        if receive_room(world, target).is_none() {
            return Outcome::NotReady;
        }
        let Some(region) = world.regions.remove(&(domain, key)) else {
            return Outcome::Failed(Status::RemoteAccess);
        };
        world.discard(region);
    }
    let Some(room) = receive_room(world, target) else {
        return if dgram {
            Outcome::Done
        } else {
            Outcome::NotReady
        };
    };
    if dgram && room < len {
        return Outcome::Done;
    }
    let receive = take_receive(world, target).expect("there is room in it");
    if room < len {
        end_receive(world, id, target, receive, Status::LocalLength, pending);
        return Outcome::Failed(Status::RemoteInvalidRequest);
    }
    let copied = transfer::copy(&Bytes::Local(&receive.local), &pending.source(), len);
    match copied {
        Ok(()) => {
            end_receive(world, id, target, receive, Status::Success, pending);
            Outcome::Done
        }
        Err(Side::Target) => {
            end_receive(world, id, target, receive, Status::LocalProtection, pending);
            Outcome::Failed(Status::RemoteOperation)
        }
        Err(Side::Source) => {
            end_receive(world, id, target, receive, Status::Flushed, pending);
            Outcome::Failed(Status::LocalProtection)
        }
    }
}

fn write(
    world: &mut World,
    id: EndpointId,
    target: EndpointId,
    pending: &Pending,
    remote: RemoteAddr,
    immediate: Option<u32>,
) -> Outcome {
    if immediate.is_some() && receive_room(world, target).is_none() {
        return Outcome::NotReady;
    }
    let len = pending.local.total();
    let (region, offset) = match region(world, target, remote, len, Access::REMOTE_WRITE) {
        Ok(found) => found,
        Err(status) => return Outcome::Failed(status),
    };
    if let Some(region) = region {
        let place = Bytes::Region {
            memory: &region.memory,
            offset,
        };
        match transfer::copy(&place, &pending.source(), len) {
            Ok(()) => {}
            Err(Side::Source) => return Outcome::Failed(Status::LocalProtection),
            Err(Side::Target) => return Outcome::Failed(Status::RemoteOperation),
        }
    }
    if immediate.is_some() {
        let receive = take_receive(world, target).expect("there was one");
        end_receive(world, id, target, receive, Status::Success, pending);
    }
    Outcome::Done
}

fn read(world: &World, target: EndpointId, pending: &Pending, remote: RemoteAddr) -> Outcome {
    let len = pending.local.total();
    let (region, offset) = match region(world, target, remote, len, Access::REMOTE_READ) {
        Ok(found) => found,
        Err(status) => return Outcome::Failed(status),
    };
    let Some(region) = region else {
        return Outcome::Done;
    };
    let place = Bytes::Region {
        memory: &region.memory,
        offset,
    };
    match transfer::copy(&Bytes::Local(&pending.local), &place, len) {
        Ok(()) => Outcome::Done,
        Err(Side::Source) => Outcome::Failed(Status::RemoteOperation),
        Err(Side::Target) => Outcome::Failed(Status::LocalProtection),
    }
}

fn atomic(
    world: &World,
    target: EndpointId,
    pending: &Pending,
    remote: RemoteAddr,
    change: impl FnOnce(&Region, usize) -> Result<u64, mem::AccessError>,
) -> Outcome {
    // IBA 9.7.4.1.5: an unaligned address is an invalid request, whatever the key.
    if !remote.addr.is_multiple_of(8) {
        return Outcome::Failed(Status::RemoteInvalidRequest);
    }
    let (region, offset) = match region(world, target, remote, 8, Access::REMOTE_ATOMIC) {
        Ok((Some(region), offset)) => (region, offset),
        Ok((None, _)) => unreachable!("eight bytes are not none"),
        Err(status) => return Outcome::Failed(status),
    };
    let Ok(before) = change(region, offset) else {
        return Outcome::Failed(Status::RemoteOperation);
    };
    let bytes = before.to_ne_bytes();
    match transfer::copy(&Bytes::Local(&pending.local), &Bytes::Private(&bytes), 8) {
        Ok(()) => Outcome::Done,
        Err(_) => Outcome::Failed(Status::LocalProtection),
    }
}

/// The region that a peer names, if the range and the right are there. An access to no bytes is not checked (IBA 9.7.4.1.5).
fn region(
    world: &World,
    target: EndpointId,
    remote: RemoteAddr,
    len: usize,
    access: Access,
) -> Result<(Option<&Region>, usize), Status> {
    if len == 0 {
        return Ok((None, 0));
    }
    let domain = world.endpoints[&target].domain;
    let region = world
        .regions
        .get(&(domain, remote.key))
        .filter(|region| region.access.contains(access))
        .ok_or(Status::RemoteAccess)?;
    let offset = remote
        .addr
        .checked_sub(region.memory.addr())
        .and_then(|offset| usize::try_from(offset).ok())
        .ok_or(Status::RemoteAccess)?;
    region
        .memory
        .iovec(offset, len)
        .map_err(|_| Status::RemoteAccess)?;
    Ok((Some(region), offset))
}

/// How many bytes the next receive takes, if there is one.
fn receive_room(world: &World, target: EndpointId) -> Option<usize> {
    let endpoint = world.endpoints.get(&target)?;
    let receives = match endpoint.shared {
        Some(shared) => &world.shared.get(&shared)?.receives,
        None => &endpoint.receives,
    };
    Some(receives.front()?.local.total())
}

fn take_receive(world: &mut World, target: EndpointId) -> Option<Pending> {
    let endpoint = world.endpoints.get_mut(&target)?;
    let Some(shared) = endpoint.shared else {
        return endpoint.receives.pop_front();
    };
    let shared = world.shared.get_mut(&shared)?;
    let mut receive = shared.receives.pop_front()?;
    check_limit(shared);
    endpoint.recv_queue.adopt(&mut receive.slot);
    Some(receive)
}

/// Reports a receive that `sent` consumed; unless it succeeded, the receiver's end of a connection fails with the sender's.
fn end_receive(
    world: &mut World,
    from: EndpointId,
    target: EndpointId,
    receive: Pending,
    status: Status,
    sent: &Pending,
) {
    let source = &world.endpoints[&from];
    let address = source.address.clone();
    let endpoint = world.endpoints.get_mut(&target).expect("it had a receive");
    let peer = match endpoint.attributes.kind {
        EndpointKind::Msg => None,
        EndpointKind::Rdm | EndpointKind::Dgram => {
            endpoint.attributes.addresses.insert(&address).ok()
        }
    };
    let (opcode, invalidated) = match sent.op {
        Op::Send { invalidate, .. } => (Opcode::Recv, invalidate),
        _ => (Opcode::RecvWrite, None),
    };
    let completion = Completion {
        context: receive.context,
        status,
        opcode,
        len: sent.local.total(),
        immediate: sent.op.immediate(),
        invalidated,
        endpoint: target,
        peer,
        local: receive.local.conceal(),
    };
    let solicited = sent.flags.contains(WorkFlags::SOLICITED);
    let report = if solicited {
        Report::Solicited
    } else {
        Report::Plain
    };
    endpoint.recv_queue.push(completion, receive.slot, report);
}

/// Ends work of a send queue.
fn finish(world: &mut World, id: EndpointId, pending: Pending, status: Status) {
    if status.is_success() && pending.flags.contains(WorkFlags::UNSIGNALED) {
        let Pending { local, slot, .. } = pending;
        // The local memory may be the last handle to a region, whose drop takes the lock.
        world.discard(local);
        drop(slot);
        return;
    }
    let endpoint = world.endpoints.get_mut(&id).expect("it had work");
    report(endpoint, pending, status);
}

fn report(endpoint: &Endpoint, pending: Pending, status: Status) {
    let queue: &SoftQueue = match pending.op {
        Op::Recv => &endpoint.recv_queue,
        _ => &endpoint.send_queue,
    };
    let len = if status.is_success() {
        Exposed::total(&pending.local)
    } else {
        0
    };
    let completion = Completion {
        context: pending.context,
        status,
        opcode: pending.op.opcode(),
        len,
        immediate: None,
        invalidated: None,
        endpoint: endpoint.attributes.id,
        peer: pending.peer,
        local: pending.local.conceal(),
    };
    queue.push(completion, pending.slot, Report::Plain);
}
