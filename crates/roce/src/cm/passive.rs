//! The side that is asked for a connection.
//!
//! IBA Vol. 1, 12.9.7.2.

use super::connection::{Connection, Request, State};
use super::{
    AcceptParams, Cm, CmError, CmEvent, End, Failure, IncomingRequest, Patience, Peer, Route, fits,
    reject_message, timeout,
};
use crate::time::Instant;
use crate::verbs::{Mtu, QpType};
use crate::wire::cm::{Answered, CommId, IpCm, Message, RejectReason, Rep, Req, Rtu, private_data};
use crate::wire::extension::Offer;

impl Cm {
    /// Accepts a request: the queue pair must be ready to receive. [`CmEvent::Established`] follows, or
    /// [`CmEvent::Rejected`] or [`CmEvent::Failed`].
    ///
    /// # Errors
    /// [`CmError::Unknown`], [`CmError::WrongState`], [`CmError::PrivateDataTooLong`].
    pub fn accept(
        &mut self,
        now: Instant,
        id: CommId,
        params: &AcceptParams,
    ) -> Result<(), CmError> {
        let mut data: [u8; 196] = private_data(&params.private_data);
        fits(&params.private_data, data.len())?;
        let config = self.config.clone();
        let connection = self.connection(id)?;
        let (State::ReqReceived, Some(request)) = (connection.state, connection.request) else {
            return Err(CmError::WrongState(id));
        };
        let room = data.len() - Offer::LEN;
        if let (true, Some(ours)) = (request.is_software, config.offer)
            && params.private_data.len() <= room
        {
            ours.emit(
                data[room..]
                    .first_chunk_mut()
                    .expect("the rest holds an offer"),
            );
        }
        let rep = Rep {
            local: id,
            remote: connection.remote,
            qkey: 0,
            qpn: params.end.qpn,
            eecn: 0,
            psn: params.end.psn,
            // IBA 12.7: no more than was asked for, no more than can be answered.
            responder_resources: params.end.responder_resources.min(request.initiator_depth),
            initiator_depth: params.end.initiator_depth.min(request.responder_resources),
            // What the kernel sends: 134 ms, no failover.
            ack_delay: 15,
            failover: 0,
            flow_control: false,
            rnr_retry_count: params.end.rnr_retry_count,
            srq: params.end.srq,
            ca_guid: config.ca_guid,
            private_data: data,
        };
        connection.state = State::RepSent;
        let patience = Patience::new(&config, request.max_retries, timeout(request.local_timeout));
        self.send_until_answered(now, id, &Message::Rep(rep), patience);
        Ok(())
    }

    /// Refuses a request or a reply, with at most 148 bytes for the peer's application. The id is
    /// forgotten.
    ///
    /// # Errors
    /// [`CmError::Unknown`], [`CmError::WrongState`], [`CmError::PrivateDataTooLong`].
    pub fn reject(
        &mut self,
        now: Instant,
        id: CommId,
        reason: RejectReason,
        private_data: &[u8],
    ) -> Result<(), CmError> {
        fits(private_data, 148)?;
        let connection = self.connection(id)?;
        let answered = match connection.state {
            State::ReqReceived => Answered::Req,
            State::RepReceived => Answered::Rep,
            _ => return Err(CmError::WrongState(id)),
        };
        let rej = reject_message(id, connection.remote, answered, reason, private_data);
        let (route, transaction) = (connection.route, connection.transaction);
        let mad = self.outbox.send(route, transaction, &Message::Rej(rej));
        // Remembered, so that the request is refused in the same way when it comes again.
        self.connection(id)?.sent = Some(Box::new(mad));
        self.enter_timewait(now, id, false);
        Ok(())
    }

    pub(super) fn on_req(&mut self, now: Instant, route: Route, transaction: u64, req: &Req) {
        if let Some(&id) = self.by_request.get(&(route.remote, req.ca_guid, req.local)) {
            self.on_duplicate_req(id);
            return;
        }
        if let Err(reason) = self.admit(now, route, transaction, req) {
            let names = (CommId(0), req.local);
            self.refuse(route, transaction, Answered::Req, names, reason);
        }
    }

    fn on_duplicate_req(&mut self, id: CommId) {
        self.outbox.counters.duplicates += 1;
        let connection = &self.connections[&id];
        match connection.state {
            State::ReqReceived => self.ask_for_time(id, Answered::Req),
            State::RepSent | State::Timewait { tell: false } => self.repeat(id),
            State::DreqSent | State::Timewait { tell: true } => {
                // We have accepted and ended it, and the peer has not even heard of the first.
                let (route, transaction) = (connection.route, connection.transaction);
                let names = (id, connection.remote);
                let reason = RejectReason::StaleConnection;
                self.refuse(route, transaction, Answered::Req, names, reason);
            }
            State::ReqSent | State::RepReceived | State::Established => {}
        }
    }

    /// Makes a connection of a request and tells the application, or says why not.
    fn admit(
        &mut self,
        now: Instant,
        route: Route,
        transaction: u64,
        req: &Req,
    ) -> Result<(), RejectReason> {
        if !self.services.contains(&req.service) {
            return Err(RejectReason::InvalidServiceId);
        }
        let software = self.extensions_of(req.ca_guid);
        let request = incoming(route, req, software)?;
        if self.is_stale(now, route, req.qpn) {
            return Err(RejectReason::StaleConnection);
        }
        self.make_room();

        let id = self.new_id();
        self.arrivals += 1;
        let connection = Connection {
            state: State::ReqReceived,
            route,
            transaction,
            remote: req.local,
            request: Some(Request {
                arrival: self.arrivals,
                ca_guid: req.ca_guid,
                local_timeout: req.local_timeout,
                max_retries: req.max_cm_retries,
                responder_resources: req.responder_resources,
                initiator_depth: req.initiator_depth,
                is_software: software.is_some(),
            }),
            remote_qpn: Some(req.qpn),
            sent: None,
            patience: self.application_patience(),
            deadline: None,
            offer: None,
        };
        self.connections.insert(id, connection);
        self.by_request
            .insert((route.remote, req.ca_guid, req.local), id);
        self.by_queue_pair.insert((route.remote, req.qpn), id);
        self.half_open.insert(self.arrivals, id);
        // The application has half the time that the peer waits.
        let wait = (timeout(req.remote_timeout) / 2).max(self.config.first_repeat);
        self.arm(id, Some(now + wait));
        self.events.push_back(CmEvent::ConnectRequest {
            id,
            request: Box::new(request),
        });
        Ok(())
    }

    /// Gives up the oldest request if there are too many.
    fn make_room(&mut self) {
        while self.half_open.len() >= self.config.max_half_open.max(1) {
            let (_, id) = self.half_open.pop_first().expect("not empty");
            self.evict(id);
        }
    }

    #[cold]
    fn evict(&mut self, id: CommId) {
        self.outbox.counters.evicted += 1;
        let connection = &self.connections[&id];
        if connection.state == State::ReqReceived || connection.state == State::RepSent {
            let (route, transaction, remote) =
                (connection.route, connection.transaction, connection.remote);
            let reason = RejectReason::NoResources;
            self.refuse(route, transaction, Answered::Req, (id, remote), reason);
            // What the application has not heard of it need not hear.
            let is_unheard = |event: &CmEvent| matches!(event, CmEvent::ConnectRequest { id: unheard, .. } if *unheard == id);
            match self.events.iter().position(is_unheard) {
                Some(at) => drop(self.events.remove(at)),
                None => self.events.push_back(CmEvent::Failed {
                    id,
                    why: Failure::Evicted,
                }),
            }
        }
        self.forget(id);
    }

    pub(super) fn on_rtu(&mut self, _now: Instant, route: Route, rtu: &Rtu) {
        let Some(connection) = self.named(route, (rtu.remote, rtu.local)) else {
            self.outbox.counters.unexpected += 1;
            return;
        };
        match connection.state {
            State::RepSent => {
                if connection
                    .request
                    .is_some_and(|request| request.is_software)
                {
                    connection.offer = Offer::parse(&rtu.private_data).ok().map(|(offer, _)| offer);
                }
                self.become_established(rtu.remote);
            }
            State::Established => self.outbox.counters.duplicates += 1,
            _ => self.outbox.counters.unexpected += 1,
        }
    }
}

/// A request in the application's terms, or why it cannot be one.
fn incoming(
    route: Route,
    req: &Req,
    extensions: Option<u8>,
) -> Result<IncomingRequest, RejectReason> {
    let transport = match (req.transport, req.extended_transport) {
        (0, 0) => QpType::Rc,
        (1, 0) => QpType::Uc,
        _ => return Err(RejectReason::InvalidTransport),
    };
    // The connection's packets must come from whoever asks for it.
    if req.primary.local_gid.ip() != route.remote.to_canonical() {
        return Err(RejectReason::PrimaryGid);
    }
    let path_mtu = Mtu::from_code(req.path_mtu).ok_or(RejectReason::PathMtu)?;
    let (ip, application) = match req.service.port() {
        Some(_) => {
            let (header, behind) =
                IpCm::parse(&req.private_data).map_err(|_| RejectReason::UnsupportedRequest)?;
            (Some(header), behind)
        }
        None => (None, &req.private_data[..]),
    };
    Ok(IncomingRequest {
        route,
        service: req.service,
        ip,
        peer: Peer {
            end: End {
                qpn: req.qpn,
                psn: req.psn,
                responder_resources: req.responder_resources,
                initiator_depth: req.initiator_depth,
                rnr_retry_count: req.rnr_retry_count,
                srq: req.srq,
            },
            ca_guid: req.ca_guid,
            extensions,
        },
        transport,
        path_mtu,
        retry_count: req.retry_count,
        ack_timeout: req.primary.ack_timeout,
        private_data: application.to_vec(),
    })
}
