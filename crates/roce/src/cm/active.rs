//! The side that asks for a connection.
//!
//! IBA Vol. 1, 12.9.7.1.

use super::connection::{Connection, State};
use super::{
    Cm, CmError, CmEvent, ConnectParams, End, Failure, Patience, Peer, Route, fits, timeout,
};
use crate::time::Instant;
use crate::verbs::QpType;
use crate::wire::cm::{
    Answered, CommId, IpCm, Message, Mra, PathInfo, RejectReason, Rep, Req, Rtu, private_data,
};
use crate::wire::extension::{self, Offer};
use crate::wire::{DEFAULT_PKEY, Qpn};

impl Cm {
    /// Asks for a connection. The answer is [`CmEvent::ConnectReply`], [`CmEvent::Rejected`] or
    /// [`CmEvent::Failed`].
    ///
    /// # Errors
    /// [`CmError::PrivateDataTooLong`], [`CmError::MixedFamilies`], [`CmError::NotConnected`].
    pub fn connect(&mut self, now: Instant, params: &ConnectParams) -> Result<CommId, CmError> {
        let data = request_data(params)?;
        let transport = match params.transport {
            QpType::Rc => 0,
            QpType::Uc => 1,
            QpType::Ud => return Err(CmError::NotConnected),
        };
        let route = params.route.canonical();
        let id = self.new_id();
        let config = &self.config;
        let req = Req {
            local: id,
            service: params.service,
            ca_guid: config.ca_guid,
            qkey: 0,
            qpn: params.end.qpn,
            responder_resources: params.end.responder_resources,
            local_eecn: 0,
            initiator_depth: params.end.initiator_depth,
            remote_eecn: 0,
            remote_timeout: config.response_timeout,
            transport,
            flow_control: false,
            psn: params.end.psn,
            local_timeout: config.response_timeout,
            retry_count: params.retry_count,
            pkey: DEFAULT_PKEY,
            path_mtu: params.path_mtu.code(),
            rdc_exists: false,
            rnr_retry_count: params.end.rnr_retry_count,
            max_cm_retries: config.retries,
            srq: params.end.srq,
            extended_transport: 0,
            primary: PathInfo {
                // What the kernel sends on RoCE: no LIDs, a rate of 10 Gb/s, 64 hops.
                local_lid: 0xFFFF,
                remote_lid: 0xFFFF,
                local_gid: route.local.into(),
                remote_gid: route.remote.into(),
                rate: 3,
                hop_limit: 64,
                ack_timeout: params.ack_timeout,
                ..PathInfo::default()
            },
            alternate: PathInfo::default(),
            private_data: data,
        };
        let patience = Patience::new(config, config.retries, timeout(config.response_timeout));
        let connection = Connection {
            state: State::ReqSent,
            route,
            transaction: self.random.next(),
            remote: CommId(0),
            request: None,
            remote_qpn: None,
            sent: None,
            patience,
            deadline: None,
            offer: None,
        };
        self.connections.insert(id, connection);
        self.send_until_answered(now, id, &Message::Req(req), patience);
        Ok(id)
    }

    /// Says that the connection is up: of the active side after [`CmEvent::ConnectReply`], when its queue
    /// pair is ready; of the passive side when its queue pair has received data before RTU came.
    ///
    /// # Errors
    /// [`CmError::Unknown`], [`CmError::WrongState`]; a connection that is up already is no error.
    pub fn establish(&mut self, id: CommId) -> Result<(), CmError> {
        let offer = self.config.offer;
        let connection = self.connection(id)?;
        match connection.state {
            State::RepReceived => {
                let mut rtu = Rtu {
                    local: id,
                    remote: connection.remote,
                    private_data: [0; 224],
                };
                if let (Some(ours), Some(_)) = (offer, connection.offer) {
                    ours.emit(
                        rtu.private_data
                            .first_chunk_mut()
                            .expect("224 bytes hold 8"),
                    );
                }
                let (route, transaction) = (connection.route, connection.transaction);
                let mad = self.outbox.send(route, transaction, &Message::Rtu(rtu));
                self.connection(id)?.sent = Some(Box::new(mad));
                self.become_established(id);
                Ok(())
            }
            State::RepSent => {
                self.become_established(id);
                Ok(())
            }
            State::Established => Ok(()),
            _ => Err(CmError::WrongState(id)),
        }
    }

    pub(super) fn on_rep(&mut self, now: Instant, route: Route, transaction: u64, rep: &Rep) {
        let id = rep.remote;
        let known = self.connections.get(&id).filter(|connection| {
            connection.route == route
                && (connection.state == State::ReqSent || connection.remote == rep.local)
        });
        let Some(connection) = known else {
            self.outbox.counters.unexpected += 1;
            let names = (id, rep.local);
            self.refuse(
                route,
                transaction,
                Answered::Rep,
                names,
                RejectReason::InvalidCommId,
            );
            return;
        };
        match connection.state {
            State::ReqSent => self.on_first_rep(now, route, id, rep),
            State::RepReceived => {
                self.outbox.counters.duplicates += 1;
                self.ask_for_time(id, Answered::Rep);
            }
            State::Established if connection.request.is_none() => {
                // RTU was lost.
                self.outbox.counters.duplicates += 1;
                self.repeat(id);
            }
            State::Timewait { tell: false } => {
                // We have refused it.
                self.outbox.counters.duplicates += 1;
                self.repeat(id);
            }
            _ => self.outbox.counters.duplicates += 1,
        }
    }

    fn on_first_rep(&mut self, now: Instant, route: Route, id: CommId, rep: &Rep) {
        let connection = self
            .connections
            .get_mut(&id)
            .expect("the caller has looked");
        connection.remote = rep.local;
        if self.is_stale(now, route, rep.qpn) {
            // IBA 12.9.8.3.1: the reply is refused; the connection that has the queue pair is ended.
            let transaction = self.connections[&id].transaction;
            let reason = RejectReason::StaleConnection;
            self.refuse(route, transaction, Answered::Rep, (id, rep.local), reason);
            self.events.push_back(CmEvent::Rejected {
                id,
                reason,
                private_data: Vec::new(),
            });
            self.forget(id);
            return;
        }
        let (offer, private_data) = self.split_offer(rep);
        let patience = self.application_patience();
        let connection = self
            .connections
            .get_mut(&id)
            .expect("the caller has looked");
        connection.state = State::RepReceived;
        connection.remote_qpn = Some(rep.qpn);
        connection.sent = None;
        connection.patience = patience;
        connection.offer = offer;
        self.by_queue_pair.insert((route.remote, rep.qpn), id);
        // The application has half the time that the peer was told to wait.
        let wait = timeout(self.config.response_timeout) / 2;
        self.arm(id, Some(now + wait));
        let peer = Peer {
            end: End {
                qpn: rep.qpn,
                psn: rep.psn,
                responder_resources: rep.responder_resources,
                initiator_depth: rep.initiator_depth,
                rnr_retry_count: rep.rnr_retry_count,
                srq: rep.srq,
            },
            ca_guid: rep.ca_guid,
            extensions: offer.map(|offer| offer.version.min(extension::VERSION)),
        };
        self.events.push_back(CmEvent::ConnectReply {
            id,
            peer,
            private_data,
        });
    }

    /// What a software peer offers at the end of its private data, and the private data without it.
    fn split_offer(&self, rep: &Rep) -> (Option<Offer>, Vec<u8>) {
        let mut data = rep.private_data.to_vec();
        let both = self.extensions_of(rep.ca_guid);
        let at = data.len() - Offer::LEN;
        let offer = both
            .and_then(|_| Offer::parse(&data[at..]).ok())
            .map(|(offer, _)| offer);
        if offer.is_some() {
            data[at..].fill(0);
        }
        (offer, data)
    }

    /// The peer has received our message and needs more time.
    pub(super) fn on_mra(&mut self, now: Instant, route: Route, mra: &Mra) {
        let answered = match mra.answered {
            Answered::Req => State::ReqSent,
            Answered::Rep => State::RepSent,
            Answered::Nothing | Answered::Other => {
                self.outbox.counters.unexpected += 1;
                return;
            }
        };
        let known = self.connections.get_mut(&mra.remote).filter(|connection| {
            connection.route == route
                && connection.state == answered
                && (answered == State::ReqSent || connection.remote == mra.local)
        });
        let Some(connection) = known else {
            self.outbox.counters.unexpected += 1;
            return;
        };
        let wait = connection.patience.interval + timeout(mra.service_timeout);
        self.arm(mra.remote, Some(now + wait));
    }

    /// Does another connection have the peer's queue pair? Then it has outlived its peer, and is ended.
    pub(super) fn is_stale(&mut self, now: Instant, route: Route, qpn: Qpn) -> bool {
        let Some(&old) = self.by_queue_pair.get(&(route.remote, qpn)) else {
            return false;
        };
        match self.connections[&old].state {
            // The peer has given that attempt up, and its word of it was lost.
            State::ReqReceived | State::RepSent => {
                let why = Failure::Unreachable;
                self.events.push_back(CmEvent::Failed { id: old, why });
                self.forget(old);
                false
            }
            State::Established => {
                self.release(now, old);
                true
            }
            _ => true,
        }
    }
}

/// The private data of a request: the application's, behind the addresses if the service is a port.
fn request_data(params: &ConnectParams) -> Result<[u8; 92], CmError> {
    let application = &params.private_data;
    if params.service.port().is_none() {
        fits(application, 92)?;
        return Ok(private_data(application));
    }
    fits(application, 92 - IpCm::LEN)?;
    let header = IpCm::new(params.route.local, params.source_port, params.route.remote)
        .map_err(|_| CmError::MixedFamilies)?;
    let mut data = [0; 92];
    let (front, behind) = data.split_first_chunk_mut().expect("92 bytes hold 36");
    header.emit(front);
    behind[..application.len()].copy_from_slice(application);
    Ok(data)
}
