//! Listeners, and the requests they hear.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use fabric::provider::{self, PendingConnection};
use fabric::{Address, Capabilities, ConnectionRequest, Error, Event, EventQueue};
use rnic::{Agreement, CmCommandError, CmListener};
use roce::cm::{AcceptParams, CmError, IncomingRequest};
use roce::verbs::QpType;
use roce::wire::cm::{CommId, RejectReason, ServiceId};

use crate::adapter::{Adapter, Inner};
use crate::address;
use crate::connect::{ALREADY, EPHEMERAL, end_of, make_ready};
use crate::cq::lock;
use crate::dgram::random;
use crate::ep::{Endpoint, State, Tell};
use crate::error::lost;

/// Listens to one port of the device.
pub(crate) struct Listener {
    adapter: Arc<Adapter>,
    local: SocketAddr,
    inner: CmListener,
}

/// Where a listener's requests go.
pub(crate) struct Hearing {
    adapter: Weak<Adapter>,
    events: EventQueue,
    capabilities: Arc<Capabilities>,
    /// Requests that the program has not answered.
    waiting: AtomicUsize,
}

impl Listener {
    pub(crate) fn open(
        adapter: &Arc<Adapter>,
        address: &Address,
        events: &EventQueue,
        capabilities: &Arc<Capabilities>,
    ) -> Result<Self, Error> {
        let ip = adapter.ip();
        let asked = address::port(address, ip)?;
        let hearing = Arc::new(Hearing {
            adapter: Arc::downgrade(adapter),
            events: events.clone(),
            capabilities: Arc::clone(capabilities),
            waiting: AtomicUsize::new(0),
        });
        // A request may come before the listener is returned.
        let mut listeners = lock(&adapter.inner.listeners);
        let mut tries = 0;
        let inner = loop {
            let port = match asked {
                0 => EPHEMERAL | random()? as u16,
                port => port,
            };
            match adapter.inner.channel.listen(ServiceId::tcp(port)) {
                Ok(inner) => break inner,
                Err(CmCommandError::Refused(CmError::InUse(_))) if asked == 0 && tries < TRIES => {
                    tries += 1;
                }
                Err(CmCommandError::Refused(CmError::InUse(_))) => {
                    let taken = SocketAddr::new(ip, port).to_string();
                    return Err(Error::AddressInUse(taken.into()));
                }
                Err(error) => return Err(lost("listening", error)),
            }
        };
        let (_, port) = inner.service().port().expect("made of a port");
        listeners.insert(inner.service(), hearing);
        Ok(Self {
            adapter: Arc::clone(adapter),
            local: SocketAddr::new(ip, port),
            inner,
        })
    }
}

impl provider::Listener for Listener {
    fn address(&self) -> Address {
        self.local.to_string().into()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The port is free for others only when `inner` drops, after this.
        let hearing = lock(&self.adapter.inner.listeners).remove(&self.inner.service());
        drop(hearing);
    }
}

/// A peer asks for a connection.
pub(crate) fn hear(inner: &Inner, id: CommId, request: IncomingRequest) {
    let hearing = lock(&inner.listeners).get(&request.service).cloned();
    let link = inner.device.attributes().active_mtu;
    let refused = match (
        &hearing,
        hearing.as_ref().and_then(|to| to.adapter.upgrade()),
    ) {
        _ if request.transport != QpType::Rc => Err(RejectReason::InvalidTransport),
        _ if request.path_mtu > link => Err(RejectReason::PathMtu),
        // Refused while they are few: what the connection manager gives up to make room for newer ones would wait here all
        // the same, and keep the program busy with peers that are gone.
        (Some(hearing), _) if hearing.waiting.load(Ordering::Relaxed) >= BACKLOG => {
            Err(RejectReason::NoResources)
        }
        (Some(hearing), Some(adapter)) => Ok((hearing, adapter)),
        _ => Err(RejectReason::InvalidServiceId),
    };
    let (hearing, adapter) = match refused {
        Ok(taken) => taken,
        Err(reason) => {
            // It may have been given up already.
            let _ = inner.channel.reject(id, reason, &[]);
            return;
        }
    };
    let port = request.ip.map_or(0, |ip| ip.source_port);
    let from = SocketAddr::new(request.route.remote, port).to_string();
    let private_data = request.private_data.clone();
    hearing.waiting.fetch_add(1, Ordering::Relaxed);
    let pending = Pending {
        adapter,
        hearing: Arc::downgrade(hearing),
        id,
        request,
        answered: false,
    };
    hearing
        .events
        .push(Event::ConnectionRequest(ConnectionRequest::new(
            Box::new(pending),
            Arc::clone(&hearing.capabilities),
            from.into(),
            private_data,
        )));
}

/// A request that waits for an answer.
struct Pending {
    adapter: Arc<Adapter>,
    /// Not kept alive by its own queue of requests.
    hearing: Weak<Hearing>,
    id: CommId,
    request: IncomingRequest,
    answered: bool,
}

impl PendingConnection for Pending {
    fn accept(
        mut self: Box<Self>,
        endpoint: &dyn provider::Endpoint,
        private_data: &[u8],
    ) -> Result<(), Error> {
        let endpoint: &dyn Any = endpoint;
        let endpoint = endpoint
            .downcast_ref::<Endpoint>()
            .filter(|endpoint| Arc::ptr_eq(&endpoint.core.adapter, &self.adapter))
            .ok_or(Error::OtherDomain("the endpoint"))?;
        let core = &endpoint.core;
        if !core.advance(State::Idle, State::Connecting) {
            return Err(ALREADY);
        }
        let ours = end_of(core);
        let agreement = Agreement::of_request(&self.request, ours);
        if let Err(error) = make_ready(core, &agreement) {
            core.fail(Tell::Program);
            return Err(error);
        }
        let inner = &self.adapter.inner;
        let params = AcceptParams {
            end: ours,
            private_data: private_data.to_vec(),
        };
        let (_, port) = self.request.service.port().expect("we listen to ports");
        let mut attempt = lock(&core.attempt);
        // Held until the name is known to be the endpoint's, since the answer may be here before.
        let mut connections = lock(&inner.connections);
        if inner.channel.accept(self.id, &params).is_err() {
            drop((attempt, connections));
            self.answered = true;
            core.fail(Tell::Program);
            return Err(Error::Disconnected);
        }
        self.answered = true;
        connections.insert(self.id, Arc::downgrade(core));
        attempt.id = Some(self.id);
        attempt.local = Some(SocketAddr::new(self.adapter.ip(), port));
        Ok(())
    }

    fn reject(mut self: Box<Self>, private_data: &[u8]) {
        self.refuse(private_data);
    }
}

impl Pending {
    fn refuse(&mut self, private_data: &[u8]) {
        if !std::mem::replace(&mut self.answered, true) {
            let channel = &self.adapter.inner.channel;
            // The peer may have given up meanwhile.
            let _ = channel.reject(self.id, RejectReason::Consumer, private_data);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.refuse(&[]);
        if let Some(hearing) = self.hearing.upgrade() {
            hearing.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Most requests that wait for the program's answer.
const BACKLOG: usize = 256;

/// How many ports are tried where any will do.
const TRIES: usize = 1000;
