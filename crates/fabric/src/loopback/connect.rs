//! Connecting: a request waits in the listener's events for an answer.

use std::sync::Arc;

use super::endpoint::Endpoint;
use super::world::{self, State};
use crate::provider::{self, PendingConnection};
use crate::{Address, Capabilities, ConnectionRequest, EndpointId, Error, Event, EventQueue};

pub(super) struct Listener {
    address: Address,
}

impl Listener {
    pub(super) fn open(
        address: &Address,
        events: &EventQueue,
        capabilities: &Arc<Capabilities>,
    ) -> Result<Self, Error> {
        let mut world = world::lock();
        let address = if address.is_any() {
            format!("loopback:{}", world.unique()).into()
        } else {
            address.clone()
        };
        if world.listeners.contains_key(&address) {
            return Err(Error::AddressInUse(address));
        }
        let listener = world::Listener {
            events: events.clone(),
            capabilities: Arc::clone(capabilities),
        };
        world.listeners.insert(address.clone(), listener);
        Ok(Self { address })
    }
}

impl provider::Listener for Listener {
    fn address(&self) -> Address {
        self.address.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut world = world::lock();
        // Its events may hold requests, whose drop takes the lock.
        let listener = world.listeners.remove(&self.address);
        world.discard(listener);
    }
}

/// Asks the listener at `to`.
pub(super) fn request(endpoint: &Endpoint, to: &Address, private_data: &[u8]) -> Result<(), Error> {
    let mut world = world::lock();
    let world = &mut *world;
    let record = world
        .endpoints
        .get_mut(&endpoint.id)
        .expect("removed by drop only");
    if record.state != State::Idle {
        return Err(Error::WrongState("the endpoint has been connected already"));
    }
    let Some(listener) = world.listeners.get(to) else {
        let event = Event::Unreachable {
            endpoint: endpoint.id,
        };
        record.attributes.events.push(event);
        return Ok(());
    };
    record.state = State::Connecting;
    let pending = Pending {
        from: endpoint.id,
        answered: false,
    };
    let request = ConnectionRequest::new(
        Box::new(pending),
        Arc::clone(&listener.capabilities),
        record.address.clone(),
        private_data.to_vec(),
    );
    listener.events.push(Event::ConnectionRequest(request));
    Ok(())
}

struct Pending {
    from: EndpointId,
    answered: bool,
}

impl PendingConnection for Pending {
    fn accept(
        mut self: Box<Self>,
        endpoint: &dyn provider::Endpoint,
        private_data: &[u8],
    ) -> Result<(), Error> {
        let endpoint: &dyn std::any::Any = endpoint;
        let endpoint = endpoint
            .downcast_ref::<Endpoint>()
            .ok_or(Error::OtherDomain("the endpoint"))?;
        let mut world = world::lock();
        let waits = world
            .endpoints
            .get(&self.from)
            .is_some_and(|from| from.state == State::Connecting);
        if !waits {
            return Err(Error::Disconnected);
        }
        let accepting = world
            .endpoints
            .get_mut(&endpoint.id)
            .expect("removed by drop only");
        if accepting.state != State::Idle {
            // The lock is released before the drop of this request rejects it.
            return Err(Error::WrongState("the endpoint has been connected already"));
        }
        self.answered = true;
        accepting.state = State::Connected(self.from);
        accepting.attributes.events.push(Event::Connected {
            endpoint: endpoint.id,
            private_data: Vec::new(),
        });
        let from = world.endpoints.get_mut(&self.from).expect("it waits");
        from.state = State::Connected(endpoint.id);
        from.attributes.events.push(Event::Connected {
            endpoint: self.from,
            private_data: private_data.to_vec(),
        });
        Ok(())
    }

    fn reject(mut self: Box<Self>, private_data: &[u8]) {
        self.refuse(private_data);
    }
}

impl Pending {
    fn refuse(&mut self, private_data: &[u8]) {
        if std::mem::replace(&mut self.answered, true) {
            return;
        }
        let mut world = world::lock();
        let Some(from) = world.endpoints.get_mut(&self.from) else {
            return;
        };
        if from.state != State::Connecting {
            return;
        }
        from.state = State::Idle;
        from.attributes.events.push(Event::Rejected {
            endpoint: self.from,
            private_data: private_data.to_vec(),
        });
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.refuse(&[]);
    }
}
