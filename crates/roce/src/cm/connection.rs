//! One connection, from the first message to the last, and what its timers do.
//!
//! IBA Vol. 1, 12.9.7.

use std::net::IpAddr;

use super::{
    Cm, CmError, CmEvent, Failure, Mad, Patience, Route, mra_message, reject_message, timeout,
};
use crate::time::Instant;
use crate::wire::cm::{Answered, CommId, Message, RejectReason};
use crate::wire::{Guid, Qpn};

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Active: REQ is repeated until something comes.
    ReqSent,
    /// Active: the application has the reply.
    RepReceived,
    /// Passive: the application has the request.
    ReqReceived,
    /// Passive: REP is repeated until RTU or data comes.
    RepSent,
    /// Up.
    Established,
    /// DREQ is repeated until DREP comes.
    DreqSent,
    /// Over; remembered so that what still comes is answered as before.
    Timewait {
        /// The application is told when it is forgotten.
        tell: bool,
    },
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) state: State,
    pub(super) route: Route,
    pub(super) transaction: u64,
    /// The peer's name for it; zero until known.
    pub(super) remote: CommId,
    /// The peer's request, of the passive side.
    pub(super) request: Option<Request>,
    /// The peer's queue pair, once known.
    pub(super) remote_qpn: Option<Qpn>,
    /// The message to repeat, when its timer or a duplicate asks for it.
    pub(super) sent: Option<Box<Mad>>,
    pub(super) patience: Patience,
    pub(super) deadline: Option<Instant>,
    /// What the peer has offered.
    pub(super) offer: Option<crate::wire::extension::Offer>,
}

/// What a passive side remembers of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    /// Its place in the order of arrival.
    pub(super) arrival: u64,
    pub(super) ca_guid: Guid,
    /// Code: how long we are to wait for the peer.
    pub(super) local_timeout: u8,
    pub(super) max_retries: u8,
    pub(super) responder_resources: u8,
    pub(super) initiator_depth: u8,
    /// The peer is a software peer, and we speak the extensions.
    pub(super) is_software: bool,
}

impl Cm {
    /// The connection `id`, for a command.
    pub(super) fn connection(&mut self, id: CommId) -> Result<&mut Connection, CmError> {
        self.connections.get_mut(&id).ok_or(CmError::Unknown(id))
    }

    /// The connection that a message from the peer names: both names and the address must fit.
    pub(super) fn named(
        &mut self,
        route: Route,
        (local, remote): (CommId, CommId),
    ) -> Option<&mut Connection> {
        self.connections
            .get_mut(&local)
            .filter(|connection| connection.route == route && connection.remote == remote)
    }

    /// Sets the timer of a connection; `None` stops it.
    pub(super) fn arm(&mut self, id: CommId, deadline: Option<Instant>) {
        let connection = self
            .connections
            .get_mut(&id)
            .expect("only called for live connections");
        if let Some(old) = connection.deadline.take() {
            self.timers.remove(&(old, id));
        }
        connection.deadline = deadline;
        self.timers.extend(deadline.map(|at| (at, id)));
    }

    /// Sends a message that is repeated with `patience` until the connection's next step.
    pub(super) fn send_until_answered(
        &mut self,
        now: Instant,
        id: CommId,
        message: &Message,
        patience: Patience,
    ) {
        let connection = self
            .connections
            .get_mut(&id)
            .expect("only called for live connections");
        let mad = self
            .outbox
            .send(connection.route, connection.transaction, message);
        connection.sent = Some(Box::new(mad));
        connection.patience = patience;
        self.arm(id, Some(now + patience.interval));
    }

    /// Repeats the last message of a connection, if it has one to repeat.
    pub(super) fn repeat(&mut self, id: CommId) {
        let connection = &self.connections[&id];
        if let Some(mad) = &connection.sent {
            self.outbox.repeat(connection.route, mad);
        }
    }

    /// Asks the peer for more time: our application is slow.
    pub(super) fn ask_for_time(&mut self, id: CommId, answered: Answered) {
        let connection = &self.connections[&id];
        let code = self.config.service_timeout;
        let mra = mra_message(id, connection.remote, answered, code);
        let (route, transaction) = (connection.route, connection.transaction);
        self.outbox.send(route, transaction, &Message::Mra(mra));
    }

    /// Half of the time that the peer waits has passed, and the application has not answered.
    fn on_slow_application(&mut self, now: Instant, id: CommId, answered: Answered) {
        let again = now + timeout(self.config.service_timeout) / 2;
        let patience = &mut self.connection(id).expect("the caller has looked").patience;
        if patience.next().is_some() {
            self.ask_for_time(id, answered);
            self.arm(id, Some(again));
        } else {
            self.fail(id, Failure::TooSlow);
        }
    }

    /// The connection is no longer one of the requests that wait.
    pub(super) fn leave_half_open(&mut self, id: CommId) {
        if let Some(request) = self
            .connections
            .get(&id)
            .and_then(|connection| connection.request)
        {
            self.half_open.remove(&request.arrival);
        }
    }

    /// Ends a connection, but remembers it for a while. The peer may use its queue pair again: what stray
    /// packets do to it is its own concern, ours is not to give our queue pair's number away too soon.
    pub(super) fn enter_timewait(&mut self, now: Instant, id: CommId, tell: bool) {
        let connection = self
            .connections
            .get_mut(&id)
            .expect("only called for live connections");
        connection.state = State::Timewait { tell };
        let (remote, qpn) = (connection.route.remote, connection.remote_qpn.take());
        if let Some(qpn) = qpn {
            self.free_queue_pair(remote, qpn, id);
        }
        let until = now + self.config.timewait;
        self.arm(id, Some(until));
    }

    /// Forgets a connection.
    pub(super) fn forget(&mut self, id: CommId) {
        self.arm(id, None);
        self.leave_half_open(id);
        let connection = self
            .connections
            .remove(&id)
            .expect("only called for live connections");
        let route = connection.route;
        if let Some(request) = connection.request {
            self.by_request
                .remove(&(route.remote, request.ca_guid, connection.remote));
        }
        if let Some(qpn) = connection.remote_qpn {
            self.free_queue_pair(route.remote, qpn, id);
        }
    }

    /// The peer's queue pair is not of connection `id` any more.
    fn free_queue_pair(&mut self, remote: IpAddr, qpn: Qpn, id: CommId) {
        if self.by_queue_pair.get(&(remote, qpn)) == Some(&id) {
            self.by_queue_pair.remove(&(remote, qpn));
        }
    }

    /// The connection is up.
    pub(super) fn become_established(&mut self, id: CommId) {
        self.arm(id, None);
        self.leave_half_open(id);
        let connection = self
            .connections
            .get_mut(&id)
            .expect("only called for live connections");
        connection.state = State::Established;
        self.events.push_back(CmEvent::Established {
            id,
            offer: connection.offer,
        });
    }

    pub(super) fn on_connection_timeout(&mut self, now: Instant, id: CommId) {
        let connection = self
            .connections
            .get_mut(&id)
            .expect("the caller has looked");
        connection.deadline = None;
        match connection.state {
            State::ReqSent | State::RepSent | State::DreqSent => match connection.patience.next() {
                Some(wait) => {
                    self.repeat(id);
                    self.arm(id, Some(now + wait));
                }
                None => self.give_up(now, id),
            },
            State::ReqReceived => self.on_slow_application(now, id, Answered::Req),
            State::RepReceived => self.on_slow_application(now, id, Answered::Rep),
            State::Established => {}
            State::Timewait { tell } => {
                self.forget(id);
                if tell {
                    self.events.push_back(CmEvent::Closed { id });
                }
            }
        }
    }

    /// The peer has answered none of the repetitions.
    #[cold]
    fn give_up(&mut self, now: Instant, id: CommId) {
        if self.connections[&id].state == State::DreqSent {
            self.events.push_back(CmEvent::Disconnected { id });
            self.enter_timewait(now, id, true);
        } else {
            self.fail(id, Failure::Unreachable);
        }
    }

    /// Gives an attempt up, and tells both the peer, who may be waiting, and the application.
    #[cold]
    fn fail(&mut self, id: CommId, why: Failure) {
        let connection = &self.connections[&id];
        let (route, transaction, remote) =
            (connection.route, connection.transaction, connection.remote);
        self.send_timeout_reject(route, transaction, id, remote);
        self.events.push_back(CmEvent::Failed { id, why });
        self.forget(id);
    }

    /// "I gave up waiting": names us by our GUID too, for the peer may not know our name's connection.
    pub(super) fn send_timeout_reject(
        &mut self,
        route: Route,
        transaction: u64,
        local: CommId,
        remote: CommId,
    ) {
        let mut rej = reject_message(local, remote, Answered::Nothing, RejectReason::Timeout, &[]);
        rej.info[..8].copy_from_slice(&self.config.ca_guid.0.to_be_bytes());
        rej.info_length = 8;
        self.outbox.send(route, transaction, &Message::Rej(rej));
    }
}
