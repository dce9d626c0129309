//! Endpoints: what is accepted, and the end of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::shared::take;
use super::world::{self, Endpoint as Record, Pending, State};
use super::{connect, cq, execute, shared};
use crate::provider::{self, EndpointAttributes, own};
use crate::util::Slot;
use crate::{Address, EndpointId, EndpointKind, Error, Op, PostError, Work, WorkFlags};

pub(super) struct Endpoint {
    pub(super) id: EndpointId,
}

impl Endpoint {
    pub(super) fn open(domain: u64, attributes: EndpointAttributes) -> Result<Self, Error> {
        let send =
            own::<cq::CompletionQueue>(Arc::clone(&attributes.send_queue), "the completion queue")?;
        let recv =
            own::<cq::CompletionQueue>(Arc::clone(&attributes.recv_queue), "the completion queue")?;
        let shared = match &attributes.shared_receive {
            Some(shared) => {
                let shared =
                    own::<shared::SharedReceive>(Arc::clone(shared), "the shared receive")?;
                Some(shared.id)
            }
            None => None,
        };
        let mut world = world::lock();
        let id = attributes.id;
        let address = if attributes.address.is_any() {
            format!("loopback:{}", world.unique()).into()
        } else {
            attributes.address.clone()
        };
        if attributes.kind != EndpointKind::Msg {
            if world.addresses.contains_key(&address) {
                return Err(Error::AddressInUse(address));
            }
            world.addresses.insert(address.clone(), id);
        }
        let record = Record {
            domain,
            address,
            state: State::Idle,
            send_queue: send.queue.clone(),
            recv_queue: recv.queue.clone(),
            shared,
            sends_outstanding: Arc::default(),
            recvs_outstanding: Arc::default(),
            lanes: BTreeMap::new(),
            receives: VecDeque::new(),
            blocked: Vec::new(),
            attributes,
        };
        world.endpoints.insert(id, record);
        Ok(Self { id })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // Access happens under the lock: once we have it, there is none.
        let mut world = world::lock();
        execute::fail_endpoint(&mut world, self.id);
        execute::flush(&mut world, self.id);
        if let Some(record) = world.endpoints.remove(&self.id) {
            if record.attributes.kind != EndpointKind::Msg {
                world.addresses.remove(&record.address);
            }
            // Senders who waited for a receive here learn that there will be none.
            for (endpoint, lane) in record.blocked.clone() {
                execute::run(&mut world, endpoint, lane);
            }
            world.discard(record);
        }
    }
}

impl provider::Endpoint for Endpoint {
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        let mut world = world::lock();
        let mut accepted = 0;
        let mut outcome = Ok(());
        while accepted < work.len() {
            if let Err(error) = accept(&mut world, self.id, &mut work[accepted]) {
                outcome = Err(error);
                break;
            }
            accepted += 1;
        }
        work.drain(..accepted);
        outcome
    }

    fn connect(&self, to: &Address, private_data: &[u8]) -> Result<(), Error> {
        connect::request(self, to, private_data)
    }

    fn disconnect(&self) {
        execute::fail_endpoint(&mut world::lock(), self.id);
    }

    fn address(&self) -> Result<Address, Error> {
        let world = world::lock();
        Ok(world.endpoints[&self.id].address.clone())
    }
}

/// Accepts one work, leaving an empty one in its place, and carries out what can be.
fn accept(world: &mut world::World, id: EndpointId, work: &mut Work) -> Result<(), PostError> {
    let endpoint = world.endpoints.get_mut(&id).expect("removed by drop only");
    let attributes = &endpoint.attributes;
    let is_receive = work.op == Op::Recv;
    let unconnected = matches!(endpoint.state, State::Idle | State::Connecting);
    if attributes.kind == EndpointKind::Msg && unconnected && !is_receive {
        return Err(PostError::NotConnected);
    }
    if is_receive {
        let slot = endpoint
            .recv_queue
            .reserve(&endpoint.recvs_outstanding, attributes.recv_depth)?;
        endpoint.receives.push_back(pending(take(work), slot));
        let blocked = std::mem::take(&mut endpoint.blocked);
        for (endpoint, lane) in blocked {
            execute::run(world, endpoint, lane);
        }
    } else {
        let slot = endpoint
            .send_queue
            .reserve(&endpoint.sends_outstanding, attributes.send_depth)?;
        let pending = pending(take(work), slot);
        let peer = match attributes.kind {
            EndpointKind::Msg => None,
            EndpointKind::Rdm | EndpointKind::Dgram => pending.peer,
        };
        let lane = endpoint.lanes.entry(peer).or_default();
        lane.queue.push_back(pending);
        // With work before it, this one waits too: order is kept.
        if lane.queue.len() == 1 {
            execute::run(world, id, peer);
        }
    }
    let failed = world
        .endpoints
        .get(&id)
        .is_some_and(|endpoint| endpoint.state == State::Failed);
    if failed {
        execute::flush(world, id);
    }
    Ok(())
}

/// A work as it waits. Inline bytes are copied now.
pub(super) fn pending(work: Work, slot: Slot) -> Pending {
    let Work {
        context,
        op,
        local,
        peer,
        flags,
    } = work;
    let local = local.expose();
    let inline = flags.contains(WorkFlags::INLINE).then(|| {
        let mut bytes = vec![0; local.total()];
        let mut at = 0;
        for segment in local.iter() {
            let part = &mut bytes[at..at + segment.len];
            // A truncated file shows zeros here and fails when the work is carried out.
            let _ = segment.memory.copy_out(segment.offset, part);
            at += segment.len;
        }
        bytes
    });
    Pending {
        context,
        op,
        local,
        inline,
        peer,
        flags,
        slot,
    }
}
