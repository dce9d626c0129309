//! How endpoints are connected: what is asked of the connection manager, and what it answers.

use std::net::SocketAddr;
use std::sync::Arc;

use fabric::{Address, Error, Event};
use rnic::{Agreement, CmCommandError};
use roce::cm::{CmEvent, ConnectParams, End, Peer, Route};
use roce::verbs::{Mtu, QpAttr, QpType, ack_timeout};
use roce::wire::cm::{CommId, RejectReason, ServiceId};

use crate::adapter::Inner;
use crate::cq::lock;
use crate::dgram::random;
use crate::ep::{Core, State, Tell};
use crate::error::lost;
use crate::{address, convert, listener};

/// What an endpoint knows of its connection.
#[derive(Default)]
pub(crate) struct Attempt {
    /// Its name, from the first request on.
    pub(crate) id: Option<CommId>,
    /// Our side.
    pub(crate) local: Option<SocketAddr>,
    /// What was asked for, of the side that asks, until there is an answer.
    asked: Option<ConnectParams>,
    /// What the peer said when it accepted.
    answer: Vec<u8>,
}

/// Asks for a connection.
pub(crate) fn ask(core: &Arc<Core>, to: &Address, private_data: &[u8]) -> Result<(), Error> {
    if core.state() != State::Idle {
        return Err(ALREADY);
    }
    let own = core.adapter.ip();
    let target = address::target(to, own)?;
    // What the peer is shown; nothing is bound to it.
    let source_port = EPHEMERAL | random()? as u16;
    let params = ConnectParams {
        route: Route {
            local: own,
            remote: target.ip(),
        },
        service: ServiceId::tcp(target.port()),
        source_port,
        end: end_of(core),
        transport: QpType::Rc,
        path_mtu: path_mtu(core),
        retry_count: core.retries.unwrap_or(7),
        ack_timeout: core.tuning.ack_timeout,
        private_data: private_data.to_vec(),
    };
    if !core.advance(State::Idle, State::Connecting) {
        return Err(ALREADY);
    }
    let inner = &core.adapter.inner;
    let mut attempt = lock(&core.attempt);
    // Held until the name is known, since the answer may be here before it.
    let mut connections = lock(&inner.connections);
    match inner.channel.connect(&params) {
        Ok(id) => {
            connections.insert(id, Arc::downgrade(core));
            *attempt = Attempt {
                id: Some(id),
                local: Some(SocketAddr::new(own, source_port)),
                asked: Some(params),
                answer: Vec::new(),
            };
            Ok(())
        }
        Err(error) => {
            core.advance(State::Connecting, State::Idle);
            Err(lost("asking for a connection", error))
        }
    }
}

/// Our end, as the peer is told of it.
pub(crate) fn end_of(core: &Core) -> End {
    let end = core.qp.end(core.tuning.read_depth, core.shared.is_some());
    End {
        rnr_retry_count: core.rnr_retries.unwrap_or(7),
        ..end
    }
}

/// The largest packets that the device's link and the setting permit.
pub(crate) fn path_mtu(core: &Core) -> Mtu {
    let link = core.adapter.inner.device.attributes().active_mtu;
    core.tuning.mtu.min(link)
}

/// Brings a queue pair from init to ready, patient as its endpoint was asked to be.
pub(crate) fn make_ready(core: &Core, agreement: &Agreement) -> Result<(), Error> {
    let refused = |error| lost("preparing a queue pair", error);
    core.qp
        .modify(&agreement.ready_to_receive(QpType::Rc))
        .map_err(refused)?;
    core.qp
        .modify(&QpAttr {
            timeout: Some(ack_timeout(core.tuning.ack_timeout)),
            retry_count: Some(convert::retries(core.retries)),
            rnr_retry: Some(convert::retries(core.rnr_retries)),
            ..agreement.ready_to_send(QpType::Rc)
        })
        .map_err(refused)
}

/// The local side of a connection.
pub(crate) fn local_address(core: &Core) -> Result<Address, Error> {
    let local = lock(&core.attempt).local;
    let local = local.ok_or(Error::WrongState("the endpoint has not been connected"))?;
    Ok(local.to_string().into())
}

/// Ends a connection or an attempt, as far as the peer is to hear of it.
pub(crate) fn end(core: &Core) {
    let (id, is_attempt) = {
        let attempt = lock(&core.attempt);
        (attempt.id, attempt.asked.is_some())
    };
    let Some(id) = id else {
        return;
    };
    let inner = &core.adapter.inner;
    if !lock(&inner.leaving).insert(id) {
        return;
    }
    // An attempt that is taken back is forgotten at once; what is over already is not ended again.
    let ended = inner.channel.disconnect(id);
    if is_attempt || ended.is_err() {
        lock(&inner.leaving).remove(&id);
    }
}

/// Something happened to a connection.
pub(crate) fn handle(inner: &Inner, event: CmEvent) {
    match event {
        CmEvent::ConnectRequest { id, request } => listener::hear(inner, id, *request),
        CmEvent::ConnectReply {
            id,
            peer,
            private_data,
        } => on_reply(inner, id, &peer, private_data),
        CmEvent::Established { id, .. } => on_established(inner, id),
        CmEvent::Rejected {
            id,
            reason,
            private_data,
        } => {
            let outcome = match reason {
                RejectReason::InvalidServiceId | RejectReason::Timeout => None,
                _ => Some(private_data),
            };
            on_refused(inner, id, outcome);
        }
        CmEvent::Failed { id, .. } => on_refused(inner, id, None),
        CmEvent::Disconnected { id } => {
            if let Some(core) = forget(inner, id) {
                inner.stop_answering(&core);
                core.fail(Tell::Program);
            }
        }
        CmEvent::Closed { id } => drop(forget(inner, id)),
        CmEvent::ResolveRequest { .. }
        | CmEvent::Resolved { .. }
        | CmEvent::ResolveRefused { .. } => {}
    }
}

fn on_reply(inner: &Inner, id: CommId, peer: &Peer, private_data: Vec<u8>) {
    let ready = inner.endpoint(id).is_some_and(|core| {
        let asked = lock(&core.attempt).asked.clone();
        let agreement = asked.map(|asked| Agreement::of_reply(&asked, peer));
        let ready = agreement.is_some_and(|agreement| make_ready(&core, &agreement).is_ok());
        lock(&core.attempt).answer = private_data;
        ready
    });
    if ready {
        log(id, inner.channel.establish(id));
    } else {
        // The endpoint has been given up meanwhile.
        let refused = inner.channel.reject(id, RejectReason::Consumer, &[]);
        log(id, refused);
    }
}

fn on_established(inner: &Inner, id: CommId) {
    let Some(core) = inner.endpoint(id) else {
        return;
    };
    if core.advance(State::Connecting, State::Connected) {
        let private_data = {
            let mut attempt = lock(&core.attempt);
            attempt.asked = None;
            std::mem::take(&mut attempt.answer)
        };
        core.events.push(Event::Connected {
            endpoint: core.id,
            private_data,
        });
    }
}

/// No connection came of it: the peer refused, with or without words, or nobody was there (`None`).
fn on_refused(inner: &Inner, id: CommId, words: Option<Vec<u8>>) {
    let Some(core) = forget(inner, id) else {
        return;
    };
    let has_asked = {
        let mut attempt = lock(&core.attempt);
        attempt.id = None;
        attempt.asked.take().is_some()
    };
    if !has_asked || core.qp.state() != roce::verbs::QpState::Init {
        // The queue pair has been made ready: it cannot be connected a second time.
        core.fail(Tell::Program);
    } else if core.advance(State::Connecting, State::Idle) {
        core.events.push(match words {
            Some(private_data) => Event::Rejected {
                endpoint: core.id,
                private_data,
            },
            None => Event::Unreachable { endpoint: core.id },
        });
    }
}

fn forget(inner: &Inner, id: CommId) -> Option<Arc<Core>> {
    lock(&inner.leaving).remove(&id);
    let connection = lock(&inner.connections).remove(&id);
    connection?.upgrade()
}

fn log(id: CommId, done: Result<(), CmCommandError>) {
    if let Err(error) = done {
        tracing::debug!(%id, %error, "connection went another way");
    }
}

pub(crate) const ALREADY: Error = Error::WrongState("the endpoint has been connected already");
/// Ports from here on are nobody's in particular.
pub(crate) const EPHEMERAL: u16 = 0xC000;
